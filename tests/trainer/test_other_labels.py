"""Files with labels that are not read are named in a refusal, with a line of Python that helps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from folders import make_folder, names_in, prepare, problems_of
from printed_lines import line_in, run_line, unknown_names
from scipy.io import savemat


@pytest.mark.parametrize("inside", ["", "data/"])
def test_json_lines_of_labels_are_named_and_tables_in_their_place_are_found(tmp_path: Path, inside: str) -> None:
    root = make_folder(tmp_path / "beans", {f"{inside}train": 6, f"{inside}test": 3})
    for split, count in (("train", 6), ("test", 3)):
        records = [{"file_name": f"{i:03}.png", "label": "ab"[i % 2]} for i in range(count)]
        (root / inside / split / "metadata.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
        (root / inside / split / "other.jsonl").write_text("[1]\n")
    told = problems_of(root, tmp_path).splitlines()[-1]
    assert told.startswith(f"{inside}test/metadata.jsonl has labels, and only CSV and TSV tables are read; this")
    assert run_line(told) == "2 tables written\n"
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
    line = line_in(message)
    assert unknown_names(line) == set()
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
    assert run_line(told) == "4 pictures moved\n"
    data = prepare(root, tmp_path)
    assert [data.names[i] for i in data.splits["val"]] == [f"val/n0{1 + i % 2}/{i:03}.png" for i in (0, 2, 1, 3)]


def test_a_table_of_training_pictures_without_names_of_columns_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "plain", {"train": 4})
    (root / "labels.txt").write_text("".join(f"{i:03}.png\t{'ab'[i % 2]}\n" for i in range(4)))
    assert (
        "'a' seems to be its class; to make it a table of labels (data.labels), add a first line with"
        in problems_of(root, tmp_path)
    )
    (root / "labels.txt").write_text("file\tlabel\n" + (root / "labels.txt").read_text())
    assert prepare(root, tmp_path, labels="labels.txt").class_names == ("a", "b")


def test_tables_without_names_of_columns_and_lists_with_spaces_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "plain", {"pics": 6})
    rows = [f"TRAIN,gs://bucket/pics/{i:03}.png,{'ab'[i % 2]}\n" for i in range(6)]
    (root / "import.csv").write_text("".join(rows))
    told = problems_of(root, tmp_path)
    assert "import.csv names pictures, such as pics/000.png, and 'a' seems to be its class; to make it a table" in told
    (root / "import.csv").write_text("".join(["split,file,label\n", *rows]))
    assert prepare(root, tmp_path, labels="import.csv").class_names == ("a", "b")
    (root / "import.csv").unlink()
    (root / "test.txt").write_text("pics/005.png 1\n")
    (root / "train.txt").write_text("".join(f"pics/{i:03}.png {i % 2}\n" for i in range(5)))
    told = problems_of(root, tmp_path)
    assert "train.txt names pictures, such as pics/000.png, and '0' seems to be its class; this line of" in told
    run_line(told)
    data = prepare(root, tmp_path, labels="labels_of_all_splits.csv")
    assert data.class_names == ("0", "1")
    assert names_in(data, "test") == {"pics/005.png"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", "file;label\n000.png;Épagneul\n".encode("latin-1"), "t.csv is not text in UTF-8; save it as CSV in"),
        (
            "labels.xlsx",
            b"PK\x03\x04",
            "labels.xlsx may have labels, and only CSV and TSV tables are read; with pandas: ",
        ),
        ("train.csv.zip", b"PK\x03\x04", "pandas.read_csv("),
        ("labels.json", b'{"000.png": "a", "001.png": "b", "002": "a", "003": "b"}', "has the classes of 4 pictures"),
        ("min.json", b'[{"image": "/data/upload/1/0a1b2c3d-000.png", "id": 7}]', "this line of Python makes"),
        ("all.json", b'[{"data": {"image": "000.png"}, "annotations": []}]', "export it from Label Studio as CSV"),
        ("people.json", b'[{"name": "Ann"}, 3]', ""),
        ("sizes.json", b'{"000.png": 1, "001.png": 2, "002": 3, "003": 4}', ""),
        ("data.zip", b"PK\x03\x04", "archives are not read (data.zip); if classes or splits are in it, extract it"),
        ("captions.csv", b"file,caption\n000,a cat\n001,a dog\n002,cats\n003,dogs\n004,a fox\n", ""),
    ],
)
def test_files_that_may_have_the_labels_are_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    root = make_folder(tmp_path / "data", {"pics": 6})
    (root / name).write_bytes(content)
    message = problems_of(root, tmp_path)
    assert "one class, pics, to train on" in message
    assert told in message
    assert (name in message) == bool(told)


def test_archives_alone_are_named(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    for i in range(3):
        (root / f"train-{i:06}.tar").write_bytes(b"x")
    message = problems_of(root, tmp_path)
    assert message.endswith(
        "archives are not read (train-000000.tar, and 2 more); if the pictures are in them, extract them"
    )


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("train/cat.{}", "train/dog.{}", "test1/{}"), ("cat", "dog")),
        (("cat_{:03}", "dog_{:03}"), ("cat", "dog")),
        (("images/great_pyrenees_{}", "images/Birman_{}"), ("Birman", "great_pyrenees")),
        (("pics/rose ({})", "pics/lily ({})"), ("lily", "rose")),
    ],
)
def test_the_line_for_classes_in_the_names_of_pictures_makes_class_folders(
    tmp_path: Path, names: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    root = tmp_path / "data"
    plain = make_folder(tmp_path / "plain", {"all": 5 * len(names)})
    pictures = sorted(plain.rglob("*.png"))
    for name in names:
        for i in range(5):
            (root / name.format(i)).parent.mkdir(parents=True, exist_ok=True)
            pictures.pop().rename(root / f"{name.format(i)}.png")
    told = problems_of(root, tmp_path).splitlines()[-1]
    assert f"seem to begin with their classes ({', '.join(classes)})" in told
    assert run_line(told) == "10 pictures moved\n"
    wrapped = root / names[0].partition("/")[0]
    data = prepare(wrapped if wrapped.name in ("images", "pics") else root, tmp_path)
    assert data.class_names == classes
    assert len(data.names) == 10


@pytest.mark.parametrize("inside", ["", "faces/"])
def test_the_line_for_parts_of_the_names_of_pictures_makes_class_folders(tmp_path: Path, inside: str) -> None:
    root = make_folder(tmp_path / "data", {inside: 12})
    for i, file in enumerate(sorted(root.rglob("*.png"))):  # as UTKFace: age, gender, group, time
        file.rename(file.with_name(f"{(7, 30, 61)[i % 3]}_{i // 6}_0_201701161745{i:05}.png.chip.png"))
    for name in ("mean_face.png", "a_b_c_read.me"):  # another picture, and no picture
        (root / inside / name).write_bytes(next(root.rglob("*.chip.png")).read_bytes())
    told = problems_of(root, tmp_path).splitlines()[-1]
    assert told.startswith(f"the names of the pictures in {root / inside} have 4 parts; if one of them is the class, ")
    assert "the folder of its part [0] (30, 61, 7); for another part, write [1] (0, 1) instead of [0]: import" in told
    assert run_line(told.replace("split('_')[0]", "split('_')[1]")) == "12 pictures moved\n"
    data = prepare(root / inside, tmp_path)
    assert data.class_names == ("0", "1")
    assert len(data.names) == 12
    assert sorted(path.name for path in (root / inside).iterdir() if path.is_file()) == [
        "a_b_c_read.me",
        "mean_face.png",
    ]


@pytest.mark.parametrize("name", ["IMG_20240101_1200{:02}", "IMG_{:04}", "a{0}_b{0}", "one_two{}_{}_three"])
def test_names_of_cameras_have_no_part_that_is_the_class(tmp_path: Path, name: str) -> None:
    root = make_folder(tmp_path / "data", {"pics": 8})
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        file.rename(file.with_name(f"{name.format(i, 100 - i)}.png"))
    assert "parts; if one of them" not in problems_of(root, tmp_path)


def test_numbered_pictures_and_pictures_beside_class_folders_have_no_classes_in_their_names(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"train/cat": 2, "train/dog": 2, "store": 1})
    for i in range(4):
        (root / "store" / f"{'xy'[i % 2]}{i}.png").write_bytes(b"x")
    assert "begin with" not in problems_of(root, tmp_path)
    flat = make_folder(tmp_path / "flat", {"pics": 8})
    assert "begin with" not in problems_of(flat, tmp_path)


@pytest.mark.parametrize("table", ["data/annotations/train.csv", "data/meta/v1/train.csv", "train.csv"])
def test_tables_beside_the_only_folder_of_pictures_are_found(tmp_path: Path, table: str) -> None:
    root = make_folder(tmp_path / "wrapped", {"data/images": 6})
    (root / table).parent.mkdir(parents=True, exist_ok=True)
    (root / table).write_text("image,label\n" + "".join(f"{i:03},{'ab'[i % 2]}\n" for i in range(6)))
    assert problems_of(root, tmp_path).splitlines()[-1] == f'  labels = "{table}"'
    assert prepare(root, tmp_path, labels=table).class_names == ("a", "b")


@pytest.mark.parametrize("ending", ["dcm", "arrow", "h5"])
def test_files_of_other_kinds_alone_are_named_by_their_ending(tmp_path: Path, ending: str) -> None:
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    for i in range(3):
        (root / "train" / f"{i}.{ending}").write_bytes(b"x")
    (root / "state.json").write_text("{}")
    told = problems_of(root, tmp_path).splitlines()[-1]
    assert told.startswith(f"no file has the ending of a picture, and 3 end in .{ending}; if pictures are in them, ")


def test_pictures_without_known_endings_are_pictures_beside_spreadsheets_and_archives(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        file.rename(file.with_suffix(("", ".png_large")[i % 2]))
    for name in ("notes.xlsx", "data.zip"):
        (root / name).write_bytes(b"PK\x03\x04")
    assert len(prepare(root, tmp_path).names) == 6


def test_archives_that_were_extracted_are_not_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "letters", {"images_background/Korean": 3, "images_background/Greek": 3})
    make_folder(root, {"images_evaluation/Tibetan": 3})
    for name in ("images_background.zip", "images_evaluation.tar.gz"):
        (root / name).write_bytes(b"x")
    assert "archives are" not in problems_of(root, tmp_path)
    (root / "more.zip").write_bytes(b"x")
    assert "\narchives are not read (more.zip); if classes or splits are in it, extract it" in problems_of(
        root, tmp_path
    )


def flowers(tmp_path: Path) -> Path:
    root = make_folder(tmp_path / "flowers", {"jpg": 12})
    for n, file in enumerate(sorted(root.rglob("*.png")), 1):
        file.rename(file.with_name(f"image_{n:05}.png"))
    (root / "102flowers.tgz").write_bytes(b"x")
    numbers = np.arange(1, 13)
    savemat(root / "imagelabels.mat", {"labels": np.array([(numbers % 3).astype(np.uint8)])})
    savemat(root / "setid.mat", {"trnid": [numbers[6:]], "valid": [numbers[:3]], "tstid": [numbers[3:6]]})
    return root


def test_the_line_for_the_files_of_flowers_makes_a_table_with_their_splits(tmp_path: Path) -> None:
    root = flowers(tmp_path)
    told = problems_of(root, tmp_path)
    assert "there is one class, jpg, to train on" in told
    assert ", or a table of labels (data.labels)\nimagelabels.mat, setid.mat may have the labels, and only CSV" in told
    run_line(told)
    data = prepare(root, tmp_path, labels="labels.csv")
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 6, "val": 3, "test": 3}
    assert [data.class_names[label] for label in data.labels] == [str(n % 3) for n in range(1, 13)]


@pytest.mark.parametrize("change", ["a picture is missing", "not a file of MATLAB"])
def test_other_files_of_matlab_are_named_without_a_line(tmp_path: Path, change: str) -> None:
    root = flowers(tmp_path)
    if change == "a picture is missing":
        (root / "jpg/image_00007.png").unlink()
    else:
        (root / "setid.mat").write_bytes(b"x")
    told = problems_of(root, tmp_path)
    assert "imagelabels.mat, setid.mat may have the labels, and only CSV and TSV tables are read; scipy.io" in told
    assert "import" not in told
