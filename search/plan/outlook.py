"""The plan of a launch with ``--export`` in one line, shown before the search begins."""

from __future__ import annotations

import math
import time

from search.plan.after import after_search
from search.plan.check import candidates_for
from search.plan.schedule import Pace, Schedule
from search.study.sampling import build_ladder
from search.words import clock_time, count


def outlook(schedule: Schedule, pace: Pace | None, launched: float) -> str:
    """The plan of a search and of the export after it.

    Args:
        schedule: the time of the search and of the export after it.
        pace: the speed that earlier launches measured; None if none has, so that only the budget is known.
        launched: time of the first launch, in seconds since 1970.
    """
    spec, now = schedule.spec, time.time()
    budget, hours = spec.search.trainings, spec.search.hours
    if hours is not None and now >= schedule.ends_at:
        return (
            f"plan: the {hours:g} hours from the first launch ({clock_time(launched)}) on are over; the best is "
            "exported; a larger --hours goes on with the search"
        )
    if pace is not None and hours is not None:
        left = max(0.0, schedule.search_ends_at(pace) - now) * schedule.parallel
        bought = left / (pace.step_seconds * spec.num_steps)
        budget = bought if budget is None else min(budget, bought)
    limited = spec.model_copy(update={"search": spec.search.model_copy(update={"trainings": budget})})
    candidates = candidates_for(limited)
    about = candidates.paused_at_rungs or candidates.trained_to_the_end
    complete = math.ceil(about / spec.search.reduction_factor ** len(build_ladder(spec).rungs))
    after = after_search(spec, candidates.trained_to_the_end, 0.0, schedule.parallel)
    words = f"plan: about {count(about, 'candidate')}, {complete:,} complete; then {after.trainings}"
    if hours is None:
        return f"{words}; the export follows when the budget is spent"
    when = f"{hours:g} hours from the first launch, {clock_time(launched)}"
    return f"{words}; exported by {clock_time(schedule.ends_at)} ({when})"
