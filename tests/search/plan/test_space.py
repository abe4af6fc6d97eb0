"""Several sizes and families in one space: what fits, how a width becomes a share of what fits, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.paths import Runs
from search.plan.space import Bounds, as_sampled, distributions, feasible_models, find_bounds, known_recipes
from search.plan.width import WIDTH_STEP, Fitter
from studies import StudySpec
from trainer.config import Shape, TrainConfig
from trainer.errors import ConfigError, LimitError
from trainer.models import count
from trainer.values import validate

NUM_CLASSES, IMAGE_SIZE = 10, 16

RECIPES: list[dict[str, Any]] = [
    {"model": "rexnet_100", "width_mult": 0.2, "initial_chs": 12, "depth_mult": 1.0, "growth": 2.0, "lr": 0.01},
    {"model": "resnet10t", "width_mult": 0.15, "initial_chs": 8, "depth_mult": 0.6, "growth": 1.5, "lr": 0.01},
]


def study(**values: Any) -> StudySpec:
    """Two families, and settings that belong to one of them each."""
    defaults: dict[str, Any] = {
        "name": "families",
        "data": {"source": "digits", "image_size": IMAGE_SIZE},
        "limit": {"params": 400_000},
        "space": {
            "model": ["rexnet_100", "resnet10t"],
            "width_mult": {"low": 0.1},
            "initial_chs": {"low": 8, "high": 24},
            "depth_mult": [0.6, 1.0],
            "growth": {"low": 1.5, "high": 2.5},
            "lr": {"low": 1e-3, "high": 0.1, "log": True},
        },
        "known": RECIPES,
    }
    return validate(StudySpec, defaults | values, "study families")


def fitter(spec: StudySpec) -> Fitter:
    return Fitter(Shape(NUM_CLASSES, IMAGE_SIZE), spec.limit)


def candidate(spec: StudySpec, sampled: dict[str, Any]) -> TrainConfig:
    """What a worker makes of a trial's values."""
    return fitter(spec).resolve(spec.config_for(sampled, 0), sampled["width_share"], 0.1, None)


def fits(spec: StudySpec, config: TrainConfig) -> bool:
    size = count(config, Shape(NUM_CLASSES, IMAGE_SIZE))
    return size.params <= (spec.limit.params or size.params) and size.macs <= (spec.limit.macs or size.macs)


@pytest.mark.parametrize(
    ("models", "limit", "draws"),
    [
        pytest.param(["rexnet_100", "resnet10t"], {"params": 400_000}, 4, marks=pytest.mark.slow),
        (["rexnet_100", "rexnetr_100"], {"params": 400_000, "macs": 3_000_000}, 20),
    ],
)
def test_every_candidate_of_the_box_is_within_the_limits_and_the_last_share_is_the_widest(
    models: list[str], limit: dict[str, int], draws: int
) -> None:
    axes = study().model_dump()["space"] | {"model": models}
    spec, rng = study(space=axes, limit=limit, known=[]), np.random.default_rng(0)
    space = distributions(spec, None)
    assert list(space) == ["model", "width_share", "initial_chs", "depth_mult", "growth", "lr"]
    for number in range(draws):
        sampled = {name: drawn(axis, number, rng) for name, axis in space.items()}
        config, widest = candidate(spec, sampled), candidate(spec, sampled | {"width_share": 1.0})
        assert 0.1 <= config.width_mult <= widest.width_mult
        assert fits(spec, config)
        assert fits(spec, widest)
        assert not fits(spec, widest.model_copy(update={"width_mult": widest.width_mult + WIDTH_STEP}))


def drawn(axis: BaseDistribution, number: int, rng: np.random.Generator) -> Any:
    """A value of an axis; choices in turn."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[number % len(axis.choices)]
    if isinstance(axis, IntDistribution):
        return int(rng.integers(axis.low, axis.high, endpoint=True))
    assert isinstance(axis, FloatDistribution)
    return float(rng.uniform(axis.low, axis.high))


def test_settings_that_a_family_does_not_have_go_back_to_their_defaults() -> None:
    spec = study()
    narrow = {"width_share": 0.0, "initial_chs": 8, "depth_mult": 0.6, "growth": 1.5, "lr": 0.01}
    rexnet, resnet = (candidate(spec, narrow | {"model": model}) for model in ("rexnet_100", "resnet10t"))
    assert (rexnet.width_mult, rexnet.initial_chs, rexnet.depth_mult, rexnet.growth) == (0.1, 8, 0.6, 2.0)
    assert (resnet.width_mult, resnet.initial_chs, resnet.depth_mult, resnet.growth) == (0.1, 16, 1.0, 1.5)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["model"])
def test_a_known_width_becomes_a_share_that_stands_for_that_width(recipe: dict[str, Any]) -> None:
    spec = study()
    sampled = as_sampled(spec, recipe, fitter(spec))
    assert 0 < sampled["width_share"] < 1
    assert "width_mult" not in sampled
    assert sampled.items() >= {key: value for key, value in recipe.items() if key != "width_mult"}.items()
    config = candidate(spec, sampled)
    assert config.width_mult == pytest.approx(recipe["width_mult"], abs=1e-12)
    assert fits(spec, config)


def test_a_known_width_that_does_not_fit_or_hangs_in_the_air_is_a_sentence() -> None:
    spec = study()
    with pytest.raises(ConfigError, match=r"known: width_mult = 3 does not fit with its recipe, 0.1 to 0\.\d+ do"):
        as_sampled(spec, RECIPES[0] | {"width_mult": 3.0}, fitter(spec))
    with pytest.raises(ConfigError, match="a recipe with width_mult needs initial_chs, growth too"):
        as_sampled(spec, {"model": "rexnet_100", "depth_mult": 1.0, "width_mult": 0.2}, fitter(spec))
    assert as_sampled(spec, {"model": "resnet10t"}, fitter(spec)) == {"model": "resnet10t"}


def test_families_over_the_limit_are_left_out_with_the_reason() -> None:
    axes = {"model": ["rexnet_100", "mobilenetv3_small_050", "resnet10t"], "width_mult": {"low": 0.1}}
    spec = study(space=axes, known=[])
    fitting, left_out = feasible_models(spec, fitter(spec))
    assert fitting == ["rexnet_100", "resnet10t"]
    assert list(left_out) == ["mobilenetv3_small_050"]
    assert "the limit is 400,000 parameters" in left_out["mobilenetv3_small_050"]
    known = [{"model": "mobilenetv3_small_050", "width_mult": 1.0}, {"model": "resnet10t"}, {"width_mult": 0.1}]
    spec = study(space=axes, known=known)
    _, left_out = feasible_models(spec, fitter(spec))
    assert left_out["known.0"] == "its model, mobilenetv3_small_050, does not fit"
    assert known_recipes(spec, left_out) == known[1:]
    spec = study(space=axes, known=[], limit={"params": 500})
    with pytest.raises(LimitError, match="no model of the space fits the limit:"):
        feasible_models(spec, fitter(spec))


def test_a_corner_that_does_not_fit_names_the_largest_values_that_would() -> None:
    axes = {"width_mult": {"low": 0.2}, "initial_chs": {"low": 8, "high": 400}, "depth_mult": [0.6, 1.0]}
    spec = study(space=axes, known=[], train={"model": "rexnet_100"})
    with pytest.raises(LimitError) as caught:
        feasible_models(spec, fitter(spec))
    *_, depth, channels = str(caught.value).splitlines()
    assert channels.startswith("space.initial_chs: at most ")
    assert depth == "space.depth_mult: at most 1 fits with the others at their smallest"
    most = int(channels.split()[3])
    smallest = {"depth_mult": 0.6, "width_share": 0.0}
    narrowest = [
        spec.config_for(smallest | {"initial_chs": chs}, 0).model_copy(update={"width_mult": 0.2})
        for chs in (most, most + 5)
    ]
    assert [fits(spec, config) for config in narrowest] == [True, False]


@pytest.mark.slow
def test_the_largest_values_are_those_of_the_model_of_the_space() -> None:
    spec = study(space={"model": ["resnet10t"], "growth": {"low": 1.0, "high": 2.5}}, known=[])
    with pytest.raises(LimitError) as caught:
        feasible_models(spec, fitter(spec))
    told = str(caught.value).splitlines()[-1]
    most = float(told.removeprefix("space.growth: at most ").split()[0])
    assert most < 2.4
    sized = [spec.config_for({"model": "resnet10t", "growth": growth}, 0) for growth in (most, most + 0.1)]
    assert [fits(spec, one) for one in sized] == [True, False]


def test_an_export_that_fits_with_no_candidate_is_refused_and_one_that_fits_with_one_is_not(tmp_path: Path) -> None:
    def bounds(**values: Any) -> Bounds:
        return find_bounds(study(known=[], **values), NUM_CLASSES, Runs(tmp_path))

    with pytest.raises(LimitError) as caught:
        bounds(final={"ensemble": 40})
    head, *each = str(caught.value).splitlines()
    assert head == "no candidate of the space fits with the members and views of [final]:"
    assert [line.split(" have ")[0] for line in each] == [
        f"40 members of {model} at width_mult 0.1" for model in ("rexnet_100", "resnet10t")
    ]
    assert "; the limit is 400,000 parameters; final.limit_each = true counts each member alone; fewer" in each[0]
    assert bounds(final={"ensemble": 40, "limit_each": True}).left_out == {}
    assert bounds(final={"ensemble": 2}).left_out == {}
    one = {"space": {"width_mult": {"low": 0.1}}, "train": {"model": "resnet10t", "width_mult": 0.1}}
    fixed = {"space": {"lr": [0.1, 0.2]}, "train": one["train"]}
    macs = count(TrainConfig(model="resnet10t", width_mult=0.1), Shape(NUM_CLASSES, IMAGE_SIZE)).macs
    for way in (one, fixed):
        with pytest.raises(LimitError, match=r"resnet10t at width_mult 0\.1 with 2 views of a picture have"):
            bounds(**way, limit={"macs": 2 * macs - 1}, final={"tta": ["flip"]})
        bounds(**way, limit={"macs": 2 * macs}, final={"tta": ["flip"]})
