"""The rungs of a study: after how many steps candidates are compared, and how a training leads from one to the next."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from optuna.trial import FrozenTrial, TrialState

from search.words import count

PAUSED_AT, PROMOTED_AT = "paused_at", "promoted_at"
"""Trial attributes: the step of the last rung at which a trial was paused, and of the last that it went on from."""


@dataclass(frozen=True)
class Ladder:
    """The rungs of a study.

    A candidate's training is one training that is looked at on its way, or a series of whole trainings, each longer
    than the one before. Steps count on through such a series: with lengths 2, 6 and 18 the rungs are at steps 2 and 8,
    and the last step is 26.
    """

    lengths: tuple[int, ...]
    """Epochs (or folds) of a training up to each rung, and at last to its end."""
    anew: bool = False
    """Whether a training begins anew after each rung, with a whole schedule of its own."""

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The step of each rung, and at last the step of the end."""
        return tuple(accumulate(self.lengths)) if self.anew else self.lengths

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps of the rungs."""
        return self.steps[:-1]

    @property
    def last_step(self) -> int:
        """The step of the end."""
        return self.steps[-1]

    def rung_of(self, step: int) -> int:
        """The step of the rung, or of the end, that a training comes to with or after ``step``."""
        return next((one for one in self.steps if one >= step), self.last_step)

    def stage_after(self, promoted_at: int) -> int:
        """The stage that a candidate trains after it left the rung at step ``promoted_at``, 0 for none; from 0."""
        return sum(step <= promoted_at for step in self.rungs)

    def next_step(self, step: int) -> int:
        """The step of the first rung, or of the end, beyond ``step``; the end where there is none beyond."""
        return next((one for one in self.steps if one > step), self.last_step)

    def stage_of(self, step: int) -> int:
        """The number, from 0, of the training that a step belongs to; steps of one training all belong to 0."""
        return bisect_left(self.rungs, step) if self.anew else 0

    def place_of(self, step: int) -> tuple[int, int]:
        """The epoch (or fold) of a step in its training, and how many that training has."""
        stage = self.stage_of(step)
        return step - self.begins_at(stage), self.epochs_of(stage)

    def epochs_of(self, stage: int) -> int:
        """Epochs (or folds) of a stage's training, to its end."""
        return self.lengths[stage] if self.anew else self.last_step

    def trainings_of(self, values: Mapping[int, float]) -> list[dict[int, float]]:
        """Values by step, apart for each training, in their order."""
        parts: dict[int, dict[int, float]] = {}
        for step in sorted(values):
            parts.setdefault(self.stage_of(step), {})[step] = values[step]
        return [*parts.values()]

    def describe(self, step: str, factor: int) -> str:
        """The rungs in words; ``step`` is "epoch" or "fold", and one of ``factor`` goes on. Empty without rungs."""
        if not self.rungs:
            return ""
        best = {2: "half", 3: "third", 4: "quarter"}.get(factor, f"1 of {factor}")
        shown = self.lengths if self.anew else self.rungs
        listed = " and ".join(filter(None, [", ".join(map(str, shown[:-1])), str(shown[-1])]))
        how = f"{step}s, each a whole training" if self.anew else f"of {count(self.last_step, step)}"
        return f"compared after {listed} {how}; the best {best} goes on"

    def begins_at(self, stage: int) -> int:
        """The step before the first one of a stage's training: 0 where one training goes through all rungs."""
        return self.steps[stage - 1] if self.anew and stage else 0


def ladder_for(steps: int, *, anew: bool, factor: int, first: int | None = None, warmup: float = 0) -> Ladder:
    """The rungs of a training.

    Measured in bench/README.md ("Rungs"): with a schedule that decays, a short whole training says more of the end than
    a long one that is cut.

    Args:
        steps: epochs of a full training, or folds.
        anew: each rung has a whole training of its own.
        factor: a rung is this many times as far as the one before.
        first: where the first rung is. Default: at 1 / factor^2 of the training, and beyond its warm-up; with whole
            trainings that would be shorter than two epochs, at 1 / factor.
        warmup: epochs of the warm-up.
    """
    length = first
    if length is None:
        length = round(steps / factor**2)
        if anew:
            length = length if length >= 2 else max(1, round(steps / factor))
        else:
            length = max(1, length, math.ceil(warmup) + 1 if warmup else 1)
    lengths = []
    while length < steps and (length <= steps / 2 or length == first):  # a later one would save nothing
        lengths.append(length)
        length *= factor
    return Ladder((*lengths, steps), anew)


def reached(trial: FrozenTrial, ladder: Ladder) -> dict[int, float]:
    """The value with which a trial came to each rung, by the rung's number from 0; the end is the last number.

    A training whose patience ended before a rung counts with its last value there.
    """
    values = trial.intermediate_values
    left = max(trial.user_attrs.get(PAUSED_AT, 0), trial.user_attrs.get(PROMOTED_AT, 0), max(values, default=0))
    if trial.state == TrialState.COMPLETE:
        left = ladder.last_step
    found = {}
    for number, step in enumerate(ladder.steps):
        if step <= left and (before := [one for one in values if one <= step]):
            found[number] = values[max(before)]
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        found[len(ladder.steps) - 1] = trial.value
    return found
