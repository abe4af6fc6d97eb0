"""What a search may begin beside the trials in progress: new candidates, and promotions of paused ones."""

from __future__ import annotations

from dataclasses import dataclass

from search.running.rungs import Rungs
from search.study.budget import Budget, Spent


@dataclass(frozen=True)
class Allowance:
    """What may begin now. Promotions come first."""

    candidates: int
    """New ones, at most."""
    promotions: int
    """Paused trials that may go on."""
    at_least: int
    """How many may go on at each rung, however few have come there."""

    @property
    def total(self) -> int:
        """Trials that may begin or go on."""
        return self.candidates + self.promotions


def allowance_of(budget: Budget, spent: Spent, committed: int, rungs: Rungs, *, idle: bool) -> Allowance:
    """What the budget allows.

    Once no candidate may begin, the best at each rung may go on, however few have come there. A budget of compute ends
    promotions too, unless no candidate is complete then: the best one is trained to its end.

    Args:
        budget: of the search.
        spent: what was spent by now.
        committed: steps that the trials in progress have still to do, at most, up to their next rung.
        rungs: with those that wait.
        idle: whether no trial is in progress.
    """
    candidates = budget.candidates_left(spent, committed)
    at_least = 0 if candidates else 1
    may_go_on = budget.allows_compute(spent, committed) or (idle and not spent.complete)
    return Allowance(candidates, rungs.promotable(at_least) if may_go_on else 0, at_least)
