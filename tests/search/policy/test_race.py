"""The race between the best candidates: its rounds, who goes on, and what it costs."""

from __future__ import annotations

import pytest

from search.policy.race import FIXED, LONG, SHORT, Entrant, Round, cost, report_seeds_of, rounds_for, standing
from studies import Confirm

THREE = [Entrant(7, 0.9, 300), Entrant(2, 0.8, 200), Entrant(5, None, 100)]


def test_each_round_has_the_best_of_the_one_before_until_none_has_anything_to_do() -> None:
    first = standing(THREE, SHORT, {})
    assert (first.alive, first.todo) == ((7, 2, 5), ((7, 0), (2, 0), (5, 0)))
    partly = standing(THREE, SHORT, {5: {0: 0.7}})
    assert partly.todo == ((7, 0), (2, 0)), "nothing is decided before the round is over"
    second = standing(THREE, SHORT, {7: {0: 0.5}, 2: {0: 0.7}, 5: {0: 0.72}})
    assert second.alive == (2, 5), "0.75 with the search's 0.8, and 0.72; 0.7 of the first is not enough"
    assert second.todo == ((2, 1), (5, 1))
    last = standing(THREE, SHORT, {7: {0: 0.5}, 2: {0: 0.7, 1: 0.6}, 5: {0: 0.72, 1: 0.75}})
    assert (last.alive, last.todo) == ((5, 2), ())


def test_seeds_beyond_those_of_a_round_have_no_part_in_the_choice() -> None:
    results: dict[int, dict[int, float | None]] = {7: {0: 0.5}, 2: {0: 0.7, 1: 0.6}, 5: {0: 0.72, 1: 0.75}}
    results[2] |= {2: 1.0, 3: 1.0}
    assert standing(THREE, SHORT, results).alive[0] == 5


def test_a_candidate_that_diverged_is_out_and_a_field_of_them_is_empty() -> None:
    assert standing(THREE, SHORT, {7: {0: None}}).todo == ((2, 0), (5, 0))
    none = standing(THREE, SHORT, {7: {0: None}, 2: {0: None}, 5: {0: None}})
    assert (none.alive, none.todo) == ((), ())


def test_the_smaller_of_two_equals_is_the_better() -> None:
    same: dict[int, dict[int, float | None]] = {7: {0: 0.1, 1: 0.2}, 2: {0: 0.2, 1: 0.2}}
    assert standing([Entrant(7, 0.3, 300), Entrant(2, 0.2, 200)], SHORT, same).alive == (2, 7), "0.6 / 3 in both"


@pytest.mark.parametrize(
    ("confirm", "trainings", "rounds", "report"),
    [
        ({}, 29.9, SHORT, 2),
        ({}, 30, LONG, 2),
        ({"report_seeds": 0}, 8, SHORT, 0),
        ({"top": 4}, 8, (Round(4, FIXED.seeds),), 0),
        ({"seeds": 2}, 60, (Round(FIXED.keep, 2),), 0),
        ({"top": 4, "seeds": 2, "report_seeds": 3}, 8, (Round(4, 2),), 3),
        ({"top": 0}, 8, (), 0),
        ({"top": 0, "report_seeds": 3}, 8, (), 0),
    ],
)
def test_what_the_study_file_says_becomes_rounds(
    confirm: dict[str, int], trainings: float, rounds: tuple[Round, ...], report: int
) -> None:
    asked = Confirm.model_validate(confirm)
    assert rounds_for(asked, trainings) == rounds
    assert report_seeds_of(asked) == report


def test_what_a_race_costs() -> None:
    assert (cost(SHORT, 3), cost(LONG, 9), cost(SHORT, 1), cost((FIXED,), 5)) == (5, 8, 2, 15)
