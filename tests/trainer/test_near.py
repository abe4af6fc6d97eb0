"""A picture that was resized, re-encoded, cropped or flipped is found in another split, and strangers are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fast import slow_after
from folders import make_folder, prepare, unzipped
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from trainer import near
from trainer.data import Dataset
from trainer.near import NearDuplicate, find_near_duplicates


def found_in(data: Dataset, *splits: str) -> list[NearDuplicate]:
    return find_near_duplicates(data, {name: data.splits[name] for name in splits or data.splits})


def scene(seed: int, size: int = 96) -> Image.Image:
    """A few blurred shapes, as photos have them."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    return image.filter(ImageFilter.GaussianBlur(1))


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    w, h = image.size
    return image.crop((round(left * w), round(top * h), round((1 - right) * w), round((1 - bottom) * h)))


def jpeg(image: Image.Image, quality: int = 40) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda image: image,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "JPEG": jpeg,
    "flipped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "flipped top-bottom": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "cropped on all sides": lambda image: cropped(image, 0.025, 0.025, 0.025, 0.025),
    "cropped at a corner": lambda image: cropped(image, 0.05, 0.05, 0, 0),
    "cropped at the other corner": lambda image: cropped(image, 0, 0, 0.05, 0.05),
    "cropped at an edge": lambda image: cropped(image, 0, 0, 0.05, 0),
    "cropped, flipped and a JPEG": lambda image: jpeg(
        cropped(image, 0.05, 0, 0, 0.05).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ),
}


def test_copies_of_every_kind_are_found_with_their_originals_and_strangers_are_not(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 0, "train/dog": 0, "test/cat": 0, "test/dog": 0})
    for i in range(60):
        scene(i).save(root / ("train/cat" if i % 2 else "train/dog") / f"{i}.png")
    for i in range(60, 100):
        scene(i).save(root / "test/dog" / f"{i}.png")
    for i, copy in enumerate(COPIES.values()):
        copy(scene(2 * i + 1)).save(root / "test/cat" / f"copy{i}.png")
    data = prepare(root, tmp_path, image_size=48)
    found = {pair.first: pair for pair in found_in(data, "train", "test")}
    assert {name: pair.second for name, pair in found.items()} == {
        f"test/cat/copy{i}.png": f"train/cat/{2 * i + 1}.png" for i in range(len(COPIES))
    }
    assert {pair.splits for pair in found.values()} == {("test", "train")}
    assert found["test/cat/copy0.png"].likeness == 1.0


def test_gray_pictures_are_compared_too(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 0, "train/dog": 0, "val/cat": 0, "val/dog": 0})
    for i in range(8):
        scene(i).save(root / ("train/cat" if i % 2 else "train/dog") / f"{i}.png")
        scene(50 + i).save(root / ("val/cat" if i % 2 else "val/dog") / f"{i}.png")
    jpeg(scene(3)).save(root / "val/cat/copy.png")
    (pair,) = found_in(prepare(root, tmp_path, image_size=32, channels=1))
    assert (pair.first, pair.second, pair.splits) == ("val/cat/copy.png", "train/cat/3.png", ("val", "train"))


@pytest.mark.parametrize("copy", [*slow_after(1, COPIES.values())[:-1], *list(COPIES.values())[-1:]], ids=COPIES)
def test_copies_of_real_photos_are_found(tmp_path: Path, copy: Callable[[Image.Image], Image.Image]) -> None:
    root = unzipped("flowers5_varied_mini", tmp_path)
    originals = sorted((root / "train").glob("*/*.jpg"))[::16]
    for number, file in enumerate(originals):
        with Image.open(file) as image:
            copy(image.convert("RGB")).save(root / "test" / file.parent.name / f"copy{number}.png")
    found = found_in(prepare(root, tmp_path, image_size=64), "train", "test")
    expected = {(f"copy{number}.png", str(file.relative_to(root))) for number, file in enumerate(originals)}
    pairs = {(Path(pair.first).name, pair.second) for pair in found}
    assert len(expected & pairs) >= len(expected) - 1
    assert len({pair for pair in pairs if not pair[0].startswith("copy")}) <= 1


def photo(seed: int, width: int, height: int) -> Image.Image:
    """A picture of any shape with as much detail as a photo."""
    rng = np.random.default_rng(seed)
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (height // cell, width // cell, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for cell in (36, 12)
    )
    return Image.blend(coarse, fine, 0.5)


SIDES = {
    "left": (0.05, 0, 0, 0),
    "right": (0, 0, 0.05, 0),
    "top": (0, 0.05, 0, 0),
    "bottom": (0, 0, 0, 0.05),
    "left and top": (0.05, 0.05, 0, 0),
    "right and bottom": (0, 0, 0.05, 0.05),
}


@pytest.mark.parametrize("shape", [(240, 180), (270, 180), (320, 180), (180, 320)])
@pytest.mark.parametrize("side", SIDES)
def test_crops_at_a_side_of_wide_and_tall_pictures_are_found(tmp_path: Path, side: str, shape: tuple[int, int]) -> None:
    """The cache has the centre of each picture, and such a crop moves the centre."""
    root = make_folder(tmp_path / "pets", {"train/cat": 0, "train/dog": 0, "test/cat": 0, "test/dog": 0})
    for i in range(12):
        original = photo(20 + i, *shape)
        original.save(root / ("train/cat" if i % 2 else "train/dog") / f"{i}.png")
        copy = cropped(original, *SIDES[side])
        if i % 3 == 0:
            copy = copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        copy = copy.resize((copy.width * 3 // 4, copy.height * 3 // 4))
        jpeg(copy, 80).save(root / ("test/cat" if i % 2 else "test/dog") / f"{i}.png")
    found = found_in(prepare(root, tmp_path, image_size=64))  # two originals are drawn for val
    assert {(pair.first[5:], pair.second[6:]) for pair in found} == {
        (f"{'cat' if i % 2 else 'dog'}/{i}.png",) * 2 for i in range(12)
    }


def pictures(frames: list[NDArray[np.uint8]]) -> Dataset:
    """A third of the pictures is in each split."""
    frames = np.stack(frames)
    indices = np.arange(len(frames))
    splits = {name: indices[start::3] for start, name in enumerate(("train", "val", "test"))}
    names = [f"{i}.png" for i in indices]
    return SimpleNamespace(images=frames, names=names, splits=splits)  # type: ignore[return-value]


@pytest.mark.parametrize("noise", [6, 90], ids=["alike as a whole", "neither alike nor different"])
def test_the_work_is_bounded_if_all_pictures_show_one_scene(noise: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    base = np.asarray(scene(0, 32)).astype(int)
    waves = [np.asarray(scene(i, 32)).astype(int) - 128 for i in range(1, 241)]
    frames = [(base + noise * wave // 128 + rng.integers(-3, 4, base.shape)).clip(0, 255) for wave in waves]
    compared: list[float] = []
    likeness = near._likeness
    monkeypatch.setattr(near, "_likeness", lambda *versions: compared.append(0) or likeness(*versions))
    found = found_in(pictures([frame.astype(np.uint8) for frame in frames]))
    if noise == 6:
        assert len(found) == 3 * 80, "val/train, test/train, test/val"
        assert not compared, "no crops are compared where the whole pictures agree"
    else:
        assert 3 * 80 * near.MOST_CANDIDATES / 2 < len(compared) <= 3 * 80 * near.MOST_CANDIDATES


def test_the_most_similar_picture_is_named_although_many_are_alike() -> None:
    base = np.asarray(scene(0, 32)).astype(int)
    frames = [
        (base + (np.asarray(scene(i, 32)).astype(int) - 128) // 9).clip(0, 255).astype(np.uint8) for i in range(1, 61)
    ]
    frames[41] = frames[30]
    (pair,) = [pair for pair in found_in(pictures(frames), "train", "test") if pair.first == "41.png"]
    assert (pair.second, pair.likeness) == ("30.png", 1.0)


def test_copies_in_two_folds_are_found(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 0, "dog": 0})
    for i in range(24):
        kind = "cat" if i % 2 else "dog"
        scene(i).save(root / kind / f"{i:02}.png")
        scene(i).resize((64, 64)).save(root / kind / f"{i:02}-small.png")
    data = prepare(root, tmp_path, image_size=32, folds=4, test_fraction=0.25)
    parts = data.parts(4, 0)
    assert list(parts) == ["fold 1", "fold 2", "fold 3", "fold 4", "test"]
    assert sorted(int(index) for indices in parts.values() for index in indices) == list(range(48))
    part_of = {data.names[index]: part for part, indices in parts.items() for index in indices}
    originals = [name for name in data.names if "small" not in name]
    divided = {one for one in originals if part_of[one] != part_of[one.replace(".png", "-small.png")]}
    found = find_near_duplicates(data, parts)
    assert divided
    assert {pair.first.replace("-small", "") for pair in found} == divided
    assert all(pair.splits == (part_of[pair.first], part_of[pair.second]) for pair in found)
