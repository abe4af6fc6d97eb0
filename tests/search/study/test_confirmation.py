"""The confirmation: who is confirmed, who is tied, who wins, and what is kept when it is cut short."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from marked import add_own
from optuna.trial import TrialState, create_trial
from scipy.stats import ttest_ind

from search.export.choice import choose_trials
from search.study.confirmation import (
    CONFIRM,
    begin,
    confirmation_of,
    final_seed,
    missing,
    record,
)
from search.study.finalists import Finalist, choose, pooled_deviation, ties
from search.study.lock import process_name
from search.study.sampling import seed_of
from search.study.storage import open_storage, parse_url
from search.study.study import FINGERPRINT, open_study
from studies import Limit, Search, StudySpec
from studies.final import Final
from trainer.errors import LimitError

SPACE = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}


def spec_of(**confirm: int) -> StudySpec:
    values = {"name": "confirmed", "data": {"source": "digits"}, "space": SPACE, "confirm": confirm}
    return StudySpec.model_validate(values)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[optuna.Study]:
    """Six trials: 0 to 4 complete with rising accuracy and size, 5 pruned."""
    storage = open_storage(parse_url(f"sqlite:///{tmp_path}/search.db"), create=True)
    study = open_study(spec_of(), storage, "pictures")
    axis = optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)
    for number in range(6):
        values: dict[str, Any] = {"params": {"lr": 0.01}, "distributions": {"lr": axis}}
        values |= {"user_attrs": {"num_params": 1000 + number}}
        state = optuna.trial.TrialState.COMPLETE if number < 5 else optuna.trial.TrialState.PRUNED
        add_own(study, [create_trial(state=state, value=0.5 + number / 100, **values)])
    yield study
    storage.remove_session()
    storage.engine.dispose()


def candidate(trial: int, *accuracies: float, num_params: int = 1000, diverged: int = 0) -> Finalist:
    return Finalist(trial=trial, num_params=num_params, search_accuracy=0.9, accuracies=accuracies, diverged=diverged)


def test_the_best_complete_trials_are_confirmed_each_with_one_seed_first(study: optuna.Study) -> None:
    todo = [(trial.number, seed) for trial, seed in missing(study, spec_of(top=3, seeds=2))]
    assert todo == [(4, 0), (3, 0), (2, 0), (4, 1), (3, 1), (2, 1)]
    assert missing(study, spec_of(top=0)) == []


def test_candidates_that_exceed_the_limit_as_they_are_exported_are_not_confirmed(study: optuna.Study) -> None:
    spec = spec_of(top=2, seeds=1)
    asked = {"limit": Limit(params=2004), "final": Final(ensemble=2)}  # twice 1002 is 2004
    twice = spec.model_copy(update=asked)
    assert [trial.number for trial, _ in missing(study, twice)] == [2, 1]
    begin(study, twice)
    record(study, 2, 0, 0.51, 7.0)
    record(study, 1, 0, 0.50, 7.0)
    found = confirmation_of(study, spec.model_copy(update={"limit": asked["limit"]}))  # as it was launched
    assert found is not None
    assert [one.trial for one in found.candidates] == [2, 1]
    assert [trial.number for trial in choose_trials(study, (), twice)] == [2]
    with pytest.raises(LimitError, match=r"^3 members of trial 0, the smallest that is complete, have 3,000"):
        choose_trials(study, (), twice.model_copy(update={"final": Final(ensemble=3)}))


def test_seeds_are_those_of_no_training_of_the_search() -> None:
    spec = spec_of()
    searched = {seed_of(spec.seed, trial) for trial in range(100)}
    fresh = {final_seed(spec, trial, number) for trial in range(100) for number in range(5)}
    assert len(fresh) == 500
    assert not searched & fresh


def test_a_confirmation_goes_on_where_it_stopped(study: optuna.Study) -> None:
    spec = spec_of(top=2, seeds=2)
    assert confirmation_of(study, spec) is None
    begin(study, spec)
    assert confirmation_of(study, spec) is None
    record(study, 4, 0, 0.51, 7.0)
    again = optuna.load_study(study_name=study.study_name, storage=study._storage)
    assert [(trial.number, seed) for trial, seed in missing(again, spec)] == [(3, 0), (4, 1), (3, 1)]
    found = confirmation_of(again, spec, owner=f"{process_name()} since today")
    assert found is not None
    assert (found.done, found.trainings, found.winner, found.seconds) == (1, 4, None, 7.0)
    assert found.eta_seconds == 21.0
    assert found.sentence == "confirming the best: 1 of 4 trainings done, about 21 s left"


@pytest.mark.parametrize("owner", [None, "another process", "process 1 on elsewhere since today"])
def test_nobody_is_said_to_confirm_the_best_while_no_export_does(study: optuna.Study, owner: str | None) -> None:
    """As when a search that went on after its export found another of the best."""
    spec = spec_of(top=2, seeds=2)
    begin(study, spec)
    record(study, 4, 0, 0.51, 7.0)
    found = confirmation_of(study, spec, owner=owner)
    assert found is not None
    assert found.eta_seconds is None
    assert found.sentence == (
        "the best are not all confirmed: 1 of 4 trainings done; search export-best does the others"
    )


def test_a_candidate_without_a_result_has_no_error_while_others_have_one(study: optuna.Study) -> None:
    spec = spec_of(top=2, seeds=2)
    begin(study, spec)
    record(study, 4, 0, 0.51, 7.0)
    record(study, 4, 1, 0.53, 7.0)  # another worker still trains trial 3 with its first seed
    found = confirmation_of(study, spec)
    assert found is not None
    errors = {one.trial: one.standard_error for one in found.candidates}
    assert errors == {4: pytest.approx(0.01), 3: None}
    record(study, 3, 0, None, 7.0)
    record(study, 3, 1, None, 7.0)
    ended = confirmation_of(study, spec)
    assert ended is not None
    assert ended.winner == 4


def test_other_pictures_or_another_recipe_void_the_results(study: optuna.Study) -> None:
    spec = spec_of(top=2, seeds=2)
    begin(study, spec)
    record(study, 4, 0, 0.51, 7.0)
    changed = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": 3})})
    reopened = open_study(changed, study._storage, "pictures", accept_changes=True)  # type: ignore[arg-type]
    assert len(missing(reopened, changed)) == 4
    assert confirmation_of(reopened, changed) is None


@pytest.mark.parametrize("held", [{}, "42", {"of": "another program's"}, {"results": [{"trial": 4}]}])
def test_an_attribute_that_is_no_confirmation_counts_as_none_and_is_begun_anew(
    study: optuna.Study, held: object
) -> None:
    spec = spec_of(top=2, seeds=2)
    study.set_user_attr(CONFIRM, held)
    assert confirmation_of(study, spec) is None
    assert len(missing(study, spec)) == 4
    begin(study, spec)
    record(study, 4, 0, 0.51, 7.0)
    assert len(missing(study, spec)) == 3


def test_a_confirmation_says_in_json_what_it_says_in_values(study: optuna.Study) -> None:
    spec = spec_of(top=2, seeds=2)
    begin(study, spec)
    record(study, 4, 0, 0.51, 7.0)
    found = confirmation_of(study, spec)
    assert found is not None
    said = json.loads(json.dumps(found.to_json()))
    keys = "trainings done seconds eta_seconds candidates winner estimate raw_best test sentence"
    assert said.keys() == set(keys.split())
    first = "trial num_params search_accuracy accuracies mean standard_error diverged tied"
    assert said["candidates"][0].keys() == set(first.split())
    assert (said["candidates"][0]["mean"], said["done"]) == (0.51, 1)


SHORT = spec_of().model_copy(update={"search": Search(trainings=8)})


def race_on(
    study: optuna.Study, spec: StudySpec, accuracy: Callable[[int, int], float | None]
) -> list[list[tuple[int, int]]]:
    """Do all trainings of a confirmation; returns those of each round, as (trial, seed)."""
    rounds = []
    begin(study, spec)
    while todo := missing(study, spec):
        rounds.append([(trial.number, seed) for trial, seed in todo])
        for trial, seed in rounds[-1]:
            record(study, trial, seed, accuracy(trial, seed), 2.0)
    return rounds


def test_the_best_race_and_only_seeds_that_had_no_part_in_it_measure_the_winner(study: optuna.Study) -> None:
    """In the search trial 4 was the best. With fresh seeds 3 is, which is better still with the seeds that count."""

    def accuracy(trial: int, seed: int) -> float:
        return 0.99 if seed >= 2 else 0.8 if trial == 3 else 0.6 - trial / 100

    rounds = race_on(study, SHORT, accuracy)
    assert rounds == [[(4, 0), (3, 0), (2, 0)], [(3, 1), (2, 1)], [(3, 2), (3, 3)]]
    found = confirmation_of(study, SHORT)
    assert found is not None
    assert (found.winner, found.trainings, found.done, found.estimate) == (3, 7, 7, 0.99)
    best = found.candidates[0]
    assert (best.trial, best.accuracies, best.reported, best.mean) == (3, (0.8, 0.8), (0.99, 0.99), 0.8)
    assert best.mean_in_words("accuracy").startswith("99.00% +- ")
    assert "over 2 fresh seeds that had no part in the choice, on validation" in found.sentence
    assert found.sentence.endswith("; the search's best had claimed 54.00%")


def test_a_race_that_is_cut_short_after_each_training_ends_as_one_that_is_not(study: optuna.Study) -> None:
    def accuracy(trial: int, seed: int) -> float | None:
        return None if (trial, seed) == (4, 0) else 0.5 + (7 * trial + 3 * seed) % 5 / 10

    done = []
    while True:
        again = optuna.load_study(study_name=study.study_name, storage=study._storage)
        begin(again, SHORT)
        if not (todo := missing(again, SHORT)):
            break
        trial, seed = todo[-1]  # the others were in progress, on other workers
        done.append((trial.number, seed))
        record(again, trial.number, seed, accuracy(trial.number, seed), 2.0)
    cut = confirmation_of(study, SHORT)
    study.set_user_attr(CONFIRM, None)
    rounds = race_on(study, SHORT, accuracy)
    assert sorted(done) == sorted(one for todo in rounds for one in todo)
    assert cut == confirmation_of(study, SHORT)


def test_only_the_winner_has_seeds_that_measure_it(study: optuna.Study) -> None:
    """A search that went on has found a better one; the winner of before has been measured, and is one of many now."""
    race_on(study, SHORT, lambda trial, seed: 0.6 if trial == 3 else 0.5)
    values: dict[str, Any] = {"params": {"lr": 0.02}, "distributions": study.trials[0].distributions}
    add_own(study, [create_trial(state=TrialState.COMPLETE, value=0.6, user_attrs={"num_params": 9}, **values)])
    race_on(study, SHORT, lambda trial, seed: 0.7 if trial == 6 else 0.5)
    found = confirmation_of(study, SHORT)
    assert found is not None
    assert found.winner == 6
    assert {one.trial: len(one.reported) for one in found.candidates} == {6: 2, 3: 0, 4: 0}


def test_after_a_search_of_30_trainings_the_race_is_longer(study: optuna.Study) -> None:
    rounds = race_on(study, spec_of(), lambda trial, seed: 0.5 + trial / 100)
    assert [len(one) for one in rounds] == [4, 4, 2]
    assert rounds[1] == [(4, 1), (3, 1), (4, 2), (3, 2)]
    assert rounds[2] == [(4, 3), (4, 4)]


def test_what_the_search_said_of_a_candidate_counts_as_one_more_seed(study: optuna.Study) -> None:
    """Trial 2 is 0.005 better with its fresh seed, and 0.02 worse in the search."""
    rounds = race_on(study, SHORT, lambda trial, seed: {4: 0.6, 3: 0.6, 2: 0.605}[trial])
    assert rounds[1] == [(4, 1), (3, 1)]


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_a_candidate_that_diverges_at_any_time_makes_room_for_the_next(study: optuna.Study, when: int) -> None:
    def accuracy(trial: int, seed: int) -> float | None:
        return None if trial == 4 and seed == when else 0.5 + trial / 100

    rounds = race_on(study, SHORT, accuracy)
    found = confirmation_of(study, SHORT)
    assert found is not None
    assert (found.winner, found.candidate(4).diverged) == (3, 1)  # type: ignore[union-attr]
    assert found.estimate == 0.53
    assert rounds[-1] == [(3, 2), (3, 3)]
    assert found.done == found.trainings


def test_of_two_that_are_equal_the_smaller_wins(study: optuna.Study) -> None:
    race_on(study, SHORT, lambda trial, seed: 0.9 - trial / 200)  # after two seeds, with its value in the search
    found = confirmation_of(study, SHORT)
    assert found is not None
    assert found.winner == 3


def test_a_search_with_few_complete_trials_lets_others_race(study: optuna.Study) -> None:
    """Paused and stopped ones take the places that are left, those with most epochs first; diverged ones never do."""
    few = optuna.create_study(study_name="few", storage=study._storage, direction="maximize")
    few.set_user_attr(FINGERPRINT, study.user_attrs[FINGERPRINT])
    axis = optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)
    made: list[dict[str, Any]] = [
        {"state": TrialState.COMPLETE, "value": 0.5, "intermediate_values": {1: 0.4, 2: 0.5}},
        {"state": TrialState.PRUNED, "intermediate_values": {1: 0.9}},
        {"state": TrialState.PRUNED, "intermediate_values": {1: 0.2, 2: 0.3}},
        {"state": TrialState.PRUNED, "intermediate_values": {1: 0.9, 2: 0.9}, "user_attrs": {"failure": "diverged"}},
        {"state": TrialState.FAIL, "intermediate_values": {1: 0.9, 2: 0.9}},
    ]
    for number, one in enumerate(made):
        attributes = {"num_params": 1000 + number} | one.pop("user_attrs", {})
        add_own(few, [create_trial(**one, params={"lr": 0.01}, distributions={"lr": axis}, user_attrs=attributes)])
    rounds = race_on(few, SHORT, lambda trial, seed: 0.5 + trial / 10)
    assert rounds[0] == [(0, 0), (2, 0), (1, 0)]
    found = confirmation_of(few, SHORT)
    assert found is not None
    assert (found.winner, found.raw_best) == (2, 0.5), "the claim is that of a training to its end"
    assert [one.complete for one in found.candidates] == [False, False, True]


def test_a_confirmation_that_an_earlier_version_began_counts_on(study: optuna.Study) -> None:
    spec = spec_of(top=2, seeds=1)
    begin(study, spec)
    record(study, 4, 0, 0.6, 1.0)
    stored = dict(study.user_attrs[CONFIRM])
    rounds, _ = stored.pop("rounds"), stored.pop("report_seeds")
    assert rounds == [[2, 1]]
    study.set_user_attr(CONFIRM, stored | {"confirm": {"top": 2, "seeds": 1}})
    found = confirmation_of(study, spec)
    assert found is not None
    assert (found.trainings, found.done) == (2, 1)
    record(study, 3, 0, 0.5, 1.0)
    assert confirmation_of(study, spec).winner == 4  # type: ignore[union-attr]


def test_fewer_seeds_or_other_candidates_take_what_is_there(study: optuna.Study) -> None:
    begin(study, spec_of(top=2, seeds=3))
    for trial in (4, 3):
        for seed in range(3):
            record(study, trial, seed, 0.5 + trial / 100, 1.0)
    assert missing(study, spec_of(top=2, seeds=2)) == []
    begin(study, spec_of(top=2, seeds=2))
    found = confirmation_of(study, spec_of(top=5, seeds=3))
    assert found is not None
    assert (found.done, found.trainings) == (4, 4), "as it was begun, whatever the study was launched with"
    assert [len(one.accuracies) for one in found.candidates] == [2, 2]
    assert [(trial.number, seed) for trial, seed in missing(study, spec_of(top=3, seeds=1))] == [(2, 0)]


def test_the_mean_over_seeds_wins_not_the_best_of_the_search(study: optuna.Study) -> None:
    spec = spec_of(top=2, seeds=3)
    begin(study, spec)
    for seed, (first, second) in enumerate([(0.50, 0.60), (0.51, 0.61), (0.52, 0.62)]):
        record(study, 4, seed, first, 1.0)
        record(study, 3, seed, second, 1.0)
    found = confirmation_of(study, spec)
    assert found is not None
    assert (found.winner, found.raw_best) == (3, 0.54)
    assert found.estimate == pytest.approx(0.61)
    best, other = found.candidates
    assert (best.trial, best.tied, other.tied) == (3, True, False)
    assert best.standard_error == pytest.approx(0.01 / 3**0.5)
    assert found.sentence == (
        "confirmed: trial 3, 61.00% +- 0.58% over 3 fresh seeds on validation; the search's best had claimed 54.00%"
    )


def test_candidates_that_cannot_be_told_apart_are_tied_and_the_smaller_wins() -> None:
    found = [
        candidate(1, 0.90, 0.92, 0.91, num_params=2000),
        candidate(2, 0.89, 0.92, 0.90, num_params=1500),
        candidate(3, 0.70, 0.71, 0.72, num_params=1000),
    ]
    tied = ties(found, pooled_deviation(found))
    assert tied == {1, 2}
    winner = choose(found, tied)
    assert winner is not None
    assert winner.trial == 2


def test_of_two_candidates_the_test_is_students() -> None:
    """With two groups, the least significant difference is the t test with equal variances; scipy has that one."""
    for shift in (0.009, 0.012, 0.015, 0.018, 0.021):
        found = [candidate(1, 0.90, 0.91, 0.92), candidate(2, 0.905 - shift, 0.91 - shift, 0.915 - shift)]
        significant = ttest_ind(found[0].accuracies, found[1].accuracies).pvalue < 0.05
        assert (ties(found, pooled_deviation(found)) == {1}) == significant, shift


def test_one_seed_each_ties_only_equals() -> None:
    found = [candidate(1, 0.9, num_params=2000), candidate(2, 0.9), candidate(3, 0.8999, num_params=10)]
    assert pooled_deviation(found) is None
    assert ties(found, None) == {1, 2}


def test_a_candidate_that_diverged_once_is_not_chosen(study: optuna.Study) -> None:
    spec = spec_of(top=2, seeds=2)
    begin(study, spec)
    for trial, seed, accuracy in ((4, 0, 0.9), (4, 1, None), (3, 0, 0.5), (3, 1, 0.51)):
        record(study, trial, seed, accuracy, 1.0)
    found = confirmation_of(study, spec)
    assert found is not None
    assert found.winner == 3
    record(study, 3, 0, None, 1.0)
    assert choose([candidate(1, 0.9, diverged=1)], ties([candidate(1, 0.9, diverged=1)], None)) is None
