"""What a user should know of the pictures is said in numbers, by check and by launch."""

from __future__ import annotations

import io
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_check import make_pictures, study

from search.devices import WorkerDevice
from search.figures.confusion import table_of, write_confusion
from search.paths import Runs
from search.plan.check import check_study
from search.plan.data_warnings import never_predicted, warnings_about
from search.plan.meaning import text_of_check
from search.study.gain import wilson_interval
from trainer.config import DataConfig
from trainer.data import prepare_data


def warnings_of(folder: Path, tmp_path: Path, **settings: Any) -> list[str]:
    config = DataConfig.model_validate({"path": str(folder), "image_size": 8, **settings})
    return list(warnings_about(prepare_data(config, tmp_path / "cache"), config))


def test_classes_without_a_validation_picture_are_named(tmp_path: Path) -> None:
    counts = {f"train/{name}": 60 for name in "abc"} | {"val/a": 100}
    folder = make_pictures(tmp_path, counts)
    assert warnings_of(folder, tmp_path) == [
        "2 of 3 classes have no validation picture, so no trial is judged by them: b, c"
    ]
    assert warnings_of(folder, tmp_path, folds=5) == []  # each fold has some of each class


@pytest.mark.parametrize("folds", [0, 5])
def test_classes_without_a_test_picture_or_with_one_are_named(tmp_path: Path, folds: int) -> None:
    counts = {f"train/{name}": 60 for name in "abcd"} | {f"val/{name}": 30 for name in "abcd"}
    folder = make_pictures(tmp_path, counts | {"test/a": 20, "test/c": 1})
    assert warnings_of(folder, tmp_path, folds=folds) == [
        "2 of 4 classes have no test picture, so the test of an export says nothing of them: b, d; more pictures of "
        "them help, in the test split if it is not drawn",
        "1 of 4 classes have one test picture each, so the recall of each will be 0 % or 100 % (with Wilson's 95 % "
        "intervals, 0 to 79 % or 21 to 100 %): c; more pictures of them help, in the test split if it is not drawn",
    ]
    low, high = wilson_interval(1, 1)
    assert (round(low, 2), high) == (0.21, 1)


def test_a_drawn_test_split_without_a_class_is_told(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"healthy": 120, "sick": 2})
    told = [line for line in warnings_of(folder, tmp_path, val_fraction=0.3, test_fraction=0.25) if "test" in line]
    (line,) = told
    assert line.startswith("1 of 2 classes have no test picture, so the test of an export says nothing of them: sick")
    assert not any("test" in line for line in warnings_of(folder, tmp_path, val_fraction=0.3, test_fraction=0))


@pytest.mark.parametrize(
    ("names", "dates"),
    [
        (("2023-01-04", "2023-01-05"), 2),
        (("20230104", "20230105"), 2),
        (("2023_01", "2023_02", "2024_01"), 3),
        (("2023", "1999"), 2),
        (("4.1.2023", "31-12-2023"), 2),
        (("2023-01-04 Rome", "2023-01-05_Milan"), 2),
        (("Photos from 2023", "Photos from 2024"), 2),
        (("Audi A4 2023", "2023 Audi"), 0),
        (("2023-01-04", "2023-01-05", "owl"), 2),
        (("1024", "2048"), 0),
        (("20230104", "owl"), 0),
        (("2023-13", "2023-14"), 0),
        (("2023-01-32", "2023-01-33"), 0),
    ],
)
def test_classes_that_look_like_dates_are_told(tmp_path: Path, names: tuple[str, ...], dates: int) -> None:
    folder = make_pictures(tmp_path / "data", dict.fromkeys(names, 3))
    (folder / "labels.csv").write_text(
        "file,label\n" + "".join(f"{file.relative_to(folder)},{file.parent.name}\n" for file in folder.rglob("*.png"))
    )
    for settings, cure in (
        ({}, "put the pictures into folders of their classes, or name a table of labels (data.labels)"),
        ({"labels": "labels.csv"}, "name the column that has the classes (data.columns)"),
    ):
        found = [one for one in warnings_of(folder, tmp_path, **settings) if "look like dates" in one]
        told = (
            f"{dates} of {len(names)} classes look like dates ({', '.join(sorted(names)[:dates])}); if they say when "
        )
        assert found == ([f"{told}the pictures were taken, {cure}"] if dates else [])


def test_classes_with_fewer_groups_than_folds_are_counted(tmp_path: Path) -> None:
    """The five pictures of c have no group, so each counts as one."""
    folder = make_pictures(tmp_path / "data", {"a": 9, "b": 8, "c": 5})
    for name, groups in (("a", 3), ("b", 4)):
        for i, file in enumerate(sorted((folder / name).iterdir())):
            file.rename(file.with_name(f"{name}v{i % groups}_{file.name}"))
    told = "fewer groups than the"
    settings = {"group_by": "^([ab]v[0-9])_", "test_fraction": 0.0}
    (sentence,) = [one for one in warnings_of(folder, tmp_path, folds=4, **settings) if told in one]
    assert sentence.startswith(
        "1 of 3 classes have fewer groups than the 4 folds, so some folds have no picture of them"
    )
    assert "to validate on: a (3); fewer folds" in sentence
    (sentence,) = [one for one in warnings_of(folder, tmp_path, folds=5, **settings) if told in one]
    assert "to validate on: a (3), b (4); fewer folds" in sentence
    for asked in ({"folds": 3, **settings}, settings, {"folds": 5}):
        assert not [one for one in warnings_of(folder, tmp_path, **asked) if told in one]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("cat", "Cat", "dog"), "the classes 'Cat' and 'cat' differ only in case"),
        (("cat", "cat ", "dog"), "the classes 'cat' and 'cat ' differ only in case"),
        (("cat", "cat\u200b", "dog"), "the classes 'cat' and 'cat\\u200b' differ only in case"),
        (("cat", "\u0441at", "dog"), "the classes 'cat' and '\\u0441at' differ only in case"),
        (("KOT", "\u041a\u041e\u0422", "dog"), "the classes 'KOT' and '\\u041a\\u041e\\u0422' differ only in case"),
        (("gray wolf", "gray_wolf", "dog"), "the classes 'gray wolf' and 'gray_wolf' differ only in case"),
        (("gray-wolf", "Gray Wolf", "dog"), "the classes 'Gray Wolf' and 'gray-wolf' differ only in case"),
        (("owl's", "owl\u2019s", "dog"), "the classes \"owl's\" and 'owl\\u2019s' differ only in case"),
        (("\u2764", "\u2764\ufe0f", "dog"), "the classes '\u2764' and '\\u2764\\ufe0f' differ only in case"),
        (
            ("\u06a9\u062a", "\u0643\u062a", "dog"),
            "the classes '\\u0643\\u062a' and '\u06a9\u062a' differ only in case",
        ),
        (("a", "\u0430", "\u03b1", "-", "_"), ""),  # symbols and letters of several alphabets
        (("3_1", "31", "-1", "caf\u00e9", "cafe", "x-1", "x1"), ""),
        (("1", "01", "x"), "the classes '01' and '1' are the same number"),
        (("2.0", "2", "20"), "the classes '2' and '2.0' are the same number"),
        (("10", "100", "v1", "v01"), ""),
        (("images", "Masks"), "the folder Masks beside a folder of images is taken for a class"),
        (("masks", "helmets", "c", "c++"), ""),
    ],
)
def test_classes_that_may_be_a_mistake_are_named(tmp_path: Path, names: tuple[str, ...], sentence: str) -> None:
    make_pictures(tmp_path / "data", dict.fromkeys(names, 3))
    config = DataConfig(source="folder", path=str(tmp_path / "data"), image_size=8)
    for file in [*tmp_path.glob("data/Masks/*")]:  # of the same names as the images, they would be refused
        file.rename(file.with_name(f"m{file.name}"))
    told = [one for one in warnings_about(prepare_data(config, tmp_path / "cache"), config) if "class" in one]
    assert [one[: len(sentence)] for one in told] == ([sentence] if sentence else [])


def test_pictures_of_a_single_colour_are_counted(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "data", {"a": 60, "b": 60})
    told = "a single colour"
    assert not [one for one in warnings_of(folder, tmp_path) if told in one]
    sign = Image.new("RGBA", (40, 40))
    sign.paste((0, 0, 0, 255), (10, 10, 30, 30))
    for i, image in enumerate((sign, sign.rotate(45), Image.new("L", (9, 9), 80), Image.new("CMYK", (30, 20)))):
        image.save(folder / "b" / f"sign{i}.{'tif' if image.mode == 'CMYK' else 'png'}")
    (sentence,) = [one for one in warnings_of(folder, tmp_path) if told in one]
    assert sentence.startswith("4 pictures of 124 have a single colour, the first: b/sign0.png; transparency is left")


def test_copies_with_related_names_are_told_by_class_and_by_split(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "data", {"a": 60, "b": 60})
    assert not [one for one in warnings_of(folder, tmp_path) if "look the same" in one]
    for file in sorted(folder.glob("a/*")):
        Image.open(file).resize((50, 50)).save(file.with_name(f"{file.stem}-50x50.png"))
    (sentence,) = [one for one in warnings_of(folder, tmp_path) if "look the same" in one]
    assert "compared with one of a related name in another split look the same, for example a/" in sentence
    assert sentence.endswith("if they are copies, remove them, or keep them together with data.group_by")
    (folder / "a").rename(folder / "both")
    for file in sorted(folder.glob("both/*-50x50.png")):
        (folder / "small").mkdir(exist_ok=True)
        file.rename(folder / "small" / file.name.replace("-50x50", ""))
    (sentence,) = [one for one in warnings_of(folder, tmp_path) if "look the same" in one]
    assert "of the same name in another class look the same, for example both/" in sentence


def folders_in_classes(tmp_path: Path, names: str, each: int, **settings: Any) -> list[str]:
    counts = {f"{kind}/{name.format(kind)}": each for kind in "ab" for name in names.split()}
    told = warnings_of(make_pictures(tmp_path / "data", counts), tmp_path, val_fraction=0.3, **settings)
    return [one for one in told if "folders" in one]


@pytest.mark.parametrize("settings", [{}, {"folds": 2}, {"test_fraction": 0.3}])
def test_folders_of_patients_that_splits_divide_are_told_with_the_setting_that_keeps_them_together(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    (sentence,) = folders_in_classes(tmp_path, "P1{0} P2{0} P3{0} P4{0}", 4, **settings)
    assert sentence.startswith("the classes are divided into 8 folders, and ")
    assert f"have pictures in several {'folds' if 'folds' in settings else 'splits'}, for example a/P" in sentence
    pattern = sentence.partition("data.group_by = '")[2].partition("'")[0]
    config = DataConfig.model_validate(
        {"path": str(tmp_path / "data"), "image_size": 8, "val_fraction": 0.3, "group_by": pattern, **settings}
    )
    data = prepare_data(config, tmp_path / "cache")
    parts = [{data.names[i].rpartition("/")[0] for i in indices} for indices in data.splits.values()]
    assert sum(map(len, parts)) == 8
    assert not [one for one in warnings_about(data, config) if "folders" in one]


@pytest.mark.parametrize(("names", "each"), [("indoors{0} outdoors{0}", 8), ("P1{0} P2{0} P3{0}", 1), ("one", 8)])
def test_other_folders_inside_the_classes_are_not_taken_for_patients(tmp_path: Path, names: str, each: int) -> None:
    assert folders_in_classes(tmp_path, names, each) == []


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (
            {"colon_sets/colon_aca": 8, "colon_sets/colon_n": 8, "lung_sets/lung_aca": 8, "lung_sets/lung_n": 8},
            "if these are the classes (colon_aca, colon_n, lung_aca, lung_n), move each up one level, such as "
            "colon_sets/colon_aca to colon_aca",
        ),
        (
            {"train/pets/cat": 8, "train/pets/dog": 8, "train/farm/cow": 8, "test/pets/cat": 8, "test/farm/cow": 8},
            "such as test/pets/cat to test/cat",
        ),
        ({"cat/indoors": 8, "cat/outdoors": 8, "dog/indoors": 8}, ""),
        ({"cat/indoors_cat": 8, "cat/outdoors_cat": 8, "dog/indoors_dog": 8, "dog/outdoors_dog": 8}, ""),
        ({"cat/anna": 8, "cat/bert": 8, "dog": 8}, ""),
        ({"cat/images": 8, "dog/photos": 8}, ""),
        ({"cat/patient_a1": 8, "cat/patient_a2": 8, "dog/patient_b1": 8, "dog/patient_b2": 8}, ""),
        ({"cat/2024-01-02": 8, "cat/2024-01-03": 8, "dog/2024-02-01": 8}, ""),
        ({"cat/4f1c": 8, "cat/ab29": 8, "dog/c0de": 8}, ""),
        ({f"{kind}/{kind}{chr(97 + n)}x": 2 for kind in ("cat", "dog") for n in range(21)}, ""),
    ],
)
def test_folders_inside_the_classes_that_may_be_the_classes_are_told(
    tmp_path: Path, counts: dict[str, int], told: str
) -> None:
    folder = make_pictures(tmp_path / "data", counts)
    found = [one for one in warnings_of(folder, tmp_path) if "if these are the classes" in one]
    assert len(found) == bool(told)
    assert not told or found[0].endswith(told)


def test_folders_inside_the_classes_that_are_groups_by_a_setting_are_not_taken_for_classes(tmp_path: Path) -> None:
    folder = make_pictures(
        tmp_path / "data", {f"{kind}/{name}{kind}x": 6 for kind in "ab" for name in ("anna", "bert")}
    )
    assert [one for one in warnings_of(folder, tmp_path) if "if these are the classes" in one]
    settings = {"group_by": "([^/]+)/[^/]+$", "test_fraction": 0.0}
    assert not [one for one in warnings_of(folder, tmp_path, **settings) if "if these are the classes" in one]


@pytest.mark.parametrize("inside", ["study1", "study1/series1"])
def test_folders_of_patients_around_folders_of_studies_are_told_with_the_setting_for_them(
    tmp_path: Path, inside: str
) -> None:
    counts = {f"{name}/P{name}{i}/{inside}{'ab'[k]}": 3 for name in ("wrist", "hand") for i in range(5) for k in (0, 1)}
    folder = make_pictures(tmp_path, counts)
    (sentence,) = [one for one in warnings_of(folder, tmp_path) if "group_by" in one]
    assert sentence.startswith("the classes are divided into 10 folders, and ")
    pattern = sentence.partition("data.group_by = '")[2].partition("'")[0]
    spec = DataConfig(path=str(folder), image_size=16, group_by=pattern)
    data = prepare_data(spec, tmp_path / "cache")
    assert set(data.groups) == {f"P{name}{i}" for name in ("wrist", "hand") for i in range(5)}


def test_the_background_of_caltech_is_told(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"BACKGROUND_Google": 4, "ant": 4})
    assert any(one.startswith("BACKGROUND_Google is taken for a class") for one in warnings_of(folder, tmp_path))


@pytest.mark.parametrize("settings", [{}, {"folds": 2}, {"test_fraction": 0.3}])
@pytest.mark.parametrize("second", ["val", "test"])
def test_class_folders_of_several_splits_are_not_taken_for_patients(
    tmp_path: Path, second: str, settings: dict[str, Any]
) -> None:
    names = ["caf\u00e9", "b", "c", "d", "e", "f"]
    counts = {f"train/{name}": 8 for name in names}
    counts |= {f"{second}/{unicodedata.normalize('NFD', name)}": 8 for name in names}  # as macOS writes them
    told = warnings_of(make_pictures(tmp_path / "data", counts), tmp_path, val_fraction=0.3, **settings)
    assert not [one for one in told if "group_by" in one]


def test_folders_of_patients_in_the_train_folder_are_told_and_those_of_a_test_folder_are_not(tmp_path: Path) -> None:
    counts = {f"train/{kind}/P{n}{kind}": 4 for kind in "ab" for n in range(4)} | {"test/a/Q1": 4, "test/b/Q2": 4}
    folder = make_pictures(tmp_path / "data", counts)
    (sentence,) = [one for one in warnings_of(folder, tmp_path, folds=2) if "group_by" in one]
    assert "divided into 8 folders, and 8 of them have pictures in several folds, for example train/a/P0a" in sentence


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("patient", "keeps no pictures together: 0 groups in 12 pictures"),
        ("[ab]/.*", "keeps no pictures together: 12 groups in 12 pictures"),
        ("a/0[0-3]|b/0[1-5]", "keeps no pictures together: 9 groups in 12 pictures"),
        ("a/0|b/0[1-5]", "gives 1 picture of 12 no group, the first: b/00.png"),
    ],
)
def test_a_pattern_of_groups_that_does_not_fit_the_names_is_told(tmp_path: Path, pattern: str, sentence: str) -> None:
    folder = make_pictures(tmp_path / "data", {"a": 6, "b": 6})
    told = warnings_of(folder, tmp_path, group_by=pattern, stratified=False)
    assert f"data.group_by = {pattern!r} {sentence}" in told


@pytest.mark.parametrize(
    ("with_group", "expected"),
    [
        (12, ""),
        (9, "the column of groups is empty for 3 pictures of 12 in train and val, the first: b/03.png; splits"),
        (0, ""),
    ],
)
def test_empty_cells_of_a_column_of_groups_are_told(tmp_path: Path, with_group: int, expected: str) -> None:
    folder = make_pictures(tmp_path / "data", {"a": 6, "b": 6, "quiz": 2})
    names = sorted(f"{file.parent.name}/{file.name}" for file in folder.glob("[ab]/*"))
    rows = [f"{name},{name[0]},train,{f'P{i // 2}' if i < with_group else ''}" for i, name in enumerate(names)]
    rows += [f"quiz/0{i}.png,{kind},test," for i, kind in enumerate("ab")]  # only drawn splits need groups
    (folder / "t.csv").write_text("\n".join(["file,label,split,group", *rows]))
    told = [one for one in warnings_of(folder, tmp_path, labels="t.csv") if "column of groups" in one]
    assert [one[: len(expected)] for one in told] == ([expected] if expected else [])


def test_a_part_of_the_training_pictures_is_told_with_its_numbers(tmp_path: Path) -> None:
    counts = {f"train/{name}": 60 for name in "ab"} | {f"val/{name}": 50 for name in "ab"}
    folder = make_pictures(tmp_path, counts)
    assert warnings_of(folder, tmp_path) == []
    assert warnings_of(folder, tmp_path, fraction=0.5) == [
        "data.fraction = 0.5: 60 of 120 training pictures are used, the same ones in every training; all pictures "
        "of the validation and the test split are used"
    ]
    assert warnings_of(folder, tmp_path, fraction=0.5, folds=5) == [
        "data.fraction = 0.5: 60 of 120 training pictures are used, the same ones in every training; the folds divide "
        "these and all pictures of the validation split; the test split is whole"
    ]


def test_of_many_classes_without_a_validation_picture_five_are_named(tmp_path: Path) -> None:
    counts = {f"train/c{i}": 3 for i in range(9)} | {"val/c0": 100}
    (line,) = warnings_of(make_pictures(tmp_path, counts), tmp_path)
    assert line.startswith("8 of 9 classes have no validation picture")
    assert line.endswith("c1, c2, c3, c4, c5 and 3 more")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (
            8,
            "8 validation pictures tell candidates apart in steps of 12.5 points, with a standard error of 10.6 points",
        ),
        (
            50,
            "50 validation pictures tell candidates apart in steps of 2.0 points, with a standard error of 4.2 points",
        ),
        (100, None),
    ],
)
def test_a_validation_split_too_small_to_tell_candidates_apart_is_said_with_its_step_and_error(
    tmp_path: Path, count: int, expected: str | None
) -> None:
    folder = make_pictures(tmp_path, {"train/a": 3, "train/b": 3, "val/a": count // 2, "val/b": count // 2})
    found = warnings_of(folder, tmp_path)
    assert [line[: len(expected or "")] for line in found] == ([expected] if expected else [])
    cure = "; more pictures in the val split help, or data.folds, which validates on the training pictures too"
    assert all(line.endswith(cure) for line in found)  # val_fraction has no effect if there is a val folder


def test_folds_count_all_pictures_as_validated(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"a": 25, "b": 25})
    (drawn,) = warnings_of(folder, tmp_path)
    assert drawn.startswith("6 validation pictures tell")  # a tenth of each class
    assert drawn.endswith("; a larger val split (data.val_fraction) or data.folds helps")
    (divided,) = warnings_of(folder, tmp_path, folds=5)
    assert divided.startswith("50 validation pictures tell")
    assert divided.endswith("; only more pictures help")


@pytest.mark.parametrize(("few", "heavy"), [(6, True), (7, False)])
def test_heavy_imbalance_is_said_with_what_the_largest_class_alone_gives(tmp_path: Path, few: int, heavy: bool) -> None:
    counts = {"train/cat": 60, "train/dog": 30, "train/emu": few} | {
        f"val/{name}": 40 for name in ("cat", "dog", "emu")
    }
    found = warnings_of(make_pictures(tmp_path, counts), tmp_path)
    sentence = (
        "training pictures are uneven: 60 of cat, 6 of emu; always predicting cat is right on 62% of them, and "
        "accuracy hardly depends on the small classes; train.logit_adjustment = 1.0 makes a model predict them "
        "more often"
    )
    assert found == ([sentence] if heavy else [])


def test_pictures_that_a_plain_convert_reads_otherwise_come_with_the_line_that_reads_them_right(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 50, "val/b": 50})
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for number in range(3):
        Image.fromarray(pixels).save(folder / f"train/a/turned{number}.png", exif=exif)
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(folder / "val/b/deep.png")
    warnings = warnings_of(folder, tmp_path)
    for warning in warnings:
        line = warning[warning.rindex(": ", 0, warning.index("import ")) + 2 :]
        subprocess.run([sys.executable, "-c", f"{line}; assert picture.mode == 'RGB'"], check=True)
    assert warnings == [
        "1 picture of 110 is of more than 8 bits, the first: val/b/deep.png; they are scaled to 8 bits, and a plain "
        'Image.open(file).convert("RGB") does not scale them; this line of Python scales the first '
        f"one: import numpy as np; from PIL import Image, ImageOps; file = {str(folder / 'val/b/deep.png')!r}; "
        "picture = "
        "Image.fromarray(np.rint(np.asarray(ImageOps.exif_transpose(Image.open(file)), float) * (255 / 65535))"
        '.astype("uint8")).convert("RGB")',
        "3 pictures of 110 are upright only by EXIF, the first: train/a/turned0.png; they are trained upright, and a "
        'plain Image.open(file).convert("RGB") leaves them turned; this line of Python reads the first one right: '
        f"from PIL import Image, ImageOps; file = {str(folder / 'train/a/turned0.png')!r}; picture = "
        'ImageOps.exif_transpose(Image.open(file)).convert("RGB")',
    ]


@pytest.mark.parametrize("earlier", [False, True], ids=["a worker's file", "a file of an earlier version"])
def test_classes_that_the_best_never_answers_are_named(tmp_path: Path, *, earlier: bool) -> None:
    file = tmp_path / "confusion.npz"
    assert never_predicted(file, ["a", "b", "c"]) is None  # no trial yet
    confusion = np.array([[3, 1, 0], [2, 0, 0], [1, 4, 0]])
    if earlier:
        np.savez(file, trial=7, confusion=confusion, names=["a", "b", "c"])
    else:
        write_confusion(file, 7, table_of(confusion), ["a", "b", "c"])
    assert never_predicted(file, ["a", "b", "c"]) == (
        "the best so far, trial 7, never predicts 1 of 3 classes on the 11 validation pictures: c"
    )
    assert never_predicted(file, ["a", "b", "d"]) is None  # other pictures by now
    write_confusion(file, 7, table_of(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])), ["a", "b", "c"])
    assert never_predicted(file, ["a", "b", "c"]) is None  # c has no validation picture
    file.write_bytes(b"cut short")
    assert never_predicted(file, ["a", "b", "c"]) is None


def test_check_lists_the_warnings_for_people_and_programs(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    runs.root.mkdir()
    folder = make_pictures(tmp_path, {"train/a": 20, "train/b": 20, "val/a": 2, "test/images": 3})
    for split in ("train", "test"):
        files = [str(file.relative_to(folder)) for file in sorted((folder / split).glob("*/*"))]
        rows = [f"{file},{file[6] if split == 'train' else 'a'}\n" for file in files]
        (folder / f"{split}.csv").write_text("".join(["path,label\n", *rows]))
    spec = study(data={"path": str(folder), "image_size": 16}, space={"lr": [0.1, 0.2]}, known=[], limit={})
    meaning = check_study(spec, runs, [WorkerDevice("cpu:0", None, 1)])
    passed_over, table, lost, small = meaning.pictures.warnings
    assert "search predict" in passed_over
    assert tomllib.loads(table.partition("\n")[2]) == {"data": {"labels": "train.csv", "test_labels": "test.csv"}}
    assert lost.startswith("1 of 2 classes have no validation picture")
    assert small.startswith("2 validation pictures tell")
    console = Console(file=io.StringIO(), width=500)
    console.print(text_of_check(meaning))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(line in text for line in meaning.pictures.warnings)
