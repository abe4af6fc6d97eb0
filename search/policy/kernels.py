"""The density of the trials that are not among the best, up to a small error, in a part of the time that the exact one
takes.

TPE takes the sample at which the difference of two log densities is largest. Only if two samples are about equally good
does it need the exact densities (``search.policy.parzen``) to know which one is better. A search with many workers has
thousands of kernels, and few of them change from one suggestion to the next. So what depends on a kernel alone is kept.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters

from search.policy.parzen import add_discrete

Array = NDArray[np.float64]

ERROR = 1e-6
"""Far more than the error of a log density here."""

FAR = 50.0
"""A kernel is left out if the logarithm of its density is this much below that of the nearest kernel."""

NOWHERE = -1e300
"""The logarithm of the density of a kernel that does not count now."""


class KeptKernels:
    """The kernels of the trials in one space.

    The log density of a kernel is a sum: for a continuous setting, a polynomial of its value; for a choice, one number
    if the trial has the choice, and another one if not. So the log densities of all samples and kernels are a product
    of two matrices.

    Args:
        space: the settings.
        parameters: those of Optuna's estimator. Optuna's defaults for the widths of kernels are assumed.
    """

    def __init__(self, space: dict[str, BaseDistribution], parameters: _ParzenEstimatorParameters) -> None:
        self._parameters = parameters
        self._lines: dict[int, Line] = {}
        self._choices: dict[int, CategoricalDistribution] = {}
        self._steps: dict[int, tuple[str, BaseDistribution]] = {}
        """Place of a setting in the space -> the setting, by its kind."""
        for at, (name, axis) in enumerate(space.items()):
            if isinstance(axis, CategoricalDistribution):
                self._choices[at] = axis
            elif isinstance(axis, FloatDistribution) and axis.step is None:
                self._lines[at] = Line(axis)
            else:
                self._steps[at] = name, axis
        rows = 1 + 2 * len(self._lines) + sum(len(axis.choices) for axis in self._choices.values())
        self._factors = np.zeros((rows, 0))
        """The factors of each kernel. Column 0 is the prior, column n + 1 is trial n. Row 0 is constant; each
        continuous setting has two rows, for the square of its value and for its value; each choice has a row."""
        self._values = np.full((0, len(space)), np.nan)
        """The settings of each kernel, by column."""
        self._columns = np.empty(0, int)
        """The columns of the trials that count, in order."""

    def update(self, numbers: NDArray[np.int_], values: Array) -> bool:
        """Make these trials those that count. Returns False if the widths of the kernels are not known, because equal
        values would have to be ordered as Optuna orders them.

        Args:
            numbers: the trials, ascending.
            values: [trial, setting], as numbers.
        """
        columns = numbers + 1
        self._make_room(int(columns.max(initial=0)) + 1)
        before, now = (np.zeros(len(self._values), bool) for _ in range(2))
        before[self._columns], now[columns] = True, True
        now[columns[(self._values[columns] != values).any(axis=1)]] = False  # taken away and added again
        gone, added = np.flatnonzero(before & ~now), columns[~(before & now)[columns]]
        self._values[columns], self._columns = values, columns
        self._factors[0, gone] = NOWHERE
        row = 1 + 2 * len(self._lines)
        for at, axis in self._choices.items():
            self._factors[row : row + len(axis.choices), added] = 0.0
            self._factors[row + self._values[added, at].astype(int), added] = 1.0
            row += len(axis.choices)
        changed, known = [added], True
        for at, line in self._lines.items():
            widened, is_known = line.update(gone, added, self._values[added, at])
            changed, known = [*changed, widened], known and is_known
        self._note(np.unique(np.concatenate(changed)))
        return known

    def log_density(self, samples: dict[str, Array]) -> Array:
        """The log density at samples (setting -> values), up to ERROR and a number that is the same for all samples."""
        drawn, kernels = list(samples.values()), len(self._columns) + 1
        parts, prior = np.zeros((len(drawn[0]), len(self._factors))), self._factors[0, 0]
        parts[:, 0] = 1.0
        for number, (at, line) in enumerate(self._lines.items()):
            places = line.place(drawn[at])
            parts[:, 1 + 2 * number], parts[:, 2 + 2 * number] = places**2, places
        row, weight = 1 + 2 * len(self._lines), self._parameters.prior_weight / kernels
        for at, axis in self._choices.items():  # relative to a kernel of a trial with another choice
            parts[np.arange(len(parts)), row + drawn[at].astype(int)] = math.log1p(1 / weight)
            prior += math.log1p(1 / (weight * len(axis.choices)))
            row += len(axis.choices)
        columns = np.append(self._columns, 0)
        logs = parts @ self._factors[:, : int(columns.max()) + 1]
        logs[:, 0] += prior - self._factors[0, 0]
        if self._steps:
            logs[:, columns] += self._of_steps(drawn)
        shares = np.zeros(logs.shape[1])
        trials = _ParzenEstimator._call_weights_func(self._parameters.weights, kernels - 1)
        shares[columns] = np.append(trials, self._parameters.prior_weight)
        most = logs.max(axis=1)
        sample, column = np.nonzero(logs > most[:, None] - FAR)
        terms = shares[column] * np.exp(logs[sample, column] - most[sample])
        found: Array = np.log(np.bincount(sample, terms, len(most))) + most
        return found

    def _of_steps(self, drawn: list[Array]) -> Array:
        """The logarithms [sample, kernel] of the probabilities of the settings with steps; the last kernel is the
        prior."""
        values = {name: self._values[self._columns, at] for at, (name, _) in self._steps.items()}
        exact = _ParzenEstimator(values, dict(self._steps.values()), self._parameters)
        logs = np.zeros((len(drawn[0]), len(self._columns) + 1))
        for at, axis in zip(self._steps, exact._mixture_distribution.distributions, strict=True):
            add_discrete(logs, drawn[at], axis)
        return logs

    def _note(self, columns: NDArray[np.int_]) -> None:
        """Compute the factors of some kernels anew."""
        constant = np.zeros(len(columns))
        for number, line in enumerate(self._lines.values()):
            square, once, rest = line.factors(columns)
            self._factors[1 + 2 * number, columns], self._factors[2 + 2 * number, columns] = square, once
            constant += rest
        self._factors[0, columns] = constant

    def _make_room(self, columns: int) -> None:
        if (missing := columns - len(self._values)) <= 0:
            return
        is_first, missing = not len(self._values), max(missing, len(self._values))  # at least doubled
        self._values = np.append(self._values, np.full((missing, self._values.shape[1]), np.nan), axis=0)
        more = np.zeros((len(self._factors), missing))
        more[0] = NOWHERE
        self._factors = np.append(self._factors, more, axis=1)
        for line in self._lines.values():
            line.make_room(missing)
        if is_first:
            self._note(np.zeros(1, int))


class Line:
    """The kernels of a continuous setting, by column.

    Args:
        axis: the setting.
    """

    def __init__(self, axis: FloatDistribution) -> None:
        self._log = axis.log
        self._low, self._high = (math.log(end) if axis.log else end for end in (axis.low, axis.high))
        self._middle = 0.5 * (self._low + self._high)
        self._means = self._widths = np.empty(0)
        self._order = np.empty(0, int)
        """The columns of the trials that count, in the order of their means."""

    def place(self, values: Array) -> Array:
        """Values of the setting, relative to the middle of the axis."""
        places: Array = (np.log(values) if self._log else values) - self._middle
        return places

    def make_room(self, missing: int) -> None:
        """Make room for so many further kernels. The first kernel is the prior."""
        first = np.full(missing, np.nan)
        means, widths = (np.append(kept, first) for kept in (self._means, self._widths))
        means[0], widths[0] = self._middle, self._high - self._low
        self._means, self._widths = means, widths

    def update(self, gone: NDArray[np.int_], added: NDArray[np.int_], values: Array) -> tuple[NDArray[np.int_], bool]:
        """Take away and add kernels.

        Args:
            gone: columns of the kernels to take away.
            added: columns of those to add; a kernel may be in both.
            values: the values of the added ones.

        Returns:
            The columns whose widths have changed; and whether the widths are known, see ``KeptKernels.update``.
        """
        self._widths[gone] = np.nan
        kept = self._order[~np.isnan(self._widths[self._order])]
        self._means[added] = np.log(values) if self._log else values
        new = added[np.argsort(self._means[added])]
        self._order = np.insert(kept, np.searchsorted(self._means[kept], self._means[new]), new)
        between = np.diff(self._means[self._order], prepend=self._low, append=self._high)
        widths, whole = np.maximum(between[:-1], between[1:]), self._high - self._low
        if len(widths) > 1:  # Optuna does not count the ends of the axis
            widths[0], widths[-1] = between[1], between[-2]
        widths = np.clip(widths, whole / min(100, len(widths) + 2), whole)
        known = not ((between[1:-1] == 0) & (np.diff(widths) != 0)).any()
        changed = self._order[widths != self._widths[self._order]]
        self._widths[self._order] = widths
        return changed, known

    def factors(self, columns: NDArray[np.int_]) -> tuple[Array, Array, Array]:
        """Factors of the square of a place, of the place, and of 1 in the log densities of some kernels."""
        means, widths = self._means[columns], self._widths[columns]
        inverse, means_from_middle = widths**-2.0, means - self._middle
        masses = _truncnorm._log_gauss_mass((self._low - means) / widths, (self._high - means) / widths)
        rest = -0.5 * inverse * means_from_middle**2 - masses - np.log(widths)
        return -0.5 * inverse, inverse * means_from_middle, rest
