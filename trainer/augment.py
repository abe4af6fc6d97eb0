"""Augmentation: random parameters are drawn for each batch; an executor for the CPU or the GPU applies them.

On the CPU, OpenCV warps one picture at a time (0.09 ms at 64 px, a tenth of the time of a transform pipeline). On a
GPU, grid_sample warps the whole batch at once. Flip, rotations, shift, scale and crops are composed into one affine
map, so a picture is resampled once. The transforms that a study names in ``augment`` come first, on the host, in loader
processes if there are any. The order is: augment, warp, erase, colour, normalise, mix.

Both executors give nearly the same pictures. OpenCV rounds coordinates to 1/32 pixel, which changes warped pixels by up
to 8 of 255 levels in the tests. All random values depend on (seed, epoch, batch) alone: not on the process that draws
them, and not on earlier draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.config import TrainConfig
from trainer.device import Device
from trainer.pictures import centre_of
from trainer.transforms import HostAugmentation, Pictures

ERASE_AREA = (0.02, 0.33)
ERASE_ASPECT = (0.3, 3.3)
"""Share of the picture and aspect ratio of an erased rectangle (Zhong et al., 2017, section 4)."""


CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
"""Aspect ratio of a random resized crop, and the number of crops that are drawn for a picture. The first crop that fits
into the picture is used; if none fits, the whole picture (torchvision's RandomResizedCrop)."""


@dataclass(frozen=True)
class Draw:
    """The random parameters of one batch; None for a step that is left out."""

    matrices: NDArray[np.float32] | None = None
    """[batch, 2, 3]: maps each pixel (x, y, 1) of the result to its place in the cached picture."""
    boxes: NDArray[np.int64] | None = None
    """[batch, 4]: top, left, height and width of the erased rectangle. If none is erased, height and width are 0."""
    colours: NDArray[np.float32] | None = None
    """[batch, 3]: factors of brightness, contrast and saturation."""
    mix: Mix | None = None
    """Parameters of mixup or cutmix."""


@dataclass(frozen=True)
class Mix:
    """Parameters for mixing a batch with itself in another order."""

    order: NDArray[np.int64]
    """[batch]: index of the other picture that each picture is mixed with."""
    share: float
    """Weight of a picture's own label; the rest is the weight of the other picture's label."""
    box: tuple[int, int, int, int] | None
    """cutmix: top, left, height and width of the rectangle from the other picture. None: mixup."""


@dataclass(frozen=True)
class Batch:
    """The images and labels of one training step."""

    images: torch.Tensor
    """[batch, channels, size, size] float32, normalised, channels last."""
    labels: torch.Tensor
    """[batch]: labels of the pictures."""
    other_labels: torch.Tensor | None
    """[batch]: labels of the pictures mixed in; None without mixing."""
    share: float | torch.Tensor
    """Weight of ``labels``."""
    other_share: float | torch.Tensor = 0.0
    """Weight of ``other_labels``: 1 - share."""

    def parts(self, number: int) -> list[Batch]:
        """Divide the batch into ``number`` parts, whose lengths differ by at most one.

        There are fewer parts if one would hold a single picture: batch norm after a pooling to 1x1 needs two.
        """
        number = max(1, min(number, len(self.labels) // 2))
        if number == 1:
            return [self]
        others = self.other_labels
        return [
            Batch(images, labels, other, self.share, self.other_share)
            for images, labels, other in zip(
                self.images.tensor_split(number),
                self.labels.tensor_split(number),
                [None] * number if others is None else others.tensor_split(number),
                strict=True,
            )
        ]


def draw(config: TrainConfig, batch: int, size: int, rng: np.random.Generator, cached: int | None = None) -> Draw:
    """Draw the random parameters for ``batch`` pictures of ``size`` pixels, cut from pictures of ``cached`` pixels
    (default: the same size)."""
    matrices = boxes = colours = None
    crops = config.random_crop or config.random_resized_crop
    if crops or config.hflip or config.vflip or config.rotate or config.crop_padding or config.shift or config.scale:
        flip_x = np.where(rng.random(batch) < config.hflip, -1.0, 1.0)
        flip_y = np.where(rng.random(batch) < config.vflip, -1.0, 1.0)
        most = np.array(config.angles)[:, None]
        angle = np.deg2rad(rng.uniform(-most, most, (len(most), batch)).sum(axis=0))
        crop = rng.integers(-config.crop_padding, config.crop_padding, (2, batch), endpoint=True)
        moved = crop + size * rng.uniform(-config.shift, config.shift, (2, batch)) if config.shift else crop
        zoom = 1 / rng.uniform(1 - config.scale, 1 + config.scale, batch) if config.scale else 1.0
        cos, sin, centre = np.cos(angle) * zoom, np.sin(angle) * zoom, (size - 1) / 2
        # [2, 2, batch] and, below, [2, batch]: an affine map for each picture.
        linear = np.stack([np.stack([cos * flip_x, -sin * flip_y]), np.stack([sin * flip_x, cos * flip_y])])
        offset = centre + moved - centre * linear.sum(axis=1)
        shrink, corner = _draw_crop(config, batch, size, cached or size, rng)
        linear, offset = shrink[:, None] * linear, shrink * offset + corner
        matrices = np.concatenate([linear, offset[:, None]], axis=1).transpose(2, 0, 1).astype(np.float32)
    if config.erase:
        area = rng.uniform(*ERASE_AREA, batch) * size * size
        aspect = np.exp(rng.uniform(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1]), batch))
        erased = rng.random(batch) < config.erase
        height = np.where(erased, np.clip(np.rint(np.sqrt(area * aspect)), 1, size), 0).astype(np.int64)
        width = np.where(erased, np.clip(np.rint(np.sqrt(area / aspect)), 1, size), 0).astype(np.int64)
        boxes = np.stack([rng.integers(0, size - height + 1), rng.integers(0, size - width + 1), height, width], axis=1)
    if config.brightness:
        colours = rng.uniform(1 - config.brightness, 1 + config.brightness, (batch, 3)).astype(np.float32)
    return Draw(matrices, boxes, colours, _draw_mix(config, batch, size, rng))


def _draw_crop(
    config: TrainConfig, batch: int, size: int, cached: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor and offset [2, batch] that map pixels (x, y) of the result to pixels of the cached picture."""
    if config.random_resized_crop:
        attempts = (CROP_ATTEMPTS, batch)
        share = rng.uniform(config.random_resized_crop, 1, attempts)
        aspect = np.exp(rng.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1]), attempts))
        sides = cached * np.sqrt(np.stack([share * aspect, share / aspect]))
        fits = (sides <= cached).all(axis=0)
        side = np.where(fits.any(axis=0), sides[:, fits.argmax(axis=0), np.arange(batch)], cached)
        shrink = side / size
        # The outer edges of the first and the last pixel of the result are those of the crop.
        return shrink, rng.uniform(0, 1, (2, batch)) * (cached - side) + (shrink - 1) / 2
    middle = centre_of(cached, size)[1].start  # pixels of margin before the centre
    before, after = (math.floor(config.random_crop * room) for room in (middle, cached - size - middle))
    corner = rng.integers(middle - before, middle + after, (2, batch), endpoint=True) if before + after else middle
    return np.ones((2, batch)), np.full((2, batch), corner, dtype=np.float64)


def _draw_mix(config: TrainConfig, batch: int, size: int, rng: np.random.Generator) -> Mix | None:
    if not config.mixup and not config.cutmix:
        return None
    which, share, order = rng.random(), rng.beta(config.mix_alpha, config.mix_alpha), rng.permutation(batch)
    if which < config.mixup:
        return Mix(order, share, None)
    if which >= config.mixup + config.cutmix:
        return None
    side = int(size * math.sqrt(1 - share))  # Yun et al., 2019, equation 2; the box is cut at the picture's edge
    top, left = rng.integers(0, size, 2) - side // 2
    bottom, right = min(size, top + side), min(size, left + side)
    top, left = max(0, int(top)), max(0, int(left))
    height, width = max(0, int(bottom) - top), max(0, int(right) - left)
    return Mix(order, 1 - height * width / size**2, (top, left, height, width))


class Augmentation:
    """Turns cached pictures into training batches on a device.

    Args:
        config: the candidate, for its augmentation settings.
        device: the device of the batches, which decides the executor.
        mean: mean of each channel, 0 to 1, for the normalisation and as the colour of erased rectangles.
        std: standard deviation of each channel.
        size: height and width of the batches' pictures; cached pictures may be larger.

    Raises:
        ConfigError: a transform in ``augment`` does not exist, or refuses its arguments.
    """

    def __init__(
        self, config: TrainConfig, device: Device, mean: tuple[float, ...], std: tuple[float, ...], size: int
    ) -> None:
        self.config, self.device, self.mean, self.std, self.size = config, device, mean, std, size
        self.on_host = HostAugmentation(config)

    def __call__(
        self, pictures: Pictures | torch.Tensor, labels: torch.Tensor, *seed: int, plain: bool = False
    ) -> Batch:
        """Augment and normalise a batch.

        Args:
            pictures: [batch, cached, cached, channels] uint8, after ``on_host``; a tensor if they are on the device.
            labels: [batch] on the device.
            seed: (seed, epoch, batch number), which determine all random values.
            plain: only cut the centre and normalise.
        """
        (batch, cached), size = pictures.shape[:2], self.size
        drawn = Draw() if plain else draw(self.config, batch, size, np.random.default_rng(seed), cached)
        if drawn.matrices is None:
            pictures = pictures[centre_of(cached, size)]
        if self.device.kind == "cpu" and not isinstance(pictures, torch.Tensor):
            warped = warp_on_host(pictures, drawn, self.mean, size)
            if drawn.colours is None:
                return self._mixed(normalise_on_host(warped, self.mean, self.std), labels, drawn)
            images = torch.from_numpy(warped).permute(0, 3, 1, 2).float()
        else:
            on_device = pictures if isinstance(pictures, torch.Tensor) else self.device.copy(pictures)
            images = warp_on_device(on_device, drawn, self.device, self.mean, size)
        if drawn.colours is not None:
            images = change_colours(images, self.device.copy(drawn.colours))
        return self._mixed(normalise(images, self.mean, self.std), labels, drawn)

    def _mixed(self, images: torch.Tensor, labels: torch.Tensor, drawn: Draw) -> Batch:
        if drawn.mix is None:
            return Batch(images, labels, None, 1.0)
        order = self.device.copy(drawn.mix.order)
        share = drawn.mix.share
        return Batch(mix(images, images[order], drawn.mix), labels, labels[order], share, 1 - share)


def warp_on_host(pictures: Pictures, drawn: Draw, mean: tuple[float, ...], size: int) -> Pictures:
    """Warp and erase one picture after the other; uint8 in, uint8 of ``size`` pixels out."""
    if drawn.matrices is None and drawn.boxes is None:
        return pictures
    batch, channels = len(pictures), pictures.shape[3]
    result = np.empty((batch, size, size, channels), np.uint8) if drawn.matrices is not None else pictures.copy()
    if drawn.matrices is not None:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        # OpenCV needs pictures of one channel as two-dimensional arrays.
        sources, targets = (pictures[..., 0], result[..., 0]) if channels == 1 else (pictures, result)
        for source, matrix, target in zip(sources, drawn.matrices, targets, strict=True):
            cv2.warpAffine(source, matrix, (size, size), dst=target, flags=flags)
    if drawn.boxes is not None:
        colour = np.rint(255 * np.array(mean)).astype(np.uint8)
        for target, (top, left, height, width) in zip(result, drawn.boxes, strict=True):
            target[top : top + height, left : left + width] = colour
    return result


def warp_on_device(
    pictures: torch.Tensor, drawn: Draw, device: Device, mean: tuple[float, ...], size: int
) -> torch.Tensor:
    """Warp and erase the whole batch at once; [batch, S, S, channels] uint8 -> [batch, channels, size, size]."""
    batch, cached = pictures.shape[:2]
    images = pictures.permute(0, 3, 1, 2).float()
    if drawn.matrices is not None:
        pixels = torch.arange(size, device=images.device, dtype=torch.float32)
        y, x = torch.meshgrid(pixels, pixels, indexing="ij")
        where = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(1, -1, 3)
        source = where @ device.copy(drawn.matrices).transpose(1, 2)
        # grid_sample's coordinates go from -1 at the outer edge of the first pixel to 1 at the outer edge of the last.
        grid = ((2 * source + 1) / cached - 1).view(batch, size, size, 2)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if drawn.boxes is not None:
        pixels = torch.arange(size, device=images.device)
        top, left, height, width = device.copy(drawn.boxes).T[:, :, None]
        rows = (pixels >= top) & (pixels < top + height)
        columns = (pixels >= left) & (pixels < left + width)
        colour = per_channel(mean, images.device) * 255
        images = torch.where(rows[:, None, :, None] & columns[:, None, None, :], colour, images)
    return images


def change_colours(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast (around the picture's mean gray) and saturation (around each pixel's gray).

    Args:
        images: [batch, channels, size, size], values 0 to 255.
        factors: [batch, 3]: brightness, contrast, saturation, with torchvision's meaning.
    """
    brightness, contrast, saturation = factors.T[:, :, None, None, None]
    images = (images * brightness).clamp_(0, 255)
    images = torch.lerp(_gray(images).mean(dim=(1, 2, 3), keepdim=True), images, contrast).clamp_(0, 255)
    return torch.lerp(_gray(images), images, saturation).clamp_(0, 255)


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Normalise [batch, channels, size, size] from 0 to 255 to zero mean and unit deviation, channels last.

    Overwrites ``images``.
    """
    shift, scale = per_channel(mean, images.device) * 255, per_channel(std, images.device) * 255
    return images.sub_(shift).div_(scale).contiguous(memory_format=torch.channels_last)


def normalise_on_host(pictures: Pictures, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """``normalise`` for [batch, size, size, channels], with a table of the 256 values; the result is the same.

    A picture takes 0.026 instead of 0.091 ms at 64 px, and 0.32 instead of 1.05 ms at 224 px (a Xeon, 2026-11-22,
    n = 7 batches).
    """
    batch, size, _, channels = pictures.shape
    flat = pictures.reshape(batch * size, size, channels)  # OpenCV takes a single picture
    looked_up = cv2.LUT(flat, _levels(mean, std)).reshape(pictures.shape)
    return torch.from_numpy(looked_up).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


@cache
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    levels = torch.arange(256, dtype=torch.float32).view(256, 1, 1, 1).repeat(1, len(mean), 1, 1)
    normalised: NDArray[np.float32] = normalise(levels, mean, std).reshape(256, 1, len(mean)).numpy()
    return normalised


@cache
def per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """[1, channels, 1, 1] on the device. Cached, because a GPU waits for each copy of values from the host."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training later
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


def mix(images: torch.Tensor, others: torch.Tensor, how: Mix) -> torch.Tensor:
    """Blend a batch with another batch, or paste a rectangle of the other batch into it."""
    if how.box is None:
        return torch.lerp(others, images, how.share)
    top, left, height, width = how.box
    inside = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
    images[inside] = others[inside]
    return images


def _gray(images: torch.Tensor) -> torch.Tensor:
    if images.shape[1] == 1:
        return images
    weights = per_channel((0.2989, 0.587, 0.114), images.device)  # ITU-R BT.601
    return (images * weights).sum(dim=1, keepdim=True)
