"""Cached pictures that are larger than the model's input: random crops in training, the centre everywhere else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from folders import make_folder, noise, prepare
from numpy.typing import NDArray
from pydantic import ValidationError
from torchvision.transforms import RandomResizedCrop

import studies
from trainer.__main__ import main
from trainer.augment import Augmentation, Draw, draw, normalise, warp_on_device, warp_on_host
from trainer.config import DataConfig, TrainConfig
from trainer.data import IMAGENET_MEAN as MEAN
from trainer.data import IMAGENET_STD as STD
from trainer.data import Dataset, open_data, prepare_data
from trainer.device import Device
from trainer.errors import ConfigError
from trainer.evaluate import predict_logits
from trainer.fit import fit
from trainer.pictures import read, read_picture

SIZE, CACHED = 16, 21


def config_of(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate(settings)


def pictures(batch: int = 6, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (batch, CACHED, CACHED, channels), dtype=np.uint8)


def drawn(batch: int, seed: int = 0, **settings: object) -> Draw:
    return draw(config_of(**settings), batch, SIZE, np.random.default_rng(seed), CACHED)


def normalised(images: NDArray[np.uint8]) -> torch.Tensor:
    return normalise(torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float(), MEAN, STD)


# Reading


def timms_pixels(picture: Any, config: DataConfig) -> NDArray[np.uint8]:
    transform = timm.data.create_transform(
        (3, config.image_size, config.image_size),
        crop_pct=config.evaluated_crop_pct,
        crop_mode="squash" if config.resize == "squash" else "center",
        interpolation=config.interpolation,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    pixels: NDArray[np.uint8] = (transform(picture) * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize(("size", "cached"), [(28, 32), (24, 33), (25, 28), (17, 40), (8, 93)])
def test_the_centre_of_a_cached_picture_is_what_timm_evaluates(size: int, cached: int, resize: str) -> None:
    config = DataConfig.model_validate({"image_size": size, "cache_size": cached, "resize": resize})
    assert math.floor(size / config.evaluated_crop_pct) == cached
    for width, height in ((90, 60), (61, 97), (60, 97), (40, 40), (200, 31)):
        picture = noise(width, height)
        assert read(picture, config).pixels.shape == (cached, cached, 3)
        assert np.array_equal(read_picture(picture, config), timms_pixels(picture, config))
        without_margin = DataConfig.model_validate(
            {"image_size": size, "crop_pct": config.evaluated_crop_pct, "resize": resize}
        )
        assert np.array_equal(read_picture(picture, config), read_picture(picture, without_margin))


@pytest.mark.parametrize(("size", "cached"), [(112, 128), (1024, 1152), (112, 1024)])
def test_sizes_from_112_to_1024_pixels_are_cached_and_cropped(
    size: int, cached: int, tmp_path: Path, cpu: Device
) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    data = prepare(root, tmp_path, image_size=size, cache_size=cached, val_fraction=0.5)
    assert data.images.shape == (4, cached, cached, 3)
    assert data.shape.image_size == size
    augment = Augmentation(config_of(random_resized_crop=0.3), cpu, data.mean, data.std, size)
    for images in (data.images[:2], torch.from_numpy(np.array(data.images[:2]))):
        assert augment(images, torch.zeros(2).long(), 0, 1, 1).images.shape == (2, 3, size, size)


def test_the_cache_and_the_fingerprint_know_the_size_that_is_cached(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    plain, cached, other = (
        prepare(root, tmp_path, **settings)
        for settings in ({}, {"cache_size": 20}, {"cache_size": 20, "image_size": 17})
    )
    assert cached.cache_path.name.startswith("pets-20px-")
    assert len({data.cache_path for data in (plain, cached, other)}) == 3
    assert len({data.fingerprint for data in (plain, cached, other)}) == 3
    assert "cache_size" not in plain.made_for
    config = DataConfig(path=str(root), image_size=16, cache_size=20)
    assert open_data(config, cached.cache_path).fingerprint == cached.fingerprint


# Random crops


def test_a_random_crop_is_a_part_of_the_cached_picture_in_both_executors(cpu: Device) -> None:
    images = pictures()
    both = drawn(len(images), random_crop=1)
    assert both.matrices is not None
    left, top = both.matrices[:, :, 2].astype(int).T
    assert len(set(zip(left, top, strict=True))) > 1
    expected = np.stack(
        [one[y : y + SIZE, x : x + SIZE] for one, x, y in zip(images, left, top, strict=True)],
    )
    assert np.array_equal(warp_on_host(images, both, MEAN, SIZE), expected)
    on_device = warp_on_device(torch.from_numpy(images), both, cpu, MEAN, SIZE).permute(0, 2, 3, 1).numpy()
    assert np.abs(on_device - expected).max() < 0.01


def test_random_crops_reach_every_place_or_a_share_of_the_way() -> None:
    def corners(share: float) -> NDArray[np.float32]:
        matrices = drawn(4000, random_crop=share).matrices
        assert matrices is not None
        assert (matrices[:, :, :2] == np.eye(2)).all()
        return matrices[:, :, 2]

    for axis in corners(1).T:  # five pixels of room: six places
        assert np.bincount(axis.astype(int), minlength=6) / 4000 == pytest.approx(np.full(6, 1 / 6), abs=0.03)
    assert set(corners(0.5).ravel()) == {1.0, 2.0, 3.0}
    assert drawn(5).matrices is None


def test_a_random_resized_crop_has_the_areas_and_aspects_of_torchvisions() -> None:
    number = 3000
    matrices = drawn(number, random_resized_crop=0.2).matrices
    assert matrices is not None
    sides = matrices[:, [0, 1], [0, 1]] * SIZE
    first = matrices[:, :, 2] + 0.5 - sides / SIZE / 2
    assert (first > -1e-4).all()
    assert (first + sides < CACHED + 1e-4).all()
    area, aspect = sides.prod(axis=1) / CACHED**2, sides[:, 0] / sides[:, 1]
    assert 0.2 <= area.min() < 0.25
    assert 0.75 - 1e-5 <= aspect.min() < 0.77
    picture = torch.zeros(3, 1000, 1000)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(picture, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(number)])
    top, left, height, width = theirs.T / 1000
    for ours, other in (
        (area, height * width),
        (np.log(aspect), np.log(width / height)),
        (first[:, 0] / CACHED, left),
        (first[:, 1] / CACHED, top),
    ):
        assert ours.mean() == pytest.approx(other.mean(), abs=0.02)
        assert ours.std() == pytest.approx(other.std(), abs=0.02)


def test_a_crop_of_the_whole_picture_is_a_resize() -> None:
    whole = drawn(1, random_resized_crop=1).matrices
    assert whole is not None
    centres = whole[0] @ np.array([[0, SIZE - 1], [0, SIZE - 1], [1, 1]])  # of the first pixel and of the last
    margin = CACHED / SIZE / 2 - 0.5
    assert centres == pytest.approx(np.array([[margin, CACHED - 1 - margin]] * 2), abs=1e-4)


@pytest.mark.parametrize("settings", [{"random_crop": 1}, {"random_resized_crop": 0.3}])
@pytest.mark.parametrize("more", [{}, {"hflip": 0.5, "rotate": 15, "erase": 0.5}, {"brightness": 0.2, "mixup": 0.5}])
def test_a_cropped_batch_is_nearly_the_same_whichever_executor_makes_it(
    settings: dict[str, object], more: dict[str, object], digits: Dataset, cpu: Device
) -> None:
    images = np.kron(digits.images[:32], np.ones((1, 2, 2, 1), np.uint8))[:, 5:26, 5:26]  # smoother than noise
    assert images.shape[1] == CACHED
    augment = Augmentation(config_of(**settings, **more), cpu, MEAN, STD, SIZE)
    labels = torch.zeros(32).long()
    host, device = augment(images, labels, 3, 1, 1), augment(torch.from_numpy(images), labels, 3, 1, 1)
    assert host.images.shape == (32, 3, SIZE, SIZE)
    difference = (host.images - device.images).abs() * torch.tensor(STD).view(1, 3, 1, 1) * 255
    assert difference.max() < 15
    assert difference.mean() < 1
    assert torch.equal(host.images, augment(images, labels, 3, 1, 1).images)
    for other in ((4, 1, 1), (3, 2, 1), (3, 1, 2)):
        assert not torch.equal(host.images, augment(images, labels, *other).images)


@pytest.mark.parametrize("settings", [{}, {"brightness": 0.2}, {"random_crop": 1}, {"rotate": 10}])
def test_plain_pictures_are_the_centre(settings: dict[str, object], cpu: Device) -> None:
    images, labels = pictures(), torch.zeros(6).long()
    augment = Augmentation(config_of(**settings), cpu, MEAN, STD, SIZE)
    centre = normalised(images[:, 2:18, 2:18])
    for given in (images, torch.from_numpy(images)):
        assert torch.equal(augment(given, labels, plain=True).images, centre)
        if not settings:
            assert torch.equal(augment(given, labels, 0, 1, 1).images, centre)


def test_other_warps_start_from_the_centre_and_see_the_margin(cpu: Device) -> None:
    images = pictures()
    augment = Augmentation(config_of(vflip=1), cpu, MEAN, STD, SIZE)
    flipped = augment(images, torch.zeros(6).long(), 0, 1, 1).images
    assert torch.equal(flipped, normalised(images[:, 2:18, 2:18][:, ::-1]))
    down_right = warp_on_host(images, Draw(np.array([[[1, 0, 5], [0, 1, 5]]] * 6, np.float32)), MEAN, SIZE)
    assert np.array_equal(down_right, images[:, 5:, 5:])
    shifted = drawn(500, shift=0.2).matrices
    assert shifted is not None
    assert np.abs(shifted[:, :, 2] - 2).max() == pytest.approx(0.2 * SIZE, abs=0.1)


# Training and evaluation


def test_validation_sees_the_centre_and_a_training_repeats_bit_for_bit(tmp_path: Path, cpu: Device) -> None:
    config = DataConfig(source="digits", image_size=16, cache_size=20, val_fraction=0.2, test_fraction=0.7)
    data = prepare_data(config, tmp_path)
    seen = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.clone())
        return images.mean(dim=(2, 3))

    predict_logits(forward, data, "val", cpu)
    chosen = data.splits["val"]
    assert torch.equal(torch.cat(seen), normalised(data.images[chosen][:, 2:18, 2:18]))
    recipe = config_of(model="resnet10t", width_mult=0.1, epochs=2, batch_size=64, random_crop=1, augment_from_epoch=2)
    first, again = (list(fit(recipe, data, cpu)) for _ in range(2))
    assert [one.train_loss for one in first] == [one.train_loss for one in again]
    plain = list(fit(recipe.model_copy(update={"random_crop": 0.0}), data, cpu))
    assert plain[0].train_loss == first[0].train_loss, "the first epoch is plain"
    assert plain[1].train_loss != first[1].train_loss


# Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cache_size": 224}, "cache_size = 224 must be above image_size = 224; without random crops, leave it out"),
        ({"cache_size": 256, "crop_pct": 0.9}, "cache_size = 256 and crop_pct = 0.9 both set the size before the crop"),
    ],
)
def test_a_cache_size_without_a_margin_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig(**settings)


def test_crops_without_room_are_refused_wherever_they_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = r"has no effect without data.cache_size; for pictures of 32 px, set for example data.cache_size = 37"
    with pytest.raises(ConfigError, match=rf"train: random_crop = 0.5 {said}"):
        studies.load("digits", ["train.random_crop=0.5"])
    with pytest.raises(ConfigError, match=rf"space.random_crop: 1 {said}"):
        studies.load("digits", ["space.random_crop={ low = 0.0, high = 1.0 }"])
    with pytest.raises(ConfigError, match=r"random_crop: 1 and random_resized_crop = 0\.3 both cut the picture"):
        studies.load(
            "digits",
            ["data.cache_size=37", "train.random_resized_crop=0.3", "space.random_crop={ low = 0.0, high = 1.0 }"],
        )
    sampled = studies.load("digits", ["data.cache_size=37", "space.random_resized_crop={ low = 0.2, high = 1.0 }"])
    assert sampled.config_for({"random_resized_crop": 0.4}, 0).random_resized_crop == 0.4
    study = tmp_path / "study.toml"
    study.write_text('[data]\nsource = "digits"\nimage_size = 32\n[train]\nrandom_crop = 0.5\n')
    assert main([str(study)]) != 0
    assert "has no effect without data.cache_size" in capsys.readouterr().err
