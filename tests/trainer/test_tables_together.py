"""The lines for label tables that are printed work together: each is used as it is printed."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from folders import make_folder, prepare, problems_of
from printed_lines import run_line

from trainer.data import Dataset


def used(message: str, root: Path, tmp_path: Path) -> Dataset:
    """The data set with the lines in a message, after its line of Python, if that comes before them."""
    before, _, after = message.partition("\n  [data]\n")
    if "this line of Python" in before:
        run_line(before)
    lines = [line for line in after.splitlines() if line.startswith("  ")]
    return prepare(root, tmp_path, **tomllib.loads("\n".join(lines)))


def write(root: Path, name: str, numbers: Iterable[int], header: str = "Filename,Label", kinds: str = "abc") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{i:03}.png,{kinds[i % len(kinds)]}\n" for i in numbers)
    (root / name).write_text(f"{header}\n{rows}")


def sizes(data: Dataset) -> dict[str, int]:
    return {split: len(found) for split, found in data.splits.items()}


def weeds(tmp_path: Path, subsets: int, *, whole: bool) -> Path:
    root = make_folder(tmp_path / "weeds", {"images": 30})
    for k in range(subsets):
        parts = {"val": range(6 * k, 6 * k + 6), "test": [(6 * k + 6 + i) % 30 for i in range(4)]}
        write(root, f"labels/val_subset{k}.csv", parts["val"])
        write(root, f"labels/test_subset{k}.csv", parts["test"])
        rest = set(range(30)) - {*parts["val"], *parts["test"]}
        write(root, f"labels/train_subset{k}.csv", sorted(rest))
    if whole:
        write(root, "labels/labels.csv", range(30))
    return root


@pytest.mark.parametrize("subsets", [1, 5])
def test_a_table_of_all_pictures_goes_before_tables_that_leave_some_out(tmp_path: Path, subsets: int) -> None:
    root = weeds(tmp_path, subsets, whole=True)
    message = problems_of(root, tmp_path)
    assert (
        '[data]\n  labels = "labels/labels.csv"\nto keep the splits of labels/train_subset0.csv, labels/val_' in message
    )
    assert sum(sizes(used(message, root, tmp_path)).values()) == 30
    run_line(message)
    data = prepare(root, tmp_path, labels="labels_of_all_splits.csv")
    assert sizes(data) == {"train": 20, "val": 6, "test": 4}
    assert (data.bad_files, data.notices) == ((), ())
    assert "to keep the splits" not in problems_of(root, tmp_path), "once is enough"


@pytest.mark.parametrize("subsets", [1, 5])
def test_tables_of_all_splits_are_joined_by_the_line_that_is_printed(tmp_path: Path, subsets: int) -> None:
    root = weeds(tmp_path, subsets, whole=False)
    message = problems_of(root, tmp_path)
    assert "labels/train_subset0.csv, labels/val_subset0.csv and labels/test_subset0.csv name 30 of the" in message
    assert sizes(used(message, root, tmp_path)) == {"train": 20, "val": 6, "test": 4}
    message = problems_of(root, tmp_path)
    assert '  labels = "labels_of_all_splits.csv"' in message.splitlines()
    assert sizes(used(message, root, tmp_path)) == {"train": 20, "val": 6, "test": 4}


def test_tables_of_splits_with_other_names_of_columns_are_joined(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "cactus", {"train": 8, "test": 4})
    write(root, "train.csv", range(8), "image_name,has_cactus", "ab")
    (root / "test.csv").write_text("id;label\n" + "".join(f"test/{i:03}.png;{'ab'[i % 2]}\n" for i in range(4)))
    message = problems_of(root, tmp_path)
    assert message.splitlines()[-4:-1] == [
        *("  [data]", '  labels = "train.csv"', '  columns = { file = "image_name", label = "has_cactus" }')
    ]
    assert sizes(used(message, root, tmp_path))["train"] > 0
    run_line(message)
    assert sizes(prepare(root, tmp_path, labels="labels_of_all_splits.csv"))["test"] == 4


def test_a_test_table_with_placeholders_for_labels_is_not_joined_and_groups_are_kept(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "eyes", {"images": 12})
    for part, numbers in (("train", range(8)), ("val", range(8, 10))):
        rows = "".join(f"{i:03}.png,{'ab'[i % 2]},p{i // 2}\n" for i in numbers)
        (root / f"{part}.csv").write_text(f"file,label,group\n{rows}")
    (root / "test.csv").write_text("file,label,group\n010.png,-1,p9\n011.png,-1,p9\n")
    message = problems_of(root, tmp_path)
    assert "labels_of_all_splits" not in message
    assert used(message, root, tmp_path).class_names == ("a", "b")
    (root / "test.csv").write_text("file,label,group\n010.png,a,p9\n011.png,b,p9\n")
    run_line(problems_of(root, tmp_path))
    assert (root / "labels_of_all_splits.csv").read_text().splitlines()[:2] == [
        *("file,label,group,split", "000.png,a,p0,train")
    ]


def test_tables_inside_three_splits_are_joined(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "imagefolder", {"train": 8, "valid": 4, "test": 4})
    for part, count in (("train", 8), ("valid", 4), ("test", 4)):
        write(root, f"{part}/metadata.csv", range(count), "file_name,label", "ab")
    message = problems_of(root, tmp_path)
    data = used(message, root, tmp_path)
    assert len(data.splits["test"]) == 4
    run_line(message)
    assert sizes(prepare(root, tmp_path, labels="labels_of_all_splits.csv")) == {"train": 8, "val": 4, "test": 4}


def test_a_test_table_that_shares_pictures_or_has_further_classes_is_not_suggested(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "shared", {"images": 12})
    write(root, "all.csv", range(12), kinds="ab")
    write(root, "test.csv", range(6), kinds="ab")
    message = problems_of(root, tmp_path)
    assert message.splitlines()[-2:] == ["  [data]", '  labels = "all.csv"']
    assert used(message, root, tmp_path).class_names == ("a", "b")
    root = make_folder(tmp_path / "further", {"train": 6, "test": 6})
    write(root, "train.csv", range(6), "id,label", "ab")
    write(root, "test.csv", range(6), "id,label", "ax")
    message = problems_of(root, tmp_path)
    assert "test_labels" not in message
    (notice,) = used(message.partition("\nto keep")[0], root, tmp_path).notices
    assert notice.endswith("the table test.csv names them, and is not used; train.csv has no picture of x")


def test_a_table_that_leaves_pictures_out_is_suggested_with_the_line_for_that(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "some", {"images": 12})
    write(root, "train.csv", range(2, 14), kinds="ab")
    message = problems_of(root, tmp_path)
    assert message.splitlines()[-1] == (
        '  bad_files = "skip"  # leaves out 2 pictures without a row and 2 rows without a file'
    )
    assert len(used(message, root, tmp_path).bad_files) == 4


def test_pictures_without_a_row_are_told_of_the_table_that_names_them(tmp_path: Path) -> None:
    root = weeds(tmp_path, 1, whole=False)
    settings = {"labels": "labels/train_subset0.csv", "test_labels": "labels/test_subset0.csv"}
    assert (
        "; files without a row are in labels/val_subset0.csv: add those rows to labels/train_subset0.csv, with a "
        "column split that says train, val or test in each row:\n"
    ) in problems_of(root, tmp_path, **settings)


def test_all_tables_that_name_pictures_without_a_row_are_told_at_once(tmp_path: Path) -> None:
    """As EuroSAT has them: class folders, and a table for each split."""
    root = make_folder(tmp_path / "land", {"Forest": 6, "River": 6})
    names = [f"{kind}/{number:03}" for kind in ("Forest", "River") for number in range(6)]
    for table, chosen in (("train", names[::3]), ("validation", names[1::3]), ("test", names[2::3])):
        rows = [f"{at},{name}.png,{name.split('/')[0]}" for at, name in enumerate(chosen)]
        (root / f"{table}.csv").write_text("\n".join([",Filename,Label", *rows]) + "\n")
    message = problems_of(root, tmp_path, labels="train.csv")
    assert (
        "; files without a row are in test.csv and validation.csv: add those rows to train.csv, with a column split "
        "that says train, val or test in each row:\n"
    ) in message
    (root / "again.csv").write_text((root / "test.csv").read_text())
    assert "are in again.csv and validation.csv: add" in problems_of(root, tmp_path, labels="train.csv"), "not test.csv"
    lines = ["Filename,Label,split"]
    for table in ("train", "validation", "test"):
        cells = [row.split(",") for row in (root / f"{table}.csv").read_text().splitlines()[1:]]
        lines += [f"{name},{label},{table}" for _, name, label in cells]
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    data = prepare(root, tmp_path, labels="train.csv")
    assert {split: len(indices) for split, indices in data.splits.items()} == {"train": 4, "val": 4, "test": 4}


@pytest.mark.parametrize("header", ["id_code", "id_code,diagnosis", "id_code,age"])
def test_a_test_table_is_named_only_if_it_has_labels(tmp_path: Path, header: str) -> None:
    root = make_folder(tmp_path / "eyes", {"train_images": 8, "test_images": 4})
    write(root, "train.csv", range(8), "id_code,diagnosis", "01")
    cells = "" if "," not in header else ",{}"
    (root / "test.csv").write_text(f"{header}\n" + "".join(f"test_images/00{i}{cells.format('')}\n" for i in range(4)))
    settings = {"labels": "train.csv", "columns": {"file": "id_code", "label": "diagnosis"}}
    (notice,) = prepare(root, tmp_path, **settings).notices
    assert notice.endswith(f"an exported model classifies them: search predict EXPORT {root}/test_images")
    (root / "test.csv").write_text("id_code,diagnosis\n" + "".join(f"test_images/00{i},{i % 2}\n" for i in range(4)))
    (notice,) = prepare(root, tmp_path, **settings).notices
    assert notice.endswith('to use it, set data.test_labels = "test.csv"')
    assert len(prepare(root, tmp_path, **settings, test_labels="test.csv").splits["test"]) == 4


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("above", ["", "sep=,\n", "# of the clinic, in May\n\n"])
def test_joined_tables_are_read_as_the_program_does_and_keep_their_other_columns(
    tmp_path: Path, encoding: str, above: str
) -> None:
    root = make_folder(tmp_path / "eyes", {"images": 12})
    for part, numbers in (("train", range(8)), ("val", range(8, 10)), ("test", range(10, 12))):
        rows = "".join(f"{i:03}.png, {'äb'[i % 2]},p{i // 2},{i}\n" for i in numbers)
        text = f"{above}image,label,patient_id,{part}_note\n{rows}\n"
        (root / f"{part}.csv").write_text(text, encoding=encoding)
    data = used(problems_of(root, tmp_path), root, tmp_path)
    assert sizes(data) == {"train": 8, "val": 2, "test": 2}
    assert data.class_names == ("b", "ä")
    assert (root / "labels_of_all_splits.csv").read_text("utf-8").splitlines()[0] == "file,label,patient_id,split"
    assert [one for one in data.notices if "column patient_id is not used" in one]
