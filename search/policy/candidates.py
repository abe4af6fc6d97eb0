"""The trials of a study as a sampler sees them: the settings of each candidate, and its values at the rungs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.policy.encoding import coordinate_of
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS, Ladder, ladder_for, reached


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


@dataclass(frozen=True)
class _Entry:
    """A trial when it was last read."""

    trial: FrozenTrial
    """Storages replace the object of a trial that changes, so the same object has the same content."""
    content: tuple[object, ...]
    """Values by which a change of an unfinished trial is noticed."""
    candidate: Candidate | None
    """None if the trial is no candidate."""


class CandidateReader:
    """Turns trials into candidates, and keeps the candidates of trials that have not changed.

    Args:
        ladder: the rungs. Without rungs, a pruner may end a candidate at any step, and the values at steps 1, 3, 9 and
            so on are used. None: only values at the end are used.
    """

    def __init__(self, ladder: Ladder | None) -> None:
        self._pauses = ladder is not None and bool(ladder.rungs)
        if ladder is not None and not ladder.rungs:
            ladder = ladder_for(ladder.last_step, anew=False, factor=3, first=1)
        self._ladder = ladder
        self._entries: list[_Entry] = []
        self._spaces: list[dict[str, BaseDistribution]] = []

    def candidates(self, trials: Sequence[FrozenTrial], but: int) -> list[Candidate]:
        """The candidates among these trials, in their order.

        Args:
            trials: all trials of a study, by number.
            but: number of the trial for which the sampler is asked; it is left out.
        """
        found, entries = [], self._entries
        for index, trial in enumerate(trials):
            entry = entries[index] if index < len(entries) else None
            if entry is None or entry.trial is not trial:
                entry = self._entry(trial, entry)
                entries[index : index + 1] = [entry]  # replaces the entry of the trial, or adds it
            if entry.candidate is not None and entry.candidate.number != but:
                found.append(entry.candidate)
        return found

    def _entry(self, trial: FrozenTrial, before: _Entry | None) -> _Entry:
        content = _content(trial)
        if before is not None and before.content == content:
            return replace(before, trial=trial)
        counts = trial.state not in (TrialState.FAIL, TrialState.WAITING) and bool(trial.params)
        counts = counts and REPEATS not in trial.user_attrs
        return _Entry(trial, content, self._read(trial) if counts else None)

    def _read(self, trial: FrozenTrial) -> Candidate:
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


def common_space(candidates: Sequence[Candidate]) -> dict[str, BaseDistribution]:
    """The axes that all candidates have in common, sorted by name, without axes of a single value."""
    spaces: list[Mapping[str, BaseDistribution]] = []
    for one in candidates:
        if one.space is not (spaces[-1] if spaces else None):
            spaces.append(one.space)
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
