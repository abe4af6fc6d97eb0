"""What is sampled: the study's space as Optuna distributions, its width bounded by the widest that fits."""

from __future__ import annotations

from decimal import Decimal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.budget import Width
from studies import Range, StudySpec
from trainer.config import TrainConfig
from trainer.errors import ConfigError, LimitError


def distributions(spec: StudySpec, width: Width | None) -> dict[str, BaseDistribution]:
    """The space of a study, in the file's order.

    Args:
        spec: the study.
        width: the widest width that fits, where the study samples it.

    Raises:
        LimitError: no width of the space fits.
        ConfigError: known recipes are wider than what fits.
    """
    space: dict[str, BaseDistribution] = {}
    for key, axis in spec.space.items():
        if not isinstance(axis, Range):
            space[key] = CategoricalDistribution(axis)
        elif key == "width_mult":
            assert width is not None
            space[key] = _width_axis(axis, width)
        else:
            assert axis.high is not None  # StudySpec allows none for width_mult alone
            high = _last_step(axis, axis.high)
            if TrainConfig.model_fields[key].annotation is int:
                space[key] = IntDistribution(int(axis.low), int(high), log=axis.log, step=int(axis.step or 1))
            else:
                space[key] = FloatDistribution(axis.low, high, log=axis.log, step=axis.step)
    _check_known(spec, width)
    return space


def _width_axis(axis: Range, width: Width) -> FloatDistribution:
    if axis.low > width.width_mult:
        raise LimitError(
            f"space.width_mult: low = {axis.low:g} is over the limit; the widest that fits is {width.width_mult:g}, "
            f"with {width.size.params:,} parameters"
        )
    high = width.width_mult if axis.high is None else min(axis.high, width.width_mult)
    return FloatDistribution(axis.low, _last_step(axis, high), log=axis.log, step=axis.step)


def _last_step(axis: Range, high: float) -> float:
    """The highest of low, low + step, ... up to ``high``; Optuna would take it too, but warn in every trial."""
    if axis.step is None:
        return high
    # Decimal, as Optuna does it: in floats 0.8 + 3 x 0.1 is off the steps.
    low, step = Decimal(str(axis.low)), Decimal(str(axis.step))
    return float(low + (Decimal(str(high)) - low) // step * step)


def _check_known(spec: StudySpec, width: Width | None) -> None:
    """Optuna would take a value out of range without a word."""
    recipes = [
        (number, float(recipe["width_mult"])) for number, recipe in enumerate(spec.known) if "width_mult" in recipe
    ]
    problems = [
        f"known.{number}.width_mult = {value:g} is over the limit; the widest that fits is {width.width_mult:g}"
        for number, value in recipes
        if width is not None and value > width.width_mult
    ]
    if problems:
        raise ConfigError("\n".join(problems))
