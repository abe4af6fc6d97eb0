"""What an export decides by itself; that its files are what they say is tested end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from safetensors import SafetensorError

from search.best import missing
from search.errors import HeldError, UsageError
from search.export import _check_target, _disk_errors
from search.formats import write_graphs
from search.metrics import final_model
from search.paths import Runs
from search.retrain import Retraining
from search.study import open_test_split
from search.trainings import Outcome, Training
from studies import StudySpec
from trainer.config import EpochResult
from trainer.errors import DiskError


def test_each_final_model_is_an_opening_and_a_resumed_export_is_the_same_one(tmp_path: Path) -> None:
    study = optuna.create_study()
    weights, others = tmp_path / "model.safetensors", tmp_path / "others.safetensors"
    weights.write_bytes(b"weights")
    others.write_bytes(b"other weights")
    models = [(weights, ()), (weights, ()), (weights, ("flip",)), (weights, ("flip",)), (others, ("flip",))]
    assert [open_test_split(study, final_model(*model)) for model in models] == [1, 1, 2, 2, 3]


def test_a_place_where_no_export_can_be_made_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--out /proc/export cannot be made \(.*\); choose another folder"):
        _check_target(Path("/proc/export"))  # a folder that is there, and that nobody makes a folder in
    _check_target(tmp_path / "exports/small-1")
    assert [path.name for path in tmp_path.rglob("*")] == ["exports"]


def test_a_full_disk_ends_an_export_with_one_sentence_whichever_file_it_stops(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).eval()
    sentence = r"^no room for an export in .*/exports; make room, and the same command goes on$"
    for name in ("pt2", "onnx"):
        (tmp_path / f"model.{name}").symlink_to("/dev/full")  # every write to it finds no space left
        with pytest.raises(DiskError, match=sentence), _disk_errors(tmp_path / "exports"):
            write_graphs(tmp_path, net, (3, 8, 8), [name])
    with pytest.raises(DiskError, match=sentence), _disk_errors(tmp_path / "exports"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ValueError, match="ours"), _disk_errors(tmp_path):
        raise ValueError("ours")


def test_an_export_whose_study_was_taken_over_writes_no_more_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"name": "confirmed", "data": {"source": "digits"}, "confirm": {"top": 1, "seeds": 3}}
    spec = StudySpec.model_validate(values | {"space": {"lr": {"low": 0.001, "high": 0.1}}})
    study = optuna.create_study(direction="maximize")
    axis, size = {"lr": FloatDistribution(0.001, 0.1)}, {"num_params": 1}
    study.add_trial(
        create_trial(state=TrialState.COMPLETE, value=0.5, params={"lr": 0.01}, distributions=axis, user_attrs=size)
    )

    def trained(_retraining: Retraining, _stage: str, trainings: list[Training]) -> Iterator[Outcome]:
        result = EpochResult(
            epoch=1, train_loss=1.0, val_loss=1.0, val_accuracy=0.5, seconds=1.0, images_per_second=1.0, final=True
        )
        for training in trainings:
            yield Outcome(training, (result,))

    left = [2]  # before the first record, and before the second

    def still_owner() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise HeldError("confirmed", "a launch that was faster")

    monkeypatch.setattr(Retraining, "_outcomes", trained)
    data: Any = SimpleNamespace(fingerprint="pictures")
    devices: Any = ["one"]
    retraining = Retraining(study, spec, Runs(tmp_path), data, devices, Console(quiet=True), still_owner)
    with pytest.raises(HeldError, match="in use by a launch that was faster"):
        retraining.choose(None)
    assert [number for _, number in missing(study, spec)] == [1, 2], "what was recorded before it was lost"
