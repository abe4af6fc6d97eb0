"""Pictures of more than 8 bits that are read on several scales, or nearly black, cause a warning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from search.plan.brightness import brightness
from search.plan.data_warnings import warnings_about
from trainer.cache import open_whole
from trainer.config import DataConfig
from trainer.data import Dataset, open_data, prepare_data


def deep(file: Path, highest: float, kind: Any = np.uint16, **how: Any) -> None:
    """A gradient from 0 at the top to ``highest`` at the bottom."""
    rows = np.linspace(0, highest, 16, dtype=kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(rows[:, None], 16, axis=1)).save(file, **how)


def folder_of(root: Path, highest: dict[str, float]) -> Path:
    for name, value in highest.items():
        deep(root / name, value)
    for name, colour in (("cells/plain.png", "red"), ("empty/plain.png", "blue")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), colour).save(root / name)
    return root


def read(folder: Path, tmp_path: Path) -> tuple[Dataset, DataConfig]:
    config = DataConfig.model_validate({"path": str(folder), "image_size": 16, "channels": 1, "val_fraction": 0.3})
    return prepare_data(config, tmp_path / "cache"), config


def converted(warning: str) -> Path:
    """The folder that the line of Python in a warning wrote."""
    told, _, line = warning.partition("-8bit: ")
    subprocess.run([sys.executable, "-c", line], check=True)
    return Path(told[told.rindex("of the folder, ") + len("of the folder, ") :] + "-8bit")


def pixels_of(data: Dataset, name: str) -> NDArray[np.uint8]:
    return data.images[data.names.index(name)][..., 0]


COUNTS = {"cells/0.tif": 3000, "cells/1.png": 416, "cells/2.tif": 6000, "empty/0.tif": 197, "empty/1.png": 255}


def test_pictures_on_two_scales_are_counted_first_with_a_line_that_gives_them_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "it's wells", COUNTS)
    exif = Image.Exif()
    exif[0x0112] = 3
    deep(folder / "empty/1.png", 255, exif=exif)
    (folder / "empty" / "._0.tif").write_text("no picture")
    before = {file: file.read_bytes() for file in folder.rglob("*.*")}
    data, config = read(folder, tmp_path)
    assert pixels_of(data, "cells/1.png").max() == 2 < pixels_of(data, "empty/0.tif").max() == 197
    warning = next(iter(warnings_about(data, config)))
    assert warning.startswith(
        "pictures of more than 8 bits are read on 2 scales: 2 pictures with 0 to 255 (the first: empty/0.tif) and "
        "3 pictures with 0 to 65,535 (the first: cells/0.tif); so equal values differ in brightness by a factor of "
        "257, and a model learns this difference; if the pictures are from one instrument, convert all of them"
    )
    assert list(brightness(open_data(config, data.cache_path), config)) == [warning], "workers' caches have it too"
    new = converted(warning)
    assert new == tmp_path / "it's wells-8bit"
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == before, "the originals are as they were"
    again, config = read(new, tmp_path)
    assert list(brightness(again, config)) == []
    for name, highest in COUNTS.items():
        rows = np.rint(np.linspace(0, highest, 16, dtype=np.uint16) * (255 / 6000))
        expected = rows[::-1] if name == "empty/1.png" else rows
        np.testing.assert_array_equal(pixels_of(again, name), np.repeat(expected[:, None], 16, axis=1), name)
    np.testing.assert_array_equal(pixels_of(again, "cells/plain.png"), pixels_of(data, "cells/plain.png"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"a.tif": (0.9, np.float32), "b.tif": (1.2, np.float32)}, "1 picture with 0 to 1 (the first: cells/a.tif) and "
         "1 picture with 0 to 255 (the first: cells/b.tif); so equal values differ in brightness, and"),
        ({"a.tif": (70_000, np.int32), "b.tif": (60_000, np.int32)}, "1 picture with 0 to 65,535 (the first: "
         "cells/b.tif) and 1 picture with from its own lowest to its highest value (the first: cells/a.tif); so"),
    ],
)  # fmt: skip
def test_every_pair_of_scales_is_told(tmp_path: Path, values: dict[str, tuple[float, Any]], told: str) -> None:
    folder = folder_of(tmp_path / "wells", {"empty/0.tif": 0})
    for name, (highest, kind) in values.items():
        deep(folder / "cells" / name, highest, kind)
    (warning,) = brightness(*read(folder, tmp_path))
    assert f"on 2 scales: {told}" in warning


@pytest.mark.parametrize("highest", [[65535, 9000, 300], [255, 197, 40], [60_000, 0, 0], [0, 0]])
def test_pictures_on_one_scale_and_black_ones_cause_no_warning(tmp_path: Path, highest: list[float]) -> None:
    data, config = read(folder_of(tmp_path / "wells", _numbered(highest)), tmp_path)
    assert list(brightness(data, config)) == []


def test_twelve_bits_in_sixteen_are_said_to_be_nearly_black(tmp_path: Path) -> None:
    data, config = read(folder_of(tmp_path / "wells", _numbered([3076, 4095, 500])), tmp_path)
    (warning,) = brightness(data, config)
    assert warning.startswith(
        "the 3 pictures of more than 8 bits are read nearly black: their brightest pixel is 16 of 255, so they have at "
        "most 17 gray levels; convert all of them to 8 bits with one common scale; this line of Python"
    )
    again, new = read(converted(warning), tmp_path)
    assert list(brightness(again, new)) == []
    assert pixels_of(again, "cells/1.tif").max() == 255
    assert pixels_of(again, "cells/0.tif").max() == round(3076 * 255 / 4095)
    elsewhere = config.model_copy(update={"path": str(tmp_path / "elsewhere")})  # such as pictures in shards
    (short,) = brightness(data, elsewhere)
    assert short.endswith("at most 17 gray levels; convert all of them to 8 bits with one common scale")


@pytest.mark.parametrize(("highest", "dark"), [(31 * 257, True), (32 * 257, False), (31, True), (32, False)])
def test_an_eighth_of_the_range_is_bright_enough(tmp_path: Path, highest: int, dark: bool) -> None:
    data, config = read(folder_of(tmp_path / "wells", _numbered([highest])), tmp_path)
    assert len(list(brightness(data, config))) == dark


def test_the_index_of_a_cache_without_bytes_in_sixteen_bits_is_as_before(tmp_path: Path) -> None:
    """Caches of before have no ``scales``, and their checksum does not count it."""
    for name, highest, has in (("one", [9000], False), ("two", [9000, 200], True)):
        data, _ = read(folder_of(tmp_path / name, _numbered(highest)), tmp_path)
        assert ("scales" in json.loads((data.cache_path / "index.json").read_text())) == has
        assert open_whole(data.cache_path).scales == ([["cells/1.tif", _BYTES]] if has else [])


_BYTES = "of more than 8 bits with values from 0 to 255"


def _numbered(highest: list[float]) -> dict[str, float]:
    return {f"cells/{i}.tif": value for i, value in enumerate(highest)} | {"empty/0.tif": 0}
