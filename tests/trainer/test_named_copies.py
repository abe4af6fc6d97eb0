"""Copies that have related names are found if they look the same, and never by their names alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folders import prepare, saved
from PIL import Image

from trainer.named_copies import NamedCopies, find_named_copies


def scene(seed: int, side: int = 48) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC)


def write(root: Path, name: str, image: Image.Image, format: str = "PNG") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(saved(image, format))


def found(root: Path, tmp_path: Path) -> list[NamedCopies]:
    return find_named_copies(prepare(root, tmp_path, image_size=32, val_fraction=0.3))


@pytest.mark.parametrize(
    ("tops", "names"),
    [
        (("UTKFace", "crop_part1"), "{}_1_0_2017011616213{}.jpg.chip.png"),
        (("photos", "thumbs"), "IMG_{}{}.png"),
        (("colour", "grey"), "{}-{}.png"),
    ],
)
def test_the_same_pictures_in_two_classes_are_found(tmp_path: Path, tops: tuple[str, str], names: str) -> None:
    root = tmp_path / "data"
    for i in range(8):
        name = names.format(i, i * 7)
        write(root, f"{tops[0]}/{name}", scene(i))
        copy = scene(i).convert("L") if tops[1] == "grey" else scene(i, 64).resize((40, 40))
        write(root, f"{tops[1]}/{name}", copy)
        write(root, f"{tops[0]}/more{i}.png", scene(100 + i))
    (copies,) = found(root, tmp_path)
    assert (copies.kind, copies.count, copies.compared) == ("classes", 16, 16)
    assert {copies.first.partition("/")[0], copies.second.partition("/")[0]} == set(tops)
    assert copies.first.partition("/")[2] == copies.second.partition("/")[2]


@pytest.mark.parametrize(
    "second",
    [
        "{}/{:03}.tif",
        "{}/{:03}.TIFF",
        "{}/{:03}.png_original",
        "{}/thumbs/{:03}.png",
        "{}/{:03}-150x150.png",
        "{}/{:03}_aug_1.png",
        "{}/{:03} (copy).png",
        "{}/thumb_{:03}.png",
        "{}/tn-{:03}.png",
    ],
)
def test_copies_of_a_class_that_the_splits_divide_are_found(tmp_path: Path, second: str) -> None:
    root = tmp_path / "data"
    for kind, first in (("cat", 0), ("dog", 50)):
        for i in range(first, first + 12):
            write(root, f"{kind}/{i:03}.png", scene(i))
            copy = scene(i).transpose(Image.Transpose.FLIP_LEFT_RIGHT) if "aug" in second else scene(i, 64)
            write(root, second.format(kind, i), copy, "TIFF" if "TIFF" in second else "PNG")
    (copies,) = found(root, tmp_path)
    assert copies.kind == "splits"
    assert copies.count == copies.compared > 3


def test_copies_of_roboflow_and_in_splits_of_their_own_are_found(tmp_path: Path) -> None:
    for i in range(12):
        for copy in "abc":
            write(tmp_path / "augmented", f"{'xy'[i % 2]}/{i}_jpg.rf.{copy * 4}.png", scene(i).rotate(ord(copy) - 98))
        for split in ("train", "val"):
            write(tmp_path / "own", f"{split}/{'xy'[i % 2]}/{i}.png", scene(i, 48 if split == "val" else 64))
    for root in (tmp_path / "augmented", tmp_path / "own"):
        assert [copies.kind for copies in found(root, tmp_path)] == ["splits"]


def test_names_alone_and_pictures_that_all_look_alike_are_no_copies(tmp_path: Path) -> None:
    shadow = np.exp(-np.add(*np.square(np.mgrid[-24:24, -24:24])) / 300.0)
    for i in range(12):
        for number, place in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
            seed = 100 * number + i
            write(tmp_path / "counted", f"{place}/{i:03}.png", scene(seed))
            noise = np.random.default_rng(seed).integers(0, 20, (48, 48))
            write(tmp_path / "X-rays", f"{place}/{i:03}.png", Image.fromarray((200 * shadow + noise).astype(np.uint8)))
    for root in (tmp_path / "counted", tmp_path / "X-rays"):
        assert found(root, tmp_path) == []


def test_exact_copies_and_pictures_of_one_colour_are_left_to_others(tmp_path: Path) -> None:
    for i in range(8):
        for kind in ("cat", "dog"):
            write(tmp_path / "exact", f"{kind}/{i}.png", scene(i))
            write(tmp_path / "black", f"{kind}/{i}.png", Image.new("RGB", (40 + i, 41 if kind == "cat" else 40)))
    for root in (tmp_path / "exact", tmp_path / "black"):
        assert found(root, tmp_path) == []
