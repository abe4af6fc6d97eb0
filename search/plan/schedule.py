"""The time that ``search launch --export`` reserves for the export: confirmation, final training, files and proof."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from search.plan.after import after_search
from search.study.trial import TrialView
from studies import StudySpec
from trainer.cores import num_cores

START_SECONDS = 10.0
"""Seconds until the workers of the export have started."""

EXPORT_SECONDS = 30.0
"""Seconds to write, evaluate and prove the files of an export, without the time that its pictures take."""

MACS_PER_CORE = 2e9
"""Multiply-adds per second of one core while pictures are evaluated."""

EVALUATIONS = 6
"""How often an export and its proof evaluate each picture, with a margin for more formats."""

MARGIN = 1.1
"""Factor on the estimated times, because another load on the machine makes them longer."""


def load_factor() -> float:
    """Factor by which the load of the machine makes work on its CPU longer: processes for each core; at least 1.

    All cores of the machine count, also those that this process may not use, because the load is that of the whole
    machine.
    """
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(frozen=True)
class Pace:
    """The measured speed of a search."""

    step_seconds: float
    """Duration of a step: an epoch, or a fold."""
    macs: int = 0
    """Multiply-adds of the largest complete candidate."""
    load: float = field(default_factory=load_factor)
    """See ``load_factor``. The estimate of the export is multiplied by it; measured steps contain the load already."""


def pace_of(complete: Collection[TrialView], measured: Sequence[float] = ()) -> Pace | None:
    """The speed by the durations of steps in ``measured``; if it is empty, by the complete candidates. None without
    steps."""
    steps = measured or [view.seconds / view.epochs for view in complete if view.seconds and view.epochs]
    return Pace(fmean(steps), max((view.macs or 0 for view in complete), default=0)) if steps else None


@dataclass(frozen=True)
class Schedule:
    """The time of a search and of the export after it."""

    spec: StudySpec
    ends_at: float
    """Planned end of the export, in seconds since 1970; infinity without ``search.hours``."""
    parallel: int
    """Number of trainings at the same time in the export."""
    pictures: int = 0
    """Number of pictures that the export evaluates."""

    def search_ends_at(self, pace: Pace) -> float:
        """Time at which the search must end, so that the whole export has enough time."""
        return self.ends_at - MARGIN * self.seconds_after_search(pace)

    def final_begins_at(self, pace: Pace) -> float:
        """Latest time at which the final training must begin, even if nothing is confirmed."""
        after = after_search(self.spec, 1, self._training(pace), self.parallel)  # last_seconds does not depend on the 1
        return self.ends_at - MARGIN * (START_SECONDS * pace.load + after.last_seconds + self.export_seconds(pace))

    def seconds_after_search(self, pace: Pace) -> float:
        """Seconds of the whole export: confirmation, final training, and ``export_seconds``."""
        # Without a budget of compute, a large number stands for it, which gives the longer race.
        trainings = self.spec.search.trainings or math.inf
        after = after_search(self.spec, math.ceil(min(trainings, 1e6)), self._training(pace), self.parallel)
        return START_SECONDS * pace.load + after.seconds + self.export_seconds(pace)

    def export_seconds(self, pace: Pace) -> float:
        """Seconds to write, evaluate and prove the files of the export."""
        final = self.spec.final
        work = pace.macs * self.spec.num_final_trainings * (1 + len(final.tta)) * self.pictures * EVALUATIONS
        return (EXPORT_SECONDS + work / (MACS_PER_CORE * num_cores())) * pace.load

    def _training(self, pace: Pace) -> float:
        return pace.step_seconds * self.spec.num_steps
