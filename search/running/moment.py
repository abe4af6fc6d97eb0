"""Snapshots of a running search, and the line about a trial that has ended."""

from __future__ import annotations

from collections.abc import Sequence

from search.running.trials import Trials
from search.study.outage import Outage
from search.study.progress import Snapshot, eta_seconds, words_of_best
from search.study.trial import TrialView
from search.words import duration, judged_on
from search.workers.crew import Crew


def snapshot_of(trials: Trials, crew: Crew, *, stopping: bool, problems: Sequence[str]) -> Snapshot:
    """The search as it is now.

    Args:
        trials: the trials of the search.
        crew: the workers of the search.
        stopping: whether the search was told to stop.
        problems: obstacles to the search, a sentence each.
    """
    workers = [worker.view(trials.epochs_of(worker.trial), trials.objective) for worker in crew.present]
    budget, spent, ended, rungs = trials.budget, trials.spent, trials.ended, trials.rungs
    seconds_left = trials.clock.seconds_left
    eta = eta_seconds(budget, spent, rungs.ladder, ended, workers, rungs.paused_steps, seconds_left)
    return Snapshot(
        study=trials.spec.name,
        budget=budget,
        spent=spent,
        finished=tuple(trials.finished.values()),
        ended=ended,
        workers=tuple(workers),
        eta_seconds=eta,
        ends_at=trials.clock.ends_at(eta),
        ladder=rungs.ladder,
        objective=trials.objective,
        stopping=stopping,
        problems=tuple(problems),
        judged_on=judged_on(trials.spec.data.folds),
    )


def problems_of(crew: Crew, outage: Outage, waiting: int, no_room: str | None) -> list[str]:
    """Obstacles to a search, each with its remedy, or with the condition that the search waits for.

    Args:
        crew: the workers of the search.
        outage: the outage of the database, if there is one.
        waiting: number of messages that are not stored yet.
        no_room: the message about a full disk; None if the disk has room.
    """
    problems = crew.put_aside
    if outage.is_on:
        problems.append(f"no database for {duration(outage.seconds)}; training goes on, {waiting} messages wait")
    if no_room:
        problems.append(f"paused: {no_room}")
    return problems


def line_of(view: TrialView, trials: Trials) -> str:
    """One line for a log about a trial that has ended."""
    best, objective = trials.ended.best, trials.objective
    found = "" if best is None else f"; best {words_of_best(best, objective)} (trial {best.number})"
    spent = " ".join(trials.budget.progress(trials.spent))
    return f"{view.sentence(trials.rungs.ladder, objective)}; {spent}{found}"
