"""Folders as data sets are published that are neither splits nor classes: each is refused with a cure that works."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from folders import make_folder, prepare, problems_of

from trainer.masks import masks_inside
from trainer.split_names import splits_of
from trainer.tree import Folder, read_tree

EXPECTED = "expected is CLASS/* or train/CLASS/* (and, if you have them, val/CLASS/* and test/CLASS/*)"
XRAYS = {f"{split}/{kind}": 2 for split in ("train", "val", "test") for kind in ("ill", "well")}


def with_files(root: Path, counts: dict[str, int], files: dict[str, str]) -> Path:
    make_folder(root, counts)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def suggested(message: str) -> Path:
    """The folder of the first --data in a message, as a shell reads it."""
    words = shlex.split(message.partition("--data ")[2].replace(";", " "))
    return Path(words[0])


@pytest.mark.parametrize(
    ("counts", "named", "cure"),
    [
        ({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1, "results": 1}, "train and val", "results"),
        ({"train/cat": 2, "train/dog": 2, "docs": 1}, "train", "docs"),
        ({"Train/0": 2, "Train/1": 2, "Test": 2, "Meta": 2}, "Test and Train", "Meta"),
        ({"seg_train/seg_train/a": 2, "seg_train/seg_train/b": 2, "plots/deep": 1}, "seg_train", "plots"),
        ({"train/cat": 2, "train/dog": 2, "consolidated/cat": 2, "consolidated/dog": 2}, "train", "consolidated"),
    ],
)
def test_folders_beside_splits_are_named_and_moved_away(
    tmp_path: Path, counts: dict[str, int], named: str, cure: str
) -> None:
    root = make_folder(tmp_path / "pets", counts)
    message = problems_of(root, tmp_path)
    verb = "name splits" if " and " in named else "names a split"
    assert f"{named} {verb}, and {cure} names none; move {cure} elsewhere" in message
    (root / cure).rename(tmp_path / "elsewhere")
    assert len(prepare(root, tmp_path).class_names) == 2


@pytest.mark.parametrize(("others", "them"), [(("vals",), "it to val or test"), (("tests", "vals"), "them to val or")])
def test_folders_with_classes_beside_train_may_be_splits(tmp_path: Path, others: tuple[str, ...], them: str) -> None:
    counts = {f"{part}/{kind}": 2 for part in ("train", *others) for kind in ("cat", "dog")}
    message = problems_of(root := make_folder(tmp_path / "pets", counts), tmp_path)
    assert f"; move {' and '.join(others)} elsewhere, or rename {them}" in message
    for name in others:
        (root / name).rename(root / name.removesuffix("s"))
    assert {split for split, found in prepare(root, tmp_path).splits.items() if len(found)} >= {"train", "val"}


@pytest.mark.parametrize("test", ["test/cats", "Test/test/cats", "eval-set/images/cats"])
def test_classes_beside_a_test_split_are_put_into_train(tmp_path: Path, test: str) -> None:
    counts = {f"{kind}/{place}": 2 for kind in ("cats", "dogs") for place in ("in", "out")}
    root = make_folder(tmp_path / "pets", {**counts, test: 1, test.replace("cats", "dogs"): 1})
    top = test.split("/")[0]
    assert f"{top} names a split, and cats and dogs name none; put cats and dogs into a folder train" in problems_of(
        root, tmp_path
    )
    for name in ("cats", "dogs"):
        (root / "train").mkdir(exist_ok=True)
        (root / name).rename(root / "train" / name)
    assert {split: len(indices) for split, indices in prepare(root, tmp_path).splits.items()}["test"] == 2


def test_unlabelled_test_pictures_beside_classes_are_warned_of_with_the_right_cure(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cats": 2, "dogs": 2, "test": 2})
    (notice,) = prepare(root, tmp_path).notices
    assert notice.endswith("if it is one, put cats and dogs into a folder train")
    more = make_folder(tmp_path / "more", {"cats": 2, "dogs": 2, "unlabeled": 2})
    assert prepare(more, tmp_path).notices == (
        "unlabeled is taken for a class; if its pictures have no class, move it elsewhere",
    )


def test_a_single_folder_of_training_classes_beside_other_splits_is_renamed(tmp_path: Path) -> None:
    counts = {f"{top}/{kind}": 2 for top in ("rps/rps", "rps-test-set/rps-test-set") for kind in ("paper", "rock")}
    root = make_folder(tmp_path / "hands", counts)
    assert "rps-test-set names a split, and rps names none; rename rps to train if it has the" in problems_of(
        root, tmp_path
    )
    (root / "rps").rename(root / "train")
    (root / "train" / "rps").rename(root / "train" / "train")
    assert prepare(root, tmp_path).class_names == ("paper", "rock")


@pytest.mark.parametrize(
    ("third", "cure"),
    [("NCT-NONORM", "the others elsewhere, or rename one of them to test;"), ("NCT-TEST", "the other elsewhere;")],
)
def test_data_sets_side_by_side_are_used_alone_or_renamed_to_splits(tmp_path: Path, third: str, cure: str) -> None:
    tops = {"NCT-100K": 4, third: 4, "CRC-VAL-7K": 2, "NCT-OLD": 4}
    root = make_folder(tmp_path / "tissue", {f"{top}/{kind}": tops[top] for top in tops for kind in ("ADI", "DEB")})
    message = problems_of(root, tmp_path)
    assert (
        "; all hold the same folders; if each is a data set, use one of them with --data; if they are splits, "
        f"rename the one with the training pictures to train, and move {cure}"
    ) in message
    (root / "NCT-100K").rename(root / "train")
    (root / "NCT-OLD").rename(tmp_path / "elsewhere")
    (root / third).rename(root / "test")
    found = prepare(root, tmp_path).splits
    assert {split: len(indices) for split, indices in found.items()} == {"train": 8, "val": 4, "test": 8}


@pytest.mark.parametrize(
    ("counts", "below"),
    [
        ({f"archive/{name}": 2 for name in XRAYS}, "archive"),
        ({"archive/my data/cat": 2, "archive/my data/dog": 2}, "archive/my data"),
        ({f"X/X/{split}/{kind}": 2 for split in ("train", "valid") for kind in "ab"} | {"test/test": 2}, "X/X"),
        ({f"dataset/{name}": 2 for name in XRAYS} | {"docs": 1}, "dataset"),
        ({f"v{i}/{name}": 2 for name in XRAYS for i in (1, 2)}, "v1"),
        ({f"chest/{name}": 2 for name in XRAYS} | XRAYS, "chest"),
        ({"train2/old/train/a": 2, "train2/old/train/b": 2, "x/train/a": 2, "x/train/b": 2}, "x"),
    ],
)
def test_a_wrapping_folder_is_refused_with_the_option_that_works(
    tmp_path: Path, counts: dict[str, int], below: str
) -> None:
    root = make_folder(tmp_path / "my pictures", counts)
    message = problems_of(root, tmp_path)
    assert suggested(message) == root / below
    assert len(prepare(suggested(message), tmp_path).class_names) == 2


def test_the_sentence_of_a_wrapping_folder_is_about_the_folder_inside_if_that_is_unclear(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"archive/train/cat": 2, "archive/train/dog": 2, "archive/plots": 1})
    assert f"{root}/archive: train names a split, and plots names none" in problems_of(root, tmp_path)
    assert "one class, cat, to train on" in problems_of(make_folder(tmp_path / "one", {"cat": 2}), tmp_path)


def copied(root: Path, source: str, target: str) -> None:
    shutil.copytree(root / source, tmp := root.with_name("copy"))
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tmp, root / target)


@pytest.mark.parametrize(
    ("counts", "source", "target"),
    [
        (XRAYS, "", "chest_xray"),
        (XRAYS, "", "chest_xray/chest_xray"),
        ({"ill": 3, "well": 3}, "", "cell_images"),
        (XRAYS, "train", "TRAIN"),
        (XRAYS, "test", "Test"),
    ],
)
def test_a_second_copy_is_passed_over_with_a_sentence_only_if_it_is_one(
    tmp_path: Path, counts: dict[str, int], source: str, target: str
) -> None:
    root = make_folder(tmp_path / "lungs", counts)
    plain = prepare(root, tmp_path)
    copied(root, source, target)
    (root / target / "__MACOSX").mkdir()
    data = prepare(root, tmp_path)
    name = max(target.split("/")[0], source)  # of two folders, the one that is sorted first counts
    assert data.content_hash == plain.content_hash or name != target
    assert any(one.startswith(f"{name}: its ") and "are copies of those in" in one for one in data.notices)
    picture = next((root / target).rglob("*.png"))
    changed = picture.read_bytes()
    picture.write_bytes(bytes([*changed[:-20], changed[-20] ^ 1, *changed[-19:]]))  # of the same size
    message = problems_of(root, tmp_path)
    assert target.split("/")[0] in message
    assert "elsewhere" in message or "which mean the same split; keep one of them" in message


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("digitstrain", "digitstest"), ("train", "test")),
        (("trainimages", "valimages", "testimages"), ("train", "val", "test")),
        (("Xtrain", "Xtest", "Ytrain"), ("train", "test", None)),
        (("strain", "contest"), (None, None)),
        (("restrain", "retest"), (None, None)),
        (("Xtest", "Xval"), (None, None)),
        (("train", "mytest"), ("train", None)),
        (("entrenamiento", "prueba"), ("train", "test")),
        (("Treino", "Validação", "Teste"), ("train", "val", "test")),
        (("训练集", "测试集"), ("train", "test")),
        (("data latih", "data uji"), ("train", "test")),
        (("학습", "검증"), ("train", "val")),
        (("تدريب", "تحقق", "اختبار"), ("train", "val", "test")),
        (("بيانات التدريب", "بيانات الاختبار"), ("train", "test")),
        (("آموزش", "اعتبارسنجی", "آزمون"), ("train", "val", "test")),
        (("אימון", "אימות", "מבחן"), ("train", "val", "test")),
        (("प्रशिक्षण", "सत्यापन", "परीक्षण"), ("train", "val", "test")),
        (("Εκπαίδευση", "Επικύρωση", "Δοκιμή"), ("train", "val", "test")),
    ],
)
def test_splits_are_recognised_glued_to_a_name_and_in_other_languages(
    tmp_path: Path, names: tuple[str, ...], splits: tuple[str | None, ...]
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    found = splits_of(read_tree(tmp_path).folders)
    assert tuple(found.get(name) for name in names) == splits


def test_glued_names_without_class_folders_are_never_two_classes(tmp_path: Path) -> None:
    message = problems_of(make_folder(tmp_path / "digits", {"digitstrain": 3, "digitstest": 3}), tmp_path)
    assert "digitstrain holds pictures (digitstrain/000.png) and no class folder" in message
    root = make_folder(tmp_path / "two", {f"digits{split}/{kind}": 2 for split in ("train", "test") for kind in "01"})
    assert len(prepare(root, tmp_path).splits["test"]) == 4


@pytest.mark.parametrize(
    "names",
    [
        ("fold_0", "fold_1", "fold_2"),
        ("part_A", "part_B"),
        ("images_001/images", "images_002/images"),
        ("Batch1", "b"),
        ("HAM10000_images_part_1", "HAM10000_images_part_2"),
        ("scans part A of B", "scans part B of B"),
        ("ds0/img", "ds1/img"),
        ("100CANON", "101CANON"),
        ("100APPLE", "102APPLE"),
        ("New folder", "New folder (2)"),
        ("Neuer Ordner", "Neuer Ordner (2)"),
    ],
)
def test_numbered_parts_of_a_data_set_are_not_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = make_folder(tmp_path / "parts", dict.fromkeys(names, 2))
    if "b" in names:
        assert prepare(root, tmp_path).class_names == names
        return
    message = problems_of(root, tmp_path)
    tops = [name.split("/")[0] for name in names]
    assert f"{' and '.join(tops[-2:])} are names of parts of a data set, not of classes; {EXPECTED}" in message
    cure = make_folder(tmp_path / "cure", {f"train/{name}": 2 for name in names})
    assert prepare(cure, tmp_path).class_names == tuple(tops)


@pytest.mark.parametrize(
    "names",
    [
        ("class_1", "class_2"),
        ("0", "1"),
        ("Type_1", "Type_2"),
        ("c0", "c1"),
        ("A", "B"),
        ("red_part_1", "top_part_1"),
        ("image of A", "image of B"),
        ("part_1_dog", "part_2_cat"),
        ("100_rose", "101_lily"),
        ("10000001", "10000002"),
        ("New folder", "cat"),
    ],
)
def test_numbered_classes_stay_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert prepare(make_folder(tmp_path / "data", dict.fromkeys(names, 2)), tmp_path).class_names == names


def test_splits_inside_the_classes_and_parts_behind_wrappers_are_refused(tmp_path: Path) -> None:
    inside = make_folder(tmp_path / "inside", {f"{kind}/{split}": 2 for kind in "ab" for split in ("train", "test")})
    assert "if a and b are the classes, put them into the splits: test/a/*" in problems_of(inside, tmp_path)
    counts = {f"{domain}/images/{kind}": 2 for domain in ("dslr", "amazon") for kind in ("bag", "cup")}
    root = make_folder(tmp_path / "office", counts)
    message = problems_of(root, tmp_path)
    assert "amazon and dslr hold no pictures themselves, but the same folders (bag, cup)" in message
    assert "if each is a data set, use one of them with --data;" in message
    make_folder(root / "dslr" / "images" / "cup", {"more": 1})  # now it has most of the pictures: no test split has
    message = problems_of(root, tmp_path)
    assert suggested(message) == root / "dslr" / "images"
    assert prepare(suggested(message), tmp_path).class_names == ("bag", "cup")


@pytest.mark.parametrize(
    ("counts", "masks"),
    [
        ({"images": 3, "masks": 3}, "masks"),
        ({"images": 3, "annotations/trimaps": 3}, "annotations"),
        ({"COVID/images": 2, "COVID/masks": 2, "Normal/images": 2, "Normal/masks": 2}, "COVID/masks"),
        ({"train/images": 2, "train/masks": 2, "val/images": 2, "val/masks": 2}, "train/masks"),
        ({"archive/JPEGImages": 3, "archive/SegmentationClass": 2}, "archive/SegmentationClass"),
        ({"images": 3, "gt": 3}, "gt"),
        ({"original": 3, "GroundTruth": 3}, "GroundTruth"),
        ({"input": 3, "target": 3}, "target"),
        ({"train/rgb": 2, "train/seg": 2}, "train/seg"),
    ],
)
def test_masks_are_never_a_class(tmp_path: Path, counts: dict[str, int], masks: str) -> None:
    root = make_folder(tmp_path / "cells", counts)
    for file in [*root.rglob("masks/*.png")][::2]:
        file.rename(file.with_name(f"{file.stem}_mask.png"))
    assert f"{masks} holds pictures of the same names as " in (message := problems_of(root, tmp_path))
    assert "so it seems to hold masks" in message
    assert "; move such folders elsewhere, or rename them if they are classes; " in message
    assert EXPECTED in message


@pytest.mark.parametrize(
    ("counts", "masks", "more"),
    [
        ({"train/ill/images": 4, "train/ill/lung masks": 4, "train/well/images": 4}, "train/ill/lung masks", 0),
        ({"train/ill/original": 4, "train/ill/label": 4, "train/well/a": 4}, "train/ill/label", 0),
        ({"Sprat/Sprat": 4, "Sprat/Sprat GT": 4, "Trout/Trout": 4, "Trout/Trout GT": 4}, "Sprat/Sprat GT", 1),
        ({"a/x/scans": 4, "a/x/scans_groundtruth": 4, "b": 4}, "a/x/scans_groundtruth", 0),
        ({"car/Mustang": 4, "car/Boss": 4, "van/Transit GT": 4}, None, 0),
        ({"mask/x": 4, "no_mask/x": 4, "face": 4, "face mask": 4}, None, 0),
    ],
)
def test_folders_inside_classes_that_may_hold_masks_are_told_and_stay_pictures_as_before(
    tmp_path: Path, counts: dict[str, int], masks: str | None, more: int
) -> None:
    data = prepare(make_folder(tmp_path / "cells", counts), tmp_path)
    told = [line for line in data.notices if "so it may hold masks" in line]
    assert len(told) == (masks is not None)
    assert not told or (told[0].startswith(f"{masks} holds pictures of the same names as "))
    assert not told or ("(so are those of 1 more such folders)" in told[0]) == (more == 1)
    assert len(data.names) == sum(counts.values())


def test_thousands_of_folders_with_a_word_for_masks_take_no_longer_than_others() -> None:
    """With the cube of their number, it would end in days."""
    folders = [Folder(f"label_{number}", (), ()) for number in range(10_000)]
    assert masks_inside([Folder("a", (), tuple(folders))]) == []


def test_splits_of_an_unknown_language_are_renamed_and_the_test_pictures_are_not_suggested(tmp_path: Path) -> None:
    counts = {f"{name}/{kind}": count for name, count in (("ujian", 2), ("pelajaran", 3)) for kind in ("cat", "dog")}
    root = make_folder(tmp_path / "pets", counts)
    message = problems_of(root, tmp_path)
    assert "if pelajaran and ujian are splits, rename them to train, val and test; expected is" in message
    assert suggested(message) == root / "pelajaran"
    beside = make_folder(tmp_path / "beside", {"cat": 4, "dog": 4, "ujian/cat": 2, "ujian/dog": 2})
    message = problems_of(beside, tmp_path)
    assert "ujian holds folders of the same names as those beside it (cat, dog)" in message
    assert "--data" not in message


@pytest.mark.parametrize("test", [("test_fake", "test_real"), ("test_real",), ()])
@pytest.mark.parametrize("train", [("train_fake", "train_real"), ("train/fake", "train/real")])
def test_the_words_beside_a_split_may_be_the_classes(
    tmp_path: Path, train: tuple[str, ...], test: tuple[str, ...]
) -> None:
    root = make_folder(tmp_path / "faces", dict.fromkeys([*train, *test], 3))
    moved = [name for name in (*test, *train) if "_" in name]
    if "train/fake" in train and len(test) < 2:  # one folder is no pair of classes
        assert prepare(root, tmp_path).class_names == ("fake", "real")
        return
    message = problems_of(root, tmp_path)
    targets = [name.replace("_", "/") for name in moved]
    listed = f"{', '.join(targets[:-1])} and {targets[-1]}"
    assert f"; if fake and real are the classes, move the folders to {listed}; {EXPECTED}" in message
    assert "keep" not in message
    for name, target in zip(moved, targets, strict=True):
        (root / target).parent.mkdir(exist_ok=True)
        (root / name).rename(root / target)
    assert prepare(root, tmp_path).class_names == ("fake", "real")


def test_two_data_sets_with_splits_are_no_single_split(tmp_path: Path) -> None:
    names = [f"{which}_{split}/{kind}" for which in "AB" for split in ("train", "test") for kind in ("cat", "dog")]
    message = problems_of(make_folder(tmp_path / "pets", dict.fromkeys(names, 2)), tmp_path)
    assert "A_test and B_test, which mean the same split, and A_train and B_train, which mean the same split" in message
    assert "if A and B are data sets, keep the folders of one of them, or merge them; if A and B are the cl" in message
    assert "move the folders to test/A, train/A, test/B and train/B" in message


def test_classes_whose_names_read_as_splits_are_put_into_train(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "jobs", {"Trainer": 3, "Tester": 3})
    message = problems_of(root, tmp_path)
    cure = "the names Tester and Trainer read as splits; if they are the classes, move them to train/Tester and train/"
    assert cure in message
    (root / "train").mkdir()
    for name in ("Trainer", "Tester"):
        (root / name).rename(root / "train" / name)
    assert prepare(root, tmp_path).class_names == ("Tester", "Trainer")
    plain = make_folder(tmp_path / "plain", {"train": 3, "test": 3})
    assert "read as splits" not in problems_of(plain, tmp_path)


@pytest.mark.parametrize(("train", "val"), [("Dog", "dog"), ("Ärger", "ärger"), ("cat 1", "cat1")])
def test_a_class_of_validation_that_differs_in_case_is_renamed(tmp_path: Path, train: str, val: str) -> None:
    root = make_folder(tmp_path / "pets", {f"train/{train}": 3, "train/fox": 3, f"val/{val}": 2, "val/fox": 2})
    make_folder(root, {"val/wolf": 1})
    message = problems_of(root, tmp_path)
    assert f"val/{val}: this class has no training picture; rename it to {train}" in message
    assert "val/wolf: this class has no training picture; add some or remove its folder" in message
    (root / "val" / val).rename(root / "val" / train)
    (root / "val" / "wolf").rename(tmp_path / "wolf")
    assert len(prepare(root, tmp_path).splits["val"]) == 4


@pytest.mark.parametrize(("train", "test"), [("oak_left.lobe_T2_N0", "oak"), ("cat", "cats"), ("Cat", "cat 2")])
def test_a_class_whose_name_goes_on_in_another_split_is_told_the_name(tmp_path: Path, train: str, test: str) -> None:
    counts = {f"train/{train}": 3, "train/fox": 3, "train/f": 3, f"test/{test}": 2, "test/fox": 2, "test/f": 1}
    root = make_folder(tmp_path / "lungs", counts)
    (cure,) = (line for line in problems_of(root, tmp_path).splitlines() if "no training picture" in line)
    assert cure.endswith(f"; if it is {train} of train, give both the same name; else add some or remove its folder")
    (root / "test" / test).rename(root / "test" / train)
    assert len(prepare(root, tmp_path).splits["test"]) == 5
    numbers = make_folder(tmp_path / "digits", {"train/10": 3, "train/2": 3, "test/1": 2, "test/2": 2})
    assert "test/1: this class has no training picture; add some or remove" in problems_of(numbers, tmp_path)


def test_parts_with_a_table_are_refused_with_the_lines_for_the_table(tmp_path: Path) -> None:
    counts = {"HAM10000_images_part_1": 4, "HAM10000_images_part_2": 4}
    root = make_folder(tmp_path / "skin", counts)
    rows = ["lesion_id,image_id,dx,age"]
    for number, file in enumerate(sorted(root.rglob("*.png"))):
        file.rename(file.with_name(f"ISIC_{number:07}.png"))
        rows.append(f"HAM_{number // 2},ISIC_{number:07},{'nv' if number % 2 else 'mel'},{30 + number}")
    (root / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    message = problems_of(root, tmp_path)
    assert "HAM10000_images_part_1 and HAM10000_images_part_2 are names of parts of a data set" in message
    assert 'labels = "HAM10000_metadata.csv"\n  columns = { file = "image_id", label = "..." }' in message
    columns = {"file": "image_id", "label": "dx"}
    data = prepare(root, tmp_path, labels="HAM10000_metadata.csv", columns=columns)
    assert data.class_names == ("mel", "nv")


@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
@pytest.mark.parametrize("ending", ["_mask", "_mask_1", "-Segmentation"])
def test_masks_beside_their_pictures_are_counted_and_refused(
    tmp_path: Path, splits: tuple[str, ...], ending: str
) -> None:
    root = make_folder(tmp_path / "breast", {f"{split}{kind}": 6 for split in splits for kind in ("benign", "normal")})
    folder = root / splits[0] / "benign"
    for number in range(2):
        (folder / f"{number:03}.png").rename(folder / f"{number + 2:03}{ending}.png")
        if number == 0:  # a single such name may be an accident
            assert prepare(root, tmp_path).notices == ()
    name = f"{splits[0]}benign/002{ending}.png"
    message = problems_of(root, tmp_path)
    assert f"2 files have the names of masks of pictures beside them, as in data for segmentation: {name}" in message
    assert "beside 002.png; move the masks out of the data folder" in message
    for file in folder.glob("*[a-z1]*.png"):
        if ending in file.name:
            file.rename(tmp_path / file.name)
    assert prepare(root, tmp_path).class_names == ("benign", "normal")


NAMES = ("000", "001", "002")


@pytest.mark.parametrize(
    ("counts", "files", "named"),
    [
        (
            {"images/train": 3, "images/val": 3},
            {f"labels/train/{name}.txt": "0 .5" for name in NAMES},
            "000.txt",
        ),
        (
            {"train/images": 3, "valid/images": 3},
            {f"train/labels/{name}.txt": "0 .5" for name in NAMES},
            "000.txt",
        ),
        ({"train2017": 3, "val2017": 3}, {"annotations/instances_train2017.json": "{}"}, "instances_train2017.json"),
        ({"train": 3, "valid": 3}, {"train/_annotations.coco.json": "{}"}, "train/_annotations.coco.json"),
        ({"images": 3}, {f"annotations/{name}.xml": "<a/>" for name in NAMES}, "annotations/000.xml"),
        ({"train_zip/train": 3, "test_zip/test": 3}, {f"train_zip/train/{name}.xml": "" for name in NAMES}, "000.xml"),
    ],
)
def test_data_for_detection_are_named_as_such(
    tmp_path: Path, counts: dict[str, int], files: dict[str, str], named: str
) -> None:
    message = problems_of(with_files(tmp_path / "boxes", counts, files), tmp_path)
    assert f"{named} seems to describe objects in the pictures, as data for detection does" in message
    assert "a classifier needs one class for each picture, from folders or from a table of labels" in message


def test_boxes_beside_class_folders_change_nothing(tmp_path: Path) -> None:
    counts = {"train/n1": 3, "train/n2": 3}
    root = with_files(tmp_path / "net", counts, {f"Annotations/n1/{name}.xml": "" for name in NAMES})
    assert prepare(root, tmp_path).class_names == ("n1", "n2")


def test_class_folders_may_be_wrapped_inside_the_splits(tmp_path: Path) -> None:
    counts = {f"{split}/images/{kind}": 2 for split in ("train", "test") for kind in ("cat", "dog")}
    assert prepare(make_folder(tmp_path / "pets", counts), tmp_path).class_names == ("cat", "dog")
    tiny = make_folder(tmp_path / "tiny", {"train/n1/images": 2, "train/n2/images": 2, "val/images": 2})
    assert "val holds pictures (val/images/000.png) and no class folder" in problems_of(tiny, tmp_path)


def test_pictures_to_predict_beside_a_test_split_are_passed_over(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {f"{split}/{kind}": 2 for split in ("train", "test") for kind in "ab"})
    plain = prepare(root, tmp_path)
    make_folder(root, {"images to test": 2})
    data = prepare(root, tmp_path)
    assert data.fingerprint == plain.fingerprint
    assert data.notices[0].startswith("images to test: 2 pictures in no class folder, so unlabelled and not used;")
    assert data.notices[0].endswith(f"search predict EXPORT {shlex.quote(f'{root}/images to test')}")


@pytest.mark.parametrize(
    ("counts", "archives", "told"),
    [
        ({"cat": 2, "dog": 2}, ["bird.zip"], "bird.zip is an archive, so it is not read; if a class or a split is in"),
        ({"train/cat": 2, "train/dog": 2}, ["test.tar.gz"], "test.tar.gz is an archive, so it is not read; "),
        ({"train/cat": 2, "train/dog": 2}, ["train/bird.7z"], "train/bird.7z is an archive, so it is not read; "),
        ({"cat": 2, "dog": 2}, ["a.rar", "b.zip.001"], "2 files are archives, so they are not read, the first: a.rar"),
        ({"cat": 2, "dog": 2}, ["cat.zip", "Dog.tar", "notes.gz"], ""),
    ],
)
def test_archives_that_were_not_extracted_are_told(
    tmp_path: Path, counts: dict[str, int], archives: list[str], told: str
) -> None:
    root = with_files(tmp_path / "pets", counts, dict.fromkeys(archives, "PK"))
    notices = prepare(root, tmp_path).notices
    assert [one[: len(told)] for one in notices] == ([told] if told else [])


@pytest.mark.parametrize(
    ("counts", "index"),
    [
        ({"a/abbey": 2, "a/airport": 2, "b/bakery": 2, "B/bar": 2, "c/castle": 2}, "B, a, b and c"),
        ({"train/a/abbey": 2, "train/b/bakery": 2}, "a and b"),
        ({"A/A1": 2, "B/cup": 2}, ""),
        ({"A": 2, "B": 2}, ""),
        ({"ab/abbey": 2, "ba/bakery": 2}, ""),
    ],
)
def test_an_index_by_first_letters_is_told(tmp_path: Path, counts: dict[str, int], index: str) -> None:
    notices = prepare(make_folder(tmp_path / "places", counts), tmp_path).notices
    start = f"{index} seem to be an index, because the names in each of them begin with its letter; if the folders in"
    assert [one[: len(start)] for one in notices] == ([start] if index else [])


def test_an_index_by_the_letters_of_ids_is_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "landmarks", {"0/1": 2, "0/a": 2, "f/c": 2})
    assert prepare(root, tmp_path).notices == ()
    for file in root.glob("*/*/*.png"):
        file.rename(file.with_name(f"{file.parent.parent.name}{file.parent.name}{file.name}"))
    assert prepare(root, tmp_path).notices[0].startswith("0 and f seem to be an index")


@pytest.mark.parametrize("val", ["val_256", "images_evaluation"])
def test_a_flat_split_beside_a_folder_of_classes_makes_no_two_classes(tmp_path: Path, val: str) -> None:
    root = make_folder(tmp_path / "places", {"data_256/abbey": 2, "data_256/bar": 2, val: 3})
    message = problems_of(root, tmp_path)
    assert f"{val} names a split, and data_256 names none; rename data_256 to train if it has the training" in message


def test_folders_that_differ_in_the_words_of_splits_are_no_classes_beside_another_folder(tmp_path: Path) -> None:
    """Market-1501."""
    root = make_folder(tmp_path / "market", {"bounding_box_train": 4, "bounding_box_test": 4, "query": 2})
    (root / "gt_query").mkdir()
    (root / "gt_query" / "000_good.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    message = problems_of(root, tmp_path)
    assert "bounding_box_test and bounding_box_train name splits, and query names none; move query elsewhere" in message
    assert "gt_query" not in message
