"""The number of trials that a search may begin or promote, besides those in progress."""

from __future__ import annotations

from dataclasses import dataclass

from search.running.clock import Clock
from search.running.rungs import Rungs
from search.study.budget import Budget, Spent


@dataclass(frozen=True)
class Allowance:
    """The numbers of trials that may begin, and that may be promoted. Promotions come first."""

    candidates: int
    """Largest number of candidates that may begin."""
    promotions: int
    """Largest number of paused trials that may go on."""
    at_least: int
    """Number of trials that may go on from each rung, even if few trials have reached the rung."""

    @property
    def total(self) -> int:
        """Number of trials that may begin or go on."""
        return self.candidates + self.promotions


def allowance_of(budget: Budget, spent: Spent, committed: int, rungs: Rungs, clock: Clock, *, idle: bool) -> Allowance:
    """The numbers of trials that the budget and the time allow.

    Once no candidate may begin, the best trial at each rung may go on, even if few have reached the rung. When a budget
    of compute is spent, no trial is promoted either; but if no candidate is complete, the best is trained to its end.
    If time is reserved for an export, a candidate begins only if it could be trained to its end before that time.

    Args:
        budget: the budget of the search.
        spent: the spent part of the budget.
        committed: largest number of steps that the trials in progress still need to reach their next rungs.
        rungs: the rungs with the paused trials.
        clock: the time of the launch.
        idle: whether no trial is in progress.
    """
    if clock.hours_are_over:
        return Allowance(0, 0, 1)
    candidates = budget.candidates_left(spent, committed) if clock.allows(rungs.ladder.last_step) else 0
    at_least = 0 if candidates else 1
    in_time = clock.schedule is None or clock.allows(rungs.steps_of_next(at_least))
    may_go_on = (in_time and budget.allows_compute(spent, committed)) or (idle and not spent.complete)
    return Allowance(candidates, rungs.promotable(at_least) if may_go_on else 0, at_least)
