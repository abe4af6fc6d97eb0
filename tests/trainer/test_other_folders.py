"""Folders that are not the classes, such as those of patients, with a table of the classes beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import make_folder, prepare, problems_of
from printed_lines import run_line

from trainer.contest import _other_folders
from trainer.scan import scan_folder
from trainer.tree import File

TOLD = "the folders are taken for the classes, but "


def patients(root: Path, split: str, numbers: range, *, prefix: str = "", views: int = 2) -> None:
    """Pictures as in CheXpert: train/patient0/study1/000.png; sex and age of a patient, findings of a study."""
    make_folder(root, {f"{split}/patient{i}/study{study}": views for i in numbers for study in (1, 2)})
    rows = "".join(
        f"{prefix}{split}/patient{i}/study{study}/{view:03}.png,{('F', 'M')[i % 2]},{40 + i},{(i + study) % 3}.0\n"
        for i in numbers
        for study in (1, 2)
        for view in range(views)
    )
    (root / f"{split}.csv").write_text(f"Path,Sex,Age,Edema\n{rows}")


def test_a_table_beside_folders_of_patients_is_named(tmp_path: Path) -> None:
    patients(root := tmp_path / "lungs", "train", range(5))
    (notice,) = prepare(root, tmp_path).notices
    assert notice.startswith(f"{TOLD}train.csv names 20 of the pictures; if one of its columns (Sex, Age, Edema) has")
    patients(root, "valid", range(90, 93))
    _, line, *rest = problems_of(root, tmp_path).splitlines()
    assert line == (
        "  none of the 3 classes of the val split (patient90, patient91, patient92) is a class of train (patient0, "
        "patient1, patient2, ...); if they are the same classes, give them the same names; else remove the val split"
    )
    assert "\n".join(rest) == notice
    data = prepare(root, tmp_path, labels="train.csv", columns={"file": "Path", "label": "Edema"})
    assert data.class_names == ("0.0", "1.0", "2.0")


def test_paths_that_begin_above_the_data_folder_are_said_with_the_line_that_corrects_them(tmp_path: Path) -> None:
    patients(root := tmp_path / "archive", "train", range(5), prefix="CheXpert-v1.0-small/")
    (notice,) = prepare(root, tmp_path).notices
    assert notice.startswith(f"{TOLD}most rows of train.csv name no picture, because paths begin with a folder more")
    run_line(notice)
    columns = {"file": "Path", "label": "Edema"}
    assert len(prepare(root, tmp_path, labels="train-corrected.csv", columns=columns).class_names) == 3
    (notice,) = prepare(root, tmp_path).notices
    assert notice.startswith(f"{TOLD}train-corrected.csv names 20 of the pictures; if one of its columns (Sex, Age,")


@pytest.mark.parametrize("top", ["", "train/"])
@pytest.mark.parametrize("header", ["file,label,age", "file,finding", "file,finding,patient_id", "file,finding,age"])
def test_labels_that_several_folders_share_are_told(tmp_path: Path, header: str, top: str) -> None:
    root = make_folder(tmp_path / "skin", {f"{top}patient{i}": 3 for i in range(4)})
    rows = "".join(
        f"{top}patient{i}/{n:03}.png,{('mole', 'melanoma')[i % 2]},{50 + i}\n" for i in range(4) for n in range(3)
    )
    (root / "table.csv").write_text(
        f"{header}\n" + "".join(",".join(row.split(",")[: header.count(",") + 1]) + "\n" for row in rows.splitlines())
    )
    (notice,) = prepare(root, tmp_path).notices
    assert notice.startswith(f"{TOLD}table.csv names 12 of the pictures")


@pytest.mark.parametrize("top", ["", "train/"])
@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("file,breed,age", "{breed},{n}"),
        ("file,label,age", "{breed},{n}"),
        ("file,breed,video", "{breed},v{n}"),
        ("file,species,age", "{i},{n}"),
        ("file,code,age", "{i},{n}"),
        ("file,name,kind", "{breed},{kind}"),
    ],
)
def test_a_table_with_a_column_of_other_names_of_the_folders_changes_nothing(
    tmp_path: Path, header: str, cells: str, top: str
) -> None:
    places = [f"{top}n{i:02}/video{i}{n}" for i in range(4) for n in range(2)]
    root = make_folder(tmp_path / "dogs", dict.fromkeys(places, 2))
    rows = ""
    for number, place in enumerate(places):
        i = number // 2
        values = cells.format(breed=("husky", "pug", "boxer", "collie")[i], kind="ab"[i % 2], i=i, n=number)
        rows += "".join(f"{place}/{n:03}.png,{values}\n" for n in range(2))
    (root / "table.csv").write_text(f"{header}\n{rows}")
    assert scan_folder(root).notices == []


def test_a_table_of_coarser_labels_is_told_and_the_folders_stay_the_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "traffic", dict.fromkeys(("car", "bus", "train", "tram"), 3))
    rows = "".join(
        f"{name}/{n:03}.png,{'rail' if name.startswith('t') else 'road'}\n"
        for name in ("car", "bus", "train", "tram")
        for n in range(3)
    )
    (root / "meta.csv").write_text(f"file,label\n{rows}")
    data = prepare(root, tmp_path)
    assert data.class_names == ("bus", "car", "train", "tram")
    assert data.notices[-1].startswith(f"{TOLD}meta.csv names 12 of the pictures and their classes")


def test_a_table_of_technical_columns_only_is_not_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {f"train/{name}": 6 for name in ("cat", "dog")})
    rows = "".join(
        f"train/{name}/{n:03}.png,640,{300 + 17 * n + k},{(100 * k + n) * 7919:032x}\n"
        for k, name in enumerate(("cat", "dog"))
        for n in range(6)
    )
    (root / "meta.csv").write_text(f"file,width,height,md5\n{rows}")
    assert scan_folder(root).notices == []


def test_a_table_that_cannot_have_the_classes_hides_none_that_can(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "skin", {f"patient{i}": 6 for i in range(4)})
    rows = [f"patient{i}/{n:03}.png" for i in range(4) for n in range(6)]
    sums = "".join(f"{file},{700 + 13 * n},{n * 7919:032x}\n" for n, file in enumerate(rows))
    (root / "checksums.csv").write_text(f"file,size,md5\n{sums}")
    facts = "".join(f"{file},{('nevus', 'melanoma')[n // 6 % 2]},{('A', 'B')[n % 2]}\n" for n, file in enumerate(rows))
    (root / "metadata.csv").write_text(f"file,dx,device\n{facts}")
    (notice,) = scan_folder(root).notices
    assert notice.startswith(f"{TOLD}metadata.csv names 24 of the pictures")


def test_empty_cells_do_not_hide_that_pictures_of_a_patient_share_a_value(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "skin", {f"train/patient{i}": 6 for i in range(4)})
    rows = "".join(
        f"train/patient{i}/{n:03}.png,{('F', 'M')[i % 2] if n else ''},{40 + i % 2 if n % 5 else ''}\n"
        for i in range(4)
        for n in range(6)
    )
    (root / "metadata.csv").write_text(f"file,sex,age\n{rows}")
    (notice,) = scan_folder(root).notices
    assert notice.startswith(f"{TOLD}metadata.csv names 24 of the pictures")


class Counted(str):
    """A name that counts how often it is split."""

    splits = 0

    def split(self, *args: object, **kwargs: object) -> list[str]:
        Counted.splits += 1
        return str(self).split("/")


def test_the_names_of_pictures_are_split_once_however_many_columns_a_table_has() -> None:
    files = [File(Counted(f"train/patient{n % 4}/study/{n}.png"), Path(), None) for n in range(20)]
    named = [(file, ["ab"[n % 2], "cd"[n // 5 % 2], str(n)]) for n, file in enumerate(files)]
    assert _other_folders(["sex", "view", "age"], [0, 1, 2], named) is False
    assert Counted.splits == 20


def test_a_table_beside_the_only_folder_with_pictures_is_told_with_the_option(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "skin", {f"images/patient{i}": 3 for i in range(4)})
    rows = "".join(f"images/patient{i}/{n:03}.png,{'ab'[n % 2]},{n}\n" for i in range(4) for n in range(3))
    (root / "table.csv").write_text(f"file,finding,age\n{rows}")
    message = problems_of(root, tmp_path)
    assert f"are the classes, use --data {root}/images\ntable.csv names 12 of the pictures; if one of its" in message


def test_many_classes_with_the_same_problem_are_one_line(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "faces", {f"train/person{i:02}": 1 + (i > 11) for i in range(14)})
    assert problems_of(root, tmp_path).splitlines()[1:] == [
        "  12 of 14 classes have one training picture (person00, person01, person02, ...), so none of them has one "
        "left for validation; add some or remove these classes"
    ]
    make_folder(root, {f"test/{name}": 1 for name in ["person13", *(f"x{i:02}" for i in range(11))]})
    assert problems_of(root, tmp_path).splitlines()[1] == (
        "  11 of 12 classes of the test split (x00, x01, x02, ...) have no training picture; add some or remove these "
        "classes"
    )
