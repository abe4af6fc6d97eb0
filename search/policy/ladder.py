"""The rungs of a study: the steps after which candidates are compared, and the trainings between them."""

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
"""Trial attributes: the step of the last rung at which the trial was paused, and of the last rung that it has left."""

REPEATS = "featherweight:repeats"
"""Trial attribute: number of the trial whose settings this trial repeats with another seed. Such a trial is no
candidate: it is neither compared at rungs, nor pruned, nor the best."""


@dataclass(frozen=True)
class Ladder:
    """The rungs of a study.

    A candidate has one training with rungs during it, or a series of trainings, each longer than the one before, with a
    rung at the end of each but the last. Steps are counted through the series: with lengths 2, 6 and 18 the rungs are
    at steps 2 and 8, and the last step is 26. A stage is the number of a training in the series, from 0.
    """

    lengths: tuple[int, ...]
    """Epochs (or folds) of a training up to each rung; the last number is the length up to the end."""
    anew: bool = False
    """Whether a new training with its own whole schedule begins after each rung."""

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The step of each rung; the last one is the step of the end."""
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
        """The step of the first rung, or of the end, at ``step`` or beyond it."""
        return next((one for one in self.steps if one >= step), self.last_step)

    def stage_after(self, promoted_at: int) -> int:
        """The stage of a candidate that has left the rung at step ``promoted_at``; 0 if it has left none."""
        return sum(step <= promoted_at for step in self.rungs)

    def next_step(self, step: int) -> int:
        """The step of the first rung after ``step``, or of the end if there is none."""
        return next((one for one in self.steps if one > step), self.last_step)

    def stage_of(self, step: int) -> int:
        """The stage that a step belongs to; 0 for all steps if there is only one training."""
        return bisect_left(self.rungs, step) if self.anew else 0

    def place_of(self, step: int) -> tuple[int, int]:
        """The epoch (or fold) of a step in its training, and the number of epochs (or folds) of that training."""
        stage = self.stage_of(step)
        return step - self.steps_before(stage), self.epochs_of(stage)

    def epochs_of(self, stage: int) -> int:
        """Number of epochs (or folds) of a stage's training."""
        return self.lengths[stage] if self.anew else self.last_step

    def trainings_of(self, values: Mapping[int, float]) -> list[dict[int, float]]:
        """Values by step, separated by training, in the order of the trainings."""
        parts: dict[int, dict[int, float]] = {}
        for step in sorted(values):
            parts.setdefault(self.stage_of(step), {})[step] = values[step]
        return [*parts.values()]

    def describe(self, step: str, factor: int) -> str:
        """The rungs in words; empty without rungs. ``step`` is "epoch" or "fold"; one of ``factor`` candidates goes
        on."""
        if not self.rungs:
            return ""
        best = {2: "half", 3: "third", 4: "quarter"}.get(factor, f"1 of {factor}")
        shown = self.lengths if self.anew else self.rungs
        listed = " and ".join(filter(None, [", ".join(map(str, shown[:-1])), str(shown[-1])]))
        how = f"{step}s, each in a separate training" if self.anew else f"of {count(self.last_step, step)}"
        return f"compared after {listed} {how}; the best {best} goes on"

    def steps_before(self, stage: int) -> int:
        """Number of steps before a stage's training; 0 if there is only one training."""
        return self.steps[stage - 1] if self.anew and stage else 0


def ladder_for(steps: int, *, anew: bool, factor: int, first: int | None = None, warmup: float = 0) -> Ladder:
    """The rungs of a training.

    If the schedule decays, a short training predicts the end better than the first epochs of a long one do:
    bench/rungs.md.

    Args:
        steps: number of epochs (or folds) of a full training.
        anew: whether each rung has its own training.
        factor: each rung has this many times the steps of the rung before it.
        first: epochs up to the first rung. Default: steps / factor^2. With ``anew``, it is steps / factor if
            steps / factor^2 is less than two epochs. Without ``anew``, it is at least the warm-up and one more epoch.
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
    while length < steps and (length <= steps / 2 or length == first):  # a later rung would save little
        lengths.append(length)
        length *= factor
    return Ladder((*lengths, steps), anew)


def reached(trial: FrozenTrial, ladder: Ladder) -> dict[int, float]:
    """Each rung that a trial has reached, by its number from 0 -> the trial's value there. The end counts as the last
    rung.

    If the patience of a training ended it before a rung, its last value counts at that rung.
    """
    values = trial.intermediate_values
    furthest = max(trial.user_attrs.get(PAUSED_AT, 0), trial.user_attrs.get(PROMOTED_AT, 0), max(values, default=0))
    if trial.state == TrialState.COMPLETE:
        furthest = ladder.last_step
    found = {}
    for number, step in enumerate(ladder.steps):
        if step <= furthest and (before := [one for one in values if one <= step]):
            found[number] = values[max(before)]
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        found[len(ladder.steps) - 1] = trial.value
    return found
