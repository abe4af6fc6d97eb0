"""The plan of the trainings after a search."""

from __future__ import annotations

from typing import Any

import pytest

from search.plan.after import after_search
from studies import StudySpec


def study(trainings: float | None = 8, **values: Any) -> StudySpec:
    made = {"name": "planned", "data": {"source": "digits"}, "space": {"lr": {"low": 1e-3, "high": 1e-1}}}
    search = {"trials": 12} if trainings is None else {"trainings": trainings}
    return StudySpec.model_validate(made | {"search": search, "train": {"epochs": 9}} | values)


RERANK = {"layer": "conv1"}


@pytest.mark.parametrize(
    ("spec", "parallel", "numbers", "seconds"),
    [
        (study(), 1, (5, 2, 0), 70),
        (study(), 2, (5, 2, 0), 10 * (2 + 1 + 1)),
        (study(30), 1, (8, 2, 0), 100),
        (study(None), 1, (5, 2, 0), 70),
        (study(confirm={"top": 3, "seeds": 2}), 1, (6, 0, 0), 60),
        (study(confirm={"top": 0}), 1, (0, 0, 1), 10),
        (study(final={"ensemble": 5}), 1, (5, 2, 3), 100),
        (study(final={"ema": 0.9}), 1, (5, 2, 1), 80),
        (study(final={"rerank": RERANK}), 1, (5, 2, 2), 90),
        (study(final={"rerank": RERANK, "epochs": 18}), 1, (5, 2, 3), 70 + 3 * 20),
        (study(final={"rerank": RERANK}), 2, (5, 2, 2), 10 * (2 + 1 + 1 + 1)),
        (study(final={"fit_on": "train+val", "epochs": 18}), 1, (5, 2, 1), 90),
    ],
)
def test_each_training_after_the_search_is_planned_once(
    spec: StudySpec, parallel: int, numbers: tuple[int, int, int], seconds: float
) -> None:
    """A training takes 10 s; the search has no more than 12 of them."""
    found = after_search(spec, 12, 10.0, parallel)
    assert (found.choosing, found.measuring, found.final) == numbers
    assert found.seconds == seconds


def test_a_plan_in_words() -> None:
    assert after_search(study(), 8, 60.0, 1).words == "5 trainings to choose the model, 2 to measure it: about 7 min"
    reranked = after_search(study(confirm={"top": 0}, final={"rerank": RERANK}), 8, 60.0, 1)
    assert (reranked.words, reranked.last_seconds) == ("3 trainings to export it: about 3 min", 180)
    alone = after_search(study(confirm={"top": 0}), 8, 60.0, 1)
    assert alone.words == "1 training to export it: about 60 s"
