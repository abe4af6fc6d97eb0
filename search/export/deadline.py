"""The time at which a confirmation ends if its study has limited hours, so that the final training has enough time."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Literal

from search.export.trainings import Outcome
from search.plan.schedule import Schedule, pace_of
from search.study.trial import TrialView

Unconfirmed = Literal["chosen", "measured"]
"""The step of a confirmation that there was no time for. chosen: no trial was chosen with fresh seeds. measured: the
chosen one was not measured with further seeds."""


class TimeIsUp(Exception):
    """The time that is left is needed for the final training and the export."""


class Deadline:
    """The time at which a confirmation must end.

    Args:
        schedule: the time of the whole study; None: no limit.
    """

    def __init__(self, schedule: Schedule | None) -> None:
        self.schedule = schedule
        self.until = math.inf
        """That time, in seconds since 1970; infinity without a limit."""
        self._measured: list[float] = []

    def measure(self, outcome: Outcome) -> None:
        """Store the durations of a confirming training's steps."""
        self._measured += [result.seconds for result in outcome.results]

    def begin_round(self, complete: Collection[TrialView]) -> None:
        """Compute the time from the steps measured so far; before the first one, from those of the complete trials."""
        pace = pace_of(complete, self._measured)
        self.until = math.inf if self.schedule is None or pace is None else self.schedule.final_begins_at(pace)

    def lift(self) -> None:
        """Remove the limit, for the final training and the export."""
        self.until = math.inf

    def check(self) -> None:
        """Raise once the time is over.

        Raises:
            TimeIsUp: the time is over.
        """
        if time.time() > self.until:
            raise TimeIsUp


def sentence_of(unconfirmed: Unconfirmed, study: str) -> str:
    """What is exported because the time is over, for the user."""
    match unconfirmed:
        case "chosen":
            what = "the search's best is exported"
        case "measured":
            what = "the race's winner is exported before it was measured"
    return f"the time is over: {what}, unconfirmed; search export-best {study} later confirms it"
