"""Lists of pictures and their classes in text files, in the forms of well-known data sets: each message is followed as
it is printed."""

from __future__ import annotations

import re
import tomllib
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from folders import make_folder, names_in, prepare, problems_of
from printed_lines import run_line

from trainer.data import Dataset
from trainer.file_index import FileIndex
from trainer.text_lists import about_lists
from trainer.tree import File

PLANES = ("707-320", "Boeing 717", "ATR-42", "BAE 146-200")


def write(root: Path, name: str, lines: Sequence[str], encoding: str = "utf-8") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{line}\n" for line in lines), encoding=encoding)


def followed(root: Path, tmp_path: Path) -> Dataset:
    """The data set after the line of Python in the message, with the settings that it names."""
    told = problems_of(root, tmp_path)
    run_line(told)
    settings = re.findall(r'data[.](labels = "[^"]*"|columns = \{.*?\})', told.partition(": import ")[0])
    return prepare(root, tmp_path, **tomllib.loads("\n".join(settings)))


def planes(tmp_path: Path, name: str = "variant", classes: Sequence[str] = PLANES) -> Path:
    """FGVC-Aircraft."""
    root = make_folder(tmp_path / "planes", {"images": 24})
    for part, numbers in (("train", range(8)), ("val", range(8, 16)), ("trainval", range(16)), ("test", range(16, 24))):
        write(root, f"images_{name}_{part}.txt", [f"{i:03} {classes[i % len(classes)]}" for i in numbers])
        write(root, f"images_{part}.txt", [f"{i:03}" for i in numbers])
    return root


@pytest.mark.parametrize("classes", [PLANES, ("Boeing 707", "Boeing 727"), ("Cessna", "Airbus")])
def test_classes_of_several_words_are_read_whole_and_the_splits_are_kept(
    tmp_path: Path, classes: Sequence[str]
) -> None:
    data = followed(planes(tmp_path, classes=classes), tmp_path)
    assert data.class_names == tuple(sorted(classes))
    assert [names_in(data, split) for split in ("train", "val", "test")] == [
        {f"images/{i:03}.png" for i in numbers} for numbers in (range(8), range(8, 16), range(16, 24))
    ]


def test_other_lists_of_classes_are_named_and_may_be_used_instead(tmp_path: Path) -> None:
    root = planes(tmp_path)
    write(root, "images_maker_train.txt", [f"{i:03} {('Boeing', 'ATR')[i % 2]}" for i in range(8)])
    write(root, "variants.txt", PLANES)
    told = problems_of(root, tmp_path)
    assert "and 'Boeing' seems to be its class; other such lists: images_variant_train.txt, images_variant_tr" in told
    run_line(told.replace("images_maker_train.txt", "images_variant_trainval.txt"))
    data = prepare(root, tmp_path, labels="images_maker_train.csv", bad_files="skip")
    assert data.class_names == tuple(sorted(PLANES))


@pytest.mark.parametrize("header", [(), ("24", "image_id x_1 y_1 width height")])
@pytest.mark.parametrize(
    "line", ["{i:03} {x} {y} 998 431", "{i:03}.png    {x}   {y}  226  313", "{i:03}.png {x},{y},22,33,1 4,5,6,7,0"]
)
def test_boxes_are_no_classes(tmp_path: Path, header: Sequence[str], line: str) -> None:
    root = make_folder(tmp_path / "data", {"images": 24})
    write(root, "images_box.txt", [*header, *(line.format(i=i, x=i % 3, y=i + 40) for i in range(24))])
    assert "images_box.txt" not in problems_of(root, tmp_path)


@pytest.mark.parametrize("inside", ["list", "trainval"])
def test_comments_and_further_numbers_are_passed_over(tmp_path: Path, inside: str) -> None:
    """Oxford-IIIT Pet."""
    root = make_folder(tmp_path / "pets", {"images": 12})
    rows = [f"{i:03} {1 + i % 3} {1 + i % 2} 1" for i in range(12)]
    comments = ["#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 Class ids", "#SPECIES: 1:Cat 2:Dog"]
    write(root, f"annotations/{inside}.txt", comments * (inside == "list") + rows)
    told = problems_of(root, tmp_path)
    assert f'of labels of it, data.labels = "annotations/{inside}.csv": import csv; ' in told
    data = followed(root, tmp_path)
    assert (data.class_names, len(data.names), data.bad_files) == (("1", "2", "3"), 12, ())


def test_a_list_with_names_of_columns_becomes_a_table_and_is_none_itself(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"images": 12})
    write(root, "list.txt", ["", "image label", *(f"{i:03}.png {'ab'[i % 2]}" for i in range(12))])
    assert 'data.labels = "list.txt"' not in problems_of(root, tmp_path)
    assert followed(root, tmp_path).class_names == ("a", "b")
    (root / "list.csv").unlink()
    write(root, "list.txt", ["12", "name,what", *(f"{i:03}.png,{'ab'[i % 2]}" for i in range(12))])
    assert followed(root, tmp_path).class_names == ("a", "b")
    write(root, "list.csv", ["notes"])
    told = problems_of(root, tmp_path)
    run_line(told)
    assert (root / "list.csv").read_text() == "notes\n", "no file is lost"
    assert prepare(root, tmp_path, labels="list-labels.csv").class_names == ("a", "b")


def test_a_text_with_names_of_columns_that_are_not_known_is_named_with_them(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"images": 12})
    write(root, "list.txt", ["photo,what", *(f"{i:03}.png,{'ab'[i % 2]}" for i in range(12))])
    told = problems_of(root, tmp_path)
    assert told.endswith(
        'is a table of labels: data.labels = "list.txt", data.columns = { file = "photo", label = "what" }'
    )
    columns = {"file": "photo", "label": "what"}
    assert prepare(root, tmp_path, labels="list.txt", columns=columns).class_names == ("a", "b")


@pytest.mark.parametrize("names", [("{}",), ("Ann{}", "Ann{} Lee")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_classes_of_which_most_do_not_repeat_are_classes(tmp_path: Path, names: Sequence[str], encoding: str) -> None:
    """CelebA's identities: 12 pictures of 8 people."""
    root = make_folder(tmp_path / "faces", {"faces": 12})
    rows = [f"{i:03}.png {names[i % len(names)].format(i % 8)}" for i in range(12)]
    write(root, "identity_CelebA.txt", rows, encoding)
    write(root, "list_eval_partition.txt", [f"{i:03}.png {i // 5}" for i in range(12)])
    told = problems_of(root, tmp_path)
    run_line(told)
    made = "".join(f"{row.replace(' ', ',', 1)}\n" for row in ["file label", *rows])
    assert (root / "identity_CelebA.csv").read_text() == made
    assert problems_of(root, tmp_path).endswith('; its table is there: data.labels = "identity_CelebA.csv"')


@pytest.mark.parametrize("has_name", [True, False])
def test_columns_of_yes_and_no_are_named_with_the_settings_for_one(tmp_path: Path, *, has_name: bool) -> None:
    root = make_folder(tmp_path / "faces", {"faces": 12})
    header = "image_id " * has_name + "Bald  Male Young"
    rows = [f"{i:03}.png {'-1' if i % 2 else ' 1'} -1  1" for i in range(12)]
    write(root, "list_attr_celeba.txt", ["12", header, *rows])
    told = problems_of(root, tmp_path)
    assert "list_attr_celeba.txt names pictures, such as faces/000.png, and has columns of yes and no (Bald, Ma" in told
    data = followed(root, tmp_path)
    assert data.class_names == ("-1", "1")
    assert (root / "list_attr_celeba.csv").read_text().splitlines()[:2] == ["file,Bald,Male,Young", "000.png,1,-1,1"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("list_landmarks.txt", ["69  109  106  {n}  77 142", "70  109  106  {n}  77 140"]),
        ("points.txt", ["{i} 1{i}"]),
        ("ages.txt", ["{i}.25"]),
        ("list_eval_partition.txt", ["0", "1", "2"]),
        ("train_test_split.txt", ["0", "1"]),
        ("use.txt", ["train", "val", "test"]),
        ("classes.txt", ["{i:03}.Albatross_{i}"]),
        ("masks.txt", ["annot/{n:03}.png"]),
        ("captions.txt", ["a dog runs {n} times around its house", "two people look at {n} boats"]),
        ("several.txt", ["banded", "striped", "banded striped"]),
        ("objects.txt", ["1 2", "2", "3 1 2"]),
        ("names.txt", [""]),
    ],
)
def test_lists_of_other_things_are_not_taken_for_classes(tmp_path: Path, name: str, rows: Sequence[str]) -> None:
    root = make_folder(tmp_path / "data", {"images": 24})
    write(root, name, [f"{i:03}.png {rows[i % len(rows)].format(i=i, n=i - i % 3)}" for i in range(24)])
    assert name not in problems_of(root, tmp_path)


def test_the_columns_of_a_class_with_a_box_are_separate(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"images": 8})
    write(root, "boxes.txt", [f"{i:03}.png {'ab'[i % 2]} 0 {i} 32 44" for i in range(8)])
    assert followed(root, tmp_path).class_names == ("a", "b")


def test_pictures_of_a_split_are_moved_into_folders_of_classes_of_several_words(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "tiny", {"train/gold fish/images": 3, "train/newt/images": 3, "val/images": 4})
    write(root, "val/val_annotations.txt", [f"{i:03}.png {('gold fish', 'newt')[i % 2]}" for i in range(4)])
    assert run_line(problems_of(root, tmp_path)) == "4 pictures moved\n"
    data = prepare(root, tmp_path)
    assert data.class_names == ("gold fish", "newt")
    assert len(data.splits["val"]) == 4


def test_lists_of_splits_that_share_pictures_or_have_other_classes_are_not_joined(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"images": 12})
    write(root, "train.txt", [f"{i:03} {'ab'[i % 2]}" for i in range(8)])
    write(root, "val.txt", [f"{i:03} {'ab'[i % 2]}" for i in range(7, 10)])
    write(root, "test.txt", [f"{i:03} -1" for i in range(10, 12)])
    assert 'data.labels = "train.csv"' in problems_of(root, tmp_path)


@pytest.mark.parametrize("name", ["labels/{}.txt", "lists/one-indexed-{}.txt", "clipart_{}.txt"])
def test_lists_of_splits_in_a_folder_are_joined_and_a_table_of_one_is_told_of_the_others(
    tmp_path: Path, name: str
) -> None:
    root = make_folder(tmp_path / "pages", {f"images/{i}": 1 for i in range(12)})
    for split, numbers in (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 12))):
        write(root, name.format(split), [f"{i}/000.png {i % 3}" for i in numbers])
    (root / "table.csv").write_text("file,label\n" + "".join(f"images/{i}/000.png,{i % 3}\n" for i in range(6)))
    (notice,) = prepare(root, tmp_path, labels="table.csv", stratified=False).notices
    both = " and ".join(sorted(map(name.format, ("test", "val"))))
    assert notice == (
        f"6 pictures have no row, the first: images/10/000.png; they are in {both}, and they are not used; if those "
        "lists have classes, add the lines to table.csv, with a column split that says train, val or test in each row"
    )
    (root / "table.csv").unlink()
    for part in (root / "images").iterdir():  # else the folders are taken for classes
        (part / "000.png").rename(root / "images" / f"{part.name}.png")
    for file in root.rglob("*.txt"):
        file.write_text(file.read_text().replace("/000.png", ".png"))
    data = followed(root, tmp_path)
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 6, "val": 3, "test": 3}


@pytest.mark.parametrize("name", ["ImageSets/train_cls.txt", "ImageSets/val.txt", "ImageSets/test.txt"])
def test_numbers_of_pictures_are_no_classes(tmp_path: Path, name: str) -> None:
    root = make_folder(tmp_path / "imagenet", {"Data": 6})
    write(root, name, [f"{i:03} {i + 1}" for i in range(6)])
    assert name not in problems_of(root, tmp_path)


def test_numbers_of_pixels_are_not_cut_into_cells(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"pics": 4})
    pixels = " ".join(str(value) for value in range(100, 200)) * 23
    (root / "fer.csv").write_text("emotion,pixels\n" + f"1,{pixels}\n" * 1_500)
    (root / "masks.txt").write_text("".join(f"{i % 4:03}.png {pixels}\n" for i in range(1_500)))
    files = [File(file.name, file, None) for file in sorted(root.glob("*.*"))]
    index = FileIndex([File(f"pics/{i:03}.png", root / f"pics/{i:03}.png", None) for i in range(4)], root)
    tracemalloc.start()
    try:
        assert list(about_lists(files, index, root)) == []
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shared", [0, 1])
def test_long_lists_sorted_by_class_are_joined_unless_they_share_a_picture(tmp_path: Path, shared: int) -> None:
    root = make_folder(tmp_path / "data", {"pics": 12})
    lines = [f"{i:03}.png {'ab'[i // 5]}\n" for i in range(10)]
    (root / "train.txt").write_text(lines[0] * 5_000 + "".join(lines[1:5]) * 2_000 + "".join(lines[5:]))
    (root / "test.txt").write_text("010.png a\n011.png b\n" + lines[9] * shared)
    told = problems_of(root, tmp_path)
    assert ("makes a table of labels of it and test.txt" in told) == (not shared)
