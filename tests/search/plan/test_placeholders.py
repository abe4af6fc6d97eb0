"""Many pictures that look the same, such as "image not available", are counted by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from search.plan import placeholders as module
from search.plan.data_warnings import warnings_about
from search.plan.placeholders import placeholders
from trainer.config import DataConfig
from trainer.data import Dataset, prepare_data


def missing(*, faint: bool = False) -> Image.Image:
    image = Image.new("RGB", (400, 300), "#eee")
    draw = ImageDraw.Draw(image)
    if faint:
        draw.text((120, 130), "No image", fill="#aaa", font_size=40)
        return image
    draw.rectangle((120, 60, 280, 180), outline="#888", width=6)
    draw.ellipse((170, 90, 230, 150), fill="#aaa")
    draw.text((140, 220), "Image not available", fill="black")
    return image


def noise(file: Path, number: int, **how: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC).save(file, **how)


def read(folder: Path, **settings: object) -> tuple[Dataset, DataConfig]:
    config = DataConfig.model_validate({"path": str(folder), "image_size": 64, "val_fraction": 0.3, **settings})
    return prepare_data(config, folder.with_name("cache")), config


@pytest.mark.parametrize(("channels", "faint"), [(1, False), (3, False), (3, True)])
def test_placeholders_are_counted_by_class_however_they_are_encoded(tmp_path: Path, channels: int, faint: bool) -> None:
    folder = tmp_path / "data"
    for number in range(40):
        noise(folder / ("cat", "dog")[number % 2] / f"{number}.jpg", number)
    same = [
        (size, quality) for size in ((400, 300), (200, 150), (133, 100), (64, 48)) for quality in (95, 75, 50, 40, 30)
    ]
    for number, (size, quality) in enumerate(same):
        file = folder / ("cat" if number % 4 else "dog") / f"z{number:02}.jpg"
        missing(faint=faint).resize(size, Image.Resampling.LANCZOS).save(file, quality=quality)
    data, config = read(folder, channels=channels)
    (told,) = placeholders(data)
    assert told == (
        "20 pictures of 60 look the same as at least 4 others, for example cat/z01.jpg and cat/z02.jpg, in these "
        "classes: cat (15), dog (5); if they say that a picture is missing, remove them"
    )
    assert told in list(warnings_about(data, config))


def test_four_copies_pictures_of_one_colour_and_other_pictures_are_not_counted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number in range(40):
        noise(folder / ("cat", "dog")[number % 2] / f"{number}.jpg", number)
    for number in range(8):
        Image.new("RGB", (64, 64), "white").save(folder / "cat" / f"white{number}.png")
        noise(folder / "dog" / f"copy{number}.jpg", 100 + number // 4, quality=60 + number)
    data, config = read(folder)
    assert list(placeholders(data)) == []
    assert any("single colour" in one for one in warnings_about(data, config))


@pytest.mark.parametrize("kind", ["nearly black", "mostly empty", "red"])
def test_different_pictures_with_hardly_any_contrast_are_not_counted(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    for number in range(30):
        draw = np.random.default_rng(number)
        pixels = np.zeros((64, 64, 3), np.uint8)
        if kind == "nearly black":
            pixels = draw.integers(0, 12, pixels.shape, np.uint8)
        elif kind == "mostly empty":  # a dark sky with stars
            pixels[tuple(draw.integers(0, 64, (2, 20)))] = 180
        else:
            pixels[..., 0] = 200 + number % 6
        file = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    assert list(placeholders(read(folder)[0])) == []


def test_digits_are_not_placeholders(tmp_path: Path) -> None:
    data = prepare_data(DataConfig.model_validate({"source": "digits", "image_size": 8, "channels": 1}), tmp_path)
    assert list(placeholders(data)) == []


def test_of_many_pictures_some_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKED_AT", 20)
    folder = tmp_path / "data"
    for number in range(40):
        noise(folder / ("cat", "dog")[number % 2] / f"{number:02}.png", number if number < 20 else 50)
    (told,) = placeholders(read(folder)[0])
    assert told.startswith(
        "10 pictures of 20 that were looked at look the same as at least 4 others, for example cat/2"
    )
