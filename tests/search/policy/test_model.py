"""The model sampler: what it sees, what it makes of it, and that it repeats itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from threadpoolctl import ThreadpoolController

from search.policy import gp, model
from search.policy.candidates import CandidateReader
from search.policy.encoding import Encoding, coordinate_of, value_at
from search.policy.estimate import Estimates, estimated_ends
from search.policy.gp import Observations, Process, first_theta, fitted_theta
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, Ladder
from search.policy.model import RANDOM_EVERY, THETA, ModelSampler, _choice, _standardised
from search.policy.propose import proposed

NAN = math.nan
LADDER = Ladder((2, 6, 18))

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "momentum": FloatDistribution(0.0, 0.99),
    "depth": IntDistribution(1, 9, step=2),
    "units": IntDistribution(16, 512, log=True),
    "schedule": CategoricalDistribution(("cosine", "linear", None)),
    "nesterov": CategoricalDistribution((False, True)),
    "pixels": IntDistribution(32, 32),
    "loss": CategoricalDistribution(("cross_entropy",)),
    "dropout": FloatDistribution(0.0, 0.5, step=0.1),
}


def accuracy(params: Mapping[str, Any]) -> float:
    """0.9 at the best settings, and less the farther they are from these; the rate counts most."""
    away = (math.log10(params["lr"]) + 1.5) ** 2 + (params["momentum"] - 0.8) ** 2 + ((params["depth"] - 5) / 8) ** 2
    return 0.9 * math.exp(-0.5 * away) * (1.0 if params["schedule"] == "cosine" else 0.8)


def cliff(params: Mapping[str, Any]) -> float:
    """A third of the rates collapse, and the best are next to those that do."""
    return 0.01 if params["lr"] > 5e-2 else 0.5 + 0.1 * math.log10(params["lr"]) + 0.05 * params["momentum"]


def study_of(sampler: BaseSampler | None = None, direction: str = "maximize") -> optuna.Study:
    return optuna.create_study(direction=direction, sampler=sampler)


def searched(
    sampler: BaseSampler, function: Callable[[Mapping[str, Any]], float], trials: int = 30, sign: int = 1
) -> optuna.Study:
    study = study_of(sampler, "maximize" if sign > 0 else "minimize")
    for _ in range(trials):
        trial = study.ask(SPACE)
        study.tell(trial, sign * function(trial.params))
    return study


def random_settings(rng: np.random.Generator) -> dict[str, Any]:
    return {name: value_at(axis, rng.random()) for name, axis in SPACE.items()}


def ended(params: Mapping[str, Any], value: float | None, **more: Any) -> FrozenTrial:
    return create_trial(params=dict(params), distributions=SPACE, value=value, **more)


def filled(trials: int, seed: int = 0) -> optuna.Study:
    """A study in which every kind of trial occurs."""
    rng, study = np.random.default_rng(seed), study_of(ModelSampler(seed=1, ladder=LADDER))
    for number in range(trials):
        params = random_settings(rng)
        end = accuracy(params)
        values = {step: end * (0.5 + step / 36) for step in LADDER.steps}
        kind = number % 8
        if kind == 0:
            study.add_trial(ended(params, end, intermediate_values=values))
        elif kind == 1:
            study.add_trial(ended(params, None, state=TrialState.PRUNED))
        elif kind == 2:
            study.add_trial(ended(params, None, state=TrialState.FAIL))
        elif kind == 3:
            study.add_trial(ended(params, None, state=TrialState.RUNNING))
        elif kind == 4:
            promoted = {"state": TrialState.RUNNING, "user_attrs": {PROMOTED_AT: 2}}
            study.add_trial(ended(params, None, intermediate_values={2: values[2], 6: values[6]}, **promoted))
        else:
            paused = {"state": TrialState.RUNNING, "user_attrs": {PAUSED_AT: 2}}
            study.add_trial(ended(params, None, intermediate_values={2: values[2]}, **paused))
    return study


# -- quality


@pytest.mark.parametrize("sign", [1, -1])
def test_it_finds_far_better_settings_than_chance(sign: int) -> None:
    def found(make: Callable[[int], BaseSampler]) -> float:
        return float(np.mean([sign * searched(make(seed), accuracy, sign=sign).best_value for seed in range(4)]))

    model, chance = found(lambda seed: ModelSampler(seed=seed)), found(lambda seed: RandomSampler(seed=seed))
    assert 0.9 - model < 0.25 * (0.9 - chance)


def test_a_cliff_of_collapsed_candidates_does_not_hide_the_best_beside_it() -> None:
    best = 0.5 + 0.1 * math.log10(5e-2) + 0.05 * 0.99

    def regret(make: Callable[[int], BaseSampler]) -> float:
        return best - float(np.mean([searched(make(seed), cliff).best_value for seed in range(4)]))

    assert regret(lambda seed: ModelSampler(seed=seed)) < 0.7 * regret(lambda seed: RandomSampler(seed=seed))


def test_candidates_that_have_reached_no_end_teach_it_too() -> None:
    """Of 40 that wait at the first rung, those with a rate near 0.03 lead; the next ones are near it."""
    rng, study = np.random.default_rng(0), study_of(ModelSampler(seed=0, ladder=LADDER))
    for _ in range(40):
        params = random_settings(rng)
        waits = {"state": TrialState.RUNNING, "user_attrs": {PAUSED_AT: 2}}
        study.add_trial(ended(params, None, intermediate_values={2: 0.3 * accuracy(params)}, **waits))
    asked = [study.ask(SPACE).params for _ in range(8)]
    assert sum(abs(math.log10(params["lr"]) + 1.5) < 0.7 for params in asked) >= 4


def test_diverged_candidates_drive_it_away() -> None:
    study = study_of(ModelSampler(seed=0, ladder=LADDER))
    rng = np.random.default_rng(0)
    for number in range(40):
        params = random_settings(rng) | {"lr": 10 ** rng.uniform(-2, 0) if number % 2 else 10 ** rng.uniform(-4, -2)}
        if number % 2:
            study.add_trial(ended(params, None, state=TrialState.PRUNED, intermediate_values={1: 0.9}))
        else:
            study.add_trial(ended(params, 0.4 + 0.2 * rng.random()))
    asked = [study.ask(SPACE).params["lr"] for _ in range(10)]
    assert sum(lr < 1e-2 for lr in asked) >= 6


# -- it repeats itself


@pytest.mark.parametrize("trials", [12, 60, 400])
def test_a_fresh_sampler_suggests_the_same(trials: int) -> None:
    assert [filled(trials).ask(SPACE).params for _ in range(2)].count(filled(trials).ask(SPACE).params) == 2


def test_another_seed_and_another_value_suggest_something_else() -> None:
    study, other = filled(62), filled(62)
    other.add_trial(ended(random_settings(np.random.default_rng(9)), 0.95))
    study.add_trial(ended(random_settings(np.random.default_rng(9)), 0.05))
    suggested = study.ask(SPACE).params
    assert other.ask(SPACE).params != suggested
    again = filled(62)
    again.sampler = ModelSampler(seed=2, ladder=LADDER)
    again.add_trial(ended(random_settings(np.random.default_rng(9)), 0.05))
    assert again.ask(SPACE).params != suggested


def test_a_search_with_a_fresh_sampler_for_each_trial_is_the_same_search() -> None:
    one = searched(ModelSampler(seed=3), accuracy, 20)
    two = study_of()
    for _ in range(20):
        two.sampler = ModelSampler(seed=3)
        trial = two.ask(SPACE)
        two.tell(trial, accuracy(trial.params))
    assert [trial.params for trial in one.trials] == [trial.params for trial in two.trials]


def test_a_sampler_that_has_read_a_study_sees_what_changed_since() -> None:
    sampler = ModelSampler(seed=1, ladder=LADDER)
    asked = []
    for seed in (1, 2, 1):
        study = filled(60, seed)
        study.sampler = sampler
        asked.append(study.ask(SPACE).params)
    assert asked[0] == asked[2] != asked[1]
    fresh = filled(60, 2)
    assert fresh.ask(SPACE).params == asked[1]


@pytest.mark.parametrize("trials", [12, 60, 62])
def test_a_trial_that_was_asked_for_in_part_gets_the_settings_it_would_have_had(trials: int) -> None:
    whole, broken = filled(trials), filled(trials)
    wanted = whole.ask(SPACE).params
    begun = broken.ask()
    begun.suggest_float("lr", 1e-4, 1.0, log=True)
    broken.sampler = ModelSampler(seed=1, ladder=LADDER)
    resumed = optuna.trial.Trial(broken, begun._trial_id)
    for name, axis in SPACE.items():
        resumed._suggest(name, axis)
    assert resumed.params == wanted


def blas_threads() -> set[int]:
    """Numbers of threads of the libraries for linear algebra; those of others, such as OpenMP's, do not matter."""
    return {library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"}


def test_a_suggestion_takes_one_thread_and_so_does_not_depend_on_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[set[int]] = []

    def noted(*arguments: Any) -> Any:
        inside.append(blas_threads())
        return proposed(*arguments)

    monkeypatch.setattr(model, "proposed", noted)
    asked = []
    for threads in (1, 2):
        study = filled(60)
        with ThreadpoolController().limit(limits=threads, user_api="blas"):
            asked.append(study.ask(SPACE).params)
            assert blas_threads() == {threads}
    assert inside == [{1}, {1}]
    assert asked[0] == asked[1]


# -- many candidates


def test_beyond_300_hyperparameters_serve_ten_candidates_and_a_replay_has_the_same() -> None:
    study, again = filled(440), filled(440)
    for _ in range(23):
        for one in (study, again):
            one.sampler = ModelSampler(seed=1, ladder=LADDER)
            trial = one.ask(SPACE)
            one.tell(trial, accuracy(trial.params))
    params = [[trial.params for trial in one.trials] for one in (study, again)]
    assert params[0] == params[1]
    found = [trial.number for trial in study.trials if THETA in trial.system_attrs]
    assert np.diff(found).tolist() == [10, 11]  # a random one needs none
    assert not any(THETA in trial.system_attrs for trial in filled(60).trials)


def test_beyond_300_the_stored_hyperparameters_are_used_and_the_next_fit_begins_with_them() -> None:
    asked: list[dict[str, Any]] = []
    fits: list[list[float]] = []
    for other in (False, True):
        study = filled(441)
        first = study.ask(SPACE)
        fitted = study.trials[first.number].system_attrs[THETA]
        if other:
            changed = fitted | {"theta": [-value for value in fitted["theta"][:-1]] + fitted["theta"][-1:]}
            study._storage.set_trial_system_attr(first._trial_id, THETA, changed)
        trials = [study.ask(SPACE) for _ in range(13)]
        asked.append(next(trial.params for trial in trials if trial.number % RANDOM_EVERY != RANDOM_EVERY - 1))
        fits += [trial.system_attrs[THETA]["theta"] for trial in study.trials if THETA in trial.system_attrs][1:2]
    assert asked[0] != asked[1]
    assert len(fits) == 2
    assert fits[0] != fits[1]


def test_the_choice_beyond_300_has_the_best_the_newest_and_a_spread_of_the_rest() -> None:
    ends = np.sin(np.arange(1000.0))
    ends[500] = NAN  # diverged
    chosen = set(_choice(ends, 300).tolist())
    assert len(chosen) == 300
    assert set(np.argsort(-np.nan_to_num(ends, nan=-9))[:100].tolist()) <= chosen
    assert sum(number >= 850 for number in chosen) > 100
    assert sum(number < 800 and ends[number] < 0.5 for number in chosen) > 50


# -- spaces


def test_the_start_is_queued_recipes_and_then_an_even_spread() -> None:
    study = study_of(ModelSampler(seed=0))
    study.enqueue_trial({"lr": 0.01})
    asked = [study.ask({"lr": SPACE["lr"], "momentum": SPACE["momentum"]}).params for _ in range(10)]
    assert asked[0]["lr"] == 0.01
    cells = {(math.log10(params["lr"]) // 1, params["momentum"] // 0.2475) for params in asked[1:]}
    assert len(cells) == 9  # of 16; nine random points would share some


def test_every_setting_is_one_that_its_axis_allows_and_can_be_any() -> None:
    study = filled(40)
    for _ in range(60):
        trial = study.ask(SPACE)
        for name, axis in SPACE.items():
            assert axis._contains(axis.to_internal_repr(trial.params[name])), name
    asked = study.trials[40:]
    for name in ("schedule", "nesterov", "depth", "dropout"):
        axis = SPACE[name]
        values = axis.choices if isinstance(axis, CategoricalDistribution) else {t.params[name] for t in study.trials}
        assert {trial.params[name] for trial in asked} == set(values)


@pytest.mark.parametrize("ladder", [None, Ladder((1,)), Ladder((5,)), LADDER])
def test_a_space_without_a_choice_and_a_study_without_a_value_are_no_error(ladder: Ladder | None) -> None:
    fixed = study_of(ModelSampler(seed=0, ladder=ladder))
    for _ in range(14):
        fixed.tell(fixed.ask({"pixels": SPACE["pixels"], "loss": SPACE["loss"]}), 0.5)
    assert {trial.params["pixels"] for trial in fixed.trials} == {32}
    failed = study_of(ModelSampler(seed=0, ladder=ladder))
    for state in [TrialState.FAIL, TrialState.PRUNED] * 10:
        failed.tell(failed.ask(SPACE), state=state)
    assert len({trial.params["lr"] for trial in failed.trials}) == 20
    same = study_of(ModelSampler(seed=0, ladder=ladder))
    for _ in range(20):
        same.tell(same.ask(SPACE), 0.5)
    assert len({trial.params["lr"] for trial in same.trials}) > 15


def test_settings_that_some_trials_lack_are_random_and_the_others_are_modelled() -> None:
    study = filled(30)
    fewer = {name: axis for name, axis in SPACE.items() if name != "momentum"}
    params = {name: value for name, value in random_settings(np.random.default_rng(5)).items() if name in fewer}
    study.add_trial(create_trial(params=params, distributions=fewer, value=0.5))
    study.add_trial(create_trial(state=TrialState.FAIL))  # as the stand-in for another program's
    trial = study.ask()
    space = study.sampler.infer_relative_search_space(study, study.trials[-1])
    assert list(space) == sorted(fewer.keys() - {"pixels", "loss"})
    for name, axis in SPACE.items():
        trial._suggest(name, axis)
    assert trial.params.keys() == SPACE.keys()


def test_infinite_and_undefined_values_count_as_diverged() -> None:
    study = filled(30)
    for value in (math.inf, -math.inf):
        study.add_trial(ended(random_settings(np.random.default_rng(3)), value))
    odd = {"state": TrialState.RUNNING, "intermediate_values": {2: NAN}}
    study.add_trial(ended(random_settings(np.random.default_rng(4)), None, **odd))
    (*_, one, two, three) = CandidateReader(LADDER).candidates(study.trials, but=-1)
    assert one.diverged
    assert two.diverged
    assert not three.is_judged
    assert study.ask(SPACE).params.keys() == SPACE.keys()


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=ModelSampler(seed=0, startup_trials=1))
    study.add_trial(create_trial(params={"lr": 0.1}, distributions={"lr": SPACE["lr"]}, values=[0.5, 0.5]))
    with pytest.raises(RuntimeError, match="multi-objective"):
        study.ask({"lr": SPACE["lr"]})


# -- parts


@pytest.mark.parametrize("name", sorted(SPACE))
def test_a_value_and_its_place_on_the_axis_belong_together(name: str) -> None:
    axis = SPACE[name]
    for at in np.linspace(0, 1, 21):
        value = value_at(axis, float(at))
        assert axis._contains(axis.to_internal_repr(value))
        assert 0 <= coordinate_of(axis, value) <= 1
        assert value_at(axis, coordinate_of(axis, value)) == pytest.approx(value)
    assert value_at(axis, 0.0) != value_at(axis, 1.0) or axis.single()


def test_values_beyond_an_axis_are_at_its_end() -> None:
    assert coordinate_of(SPACE["lr"], 7.0) == 1.0
    assert coordinate_of(SPACE["lr"], 1e-9) == 0.0
    assert coordinate_of(SPACE["momentum"], 2.0) == 1.0
    assert coordinate_of(SPACE["depth"], 99) == 0.9


def test_choices_are_one_apart_and_share_a_length() -> None:
    encoding = Encoding({name: SPACE[name] for name in ("schedule", "depth", "momentum")})
    assert encoding.setting_of.tolist() == [0, 0, 0, 1, 2]
    features = encoding.features(np.array([[0.1, 0.1, 0.3], [0.5, 0.1, 0.3], [0.9, 0.9, 0.3]]))
    assert np.linalg.norm(features[0] - features[1]) == pytest.approx(1)
    assert (features[2] - features[1])[3:].tolist() == [1.0, 0.0]


def test_ends_are_estimated_from_rung_to_rung() -> None:
    """Worked by hand: the last rung's six gain half of their differences; of the first rung too few went on."""
    values = np.array(
        [
            [0.1, 0.2, 0.55],
            [0.2, 0.3, 0.60],
            [NAN, 0.4, 0.65],
            [NAN, 0.5, 0.70],
            [NAN, 0.6, 0.75],
            [NAN, 0.7, NAN],  # 0.45 + 0.5 * 0.7
            [0.3, NAN, NAN],  # 0.4 at the second rung, and 0.65
            [NAN, NAN, NAN],
        ]
    )
    found = estimated_ends(values)
    assert found.ends == pytest.approx([0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.65, NAN], nan_ok=True)
    unknown = (0.35 * values[~np.isnan(values)].std()) ** 2
    assert found.variances == pytest.approx([0, 0, 0, 0, 0, 0, 0.25 * unknown, NAN], nan_ok=True, abs=1e-12)


def test_what_a_rung_does_not_say_is_the_spread_about_the_regression() -> None:
    here = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    there = here + np.array([0.1, -0.1, 0.1, -0.1, 0.1, -0.1])
    values = np.column_stack([np.append(here, 1.5), np.append(there, NAN)])
    found = estimated_ends(values)
    assert found.ends[-1] == pytest.approx(1.5)
    assert found.variances[-1] == pytest.approx(6 * 0.01 / 4)
    steep, flat = (estimated_ends(np.column_stack([values[:, 0], values[:, 1] * by])).ends[-1] for by in (9, 0.01))
    assert steep == pytest.approx(9 + 0.5)  # slope 1 through the means
    assert flat == pytest.approx(0.01 + 0.3 * 0.5)


def test_the_process_meets_what_it_is_sure_of_and_not_what_it_is_not() -> None:
    features, theta = np.array([[0.0], [0.5], [1.0]]), np.log([0.6, 1.0, 0.01])
    sure = Process(Observations(features, np.array([0.0, 1.0, 0.0]), np.zeros(3)), np.array([0]), theta)
    mean, deviation = sure.predict(features)
    assert mean == pytest.approx([0, 1, 0], abs=0.05)
    assert deviation.max() < 0.2 < sure.predict(np.array([[3.0]]))[1][0]
    noisy = Observations(features, np.array([0.0, 1.0, 0.0]), np.array([0.0, 100.0, 0.0]))
    unsure = Process(noisy, np.array([0]), theta)
    assert abs(unsure.predict(features)[0][1]) < 0.1


def test_a_setting_without_effect_gets_the_longest_length() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((60, 3))
    values = np.sin(5 * features[:, 0]) + 0.5 * features[:, 1]
    data = Observations(features, (values - values.mean()) / values.std(), np.zeros(60))
    lengths = fitted_theta(data, np.arange(3), first_theta(3), 20)[:3]
    assert lengths[0] < lengths[1] < lengths[2]


def test_collapsed_values_do_not_make_the_others_look_alike() -> None:
    ends = np.array([0.80, 0.82, 0.84, 0.86, 0.88, 0.90, 0.01, 0.02, NAN])
    found, variances = _standardised(Estimates(ends, np.where(np.isnan(ends), NAN, 0.01)), np.arange(9))
    assert found[6] == found[7] == found[8] == pytest.approx(-2 * found[5])
    assert found[5] > 0.8  # 0.2, if they counted as they are
    assert found[1] == 0
    assert variances[8] == 0 < variances[0]


@pytest.mark.parametrize(
    ("values", "attributes", "diverged", "rungs"),
    [
        ({}, {}, True, 0),
        ({1: 0.5}, {}, True, 0),
        ({2: 0.5}, {}, False, 1),
        ({2: 0.5}, {PROMOTED_AT: 2}, True, 0),  # went on, and did not come to the next step
        ({1: 0.5}, {PAUSED_AT: 2}, False, 1),  # its patience ended before the rung
        ({2: 0.5, 6: 0.6}, {PROMOTED_AT: 2, PAUSED_AT: 6}, False, 2),
        ({2: 0.5, 5: 0.6}, {PROMOTED_AT: 2}, True, 0),
    ],
)
def test_a_pruned_candidate_has_diverged_unless_it_ended_where_candidates_are_compared(
    values: dict[int, float], attributes: dict[str, int], diverged: bool, rungs: int
) -> None:
    params = random_settings(np.random.default_rng(0))
    trial = ended(params, None, state=TrialState.PRUNED, intermediate_values=values, user_attrs=attributes)
    (seen,) = CandidateReader(LADDER).candidates([trial], but=7)
    assert seen.diverged is diverged
    assert sum(not math.isnan(value) for value in seen.values) == rungs


def test_candidates_that_a_pruner_stops_anywhere_are_compared_at_1_3_9_and_so_on() -> None:
    trial = ended(random_settings(np.random.default_rng(0)), None, state=TrialState.PRUNED,
                  intermediate_values={step: step / 10 for step in range(1, 6)})  # fmt: skip
    (seen,) = CandidateReader(Ladder((20,))).candidates([trial], but=7)
    assert seen.values == pytest.approx((0.1, 0.3, NAN, NAN), nan_ok=True)
    (alone,) = CandidateReader(None).candidates([trial], but=7)
    assert not alone.is_judged


def test_blocks_change_no_bit_of_a_covariance() -> None:
    squared = np.random.default_rng(0).random((700, 50))
    root = np.sqrt(5.0 * squared)
    assert squared.size > 2 * gp.BLOCK
    assert (gp._matern(squared.copy()) == (1 + root + root**2 / 3) * np.exp(-root)).all()


def test_a_candidate_is_never_its_own_neighbour_however_often_a_study_is_read() -> None:
    trials, seen = filled(5).get_trials(deepcopy=False), CandidateReader(None)
    everyone = [one.number for one in CandidateReader(None).candidates(trials, but=-1)]
    for but in (1, 1, 4):
        assert but in everyone
        assert [one.number for one in seen.candidates(trials, but)] == [one for one in everyone if one != but]
