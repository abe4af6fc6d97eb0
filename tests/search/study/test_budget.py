"""What a search may spend, what it has spent, and whether another candidate may begin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from moments import STEPS, spec_of
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.study.budget import Budget, Spent
from search.study.ended import Ended
from search.study.trial import is_paused, view_of


def trial(state: TrialState, steps: int = 0, **attributes: int) -> FrozenTrial:
    values = {step: 0.1 * step for step in range(1, steps + 1)}
    value = 0.5 if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, intermediate_values=values, user_attrs=attributes)


TRIALS = [
    trial(TrialState.COMPLETE, 3),
    trial(TrialState.PRUNED, 1),
    trial(TrialState.FAIL),
    trial(TrialState.RUNNING, 2),
    trial(TrialState.RUNNING, 1, paused_at=1),
    trial(TrialState.RUNNING, 1, paused_at=1, promoted_at=1),
    trial(TrialState.WAITING),
]


def budget(**search: Any) -> Budget:
    return Budget.of(spec_of(**search))


def spent(epochs: int = 0, begun: int = 0, finished: int | None = None, **more: int) -> Spent:
    done = begun if finished is None else finished
    return Spent(epochs=epochs, trainings=epochs / STEPS, begun=begun, finished=done, **more)


def test_only_a_running_trial_that_did_not_go_on_since_is_paused() -> None:
    assert [is_paused(one) for one in TRIALS] == [False, False, False, False, True, False, False]
    assert is_paused(trial(TrialState.RUNNING, 3, paused_at=3, promoted_at=1)), "it is paused again"
    assert not is_paused(trial(TrialState.PRUNED, 1, paused_at=1)), "it has ended"


def test_every_epoch_of_every_candidate_is_spent() -> None:
    found = Spent.of(TRIALS, spec_of(trials=9))
    assert found == Spent(epochs=8, trainings=8 / 3, begun=6, finished=3, complete=1, paused=1)
    assert Spent.of([], spec_of()) == Spent()


def test_a_running_search_counts_as_its_database_does() -> None:
    ended = Ended.of(view_of(one) for one in TRIALS if one.state.is_finished())
    assert Spent.so_far(ended, 2, 3, spec_of(), {}) == Spent.of(TRIALS[:4] + TRIALS[5:], spec_of())
    assert Spent.so_far(ended, 1, 2, spec_of(), {1: 1}).paused == 1


def test_a_fold_counts_as_a_step() -> None:
    spec = spec_of().model_copy(update={"data": spec_of().data.model_copy(update={"folds": 5})})
    assert Spent.of([trial(TrialState.PRUNED, 2)], spec).trainings == 2 / 5
    assert Budget.of(spec).steps == 5


@pytest.mark.parametrize(
    ("search", "words", "described", "share"),
    [
        (
            {"trainings": 30},
            "30 full trainings",
            "12.3 of 30 full trainings spent, 41 candidates, 6 complete",
            12.333 / 30,
        ),
        ({"trainings": 1.5}, "1.5 full trainings", "12.3 of 1.5 full trainings spent, 41 candidates, 6 complete", 1.0),
        ({"trials": 60}, "60 trials", "38 of 60 trials finished, 6 complete", 38 / 60),
        (
            {"trainings": 30, "trials": 60},
            "30 full trainings or 60 trials",
            "12.3 of 30 full trainings spent, 41 of 60 candidates, 6 complete",
            38 / 60,
        ),
        ({"trainings": 1, "trials": 1}, "1 full training or 1 trial", None, 1.0),
    ],
)
def test_a_budget_in_words(search: dict[str, Any], words: str, described: str | None, share: float) -> None:
    now = spent(37, begun=41, finished=38, complete=6)
    assert budget(**search).words == words
    assert described is None or budget(**search).describe(now) == described
    assert budget(**search).share(now) == pytest.approx(share, abs=1e-3)


def test_paused_candidates_and_a_single_one_are_told() -> None:
    one = spent(1, begun=1, finished=0)
    assert budget(trainings=2).describe(one) == "0.3 of 2 full trainings spent, 1 candidate, 0 complete"
    paused = spent(8, begun=6, finished=3, complete=1, paused=3)
    assert budget(trainings=30).describe(paused) == "2.7 of 30 full trainings spent, 6 candidates, 1 complete, 3 paused"
    assert budget(trials=9).describe(paused) == "3 of 9 trials finished, 1 complete, 3 paused"


def test_another_candidate_may_begin_while_what_was_begun_cannot_spend_the_budget() -> None:
    two = budget(trainings=2)  # of three epochs
    assert two.allows_another(spent())
    assert two.allows_another(spent(2, begun=2), committed_epochs=3)
    assert not two.allows_another(spent(2, begun=2), committed_epochs=4)
    assert not two.allows_another(spent(6, begun=2))
    assert two.candidates_left(spent(2, begun=2), committed_epochs=1) == 3, "one for each epoch that is left"
    assert not budget(trainings=2, trials=2).allows_another(spent(2, begun=2))
    assert not budget(trials=2).allows_another(spent(begun=2, finished=0))
    assert budget(trials=3).candidates_left(spent(begun=2, finished=0), committed_epochs=99) == 1


def test_less_than_one_training_begins_one_candidate() -> None:
    assert budget(trainings=0.1).allows_another(spent())
    assert not budget(trainings=0.1).allows_another(spent(begun=1, finished=0), committed_epochs=3)


def test_a_share_of_a_training_is_counted_in_whole_epochs() -> None:
    assert 0.55 * 100 > 55
    long = replace(budget(trainings=0.55), steps=100)
    assert long.allows_another(spent(54, begun=1))
    assert not long.allows_another(spent(55, begun=1))


def test_candidates_that_end_before_their_first_epoch_end_a_search_too() -> None:
    assert budget(trainings=2).allows_another(spent(0, begun=5))
    assert not budget(trainings=2).allows_another(spent(0, begun=6))


def test_a_budget_is_spent_once_nothing_is_left_to_do() -> None:
    assert budget(trials=2).is_spent(spent(begun=2))
    assert not budget(trials=2).is_spent(spent(begun=2, finished=1)), "one is unfinished"
    assert not budget(trials=3).is_spent(spent(begun=2))
    assert budget(trainings=1).is_spent(spent(3, begun=3, finished=1, paused=2)), "paused ones stay so"
    assert not budget(trainings=1).is_spent(spent(2, begun=1))


@pytest.mark.parametrize(
    ("search", "now", "options"),
    [
        ({"trainings": 30}, spent(90, begun=41), "--trainings 45"),
        ({"trainings": 0.5}, spent(3, begun=1), "--trainings 2"),
        ({"trainings": 5}, spent(30, begun=20), "--trainings 15"),
        ({"trainings": 2}, spent(0, begun=9), "--trainings 5"),
        ({"trials": 30}, spent(40, begun=30), "--trials 60"),
        ({"trials": 5}, spent(40, begun=30), "--trials 60"),
        ({"trainings": 30, "trials": 40}, spent(60, begun=40), "--trials 80"),
        ({"trainings": 30, "trials": 60}, spent(90, begun=41), "--trainings 45"),
        ({"trainings": 30, "trials": 40}, spent(90, begun=40), "--trainings 45 --trials 80"),
    ],
)
def test_how_to_go_on_is_a_budget_that_goes_on(search: dict[str, Any], now: Spent, options: str) -> None:
    assert not budget(**search).allows_another(now)
    assert budget(**search).larger(now) == options
    words = options.split()
    larger = {key.removeprefix("--"): int(value) for key, value in zip(words[::2], words[1::2], strict=True)}
    assert budget(**(search | larger)).allows_another(now)
