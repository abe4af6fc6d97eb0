"""Classes of any name go through every command: what people call things is theirs."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from inside import run_inside
from PIL import Image

from search.study.storage import sqlite_url

NAMES = (r"$\mathds{R}$", "참새", "<b>[red]bold", "\x1b[31mred", "caf\udce9", "étourneau", "x" * 250)

STUDY = """
[data]
image_size = 16
val_fraction = 0.3
test_fraction = 0.25
[train]
model = "wrn-10-1"
width_mult = 0.5
epochs = 1
batch_size = 8
[space]
lr = { low = 0.002, high = 0.01, log = true }
[search]
trials = 1
pruner = "none"
[confirm]
top = 0
[final]
formats = ["onnx"]
"""


@pytest.mark.slow
def test_classes_of_any_name_are_searched_exported_told_and_predicted(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for file in range(12):
            Image.new("RGB", (20, 20), (30 * number, 10 * file, 90)).save(folder / f"{file}.png")
    (tmp_path / "odd.toml").write_text(STUDY)

    def search(*words: object) -> str:
        code, out, err = run_inside(tmp_path, *words)
        assert code == 0, err
        assert "\x1b[31mred" not in out + err
        return out

    assert "\\x1b[31mred" in search("check", "odd.toml", "--data", "pictures", "--gpus", "cpu")
    search("launch", "odd.toml", "--data", "pictures", "--gpus", "cpu")
    search("report", "odd", "--out", "report.html")
    search("export-best", "odd", "--gpus", "cpu", "--out", "export")
    labels = json.loads((tmp_path / "export/config.json").read_text())["label_names"]
    assert sorted(labels) == sorted(name.replace("\udce9", "\\xe9") for name in NAMES)
    card = (tmp_path / "export/README.md").read_text(encoding="utf-8")
    assert "<b>" not in card
    assert (tmp_path / "export/plots/confusion.png").stat().st_size > 1000
    search("predict", "export", "pictures/참새/0.png")
    search("compare", "export", "export", "--data", "pictures")


def test_two_spellings_of_one_accent_are_one_class(tmp_path: Path) -> None:
    from trainer.scan import scan_folder

    for split, form in (("train", "NFC"), ("val", "NFD")):
        folder = tmp_path / split / unicodedata.normalize(form, "étourneau")
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(b"picture")
        (tmp_path / split / "crow").mkdir()
        (tmp_path / split / "crow/1.png").write_bytes(b"picture")
    classes = {picture.class_name for picture in scan_folder(tmp_path).pictures}
    assert classes == {"crow", unicodedata.normalize("NFC", "étourneau")}


@pytest.mark.slow
@pytest.mark.parametrize("runs", ["r?x=1#%20 y/runs", "50%/a?b"])
def test_a_runs_folder_of_any_name_is_searched_told_and_exported_from(
    tmp_path: Path, runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_OWNER", "someone-in-particular")
    (tmp_path / "odd.toml").write_text(STUDY.replace("[data]", '[data]\nsource = "digits"'))
    for words in ("launch odd.toml --gpus cpu", "status odd", "report odd", "replay odd", "export-best odd --gpus cpu"):
        code, _, err = run_inside(tmp_path, *words.split(), "--runs", runs)
        assert code == 0, f"{words}: {err}"
        assert not err, words
    assert {path.name for path in tmp_path.iterdir()} == {"odd.toml", "odd-report.html", Path(runs).parts[0]}
    assert (tmp_path / runs / "search.db").exists()
    storage = sqlite_url(Path(runs, "search.db")).render_as_string()
    assert run_inside(tmp_path, "status", "odd", "--storage", storage)[0] == 0
    assert "someone-in-particular" in run_inside(tmp_path, "studies", "--runs", runs)[1]
    files = [path for path in (tmp_path / runs / "exports").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"someone-in-particular" in path.read_bytes()], "never in an export"
