"""An export is what its card says, to someone who has nothing but the folder and stock timm."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from desk import LIMIT, open_database
from optuna_dashboard import get_note, save_note
from PIL import Image
from safetensors.numpy import load_file
from stranger import Export, Exported, onnx_logits

import search.export.export
import search.export.proof
from search.errors import ProofFailed, exit_code_of
from search.paths import Runs
from search.study.lock import own_study
from search.study.storage import parse_url
from search.watch.page import EXPORTED, SEARCHED
from studies import load
from trainer.config import ModelSize

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MAX_LOGIT_DIFFERENCE = 1e-4


@pytest.fixture(params=["digits", "shapes"])
def export(exported: Exported, request: pytest.FixtureRequest) -> Export:
    found = getattr(exported, request.param)
    assert isinstance(found, Export)
    return found


def test_a_stranger_with_stock_timm_gets_the_cards_accuracy_from_the_raw_files(export: Export) -> None:
    assert export.ours == [], "nothing of ours was imported"
    assert export.metrics["evaluation"]["split"] == "test"
    assert export.metrics["evaluation"]["n"] == len(export.test_pictures)
    assert export.accuracy == export.metrics["evaluation"]["accuracy"]
    assert export.accuracy > 0.4, "a model that learned something, or the comparison would be worth nothing"


@pytest.mark.parametrize("batch", [1, 7])
def test_torch_alone_agrees_at_any_batch_size(export: Export, batch: int) -> None:
    program = torch.export.load(export.folder / "model.pt2").module()
    with torch.inference_mode():
        found = program(torch.from_numpy(export.batch[:batch])).numpy()
    assert np.abs(found - export.logits[:batch]).max() <= MAX_LOGIT_DIFFERENCE


def test_each_library_gives_the_cards_accuracy(export: Export) -> None:
    names = json.loads((export.folder / "config.json").read_text())["label_names"]
    true = [names.index(picture.parent.name) for picture in export.test_pictures]
    program = torch.export.load(export.folder / "model.pt2").module()
    with torch.inference_mode():
        by_torch = program(torch.from_numpy(export.batch)).numpy()
    for logits in (by_torch, onnx_logits(export.folder, export.batch), export.logits):
        assert float((logits.argmax(1) == true).mean()) == export.metrics["evaluation"]["accuracy"]
    libraries = [one["library"] for one in export.metrics["proof"]["formats"].values()]
    assert libraries == ["timm", "ONNX Runtime", "torch.export"]


def test_the_card_says_the_same(export: Export) -> None:
    card = (export.folder / "README.md").read_text()
    assert f"**{export.accuracy:.2%}** top-1 on the test split, n = {len(export.test_pictures):,}" in card
    assert f"{export.params:,} of at most {LIMIT:,}" in card
    assert 'timm.create_model("local-dir:' in card
    assert f"{export.accuracy:.2%} on the test split" in export.answer.out
    assert str(export.folder) in export.answer.out


def test_parameters_are_recounted_and_within_the_limit(export: Export) -> None:
    assert export.params == export.metrics["model"]["num_params"] == export.metrics["proof"]["num_params"] <= LIMIT
    assert export.params == sum(
        array.size
        for name, array in load_file(export.folder / "model.safetensors").items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )


@pytest.mark.parametrize("batch", [1, 7])
def test_onnx_runtime_agrees_at_any_batch_size(export: Export, batch: int) -> None:
    found = onnx_logits(export.folder, export.batch[:batch])
    assert found.shape == (batch, len(export.metrics["data"]["class_names"]))
    assert np.abs(found - export.logits[:batch]).max() <= MAX_LOGIT_DIFFERENCE


def test_the_strangers_accuracy_is_proven_where_the_pictures_are_files(exported: Exported) -> None:
    assert exported.shapes.metrics["proof"]["stranger_accuracy"] == exported.shapes.accuracy
    assert exported.digits.metrics["proof"]["stranger_accuracy"] is None
    assert "read with timm alone" in (exported.shapes.folder / "README.md").read_text()


def test_predict_finds_the_class_that_the_model_finds(exported: Exported, export: Export) -> None:
    chosen = list(range(0, len(export.test_pictures), max(1, len(export.test_pictures) // 9)))
    answer = exported.desk.inside(
        "predict", export.folder, *(export.test_pictures[index] for index in chosen), "--json"
    )
    assert answer.code == 0, answer.err
    names = json.loads((export.folder / "config.json").read_text())["label_names"]
    predictions = answer.json()["predictions"]
    top = [prediction["classes"][0]["name"] for prediction in predictions]
    assert top == [names[export.logits[index].argmax()] for index in chosen]
    for prediction, index in zip(predictions, chosen, strict=True):
        logits = export.logits[index]
        likeliest = float(np.exp(logits.max()) / np.exp(logits).sum())
        assert prediction["classes"][0]["probability"] == pytest.approx(likeliest, abs=1e-4)


def test_predict_lists_every_picture_that_it_cannot_read(exported: Exported) -> None:
    (exported.desk.folder / "note.txt").write_text("no picture")
    good = exported.digits.test_pictures[0]
    answer = exported.desk.inside("predict", exported.digits.folder, "note.txt", good, "gone.png", "--strict")
    assert answer.code == 4
    assert answer.out == ""
    assert "note.txt: is not a picture in a format that Pillow knows" in answer.err
    assert "gone.png: cannot be opened (No such file or directory)" in answer.err
    assert str(good) not in answer.err


def test_predict_with_an_export_that_lost_its_model(exported: Exported, tmp_path: Path) -> None:
    half = shutil.copytree(exported.digits.folder, tmp_path / "half")
    damages: list[tuple[Callable[[], object], int, str]] = [
        (lambda: (half / "model.onnx").write_bytes(b"no model"), 9, "model.onnx is not the file that was proven"),
        ((half / "model.onnx").unlink, 2, "model.onnx is missing"),
        ((half / "config.json").unlink, 2, "is not an export (no usable config.json)"),
    ]
    for damage, code, sentence in damages:
        damage()
        answer = exported.desk.inside("predict", half, exported.digits.test_pictures[0])
        assert answer.code == code
        assert sentence in answer.err
        assert "Traceback" not in answer.err


def test_the_same_export_again_trains_and_writes_nothing(exported: Exported) -> None:
    folder = exported.digits.folder
    with open_database(f"sqlite:///{exported.desk.runs}/search.db") as storage:
        study = optuna.load_study(study_name="small", storage=storage)
        shown = get_note(study)
        assert str(folder) in shown
        save_note(study, "as a kill before it was written would have left it")
    before = {path: path.stat().st_mtime_ns for path in (*folder.rglob("*"), *exported.desk.runs.rglob("checkpoint"))}
    again = exported.desk.inside("export-best", "--gpus", "cpu", "--json")
    assert again.code == 0, again.err
    assert again.json() == exported.digits.metrics | {"path": str(folder)}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with open_database(f"sqlite:///{exported.desk.runs}/search.db") as storage:
        now = get_note(optuna.load_study(study_name="small", storage=storage))
    assert now.startswith(EXPORTED)
    assert now.partition(SEARCHED)[0] == shown.partition(SEARCHED)[0]


def test_an_export_that_differs_from_its_card_is_not_put_in_place(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card of this one claims the size of another model."""
    runs, number = Runs(exported.desk.runs), exported.digits.metrics["trial"]
    spec = load(str(exported.desk.folder / "small.toml"), ["final.formats=[]"])
    url = parse_url(f"sqlite:///{exported.desk.runs}/search.db")
    monkeypatch.setattr(search.export.export, "check_limit", lambda *_: [ModelSize(params=1, macs=1)])
    with pytest.raises(ProofFailed) as failure:
        search.export.export.export_best(
            "small",
            url,
            runs,
            "cpu",
            asked=spec,
            out=tmp_path / "wrong",
            numbers=(number,),
            to_stderr=True,
        )
    assert exit_code_of(failure.value) == 9
    params = exported.digits.metrics["model"]["num_params"]
    kept = tmp_path / ".wrong.partial"
    assert str(failure.value) == (
        f"the export failed its proof: parameters: {params} in the export, 1 in its card; it was not put in place, "
        f"look at it in {kept}"
    )
    assert not (tmp_path / "wrong").exists()
    assert (kept / "model.safetensors").exists()


def test_the_cards_own_lines_load_and_ask_each_format(export: Export) -> None:
    card = (export.folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        code = block.replace("PATH/TO/THIS/FOLDER", str(export.folder))
        exec(code.replace("PICTURE.png", str(export.test_pictures[0])), names)
        if "logits" in code:
            assert np.abs(np.asarray(names.pop("logits").tolist()) - export.logits[:1]).max() <= MAX_LOGIT_DIFFERENCE


def test_the_confirmed_trial_is_exported_with_its_own_settings(exported: Exported) -> None:
    metrics = exported.digits.metrics
    trials = exported.desk.trials("small")
    found = metrics["confirmation"]
    chosen = trials[metrics["trial"]]
    assert found["winner"] == chosen.number
    assert found["raw_best"] == max(trial.value for trial in trials if trial.value is not None)
    assert chosen.value == metrics["search"]["val_accuracy"]
    assert metrics["sampled"] == chosen.params
    assert {name: metrics["config"][name] for name in chosen.params} == chosen.params


def test_what_was_confirmed_is_counted_and_shown(exported: Exported) -> None:
    found = exported.digits.metrics["confirmation"]
    assert (found["trainings"], found["done"]) == (4, 4)
    best = next(one for one in found["candidates"] if one["trial"] == found["winner"])
    assert len(best["accuracies"]) == 2
    assert found["estimate"] == best["mean"] == pytest.approx(sum(best["accuracies"]) / 2)
    # The recipe of a confirming training is that of the final one, so the first is not done twice.
    assert exported.digits.metrics["histories"][0][-1]["val_accuracy"] == best["accuracies"][0]
    assert exported.digits.metrics["validation"]["accuracy"] == best["accuracies"][0]
    assert found["sentence"] in exported.digits.answer.out
    assert exported.status.json()["confirmation"]["winner"] == found["winner"]
    card = (exported.digits.folder / "README.md").read_text()
    assert f": **{best['mean']:.2%}** on validation. The search's best had claimed {found['raw_best']:.2%}." in card
    assert f"| {best['trial']} | {best['num_params']:,} | {best['search_accuracy']:.2%} |" in card
    unconfirmed = (exported.shapes.folder / "README.md").read_text()
    assert "It was not confirmed with fresh seeds" in unconfirmed


def test_sums_list_every_file_and_hold(export: Export) -> None:
    listed = [line.split("  ", 1)[1] for line in (export.folder / "SHA256SUMS").read_text().splitlines()]
    there = [path.relative_to(export.folder).as_posix() for path in export.folder.rglob("*") if path.is_file()]
    assert sorted([*listed, "SHA256SUMS"]) == sorted(there)
    check = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=export.folder, check=False)
    assert check.returncode == 0


def test_the_cards_pictures_are_there_and_show_something(export: Export) -> None:
    card = (export.folder / "README.md").read_text()
    for name in ("curves", "confusion"):
        assert f"](plots/{name}.png)" in card
        with Image.open(export.folder / f"plots/{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50


def test_the_export_holds_all_of_its_parts_and_nothing_temporary(export: Export) -> None:
    names = {path.name for path in export.folder.iterdir()}
    models = {"model.onnx", "model.pt2", "model.safetensors"}
    assert names == {"README.md", "SHA256SUMS", "config.json", "class_map.txt", "metrics.json", "plots"} | models
    assert [path.name for path in export.folder.parent.iterdir() if path.name.endswith((".partial", ".old"))] == []


def test_an_export_while_the_study_is_searched_is_refused(exported: Exported) -> None:
    url = parse_url(f"sqlite:///{exported.desk.runs}/search.db")
    with own_study("small", url, Runs(exported.desk.runs)):
        answer = exported.desk.search("export-best", "--gpus", "cpu")
    assert answer.code == 7
    assert "study 'small' is in use by process " in answer.err
