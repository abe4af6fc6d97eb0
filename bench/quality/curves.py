"""Tasks to replay: the accuracy of a training with any settings after each epoch, with the noise of one training."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Params = Mapping[str, CategoricalChoiceType]
Space = dict[str, BaseDistribution]
Floats = NDArray[np.float64]

Kind = Literal["lcbench", "opda", "trainings"]
"""Source of the curves."""

LCBENCH: Space = {
    "batch_size": IntDistribution(16, 512, log=True),
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "momentum": FloatDistribution(0.1, 0.99),
    "weight_decay": FloatDistribution(1e-5, 1e-1),
    "num_layers": IntDistribution(1, 5),
    "max_units": IntDistribution(64, 1024, log=True),
    "max_dropout": FloatDistribution(0.0, 1.0),
}
"""The settings of LCBench in the order of the surrogate's inputs (YAHPO Gym, scenario "lcbench")."""

LCBENCH_EPOCHS = 50
"""Epochs of a training. The surrogate's input 1 is the untrained net, and 52 the final test."""

ACCURACY = 1
"""Column of the validation accuracy among the surrogate's outputs."""

NOISE: dict[Kind, float] = {"lcbench": 0.5, "opda": 0.2, "trainings": 1.0}
"""Assumed standard deviation of one training's accuracy at its end, in points, for tables without repetitions."""


class Task(Protocol):
    """A task for a search: settings, and the curves of their trainings."""

    name: str
    kind: Kind
    epochs: int
    """Epochs of a full training."""
    short: tuple[int, ...]
    """Lengths of the recorded short trainings in epochs, in rising order."""
    space: Space
    size: float
    """Number of different settings."""
    best: float
    """Mean accuracy of the best settings at the end, in points."""
    median: float
    """Mean accuracy of median random settings at the end, in points."""

    def truth(self, params: Params) -> float:
        """Mean accuracy of these settings at the end of a full training, in points."""

    def curve(self, params: Params, seed: int, length: int) -> Floats:
        """Accuracy of one training of ``length`` epochs after each epoch, in points."""

    def sample(self, rng: np.random.Generator, n: int) -> list[Params]:
        """``n`` random settings."""


def noise(rng: np.random.Generator, epochs: int, at_end: float) -> Floats:
    """The noise of one training: an offset for all epochs and a jitter for each, both three times as large at the start
    as at the end. 0.8^2 + 0.6^2 = 1, so ``at_end`` is the standard deviation at the end."""
    left = 1 - np.arange(1, epochs + 1) / epochs
    return at_end * (1 + 2 * left) * (0.8 * rng.normal() + 0.6 * rng.normal(size=epochs))


def draw(space: Space, rng: np.random.Generator) -> Params:
    """Random settings."""
    return {name: from_unit(axis, rng.random()) for name, axis in space.items()}


def from_unit(axis: BaseDistribution, share: float) -> CategoricalChoiceType:
    """The value at ``share`` of the way along an axis, on its own scale."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[min(int(share * len(axis.choices)), len(axis.choices) - 1)]
    assert isinstance(axis, FloatDistribution | IntDistribution)
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    value = low + share * (high - low)
    value = math.exp(value) if axis.log else value
    return min(max(round(value) if isinstance(axis, IntDistribution) else value, axis.low), axis.high)


def to_unit(axis: BaseDistribution, value: CategoricalChoiceType) -> list[float]:
    """The coordinates of a value: its position on the axis, or for a category one coordinate for each choice."""
    if isinstance(axis, CategoricalDistribution):
        return [math.sqrt(0.5) * (value == one) for one in axis.choices]
    assert isinstance(axis, FloatDistribution | IntDistribution)
    assert isinstance(value, int | float)
    if axis.log:
        return [math.log(value / axis.low) / math.log(axis.high / axis.low)]
    return [(value - axis.low) / (axis.high - axis.low)]


@dataclass(frozen=True)
class Recorded:
    """The trainings with the same settings: curves in points of accuracy, averaged over their seeds."""

    params: Params
    full: Floats
    """[epochs]."""
    short: dict[int, Floats]
    """Length of a short training -> its curve."""
    deviation: Floats | None = None
    """[epochs]: deviation of one seed from the mean, scaled to that of a single training. None: not known."""


class TableTask:
    """A table of recorded trainings. Other settings get the curves of the nearest recorded ones.

    The curve of a full training is the mean curve and the recorded deviation of a similarly good training, with either
    sign; in a table without repetitions, the mean curve and NOISE. The curve of a short training is the recorded one.
    """

    LIKE = 15
    """A deviation is drawn from this many trainings, those with the nearest accuracy at the end."""

    def __init__(self, name: str, kind: Kind, space: Space, rows: list[Recorded]) -> None:
        self.name, self.kind, self.space, self.rows = name, kind, space, rows
        self.epochs, self.size = len(rows[0].full), len(rows)
        self.short = tuple(sorted(rows[0].short))
        ends = np.array([row.full[-1] for row in rows])
        self.best, self.median = float(ends.max()), float(np.median(ends))
        self._points = np.array([self._point(row.params) for row in rows])
        self._repeated = [row for row in rows if row.deviation is not None]

    def _point(self, params: Params) -> list[float]:
        return [x for name, axis in self.space.items() for x in to_unit(axis, params[name])]

    def _nearest(self, params: Params) -> int:
        return int(np.argmin(((self._points - self._point(params)) ** 2).sum(1)))

    def truth(self, params: Params) -> float:
        """The mean end."""
        return float(self.rows[self._nearest(params)].full[-1])

    def curve(self, params: Params, seed: int, length: int) -> Floats:
        """One training."""
        index = self._nearest(params)
        row = self.rows[index]
        if length != self.epochs:
            return row.short[length]
        rng = np.random.default_rng((index, seed))
        if self._repeated:
            like = sorted(self._repeated, key=lambda one: abs(one.full[-1] - row.full[-1]))[: self.LIKE]
            deviation = like[rng.integers(len(like))].deviation
            assert deviation is not None
            return np.clip(row.full + rng.choice([-1.0, 1.0]) * deviation, 0, 100)
        return np.clip(row.full + noise(rng, self.epochs, NOISE[self.kind]), 0, 100)

    def sample(self, rng: np.random.Generator, n: int) -> list[Params]:
        """Different recorded settings."""
        return [self.rows[index].params for index in rng.choice(len(self.rows), n, replace=False)]


class SurrogateTask:
    """A task of YAHPO Gym's surrogate of LCBench: all settings of LCBENCH, 50 epochs.

    Args:
        name: OpenML's number of the task.
        code: its code among the surrogate's inputs.
        session: the surrogate.
        best: mean accuracy of the best settings at the end; None: that of the best of 20,000 random ones.
        median: the same of median random settings; None: the median of those 20,000.
    """

    kind: Kind = "lcbench"
    epochs = LCBENCH_EPOCHS
    short: tuple[int, ...] = ()
    space = LCBENCH
    size = math.inf

    def __init__(
        self, name: str, code: int, session: onnxruntime.InferenceSession, best: float | None, median: float | None
    ) -> None:
        self.name, self._code, self._session = name, code, session
        self._means: dict[tuple[CategoricalChoiceType, ...], Floats] = {}
        if best is None or median is None:
            points = self.sample(np.random.default_rng(0), 20_000)
            ends = self._ask(np.array([list(point.values()) for point in points], float), [self.epochs])
            best = float(ends.max()) if best is None else best
            median = float(np.median(ends)) if median is None else median
        self.best, self.median = best, median

    def _ask(self, settings: Floats, epochs: list[int]) -> Floats:
        """[n, 7] settings -> [n, len(epochs)] mean accuracies."""
        n, times = len(settings), np.asarray(epochs, float) + 1
        x = np.concatenate([np.tile(times, n)[:, None], np.repeat(settings, len(epochs), axis=0)], axis=1)
        codes = np.full((len(x), 1), self._code, np.int32)
        (answer,) = self._session.run(None, {"x_cat": codes, "x_cont": x.astype(np.float32)})
        return np.asarray(answer, float)[:, ACCURACY].reshape(n, len(epochs))

    def _mean(self, params: Params) -> Floats:
        key = tuple(params[name] for name in self.space)
        if key not in self._means:
            self._means[key] = self._ask(np.array([key], float), list(range(1, self.epochs + 1)))[0]
        return self._means[key]

    def truth(self, params: Params) -> float:
        """The mean end."""
        return float(self._mean(params)[-1])

    def curve(self, params: Params, seed: int, length: int) -> Floats:
        """One training."""
        assert length == self.epochs, "the surrogate knows full trainings only"
        key = zlib.crc32(repr([float(params[name]) for name in self.space]).encode())
        deviation = noise(np.random.default_rng((key, seed)), self.epochs, NOISE["lcbench"])
        return np.clip(self._mean(params) + deviation, 0, 100)

    def sample(self, rng: np.random.Generator, n: int) -> list[Params]:
        """Random settings."""
        return [draw(self.space, rng) for _ in range(n)]
