"""The budget of a search: its limits, the part that is spent, and whether another candidate may begin."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from search.study.ended import Ended
from search.study.trial import FAILED_UNDER, is_paused, settings_hash
from search.words import count
from studies import StudySpec
from studies.spec import describe_budget

MORE_TRAININGS, MORE_TRIALS = 1.5, 2
"""Factors on a spent budget, for the message that says how to go on."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The spent part of a budget. Trials that other programs have finished do not count."""

    epochs: int = 0
    """Steps (epochs or folds) of all trials, those in progress included."""
    trainings: float = 0.0
    """``epochs`` as a number of full trainings."""
    begun: int = 0
    """Number of trials in any state but WAITING, the repeat included."""
    finished: int = 0
    """Number of trials that have ended: complete, pruned or failed."""
    complete: int = 0
    paused: int = 0
    """Number of paused trials, see ``search.study.trial.is_paused``."""
    excused: int = 0
    """Number of trials that failed before their first epoch, and before the study file changed. The budget does not
    count them, so that a search has its whole budget after a mistake in the file is corrected."""

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], spec: StudySpec) -> Spent:
        """The part that the search's own trials have spent."""
        begun = [trial for trial in trials if trial.state != TrialState.WAITING]
        failed_under = [trial.user_attrs.get(FAILED_UNDER) for trial in begun]
        epochs = sum(max(trial.intermediate_values, default=0) for trial in begun)
        return cls(
            epochs=epochs,
            trainings=epochs / spec.num_steps,
            begun=len(begun),
            finished=sum(trial.state.is_finished() for trial in begun),
            complete=sum(trial.state == TrialState.COMPLETE for trial in begun),
            paused=sum(map(is_paused, begun)),
            excused=_excused(Counter(one for one in failed_under if one is not None), spec),
        )

    @classmethod
    def so_far(cls, ended: Ended, running: int, steps: int, spec: StudySpec, paused: Mapping[int, int]) -> Spent:
        """The part that is spent at a moment of a search.

        Args:
            ended: the trials that have ended.
            running: number of trials in progress.
            steps: sum of their last steps.
            spec: the study.
            paused: last step -> number of paused trials.
        """
        waiting = sum(paused.values())
        epochs = ended.epochs + steps + sum(step * number for step, number in paused.items())
        return cls(
            epochs=epochs,
            trainings=epochs / spec.num_steps,
            begun=ended.number + running + waiting,
            finished=ended.number,
            complete=ended.states.get(TrialState.COMPLETE.name, 0),
            paused=waiting,
            excused=_excused(ended.failed_under, spec),
        )

    @property
    def counted(self) -> int:
        """Number of candidates that the budget counts."""
        return self.begun - self.excused


def _excused(failed_under: Mapping[str, int], spec: StudySpec) -> int:
    if not failed_under:
        return 0
    return sum(failed_under.values()) - failed_under.get(settings_hash(spec), 0)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of a search."""

    trainings: float | None
    """Largest compute, in full trainings; None: no limit."""
    trials: int | None
    """Largest number of candidates; None: no limit."""
    hours: float | None
    """Hours after which a launch begins no candidate; None: no limit."""
    steps: int
    """Steps (epochs, or folds) of a full training."""

    @classmethod
    def of(cls, spec: StudySpec) -> Budget:
        """The budget of a study."""
        search = spec.search
        return cls(trainings=search.trainings, trials=search.trials, hours=search.hours, steps=spec.num_steps)

    @property
    def words(self) -> str:
        """The budget of the whole study: "30 full trainings", "12 trials"."""
        return describe_budget(self.trainings, self.trials)

    def candidates_left(self, spent: Spent, committed_epochs: int = 0) -> int:
        """Largest number of further candidates that may begin, if each takes one step.

        A budget of E epochs has at most E candidates. Candidates that end before their first epoch cost nothing, so
        without this limit a search with only such candidates would never end. The last candidate begins even if less is
        left than it needs, so at most one full training more than the budget is spent.

        Args:
            spent: the spent part.
            committed_epochs: largest number of steps that the trials in progress still need.
        """
        left = [] if self.trials is None else [self.trials - spent.counted]
        if self.trainings is not None:
            left.append(self._compute_left(self.trainings, spent, committed_epochs))
        return max(0, min(left))

    def allows_another(self, spent: Spent, committed_epochs: int = 0) -> bool:
        """Whether a further candidate may begin. Arguments as for ``candidates_left``."""
        return self.candidates_left(spent, committed_epochs) > 0

    def allows_compute(self, spent: Spent, committed_epochs: int = 0) -> bool:
        """Whether a paused candidate may go on. Arguments as for ``candidates_left``."""
        return self.trainings is None or self._compute_left(self.trainings, spent, committed_epochs) > 0

    def is_spent(self, spent: Spent) -> bool:
        """Whether nothing is left to do: no candidate may begin, and all unfinished ones are paused."""
        return not self.allows_another(spent) and spent.finished + spent.paused >= spent.begun

    def share(self, spent: Spent) -> float:
        """The spent share of the budget, from 0 to 1."""
        shares = [] if self.trainings is None else [spent.trainings / self.trainings]
        shares += [] if self.trials is None else [(spent.finished - spent.excused) / self.trials]
        return min(1.0, max(shares))

    def progress(self, spent: Spent) -> tuple[str, str]:
        """The spent part, and its unit: ("12.4 of 30", "full trainings spent"), ("3 of 12", "trials finished")."""
        if self.trainings is not None:
            return f"{spent.trainings:,.1f} of {self.trainings:,g}", "full trainings spent"
        return f"{spent.finished - spent.excused:,} of {self.trials:,}", "trials finished"

    def describe(self, spent: Spent) -> str:
        """The spent part in words: "12.4 of 30 full trainings spent, 41 candidates, 6 complete"."""
        parts = [" ".join(self.progress(spent))]
        if self.trainings is not None:
            of = "" if self.trials is None else f" of {self.trials:,}"
            parts += [f"{spent.counted:,}{of} candidates" if of else count(spent.counted, "candidate")]
        parts += [f"{spent.complete:,} complete"]
        parts += [f"{spent.paused:,} paused"] if spent.paused else []
        parts += [f"{spent.excused:,} failed before the study file changed"] if spent.excused else []
        return ", ".join(parts)

    def larger(self, spent: Spent) -> str:
        """The options with which ``search launch`` goes on with a search whose budget is spent."""
        options = []
        if self.trainings is not None and self._compute_left(self.trainings, spent) <= 0:
            most = max(self.trainings, spent.trainings, spent.counted / self.steps)  # the limit may have been lowered
            options.append(f"--trainings {math.ceil(MORE_TRAININGS * most)}")
        if self.trials is not None and spent.counted >= self.trials:
            options.append(f"--trials {MORE_TRIALS * max(self.trials, spent.counted)}")
        return " ".join(options)

    def _compute_left(self, trainings: float, spent: Spent, committed_epochs: int = 0) -> int:
        """Number of candidates that the compute still allows, if each takes one step."""
        epochs = round(trainings * self.steps, 6)  # without rounding, 0.55 * 100 is more than 55
        return math.ceil(epochs - max(spent.epochs + committed_epochs, spent.counted))
