"""StudySpec: what to search, validated. Every field of a study file is documented here, with unit and default."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainer.config import DataConfig, FrozenModel, TrainConfig, nearest, validate
from trainer.errors import ConfigError

SAMPLED = (
    "width_mult",
    "dropout",
    "lr",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "warmup_epochs",
    "lr_min_ratio",
    "step_epochs",
    "step_gamma",
    "hflip",
    "vflip",
    "rotate",
    "crop_padding",
    "erase",
    "batch_size",
    "optimizer",
    "schedule",
)
"""Settings of [train] that [space] may sample. Not the number of epochs: pruners compare trials of one length."""

Value = bool | int | float | str


class Limit(FrozenModel):
    """What the model must stay under."""

    params: int | None = Field(None, ge=1)
    """Largest number of trainable parameters. Default: no limit."""
    macs: int | None = Field(None, ge=1)
    """Largest number of multiply-adds for one picture of the study's size. Default: no limit."""


class Range(FrozenModel):
    """A numeric axis of the space."""

    low: float
    """Smallest value, itself included."""
    high: float | None = None
    """Largest value, itself included. May be left out for width_mult alone: then it is the widest that fits."""
    log: bool = False
    """Sample uniformly in the logarithm."""
    step: float | None = Field(None, gt=0)
    """Only low, low + step, low + 2 step, ... Default: continuous, or every integer."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.high is not None and self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}; exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low:g} has no logarithm; use a positive low or leave out log")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; leave one out")
        return self


class Search(FrozenModel):
    """How to search, and for how long. May change while a study goes on."""

    trials: int = Field(30, ge=1)
    """Budget: finished trials (completed, pruned or failed) after which the search ends."""
    hours: float | None = Field(None, gt=0)
    """Budget: hours after which a launch starts no further trial. Default: no limit."""
    sampler: Literal["tpe", "random", "gp"] = "tpe"
    """Optuna's sampler: tree-structured Parzen estimator, uniform, or Gaussian process (slow past 200 trials)."""
    startup_trials: int = Field(10, ge=1)
    """Random trials before tpe or gp begins to model."""
    pruner: Literal["successive_halving", "hyperband", "median", "none"] = "successive_halving"
    """Optuna's pruner, asked after every epoch but the last."""
    min_epochs: int = Field(1, ge=1)
    """Epochs before a trial can be pruned (min_resource; the median's warm-up steps)."""
    reduction_factor: int = Field(3, ge=2)
    """Successive halving and hyperband keep one in so many at each rung."""


class StudySpec(FrozenModel):
    """A study: data, limit, fixed recipe, space, budget."""

    name: str
    """Name of the study in the database and of its folder. Default: the study file's name."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler and, with the trial's number, of each training."""
    data: DataConfig = DataConfig()
    """The pictures."""
    limit: Limit = Limit()
    """What no candidate may exceed."""
    train: TrainConfig = TrainConfig()
    """The fixed recipe: what every candidate shares."""
    space: dict[str, Range | tuple[Value, ...]]
    """What is sampled: a setting of [train] -> { low, high, log, step }, or a list of choices."""
    known: tuple[dict[str, Value], ...] = ()
    """Recipes to try first, each a table of settings from the space; settings left out are sampled."""
    search: Search = Search()
    """Sampler, pruner and budget."""

    @field_validator("name")
    @classmethod
    def _name_is_no_path(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError(f"{name!r} cannot name a study; use 1 to 64 letters, digits, '.', '_' or '-'")
        return name

    @model_validator(mode="after")
    def _space_and_recipes_fit(self) -> Self:
        problems = [problem for key, axis in self.space.items() for problem in self._axis_problems(key, axis)]
        if not self.space:
            problems.append("space is empty; name at least one setting to sample, for example lr")
        if not problems:
            problems = [text for number in range(len(self.known)) for text in self._recipe_problems(number)]
        if self.search.min_epochs > self.train.epochs:
            problems.append(
                f"search.min_epochs = {self.search.min_epochs} exceeds train.epochs = {self.train.epochs}"
            )
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    def config_for(self, sampled: dict[str, Any], seed: int) -> TrainConfig:
        """The candidate that a trial's sampled values and seed stand for."""
        return validate(TrainConfig, self.train.model_dump() | sampled | {"seed": seed}, "candidate")

    def _axis_problems(self, key: str, axis: Range | tuple[Value, ...]) -> list[str]:
        if key not in SAMPLED:
            return [f"space.{key}: cannot be sampled; {nearest(key, SAMPLED)}"]
        if isinstance(axis, Range):
            if TrainConfig.model_fields[key].annotation not in (int, float):
                return [f'space.{key}: is no number; list its choices, for example {key} = ["...", "..."]']
            if axis.high is None and key != "width_mult":
                return [
                    f"space.{key}: high is missing (only width_mult has one by itself: the widest that fits)"
                ]
            values: tuple[Value | None, ...] = (axis.low, axis.high)
        else:
            if len(axis) == 0 or len(set(axis)) < len(axis):
                return [f"space.{key} = {list(axis)}: list at least one choice, each once"]
            if key == "width_mult":
                return [
                    "space.width_mult: give a range, { low = 0.5 }; its upper end is the widest that fits"
                ]
            values = axis
        return [
            f"space.{key}: {problem}"
            for value in values
            if value is not None
            for problem in self._refusals(key, value)
        ]

    def _recipe_problems(self, number: int) -> list[str]:
        problems = []
        for key, value in self.known[number].items():
            axis = self.space.get(key)
            if axis is None:
                problems.append(f"known[{number}].{key}: is not in the space; {nearest(key, self.space)}")
            elif isinstance(axis, Range):
                outside = (
                    isinstance(value, str)
                    or value < axis.low
                    or (axis.high is not None and value > axis.high)
                )
                if outside:
                    high = "the widest that fits" if axis.high is None else f"{axis.high:g}"
                    problems.append(
                        f"known[{number}].{key} = {value} is outside the space, {axis.low:g} to {high}"
                    )
            elif value not in axis:
                problems.append(f"known[{number}].{key} = {value!r} is not among the space's {list(axis)}")
        return problems

    def _refusals(self, key: str, value: Value) -> list[str]:
        """What TrainConfig has against ``key = value``, given the fixed recipe."""
        integral = (
            isinstance(value, float)
            and TrainConfig.model_fields[key].annotation is int
            and value == int(value)
        )
        try:
            validate(TrainConfig, self.train.model_dump() | {key: int(value) if integral else value}, "")
        except ConfigError as error:
            return [line.strip() for line in str(error).splitlines()[1:]]
        return []
