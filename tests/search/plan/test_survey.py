"""``model = ["timm:PATTERN"]``: which models of timm it stands for, counted without building them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from optuna.distributions import CategoricalDistribution
from rich.console import Console

from search.paths import Runs
from search.plan.prepare import prepare
from search.plan.space import find_bounds
from studies import StudySpec
from trainer.errors import ConfigError, LimitError

LIMIT = 500_000


def study(**values: Any) -> StudySpec:
    defaults: dict[str, Any] = {
        "name": "survey",
        "data": {"source": "digits", "image_size": 32},
        "limit": {"params": LIMIT},
        "space": {"model": ["timm:test_*"], "lr": {"low": 1e-3, "high": 1e-2, "log": True}},
    }
    return StudySpec.model_validate(defaults | values)


def models_of(spec: StudySpec, runs: Runs) -> list[str]:
    axis = find_bounds(spec, 10, runs).space["model"]
    assert isinstance(axis, CategoricalDistribution)
    return [str(choice) for choice in axis.choices]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def test_a_pattern_stands_for_the_models_that_fit_and_the_others_are_listed(runs: Runs) -> None:
    told: list[tuple[str, int, int]] = []
    bounds = find_bounds(study(), 10, runs, lambda *step: told.append(step))
    axis = bounds.space["model"]
    assert isinstance(axis, CategoricalDistribution)
    sizes: dict[str, int] = {}
    for name in timm.list_models("test_*"):
        with torch.device("meta"):
            size = {"img_size": 32} if "vit" in name or name == "test_coatnet" else {}
            net = timm.create_model(name, num_classes=10, **size)
        sizes[name] = sum(parameter.numel() for parameter in net.parameters())
    fitting = {name for name, params in sizes.items() if params <= LIMIT}
    unusable = bounds.left_out.keys() - {"timm:test_*"}
    assert set(axis.choices) == fitting - unusable
    assert len(axis.choices) >= 8
    assert sizes.keys() - fitting, "else nothing is left out"
    assert bounds.left_out["timm:test_*"] == (
        f"{len(sizes) - len(fitting)} of its {len(sizes)} models are over the limit"
    )
    assert told[-1] == ("counting models", len(sizes) - 1, len(sizes))


def test_a_pattern_whose_models_are_all_too_large_is_named(runs: Runs) -> None:
    with pytest.raises(LimitError, match=r"fits the limit:\ntimm:test_vit\*: \d of its \d models are over the limit"):
        find_bounds(study(space={"model": ["timm:test_vit*"]}, limit={"params": 1000}), 10, runs)


def test_the_counts_are_remembered_and_count_for_another_limit_too(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    first = models_of(study(), runs)

    def counted_again(*_: object) -> None:
        raise AssertionError("it was counted before")

    monkeypatch.setattr("search.plan.survey._count", counted_again)
    assert models_of(study(), runs) == first
    fewer = models_of(study(limit={"params": LIMIT // 2}), runs)
    assert 0 < len(fewer) < len(first)
    assert set(fewer) < set(first)


def test_a_model_that_gives_no_logits_is_named_with_the_reason(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Any, _: object) -> None:
        if config.model == "test_resnet":
            raise ConfigError("test_resnet does not give one logit for each class in training")

    monkeypatch.setattr("trainer.models.try_training", refuse)
    bounds = find_bounds(study(space={"model": ["timm:test_res*", "resnet10t"], "width_mult": {"low": 0.1}}), 9, runs)
    assert bounds.left_out == {"test_resnet": "test_resnet does not give one logit for each class in training"}
    assert bounds.space["model"].choices == ("resnet10t",)  # type: ignore[attr-defined]


def test_a_pattern_of_no_model_is_an_error(runs: Runs) -> None:
    line = re.escape('no such model in timm: "timm:zzz*"; "timm:*" stands for all of them')
    with pytest.raises(LimitError, match=f"no model of the space fits the limit:\n{line}"):
        find_bounds(study(space={"model": ["timm:zzz*"]}), 10, runs)


def test_a_known_recipe_may_name_a_model_of_the_pattern_and_a_survey_is_told_its_sampler(tmp_path: Path) -> None:
    spec = study(
        data={"source": "digits", "image_size": 32, "test_fraction": 0.8},
        space={"model": ["timm:test_resnet", "timm:test_byobnet"], "lr": [0.1, 0.2]},
        known=[{"model": "test_byobnet"}, {"model": "rexnet_100"}],
    )
    prepared = prepare(spec, Runs(tmp_path), Console(quiet=True))
    assert prepared.known == [{"model": "test_byobnet"}]
    assert prepared.left_out["known.1"] == "its model, rexnet_100, does not fit"
    (note,) = prepared.notes
    assert note.startswith('model = "timm:test_resnet" is a survey: with so many models, sampler = "random"')
    random = spec.model_copy(update={"search": spec.search.model_copy(update={"sampler": "random"})})
    assert prepare(random, Runs(tmp_path), Console(quiet=True)).notes == ()
