"""Augmentation: one draw of the parameters, two executors that mean the same.

On the CPU a picture is warped by OpenCV, one at a time (0.09 ms at 64 px, a tenth of what a transform pipeline
takes); on a GPU the whole batch is warped at once by grid_sample. Flip, rotation and padded crop are composed
into one affine map, so a picture is resampled once. Which albumentations transforms a study names come before, on the
host. Everything drawn depends on (seed, epoch, batch) alone: never on who draws, or on what was drawn before.
"""

from __future__ import annotations

import difflib
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.config import TrainConfig
from trainer.device import Device
from trainer.errors import ConfigError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Channel statistics of ImageNet, timm's IMAGENET_DEFAULT_MEAN and _STD; pictures are normalised with them."""

ERASE_AREA = (0.02, 0.33)
ERASE_ASPECT = (0.3, 3.3)
"""Share of the picture and aspect ratio of an erased rectangle (Zhong et al., 2017, section 4)."""


@dataclass(frozen=True)
class Draw:
    """What was drawn for one batch."""

    matrices: NDArray[np.float32] | None
    """[batch, 2, 3]: for each pixel (x, y, 1) of the result, where in the picture it comes from. None: untouched."""
    boxes: NDArray[np.int64] | None
    """[batch, 4]: top, left, height and width of what is erased, 0 for nothing. None: nothing at all."""


def draw(config: TrainConfig, batch: int, size: int, rng: np.random.Generator) -> Draw:
    """Draw flips, rotations, crops and rectangles for ``batch`` pictures of ``size`` pixels."""
    matrices = boxes = None
    if config.hflip or config.vflip or config.rotate or config.crop_padding:
        flip_x = np.where(rng.random(batch) < config.hflip, -1.0, 1.0)
        flip_y = np.where(rng.random(batch) < config.vflip, -1.0, 1.0)
        angle = np.deg2rad(rng.uniform(-config.rotate, config.rotate, batch))
        shift = rng.integers(-config.crop_padding, config.crop_padding, (2, batch), endpoint=True)
        cos, sin, centre = np.cos(angle), np.sin(angle), (size - 1) / 2
        linear = np.stack([np.stack([cos * flip_x, -sin * flip_y]), np.stack([sin * flip_x, cos * flip_y])])
        offset = centre + shift - centre * linear.sum(axis=1)
        matrices = np.concatenate([linear, offset[:, None]], axis=1).transpose(2, 0, 1).astype(np.float32)
    if config.erase:
        area = rng.uniform(*ERASE_AREA, batch) * size * size
        aspect = np.exp(rng.uniform(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1]), batch))
        erased = rng.random(batch) < config.erase
        height = np.where(erased, np.clip(np.rint(np.sqrt(area * aspect)), 1, size), 0).astype(np.int64)
        width = np.where(erased, np.clip(np.rint(np.sqrt(area / aspect)), 1, size), 0).astype(np.int64)
        boxes = np.stack([rng.integers(0, size - height + 1), rng.integers(0, size - width + 1), height, width], axis=1)
    return Draw(matrices, boxes)


class Augmentation:
    """Turns cached pictures into normalised training batches on a device.

    Raises:
        ConfigError: an albumentations transform that does not exist or refuses its arguments.
    """

    def __init__(self, config: TrainConfig, device: Device) -> None:
        self.config = config
        self.device = device
        self.compose = build_albumentations(config) if config.albumentations else None

    def __call__(self, pictures: NDArray[np.uint8], *seed: int) -> torch.Tensor:
        """Augment a batch.

        Args:
            pictures: [batch, size, size, 3] uint8.
            seed: what the draw depends on: (seed, epoch, batch number).

        Returns:
            [batch, 3, size, size] float32 on the device, channels last, normalised.

        Raises:
            ConfigError: an albumentations transform changes the size or the type of a picture.
        """
        if self.compose is not None:
            self.compose.set_random_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
            changed = [self.compose(image=picture)["image"] for picture in pictures]
            for picture in changed:
                if picture.shape != pictures.shape[1:] or picture.dtype != np.uint8:
                    raise ConfigError(
                        f"albumentations: a picture of {pictures.shape[1:]} uint8 became {tuple(picture.shape)}"
                        f" {picture.dtype}; use transforms that keep size and type, or crop_padding to crop"
                    )
            pictures = np.stack(changed)
        drawn = draw(self.config, len(pictures), pictures.shape[1], np.random.default_rng(seed))
        if self.device.kind == "cuda":
            return apply_on_device(pictures, drawn, self.device)
        return normalise(torch.from_numpy(apply_on_host(pictures, drawn)))


def apply_on_host(pictures: NDArray[np.uint8], drawn: Draw) -> NDArray[np.uint8]:
    """Warp and erase one picture after the other; uint8 in, uint8 out."""
    result = np.empty_like(pictures) if drawn.matrices is not None else pictures.copy()
    size = pictures.shape[1]
    if drawn.matrices is not None:
        for picture, matrix, out in zip(pictures, drawn.matrices, result, strict=True):
            cv2.warpAffine(picture, matrix, (size, size), dst=out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    if drawn.boxes is not None:
        colour = np.rint(255 * np.array(MEAN)).astype(np.uint8)
        for out, (top, left, height, width) in zip(result, drawn.boxes, strict=True):
            out[top : top + height, left : left + width] = colour
    return result


def apply_on_device(pictures: NDArray[np.uint8], drawn: Draw, device: Device) -> torch.Tensor:
    """Warp, erase and normalise the whole batch at once; [batch, 3, size, size] float32."""
    batch, size = pictures.shape[:2]
    images = device.copy(pictures).permute(0, 3, 1, 2).float()
    if drawn.matrices is not None:
        pixels = torch.arange(size, device=images.device, dtype=torch.float32)
        y, x = torch.meshgrid(pixels, pixels, indexing="ij")
        where = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(1, -1, 3)
        source = where @ device.copy(drawn.matrices).transpose(1, 2)
        # grid_sample counts from -1 at the outer edge of the first pixel to 1 at that of the last.
        grid = ((2 * source + 1) / size - 1).view(batch, size, size, 2)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if drawn.boxes is not None:
        pixels = torch.arange(size, device=images.device)
        top, left, height, width = device.copy(drawn.boxes).T[:, :, None]
        rows = (pixels >= top) & (pixels < top + height)
        columns = (pixels >= left) & (pixels < left + width)
        colour = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1) * 255
        images = torch.where(rows[:, None, :, None] & columns[:, None, None, :], colour, images)
    return _scale(images)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """[batch, size, size, 3] uint8 -> [batch, 3, size, size] float32, channels last, ImageNet statistics."""
    return _scale(pictures.permute(0, 3, 1, 2).float())


def _scale(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1) * 255
    return images.sub(mean).div_(std).contiguous(memory_format=torch.channels_last)


def build_albumentations(config: TrainConfig) -> Any:
    """The albumentations pipeline a study names.

    Raises:
        ConfigError: no such transform (the nearest is named), or it refuses its arguments.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer release
    import albumentations  # 3 s, and few studies need it

    transforms = []
    for entry in config.albumentations:
        name, arguments = entry["name"], {key: value for key, value in entry.items() if key != "name"}
        kind = getattr(albumentations, name, None)
        if not (isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform)):
            close = difflib.get_close_matches(name, dir(albumentations), n=1)
            raise ConfigError(
                f"albumentations: no transform {name!r}" + (f"; did you mean {close[0]}?" if close else "")
            )
        try:
            with warnings.catch_warnings():
                # Of an argument that it does not know it only warns, and goes on without.
                warnings.simplefilter("error", UserWarning)
                transforms.append(kind(**arguments))
        except (TypeError, ValueError, UserWarning) as error:
            raise ConfigError(f"albumentations: {name} refuses {arguments}: {error}") from error
    return albumentations.Compose(transforms)
