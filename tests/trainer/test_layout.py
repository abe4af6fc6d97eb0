"""Folders are splits or classes by their names, as people write them; a layout that is neither is refused."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from folders import make_folder, names_in, prepare, problems_of

from trainer.layout import read_layout
from trainer.split_names import split_of
from trainer.tree import File, Folder

EXPECTED = "expected is CLASS/* or train/CLASS/* (and, if you have them, val/CLASS/* and test/CLASS/*)"


def split_folders(root: Path, train: str, val: str, test: str) -> Path:
    """Three folders of two classes each."""
    parts = ((train, 4), (val, 2), (test, 1))
    return make_folder(root, {f"{part}/{name}": count for part, count in parts for name in ("cat", "dog")})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("TRAINING", "train"),
        ("seg_train", "train"),
        ("train.set", "train"),
        ("My Training Set", "train"),
        ("valid", "val"),
        ("Dev", "val"),
        ("2021-validation", "val"),
        ("test-set", "test"),
        ("Eval", "test"),
        ("imgs.evaluation", "test"),
        ("train2017", "train"),
        ("test1", "test"),
        ("valset", "val"),
        ("trainImages", "train"),
        ("TestSet", "test"),
        ("trainA", "train"),
        ("set", None),
        ("2017", None),
        ("settest", None),
        ("trains", None),
        ("strain", None),
        ("contest", None),
        ("train_test", None),  # of both: nobody can tell
        ("device", None),
        ("", None),
    ],
)
def test_a_split_is_a_word_of_a_folders_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Valid", "Test"),
        ("TRAINING", "DEV", "TESTING"),
        ("train", "validate", "test"),
        ("training_set", "validation_set", "test_set"),
        ("birds-train", "birds-val", "birds-eval"),
        ("flowers train", "flowers dev", "flowers evaluation"),
        ("v2.train", "v2.valid", "v2.test"),
        ("train2017", "val2017", "test2017"),
        ("TrainSet", "valset", "testImages"),
        ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
        ("train/Training", "val/validation", "test/test"),
    ],
)
def test_splits_are_recognised_as_people_name_them(tmp_path: Path, train: str, val: str, test: str) -> None:
    data = prepare(split_folders(tmp_path / "pets", train, val, test), tmp_path)
    assert data.class_names == ("cat", "dog")
    assert {split: len(indices) for split, indices in data.splits.items()} == {"train": 8, "val": 4, "test": 2}
    assert names_in(data, "val") == {f"{val}/{name}/{i:03}.png" for name in ("cat", "dog") for i in range(2)}
    assert data.notices == ()


def test_a_class_may_bear_the_name_of_a_split_inside_a_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "vehicles", {"train/train": 2, "train/car": 2, "test/train": 1, "test/car": 1})
    assert prepare(root, tmp_path).class_names == ("car", "train")


def test_split_names_beside_other_folders_with_pictures_are_classes_and_that_is_said(tmp_path: Path) -> None:
    data = prepare(make_folder(tmp_path / "vehicles", {"car": 2, "train/steam": 2, "bus": 2}), tmp_path)
    assert data.class_names == ("bus", "car", "train")
    assert data.notices == (
        "train is taken for a class, not for a split, because bus and car name no split; if it is one, move bus and "
        "car elsewhere",
    )
    both = prepare(make_folder(tmp_path / "more", {"Test": 2, "train": 2, "car": 2}), tmp_path)
    assert both.notices[0].startswith("Test and train are taken for classes, not for splits, because car names no")


def test_folders_without_a_picture_lie_beside_splits_unnoticed(tmp_path: Path) -> None:
    root = split_folders(tmp_path / "pets", "train", "val", "test")
    (root / "docs").mkdir()
    (root / "train_labels").mkdir()
    for file in ("docs/README.md", "train_labels/000.xml", "notes.txt"):
        (root / file).write_text("x")
    data = prepare(root, tmp_path)
    assert (data.class_names, len(data.splits["test"]), data.notices) == (("cat", "dog"), 2, ())


def test_files_without_the_ending_of_a_picture_are_pictures_all_the_same(tmp_path: Path) -> None:
    root = split_folders(tmp_path / "pets", "Train", "Dev", "Test")
    for file in list(root.rglob("*.png")):
        file.rename(file.with_suffix(""))
    assert len(prepare(root, tmp_path).splits["val"]) == 4


@pytest.mark.parametrize("names", [("val", "test"), ("Valid", "Testing"), ("test",), ("dev", "eval_set")])
def test_splits_without_train_are_refused_with_the_layout(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = make_folder(tmp_path / "pets", {f"{name}/{kind}": 2 for name in names for kind in ("cat", "dog")})
    message = problems_of(root, tmp_path)
    assert all(name in message for name in names)
    assert "and no train folder" in message
    assert EXPECTED in message


@pytest.mark.parametrize(
    "names", [("train", "training"), ("Train", "train"), ("train", "val", "Dev"), ("train", "test", "eval-set")]
)
def test_two_folders_for_one_split_are_refused_with_the_layout(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = make_folder(tmp_path / "pets", {f"{name}/{kind}": 2 for name in names for kind in ("cat", "dog")})
    message = problems_of(root, tmp_path)
    assert " and ".join(sorted(names[-2:])) in message
    assert "which mean the same split; keep one of them" in message
    assert EXPECTED in message


@pytest.mark.parametrize(
    "tops",
    [("fold1", "fold2"), ("2019", "2020", "2021"), ("part_A", "part_B"), ("consolidated", "resized")],
)
def test_top_folders_whose_folders_share_their_names_are_refused(tmp_path: Path, tops: tuple[str, ...]) -> None:
    root = make_folder(tmp_path / "pets", {f"{top}/{kind}": 2 for top in tops for kind in ("cat", "dog", "emu")})
    message = problems_of(root, tmp_path)
    assert "hold no pictures themselves, but the same folders (cat, dog, emu)" in message
    assert EXPECTED in message
    classes = make_folder(
        tmp_path / "cure", {f"train/{top}/{kind}": 2 for top in tops for kind in ("cat", "dog", "emu")}
    )
    assert prepare(classes, tmp_path).class_names == tuple(sorted(tops))


def test_one_shared_folder_or_a_few_do_not_make_classes_into_parts(tmp_path: Path) -> None:
    wrapped = make_folder(tmp_path / "wrapped", {"cat/images": 2, "dog/images": 2})
    assert prepare(wrapped, tmp_path).class_names == ("cat", "dog")
    places = {"cat": ("home", "park", "roof"), "dog": ("park", "yard", "lake", "home", "hill")}
    by_place = make_folder(tmp_path / "places", {f"{kind}/{place}": 1 for kind in places for place in places[kind]})
    assert prepare(by_place, tmp_path).class_names == ("cat", "dog")
    own = make_folder(tmp_path / "own", {"cat": 1, "dog": 1, "cat/old": 1, "cat/new": 1, "dog/old": 1, "dog/new": 1})
    assert prepare(own, tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "counts",
    [
        {"train": 3, "test": 2},
        {"Train": 2},
        {"train/train": 3, "val/val": 2},
        {"train2017": 3, "val2017": 2},
        {"trainset": 3, "testset": 2},
        {"trainImages": 3, "testImages": 2},
        {"train": 3, "test1": 2},
    ],
)
def test_splits_without_class_folders_are_never_two_classes(tmp_path: Path, counts: dict[str, int]) -> None:
    message = problems_of(make_folder(tmp_path / "pets", counts), tmp_path)
    assert "holds pictures" in message
    assert "and no class folder, so their classes are not known" in message
    assert EXPECTED in message


def test_pictures_beside_the_class_folders_are_passed_over_with_a_sentence(tmp_path: Path) -> None:
    root = split_folders(tmp_path / "pets", "train", "val", "test")
    make_folder(tmp_path / "other", {"loose": 2})
    for i in range(2):
        (tmp_path / "other" / "loose" / f"{i:03}.png").rename(root / "train" / f"sheet{i}.png")
    data = prepare(root, tmp_path)
    assert len(data.splits["train"]) == 8
    assert data.notices == (
        "2 pictures lie beside the class folders, not in one, and are not used, the first: train/sheet0.png",
    )


HASHES = {
    "flat": "6e620b635508b2b50feccab352b21d2d44c6e7107520d6c92332b2a002ec4675",
    "split": "8b221b0f332a318a30ab59415da3c4bd12a67f2e12c9923455e1d5ae73b5f9c7",
    "nested": "df4fc61f26cbc24de36a7d9369dab078a0671130c814bfe7e26211ee678b4589",
}
FINGERPRINTS = {
    "flat": "6392c546c05a885ff79013a7780090fd415a3986cf84dd9ebbcb931dfea2f746",
    "split": "80f3a59f97d083ed0324ce1176a87822771fb350a9201713645958b920d64d9e",
    "nested": "d18420228ed93d6822e53172e2b7779df4679ac89af2ce7cdf21d6baaaf0ecb3",
}
FIRST_FOLDS = {"flat": [2, 3, 7, 10, 14, 18], "split": [3, 4, 7, 8, 12, 16], "nested": [0, 4, 7, 8, 10, 14]}
COUNTS = {
    "flat": {"cat": 10, "dog": 10},
    "split": {"train/cat": 6, "train/dog": 6, "valid/cat": 2, "valid/dog": 2, "test/cat": 1, "test/dog": 1},
    "nested": {"cat": 5, "cat/old": 5, "dog": 6},
}


@pytest.mark.parametrize("layout", HASHES)
def test_folders_that_were_always_right_have_the_contents_and_splits_of_before(tmp_path: Path, layout: str) -> None:
    """Golden, from before splits were recognised by more names: a change here ends every study of such a folder."""
    number = 0
    for folder, count in COUNTS[layout].items():
        (tmp_path / layout / folder).mkdir(parents=True)
        for i in range(count):
            number += 1
            content = f"P2 1 1 255 {number}\n".encode()  # a picture whose bytes no library decides
            (tmp_path / layout / folder / f"{i}.pgm").write_bytes(content)
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2} if layout == "flat" else {}
    data = prepare(tmp_path / layout, tmp_path, image_size=8, **fractions)
    assert data.content_hash == HASHES[layout]
    assert data.fingerprint == FINGERPRINTS[layout]
    np.testing.assert_array_equal(data.fold(0, 3, 0).splits["val"], FIRST_FOLDS[layout])


def test_ten_thousand_classes_are_read_in_seconds() -> None:
    """It took two minutes when each folder was compared with each other one."""
    names = [f"class {number}" for number in range(10_000)]
    folders = [Folder(name, (File(f"{name}/{name}.jpg", Path(name), None),), ()) for name in names]
    begin = time.process_time()
    layout = read_layout(Folder("", (), tuple(folders)), "plants")
    assert len(layout.train_classes) == len(names)
    assert time.process_time() - begin < 30
