"""Augmentation: each draw against numpy, the two executors against each other, and what the draws depend on."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.augment import (
    ERASE_AREA,
    MEAN,
    STD,
    Augmentation,
    Draw,
    apply_on_device,
    apply_on_host,
    draw,
    normalise,
)
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import ConfigError

SIZE = 16


class Highest(np.random.Generator):
    """Draws the largest rotation, and always the same shift: what numpy can repeat exactly."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__(np.random.PCG64(0))
        self.shift = shift

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return np.full(size, high)

    def integers(self, low: Any, high: Any = None, size: Any = None, *args: Any, **kwargs: Any) -> Any:
        return np.full(size, self.shift)


def noise(batch: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)


def config_of(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate(settings)


def grey_levels(images: torch.Tensor) -> NDArray[np.float32]:
    """Undo the normalisation: [batch, 3, S, S] -> [batch, S, S, 3] on 0..255."""
    levels = images.cpu().permute(0, 2, 3, 1).numpy() * (255 * np.array(STD)) + 255 * np.array(MEAN)
    return np.asarray(levels, dtype=np.float32)


def drawn(shift: int = 0, **settings: object) -> Draw:
    return draw(config_of(**settings), 5, SIZE, Highest(shift))


# What a draw does to a picture, on both executors


def moved(pictures: NDArray[np.uint8], shift: int) -> NDArray[np.uint8]:
    """What a crop at (shift, shift) of the picture in its black border shows."""
    bordered = np.pad(pictures, ((0, 0), (4, 4), (4, 4), (0, 0)))
    return bordered[:, 4 + shift : 4 + shift + SIZE, 4 + shift : 4 + shift + SIZE]


EXACT: list[tuple[str, Draw, Any]] = [
    ("left-right", drawn(hflip=1), lambda pictures: pictures[:, :, ::-1]),
    ("top-bottom", drawn(vflip=1), lambda pictures: pictures[:, ::-1]),
    ("both flips", drawn(hflip=1, vflip=1), lambda pictures: pictures[:, ::-1, ::-1]),
    ("rotation by 90", drawn(rotate=90), lambda pictures: np.rot90(pictures, axes=(1, 2))),
    ("rotation by 180", drawn(rotate=180), lambda pictures: pictures[:, ::-1, ::-1]),
    ("crop down right", drawn(3, crop_padding=4), lambda pictures: moved(pictures, 3)),
    ("crop up left", drawn(-4, crop_padding=4), lambda pictures: moved(pictures, -4)),
    (
        "flip, rotation and crop at once",
        drawn(-2, hflip=1, rotate=90, crop_padding=2),
        lambda pictures: np.rot90(moved(pictures, -2), axes=(1, 2))[:, :, ::-1],
    ),
]


@pytest.mark.parametrize(("drawn", "expected"), [case[1:] for case in EXACT], ids=[case[0] for case in EXACT])
def test_on_whole_pixels_both_executors_do_exactly_what_numpy_does(drawn: Draw, expected: Any, cpu: Device) -> None:
    pictures = noise()
    assert np.array_equal(apply_on_host(pictures, drawn), expected(pictures))
    # grid_sample weighs neighbours by coordinates that are off by some 1e-6 pixels.
    on_device = grey_levels(apply_on_device(pictures, drawn, cpu))
    assert np.abs(on_device - expected(pictures)).max() < 0.01


def test_host_and_device_give_nearly_the_same_pictures(digits: Dataset, cpu: Device) -> None:
    """OpenCV rounds coordinates to 1/32 pixel: up to 8 grey levels at a black-white edge, one on average."""
    config = config_of(hflip=0.5, vflip=0.5, rotate=30, crop_padding=3, erase=0.5)
    pictures = digits.images[:256]
    both = draw(config, 256, SIZE, np.random.default_rng(3))
    host = apply_on_host(pictures, both).astype(np.float32)
    assert np.abs(host - pictures).mean() > 20
    difference = np.abs(host - grey_levels(apply_on_device(np.array(pictures), both, cpu)))
    assert difference.max() < 8.5
    assert difference.mean() < 1


@pytest.mark.cuda
def test_host_and_gpu_give_nearly_the_same_pictures(digits: Dataset, cuda: Device) -> None:
    config = config_of(hflip=0.5, vflip=0.5, rotate=30, crop_padding=3, erase=0.5)
    pictures = np.array(digits.images[:256])
    both = draw(config, 256, SIZE, np.random.default_rng(3))
    difference = np.abs(apply_on_host(pictures, both) - grey_levels(apply_on_device(pictures, both, cuda)))
    assert difference.max() < 8.5
    assert difference.mean() < 1


def test_nothing_configured_leaves_pictures_as_they_are(cpu: Device) -> None:
    pictures = noise()
    nothing = draw(config_of(), 5, SIZE, np.random.default_rng(0))
    assert nothing == Draw(None, None)
    batch = Augmentation(config_of(), cpu)(pictures, 0, 1, 1)
    assert torch.equal(batch, normalise(torch.from_numpy(pictures)))
    assert torch.equal(batch, apply_on_device(pictures, nothing, cpu))


def test_a_batch_is_normalised_channels_last_and_leaves_the_cache_alone(cpu: Device) -> None:
    pictures = noise()
    before = pictures.copy()
    Augmentation(config_of(erase=1, hflip=1), cpu)(pictures, 0, 1, 1)
    batch = Augmentation(config_of(erase=1), cpu)(pictures, 0, 1, 1)
    assert batch.shape == (5, 3, SIZE, SIZE)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(pictures, before)
    grey = normalise(torch.full((1, 2, 2, 3), 128, dtype=torch.uint8))[0, :, 0, 0]
    assert grey.tolist() == pytest.approx([(128 / 255 - m) / s for m, s in zip(MEAN, STD, strict=True)], abs=1e-5)


# What is drawn


def test_flips_come_as_often_as_asked() -> None:
    matrices = draw(config_of(hflip=0.2, vflip=0.7), 20_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    assert np.mean(matrices[:, 0, 0] < 0) == pytest.approx(0.2, abs=0.02)
    assert np.mean(matrices[:, 1, 1] < 0) == pytest.approx(0.7, abs=0.02)


def test_rotations_fill_their_range_evenly_either_way() -> None:
    matrices = draw(config_of(rotate=30), 20_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(angles).max() == pytest.approx(30, abs=0.1)
    assert np.histogram(angles, 4, (-30, 30))[0] / 20_000 == pytest.approx([0.25] * 4, abs=0.02)


def test_crops_start_at_every_pixel_of_the_border_and_not_beyond() -> None:
    matrices = draw(config_of(crop_padding=2), 5_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    for axis in (0, 1):
        starts, counts = np.unique(matrices[:, axis, 2], return_counts=True)
        assert starts.tolist() == [-2, -1, 0, 1, 2]
        assert counts.min() > 800
    assert np.abs(np.corrcoef(matrices[:, 0, 2], matrices[:, 1, 2])[0, 1]) < 0.05


def test_erased_rectangles_have_the_stated_share_and_lie_within_the_picture() -> None:
    size, batch = 64, 20_000
    boxes = draw(config_of(erase=0.6), batch, size, np.random.default_rng(0)).boxes
    assert boxes is not None
    top, left, height, width = boxes.T
    erased = height * width > 0
    assert erased.mean() == pytest.approx(0.6, abs=0.02)
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == (left + width).max() == size
    # Sides are rounded to whole pixels.
    top, left, height, width = boxes[erased].T
    assert ((height + 0.5) * (width + 0.5)).min() >= ERASE_AREA[0] * size**2
    assert ((height - 0.5) * (width - 0.5)).max() <= ERASE_AREA[1] * size**2
    assert np.mean(height * width) / size**2 == pytest.approx(np.mean(ERASE_AREA), rel=0.02)
    assert np.median(height / width) == pytest.approx(1.0, abs=0.05)


def test_an_erased_rectangle_has_the_mean_colour_and_the_rest_is_untouched(cpu: Device) -> None:
    pictures = noise(1)
    box = Draw(None, np.array([[2, 5, 4, 7]]))
    host = normalise(torch.from_numpy(apply_on_host(pictures, box)))
    for batch in (host, apply_on_device(pictures, box, cpu)):
        assert batch[0, :, 2:6, 5:12].abs().max() < 0.01  # the mean is zero once normalised
        outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
        outside[2:6, 5:12] = False
        assert torch.equal(batch[0, :, outside], normalise(torch.from_numpy(pictures))[0, :, outside])


EVERYTHING: dict[str, object] = {
    "hflip": 0.5,
    "rotate": 20,
    "crop_padding": 2,
    "erase": 0.5,
    "albumentations": [{"name": "ColorJitter", "p": 0.7}, {"name": "GaussNoise", "p": 0.7}],
}


def test_the_same_seed_epoch_and_batch_give_the_same_pictures_whatever_was_drawn_before(cpu: Device) -> None:
    pictures = noise(32)
    expected = Augmentation(config_of(**EVERYTHING), cpu)(pictures, 5, 3, 2)
    other = Augmentation(config_of(**EVERYTHING), cpu)
    other(pictures[:7], 1, 1, 1)
    other(pictures, 5, 3, 1)
    torch.manual_seed(99)
    assert torch.equal(other(pictures, 5, 3, 2), expected)
    for seed in ((6, 3, 2), (5, 4, 2), (5, 3, 4)):
        assert not torch.equal(other(pictures, *seed), expected)


# Albumentations by name


def test_an_albumentations_transform_is_applied_first(cpu: Device) -> None:
    pictures = noise()
    batch = Augmentation(config_of(albumentations=[{"name": "InvertImg", "p": 1}], hflip=1), cpu)(pictures, 0, 1, 1)
    assert torch.equal(batch, normalise(torch.from_numpy(255 - pictures[:, :, ::-1])))


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        ({"name": "ColorJiter"}, "no transform 'ColorJiter'; did you mean ColorJitter?"),
        ({"name": "Compose"}, "no transform 'Compose'"),
        ({"name": "zzzzzz"}, "no transform 'zzzzzz'"),
        ({"name": "ColorJitter", "brightness": "much"}, "ColorJitter refuses {'brightness': 'much'}: "),
        ({"name": "ColorJitter", "brightnes": 0.2}, "ColorJitter refuses {'brightnes': 0.2}: "),
    ],
)
def test_a_transform_that_cannot_be_built_is_a_sentence(transform: dict[str, Any], sentence: str, cpu: Device) -> None:
    # As outside of tests, where a warning is no error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError) as error:
            Augmentation(config_of(albumentations=[transform]), cpu)
    assert str(error.value).startswith(f"albumentations: {sentence}")


@pytest.mark.parametrize(
    ("transform", "became"),
    [
        ({"name": "Resize", "height": 8, "width": 8}, r"\(8, 8, 3\) uint8"),
        ({"name": "Normalize"}, r"\(16, 16, 3\) float32"),
        ({"name": "ToTensorV2"}, r"\(3, 16, 16\) torch.uint8"),
    ],
)
def test_a_transform_that_changes_size_or_type_is_a_sentence(
    transform: dict[str, Any], became: str, cpu: Device
) -> None:
    with pytest.raises(ConfigError, match=rf"a picture of \(16, 16, 3\) uint8 became {became}; use transforms"):
        Augmentation(config_of(albumentations=[transform]), cpu)(noise(), 0, 1, 1)
