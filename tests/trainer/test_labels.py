"""Labels in a table: how its rows find their pictures, what it may say beside, and every problem at once."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from folders import make_folder, names_in, prepare, problems_of
from printed_lines import line_in, run_line, unknown_names

from trainer.config import DataConfig
from trainer.data import BadFile, Dataset
from trainer.errors import ConfigError
from trainer.values import validate


def labelled(root: Path, text: str, tmp_path: Path, name: str = "train.csv", **settings: Any) -> Dataset:
    (root / name).write_text(text, encoding="utf-8")
    return prepare(root, tmp_path, labels=name, **settings)


def classes_of(data: Dataset) -> dict[str, str]:
    return {name: data.class_names[label] for name, label in zip(data.names, data.labels, strict=True)}


def contest(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "contest", {"train": 6, "test": 3})


EXPECTED = {f"train/{i:03}.png": "ab"[i % 2] for i in range(6)}


@pytest.mark.parametrize(
    ("header", "written"),
    [
        ("id,label", "{i:03}"),
        ("image,class", "{i:03}.png"),
        ("image_id,target", "train/{i:03}"),
        ("img_path,label", "./train/{i:03}.png"),
        ("file,label", "train\\{i:03}.png"),
        ("file_name,label", "contest/train/{i:03}.png"),
        ("filename,label", "/kaggle/input/contest/train/{i:03}.png"),
        ("Path,Label", "TRAIN/{i:03}.PNG"),
        ("\ufeffid,label", " {i:03} "),
        ("path,label", "C:\\data\\train\\{i:03}.png"),
        ("Image_Name,ClassId", "{i:03}.png"),
        ("filepaths,labels", "train/{i:03}.png"),
        ("path,label", "../input/contest/train/{i:03}.png"),
        ("path,label", "..\\train\\{i:03}.png"),
        ("path,label", "https://example.com/train/00{i}.png?size=big#top"),
        ("path,label", "s3://bucket/train/{i:03}.png"),
        ("path,label", "file:///home/me/train/{i:03}.png"),
        ("image,label", "/data/upload/1/{i:03}%2Epng"),
        ("image,label", "/data/local-files/?d=train%2F{i:03}.png"),
        ("image,choice", "/data/upload/12/0a1b2c3d-{i:03}.png"),
        ("image,choice", "http://localhost:8080/data/upload/0a1b2c3d-{i:03}%2Epng"),
    ],
)
def test_rows_find_their_pictures_as_people_write_them(tmp_path: Path, header: str, written: str) -> None:
    rows = "".join(f"{written.format(i=i)},{'ab'[i % 2]}\n" for i in range(6))
    data = labelled(contest(tmp_path), f"{header}\n{rows}", tmp_path)
    assert classes_of(data) == EXPECTED


@pytest.mark.parametrize(
    ("name", "separator", "encoding"), [("t.tsv", "\t", "utf-8"), ("t.csv", ";", "utf-8"), ("t.txt", "\t", "utf-16")]
)
def test_tabs_semicolons_and_excels_text_are_tables_too(
    tmp_path: Path, name: str, separator: str, encoding: str
) -> None:
    root = contest(tmp_path)
    lines = [separator.join(row) for row in (("id", "label"), *((f"{i:03}", f"Ä{i % 2}, b") for i in range(6)))]
    quoted = "\r\n".join(f'"{line}"' if separator == "," else line for line in lines)
    (root / name).write_text(quoted, encoding=encoding)
    assert prepare(root, tmp_path, labels=name).class_names == ("Ä0, b", "Ä1, b")


def test_names_of_folders_mean_nothing_with_a_table(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "val/dog": 3, "x/y/z": 2})
    names = [*(f"cat/{i:03}" for i in range(3)), *(f"dog/{i:03}" for i in range(3)), "z/000.png", "y/z/001"]
    table = "file,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names))
    data = labelled(root, table, tmp_path, "labels.csv")
    assert data.class_names == ("a", "b")
    assert len(data.names) == 8
    assert {split: len(indices) for split, indices in data.splits.items()} == {"train": 6, "val": 2, "test": 0}


def test_ids_of_several_folders_are_those_of_the_tables_split(tmp_path: Path) -> None:
    root = contest(tmp_path)  # 000 to 002 are in train and in test
    (root / "truth.csv").write_text("id,label\n000,a\n001,b\n002,a\n")
    data = labelled(
        root, "id,label\n" + "".join(f"{i:03},{'ab'[i % 2]}\n" for i in range(6)), tmp_path, test_labels="truth.csv"
    )
    assert names_in(data, "test") == {f"test/{i:03}.png" for i in range(3)}
    assert data.notices == ()


def test_an_uploaded_file_is_found_by_the_name_that_label_studio_gave_it_before_its_own(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"pics": 4, "uploads": 4})
    for i in range(4):
        (root / "uploads" / f"{i:03}.png").rename(root / "uploads" / f"0a1b2c3d-{i:03}.png")
    rows = "".join(f"/data/upload/1/0a1b2c3d-{i:03}.png,{'ab'[i % 2]}\n" for i in range(4))
    data = labelled(root, f"image,choice\n{rows}", tmp_path)
    assert [name.split("/")[0] for name in data.names] == ["uploads"] * 4


def test_a_picture_goes_before_other_files_of_its_name(tmp_path: Path) -> None:
    root = contest(tmp_path)
    for i in range(6):
        (root / "train" / f"{i:03}.xml").write_text("boxes")
    assert classes_of(
        labelled(root, "id,label\n" + "".join(f"{i:03},{'ab'[i % 2]}\n" for i in range(6)), tmp_path)
    ) == (EXPECTED)


def test_names_are_found_composed_or_not_and_in_any_script(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"train": 4})
    names = ["Café", "새", "طائر", "ß"]
    for i, name in enumerate(names):
        (root / "train" / f"{i:03}.png").rename(root / "train" / (unicodedata.normalize("NFD", name) + ".png"))
    data = labelled(root, "id,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names)), tmp_path)
    assert len(data.names) == 4


def test_columns_may_be_named(tmp_path: Path) -> None:
    root = contest(tmp_path)
    rows = "".join(f"x,{i:03},{'ab'[i % 2]},{'dev' if i > 3 else 'training'}\n" for i in range(6))
    columns = {"file": "picture", "label": "species", "split": "part"}
    data = labelled(root, f"id,picture,species,part\n{rows}", tmp_path, columns=columns)
    assert classes_of(data) == EXPECTED
    assert names_in(data, "val") == {"train/004.png", "train/005.png"}
    message = problems_of(root, tmp_path, labels="train.csv", columns={"file": "pic", "label": "species"})
    assert "train.csv has no column 'pic' (data.columns.file); it has id, picture, species, part" in message


def test_of_several_columns_of_names_the_one_that_names_files_counts(tmp_path: Path) -> None:
    rows = "".join(f"{100 + i},{i:03}.png,{'ab'[i % 2]},{i % 2}\n" for i in range(6))
    data = labelled(contest(tmp_path), f"file,id,label,target\n{rows}", tmp_path)
    assert classes_of(data) == EXPECTED
    assert data.notices[0] == "train.csv: labels are in column label, not in target"


def test_a_column_of_splits_is_heeded_if_it_says_splits(tmp_path: Path) -> None:
    root = contest(tmp_path)
    parts = ["train", "Training", "", "valid", "dev_set", "TEST"]
    rows = "".join(f"{i:03},{'aabbab'[i]},{part}\n" for i, part in enumerate(parts))
    data = labelled(root, f"id,label,split\n{rows}", tmp_path)
    assert names_in(data, "train") == {f"train/{i:03}.png" for i in range(3)}
    assert names_in(data, "val") == {"train/003.png", "train/004.png"}
    assert names_in(data, "test") == {"train/005.png"}
    folds = labelled(root, "id,label,split\n" + "".join(f"{i:03},{'ab'[i % 2]},{i % 3}\n" for i in range(6)), tmp_path)
    assert len(folds.splits["val"]) == 2
    assert (
        "train.csv: column split is not used, because '0' names no split; if 0, 1, 2 are the splits (often 0 = train, "
        "1 = val, 2 = test), write train, val or test in their place"
    ) in folds.notices
    message = problems_of(root, tmp_path, labels="train.csv", columns={"split": "split"})
    assert "train.csv line 2: '0' names no split; write train, val or test" in message


def test_what_a_table_says_is_in_the_fingerprint(tmp_path: Path) -> None:
    root = contest(tmp_path)

    def hash_of(labels: str, header: str = "id,label", more: tuple[str, ...] = ("",) * 6) -> str:
        rows = "".join(f"{i:03},{label}{more[i]}\n" for i, label in enumerate(labels))
        return labelled(root, f"{header}\n{rows}", tmp_path).content_hash

    base = hash_of("ababab")
    assert hash_of("ababab", "image,class") == base  # how it says it means nothing
    others = {
        base,
        hash_of("ababba"),
        hash_of("ababab", "id,label,split", ("", "", ",val", ",val", "", "")),
        hash_of("ababab", "id,label,group", (",1", ",1", ",2", ",2", ",3", ",3")),
    }
    assert len(others) == 4


def test_unlabelled_rows_and_folders_are_passed_over_with_a_sentence(tmp_path: Path) -> None:
    root = contest(tmp_path)
    rows = "".join(f"{i:03},{'ab'[i % 2] if i < 4 else ' '}\n" for i in range(6))
    data = labelled(root, f"id,label\n{rows}", tmp_path)
    assert len(data.names) == 4
    row, folder = data.notices
    assert row.startswith("2 pictures have a row without a label, the first: train/004.png; unlabelled, so not used;")
    assert folder.startswith("3 pictures have no row, the first: test/000.png; unlabelled, so not used;")
    assert folder.endswith(f"search predict EXPORT {root}/test")


def test_pictures_in_the_data_folder_that_no_row_names_are_told_in_one_sentence(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"train": 6})
    for i in range(3):
        shutil.copy(root / "train/000.png", root / f"unnamed{i}.png")
    rows = "".join(f"train/{i:03},{'ab'[i % 2]}\n" for i in range(6))
    (notice,) = labelled(root, f"id,label\n{rows}", tmp_path).notices
    assert notice.startswith("3 pictures have no row, the first: unnamed0.png; unlabelled, so not used;")


def test_the_command_that_classifies_unlabelled_pictures_can_be_pasted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "my contest", {"train": 6, "test set; $x": 2})
    rows = "".join(f"train/{i:03},{'ab'[i % 2]}\n" for i in range(6))
    (notice,) = labelled(root, f"id,label\n{rows}", tmp_path).notices
    assert shlex.split(notice.partition("search predict ")[2]) == ["EXPORT", f"{root}/test set; $x"]


def test_every_problem_of_a_table_is_told_at_once(tmp_path: Path) -> None:
    root = contest(tmp_path)
    text = "id,label\n000,a\n001,b\n002,a\n000,b\n008,a\n002,a\n003,\n"
    (root / "train.csv").write_text(text)
    message = problems_of(root, tmp_path, labels="train.csv")
    first, *lines = message.splitlines()
    assert first == (
        f'{root}: 4 problems with train.csv; bad_files = "skip" skips rows without a file and files without a row:'
    )
    assert lines == [
        "  train.csv line 5: train/000.png has two labels, 'a' in train.csv line 2 and 'b' here",
        "  train.csv line 6: 008: names no file",
        "  train/004.png: no row names it",
        "  train/005.png: no row names it",
    ]


def test_skipping_goes_on_without_what_lacks_the_other_and_lists_it(tmp_path: Path) -> None:
    rows = "id,label\n000,a\n001,b\n002,a\n003,b\n009,a\n"
    data = labelled(contest(tmp_path), rows, tmp_path, bad_files="skip")
    assert len(data.names) == 4
    assert data.bad_files == (
        BadFile("train.csv line 6: 009", "names no file"),
        BadFile("train/004.png", "no row names it"),
        BadFile("train/005.png", "no row names it"),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "train.csv is empty; its first line names the columns"),
        ("number,a\n000,b\n", "train.csv has no column of files called path, img_path, "),
        ("id,species\n000,a\n", 'it has id, species; name it: data.columns = { label = "NAME" }'),
        ("id,label\n", "no row names a picture and its label"),
        ("id,label\nx/000,a\n001,b\n", "train.csv line 2: x/000: names no file"),  # no x/ though there is train/000.png
        ("id,label\n000,a\n001,a\n002,a\n003,a\n004,a\n005,a\n", "one class, a, to train on"),
        ("id,label,split\n000,a,val\n001,b,val\n002,b,val\n003,b,val\n004,b,val\n005,b,val\n", "is of the train split"),
    ],
)
def test_a_table_that_will_not_do_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    root = contest(tmp_path)
    (root / "train.csv").write_text(text)
    assert sentence in problems_of(root, tmp_path, labels="train.csv")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("000.png,a\n001.png,b\n", "names no columns, but the file 000.png; write a line such as file,label above it"),
        ("id,label\n000,a, big\n001,b\n", "has 2 columns, and line 2 has 3 cells; put a cell that contains , in"),
        ('id,label\n000,a\n001,"b\n002,a\n', "is not a CSV or TSV file, line 4: unexpected end of data"),
    ],
)
def test_a_table_that_would_lose_a_part_of_what_it_says_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    root = contest(tmp_path)
    (root / "train.csv").write_text(text)
    assert sentence in problems_of(root, tmp_path, labels="train.csv", bad_files="skip")


@pytest.mark.parametrize(
    ("separator", "cells", "first"),
    [
        (",", "TRAIN,gs://bucket/flowers/{name},{label}", "split,file,label"),
        (";", "{name};{label}", "file;label"),
        ("|", "{label}|{name}", "label|file"),
        ("\t", "{name}\t{label}", "file label (with tabs, not spaces)"),
        (",", "{name},{label},3", "file,label,column3"),
    ],
)
def test_the_first_line_that_a_table_without_a_header_needs_works(
    tmp_path: Path, separator: str, cells: str, first: str
) -> None:
    root = contest(tmp_path)
    rows = "".join(cells.format(name=f"{i:03}.png", label="ab"[i % 2]) + "\n" for i in range(6))
    (root / "train.csv").write_text(rows)
    assert f"; write a line such as {first} above it" in problems_of(root, tmp_path, labels="train.csv")
    names = first.partition(" (")[0].replace(" ", separator)
    assert classes_of(labelled(root, f"{names}\n{rows}", tmp_path)) == EXPECTED


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ("a,big b,small", "file,label,column3 above it, with label above the column of the classes"),
        ("1,0,0 0,1,0 0,0,1", "file,class1,class2,class3 above it, with the names of the classes"),
        ("a b", "file,label above it"),
    ],
)
def test_the_first_line_says_which_column_has_the_classes(tmp_path: Path, cells: str, told: str) -> None:
    root = contest(tmp_path)
    values = cells.split()
    rows = "".join(f"{i:03}.png,{values[i % len(values)]}\n" for i in range(6))
    (root / "train.csv").write_text(rows)
    assert problems_of(root, tmp_path, labels="train.csv").endswith(f"; write a line such as {told}")
    (root / "train.csv").write_text(f"{told.partition(' ')[0]}\n{rows}")
    if "class1" in told:
        assert "a column of 0 and 1 for each class (class1, " in problems_of(root, tmp_path, labels="train.csv")


@pytest.mark.parametrize("comments", ["# of 2024\n", "# a, b, c\r\n# d\r\n", "#\n" * 5, "#1,2\n#3\n"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_comments_above_a_table_are_passed_over_and_lines_keep_their_numbers(
    tmp_path: Path, comments: str, separator: str
) -> None:
    root = contest(tmp_path)
    rows = "".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(6)).replace(",", separator)
    assert classes_of(labelled(root, f"{comments}file{separator}label\n{rows}", tmp_path)) == EXPECTED
    (root / "train.csv").write_text(f"{comments}file{separator}label\n{rows}7.png{separator}a\n")
    assert f"train.csv line {comments.count('#') + 8}: 7.png" in problems_of(root, tmp_path, labels="train.csv")


def test_names_of_columns_that_begin_with_a_number_sign_are_names(tmp_path: Path) -> None:
    root = contest(tmp_path)
    rows = "".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(6))
    named = {"columns": {"file": "# name"}}
    assert classes_of(labelled(root, f"# of 2024\n# name,label\n{rows}", tmp_path, **named)) == EXPECTED
    (root / "train.csv").write_text(f"# by Ann, Bob\nfile,label\n{rows}")
    message = problems_of(root, tmp_path, labels="train.csv")
    assert "it has # by Ann, Bob; if its first line is a comment, remove it; else name it: data.columns" in message


def levels(separator: str, number: int = 36) -> str:
    return separator.join(str(7 * i % 256) for i in range(number))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"label,{','.join(f'pixel{i}' for i in range(36))}\n" + f"4,{levels(',')}\n" * 3, "a column for each pixel"),
        ("emotion,pixels,Usage\n" + f"0,{levels(' ')},Training\n" * 3, "all pixels of a picture in column pixels"),
        (f'label;image\n1;"[{levels(", ")}]"\n', "all pixels of a picture in column image"),
        ("label,size,width,height\n" + "4,8,9,10\n" * 3, ""),
        ("label,pixels\n" + f"0,{levels(' ', 35)}\n", ""),
    ],
)
def test_a_table_of_pixels_is_recognised_and_no_column_of_files_is_asked_for(
    tmp_path: Path, text: str, what: str
) -> None:
    root = tmp_path / "digits"
    root.mkdir()
    (root / "train.csv").write_text(text)
    cure = f"train.csv seems to have {what}, and only files of pictures are read; write the picture of each row to"
    assert (cure in problems_of(root, tmp_path)) == bool(what)
    if "image" not in text:
        asked = problems_of(root, tmp_path, labels="train.csv")
        assert (cure in asked) == bool(what)
        assert ("name it: data.columns" in asked) != bool(what)


def test_a_table_without_a_header_is_never_suggested(tmp_path: Path) -> None:
    root = contest(tmp_path)
    (root / "train.csv").write_text("".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(6)))
    assert "columns =" not in problems_of(root, tmp_path)


def test_spaces_after_commas_and_empty_cells_at_the_end_mean_nothing(tmp_path: Path) -> None:
    rows = "".join(f'{i:03}, "{"ab"[i % 2]}, big",,\n' for i in range(6))
    assert labelled(contest(tmp_path), f"id, label\n{rows}", tmp_path).class_names == ("a, big", "b, big")


def test_labels_whose_accents_are_stored_in_two_ways_are_one_class(tmp_path: Path) -> None:
    spelled = ["b", "caf\u00e9", "b", "cafe\u0301", "b", "cafe\u0301"]
    rows = "".join(f"{i:03},{label}\n" for i, label in enumerate(spelled))
    assert labelled(contest(tmp_path), f"id,label\n{rows}", tmp_path).class_names == ("b", "caf\u00e9")


def test_missing_values_as_classes_and_columns_of_one_name_are_said(tmp_path: Path) -> None:
    rows = "".join(f"{i:03},{('nan', 'b')[i % 2]},{i}\n" for i in range(6))
    assert labelled(contest(tmp_path), f"id,label,Label\n{rows}", tmp_path).notices[:2] == (
        "train.csv: of 2 columns called label, the first one is used; rename the others",
        "train.csv: 3 rows have the label nan, which is taken for a class; if it means no label, leave the cell empty",
    )


@pytest.mark.parametrize("code", ["NA", "nan", "None", "null", "N/A", "<NA>", '"NA"', "?", "-", "unlabeled"])
def test_a_label_that_spells_a_missing_value_is_a_class_and_only_an_empty_cell_is_none(
    tmp_path: Path, code: str
) -> None:
    labels, groups = (code, "DE", code, "DE", "", " "), (code, code, "", "", "", "")
    rows = "".join(f"{i:03},{labels[i]},{groups[i]}\n" for i in range(6))
    data = labelled(contest(tmp_path), f"id,label,group\n{rows}", tmp_path, val_fraction=0.5)
    name = code.strip('"')
    assert set(data.class_names) == {name, "DE"}
    assert len(data.names) == 4
    label, group, *_ = data.notices
    assert f"train.csv: 2 rows have the label {name}, which is taken for a class; if it means no label" in label
    assert f"train.csv: 2 rows have the group {name}, which is taken for one group; if it means no group" in group


def test_columns_that_seem_to_have_splits_or_groups_are_said_and_their_lines_work(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "scans", {"images": 8})
    splits = ("train", "train", "train", "train", "valid", "valid", "testing", "testing")
    rows = "".join(f"{i:03},{'ab'[i % 2]},P{i // 2},{splits[i]},{i > 5}\n" for i in range(8))
    text = f"id,label,patient_id,subset,is_valid\n{rows}"
    assert labelled(root, text, tmp_path).notices == (
        "train.csv: column patient_id is not used, so pictures of one group are not kept together; to use it: "
        'data.columns = { group = "patient_id" }',
        'train.csv: column subset is not used, so splits are drawn; to use it: data.columns = { split = "subset" }',
        "train.csv: column is_valid is not used, so splits are drawn; to use it, write train, val or test into a "
        "column split",
    )
    columns = {"group": "patient_id", "split": "subset"}
    data = labelled(root, text, tmp_path, columns=columns)
    assert (len(data.splits["val"]), len(data.splits["test"]), data.groups[:3]) == (2, 2, ("P0", "P0", "P1"))
    assert data.notices == ()


@pytest.mark.parametrize(("column", "often"), [("partition", True), ("data_split", False)])
def test_numbers_that_may_be_splits_are_said_and_their_words_work(tmp_path: Path, column: str, *, often: bool) -> None:
    """CelebA's list_eval_partition.csv."""
    root = contest(tmp_path)
    numbers = [0, 0, 1, 1, 2, 2] if often else [0, 0, 0, 0, 1, 1]
    table = f"id,label,{column}\n" + "".join(f"{i:03},{'ab'[i % 2]},{number}\n" for i, number in enumerate(numbers))
    (notice,) = [one for one in labelled(root, table, tmp_path).notices if column in one]
    meaning = "0, 1, 2 are the splits (often 0 = train, 1 = val, 2 = test)" if often else "0, 1 are the splits"
    setting = f'{{ split = "{column}" }}'
    assert notice == (
        f"train.csv: column {column} is not used, so splits are drawn; if {meaning}, write train, val or test in their "
        f"place, and set data.columns = {setting}"
    )
    for number, split in enumerate(("train", "val", "test") if often else ("train", "test")):
        table = re.sub(f",{number}$", f",{split}", table, flags=re.MULTILINE)
    (root / "train.csv").write_text(table)
    columns = tomllib.loads(f"columns = {setting}")["columns"]
    assert len(prepare(root, tmp_path, labels="train.csv", columns=columns).splits["test"]) == 2


def test_a_file_that_is_no_table_is_refused_in_a_sentence(tmp_path: Path) -> None:
    root = contest(tmp_path)
    assert "cannot be read: No such file or directory; data.labels is relative to the data folder" in problems_of(
        root, tmp_path, labels="nowhere.csv"
    )
    (root / "latin.csv").write_bytes("id,label\n000,ä\n".encode("latin-1"))
    assert "latin.csv is not text in UTF-8; save it as CSV in UTF-8" in problems_of(root, tmp_path, labels="latin.csv")
    (root / "wide.csv").write_text("file,label\n000.png,cat\n", encoding="utf-16-le")  # without a byte order mark
    assert "wide.csv is not text in UTF-8; save it as CSV in UTF-8" in problems_of(root, tmp_path, labels="wide.csv")
    assert "cannot be read: embedded null byte" in problems_of(root, tmp_path, labels="a\0b")
    assert "cannot be read: Is a directory" in problems_of(root, tmp_path, labels="train")


def test_an_id_of_two_files_is_refused_with_both(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "cells", {"images": 3, "masks": 3})
    (root / "l.csv").write_text("id,label\n000,a\n001,b\n002,a\n")
    assert "l.csv line 2: 000 may be images/000.png or masks/000.png; write the path" in problems_of(
        root, tmp_path, labels="l.csv"
    )


def test_a_class_that_only_the_test_table_has_is_refused(tmp_path: Path) -> None:
    root = contest(tmp_path)
    (root / "train.csv").write_text("id,label\n" + "".join(f"{i:03},{'ab'[i % 2]}\n" for i in range(6)))
    (root / "test.csv").write_text("id,label\n000,a\n001,emu\n002,b\n")
    message = problems_of(root, tmp_path, labels="train.csv", test_labels="test.csv")
    assert "class emu in test: this class has no training picture; add some or remove its rows" in message


def test_problems_with_the_pictures_of_a_table_name_its_rows_and_no_folder(tmp_path: Path) -> None:
    root = contest(tmp_path)
    (root / "train.csv").write_text("id,label\n" + "".join(f"{i:03},{'a' if i < 5 else 'emu'}\n" for i in range(6)))
    (root / "test.csv").write_text("id,label\n000,a\n001,a\n002,a\n")
    for file in (root / "train/005.png", *root.glob("test/*.png")):
        file.write_text("no picture")
    assert problems_of(root, tmp_path, labels="train.csv", test_labels="test.csv").splitlines()[5:] == [
        "  class emu in train: this class has no readable picture; add some or remove its rows",
        "  the test split has no readable picture; add some or remove its rows",
        "  one class, a, to train on, and a classifier needs two; add rows of another class to train.csv",
    ]


def test_a_table_that_changes_makes_another_cache_only_if_it_says_something_else(tmp_path: Path) -> None:
    root = contest(tmp_path)
    rows = "".join(f"{i:03},{'ab'[i % 2]}\n" for i in range(6))
    first = labelled(root, f"id,label\n{rows}", tmp_path).cache_path
    assert labelled(root, f"image,class\n{rows}\n", tmp_path).cache_path == first
    assert labelled(root, f"id,label\n{rows}".replace("005,b", "005,a"), tmp_path).cache_path != first


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"source": "digits", "labels": "t.csv"}, "labels = 't.csv': digits has labels of its own"),
        ({"test_labels": "t.csv"}, "test_labels would be ignored without labels"),
        ({"columns": {"file": "x"}}, "columns would be ignored without labels"),
        ({"labels": "t.csv", "columns": {"fil": "x"}}, "columns.fil: unknown key; did you mean file?"),
    ],
)
def test_settings_of_tables_that_would_do_nothing_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(DataConfig, settings, "study.toml [data]")
    assert sentence in str(error.value)


# Contests


def write_contest(root: Path, header: str, part: str, count: int, name: str = "train.csv") -> None:
    rows = "".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(count))
    (root / name).write_text(f"{header}\n{rows}")
    (root / "sample_submission.csv").write_text(f"{header}\n" + "".join(f"{i:03}.png,a\n" for i in range(3)))


@pytest.mark.parametrize(
    ("counts", "table"),
    [
        ({"train": 6, "test": 3}, "train.csv"),
        ({"train_images": 6, "test_images": 3}, "labels.csv"),
        ({"Train/train": 6, "Test/test": 3}, "train.csv"),
        ({"images": 6}, "train.csv"),
        ({"train": 6, "test": 3, "extra": 3}, "train.csv"),
        ({"train": 6}, "train/labels.csv"),
        ({".": 6}, "labels.csv"),
    ],
)
def test_a_contests_folder_is_recognised_and_the_lines_to_add_work(
    tmp_path: Path, counts: dict[str, int], table: str
) -> None:
    root = tmp_path / "contest"
    root.mkdir()
    make_folder(root, {name: count for name, count in counts.items() if name != "."})
    if "." in counts:
        make_folder(tmp_path / "flat", {"x": 6})
        for file in (tmp_path / "flat" / "x").iterdir():
            file.rename(root / file.name)
    write_contest(root, "id,label", next(iter(counts)), 6, table)
    message = problems_of(root, tmp_path)
    assert f"{table} names 6 of the pictures and their classes; to train on those, add to the study file:" in message
    assert message.splitlines()[-2:] == ["  [data]", f'  labels = "{table}"']
    assert prepare(root, tmp_path, labels=table).class_names == ("a", "b")


def test_tables_inside_the_splits_are_of_their_split(tmp_path: Path) -> None:
    root = contest(tmp_path)  # as Hugging Face's image folders: 000.png is in train and in test
    for part, count in (("train", 6), ("test", 3)):
        rows = "".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(count))
        (root / part / "metadata.csv").write_text(f"file_name,label\n{rows}")
    assert problems_of(root, tmp_path).splitlines()[-3:] == [
        "  [data]",
        '  labels = "train/metadata.csv"',
        '  test_labels = "test/metadata.csv"',
    ]
    data = prepare(root, tmp_path, labels="train/metadata.csv", test_labels="test/metadata.csv")
    assert names_in(data, "test") == {f"test/{i:03}.png" for i in range(3)}


def test_class_folders_with_a_table_beside_them_stay_class_folders(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"train/cat": 3, "train/dog": 3})
    plain = prepare(root, tmp_path)
    rows = "".join(f"train/{kind}/{i:03}.png,{kind}\n" for kind in ("cat", "dog") for i in range(3))
    (root / "birds.csv").write_text(f"path,label\n{rows}")
    assert prepare(root, tmp_path).fingerprint == plain.fingerprint
    assert prepare(root, tmp_path).notices == ()
    parts = make_folder(tmp_path / "parts", {"left": 3, "right": 3})
    rows = "".join(f"{part}/{i:03}.png,{'ab'[i % 2]}\n" for part in ("left", "right") for i in range(3))
    (parts / "labels.csv").write_text(f"path,label\n{rows}")
    (notice,) = prepare(parts, tmp_path).notices
    assert notice.startswith(
        told := "the folders are taken for the classes, but labels.csv names 6 of the pictures and"
    )
    chains = make_folder(tmp_path / "hotels", {"train_images/0": 3, "train_images/1": 3, "test_images": 3})
    rows = "".join(f"train_images/{chain}/{i:03}.png,{'ab'[i % 2]}\n" for chain in "01" for i in range(3))
    (chains / "labels.csv").write_text(f"path,label\n{rows}")
    unlabelled, notice = prepare(chains, tmp_path).notices
    assert unlabelled.startswith("test_images: 3 pictures in no class folder")
    assert notice.startswith(told)


def test_a_table_of_the_classes_that_the_folders_have_changes_nothing(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "traffic", {"train": 3, "bus": 3})
    notices = prepare(root, tmp_path).notices
    assert notices[0].startswith("train is taken for a class")
    rows = "".join(f"{kind}/{i:03}.png,{kind}\n" for kind in ("train", "bus") for i in range(3))
    (root / "labels.csv").write_text(f"path,label\n{rows}")
    assert prepare(root, tmp_path).notices == notices


def test_a_table_whose_column_of_classes_is_unclear_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "ham", {"images_part_1": 3, "images_part_2": 3})
    for number, file in enumerate(sorted(root.rglob("*.png"))):
        file.rename(file.with_name(f"ISIC_{number}.png"))
    rows = "".join(f"L{i},ISIC_{i},{('nv', 'mel')[i % 2]},{40 + i}\n" for i in range(6))
    (root / "metadata.csv").write_text(f"lesion_id,image_id,dx,age\n{rows}")
    message = problems_of(root, tmp_path)
    assert "images_part_1 and images_part_2 are names of parts of a data set" in message
    assert "metadata.csv names 6 of the pictures; if one of its columns (lesion_id, dx, age) has their" in message
    assert 'columns = { file = "image_id", label = "..." }' in message
    data = prepare(root, tmp_path, labels="metadata.csv", columns={"file": "image_id", "label": "dx"})
    assert data.class_names == ("mel", "nv")
    for number in (1, 2):
        (root / f"images_part_{number}").rename(root / ("nv", "mel")[number - 1])
    (notice,) = prepare(root, tmp_path).notices
    assert notice.startswith("the folders are taken for the classes, but metadata.csv names 6 of the pictures; if one")
    rows = "".join(f"L{i},ISIC_{i},{('nv', 'mel')[i // 3]},{40 + i}\n" for i in range(6))
    (root / "metadata.csv").write_text(f"lesion_id,image_id,dx,age\n{rows}")
    assert prepare(root, tmp_path).notices == (), "the folders are the classes"
    make_folder(root, {"test": 3})
    (root / "metadata.csv").write_text("image_id,width,height\n" + "".join(f"ISIC_{i},{i},{i % 2}\n" for i in range(6)))
    notices = prepare(root, tmp_path).notices
    assert any("if one of its columns (width, height) has their classes" in one for one in notices), "but not refused"


def road_signs(root: Path, *, meta: bool) -> Path:
    """Pictures as in the German Traffic Sign Recognition Benchmark, with a table for each folder."""
    make_folder(root, {"Train/0": 3, "Train/20": 3, "Test": 4} | ({"Meta": 2} if meta else {}))
    rows = "".join(f"27,26,{kind},Train/{kind}/{i:03}.png\n" for kind in (0, 20) for i in range(3))
    (root / "Train.csv").write_text(f"Width,Height,ClassId,Path\n{rows}")
    rows = "".join(f"27,26,{(0, 20)[i % 2]},Test/{i:03}.png\n" for i in range(4))
    (root / "Test.csv").write_text(f"Width,Height,ClassId,Path\n{rows}")
    if meta:
        (root / "Meta.csv").write_text("Path,ClassId,ShapeId\nMeta/000.png,0,1\nMeta/001.png,20,1\n")
    return root


@pytest.mark.parametrize("meta", [True, False])
def test_the_tables_of_splits_go_before_a_table_of_other_pictures(tmp_path: Path, *, meta: bool) -> None:
    root = road_signs(tmp_path / "signs", meta=meta)
    lines = ["[data]", 'labels = "Train.csv"', 'test_labels = "Test.csv"']
    if meta:
        message = problems_of(root, tmp_path)
        assert "Test and Train name splits, and Meta names none; move Meta elsewhere" in message
        assert [line.strip() for line in message.splitlines()[-3:]] == lines
    else:
        sentence, *added = prepare(root, tmp_path).notices[-1].splitlines()
        assert sentence.startswith("Test.csv has the classes of the test pictures; to train and test by tables, not by")
        assert [line.strip() for line in added] == lines
    data = prepare(root, tmp_path, labels="Train.csv", test_labels="Test.csv")
    assert data.class_names == ("0", "20")
    assert len(data.splits["test"]) == 4


@pytest.mark.parametrize(
    ("columns", "cells", "sentence"),
    [
        ("healthy,rust", ("1,0", "0,1"), "for each class (healthy, rust), and one column with the names"),
        ("MEL,NV,BCC,AK", ("1.0,0.0,0.0,0.0", "0.0,0.0,1.0,0.0"), "class (MEL, NV, BCC, ...), and one column"),
        (
            "healthy,rust",
            ("True,False", "False,True"),
            """table["label"] = table[['healthy', 'rust']].idxmax(axis=1)""",
        ),
        ("a,b,c,d", ("1,,,", ",1,,", ",,1,", ",,,1"), 'table["label"] = table.iloc[:, 1:5].idxmax(axis=1)'),
        (
            "a,b",
            ("1,0", "0,1", "1,0", "0,1", "1,1"),
            "1 of 6 rows have several classes or none, so leave",
        ),
    ],
)
def test_a_column_for_each_class_is_named_with_what_is_wanted(
    tmp_path: Path, columns: str, cells: tuple[str, ...], sentence: str
) -> None:
    root = contest(tmp_path)
    rows = "".join(f"{i:03},{cells[i % len(cells)]}\n" for i in range(6))
    (root / "train.csv").write_text(f"image_id,{columns}\n{rows}")
    assert sentence in problems_of(root, tmp_path, labels="train.csv")
    message = problems_of(root, tmp_path)
    assert message.startswith(f"{root}: train holds pictures")
    assert "train.csv names 6 of the pictures; it has a column of 0 and 1 for each class" in message
    assert sentence in message


def test_columns_of_numbers_are_not_a_column_for_each_class(tmp_path: Path) -> None:
    root = contest(tmp_path)
    (root / "train.csv").write_text("image_id,age,kept\n" + "".join(f"{i:03},{i},{i % 2}\n" for i in range(6)))
    assert 'name it: data.columns = { label = "NAME" }' in problems_of(root, tmp_path, labels="train.csv")


def test_a_table_of_the_validation_pictures_alone_is_not_suggested_for_training(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "imagenet", {"train/a": 3, "train/b": 3, "val": 3})
    (root / "LOC_val_solution.csv").write_text("ImageId,Label\nval/000,a\nval/001,b\nval/002,a\n")
    assert "LOC_val_solution" not in problems_of(root, tmp_path)


def test_a_sample_submission_alone_is_no_table_of_labels(tmp_path: Path) -> None:
    root = contest(tmp_path)
    (root / "sample_submission.csv").write_text("id,label\n000,a\n001,a\n002,a\n")
    message = problems_of(root, tmp_path)
    assert "and no class folder, so their classes are not known" in message
    assert "to train on those" not in message


def test_tables_of_several_splits_with_spaces_after_commas_come_with_lines_that_work(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "dents", {"train": 6, "valid": 4, "test": 4})
    for split in ("train", "valid", "test"):
        rows = "".join(
            f"{file.name}, {i % 2}, {1 - i % 2}\n" for i, file in enumerate(sorted((root / split).glob("*")))
        )
        (root / split / "_classes.csv").write_text(f"filename, Crack, Dent\n{rows}")
    message = problems_of(root, tmp_path)
    line = line_in(message)
    assert unknown_names(line) == set()
    assert f"pathlib.Path({str(root)!r}).glob('*/_classes.csv')" in line
    rows = ["file,label,split\n"]  # what pandas writes
    for split in ("train", "valid", "test"):
        for row in (root / split / "_classes.csv").read_text().splitlines()[1:]:
            rows.append(f"{split}/{row.split(',')[0]},{'Crack' if ', 1, 0' in row else 'Dent'},{split}\n")
    (root / "labels.csv").write_text("".join(rows))
    data = prepare(root, tmp_path, labels="labels.csv")
    assert data.notices == ()
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 6, "val": 4, "test": 4}
    assert [line.strip() for line in problems_of(root, tmp_path).splitlines()[-2:]] == [
        *("[data]", 'labels = "labels.csv"'),
    ]
    (root / "labels.csv").unlink()
    assert "of all splits" not in problems_of(root / "train", tmp_path, labels="_classes.csv")
    for split in ("train", "valid", "test"):
        one = root / split / "_classes.csv"
        first, *rest = one.read_text().splitlines()
        named = [f"{row},{'Crack' if ', 1, 0' in row else 'Dent'}\n" for row in rest]
        one.write_text("".join([f"{first},label\n", *named]))
    used = {"labels": "train/_classes.csv"}
    valid, test = sorted(prepare(root, tmp_path, **used).notices, reverse=True)
    assert valid == (
        "4 pictures have no row, the first: valid/000.png; the table valid/_classes.csv names them, and is not used; "
        "to use it, add its rows to train/_classes.csv, with a column split that says train or val in each row"
    )
    assert test.endswith(
        'the table test/_classes.csv names them, and is not used; to use it, set data.test_labels = "test/_classes.csv"'
    )
    assert prepare(root, tmp_path, **used, test_labels="test/_classes.csv").notices == (valid,)
    shutil.rmtree(root / "valid")
    assert prepare(root, tmp_path, **used, test_labels="test/_classes.csv").notices == ()


def test_the_line_for_a_column_of_each_class_says_the_tables_separator(tmp_path: Path) -> None:
    root = contest(tmp_path)
    rows = "".join(f"{i:03};{i % 2};{1 - i % 2}\n" for i in range(6))
    (root / "train.csv").write_text(f"image_id;a;b\n{rows}")
    assert "train.csv', dtype=dict.fromkeys(['image_id'], str), skipinitialspace=True, sep=';')" in problems_of(
        root, tmp_path, labels="train.csv"
    )


def test_ids_without_their_leading_zeros_are_said_with_the_cure(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "numbers", {"train": 12, "test": 3})
    (root / "trainLabels.csv").write_text("id,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(1, 12)))
    message = problems_of(root, tmp_path)
    assert "most rows of trainLabels.csv name no picture, because ids lack leading zeros: '1' is perhaps " in message
    assert (
        "train/001.png; write ids as in the names; this line of Python does so in a new table, trainLabels-" in message
    )
    named = problems_of(root, tmp_path, labels="trainLabels.csv")
    assert (
        "11 problems with trainLabels.csv; ids lack leading zeros: '1' is perhaps train/001.png; write ids as"
        in named.splitlines()[0]
    )
    for told in (message, named):
        run_line(told)
        corrected = prepare(root, tmp_path, labels="trainLabels-corrected.csv", bad_files="skip")
        assert [file.name for file in corrected.bad_files] == ["train/000.png"]
        (root / "trainLabels-corrected.csv").unlink()
    (root / "trainLabels.csv").write_text("id,label\n" + "".join(f"{i:03},{'ab'[i % 2]}\n" for i in range(12)))
    assert prepare(root, tmp_path, labels="trainLabels.csv").class_names == ("a", "b")
    folders = make_folder(tmp_path / "folders", {"cat": 12, "dog": 12})
    (folders / "sizes.csv").write_text("id,label\n" + "".join(f"{i},{i}\n" for i in range(1, 12)))
    assert prepare(folders, tmp_path).notices == (), "class folders are read without a word about it"


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("{i}.0", "ids are written with a decimal point: '0.0' is perhaps train/0.png; write ids"),
        ("{i}.jpg", "files have another ending here: '0.jpg' is perhaps train/0.png; write"),
        ("set/{i}.png", "files are in other folders here: 'set/0.png' is perhaps train/0.png"),
    ],
)
def test_names_that_are_nearly_those_of_pictures_are_said_with_the_cure(tmp_path: Path, written: str, why: str) -> None:
    root = contest(tmp_path)
    for file in root.glob("train/*"):
        file.rename(file.with_name(f"{int(file.stem)}.png"))
    (root / "t.csv").write_text(
        "id,label\n" + "".join(f"{written.format(i=i)},{('NA', 'b')[i % 2]}\n" for i in range(6))
    )
    message = problems_of(root, tmp_path)
    assert f"most rows of t.csv name no picture, because {why}" in message
    named = problems_of(root, tmp_path, labels="t.csv")
    assert f"6 problems with t.csv; {why}" in named
    for told in (message, named):
        run_line(told)
        assert prepare(root, tmp_path, labels="t-corrected.csv").class_names == ("NA", "b")
        (root / "t-corrected.csv").unlink()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("above", ["", "sep=;\n", '# made by hand, on Monday;"x\n# again\n', "# a\n\n", "\n"])
def test_the_line_that_corrects_a_table_reads_it_as_the_program_does(tmp_path: Path, above: str, encoding: str) -> None:
    root = make_folder(tmp_path / "numbers", {"pics": 12})
    rows = "".join(f"{i};{('Épagneul', 'b')[i % 2]}\n" for i in range(12))
    (root / "t.csv").write_text(f"{above}id;label\n{rows}", encoding=encoding)
    for settings in ({}, {"labels": "t.csv"}):
        run_line(problems_of(root, tmp_path, **settings))
        data = prepare(root, tmp_path, labels="t-corrected.csv")
        assert (data.class_names, len(data.names)) == (("b", "Épagneul"), 12)
        (root / "t-corrected.csv").unlink()


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nid;label\n000;a\n001;b\n002;a\n003;b\n004;a\n005;b\n",
        "id|label\n000|a\n001|b\n002|a\n003|b\n004|a\n005|b\n",
        "id;label;x, y, and z\n000;a;1\n001;b;1\n002;a;1\n003;b;1\n004;a;1\n005;b;1\n",
    ],
)
def test_the_separator_is_the_one_that_cuts_the_lines(tmp_path: Path, text: str) -> None:
    data = labelled(contest(tmp_path), text, tmp_path)
    assert classes_of(data) == EXPECTED
    root = contest(tmp_path / "again")
    (root / "train.csv").write_text(text.replace("005", "009"))
    assert f"train.csv line {7 + text.startswith('sep')}: 009: names no file" in problems_of(
        root, tmp_path, labels="train.csv"
    )


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("split", ["train", "train", "test"]),
        ("partition", ["Training", "Validation"]),
        ("partition", ["0", "0", "1", "2"]),
        ("data_split", ["1", "0"]),
        ("md5", [f"{i:032x}" for i in range(24)]),
        ("caption", [f"a photo of thing {i}" for i in range(24)]),
        ("age", [f"{20 + (i % 12) * 1.25}" for i in range(24)]),
    ],
)
def test_columns_that_are_no_classes_are_not_suggested(tmp_path: Path, column: str, cells: list[str]) -> None:
    root = make_folder(tmp_path / "data", {"pics": 24})
    (root / "t.csv").write_text(f"file,{column}\n" + "".join(f"{i:03},{cells[i % len(cells)]}\n" for i in range(24)))
    assert "t.csv" not in problems_of(root, tmp_path)
    classes = make_folder(tmp_path / "classes", {"cat": 12, "dog": 12})
    for i, file in enumerate(sorted(classes.rglob("*.png"))):
        file.rename(file.with_name(f"{i:03}.png"))
    shutil.copy(root / "t.csv", classes)
    assert prepare(classes, tmp_path).notices == ()
    (root / "t.csv").write_text("file,age\n" + "".join(f"{i:03},{0.5 + i % 3}\n" for i in range(24)))
    assert '  columns = { file = "file", label = "age" }' in problems_of(root, tmp_path)


def test_urls_beside_files_are_not_a_second_column_of_files(tmp_path: Path) -> None:
    root = contest(tmp_path)
    rows = "".join(f"{i:03}.png,https://example.com/{i:03}.png,{'ab'[i % 2]}\n" for i in range(6))
    (root / "t.csv").write_text(f"name,url,species\n{rows}")
    told = problems_of(root, tmp_path)
    assert "if one of its columns (species) has their classes" in told or 'label = "species"' in told


def test_labels_that_are_many_numbers_are_said(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"pics": 48})
    text = "file,label\n" + "".join(f"{i:03},{1.5 + i % 12}\n" for i in range(48))
    (notice,) = labelled(root, text, tmp_path).notices
    assert notice.startswith("train.csv: 12 different labels are numbers with decimal places, such as 1.5, and each is")


def test_a_test_table_with_decimal_points_is_told_the_name_of_the_class(tmp_path: Path) -> None:
    root = contest(tmp_path)
    (root / "train.csv").write_text("id,label\n" + "".join(f"train/{i:03},{i % 2}\n" for i in range(6)))
    (root / "test.csv").write_text("id,label\n" + "".join(f"test/{i:03},{i % 2}.0\n" for i in range(3)))
    message = problems_of(root, tmp_path, labels="train.csv", test_labels="test.csv")
    assert "class 0.0 in test: this class has no training picture; rename it to 0" in message


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("cat", "dog", "cat|dog"), "cat|dog"),
        (("scab", "rot", "scab rot"), "scab rot"),
        (('"cat,dog"', "cat", "dog"), "cat,dog"),
        (("\"['cat', 'dog']\"", "['cat']", "['dog']"), "['cat', 'dog']"),
        (("scab|rot", "fox", "rot|mold"), "rot|mold"),
        (('"{""choices"": [""big cat"",""dog""]}"', "fox", "emu"), '{"choices": ["big cat","dog"]}'),
        (("black cat", "cat", "dog"), ""),
        (("cat|dog", "fox", "emu"), ""),
        (("cat;dog", "fox", "emu"), ""),
    ],
)
def test_labels_that_are_several_others_are_counted(tmp_path: Path, labels: tuple[str, ...], told: str) -> None:
    root = make_folder(tmp_path / "data", {"pics": 12})
    text = "file\tlabel\n" + "".join(f"{i:03}\t{labels[i % 3]}\n" for i in range(12))
    notices = labelled(root, text, tmp_path).notices
    count = 8 if "|" in labels[0] and "|" in labels[2] else 4
    expected = (
        f"train.csv: {count} rows have several labels, such as {told}, and each combination is taken for a class; "
    )
    assert [one[: len(expected)] for one in notices] == ([expected] if told else [])


def test_a_table_of_the_test_pictures_alone_is_told_and_class_folders_of_it_are_the_test_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "signs", {"Train/0": 3, "Train/1": 3, "Test": 2})
    (root / "Test.csv").write_text("Path,ClassId\nTest/000.png,1\nTest/001.png,1\n")
    _, told = prepare(root, tmp_path).notices
    assert told == (
        "Test.csv has the classes of 2 test pictures; to use them as the test split, move each into the folder of its "
        "class, such as Test/1"
    )
    (root / "Test" / "1").mkdir()
    for file in (root / "Test").glob("*.png"):
        file.rename(root / "Test" / "1" / file.name)
    data = prepare(root, tmp_path)
    assert (len(data.splits["test"]), data.notices) == (2, ())


def test_numbers_that_name_pictures_by_chance_are_the_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "dogs", {"train": 6})
    for number, file in enumerate(sorted(root.rglob("*.png"))):
        file.rename(file.with_name(f"{number}.png"))
    (root / "train.csv").write_text("id,breed_code\n" + "".join(f"{i},{i % 2}\n" for i in range(6)))
    message = problems_of(root, tmp_path)
    assert message.splitlines()[-1] == '  columns = { file = "id", label = "breed_code" }'
    columns = {"file": "id", "label": "breed_code"}
    assert prepare(root, tmp_path, labels="train.csv", columns=columns).class_names == ("0", "1")
    (root / "train.csv").unlink()
    rows = "".join(f"{i}.png, {i % 2}, {1 - i % 2}\n" for i in range(6))
    (root / "train" / "_classes.csv").write_text(f"filename, cat, dog\n{rows}")
    assert "it has a column of 0 and 1 for each class (cat, dog)" in problems_of(root, tmp_path)
    (root / "train" / "_classes.csv").write_text(f"name, cat, dog\n{rows}")
    assert "os.renames" not in problems_of(root, tmp_path)


@pytest.mark.parametrize("said", ["", "sep=;\r"])
def test_the_line_ends_of_old_macintosh_programs_end_lines(tmp_path: Path, said: str) -> None:
    root = contest(tmp_path)
    rows = "".join(f"{i:03};{'ab'[i % 2]}\r" for i in range(6))
    (root / "train.csv").write_bytes(f"{said}id;label\r{rows}".encode())
    assert problems_of(root, tmp_path).splitlines()[-1] == '  labels = "train.csv"'
    assert prepare(root, tmp_path, labels="train.csv").class_names == ("a", "b")
    (root / "train.csv").write_bytes(f"{said}id;label\r{rows}006;a\r".encode())
    line = 9 if said else 8
    assert f"train.csv line {line}: 006: names no file" in problems_of(root, tmp_path, labels="train.csv")
