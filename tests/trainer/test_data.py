"""What becomes of a folder of pictures: every mode, layout and mistake, and the same pixels as timm."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.config import DataConfig
from trainer.data import BadFile, Dataset, Duplicate, prepare_data
from trainer.errors import DataError
from trainer.pictures import read_picture

ROOT = Path(__file__).parents[2]


def noise(width: int = 24, height: int = 20, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """Folders with so many pictures each, all different: {"train/cat": 3, "val/cat": 1}."""
    seed = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            seed += 1
            noise(seed=seed).save(root / folder / f"{i:03}.png")
    return root


def prepare(root: Path, tmp_path: Path, **settings: object) -> Dataset:
    values = {"path": str(root), "image_size": 16, **settings}
    return prepare_data(DataConfig.model_validate(values), tmp_path / "caches")


def problems_of(root: Path, tmp_path: Path, **settings: object) -> str:
    with pytest.raises(DataError) as error:
        prepare(root, tmp_path, **settings)
    return str(error.value)


def unzipped(name: str, tmp_path: Path) -> Path:
    archive = ROOT.parent / "shared" / "data" / f"{name}.zip"
    if not archive.exists():
        pytest.skip(f"the real pictures of {archive.name} are not beside the repository")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    return tmp_path / name


def names_in(data: Dataset, split: str) -> set[str]:
    return {data.names[i] for i in data.splits[split]}


# Layouts


def test_train_val_and_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    counts = {f"{split}/{name}": n for split, n in (("train", 3), ("val", 2), ("test", 1)) for name in ("cat", "dog")}
    data = prepare(make_folder(tmp_path / "pets", counts), tmp_path, val_fraction=0.5, test_fraction=0.5)
    assert data.class_names == ("cat", "dog")
    assert {split: len(indices) for split, indices in data.splits.items()} == {
        "train": 6,
        "val": 4,
        "test": 2,
    }
    for split in ("train", "val", "test"):
        assert all(name.startswith(f"{split}/") for name in names_in(data, split))
    assert [data.class_names[label] for label in data.labels] == [name.split("/")[1] for name in data.names]
    assert data.images.shape == (12, 16, 16, 3)
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64
    assert all(np.all(np.diff(indices) > 0) for indices in data.splits.values())


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_a_valid_folder_is_the_val_split(tmp_path: Path, name: str) -> None:
    root = make_folder(tmp_path / "birds", {"train/a": 2, "train/b": 2, f"{name}/a": 1, f"{name}/b": 1})
    assert names_in(prepare(root, tmp_path), "val") == {f"{name}/a/000.png", f"{name}/b/000.png"}


def test_two_val_folders_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"train/a": 2, "val/a": 1, "valid/a": 1})
    assert "holds val and valid, which mean the same split" in problems_of(root, tmp_path)


def test_class_folders_alone_are_split_by_the_fractions(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 20, "dog": 40})
    data = prepare(root, tmp_path, val_fraction=0.25, test_fraction=0.5)
    counted = {split: np.bincount(data.labels[indices]).tolist() for split, indices in data.splits.items()}
    assert counted == {"test": [10, 20], "val": [3, 5], "train": [7, 15]}  # a quarter of what test leaves


def test_without_val_and_test_folders_val_is_drawn_from_train_and_test_is_empty(tmp_path: Path) -> None:
    data = prepare(make_folder(tmp_path / "pets", {"train/cat": 10, "train/dog": 10}), tmp_path)
    assert {split: len(indices) for split, indices in data.splits.items()} == {
        "train": 18,
        "val": 2,
        "test": 0,
    }


def test_with_a_test_folder_the_test_fraction_draws_nothing(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 10, "train/dog": 10, "test/cat": 1})
    assert names_in(prepare(root, tmp_path, test_fraction=0.5), "test") == {"test/cat/000.png"}


def test_a_train_folder_that_holds_pictures_is_a_class_of_that_name(tmp_path: Path) -> None:
    data = prepare(make_folder(tmp_path / "vehicles", {"car": 2, "train": 2, "test": 2}), tmp_path)
    assert data.class_names == ("car", "test", "train")


def test_pictures_in_subfolders_belong_to_the_class_above(tmp_path: Path) -> None:
    data = prepare(make_folder(tmp_path / "pets", {"cat": 2, "cat/old/older": 2, "dog": 2}), tmp_path)
    assert np.bincount(data.labels).tolist() == [4, 2]
    assert "cat/old/older/001.png" in data.names


def test_what_systems_leave_in_folders_is_passed_over_in_silence(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2})
    for litter in (
        ".DS_Store",
        "train/.DS_Store",
        "train/cat/Thumbs.db",
        "train/cat/desktop.ini",
        "train/dog/._1.png",
    ):
        (root / litter).write_bytes(b"\0" * 10)
    for litter in ("__MACOSX/train", "train/__MACOSX", "train/.ipynb_checkpoints"):
        (root / litter).mkdir(parents=True)
        (root / litter / "x").write_bytes(b"x")
    (root / "README.txt").write_text("pets")
    (root / "train" / "labels.csv").write_text("a,b")
    data = prepare(root, tmp_path)
    assert (len(data.names), data.class_names, data.bad_files) == (4, ("cat", "dog"), ())


# Splits


def test_splits_are_stratified_and_keep_a_picture_of_each_class_on_each_side(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"a": 2, "b": 3, "c": 10, "d": 100})
    data = prepare(root, tmp_path, val_fraction=0.1, test_fraction=0.1)
    counted = {split: np.bincount(data.labels[i], minlength=4).tolist() for split, i in data.splits.items()}
    assert counted == {"test": [0, 1, 1, 10], "val": [1, 1, 1, 9], "train": [1, 1, 8, 81]}
    together = np.concatenate(list(data.splits.values()))
    assert sorted(together) == list(range(115))


def test_a_split_that_is_not_stratified_is_drawn_from_all_pictures_at_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"a": 5, "b": 3, "c": 10, "d": 100})
    data = prepare(root, tmp_path, val_fraction=0.1, test_fraction=0.1, stratified=False)
    # Of 118: 12, of the other 106: 11; by class it would be 1 + 1 + 1 + 10 and 1 + 1 + 1 + 9.
    assert {split: len(indices) for split, indices in data.splits.items()} == {"train": 95, "val": 11, "test": 12}
    assert sorted(np.concatenate(list(data.splits.values()))) == list(range(118))
    again = prepare(root, tmp_path, val_fraction=0.1, test_fraction=0.1, stratified=False)
    assert all(np.array_equal(indices, again.splits[split]) for split, indices in data.splits.items())


def test_a_split_seed_gives_the_same_split_each_time_and_another_seed_another(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 30, "dog": 30})
    splits = [names_in(prepare(root, tmp_path, split_seed=seed, val_fraction=0.3), "val") for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_the_split_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Golden: a change here changes every study's validation split, so RECIPE_VERSION would have to rise."""
    root = tmp_path / "pets"
    for name, shade in (("cat", 0), ("dog", 100)):
        (root / name).mkdir(parents=True)
        for i in range(10):
            content = f"P2 1 1 255 {shade + i}\n".encode()  # a picture whose bytes no library decides
            (root / name / f"{i}.pgm").write_bytes(content)
    val = names_in(prepare(root, tmp_path, val_fraction=0.2), "val")
    assert val == {"cat/1.pgm", "cat/7.pgm", "dog/3.pgm", "dog/4.pgm"}


def test_a_new_picture_does_not_reshuffle_the_others(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 30, "dog": 30})
    before = names_in(prepare(root, tmp_path, val_fraction=0.2), "val")
    noise(seed=999).save(root / "cat" / "zzz.png")
    after = names_in(prepare(root, tmp_path, val_fraction=0.2), "val")
    assert len(before ^ after) <= 2


def test_copies_of_a_picture_in_one_class_are_drawn_to_one_side(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 20, "dog": 20})
    for i in range(0, 20, 2):
        shutil.copy(root / "cat" / f"{i:03}.png", root / "cat" / f"{i:03} copy.png")
    sides = [prepare(root, tmp_path, val_fraction=0.3, split_seed=seed).duplicates for seed in range(10)]
    # Only the pair at the border of the share can be parted, where a draw file by file parts four of ten.
    assert max(len(pairs) for pairs in sides) <= 1


# The content hash


def test_the_content_hash_is_the_same_elsewhere_and_later_and_at_another_size(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    before = prepare(root, tmp_path).content_hash
    shutil.copytree(root, tmp_path / "elsewhere" / "animals", copy_function=shutil.copyfile)
    assert prepare(tmp_path / "elsewhere" / "animals", tmp_path, image_size=8).content_hash == before


def test_the_content_hash_knows_bytes_names_and_labels(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    hashes = [prepare(root, tmp_path).content_hash]
    noise(seed=99).save(root / "cat" / "000.png")
    hashes.append(prepare(root, tmp_path).content_hash)
    (root / "cat" / "000.png").rename(root / "cat" / "zero.png")
    hashes.append(prepare(root, tmp_path).content_hash)
    (root / "cat" / "zero.png").rename(root / "dog" / "zero.png")
    hashes.append(prepare(root, tmp_path).content_hash)
    (root / "cat").rename(root / "lynx")
    hashes.append(prepare(root, tmp_path).content_hash)
    assert len(set(hashes)) == 5


# Duplicates


def test_duplicates_across_splits_and_across_classes_are_reported(tmp_path: Path) -> None:
    root = make_folder(
        tmp_path / "pets",
        {"train/cat": 4, "train/dog": 4, "val/cat": 1, "val/dog": 1, "test/cat": 2, "test/dog": 1},
    )
    shutil.copy(root / "train/cat/000.png", root / "test/cat/leak.png")
    shutil.copy(root / "train/cat/001.png", root / "train/dog/two_labels.png")
    shutil.copy(root / "train/cat/002.png", root / "train/cat/harmless.png")
    assert set(prepare(root, tmp_path).duplicates) == {
        Duplicate("test/cat/leak.png", "train/cat/000.png", "across splits"),
        Duplicate("train/cat/001.png", "train/dog/two_labels.png", "across classes"),
    }


# Mistakes


def test_no_folder_given_says_the_layout_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        prepare_data(DataConfig(), tmp_path / "caches")
    assert "search launch STUDY --data DIR" in str(error.value)
    assert "CLASS/* or train/CLASS/*" in str(error.value)
    assert not (tmp_path / "caches").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'} does not exist; check --data" in problems_of(tmp_path / "nowhere", tmp_path)
    (tmp_path / "file.zip").write_text("")
    assert "file.zip is not a folder" in problems_of(tmp_path / "file.zip", tmp_path)


def test_an_empty_folder_is_refused_with_the_layout(tmp_path: Path) -> None:
    (tmp_path / "pets" / ".git").mkdir(parents=True)
    (tmp_path / "pets" / "loose.png").write_bytes(b"")
    assert "holds no class folders; expected are CLASS/* or train/CLASS/*" in problems_of(tmp_path / "pets", tmp_path)
    make_folder(tmp_path / "pets", {"train": 0, "test/cat": 1})
    assert problems_of(tmp_path / "pets", tmp_path)


def test_class_folders_without_a_readable_picture_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 0, "dog": 0})
    assert problems_of(root, tmp_path).endswith("holds no readable picture:\n  its class folders are empty")
    (root / "cat" / "a.png").write_text("text")
    for policy in ("fail", "skip"):
        message = problems_of(root, tmp_path, bad_files=policy)
        assert message.endswith(
            "holds no readable picture:\n  cat/a.png: is not a picture in a format that Pillow knows"
        )
    assert not [path for path in (tmp_path / "caches").iterdir() if not path.name.endswith(".lock")]


def test_one_class_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "flowers" / "flowers", {"rose": 2, "tulip": 2})
    message = problems_of(root.parent, tmp_path)
    assert "one class, flowers, to train on, and a classifier needs two; expected is CLASS/*" in message


def test_an_empty_val_or_test_folder_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2, "val/cat": 0, "test": 0})
    message = problems_of(root, tmp_path)
    assert "the val folder holds no readable picture; fill it or remove it" in message
    assert "the test folder holds no readable picture; fill it or remove it" in message


def test_classes_with_one_picture_are_named_where_it_would_have_to_be_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 1, "train/dog": 1, "train/emu": 2})
    message = problems_of(root, tmp_path)
    assert "2 problems" in message
    assert "cat: one training picture, so none is left for validation; add some or remove the class" in message
    assert "dog: one training picture" in message
    assert "emu" not in message
    make_folder(root / "val", {"cat": 1})
    assert len(prepare(root, tmp_path).splits["train"]) == 4


def test_a_class_that_only_val_or_test_has_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2, "val/cat": 1, "test/emu": 1, "test/cat": 1})
    assert "test/emu: this class has no training picture; add some or remove the folder" in problems_of(root, tmp_path)


def test_an_empty_class_folder_fails_or_is_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2, "train/emu": 0})
    assert "train/emu: this class folder holds no readable picture" in problems_of(root, tmp_path)
    assert prepare(root, tmp_path, bad_files="skip").class_names == ("cat", "dog")


def test_bad_files_are_listed_all_at_once_with_everything_else(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 1, "train/emu": 0, "test/fox": 1})
    whole = (root / "train/cat/000.png").read_bytes()
    (root / "train/cat/truncated.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/cat/zero.png").write_bytes(b"")
    (root / "train/dog/line\nbreak.png").write_text("x")
    message = problems_of(root, tmp_path)
    first, *lines = message.splitlines()
    assert first == (
        f'{root}: 6 problems with the pictures; bad_files = "skip" goes on without files that cannot be read:'
    )
    assert lines[0].startswith("  train/cat/truncated.png: cannot be decoded (")
    assert lines[1:] == [
        "  train/cat/zero.png: is empty (0 bytes)",
        r"  train/dog/line\nbreak.png: is not a picture in a format that Pillow knows",
        "  test/fox: this class has no training picture; add some or remove the folder",
        "  train/emu: this class folder holds no readable picture; fill it or remove it",
        "  dog: one training picture, so none is left for validation; add some or remove the class",
    ]


def test_of_many_bad_files_fifty_are_shown(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    for i in range(60):
        (root / "cat" / f"bad{i:02}").write_text("x")
    lines = problems_of(root, tmp_path).splitlines()
    assert len(lines) == 52
    assert lines[0].startswith(f"{root}: 60 problems")
    assert lines[-1] == "  ... and 10 more"


def test_a_change_of_bad_files_decodes_nothing_again(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    (root / "cat" / "bad.jpg").write_text("x")
    problems_of(root, tmp_path)
    stages: list[str] = []
    config = DataConfig(path=str(root), image_size=16, bad_files="skip")
    data = prepare_data(config, tmp_path / "caches", progress=lambda stage, done, total: stages.append(stage))
    assert stages == []
    assert data.bad_files == (BadFile("cat/bad.jpg", "is not a picture in a format that Pillow knows"),)


def test_a_file_name_that_is_not_utf8_is_a_picture_like_any_other(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    (root / "cat" / "000.png").rename(root / "cat" / "caf\udce9.png")
    assert "cat/caf\udce9.png" in prepare(root, tmp_path).names
    (root / "cat" / "caf\udce9.png").write_text("x")
    assert r"cat/caf\udce9.png: is not a picture" in problems_of(root, tmp_path)


# Every mode

SIZE = DataConfig(image_size=16)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def gradient(top: float, dtype: type) -> NDArray[Any]:
    """[16, 16], from 0 at the left to ``top`` at the right."""
    return np.tile(np.linspace(0, top, 16), (16, 1)).astype(dtype)


def is_gray_gradient(pixels: NDArray[np.uint8]) -> bool:
    expected = np.linspace(0, 255, 16)[None, :, None]
    return pixels.shape == (16, 16, 3) and bool(np.abs(pixels - expected).max() <= 1)


GRAY_GRADIENTS = {
    "8-bit gray": saved(Image.fromarray(gradient(255, np.uint8)), "PNG"),
    "8-bit gray with alpha": saved(Image.fromarray(gradient(255, np.uint8)).convert("LA"), "PNG"),
    "palette": saved(Image.fromarray(gradient(255, np.uint8)).convert("P"), "PNG"),
    "palette with transparency": saved(
        Image.fromarray(gradient(255, np.uint8)).convert("P"), "PNG", transparency=bytes(range(0, 256, 2))
    ),
    "RGBA": saved(Image.fromarray(gradient(255, np.uint8)).convert("RGBA"), "PNG"),
    "16-bit gray PNG": saved(Image.fromarray(gradient(65535, np.uint16)), "PNG"),
    "16-bit gray TIFF": saved(Image.fromarray(gradient(65535, np.uint16)), "TIFF"),
    "big-endian 16-bit gray": saved(
        Image.frombytes("I;16B", (16, 16), gradient(65535, np.uint16).byteswap().tobytes()), "TIFF"
    ),
    "32-bit gray of 16 bits": saved(Image.fromarray(gradient(65535, np.int32)), "TIFF"),
    "32-bit gray beyond 16 bits": saved(Image.fromarray(gradient(2_000_000_000, np.int32)), "TIFF"),
    "8 bits in a 16-bit PNG": saved(Image.fromarray(gradient(255, np.uint16)), "PNG"),
    "float 0..1": saved(Image.fromarray(gradient(1, np.float32)), "TIFF"),
    "float 0..255": saved(Image.fromarray(gradient(255, np.float32)), "TIFF"),
    "float 0..65535": saved(Image.fromarray(gradient(65535, np.float32)), "TIFF"),
    "float -1..1": saved(Image.fromarray(gradient(2, np.float32) - 1), "TIFF"),
    "BMP": saved(Image.fromarray(gradient(255, np.uint8)), "BMP"),
    "PPM": saved(Image.fromarray(gradient(255, np.uint8)).convert("RGB"), "PPM"),
    "lossless WebP": saved(Image.fromarray(gradient(255, np.uint8)).convert("RGB"), "WEBP", lossless=True),
    "GIF": saved(Image.fromarray(gradient(255, np.uint8)), "GIF"),
}


@pytest.mark.parametrize("content", GRAY_GRADIENTS.values(), ids=GRAY_GRADIENTS)
def test_a_gradient_is_the_same_in_every_mode(content: bytes) -> None:
    assert is_gray_gradient(read_picture(content, SIZE))


def test_half_a_16_bit_picture_is_half_as_bright(tmp_path: Path) -> None:
    """Scaled by what its kind can hold, not by its own brightest pixel, so that pictures stay comparable."""
    dim = read_picture(saved(Image.fromarray(gradient(32767, np.uint16)), "PNG"), SIZE)
    assert 126 <= dim.max() <= 128


def test_one_bit_pictures_are_black_and_white(tmp_path: Path) -> None:
    image = Image.fromarray(gradient(255, np.uint8) > 127)
    assert image.mode == "1"
    pixels = read_picture(saved(image, "PNG"), SIZE)
    assert (pixels[:, :8] == 0).all()
    assert (pixels[:, 8:] == 255).all()


def test_cmyk_becomes_the_colour_it_was(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    pixels = read_picture(saved(red, "JPEG", quality=100), SIZE)
    assert np.abs(pixels.astype(int) - [200, 30, 30]).max() < 8


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        content = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (read_picture(content, SIZE) == [255, 0, 0]).all(), format


ORIENTATIONS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_that_the_camera_marked_as_turned_are_upright(orientation: int, format: str) -> None:
    image = noise(16, 16).resize((4, 4)).resize((16, 16), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    expected = ORIENTATIONS[orientation](read_picture(saved(image, format, **options), SIZE))
    turned = read_picture(saved(image, format, exif=exif, **options), SIZE)
    np.testing.assert_array_equal(turned, expected)


def test_a_turned_picture_is_cropped_after_turning() -> None:
    image = noise(64, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_picture(saved(image, "PNG", exif=exif), SIZE)
    np.testing.assert_array_equal(turned, read_picture(image.transpose(Image.Transpose.ROTATE_270), SIZE))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", b"\xff" * 50])
def test_a_broken_exif_block_does_not_spoil_the_picture(exif: bytes) -> None:
    image = noise(16, 16)
    pixels = read_picture(saved(image, "JPEG", exif=exif), SIZE)
    np.testing.assert_array_equal(pixels, read_picture(saved(image, "JPEG"), SIZE))


def test_pictures_that_cannot_be_used_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    not_finite = gradient(1, np.float32)
    not_finite[3, 3] = np.nan
    jpeg = saved(noise(200, 200), "JPEG")
    reasons = {
        b"<html>404</html>": "is not a picture in a format that Pillow knows",
        saved(Image.fromarray(not_finite), "TIFF"): "holds values that are not finite",
        jpeg[:-2000]: "cannot be decoded (image file is truncated",
        saved(
            Image.new("1", (10_000, 9_000)), "PNG"
        ): "has too many pixels (10000 x 9000 = 90000000 pixels, 89478485 allowed)",
        saved(Image.new("1", (20_000, 9_000)), "PNG"): "has too many pixels (",
    }
    for content, reason in reasons.items():
        with pytest.raises(DataError) as error:
            read_picture(content, SIZE)
        assert str(error.value).startswith(reason)


def test_reading_a_picture_leaves_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    before = list(warnings.filters)
    read_picture(GRAY_GRADIENTS["palette with transparency"], SIZE)
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    (root / "cat" / "p.png").write_bytes(GRAY_GRADIENTS["palette with transparency"])
    prepare(root, tmp_path)
    assert warnings.filters == before


def test_reading_a_picture_does_not_change_it() -> None:
    image = noise()
    exif = image.getexif()
    exif[0x0112] = 6
    before = image.tobytes()
    read_picture(image, SIZE)
    assert (image.size, image.tobytes(), image.mode) == ((24, 20), before, "RGB")


# The same pixels as a stranger's


def timm_pixels(image: Image.Image, config: DataConfig) -> NDArray[np.uint8]:
    """What timm's own evaluation transform makes of an opened picture, before it normalises."""
    from timm.data import create_transform

    transform = create_transform(
        input_size=(3, config.image_size, config.image_size),
        interpolation=config.interpolation,
        crop_pct=1.0,
        crop_mode={"crop": "center", "squash": "squash"}[config.resize],
        normalize=False,
    )
    return np.asarray(transform(image.convert("RGB"))).transpose(1, 2, 0)


RESIZES = [(resize, filter) for resize in ("crop", "squash") for filter in ("bilinear", "bicubic")]


@pytest.mark.parametrize(("resize", "interpolation"), RESIZES)
def test_pictures_of_odd_sizes_are_read_as_timm_reads_them(resize: str, interpolation: str) -> None:
    sides = [1, 2, 3, 7, 31, 32, 33, 64, 65, 97, 333, 500]
    for size in (8, 33, 224):
        config = DataConfig.model_validate({"image_size": size, "resize": resize, "interpolation": interpolation})
        for width, height in zip(sides * 2, sides[::-1] + sides[3:] + sides[:3], strict=True):
            if max(width, height) > 64 * min(width, height):
                continue
            image = noise(width, height)
            np.testing.assert_array_equal(
                read_picture(saved(image, "PNG"), config),
                timm_pixels(image, config),
                err_msg=f"{width} x {height}",
            )


@pytest.mark.parametrize(("resize", "interpolation"), RESIZES)
def test_photos_of_many_sizes_are_read_as_timm_reads_them(resize: str, interpolation: str, tmp_path: Path) -> None:
    files = sorted(unzipped("flowers5_varied_mini", tmp_path).glob("*/*/*.jpg"))[::4]
    config = DataConfig.model_validate({"image_size": 96, "resize": resize, "interpolation": interpolation})
    sizes = set()
    for path in files:
        with Image.open(path) as image:
            np.testing.assert_array_equal(
                read_picture(path.read_bytes(), config), timm_pixels(image, config), err_msg=path.name
            )
            sizes.add(image.size)
    assert len(sizes) > 20


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (3, 400), (401, 6), (9000, 100)])
def test_a_thin_strip_is_read_nearly_as_timm_reads_it(size: tuple[int, int], interpolation: str) -> None:
    config = DataConfig.model_validate({"image_size": 32, "interpolation": interpolation})
    smooth = noise(3, 3).resize(size, Image.Resampling.BICUBIC)
    difference = read_picture(smooth, config).astype(int) - timm_pixels(smooth, config)
    assert np.abs(difference).max() <= 1
    # In noise, bicubic overshoots and is clipped after the first pass, which may be the other one.
    difference = read_picture(noise(*size), config).astype(int) - timm_pixels(noise(*size), config)
    assert np.abs(difference).mean() < 2


def test_a_thin_strip_takes_no_memory_for_what_is_cropped() -> None:
    """Resized first, 1 x 60,000 at 1024 pixels would be 250 GB."""
    pixels = read_picture(noise(1, 60_000), DataConfig(image_size=1024))
    assert pixels.shape == (1024, 1024, 3)


def test_the_cache_holds_what_read_picture_gives(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    (root / "dog" / "gray16.png").write_bytes(GRAY_GRADIENTS["16-bit gray PNG"])
    data = prepare(root, tmp_path, resize="squash", interpolation="bilinear")
    config = DataConfig(image_size=16, resize="squash", interpolation="bilinear")
    for name, pixels in zip(data.names, data.images, strict=True):
        np.testing.assert_array_equal(pixels, read_picture((root / name).read_bytes(), config))


# Awkward pictures, end to end


def test_awkward_pictures_fail_with_all_bad_files_at_once_or_are_skipped(tmp_path: Path) -> None:
    root = unzipped("awkward", tmp_path)
    with (root / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if Path(row["path"]).name not in (".DS_Store", "Thumbs.db")]
    bad = {row["path"] for row in rows if row["pillow_convert_rgb"].startswith("error") or "Bomb" in row["warnings"]}
    assert len(bad) >= 8

    message = problems_of(root, tmp_path, image_size=32)
    assert {line.strip().split(": ")[0] for line in message.splitlines()[1:]} == bad

    data = prepare(root, tmp_path, image_size=32, bad_files="skip")
    assert {file.name for file in data.bad_files} == bad
    assert set(data.names) == {row["path"] for row in rows} - bad
    assert data.class_names == ("daisy", "rose", "tulip")
    assert Duplicate("train/rose/x_crossclass.jpg", "train/tulip/x_dup_b.jpg", "across classes") in data.duplicates
    # Neither black nor white: 16-bit, float and CMYK pictures kept their content.
    for name in (
        "rose/x_16bit_gray.png",
        "rose/x_float.tif",
        "tulip/p_pil_sample_cmyk.jpg",
        "tulip/p_i_trns.png",
    ):
        assert data.images[data.names.index(f"train/{name}")].std() > 10, name


# Arrays instead of files


def test_digits_are_split_and_brightened(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    config = DataConfig(source="digits", image_size=8, test_fraction=0.2)
    data = prepare_data(config, tmp_path / "caches")
    digits = load_digits()
    assert data.class_names == tuple("0123456789")
    assert data.names == tuple(f"digits/{i}" for i in range(1797))
    row = 17
    np.testing.assert_array_equal(data.images[row, :, :, 1], np.rint(digits.images[17] * 255 / 16))
    assert data.labels[row] == digits.target[17]
    assert {split: len(i) for split, i in data.splits.items()} == {"train": 1293, "val": 145, "test": 359}
    assert prepare_data(config, tmp_path / "caches").content_hash == data.content_hash
    assert data.cache_path.name.startswith("digits-8px-")


@pytest.fixture
def miniature_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's own files with 20 pictures each, and the published checksums swapped for theirs."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "downloads" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(seed: int) -> dict[str, object]:
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [i % 10 for i in range(20)]}

    train = [[f"data_batch_{i}", write(f"data_batch_{i}", batch(i))] for i in range(1, 6)]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", batch(6))]])
    meta = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": write("batches.meta", {"label_names": names}),
    }
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return folder


@pytest.mark.parametrize("inside", [False, True], ids=["the folder above", "the folder itself"])
def test_cifar_is_read_from_torchvisions_folder(tmp_path: Path, miniature_cifar: Path, inside: bool) -> None:
    path = miniature_cifar if inside else miniature_cifar.parent
    data = prepare_data(DataConfig(source="cifar10", path=str(path), image_size=32), tmp_path / "caches")
    assert {split: len(i) for split, i in data.splits.items()} == {"train": 90, "val": 10, "test": 20}
    assert data.class_names[3] == "cat"
    assert data.labels[data.names.index("cifar10/test/00013")] == 3
    with (miniature_cifar / "test_batch").open("rb") as file:
        expected = pickle.load(file)["data"][13].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(data.images[data.names.index("cifar10/test/00013")], expected)


def test_a_damaged_torchvision_folder_is_named_and_left_as_it_is(tmp_path: Path, miniature_cifar: Path) -> None:
    (miniature_cifar / "test_batch").write_bytes(b"damaged")
    config = DataConfig(source="cifar10", path=str(miniature_cifar.parent), image_size=32)
    with pytest.raises(DataError, match=r"cifar10 could not be read from .*downloads \(.*corrupted"):
        prepare_data(config, tmp_path / "caches")
    assert (miniature_cifar / "test_batch").read_bytes() == b"damaged"


def test_a_failed_download_says_what_to_do_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/nobody-listens-here.tar.gz")
    with pytest.raises(DataError, match=r"cifar100 could not be downloaded to .* --data DIR, where DIR holds") as error:
        prepare_data(DataConfig(source="cifar100", image_size=32), tmp_path / "caches")
    assert "torchvision's cifar-100-python, or CLASS/*" in str(error.value)


def test_cifar_may_be_an_image_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "cifar", {"train/cat": 3, "train/dog": 3, "test/cat": 1})
    data = prepare(root, tmp_path, source="cifar10")
    assert data.class_names == ("cat", "dog")
    assert "does not exist" in problems_of(tmp_path / "nowhere", tmp_path, source="cifar10")


def test_a_folder_is_read_without_torch(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    program = f"""
import sys, json
from pathlib import Path
from trainer.config import DataConfig
from trainer.data import prepare_data
prepare_data(DataConfig(path={str(root)!r}, image_size=16), Path({str(tmp_path / "caches")!r}))
print(json.dumps([name for name in ("torch", "torchvision", "timm", "sklearn") if name in sys.modules]))
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == []
