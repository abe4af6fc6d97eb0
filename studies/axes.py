"""The settings that [space] may sample. The checks of axes (ranges and choices) and of known recipes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import product
from types import NoneType, UnionType
from typing import Annotated, Self, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from trainer.config import SIZE_SETTINGS, DataConfig, Distill, Sam, TrainConfig
from trainer.values import FrozenModel, describe_problem, nearest

SAMPLED = (
    "model",
    *SIZE_SETTINGS,
    "dropout",
    "drop_path",
    "batch_size",
    "optimizer",
    "sam.rho",
    "distill.temperature",
    "distill.weight",
    "lr",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "loss",
    "focal_gamma",
    "class_weights",
    "class_sampling",
    "logit_adjustment",
    "clip",
    "agc",
    "ema",
    "patience",
    "schedule",
    "warmup_epochs",
    "lr_min_ratio",
    "step_epochs",
    "step_gamma",
    "cycle_mult",
    "plateau_patience",
    "hflip",
    "vflip",
    "rotate",
    "rotations",
    "shift",
    "scale",
    "crop_padding",
    "random_crop",
    "random_resized_crop",
    "erase",
    "brightness",
    "mixup",
    "cutmix",
    "mix_alpha",
    "augment_from_epoch",
    "augment_share",
)
"""Settings of [train] that [space] may sample. ``epochs`` may not be sampled, because pruners compare trials of equal
length."""

TABLES: dict[str, type[FrozenModel]] = {"sam": Sam, "distill": Distill}
"""Tables of [train] whose settings can be sampled. In [space], the name of a setting has its table: "sam.rho"."""

TOGETHER = (
    ("rotate", "rotations"),
    ("augment_from_epoch", "augment_share"),
    ("mixup", "cutmix"),
    ("random_crop", "random_resized_crop"),
    ("schedule", "warmup_epochs", "step_epochs"),
    ("class_weights", "class_sampling", "logit_adjustment"),
    ("sam.rho",),  # the rule also names ``precision``, which cannot be sampled
)
"""Some rules of TrainConfig concern several settings at once. Each entry belongs to one rule, and lists its settings
without those that cannot be sampled. Each rule is tested at the corners of a space: the combinations of its choices and
of the ends of its ranges. A rule that accepts all corners of a space accepts each point of it."""

WIDTH_SHARE = "width_share"
"""Name of the setting that is sampled instead of width_mult if other sampled settings change the size too. Its value is
a share, from 0 to 1, of the widths that fit with the trial's other settings. So its bounds are constant, and each point
is feasible."""

TIMM = "timm:"
"""Prefix of a choice of ``model``: "timm:PATTERN" stands for all timm models that match PATTERN and fit the limit."""


def _read_value(value: object) -> object:
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{value!r} cannot be sampled; write a number, a string, true or false")
    return value


Value = Annotated[bool | int | float | str, BeforeValidator(_read_value)]


class Range(FrozenModel):
    """A numeric axis of the space."""

    low: float
    """Smallest value, inclusive."""
    high: float | None = None
    """Largest value, inclusive. Default for width_mult: the widest that fits the limit. Other settings need a value."""
    log: bool = False
    """true: the logarithm of the value is sampled uniformly. false: the value itself is."""
    step: float | None = Field(None, gt=0)
    """Distance of the values: low, low + step, low + 2 step, ... Default: any number; for whole numbers, 1."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.high is not None and self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}; exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low:g} has no logarithm; use a positive low or leave out log")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; leave one out")
        if self.step is not None and self.step < 1e-15 * max(abs(self.low), abs(self.high or 1)):
            raise ValueError(f"step = {self.step:g} is below the precision of numbers in this range; leave it out")
        return self


def _read_axis(axis: object) -> object:
    """Read a table as a range and a list as choices. A union type would report the problems of both kinds."""
    if isinstance(axis, dict):
        try:
            return Range.model_validate(axis)
        except ValidationError as error:
            problems = [describe_problem(Range, problem).strip() for problem in error.errors()]
            raise ValueError("\n    ".join(problems).removeprefix("Range: ")) from None
    if isinstance(axis, list | tuple):
        return tuple(_read_value(value) for value in axis)
    if not isinstance(axis, Range):
        raise ValueError(f"{axis!r} is not an axis; write a range, {{ low = 0.1, high = 0.5 }}, or a list of choices")
    return axis


Axis = Annotated[Range | tuple[Value, ...], BeforeValidator(_read_axis)]
"""The values of one setting in the space: a range or choices."""


def sizes_vary(keys: Iterable[str]) -> bool:
    """Whether one of these sampled settings, other than the width, changes the size."""
    return bool(({"model", *SIZE_SETTINGS} - {"width_mult"}).intersection(keys))


def axis_problems(
    key: str, axis: Axis, train: TrainConfig | None, *, limited: bool, width_is_shared: bool
) -> Iterator[str]:
    """Problems of sampling ``key`` from ``axis``.

    Args:
        key: the setting.
        axis: its range or choices.
        train: the fixed recipe; None if it is invalid.
        limited: whether [limit] names a limit. A range of widths without ``high`` needs one.
        width_is_shared: whether WIDTH_SHARE is sampled instead of width_mult.
    """
    if key not in SAMPLED:
        of_data = key.removeprefix("data.") in DataConfig.model_fields
        cure = "[data] is the same for all candidates, so set it there" if of_data else nearest(key, SAMPLED)
        yield f"cannot be sampled; {cure}"
        return
    if isinstance(axis, Range):
        kind = annotation_of(key)
        if kind not in (int, float):
            yield f'is not a number; list its choices, for example {key} = ["...", "..."]'
            return
        if kind is int and axis.step is not None and axis.step % 1:
            yield f"step = {axis.step:g}: {key} is a whole number; use a whole step"
        if key == "width_mult" and width_is_shared and (axis.log or axis.step is not None):
            name = "log" if axis.log else "step"
            yield f"{name} has no effect if other sampled settings change the size too; leave it out"
        if axis.high is None and key != "width_mult":
            yield "high is missing (only width_mult has a default for it: the widest that fits)"
        elif axis.high is None and not limited:
            yield "high is missing, and [limit] is empty; give high, or a limit from which it follows"
        values: list[Value] = [axis.low] if axis.high is None else [axis.low, axis.high]
    else:
        values = list(axis)
        if len(values) == 0 or len(set(values)) < len(values):
            yield f"{values}: list at least one choice, each once"
        if key == "model" and TIMM in values:
            yield f'"{TIMM}" has no pattern; "{TIMM}*" stands for all models of timm'
        if key == "width_mult":
            yield "give a range, { low = 0.5 }; its upper end is the widest that fits"
            return
    if train is not None:
        for value in values:
            yield from _refusals(train, key, value)


def recipe_problems(key: str, value: Value, space: Mapping[str, Axis], train: TrainConfig | None) -> Iterator[str]:
    """Problems of ``key = value`` in a known recipe. ``train`` is the fixed recipe; None if that is invalid."""
    axis = space.get(key)
    if axis is None:
        yield f"is not in the space; {nearest(key, space)}"
    elif not isinstance(axis, Range):
        if value not in axis and not (key == "model" and any(str(one).startswith(TIMM) for one in axis)):
            yield f"{value!r} is not among the space's {list(axis)}"
    elif isinstance(value, str) or value < axis.low or (axis.high is not None and value > axis.high):
        high = "the widest that fits" if axis.high is None else f"{axis.high:g}"
        yield f"{value} is outside the space, {axis.low:g} to {high}"
    elif axis.step is not None and (Decimal(str(value)) - Decimal(str(axis.low))) % Decimal(str(axis.step)):
        yield f"{value} is not on the space's steps, {axis.low:g} + n x {axis.step:g}"
    elif train is not None:
        yield from _refusals(train, key, value)


def corner_problems(
    space: Mapping[str, Axis], train: TrainConfig, data: DataConfig | None
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Problems of combinations of settings, each valid alone, as (place in the space, problem).

    Args:
        space: the space.
        train: the fixed recipe.
        data: the pictures; None if they are invalid.
    """
    if data is not None and "random_crop" in space:
        problem = data.crop_problem(max(numbers_of("random_crop", train, space)))
        yield from [(("random_crop",), problem.removeprefix("random_crop = "))] if problem else ()
    for keys in TOGETHER:
        sampled = [key for key in keys if key in space]
        corners = product(*(values_of(key, train, space) for key in sampled))
        problems = (_contradiction(train, zip(sampled, corner, strict=True)) for corner in corners)
        text = next(filter(None, problems), None)
        if text is None:
            continue
        named = [key for key in sampled if key in text] or sampled
        if len(named) == 1:
            yield (named[0],), text.removeprefix(f"{named[0]} = ")
        else:
            yield (), f"{text}; narrow {' or '.join(named)}"


def _contradiction(train: TrainConfig, settings: Iterable[tuple[str, object]]) -> str | None:
    """The problem that TrainConfig reports if the fixed recipe gets these values; None if it reports none."""
    values = train.model_dump()
    for key, value in settings:
        assign(values, key, value)
    try:
        TrainConfig.model_validate(values)
    except ValidationError as error:
        return next((describe_problem(TrainConfig, one).strip() for one in error.errors() if not one["loc"]), None)
    return None


def _refusals(train: TrainConfig, key: str, value: Value) -> list[str]:
    """TrainConfig's problems with this value itself; ``corner_problems`` checks combinations."""
    integral = isinstance(value, float) and annotation_of(key) is int and value == int(value)
    values = train.model_dump()
    assign(values, key, int(value) if integral else value)
    try:
        TrainConfig.model_validate(values)
    except ValidationError as error:
        lines = [describe_problem(TrainConfig, one).strip() for one in error.errors() if one["loc"]]
        return [line.removeprefix(f"{key} = ").removeprefix(f"{key}: ") for line in lines]
    return []


def values_of(key: str, train: TrainConfig, space: Mapping[str, Axis]) -> tuple[Value | None, ...]:
    """Values of a setting in a study: its choices, the ends of its range (the upper first), or the fixed value."""
    axis = space[key] if key in space else (getattr(train, key),)
    return (axis.high, axis.low) if isinstance(axis, Range) else axis


def numbers_of(key: str, train: TrainConfig, space: Mapping[str, Axis]) -> list[float]:
    """The numbers among ``values_of`` a setting."""
    return [value for value in values_of(key, train, space) if isinstance(value, int | float)]


def annotation_of(key: str) -> object:
    """The type of a setting's values, without None. The key of a setting in a nested table has a dot."""
    table, dot, name = key.rpartition(".")
    fields = TABLES[table].model_fields if dot else TrainConfig.model_fields
    kind = fields[name].annotation
    return next(one for one in get_args(kind) if one is not NoneType) if isinstance(kind, UnionType) else kind


def assign(values: dict[str, object], key: str, value: object) -> None:
    """Set a setting of [train]. The key of a setting in a nested table has a dot."""
    table, dot, name = key.partition(".")
    if dot:
        settings = values[table] or {}
        assert isinstance(settings, dict), f"{table} is a table"
        values[table] = settings | {name: value}
    else:
        values[key] = value
