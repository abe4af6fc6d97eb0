"""Pictures without their background: what GrabCut keeps, and that every reader gets the same pixels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
from folders import make_folder, noise, prepare, saved
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from trainer.background import without_background
from trainer.config import DataConfig
from trainer.pictures import read_picture

GRABCUT = DataConfig(image_size=32, background="grabcut")


def disc(width: int = 90, height: int = 60, seed: int = 0) -> tuple[Image.Image, NDArray[np.bool_]]:
    """A red disc on green, both with noise, and where the disc is."""
    y, x = np.mgrid[:height, :width]
    inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2
    pixels = np.where(inside[..., None], [200, 40, 40], [40, 150, 60])
    pixels = pixels + np.random.default_rng(seed).integers(-30, 30, pixels.shape)
    return Image.fromarray(pixels.astype(np.uint8)), inside


@pytest.mark.parametrize("size", [(90, 60), (40, 45), (400, 300)])
def test_the_background_is_black_and_the_object_is_what_it_was(size: tuple[int, int]) -> None:
    picture, inside = disc(*size)
    left = np.asarray(without_background(picture))
    kept = left.any(axis=2)
    assert (kept == inside).mean() > 0.97
    assert np.array_equal(left[kept], np.asarray(picture)[kept])


def test_the_same_picture_gives_the_same_pixels_whatever_was_drawn_before_and_in_any_thread() -> None:
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    expected = np.asarray(without_background(photo))
    assert 0.1 < expected.any(axis=2).mean() < 0.3

    def again(seed: int) -> NDArray[np.uint8]:
        cv2.setRNGSeed(seed)
        return np.asarray(without_background(photo))

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(again, range(8)):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [(1, 2000), (9000, 100), (3, 3), (7, 30)])
def test_a_picture_too_small_to_have_a_background_stays_as_it_is(size: tuple[int, int]) -> None:
    assert np.array_equal(np.asarray(without_background(noise(*size))), np.asarray(noise(*size)))


def test_a_picture_of_one_colour_does_not_become_black() -> None:
    assert (np.asarray(without_background(Image.new("RGB", (64, 64), "red"))) == [255, 0, 0]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_read_as_timm_reads_it_after_the_step(channels: int) -> None:
    config = DataConfig.model_validate(GRABCUT.model_dump() | {"crop_pct": 0.875, "channels": channels})
    picture, _ = disc()
    transform = timm.data.create_transform(
        (channels, 32, 32), crop_pct=0.875, interpolation="bicubic", mean=(0,) * channels, std=(1,) * channels
    )
    step = without_background(picture).convert("RGB" if channels == 3 else "L")
    theirs = (transform(step) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(read_picture(saved(picture, "PNG"), config), theirs)
    assert not np.array_equal(read_picture(picture, config.model_copy(update={"background": "keep"})), theirs)


def test_the_cache_and_the_fingerprint_know_that_the_background_is_gone(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    for number, file in enumerate(sorted(root.glob("*/*.png"))):
        disc(seed=number)[0].save(file)
    plain, removed = (prepare(root, tmp_path, **settings) for settings in ({}, {"background": "grabcut"}))
    assert plain.cache_path != removed.cache_path
    assert plain.fingerprint != removed.fingerprint
    assert "background" not in plain.made_for
    config = DataConfig(path=str(root), image_size=16, background="grabcut")
    for name, pixels in zip(removed.names, removed.images, strict=True):
        assert np.array_equal(pixels, read_picture((root / name).read_bytes(), config))
        assert (pixels[0] == 0).all()
