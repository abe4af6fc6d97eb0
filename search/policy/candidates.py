"""The trials of a study as a sampler sees them: the settings of each candidate, and its values at the rungs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.policy.encoding import coordinate_of
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS, Ladder, ladder_for, reached
from search.policy.replaced import replaced


@dataclass(frozen=True)
class Candidate:
    """A trial that has settings and did not fail, as a sampler sees it."""

    number: int
    space: Mapping[str, BaseDistribution]
    """The candidate's axes. Candidates with equal axes have the same object."""
    coordinates: Mapping[str, float]
    """Setting -> position of its value on its axis, from 0 to 1."""
    values: tuple[float, ...]
    """The candidate's value at each rung and at the end; NaN where it has none."""
    diverged: bool
    """Whether the candidate ended early for another reason than a comparison: it diverged, or ran out of memory."""
    is_judged: bool
    """Whether the candidate has a value at any rung or at the end, or diverged."""


NEITHER, UNJUDGED, JUDGED = range(3)
"""The kinds of trials: no candidates, candidates without a value and not diverged, and all other candidates."""


@dataclass(frozen=True)
class Candidates:
    """The candidates of a study at one moment, by the places of their trials."""

    at: Sequence[Candidate | None]
    """Place -> candidate; None if the trial is no candidate."""
    judged: NDArray[np.int_]
    """Places of the judged candidates, in order."""
    unjudged: NDArray[np.int_]
    """Places of the others."""
    values: NDArray[np.float64]
    """The values of the judged candidates: [candidate, rung]."""
    spaces: Sequence[Mapping[str, BaseDistribution]]
    """The different axes that they have."""

    def __iter__(self) -> Iterator[Candidate]:
        return (one for place in sorted([*self.judged, *self.unjudged]) if (one := self.at[place]) is not None)


class CandidateReader:
    """Turns trials into candidates, and keeps the candidates of trials that have not changed.

    Args:
        ladder: the rungs. Without rungs, a pruner may end candidates at any step, and the values at steps 1, 3, 9 and
            so on are used. None: only values at the end are used.
    """

    def __init__(self, ladder: Ladder | None) -> None:
        self._pauses = ladder is not None and bool(ladder.rungs)
        if ladder is not None and not ladder.rungs:
            ladder = ladder_for(ladder.last_step, anew=False, factor=3, first=1)
        self._ladder = ladder
        self._trials: list[FrozenTrial] = []
        """The trials that were read, see ``replaced``."""
        self._contents: list[tuple[object, ...]] = []
        """For each trial, values by which a change is noticed if its object was replaced."""
        self._candidates: list[Candidate | None] = []
        self._spaces: list[dict[str, BaseDistribution]] = []
        rungs = 1 if ladder is None else len(ladder.steps)
        self._rows = np.zeros(0, [("number", int), ("kind", int), ("space", int), ("values", float, (rungs,))])
        """For each trial: its number, its kind, the number of its space, and its values. There may be more rows."""

    def candidates(self, trials: Sequence[FrozenTrial], but: int) -> Candidates:
        """The candidates among these trials.

        Args:
            trials: all trials of a study, by number.
            but: number of the trial for which the sampler is asked; it is left out.
        """
        known = len(self._trials)
        if (missing := len(trials) - len(self._rows)) > 0:  # at least doubled, so that the rows grow seldom
            self._rows = np.append(self._rows, np.zeros(max(missing, len(self._rows)), self._rows.dtype))
        for at in [*replaced(trials, self._trials), *range(known, len(trials))]:
            trial, content, put = trials[at], _content(trials[at]), slice(at, at + 1)  # replaces an item, or adds it
            if at >= known or self._contents[at] != content:
                self._contents[put], self._candidates[put] = [content], [self._read(trial)]
                self._rows[at] = self._row(trial.number, self._candidates[at])
            self._trials[put] = [trial]
        rows = self._rows[: len(trials)]
        kinds = np.where(rows["number"] == but, NEITHER, rows["kind"])
        judged = np.flatnonzero(kinds == JUDGED)
        spaces = np.flatnonzero(np.bincount(rows["space"][kinds != NEITHER])).tolist()
        return Candidates(
            self._candidates,
            judged,
            np.flatnonzero(kinds == UNJUDGED),
            rows["values"][judged],
            [self._spaces[at] for at in spaces],
        )

    def _row(self, number: int, candidate: Candidate | None) -> tuple[int, int, int, tuple[float, ...] | float]:
        if candidate is None:
            return number, NEITHER, 0, 0.0
        space = next(at for at, one in enumerate(self._spaces) if one is candidate.space)
        return number, JUDGED if candidate.is_judged else UNJUDGED, space, candidate.values

    def _read(self, trial: FrozenTrial) -> Candidate | None:
        counts = trial.state not in (TrialState.FAIL, TrialState.WAITING) and bool(trial.params)
        if not counts or REPEATS in trial.user_attrs:
            return None
        space = next((one for one in self._spaces if one == trial.distributions), None)
        if space is None:
            space = dict(trial.distributions)
            self._spaces.append(space)
        values = self._values(trial)
        diverged = self._has_diverged(trial) or any(map(math.isinf, values))
        return Candidate(
            number=trial.number,
            space=space,
            coordinates={name: coordinate_of(axis, trial.params[name]) for name, axis in space.items()},
            values=(math.nan,) * len(values) if diverged else values,
            diverged=diverged,
            is_judged=diverged or not all(map(math.isnan, values)),
        )

    def _values(self, trial: FrozenTrial) -> tuple[float, ...]:
        if self._ladder is None:
            return (trial.values[0] if trial.state == TrialState.COMPLETE else math.nan,)
        found = reached(trial, self._ladder)
        return tuple(found.get(rung, math.nan) for rung in range(len(self._ladder.steps)))

    def _has_diverged(self, trial: FrozenTrial) -> bool:
        """Whether a trial was pruned, but not in a comparison.

        If trials are paused at rungs, a trial that ends at its last rung was paused there, and ``search stop --finish``
        has ended it. A trial that ends between rungs, or after it has left its last rung, diverged or ran out of
        memory.
        """
        if trial.state != TrialState.PRUNED:
            return False
        last, paused = trial.last_step or 0, trial.user_attrs.get(PAUSED_AT, 0)
        if not self._pauses or self._ladder is None:
            return last == 0
        return max(last, paused) not in self._ladder.rungs or trial.user_attrs.get(PROMOTED_AT, 0) >= max(last, paused)


def common_space(spaces: Sequence[Mapping[str, BaseDistribution]]) -> dict[str, BaseDistribution]:
    """The axes that all of these spaces have in common, sorted by name, without axes of a single value."""
    if not spaces:
        return {}
    return {
        name: axis
        for name, axis in sorted(spaces[0].items())
        if not axis.single() and all(name in other and other[name] == axis for other in spaces[1:])
    }


def _content(trial: FrozenTrial) -> tuple[object, ...]:
    """Values by which a change of a trial is noticed. Settings and intermediate values are added, but never changed."""
    attributes, steps = trial.user_attrs, trial.intermediate_values
    last = next(reversed(steps.values()), None)
    noted = attributes.get(PAUSED_AT), attributes.get(PROMOTED_AT)
    return trial.state, trial.values, len(trial.params), len(steps), last, noted
