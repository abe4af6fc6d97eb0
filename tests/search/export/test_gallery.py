"""The most confident mistakes: which they are, what their maps show, and who gets to see them."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from exports import recorded
from matplotlib.axes import Axes
from PIL import Image
from torch import nn

import search.figures.mistakes
from search.console import Terminal
from search.export.card import card
from search.export.export import _draw_mistakes, _report_again
from search.export.gallery import _last_stage, confident_mistakes, layer_cam
from search.export.metrics import REFERENCE_LOGITS, section_of
from search.export.place import MISTAKES
from search.export.record import ExportRecord
from search.export.retrain import Retraining
from search.export.scores import Answers, scores_of
from search.figures.mistakes import Mistake, caption, draw_mistakes
from search.paths import Runs
from search.study.owned import OwnedStudy
from search.study.storage import open_storage, parse_url
from search.watch.export_section import section, store_section
from search.watch.report import html_of_report
from studies import StudySpec
from trainer.config import Shape, TrainConfig
from trainer.data import Dataset
from trainer.evaluate import Ensemble
from trainer.models import build_model


class Corners(nn.Module):
    """Class 0 is red, class 1 is green, by two feature maps and their means."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1, bias=False)
        self.features.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).reshape(2, 3, 1, 1)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_map_is_bright_where_the_class_is_and_only_there() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[0, 0, :3, :3] = 1.0  # red, above left
    image[0, 1, 5:, 5:] = 0.5  # green, below right
    both = image.repeat(2, 1, 1, 1)
    maps = layer_cam(Corners(), both, torch.tensor([0, 1]))
    assert maps is not None
    red, green = maps
    assert (red[:3, :3] == 1).all()
    assert red.sum() == pytest.approx(9)
    assert (green[5:, 5:] == 1).all()
    assert green.sum() == pytest.approx(9)


def test_the_stage_is_the_last_one_with_enough_cells() -> None:
    net = build_model(TrainConfig(model="resnet10t", width_mult=0.125), Shape(10, 32)).eval()
    stage = _last_stage(net, torch.zeros(1, 3, 32, 32))
    assert stage is not None
    sides: list[int] = []
    stage[0].register_forward_hook(lambda module, inputs, output: sides.append(output.shape[2]))
    maps = layer_cam(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    assert set(sides) == {4}, "its last stage has a single cell"
    assert maps is not None
    assert maps.shape == (2, 32, 32)
    assert layer_cam(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2), torch.tensor([0])) is None


def test_the_most_confident_come_first_and_an_ensemble_has_the_mean_of_its_maps(digits: Dataset) -> None:
    indices = digits.splits["val"]
    labels = digits.labels[indices]
    logits = 9 * np.eye(10, dtype=np.float32)[labels]
    for place, confidence in ((5, 1.0), (7, 3.0), (9, 2.0)):
        logits[place] = 0
        logits[place, (labels[place] + 1) % 10] = confidence
    members = [
        build_model(TrainConfig(model="resnet10t", width_mult=0.125, seed=seed), digits.shape) for seed in (0, 1)
    ]
    found = confident_mistakes(Ensemble(members).eval(), digits, "val", logits)
    assert [one.true for one in found] == [str(labels[place]) for place in (7, 9, 5)]
    assert [one.predicted for one in found] == [str((labels[place] + 1) % 10) for place in (7, 9, 5)]
    assert found[0].probability == pytest.approx(np.exp(3) / (np.exp(3) + 9))
    assert np.array_equal(found[0].picture, digits.images[indices[7]])
    alone = [confident_mistakes(member.eval(), digits, "val", logits)[0].heat for member in members]
    assert found[0].heat == pytest.approx((alone[0] + alone[1]) / 2, abs=1e-5)  # type: ignore[operator]
    assert confident_mistakes(members[0], digits, "val", 9 * np.eye(10, dtype=np.float32)[labels]) == []


def test_they_are_drawn_whatever_their_classes_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gray, colour = np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    heat = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    one = Mistake(picture=gray, heat=heat, true="참새", predicted="$5 to $9", probability=0.99)
    other = Mistake(picture=colour, heat=None, true="<b>", predicted="x" * 90, probability=0.5)
    names, titles = ["$5 to $9", "<b>", "참새", "x" * 90], set[str]()
    set_title = Axes.set_title

    def title(axes: Axes, words: str, **style: Any) -> Any:
        titles.add(words)
        return set_title(axes, words, **style)

    monkeypatch.setattr(Axes, "set_title", title)
    monkeypatch.setattr(search.figures.mistakes, "fonts_for", lambda text: None if "참" in text else ["DejaVu Sans"])
    draw_mistakes([one, other, one, other], names, tmp_path / "mistakes.png")
    with Image.open(tmp_path / "mistakes.png") as drawn:
        assert drawn.size == (1080, 420)
    assert titles == {"is class 3", "class 1, 99.0%", "is class 2", "class 4, 50.0%"}
    assert "numbered as the lines of class_map.txt" in caption(names)
    draw_mistakes([other], names[:2] + names[3:], tmp_path / "mistakes.png")
    assert titles >= {"is <b>", f"{'x' * 19}…, 50.0%"}
    assert "numbered" not in caption(names[:2])


def shown(folder: Path, digits: Dataset, *, gallery: bool) -> tuple[ExportRecord, Path, Runs]:
    """An export as far as its mistakes go: the record, the export's folder, the runs."""
    labels = digits.labels[digits.splits["val"]]
    net = build_model(TrainConfig(model="resnet10t", width_mult=0.125), digits.shape).eval()
    logits = np.random.default_rng(0).normal(size=(len(labels), 10)).astype(np.float32)
    export, runs = folder / "export", Runs(folder)
    export.mkdir(parents=True)
    runs.study("digits").mkdir(parents=True)
    np.savez(export / REFERENCE_LOGITS, whole=logits)
    values = recorded() | {"study": "digits", "gallery": gallery}
    values["evaluation"] |= {"split": "val"}
    values["evaluation"]["scores"] = scores_of(Answers.of(logits, labels), labels, digits.class_names).to_json()
    record = ExportRecord.model_validate(values)
    spec = StudySpec.model_validate({"name": "digits", "data": {"source": "digits"}, "space": {"lr": [0.1, 0.2]}})
    storage = open_storage(parse_url(f"sqlite:///{folder}/search.db"), create=True)
    owned: Any = OwnedStudy(optuna.create_study(storage=storage), spec, lambda: None)
    _draw_mistakes(export, record, net, Retraining(owned, runs, digits, [], Terminal(file=StringIO())))
    storage.remove_session()
    storage.engine.dispose()
    return record, export, runs


def test_an_export_has_them_only_if_it_was_asked_for_and_the_report_always(tmp_path: Path, digits: Dataset) -> None:
    for gallery in (False, True):
        record, export, runs = shown(tmp_path / str(gallery), digits, gallery=gallery)
        assert (export / MISTAKES).exists() is gallery
        assert ("plots/mistakes.png" in card(record)) is gallery
        assert record.to_json().get("gallery", False) is gallery
        words = section(runs, "digits")
        assert "<h2>The exported model, trial 5</h2>" in words
        assert "<td>macro F1</td>" in words
        assert "<th>recall</th>" in words
        assert "data:image/png;base64,iVBOR" in words
        spec = StudySpec.model_validate({"name": "digits", "data": {"source": "digits"}, "space": {"lr": [0.1, 0.2]}})
        assert words in html_of_report(spec, [], {}, datetime.now(UTC), exported=words)


def test_a_report_without_an_export_or_with_a_damaged_one_has_no_such_section(tmp_path: Path, digits: Dataset) -> None:
    assert section(Runs(tmp_path), "digits") == ""
    _, _, runs = shown(tmp_path / "one", digits, gallery=False)
    file = runs.export_section("digits")
    file.write_bytes(file.read_bytes().replace(b"macro F1", b"macro F2"))
    with pytest.warns(UserWarning, match=r"the report leaves the export out; export again"):
        assert section(runs, "digits") == ""


def test_an_export_that_was_made_before_is_the_reports_last_one_when_it_is_asked_for_again(
    tmp_path: Path, digits: Dataset
) -> None:
    record, export, runs = shown(tmp_path, digits, gallery=False)
    words = section(runs, "digits")
    _report_again(record, export / MISTAKES, runs)
    assert section(runs, "digits") == words, "with its mistakes, which only the report has"
    store_section(section_of(record.model_copy(update={"trial": 7}), b"mistakes of trial 7"), runs, "digits")
    _report_again(record, export / MISTAKES, runs)
    assert "<h2>The exported model, trial 5</h2>" in section(runs, "digits")
    assert "base64" not in section(runs, "digits")
    earlier = record.model_copy(update={"evaluation": record.evaluation.model_copy(update={"scores": None})})
    _report_again(earlier, export / MISTAKES, runs)
    assert section(runs, "digits") == ""
