"""``search lr-range``: which candidate it trains, what it suggests, and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fast import slow_after
from inside import run_inside
from tiny import tiny_study

from search.devices import WorkerDevice
from search.errors import UsageError
from search.paths import Runs
from search.plan.lr_range import HIGHEST, LOWEST, STEPS, Curve, Fall, find_lr_range
from studies import Range, StudySpec, load
from trainer import fit
from trainer.config import Shape, TrainConfig
from trainer.errors import DivergedError
from trainer.models import count
from trainer.values import to_json, validate

LRS = [LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1)) for number in range(STEPS)]


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
    slow_after(
        1,
        [
            ([{"model": "rexnet_100", "growth": 2.5, "width_mult": 0.08}], "rexnet_100", 2.0, 0.08),
            ([{"model": "resnet10t", "growth": 1.5}], "resnet10t", 1.5, None),
            ([], "resnet10t", 2.0, None),
        ],
    ),
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
        return zip(LRS, recorded("digits-adamw").losses, strict=True)

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


def recorded(name: str) -> Curve:
    """A curve of a real test; the file says of which one."""
    losses = json.loads((Path(__file__).parent / "lr-curves.json").read_text())[name]["losses"]
    return Curve.of(LRS, losses)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("digits-adamw", 7e-4, 2e-2),
        ("cub100-sgd", 2e-2, 6e-2),  # before the burn-in, "the steepest" was step 2, and the range began at 1e-7
    ],
)
def test_a_recorded_curve_gives_the_range_from_its_first_lasting_fall_to_its_turn(
    name: str, low: float, high: float
) -> None:
    curve = recorded(name)
    fall = curve.fall()
    assert isinstance(fall, Fall)
    assert (fall.low, fall.high) == (low, high)
    assert low <= fall.steepest <= high
    begins, turns = (int(np.searchsorted(LRS, value)) for value in (low, high))
    assert np.mean(curve.losses[begins:turns]) < np.mean(curve.losses[:begins]) - np.std(curve.losses[:begins]) / 2
    assert np.mean(curve.losses[-10:]) > np.mean(curve.losses[begins:turns]), "by then it has turned"


def test_a_recorded_curve_that_says_nothing_is_refused_with_its_numbers() -> None:
    assert recorded("cub100-adamw").fall() == (
        "the test has no result: from 4.82 the loss fell by 0.12, and batches of this noise need a lasting fall by "
        "0.2; larger batches (train.batch_size) and less augmentation make the losses less noisy"
    )


def test_noise_alone_gives_no_range() -> None:
    falls = [Curve.of(LRS, np.random.default_rng(seed).normal(4.6, 0.2, STEPS).tolist()).fall() for seed in range(300)]
    assert sum(isinstance(fall, Fall) for fall in falls) <= 3


def test_a_range_lies_within_what_was_tested_even_if_the_loss_never_turns() -> None:
    rng = np.random.default_rng(0)
    falling = np.concatenate([np.full(60, 5.0), np.linspace(5, 1, 60)]) + rng.normal(0, 0.1, STEPS)
    fall = Curve.of(LRS, falling.tolist()).fall()
    assert isinstance(fall, Fall)
    assert LRS[60] < fall.low < LRS[70]
    assert LRS[110] < fall.high <= LRS[-1]
    short = Curve.of(LRS[:80], falling[:80].tolist()).fall()
    assert isinstance(short, Fall)
    assert short.high <= LRS[79]


@pytest.mark.parametrize("steps", [0, 5, 29])
def test_a_test_that_ends_at_once_says_so(steps: int) -> None:
    rising = Curve.of(LRS[:steps], np.linspace(2, 9, steps).tolist()).fall()
    assert isinstance(rising, str)
    assert rising.startswith(f"the test has no result: it ended after {steps} of 120 steps, because the loss rose")


def test_a_test_that_says_nothing_is_an_error_and_its_curve_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = recorded("cub100-adamw").losses
    monkeypatch.setattr("trainer.fit.sweep_lr", lambda *_: zip(LRS, losses, strict=True))
    values = {"name": "noisy", "data": {"source": "digits", "image_size": 16, "test_fraction": 0.8}}
    spec = validate(StudySpec, values | {"space": {"dropout": [0.1, 0.2]}}, "study")
    curve = tmp_path / "curve.png"
    with pytest.raises(DivergedError, match=r"^the test has no result: from 4\.82 .*; the curve is in .*curve.png$"):
        find_lr_range(spec, Runs(tmp_path), WorkerDevice("cpu", None, 1), curve)
    assert curve.read_bytes().startswith(b"\x89PNG")


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
    assert "mine, adamw: the loss falls from lr " in out
    assert (tmp_path / "mine-lr-range.png").read_bytes().startswith(b"\x89PNG")
    line = out.rpartition("for [space]:  ")[2].strip()
    study.write_text(tiny_study("mine", trials=1).replace("lr = { low = 0.001, high = 0.02, log = true }", line))
    pasted = load(str(study)).space["lr"]
    assert isinstance(pasted, Range)
    assert pasted.log
