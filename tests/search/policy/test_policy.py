"""The rungs, and who goes on from them."""

import random

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from search.policy.ladder import PAUSED_AT, PROMOTED_AT, Ladder, ladder_for, reached
from search.policy.promotion import Promotion


@pytest.mark.parametrize(
    ("epochs", "lengths"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 3)), (5, (2, 5)), (9, (3, 9)), (18, (2, 6, 18)), (50, (6, 18, 50))],
)
def test_whole_trainings_are_a_ninth_and_a_third_and_none_is_of_one_epoch_if_that_can_be(epochs, lengths):
    assert ladder_for(epochs, anew=True, factor=3).lengths == lengths


@pytest.mark.parametrize(
    ("epochs", "warmup", "lengths"),
    [(50, 5, (6, 18, 50)), (50, 0, (6, 18, 50)), (18, 1, (2, 6, 18)), (9, 2, (3, 9)), (9, 5, (9,)), (5, 0, (1, 5))],
)
def test_a_training_is_looked_at_first_after_its_warmup_and_last_before_its_half(epochs, warmup, lengths):
    assert ladder_for(epochs, anew=False, factor=3, warmup=warmup).lengths == lengths


def test_a_first_rung_that_is_named_stands_wherever_it_is():
    assert ladder_for(10, anew=False, factor=3, first=8).lengths == (8, 10)
    assert ladder_for(10, anew=True, factor=3, first=1).lengths == (1, 3, 10)
    assert ladder_for(10, anew=True, factor=2, first=10).lengths == (10,)


def test_the_steps_of_whole_trainings_count_on():
    ladder = Ladder((2, 6, 18), anew=True)
    assert ladder.steps == (2, 8, 26)
    assert [ladder.stage_after(step) for step in (0, 2, 8)] == [0, 1, 2]
    assert [ladder.steps_before(stage) for stage in range(3)] == [0, 2, 8]
    assert [ladder.next_step(step) for step in (0, 1, 2, 8, 26)] == [2, 2, 8, 26, 26]


def test_one_training_goes_through_all_rungs():
    ladder = Ladder((2, 6, 18))
    assert ladder.steps == (2, 6, 18)
    assert [ladder.steps_before(stage) for stage in range(3)] == [0, 0, 0]


def test_a_step_has_its_place_in_its_own_training():
    series, one = Ladder((2, 6, 18), anew=True), Ladder((2, 6, 18))
    assert [series.place_of(step) for step in (0, 2, 3, 8, 9, 26)] == [
        (0, 2),
        (2, 2),
        (1, 6),
        (6, 6),
        (1, 18),
        (18, 18),
    ]
    assert [one.place_of(step) for step in (2, 3, 18)] == [(2, 18), (3, 18), (18, 18)]
    values = {1: 0.1, 2: 0.2, 3: 0.3, 9: 0.4}
    assert series.trainings_of(values) == [{1: 0.1, 2: 0.2}, {3: 0.3}, {9: 0.4}]
    assert one.trainings_of(values) == [values]


@pytest.mark.parametrize(
    ("ladder", "factor", "words"),
    [
        (
            Ladder((2, 6, 18), anew=True),
            3,
            "compared after 2, 6 and 18 epochs, each in a separate training; the best third goes on",
        ),
        (Ladder((2, 6, 18)), 2, "compared after 2 and 6 of 18 epochs; the best half goes on"),
        (Ladder((6, 18)), 5, "compared after 6 of 18 epochs; the best 1 of 5 goes on"),
        (Ladder((18,)), 3, ""),
    ],
)
def test_the_rungs_are_said_in_words(ladder, factor, words):
    assert ladder.describe("epoch", factor) == words


def trial_with(values, **more):
    axis = {"lr": FloatDistribution(0, 1)}
    state = more.pop("state", TrialState.RUNNING)
    return create_trial(
        state=state, params={"lr": 0.5}, distributions=axis, intermediate_values=values, value=more.pop("value", None),
        user_attrs=more,
    )  # fmt: skip


def test_a_trial_has_reached_the_rungs_that_it_has_passed():
    ladder = Ladder((2, 6, 18), anew=True)
    assert reached(trial_with({1: 0.1}), ladder) == {}
    assert reached(trial_with({1: 0.1, 2: 0.2, 3: 0.15}), ladder) == {0: 0.2}
    whole = trial_with({step: step / 100 for step in range(1, 27)}, state=TrialState.COMPLETE, value=0.26)
    assert reached(whole, ladder) == {0: 0.02, 1: 0.08, 2: 0.26}


def test_a_training_that_lost_patience_before_a_rung_has_its_last_value_there():
    ladder = Ladder((4, 12), anew=True)
    assert reached(trial_with({1: 0.3, 2: 0.2}, **{PAUSED_AT: 4}), ladder) == {0: 0.2}
    assert reached(trial_with({1: 0.3, 2: 0.2, 5: 0.1}, **{PROMOTED_AT: 4}), ladder) == {0: 0.2}
    ended = trial_with({1: 0.3, 2: 0.2}, state=TrialState.COMPLETE, value=0.2)
    assert reached(ended, Ladder((4, 12))) == {0: 0.2, 1: 0.2}


def arrived_and_waiting(values, factor, *, order=None):
    """Candidates at the only rung, of step 2."""
    standings = Promotion(Ladder((2, 6)), factor)
    for number in order or range(len(values)):
        standings.arrive(number, 2, values[number])
        standings.pause(number, 2)
    return standings


def test_the_best_third_goes_on_and_the_others_wait():
    standings = Promotion(Ladder((2, 6)), factor=3)
    # Of one or two the best third is nobody; of three it is trial 1, which waits already.
    assert [standings.arrive(number, 2, value) for number, value in enumerate([0.5, 0.6, 0.4])] == [False] * 3
    for number in range(3):
        standings.pause(number, 2)
    assert standings.next() == 1
    standings.promote(1)
    assert standings.next() is None
    assert standings.next(at_least=2) == 0
    assert standings.arrive(3, 2, 0.9) is True
    assert standings.order() == [0, 2]


def test_a_later_and_worse_candidate_lets_an_earlier_one_go_on():
    standings = arrived_and_waiting([0.5], factor=2)
    assert standings.next() is None
    standings.arrive(1, 2, 0.1)
    assert standings.next() == 0


def test_the_deepest_rung_comes_first():
    standings = Promotion(Ladder((2, 6, 18)), factor=1)
    for number, step in ((0, 2), (1, 6)):
        standings.arrive(number, step, 0.5)
        standings.pause(number, step)
    assert standings.next() == 1
    assert standings.order() == [1, 0]


def test_equal_values_go_on_in_the_order_of_their_numbers():
    standings = arrived_and_waiting([0.5] * 4, factor=2, order=[3, 1, 2, 0])
    assert [standings.next(), standings.order()] == [0, [0, 1, 2, 3]]


def test_who_has_left_holds_no_place_and_still_counts_as_one_that_came():
    standings = arrived_and_waiting([0.9, 0.5], factor=2)
    standings.end_early(0)
    assert standings.next() == 1


def test_a_diverged_candidate_is_the_last_of_its_rung():
    standings = arrived_and_waiting([0.5], factor=2)
    standings.end_early(1, diverged=True)
    assert standings.next() == 0


def test_a_training_that_ends_early_counts_at_every_rung():
    standings = Promotion(Ladder((2, 6, 18)), factor=2)
    standings.complete(0, 0.9)
    assert standings.arrive(1, 6, 0.5) is False
    assert standings.arrive(2, 6, 0.4) is False
    assert standings.arrive(3, 6, 0.95) is True


def test_a_step_before_a_rung_belongs_to_it():
    standings = Promotion(Ladder((2, 6), anew=True), factor=1)
    assert standings.arrive(0, 1, 0.5) is True, "its patience ended before the rung"


def test_the_order_of_arrivals_does_not_matter():
    draw = random.Random(0)
    values = [draw.random() for _ in range(40)]
    one = arrived_and_waiting(values, factor=3)
    other = arrived_and_waiting(values, factor=3, order=draw.sample(range(40), 40))
    assert one.order() == other.order()
    assert one.next() == other.next() == values.index(max(values))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_the_standings_are_those_of_a_count_from_the_beginning(factor):
    draw = random.Random(factor)
    standings, values, gone, waiting = Promotion(Ladder((2, 6)), factor), {}, set(), set()
    for _ in range(400):
        number = draw.randrange(40)
        if number not in values:
            values[number] = round(draw.random(), 1)
            standings.arrive(number, 2, values[number])
        elif number not in gone and draw.random() < 0.7:
            standings.pause(number, 2)
            waiting.add(number)
        else:
            standings.end_early(number)
            gone.add(number)
            waiting.discard(number)
        best = sorted(values.keys() - gone, key=lambda one: (-values[one], one))[: len(values) // factor]
        assert standings.arrive(number, 2, values[number]) is (number in best)
        ready = [one for one in best if one in waiting]
        assert (standings.next(), standings.promotable()) == (ready[0] if ready else None, len(ready))


def test_who_has_left_does_not_go_on():
    standings = Promotion(Ladder((2, 6)), factor=1)
    standings.arrive(0, 2, 0.9)
    standings.arrive(1, 2, 0.5)
    standings.end_early(0)
    assert standings.arrive(0, 2, 0.9) is False
