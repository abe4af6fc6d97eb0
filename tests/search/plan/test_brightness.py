"""Pictures of more than 8 bits that are read on several scales, or nearly black, cause a warning."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from search.plan.brightness import brightness
from search.plan.data_warnings import warnings_about
from trainer import cache, eight_bits, scan
from trainer.cache import open_whole
from trainer.config import DataConfig
from trainer.data import Dataset, open_data, prepare_data
from trainer.errors import DataError
from trainer.pictures import TURNED


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


def read(folder: Path, tmp_path: Path, **more: Any) -> tuple[Dataset, DataConfig]:
    settings = {"path": str(folder), "image_size": 16, "channels": 1, "val_fraction": 0.3}
    config = DataConfig.model_validate(settings | more)
    return prepare_data(config, tmp_path / "cache"), config


def converted(warning: str) -> Path:
    """The folder that the line of Python in a warning wrote."""
    told, _, line = warning.partition("-8bit: ")
    subprocess.run([sys.executable, "-W", "error", "-c", line], check=True)
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


@pytest.mark.parametrize(("ending", "is_new"), [("png", True), ("jpg", False)])
def test_a_cache_of_before_without_scales_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, *, is_new: bool
) -> None:
    """Caches of before do not tell which pictures have 0 to 255 in 16 bits; JPEGs have none, so their caches stay."""
    for number in range(6):
        file = tmp_path / "wells" / "ab"[number % 2] / f"{number}.{ending}"
        deep(
            file, number + (200 if number < 3 or ending == "jpg" else 9000), np.uint8 if ending == "jpg" else np.uint16
        )
    with monkeypatch.context() as before:
        before.setattr(scan, "_deep_version", lambda _: [])
        old, config = read(tmp_path / "wells", tmp_path)
    index = json.loads((old.cache_path / "index.json").read_text())
    index.pop("scales", None)
    del index["index_crc32"]
    cache._write_index(old.cache_path, index)
    assert list(brightness(open_data(config, old.cache_path), config)) == [], "the cache alone does not tell"
    data, config = read(tmp_path / "wells", tmp_path)
    assert (data.cache_path != old.cache_path) == is_new
    assert [one.partition(":")[0] for one in brightness(data, config)] == [
        "pictures of more than 8 bits are read on 2 scales"
    ] * is_new
    assert data.fingerprint == old.fingerprint, "a study of before goes on"
    assert open_whole(old.cache_path), "and so does a search that reads the old cache"


_BYTES = "of more than 8 bits with values from 0 to 255"


def _numbered(highest: list[float]) -> dict[str, float]:
    return {f"cells/{i}.tif": value for i, value in enumerate(highest)} | {"empty/0.tif": 0}


# Pictures in colour


def in_colour(file: Path, highest: int, channels: int = 3) -> None:
    """A gradient of ``deep`` in each colour, in other directions."""
    rows = np.repeat(np.linspace(0, highest, 16, dtype=np.uint16)[:, None], 16, axis=1)
    colours = np.dstack([rows, rows.T, rows[::-1], np.full((16, 16), 65535, np.uint16)][:channels])
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), colours)


def turned(file: Path, highest: int) -> None:
    """The gradients of ``in_colour`` upside down, by a chunk after the header of a PNG."""
    in_colour(file, highest)
    exif = Image.Exif()
    exif[0x0112] = 3
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    content = file.read_bytes()
    added = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    file.write_bytes(content[:33] + added + content[33:])


@pytest.mark.parametrize(("ending", "channels"), [("png", 3), ("png", 4), ("tif", 3), ("tif", 4), ("ppm", 3)])
def test_colours_of_twelve_bits_in_sixteen_are_said_to_be_nearly_black(
    tmp_path: Path, ending: str, channels: int
) -> None:
    for number, highest in enumerate([4095, 3000, 200, 2000]):
        in_colour(tmp_path / "cells" / "ab"[number % 2] / f"{number}.{ending}", highest, channels)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "cells" / "a" / "plain.png")
    config = DataConfig.model_validate({"path": str(tmp_path / "cells"), "image_size": 16, "val_fraction": 0.4})
    data = prepare_data(config, tmp_path / "cache")
    (warning,) = brightness(data, config)
    assert warning.startswith("the 4 pictures of more than 8 bits are read nearly black: their brightest pixel is 1")
    assert not any("transparency" in one for one in warnings_about(data, config))
    new = config.model_copy(update={"path": str(converted(warning))})
    again = prepare_data(new, tmp_path / "cache")
    assert (again.scales, [*brightness(again, new)]) == ({}, [])
    rows = np.rint(np.linspace(0, 3000, 16, dtype=np.uint16) * (255 / 4095))
    pixels = again.images[again.names.index(f"b/1.{ending}")]
    np.testing.assert_array_equal(pixels[..., 2], np.repeat(rows[:, None], 16, axis=1))
    np.testing.assert_array_equal(pixels[..., 1], np.repeat(rows[None], 16, axis=0))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_bright_pictures_in_colour_have_the_scale_of_gray_ones(tmp_path: Path, ending: str) -> None:
    for number in range(8):
        in_colour(tmp_path / "cells" / "ab"[number % 2] / f"c{number}.{ending}", 65535 - 4000 * number)
        deep(tmp_path / "cells" / "ab"[number % 2] / f"g{number}.{ending}", 65535 - 4000 * number)
    assert list(brightness(*read(tmp_path / "cells", tmp_path))) == []
    deep(tmp_path / "cells" / "a" / f"h.{ending}", 240)
    (warning,) = brightness(*read(tmp_path / "cells", tmp_path))
    assert "1 picture with 0 to 255" in warning
    assert "16 pictures with 0 to 65,535" in warning
    assert list(brightness(*read(converted(warning), tmp_path))) == []


def test_pictures_in_colour_that_are_turned_have_their_scale_too(tmp_path: Path) -> None:
    for number in range(4):
        turned(tmp_path / "cells" / "ab"[number % 2] / f"{number}.png", 4095 - 9 * number)
    data, config = read(tmp_path / "cells", tmp_path)
    assert {*data.misread.values()} == {TURNED}
    warning = next(brightness(data, config))
    again, _ = read(converted(warning), tmp_path)
    assert not again.misread
    np.testing.assert_allclose(again.images * (15 / 255), data.images, atol=1.5)


# Values that are no content


def terrain(kind: Any, low: float, high: float, number: int) -> NDArray[Any]:
    """32 x 32 smooth values, different ones for each number, with all of the range from ``low`` to ``high``."""
    x, y = np.meshgrid(np.linspace(0, 3, 32), np.linspace(0, 2 + number / 3, 32))
    waves = np.sin(x + number) * np.cos(y)
    scaled: NDArray[Any] = (low + (waves - waves.min()) * ((high - low) / np.ptp(waves))).astype(kind)
    return scaled


LOWEST = float(np.finfo(np.float32).min)
NO_DATA: list[tuple[Any, float, float, float]] = [
    (np.float32, LOWEST, 712, 888),
    (np.float32, -LOWEST, 712, 888),
    (np.float32, -9999, -12, 888),
    (np.float32, -32768, 0.1, 0.9),
    (np.float32, 1e20, 270, 300),
    (np.int32, -9999, 300, 900),
    (np.int32, 2**31 - 1, 300, 70_000),
    (np.int16, -32768, 300, 2000),
    (np.int16, -9999, -90, 800),
    (np.uint16, 65535, 100, 4000),
    (np.uint16, 0, 20_000, 24_000),
]


@pytest.mark.parametrize(
    ("where", "kind", "no_data", "low", "high"),
    [(("corner", "half", "frame")[i % 3], *one) for i, one in enumerate(NO_DATA)],
    ids=[f"{kind.__name__} {no_data:g}" for kind, no_data, *_ in NO_DATA],
)
def test_pictures_that_no_data_squeezes_are_told_and_the_line_of_python_spreads_them(
    tmp_path: Path, where: str, kind: Any, no_data: float, low: float, high: float
) -> None:
    blank = np.zeros((32, 32), dtype=bool)
    if where == "frame":
        blank[...] = True
        blank[6:-6, 6:-6] = False
    else:
        blank[: 8 if where == "corner" else 16, : 8 if where == "corner" else 32] = True
    folder, expected = tmp_path / "tiles", dict[str, NDArray[Any]]()
    for number in range(8):
        name = f"{'hill' if number % 2 else 'plain'}/{number}.tif"
        values = terrain(kind, low, high, number)
        values[blank] = no_data
        expected[name] = values
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name)
    nothing = np.full((32, 32), no_data, dtype=kind)
    nothing[0, 0] = low  # as at the edge of a map
    Image.fromarray(nothing).save(folder / "plain" / "sea.tif")
    data, config = read(folder, tmp_path)
    warning = next(brightness(data, config))
    content = np.concatenate([values[~blank] for values in expected.values()]).astype(float)
    assert (
        "8 of 9 pictures of more than 8 bits that were looked at are read in few gray levels: the content of "
        in warning
    )
    assert f" without {np.float64(kind(no_data)):,.6g} (perhaps no-data), has " in warning
    assert f"one common scale without {np.float64(kind(no_data)):,.6g}; this line of Python" in warning
    told = [one for one in warnings_about(data, config) if "single colour" in one]
    assert not any("transparency" in one for one in told)
    again, new = read(converted(warning), tmp_path)
    assert list(brightness(again, new)) == []
    for name, values in expected.items():
        with Image.open(folder.with_name("tiles-8bit") / name) as image:
            pixels = np.asarray(image)
        right = np.rint((values[~blank].astype(float) - content.min()) * (255 / np.ptp(content)))
        np.testing.assert_array_equal(pixels[~blank], right)
        assert set(np.unique(pixels[blank])) <= {0, 255}


def test_the_tag_of_gdal_says_what_is_no_data(tmp_path: Path) -> None:
    """-100 is close to the content, so only the tag tells it."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = "-100"
    for number in range(6):
        values = terrain(np.float32, 0, 1, number)
        values[:8] = -100
        values[10, 10] = -60
        file = tmp_path / "tiles" / "ab"[number % 2] / f"{number}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file, tiffinfo=tags)
    (warning,) = brightness(*read(tmp_path / "tiles", tmp_path))
    assert "without -100" in warning
    assert list(brightness(*read(converted(warning), tmp_path))) == []


@pytest.mark.parametrize("how_many", [1, 3, 6])
def test_a_few_hot_pixels_do_not_squeeze_a_copy(tmp_path: Path, how_many: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        values = terrain(np.uint16, 300, 900, number)
        values.ravel()[rng.choice(values.size, how_many, replace=False)] = rng.integers(20_000, 65_536, how_many)
        file = tmp_path / "stars" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    warning = next(brightness(*read(tmp_path / "stars", tmp_path)))
    again, new = read(converted(warning), tmp_path)
    assert list(brightness(again, new)) == []
    assert all(np.ptp(np.percentile(picture, [10, 90])) > 100 for picture in again.images)


@pytest.mark.parametrize("squeezed", ["by no-data", "by hot pixels", "by NaN", ""])
def test_the_line_of_python_counts_pictures_that_were_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeezed: str
) -> None:
    """The values of pictures that were looked at only say what is no-data."""
    monkeypatch.setattr(eight_bits, "LOOKED_AT", 4)
    content = dict[str, NDArray[Any]]()
    for number in range(8):
        low, high = 110 if number == 6 else 300, 2900 if number == 3 else 900
        values = terrain(np.float32, low, high, number)
        values[20:22] = np.array([[low], [high]])
        content[name := f"{'ab'[number % 2]}/{number}.tif"] = values.copy()
        if squeezed == "by hot pixels":
            values[[0, 7, 13], [5, 9, 30]] = 400_000, 500_000, 590_000 + number
        elif squeezed:
            values[:3] = np.nan if squeezed == "by NaN" and number < 7 else -9999
        file = tmp_path / "tiles" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    if squeezed == "by NaN":
        with pytest.raises(DataError) as caught:
            read(tmp_path / "tiles", tmp_path)
        warning = str(caught.value)
    else:
        warning = next(brightness(*read(tmp_path / "tiles", tmp_path)), "")
    if not squeezed:
        assert warning.startswith("the 8 pictures of more than 8 bits are read nearly black")
    new = converted(warning)
    for name, values in content.items():
        with Image.open(new / name) as image:
            pixels = np.asarray(image)[3:]
        right = np.rint((values[3:].astype(float) - 110) * (255 / 2790))
        wrong = np.abs(pixels - right).max(initial=0, where=pixels < 255)
        assert wrong <= (8 if squeezed == "by hot pixels" else 0), name


def test_each_scale_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture of many has -9999, and so a scale of its own."""
    monkeypatch.setattr(eight_bits, "LOOKED_AT", 4)
    for number in range(16):
        values = terrain(np.float32, 300, 900, number)
        if number == 5:
            values[:4] = -9999
        file = tmp_path / "tiles" / "ab"[number % 2] / f"{number:02}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    warning = next(brightness(*read(tmp_path / "tiles", tmp_path)))
    assert "read on 2 scales: 15 pictures" in warning
    assert "one common scale without -9,999; this line of Python" in warning
    with Image.open(converted(warning) / "a" / "00.tif") as image:
        assert np.ptp(np.asarray(image)) == 255


@pytest.mark.parametrize(("low", "high"), [(712, 888), (0.1, 0.4)], ids=["misread", "read alike"])
def test_one_pixel_that_makes_all_others_black_is_told_where_it_is_not_seen(
    tmp_path: Path, low: float, high: float
) -> None:
    for number in range(4):
        values = np.kron(terrain(np.float32, low, high, number), np.ones((12, 12), np.float32))
        values[100, 100] = -LOWEST
        file = tmp_path / "tiles" / "ab"[number % 2] / f"{number}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    data, config = read(tmp_path / "tiles", tmp_path)
    assert not data.images.any()
    warning, *more = brightness(data, config)
    told = "4 of 4 pictures of more than 8 bits that were looked at are read in few gray levels"
    assert [told in one for one in (warning, *more)] == [not more, *([True] * len(more))]
    assert "is 0 of 255, so they have at most 1 gray level; convert" in warning or not more
    assert list(brightness(*read(converted(warning), tmp_path))) == []


def test_files_that_cannot_be_read_do_not_stop_the_line_of_python(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "wells", _numbered([3076, 4095, 500]))
    deep(folder / "cells" / "nan.tif", np.nan, np.float32)
    deep(folder / "cells" / "float.tif", 1000, np.float32)
    (folder / "cells" / "torn.tif").write_text("no picture")
    with pytest.raises(DataError) as caught:
        read(folder, tmp_path)
    new = converted(str(caught.value))
    (new / "cells" / "torn.tif").unlink()
    again, config = read(new, tmp_path)
    assert (list(brightness(again, config)), pixels_of(again, "cells/1.tif").max()) == ([], 255)
    warning = next(brightness(*read(folder, tmp_path, bad_files="skip")))
    shutil.rmtree(new)
    with Image.open(converted(warning) / "cells" / "float.tif") as image:
        assert (image.mode, image.getextrema()) == ("L", (0, round(1000 * 255 / 4095)))


@pytest.mark.parametrize("half", [False, True])
def test_pictures_with_values_that_are_not_finite_are_refused_with_a_line_that_converts_them(
    tmp_path: Path, *, half: bool
) -> None:
    for number in range(8):
        values = terrain(np.float32, 712, 888, number)
        if not half or number < 4:
            values[:8] = (np.nan, np.inf, -np.inf)[number % 3]
        file = tmp_path / "tiles" / "ab"[number % 2] / f"{number}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "tiles", tmp_path)
    message = str(caught.value)
    reason = "/0.tif: has values that are not finite, such as NaN for no-data; write a finite value there\n"
    assert reason in message
    cure = "\nFor the values that are not finite, convert all of them to 8 bits with one common scale; this line"
    assert cure in message
    again, new = read(converted(message), tmp_path)
    assert list(brightness(again, new)) == []
    assert sorted(int(np.ptp(picture)) > 100 for picture in again.images) == [True] * 8


@pytest.mark.parametrize(
    "values",
    [
        np.where(np.eye(32) > 0, 65535, 0).astype(np.uint16),  # a sign
        np.repeat(np.arange(32, dtype=np.uint16) * 2114, 32).reshape(32, 32),
        np.where(np.eye(32) > 0, 40_000, terrain(np.uint16, 300, 12_000, 1)).astype(np.uint16),  # bright cells
        terrain(np.float32, -1, 1, 1),
        np.where(np.eye(32) > 0, 3.0, terrain(np.float32, -1, 1, 1)).astype(np.float32),
    ],
)
def test_pictures_whose_content_has_many_levels_cause_no_warning(tmp_path: Path, values: NDArray[Any]) -> None:
    for number in range(6):
        file = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rot90(values, number).copy()).save(file, tiffinfo={270: str(number)})
    data, config = read(tmp_path / "pictures", tmp_path)
    assert list(brightness(data, config)) == []
