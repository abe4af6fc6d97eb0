"""A search at one moment, without a search."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from search.study.budget import Budget, Spent
from search.study.ended import Ended
from search.study.progress import Snapshot, WorkerView
from search.study.sampling import build_ladder
from search.study.trial import TrialView
from studies import StudySpec

STEPS = 3
"""Epochs of a full training."""


def spec_of(**search: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "birds",
            "train": {"epochs": STEPS},
            "space": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}},
            "search": {"pruner": "successive_halving"} | search,
        }
    )


def moment(
    study: str,
    budget: int | dict[str, float],
    finished: Collection[TrialView],
    workers: Collection[WorkerView],
    eta_seconds: float | None,
    **more: Any,
) -> Snapshot:
    """``budget``: a number of trials, or the budget of [search]. The workers' trials are all that is in progress."""
    spec = spec_of(**({"trials": budget} if isinstance(budget, int) else budget))
    steps = [worker.epoch for worker in workers if worker.trial is not None]
    ended = Ended.of(finished)
    spent = Spent.so_far(ended, len(steps), sum(steps), spec, {})
    budget, ladder = Budget.of(spec), build_ladder(spec)
    more = {"objective": "accuracy"} | more
    return Snapshot(study, budget, spent, tuple(finished), ended, tuple(workers), eta_seconds, ladder, **more)
