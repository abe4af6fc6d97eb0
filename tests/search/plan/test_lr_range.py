"""``search lr-range``: which candidate it trains, what it suggests, and its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inside import run_inside
from tiny import tiny_study

from search.devices import WorkerDevice
from search.errors import UsageError
from search.paths import Runs
from search.plan.lr_range import find_lr_range, suggest
from studies import Range, StudySpec, load
from trainer import fit
from trainer.config import Shape, TrainConfig
from trainer.errors import DivergedError
from trainer.models import count
from trainer.values import to_json, validate


def test_sampled_settings_are_at_the_values_of_the_first_known_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {
        "name": "small",
        "data": {"source": "digits", "image_size": 16, "test_fraction": 0.8},
        "limit": {"params": 60_000},
        "train": {"model": "resnet10t", "batch_size": 16},
        "space": {"width_mult": {"low": 0.02}, "dropout": {"low": 0, "high": 0.5}},
        "known": [{"width_mult": 0.05, "dropout": 0.25}, {"width_mult": 0.06}],
    }
    seen: list[TrainConfig] = []
    sweep = fit.sweep_lr

    def watched(config: TrainConfig, *rest: Any) -> Any:
        seen.append(config)
        return sweep(config, *rest)

    monkeypatch.setattr("trainer.fit.sweep_lr", watched)
    spec = validate(StudySpec, values, "study")
    answer = find_lr_range(spec, Runs(tmp_path), WorkerDevice("cpu", None, 1), tmp_path / "curve.png")
    assert [(config.width_mult, config.dropout) for config in seen] == [(0.05, 0.25)]
    assert answer.low <= answer.steepest <= answer.high
    found = to_json(answer)
    assert isinstance(found, dict)
    assert found.items() >= {"version": 2, "study": "small", "figure": str(tmp_path / "curve.png")}.items()
    keys = {"version", "study", "optimizer", "low", "high", "steepest", "lrs", "losses", "toml", "figure"}
    assert found.keys() == keys


@pytest.mark.parametrize(
    ("known", "model", "growth", "width"),
    [
        ([{"model": "rexnet_100", "growth": 2.5, "width_mult": 0.08}], "rexnet_100", 2.0, 0.08),
        ([{"model": "resnet10t", "growth": 1.5}], "resnet10t", 1.5, None),
        ([], "resnet10t", 2.0, None),
    ],
)
def test_what_is_trained_is_a_candidate_that_the_search_could_have(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    known: list[dict[str, Any]],
    model: str,
    growth: float,
    width: float | None,
) -> None:
    values: dict[str, Any] = {
        "name": "families",
        "data": {"source": "digits", "image_size": 16, "test_fraction": 0.8},
        "limit": {"params": 200_000},
        "space": {
            "model": ["resnet10t", "rexnet_100"],
            "width_mult": {"low": 0.05},
            "growth": {"low": 1.5, "high": 2.5},
        },
        "known": known,
    }
    seen: list[TrainConfig] = []

    def canned(config: TrainConfig, *_: Any) -> Any:
        seen.append(config)
        return zip([1e-4, 1e-3, 1e-2, 1e-1], [4.0, 3.0, 2.0, 1.0], strict=True)

    monkeypatch.setattr("trainer.fit.sweep_lr", canned)
    spec = validate(StudySpec, values, "study")
    find_lr_range(spec, Runs(tmp_path), WorkerDevice("cpu", None, 1), tmp_path / "curve.png")
    (config,) = seen
    assert (config.model, config.growth) == (model, growth)
    assert count(config, Shape(10, 16)).params <= 200_000
    if width is None:  # [train] has 1.0, and that is over the limit
        assert count(config.model_copy(update={"width_mult": config.width_mult + 1e-4}), Shape(10, 16)).params > 200_000
    else:
        assert config.width_mult == pytest.approx(width)


def test_the_suggestion_is_where_the_loss_falls_fastest_and_where_it_is_lowest() -> None:
    lrs = [10.0**number for number in range(-6, 2)]
    assert suggest(lrs, [5.0, 4.9, 4.5, 3.0, 2.0, 1.9, 2.5, 9.0]) == (1e-3, 1e-1)
    with pytest.raises(DivergedError, match="the loss rose from the start"):
        suggest(lrs, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])


def test_a_curve_that_cannot_be_drawn_is_told_before_the_test(tmp_path: Path) -> None:
    spec = validate(StudySpec, {"name": "small", "space": {"dropout": [0.1, 0.2]}}, "study")  # and it has no pictures
    with pytest.raises(UsageError, match=r"^--out .*curve.png: there is no folder .*no/such; create it first"):
        find_lr_range(spec, Runs(tmp_path), WorkerDevice("cpu", None, 1), tmp_path / "no/such/curve.png")


@pytest.mark.slow
def test_the_command_draws_the_curve_and_gives_a_line_to_paste(tmp_path: Path) -> None:
    study = tmp_path / "mine.toml"
    study.write_text(tiny_study("mine", trials=1))
    code, out, err = run_inside(tmp_path, "lr-range", "mine.toml", "--gpus", "cpu:2", "--set", "train.batch_size=16")
    assert code == 0, err
    assert "mine, adamw: the loss falls fastest at lr " in out
    assert (tmp_path / "mine-lr-range.png").read_bytes().startswith(b"\x89PNG")
    line = out.rpartition("for [space]:  ")[2].strip()
    study.write_text(tiny_study("mine", trials=1).replace("lr = { low = 0.001, high = 0.02, log = true }", line))
    pasted = load(str(study)).space["lr"]
    assert isinstance(pasted, Range)
    assert pasted.log
