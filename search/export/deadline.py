"""The time at which a confirmation must end if the study's hours are limited, to leave time for the final training."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Literal

from search.export.trainings import Outcome
from search.paths import Runs
from search.plan.schedule import Schedule, pace_of
from search.study.trial import TrialView

Unconfirmed = Literal["chosen", "measured"]
"""The step of a confirmation for which there was no time. chosen: no trial was chosen with fresh seeds. measured: a
trial was chosen, but it was not measured with further seeds."""


class TimeIsUp(Exception):
    """The confirmation must end: the rest of the time is needed for the final training and the export."""


class Deadline:
    """The time at which a confirmation must end.

    Args:
        schedule: the time of the whole study; None: no limit.
    """

    def __init__(self, schedule: Schedule | None) -> None:
        self.schedule = schedule
        self.until = math.inf
        """The time of the deadline, in seconds since 1970; infinity without a limit."""
        self._step_seconds: list[float] = []

    def add_steps(self, outcome: Outcome) -> None:
        """Note the durations of the steps of one training of the confirmation."""
        self._step_seconds += [result.seconds for result in outcome.results]

    def begin_round(self, complete: Collection[TrialView]) -> None:
        """Compute the deadline from the durations of the steps so far; at first, from those of the complete trials."""
        pace = pace_of(complete, self._step_seconds)
        self.until = math.inf if self.schedule is None or pace is None else self.schedule.final_begins_at(pace)

    def lift(self) -> None:
        """Remove the limit, for the final training and the export."""
        self.until = math.inf

    def check(self) -> None:
        """Raise if the deadline has passed.

        Raises:
            TimeIsUp: the deadline has passed.
        """
        if time.time() > self.until:
            raise TimeIsUp


def sentence_of(unconfirmed: Unconfirmed, study: str, runs: Runs) -> str:
    """A sentence for the user: what is exported, because the time is over."""
    match unconfirmed:
        case "chosen":
            what = "the search's best is exported"
        case "measured":
            what = "the race's winner is exported before it was measured"
    return f"the time is over: {what}, unconfirmed; {runs.command('export-best', study)} later confirms it"
