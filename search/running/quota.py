"""Keeps the checkpoints of a running search within ``faults.checkpoint_gb``."""

from __future__ import annotations

import math
import time

from search.console import Say
from search.paths import Runs
from search.running.rungs import Rungs
from studies import StudySpec

APART = 100
"""Shortest time between two looks at the checkpoints, as a multiple of the duration of the earlier look. A look reads
the folders of all unfinished trials: 40 ms for 1,000 of them, and more on a network disk."""


class Quota:
    """Deletes checkpoints of earlier exports and earlier studies, the oldest first, then those of paused trials.

    Args:
        runs: the runs folder.
        spec: the study.
        rungs: the rungs, with the paused trials.
        say: called with a line about deleted checkpoints.
    """

    def __init__(self, runs: Runs, spec: StudySpec, rungs: Rungs, say: Say) -> None:
        self.runs, self.spec, self.rungs, self.say = runs, spec, rungs, say
        self.due = True
        """Whether a trial was paused or has ended since the last look."""
        self.apart = APART
        self._next = -math.inf

    def keep(self, *, at_once: bool = False) -> None:
        """Look at the checkpoints if a trial was paused or has ended since the last look. Without ``at_once``, do so
        only if that look is long enough ago."""
        begun = time.monotonic()
        if not self.due or (begun < self._next and not at_once):
            return
        quota, waiting = self.spec.faults.checkpoint_gb, self.rungs.order()
        removed = self.runs.keep_to_quota(self.spec.name, quota * 1e9, waiting[::-1])
        self.due, self._next = False, time.monotonic() + self.apart * (time.monotonic() - begun)
        if removed:
            anew = "; a paused trial among them would begin anew" if waiting else ""
            self.say(f"checkpoints beyond {quota:g} GB: removed {', '.join(removed)}{anew}")
