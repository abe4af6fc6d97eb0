"""Shards of WebDataset and img2dataset are not classes, and files beside the pictures give the classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import make_folder, noise, prepare, problems_of
from printed_lines import run_line

SHARDS = ("00000", "00001", "00002")


def shards(root: Path, folders: tuple[str, ...], files: dict[str, str]) -> Path:
    """Four pictures in each folder, named as img2dataset does, each with such files beside it: {"cls": "{label}"}."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(4):
            path = root / folder / f"{folder[-5:]}{i:04}.png"
            noise(seed=10 * number + i).save(path)
            for ending, text in files.items():
                path.with_suffix(f".{ending}").write_text(
                    text.replace("LABEL", str(i % 2)).replace("N", f"{number}{i}")
                )
    return root


@pytest.mark.parametrize("bad_files", ["fail", "skip"])
@pytest.mark.parametrize("inside", ["", "train/"])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"cls": "LABEL", "json": '{"key": "N"}'}, "with its class ('0')"),
        ({"cls": "LABEL\n"}, "with its class ('0')"),
        ({"txt": "LABEL"}, "with its class ('0')"),
        ({"json": '{"key": "N", "label": "LABEL"}'}, "'label' in it seems to be the class"),
        ({"txt": "a dog of type LABEL on picture N", "json": '{"key": "N"}'}, "with its caption ('a dog of type 0 on"),
    ],
)
def test_shards_are_refused_with_a_line_that_makes_a_table_of_labels(
    tmp_path: Path, files: dict[str, str], told: str, inside: str, bad_files: str
) -> None:
    root = shards(tmp_path / "web", tuple(f"{inside}{one}" for one in SHARDS), files)
    message = problems_of(root, tmp_path, bad_files=bad_files)
    assert "00000, 00001 and 00002 are shards, as img2dataset and WebDataset write them" in message
    assert f"12 pictures have a .{next(iter(files))} file beside them, such as {inside}00000/000000000." in message
    assert told in message
    assert run_line(message) == ""
    if "caption" in told:
        table = (root / "labels.csv").read_text()
        rows = [line.rpartition(",")[0] + f",{i % 2}" for i, line in enumerate(table.splitlines()[1:])]
        (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert prepare(root, tmp_path, labels="labels.csv", bad_files=bad_files).class_names == ("0", "1")


@pytest.mark.parametrize("folder", ["train", "data", "00000"])
@pytest.mark.parametrize("others", [{}, {"json": '{"key": "N"}'}])
def test_files_of_classes_beside_pictures_of_one_folder_are_named(
    tmp_path: Path, folder: str, others: dict[str, str]
) -> None:
    root = shards(tmp_path / "web", (folder,), {"cls": "LABEL", **others})
    message = problems_of(root, tmp_path)
    assert "4 pictures have a .cls file beside them, such as " in message
    assert "detection" not in message


@pytest.mark.parametrize("text", ["0 0.5 0.5 0.2 0.2", "1 0.5 0.5 0.2 0.N\n0 0.5 0.5 0.2 0.N", ""])
def test_boxes_beside_pictures_are_no_classes(tmp_path: Path, text: str) -> None:
    root = shards(tmp_path / "boxes", ("train",), {"txt": text})
    assert "seems to describe objects in the pictures" in problems_of(root, tmp_path)


def test_shards_without_other_files_are_known_by_the_names_of_their_pictures(tmp_path: Path) -> None:
    root = shards(tmp_path / "web", SHARDS, {})
    message = problems_of(root, tmp_path)
    assert "are shards, as img2dataset" in message
    assert message.endswith("if they are classes, put a letter before each name")


@pytest.mark.parametrize(
    "counts", [{"00000": 2, "00001": 2}, {"00": 2, "01": 2}, {"train/0": 2, "train/1": 2}, {"1000": 2, "1001": 2}]
)
def test_classes_that_are_numbers_are_no_shards(tmp_path: Path, counts: dict[str, int]) -> None:
    assert len(prepare(make_folder(tmp_path / "digits", counts), tmp_path).class_names) == 2


def test_pictures_of_traffic_signs_are_no_shards(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "signs", {"00000": 3, "00001": 3})
    for file in [*root.rglob("*.png")]:
        file.rename(file.with_name(f"{file.parent.name}_00000_{file.stem}.png"))
    assert prepare(root, tmp_path).class_names == ("00000", "00001")
