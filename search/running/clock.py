"""The time of a launch: whether a candidate may still begin or go on, and when all must stop."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable

from search.plan.schedule import Pace, Schedule
from search.study.trial import TrialView

MEASURED_STEPS = 64
"""Number of latest steps whose mean duration is the pace of the search. Older ones do not count, because the load of a
machine changes."""


class Clock:
    """The time of one launch.

    Args:
        hours: ``search.hours``; None: no limit.
        schedule: the time of the whole study, if the launch goes on to the export. Then ``hours`` count from the first
            launch, and time for the export is reserved.
        search_is_over: whether an earlier launch has stored that the search's part of the time is over.
    """

    def __init__(self, hours: float | None, schedule: Schedule | None = None, *, search_is_over: bool = False) -> None:
        self._ends = None if hours is None else time.monotonic() + hours * 3600
        self.schedule, self.search_is_over = schedule, search_is_over
        self._steps: deque[float] = deque(maxlen=MEASURED_STEPS)
        self._macs = 0
        self.slowest = 0.0
        """Seconds of the slowest step that was reported to this launch."""

    @property
    def pace(self) -> Pace | None:
        """The measured speed; None before the first step."""
        return Pace(sum(self._steps) / len(self._steps), self._macs) if self._steps else None

    @property
    def hours_are_over(self) -> bool:
        """Whether the hours of this launch are over; False if the launch goes on to an export."""
        return self.schedule is None and self._ends is not None and time.monotonic() >= self._ends

    @property
    def seconds_left(self) -> float | None:
        """Seconds left for the search; None without a limit."""
        if self.schedule is None:
            return None if self._ends is None else max(0.0, self._ends - time.monotonic())
        if (pace := self.pace) is None or self.schedule.ends_at == math.inf:
            return None
        return max(0.0, self.schedule.search_ends_at(pace) - time.time())

    def add_step(self, seconds: float) -> None:
        """Note the duration of a step."""
        self._steps.append(seconds)
        self.slowest = max(self.slowest, seconds)

    def note_end(self, view: TrialView) -> None:
        """Note the multiply-adds of a trial that has ended. The largest complete model determines how long the export's
        evaluation may take."""
        if view.state == "COMPLETE" and view.macs:
            self._macs = max(self._macs, view.macs)

    def adopt(self, views: Iterable[TrialView]) -> None:
        """Note the speed and the multiply-adds of the trials that earlier launches have finished. To be called before
        the first step; a second call replaces the first."""
        self._steps.clear()
        for view in views:
            self.note_end(view)
            if view.epochs and view.seconds:
                self._steps.append(view.seconds / view.epochs)

    def allows(self, steps: int) -> bool:
        """Whether one candidate can take this many steps before the time that is reserved for the export begins."""
        if self.schedule is None:
            return True
        if self.search_is_over:
            return False
        pace = self.pace
        if pace is None:
            return time.time() < self.schedule.ends_at
        return time.time() + steps * pace.step_seconds <= self.schedule.search_ends_at(pace)

    @property
    def must_end(self) -> bool:
        """Whether candidates in progress must stop, so that the best complete one can be exported in time."""
        if self.schedule is None or (pace := self.pace) is None:
            return False
        return time.time() >= self.schedule.final_begins_at(pace)

    def ends_at(self, seconds_left: float | None) -> float | None:
        """Planned end of the export, in seconds since 1970; None if it is not known, and without an export.

        Args:
            seconds_left: estimated time until the search ends.
        """
        if self.schedule is None or seconds_left is None or (pace := self.pace) is None:
            return None
        return min(time.time() + seconds_left + self.schedule.seconds_after_search(pace), self.schedule.ends_at)
