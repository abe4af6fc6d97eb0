"""Exports as a judge sees them who has nothing of this program."""

from __future__ import annotations

import ast
import csv
import getpass
import json
import re
import socket
import sys
from contextlib import redirect_stderr
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import judge
import optuna
import pytest
from handed_over import NAMES, hand_over
from huggingface_hub import ModelCard
from inside import run_inside
from optuna_dashboard import get_note
from pydantic import ValidationError
from rich.console import Console

import search.console
from search.export import proof
from search.export.card import card
from search.export.metrics import Export, text_of_export
from search.export.place import altered
from search.export.record import ExportRecord
from search.paths import Runs
from search.study.storage import open_storage, parse_url
from search.watch.live import last_words, text_of_snapshot
from search.watch.page import CONFIRMED, EXPORTED
from search.watch.report import write_report
from search.watch.status import as_json, read_snapshot
from studies import StudySpec
from studies.final import Final
from trainer.config import Shape
from trainer.data import prepare_data
from trainer.fancy_pca import draw_fancy_pca
from trainer.sums import read_sums

STUDIES: dict[str, dict[str, Any]] = {
    "resnet": {},
    "rexnet": {"train": {"model": "rexnet_100", "width_mult": 0.3}, "lr": 0.005},
    "efficientnet": {"train": {"model": "efficientnet_b0", "width_mult": 0.3}, "lr": 0.005},
    "cifar_stem": {"train": {"stem": "cifar"}},
    "squashed": {"data": {"resize": "squash", "crop_pct": 0.8, "interpolation": "bilinear"}},
    "views": {"final": {"tta": ["flip", "rotate=10", "shift=2,-1", "gray", "fancy_pca"], "license": "cc-by-4.0"}},
    "ensemble": {"final": {"ensemble": 2, "tta": ["flip"]}, "train": {"epochs": 3}},
    "selected": {"final": {"ensemble": {"of": 3, "keep": 2}}, "train": {"epochs": 3}},
    "gray": {"data": {"channels": 1}},
    "folds": {"data": {"folds": 3, "val_fraction": 0.2}, "final": {"fit_on": "train+val"}},
}
WITHOUT_TIMM = ("efficientnet", "cifar_stem")
"""Nets that stock timm cannot build."""
FAST = ("views",)


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> tuple[Export, str]:
    """An export with views, and what it said on stderr, where it reports its progress as often as it can."""
    said = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.setattr(search.console, "LINE_SECONDS", 0.0)
        export = hand_over(tmp_path_factory.mktemp("of-the-maker"), **STUDIES["views"])
    return export, said.getvalue()


@pytest.fixture(scope="module")
def views(handed_over: tuple[Export, str]) -> Export:
    return handed_over[0]


def private(folder: Path) -> list[str]:
    """Words that only the maker's machine has."""
    user = getpass.getuser()
    here = [str(Path.home()), str(Path.cwd()), str(folder), folder.name, sys.prefix, "site-packages", "runs/"]
    return [*here, f"/{user}/", f"{user}@", socket.gethostname()]


def judged(export: Export) -> dict[str, float]:
    folder = export.path.parents[2]
    assert export.path.is_relative_to(folder / "runs")
    return judge.judge(export.path, folder / "pictures" / "test", private(folder))


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in STUDIES]
)
def test_an_export_is_what_it_says_and_says_nothing_of_its_makers_machine(name: str, tmp_path: Path, request) -> None:
    export = request.getfixturevalue("views") if name == "views" else hand_over(tmp_path, **STUDIES[name])
    accuracies = judged(export)
    assert ("timm" in accuracies) == (export.record.model.members == 1 and name not in WITHOUT_TIMM)


def test_the_card_and_the_metrics_of_an_export_name_its_views_and_the_colour_shift(views: Export) -> None:
    folder, model = views.path.parents[2], views.record.model
    fancy = model.fancy_pca
    assert fancy is not None
    spec = StudySpec.model_validate({"name": "s", "space": {"lr": [1]}, "train": {"model": "resnet10t"}})
    data = spec.data.model_copy(update={"path": str(folder / "pictures"), "image_size": 24})
    drawn = draw_fancy_pca(prepare_data(data, folder / "runs" / "cache"), 0)
    assert fancy.model_dump() == asdict(drawn)
    assert model.macs % 6 == 0
    words = (views.path / "README.md").read_text()
    named = "flip, rotate=10 (degrees, counter-clockwise), shift=2,-1 (pixels, to the right and down), gray, fancy_pca"
    assert f"| views averaged | the picture and {named} |" in words
    levels = ", ".join(f"{255 * part:+.2f}" for part in drawn.shift)
    assert f"| colour shift of fancy_pca | {levels} of 255 levels (red, green, blue)" in words


def test_filters_of_low_rank_are_drawn_again_and_the_gain_over_plain_retraining_is_told(tmp_path: Path) -> None:
    rerank = {"layer": "layer2.0.conv1", "share": 0.5}
    export = hand_over(tmp_path, final={"rerank": rerank, "formats": ["onnx"], "epochs": 3}, train={"epochs": 4})
    assert "timm" in judged(export)
    record = ExportRecord.load(export.path)
    found = record.rerank
    assert found is not None
    assert record.rerank_settings == rerank
    assert (len(found.drawn_again), len(found.mean_ranks)) == (found.filters // 2, found.filters)
    assert found.pictures == record.data.pictures["train"]
    kept = [rank for number, rank in enumerate(found.mean_ranks) if number not in found.drawn_again]
    assert max(found.mean_ranks[number] for number in found.drawn_again) <= min(kept) <= found.most == 3
    assert found.n == record.validation.n
    assert found.accuracy == record.validation.accuracy, "the reranked net is the exported one"
    assert found.accuracy - found.plain_accuracy == pytest.approx((found.only_reranked - found.only_plain) / found.n)
    low, high = found.interval
    assert low <= found.accuracy - found.plain_accuracy <= high
    assert [one.stage for one in record.histories[0]] == ["training"] * 3 + ["reranking"] * 3
    words = (export.path / "README.md").read_text()
    assert f"| gain of the new filters | {found.in_words} |" in words
    assert f"of the {found.filters} of `layer2.0.conv1` were drawn again" in words
    assert "plots/ranks.png" in words
    assert "plots/ranks.png" in read_sums(export.path)
    assert f"  rerank      {found.in_words}" in text_of_export(export)
    (export.path / "plots" / "ranks.png").unlink()
    assert altered(export.path) == "plots/ranks.png is missing or altered"


@pytest.mark.slow
def test_several_trials_of_other_models_are_one_export(tmp_path: Path) -> None:
    models = ["resnet10t", "resnet14t"]
    export = hand_over(tmp_path, models=models, final={"formats": ["onnx"]}, train={"epochs": 3})
    assert export.path.name == "shapes-0-1"
    assert judged(export).keys() == {"onnx"}
    record = ExportRecord.load(export.path)
    assert [(one.trial, one.architecture, one.value) for one in record.members] == [
        (0, models[0], 0.9),
        (1, models[1], 0.89),
    ]
    assert sum(one.num_params for one in record.members) == record.model.num_params
    assert len(set(record.seeds)) == len(record.evaluation.member_accuracies) == 2
    config = json.loads((export.path / "config.json").read_text())
    assert [one["architecture"] for one in config["member_models"]] == models
    words = (export.path / "README.md").read_text()
    assert f"# shapes: resnet10t and resnet14t, {record.model.num_params:,} parameters" in words
    assert "Trials 0 and 1 of 2 (" in words
    assert "The search claimed 90.00%, 89.00% on validation for them. They were chosen by number" in words
    assert "| setting | trial 0 | trial 1 |" in words
    assert "| model | resnet10t | resnet14t |" in words
    assert "tags:\n- image-classification\n- resnet10t\n- resnet14t\n" in words
    altered = json.loads((export.path / "metrics.json").read_text())
    altered["members"][1]["num_params"] -= 1
    data: Any = SimpleNamespace(shape=Shape(num_classes=3, image_size=24), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(proof.Difference, match=r"^parameters of trial 1: "):
        proof._recount_members(altered, export.path, data, [3, 24, 24])


@pytest.mark.slow
def test_the_models_of_all_folds_are_one_export_with_their_out_of_fold_predictions(tmp_path: Path) -> None:
    final = {"ensemble": "folds", "formats": ["onnx"]}
    export = hand_over(tmp_path, data={"folds": 2, "val_fraction": 0.25}, final=final, train={"epochs": 3})
    assert judged(export).keys() == {"onnx"}
    record = ExportRecord.load(export.path)
    found = record.out_of_fold
    assert found is not None
    assert (record.model.members, len(record.seeds), len(record.histories), found.n) == (2, 1, 2, 36)
    with (export.path / "out-of-fold.csv").open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    assert len({row["picture"] for row in rows}) == len(rows) == 36
    assert all(sum(float(row[name]) for name in NAMES) == pytest.approx(1, abs=1e-4) for row in rows)
    assert all(max(NAMES, key=lambda name: float(row[name])) == row["predicted"] for row in rows)
    assert sum(row["label"] == row["predicted"] for row in rows) / 36 == found.accuracy
    for fold, history in enumerate(record.histories, 1):  # each model on the pictures that it did not know
        own = [row for row in rows if row["fold"] == str(fold)]
        assert sum(row["label"] == row["predicted"] for row in own) / len(own) == pytest.approx(
            history[-1].val_accuracy
        )
    words = (export.path / "README.md").read_text()
    assert f"| out of fold | {found.accuracy:.2%} (95 % interval" in words
    assert "on the test split, trained on the 2 folds of train+val, n = 24" in words
    assert "on 2 folds of the training and the validation split, each model on all folds but one, with seed" in words


def test_what_is_shown_of_the_study_is_the_tested_number_and_behind_it_what_the_search_claims(views: Export) -> None:
    folder, tested = views.path.parents[2], f"{views.record.evaluation.accuracy:.2%}"
    url, runs = parse_url(f"sqlite:///{folder}/search.db"), Runs(folder / "runs")
    snapshot, _ = read_snapshot("shapes", url, runs)
    console = Console(file=StringIO(), width=80)
    console.print(text_of_snapshot(snapshot))
    shown = console.file.getvalue()
    claim = "claimed trial 0, 90.00% on validation"
    assert f"tested  trial 0, {tested} on the test split, n = 24" in shown
    assert shown.index(f"{tested} on the test") < shown.index("confirmed: trial 0, 80.50%") < shown.index(claim)
    words = last_words(
        StudySpec.model_validate({"name": "shapes", "space": {"lr": [1]}, "search": {"hours": 1}}), snapshot, runs
    )
    assert f"\ntested: trial 0, {tested} on the test split" in words
    assert "\nin the search: trial 0, 90.00% on validation; export it" in words
    status = as_json(snapshot, held_by=None)
    assert status["export"]["accuracy"] == views.record.evaluation.accuracy
    report = write_report("shapes", url, runs, folder / "report.html")
    page = (folder / "report.html").read_text()
    assert f"<dt>tested accuracy</dt><dd>{tested}</dd>" in page
    assert report.story.index(f"{tested} on the test") < report.story.index("the best, trial 0, reached 90.")
    assert report.to_json()["export"] == status["export"]
    note = get_note(optuna.load_study(study_name="shapes", storage=open_storage(url)))
    assert note.index(EXPORTED) < note.index(f"  accuracy    {tested}") < note.index(CONFIRMED)


def test_an_export_tells_on_stderr_how_long_each_stage_takes(handed_over: tuple[Export, str]) -> None:
    export, said = handed_over
    for stage in ("writing the model, in steps: 1 of 3", "evaluating, in pictures: "):
        assert re.search(rf"^{stage}.*, about .* left$", said, re.MULTILINE), said
    runs = export.path.parents[1]
    command = ("export-best", "shapes", "--json", "--gpus", "cpu", "--runs", runs)
    code, out, err = run_inside(runs, *command, "--storage", f"sqlite:///{runs.parent}/search.db")
    assert code == 0, err
    assert json.loads(out)["path"] == str(export.path)
    assert "shapes: trial 0 was exported before, and nothing has changed" in err


def test_model_hubs_read_in_the_card_what_is_known_and_no_more(views: Export) -> None:
    data = ModelCard.load(views.path / "README.md").data
    evaluation = views.record.evaluation
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "cc-by-4.0")
    assert "resnet10t" in data.tags
    results = {(one.metric_type, one.dataset_split): one.metric_value for one in data.eval_results}
    assert results["accuracy", "test"] == evaluation.accuracy
    assert {kind for kind, _ in results} == set(data.metrics)
    unsaid = views.record.model_copy(
        update={"license": None, "evaluation": evaluation.model_copy(update={"split": "val"})}
    )
    data = ModelCard(card(unsaid)).data
    assert data.license is None
    assert data.eval_results is None


def test_a_licence_that_no_hub_knows_is_refused() -> None:
    assert Final(license="apache-2.0").license == "apache-2.0"
    with pytest.raises(ValidationError, match="'My own' is not a licence as model hubs name it; use for example mit"):
        Final(license="My own")


def test_the_judge_has_nothing_of_ours() -> None:
    tree = ast.parse(Path(judge.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert packages <= {"numpy", "torch", "timm", "onnxruntime", "PIL", "sklearn"}
