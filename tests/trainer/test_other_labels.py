"""Files with labels that are not read are named in a refusal, with a line of Python that helps."""

from __future__ import annotations

import json
import os
import pathlib
from pathlib import Path

import pytest
from folders import make_folder, prepare, problems_of


@pytest.mark.parametrize("inside", ["", "data/"])
def test_json_lines_of_labels_are_named_and_tables_in_their_place_are_found(tmp_path: Path, inside: str) -> None:
    root = make_folder(tmp_path / "beans", {f"{inside}train": 6, f"{inside}test": 3})
    for split, count in (("train", 6), ("test", 3)):
        records = [{"file_name": f"{i:03}.png", "label": "ab"[i % 2]} for i in range(count)]
        (root / inside / split / "metadata.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
        (root / inside / split / "other.jsonl").write_text("[1]\n")
    told = problems_of(root, tmp_path).splitlines()[-1]
    assert told.startswith(f"{inside}test/metadata.jsonl has labels, and only CSV and TSV tables are read; with pandas")
    line = told.partition("each such file: ")[2]
    assert line == (
        f'for file in pathlib.Path({str(root)!r}).rglob("*.jsonl"): '
        'pandas.read_json(file, lines=True).to_csv(file.with_suffix(".csv"), index=False)'
    )
    compile(line, "the line", "exec")
    for split, count in (("train", 6), ("test", 3)):  # what pandas writes
        rows = "".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(count))
        (root / inside / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    assert problems_of(root, tmp_path).splitlines()[-3:] == [
        "  [data]",
        f'  labels = "{inside}train/metadata.csv"',
        f'  test_labels = "{inside}test/metadata.csv"',
    ]


def test_parquet_files_are_named_with_the_line_that_writes_their_pictures(tmp_path: Path) -> None:
    root = tmp_path / "beans"
    (root / "data").mkdir(parents=True)
    (root / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    message = problems_of(root, tmp_path)
    assert message.startswith(f"{root}: data/train-00000-of-00001.parquet: pictures in Parquet files are not read; ")
    line = message.partition("image and label: ")[2]
    compile(line, "the line", "exec")
    assert f'pathlib.Path({str(root / "train")!r}, str(row["label"]))' in line


@pytest.mark.parametrize("separator", ["\t", ","])
def test_the_line_for_a_table_without_names_of_columns_makes_class_folders(tmp_path: Path, separator: str) -> None:
    root = make_folder(tmp_path / "tiny", {"train/n01/images": 3, "train/n02/images": 3, "val/images": 4})
    rows = "".join(f"{separator.join((f'{i:03}.png', f'n0{1 + i % 2}', '0', '32'))}\n" for i in range(4))
    (root / "wnids.txt").write_text("n01\nn02\n")
    (root / "words.txt").write_text("n01\tfish\nn02\tnewt\n")
    (root / "val" / "val_annotations.txt").write_text(rows)
    told = problems_of(root, tmp_path).splitlines()[-1]
    assert told.startswith(
        "val/val_annotations.txt names pictures, such as val/images/000.png, and 'n01' seems to be its"
    )
    exec(told.partition("of its class: ")[2], {"os": os, "pathlib": pathlib})
    data = prepare(root, tmp_path)
    assert [data.names[i] for i in data.splits["val"]] == [f"val/n0{1 + i % 2}/{i:03}.png" for i in (0, 2, 1, 3)]


def test_a_table_of_training_pictures_without_names_of_columns_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "plain", {"train": 4})
    (root / "labels.txt").write_text("".join(f"{i:03}.png\t{'ab'[i % 2]}\n" for i in range(4)))
    assert "'a' seems to be its class; write a line with a name for each column above it" in problems_of(root, tmp_path)
    (root / "labels.txt").write_text("file\tlabel\n" + (root / "labels.txt").read_text())
    assert prepare(root, tmp_path, labels="labels.txt").class_names == ("a", "b")
