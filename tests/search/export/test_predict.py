"""``search predict``: what it reads, what it writes, and the pictures that it cannot read."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import write_export
from inside import run_inside
from PIL import Image

import search.export.predict
from search.console import Terminal
from search.export.answers import Class
from search.export.files import open_model, read_config
from search.export.predict import Prediction, Predictions, _answers, text_of_answer
from trainer.scan import read_file

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
NAMES = ["파랑", "green", "red, dark"]
"""Names of these classes in the export; one in Korean, one with a comma."""
CLASSES = dict(zip(COLOURS, NAMES, strict=True))
PICTURES = {"a/2": "red", "a/10": "green", "b/0": "blue", "b/1": "blue"}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export that tells colours apart, four pictures in folders, and one file that is no picture."""
    weights = 9 * np.eye(3)[:, ::-1]
    write_export(tmp_path / "export", names=NAMES, weights=weights)
    for name, colour in PICTURES.items():
        file = tmp_path / "new" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), COLOURS[colour]).save(file)
    (tmp_path / "new/b/notes.doc").write_text("no picture")
    monkeypatch.setattr(search.export.predict, "BATCH_PIXELS", 2 * 8 * 8)  # two pictures a batch
    return tmp_path


def told(desk: Path, *arguments: object) -> tuple[list[list[str]], str]:
    """The rows of the .csv that a command writes, and what it says on stderr."""
    code, _, err = run_inside(desk, "predict", "export", *arguments, "--out", "out.csv")
    assert code == 0, err
    with (desk / "out.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file)), err


def refused(desk: Path, code: int, *arguments: object) -> str:
    """The message of a command that ends with a code, and writes nothing on stdout."""
    found, out, err = run_inside(desk, "predict", "export", *arguments)
    assert (found, out) == (code, ""), err
    return err


def test_the_name_of_a_picture_stands_in_one_line_in_a_pipe() -> None:
    name = f"pictures/{'long' * 30}.png"
    pipe = io.StringIO()
    answer = Predictions((Prediction(name, (Class("robin", 0.75), Class("wren", 0.25))),))
    Terminal(file=pipe).print(text_of_answer(answer), soft_wrap=True)
    assert [line.split() for line in pipe.getvalue().splitlines()[1:]] == [
        [name, "robin", "75.00%"],
        ["wren", "25.00%"],
    ]


def test_a_folder_is_searched_to_any_depth_and_what_is_no_picture_is_listed_and_left_out(desk: Path) -> None:
    rows, err = told(desk, "new")
    assert rows[0] == ["picture", "label", "probability"]
    found = {picture: label for picture, label, _ in rows[1:]}
    assert found == {f"new/{name}.png": CLASSES[colour] for name, colour in PICTURES.items()}
    assert all(float(row[2]) == pytest.approx(1 / (1 + 2 * np.exp(-9)), rel=1e-5) for row in rows[1:])
    assert err == "1 picture cannot be read:\n  new/b/notes.doc: is not a picture in a format that Pillow knows\n"


def test_texts_beside_the_pictures_of_folders_and_patterns_are_passed_over(desk: Path) -> None:
    (desk / "new/b/notes.doc").unlink()
    for name in ("0.png.json", "0.png.supplemental-metadata.json", "0.txt", "README.md", "list.CSV"):
        (desk / "new/b" / name).write_text("{}")
    for given in ("new", "new/*/*"):
        rows, err = told(desk, given)
        assert (len(rows), err) == (5, "")
    assert "no file that matches new/b/*.txt is a picture, the first: new/b/0.txt" in refused(desk, 4, "new/b/*.txt")
    _, err = told(desk, "new/a", "new/b/0.txt")
    assert err.startswith("1 picture cannot be read:\n  new/b/0.txt: "), "a file that is named is said"


def test_the_file_of_an_earlier_call_in_the_folder_is_no_picture(desk: Path) -> None:
    for _ in range(2):
        code, out, err = run_inside(desk, "predict", "export", "new", "--out", "new/answers.csv")
        assert (code, out) == (0, "4 pictures classified in new/answers.csv\n")
        assert "answers.csv" not in err


def test_patterns_and_tables_and_files_may_be_mixed_and_keep_their_order(desk: Path) -> None:
    (desk / "new/list.csv").write_text("file_name;note\nb/0.png;beside it\nnew/a/2.png;below the working folder\n")
    (desk / "plain.tsv").write_text("new/a/10.png\nnew/b/1.png\n")
    rows, err = told(desk, "new/list.csv", "new/*/1*.png", "new/a/2.png", "plain.tsv", "gone.png")
    given = ["b/0", "a/2", "a/10", "b/1", "a/2", "a/10", "b/1"]
    assert [row[:2] for row in rows[1:]] == [[f"new/{name}.png", CLASSES[PICTURES[name]]] for name in given]
    assert err == "1 picture cannot be read:\n  gone.png: cannot be opened (No such file or directory)\n"
    (desk / "table.csv").write_text("thing,note\nnew/a/2.png,x\n")
    (desk / "empty").mkdir()
    assert "none of its columns (thing, note) is called picture or path, img_path," in refused(desk, 4, "table.csv")
    assert "no file matches new/*.bmp" in refused(desk, 4, "new/*.bmp")
    assert "the folder empty holds no picture" in refused(desk, 4, "empty")


def test_columns_are_chosen_and_named(desk: Path) -> None:
    rows, _ = told(desk, "new/a", "--columns", "id,label")
    assert rows == [["id", "label"], ["10", "green"], ["2", "red, dark"]]
    rows, _ = told(desk, "new/b/0.png", "--columns", "image=file,kind = label", "--probabilities")
    assert rows[0] == ["image", "kind", *NAMES]
    assert rows[1][:2] == ["0.png", "파랑"]
    assert sum(map(float, rows[1][2:])) == pytest.approx(1, abs=1e-5)
    assert max(rows[1][2:], key=float) == rows[1][2]
    wrong = refused(desk, 2, "new", "--out", "x.csv", "--columns", "name,label")
    assert "--columns name,label: no field 'name'" in wrong
    assert "NAME=FIELD" in wrong
    twice = refused(desk, 2, "new", "--out", "x.csv", "--columns", "green=id", "--probabilities")
    assert "two columns are called 'green'" in twice


def test_a_sample_gives_its_ids_their_order_and_its_columns(desk: Path) -> None:
    (desk / "sample.csv").write_text("Id,target\n1,?\nnew/a/2,?\nlost,?\n10.png,?\n")
    rows, err = told(desk, "new", "--like", "sample.csv")
    assert rows == [["Id", "target"], ["1", "파랑"], ["new/a/2", "red, dark"], ["lost", "?"], ["10.png", "green"]]
    assert err.startswith("1 picture cannot be read; its row has the values of sample.csv:\n  lost: cannot be opened")
    (desk / "sample.csv").write_text("image,green,파랑\n0,0.5,0.5\n", encoding="utf-8")
    rows, _ = told(desk, "new", "--like", "sample.csv")
    assert rows[0] == ["image", "green", "파랑"]
    assert [round(float(value), 3) for value in rows[1][1:]] == [0.0, 1.0]
    for sample, code, sentence in (
        ("id,green,violet\n1,0,0\n", 2, "'violet' is not a class of this model"),
        ("id\n1\n", 2, "it has none beside that of the ids"),
        ("id,label\n77,\n", 4, "none of its 1 ids (the first is '77') is the id of a given picture"),
        ("id,label\nsame,\n", 4, "or write paths as ids:\n  same: new/a/same.png, new/b/same.png"),
    ):
        (desk / "sample.csv").write_text(sample)
        for folder in "ab":
            Image.new("RGB", (9, 9)).save(desk / f"new/{folder}/same.png")
        assert sentence in refused(desk, code, "new", "--like", "sample.csv", "--out", "out.csv")


def test_a_json_file_says_the_same_as_json_on_stdout(desk: Path) -> None:
    code, out, _ = run_inside(desk, "predict", "export", "new", "--json", "--top", "2")
    assert code == 0
    printed = json.loads(out)
    assert [len(one["classes"]) for one in printed["predictions"]] == [2] * 4
    assert printed["bad"] == [
        {"picture": "new/b/notes.doc", "reason": "is not a picture in a format that Pillow knows"}
    ]
    assert run_inside(desk, "predict", "export", "new", "--out", "out.json", "--top", "2")[0] == 0
    text = (desk / "out.json").read_text(encoding="utf-8")
    assert json.loads(text) == printed
    assert "파랑" in text
    code, out, _ = run_inside(desk, "predict", "export", "new", "--out", "out.json", "--probabilities", "--json")
    assert [len(one["classes"]) for one in json.loads((desk / "out.json").read_text())["predictions"]] == [3] * 4
    assert json.loads(out) == {"version": 1, "out": "out.json", "pictures": 4, "bad": printed["bad"]}


def test_strict_refuses_and_leaves_the_file_of_before(desk: Path) -> None:
    (desk / "out.csv").write_text("of before")
    before = sorted(path.name for path in desk.iterdir())
    assert "new/b/notes.doc: is not a picture" in refused(desk, 4, "new", "--strict", "--out", "out.csv")
    assert "new/b/notes.doc: is not a picture" in refused(desk, 4, "new", "--strict")
    assert "new/b/notes.doc: is not a picture" in refused(desk, 4, "new/b/notes.doc", "--out", "out.csv"), (
        "none is left"
    )
    assert (desk / "out.csv").read_text() == "of before"
    assert sorted(path.name for path in desk.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--columns", "id"], "are for a file; name it: --out predictions.csv"),
        (["--probabilities"], "are for a file; name it: --out predictions.csv"),
        (["--out", "out.txt"], "the name must end in .csv or .json"),
        (["--out", "out.json", "--columns", "id"], "--columns and --like are for a .csv"),
        (["--out", "out.csv", "--top", "2"], "--top is not for a .csv"),
        (["--out", "out.json", "--top", "2", "--probabilities"], "leave out --top"),
        (["--out", "out.csv", "--like", "s.csv", "--columns", "id"], "leave out --columns and --probabilities"),
        (["--out", "out.csv", "--like", "s.csv"], "--like s.csv: there is no such file"),
        (["--out", "nowhere/out.csv"], "its folder does not exist"),
        (["list.csv", "--out", "list.csv"], "is one of the files to read"),
    ],
)
def test_options_that_contradict_each_other_are_refused(desk: Path, options: list[str], sentence: str) -> None:
    (desk / "list.csv").write_text("picture\nnew/a/2.png\n")
    assert sentence in refused(desk, 2, "new/a/2.png", *options)
    assert (desk / "list.csv").read_text() == "picture\nnew/a/2.png\n"


def test_only_two_batches_of_pictures_are_in_memory(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def noted(file: Path) -> bytes:
        read.append(file)
        return read_file(file)

    monkeypatch.setattr(search.export.predict, "read_file", noted)
    export, many = desk / "export", [desk / "new/a/2.png"] * 40
    for taken, _ in enumerate(_answers(open_model(export), read_config(export), many)):
        assert len(read) <= taken + 3 * 2, "a batch is classified while two are read"
    assert len(read) == 40


def test_neither_predict_nor_compare_imports_torch_or_timm(desk: Path) -> None:
    for file in (desk / "new").rglob("*.*"):
        colour = PICTURES.get(f"{file.parent.name}/{file.stem}")
        if colour is not None:
            target = desk / "known" / CLASSES[colour] / f"{file.parent.name}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    commands: list[list[Any]] = [
        ["predict", "export", "known", "--out", "out.csv"],
        ["compare", "export", "export", "--data", "known"],
    ]
    look = (
        "import sys; from search.cli import app; from search.process import run_command\n"
        f"for command in {commands!r}:\n"
        "    sys.argv = ['search', *command]\n"
        "    try: run_command(app)\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "print([name for name in ('torch', 'timm', 'torchvision') if name in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=desk, check=True)
    assert answer.stderr == "[]\n"
    assert "4 pictures classified in out.csv" in answer.stdout
    assert "McNemar" in answer.stdout
