"""Settings as points of the unit cube, with a coordinate for each setting; and as features, between which distances are
measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Setting: TypeAlias = "float | int | str | bool | None"
"""A value of a setting, as Optuna has it."""

Points: TypeAlias = "NDArray[np.float64]"


def levels_of(axis: BaseDistribution) -> int:
    """Number of values of an axis; 0 for a continuous axis. Integers on a log axis count as continuous."""
    if isinstance(axis, CategoricalDistribution):
        return len(axis.choices)
    assert isinstance(axis, FloatDistribution | IntDistribution)
    if axis.log or axis.step is None:
        return 0
    return round((axis.high - axis.low) / axis.step) + 1


def coordinate_of(axis: BaseDistribution, value: Setting) -> float:
    """Position of a value on its axis, from 0 to 1; a value beyond the axis is at the nearer end.

    An axis with n values is divided into n equal cells; each value is in the middle of its cell. Positions on a log
    axis are those of the logarithms. A log axis of integers reaches from 0.5 below the lowest value to 0.5 above the
    highest.
    """
    levels = levels_of(axis)
    if isinstance(axis, CategoricalDistribution):
        return (axis.to_internal_repr(value) + 0.5) / levels
    assert isinstance(axis, FloatDistribution | IntDistribution)
    low, high = _ends(axis)
    number = float(value)  # type: ignore[arg-type]  # this axis has only numbers
    if levels:
        return min(max((number - low) / (high - low), 0.5 / levels), 1 - 0.5 / levels)
    if high == low:
        return 0.5
    if axis.log:
        number = max(number, low)
        return min(math.log(number / low) / math.log(high / low), 1.0)
    return min(max((number - low) / (high - low), 0.0), 1.0)


def value_at(axis: BaseDistribution, coordinate: float) -> Setting:
    """The value of an axis at a coordinate."""
    levels = levels_of(axis)
    cell = min(int(coordinate * levels), levels - 1)
    if isinstance(axis, CategoricalDistribution):
        return axis.to_external_repr(cell)
    assert isinstance(axis, FloatDistribution | IntDistribution)
    low, high = _ends(axis)
    if levels:
        number = axis.low + cell * (axis.step or 1)
    elif axis.log:
        number = low * (high / low) ** coordinate
    else:
        number = low + coordinate * (high - low)
    if isinstance(axis, IntDistribution):
        number = round(number)
    return axis.to_external_repr(min(max(number, axis.low), axis.high))


def _ends(axis: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """The values at the coordinates 0 and 1."""
    if levels_of(axis):
        half = (axis.step or 1) / 2
        return axis.low - half, axis.low + (levels_of(axis) - 1) * (axis.step or 1) + half
    if isinstance(axis, IntDistribution):
        return axis.low - 0.5, axis.high + 0.5
    return axis.low, axis.high


class Encoding:
    """The axes of a space, in a fixed order, and the features of its points.

    Args:
        space: setting -> axis; each axis has more than one value.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.axes = dict(space)
        self._levels = np.array([levels_of(axis) for axis in space.values()], float)
        self._one_hot = np.array([isinstance(axis, CategoricalDistribution) for axis in space.values()], bool)
        widths = np.where(self._one_hot, self._levels, 1).astype(int)
        self.setting_of = np.repeat(np.arange(len(widths)), widths)
        """Column of the features -> number of its setting."""

    def settings(self, point: Sequence[float] | Points) -> dict[str, Setting]:
        """The settings at a point."""
        return {name: value_at(axis, float(at)) for (name, axis), at in zip(self.axes.items(), point, strict=True)}

    def features(self, points: Points) -> Points:
        """Features of points: a column from 0 to 1 for each number; for each choice, a column for each of its values.

        Two values of a choice have distance 1.

        Args:
            points: [number of points, number of settings].
        """
        levels = np.maximum(self._levels, 2)  # so that continuous axes cause no division by 0
        cell = np.minimum(np.floor(points * levels), levels - 1)
        columns = np.where(self._levels > 0, cell / (levels - 1), points)
        if not self._one_hot.any():
            return columns
        made = []
        for number, one_hot in enumerate(self._one_hot):
            if one_hot:
                choices = np.arange(self._levels[number])
                made.append((cell[:, number, None] == choices) / math.sqrt(2))
            else:
                made.append(columns[:, number, None])
        return np.concatenate(made, axis=1)

    def nearby(self, point: Points, number: int, reach: Points, rng: np.random.Generator) -> Points:
        """Random points near ``point``.

        Each setting moves a little, with a probability of 60 %. A choice, or a setting with at most four values, moves
        to any value instead, with a probability of 20 %.

        Args:
            point: [number of settings].
            number: number of points.
            reach: [number], the standard deviation of the moves of each point.
            rng: source of random numbers.
        """
        size = (number, len(self.axes))
        moved = point + rng.normal(size=size) * reach[:, None]
        anywhere = self._one_hot | ((self._levels > 0) & (self._levels <= 4))
        moved = np.where(anywhere, rng.random(size), moved)
        share = np.where(anywhere, 0.2, 0.6)
        return np.clip(np.where(rng.random(size) < share, moved, point), 0.0, 1.0)
