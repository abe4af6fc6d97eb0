"""What a search has brought over its first known recipe, with its interval and its cost."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from search.study.confirmation import Confirmation, Finalist
from search.study.gain import gain_of
from search.study.noise import noise_of, store_num_pictures
from studies import StudySpec

SPEC = StudySpec.model_validate(
    {
        "name": "gains",
        "data": {"source": "digits"},
        "train": {"epochs": 4},
        "space": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}},
        "known": [{"lr": 0.01}],
    }
)


def study_of(*values: float, known: int | None = 0, state: TrialState = TrialState.COMPLETE) -> optuna.Study:
    """Trials of four steps each; the first is the known recipe, and ends in ``state``."""
    study = optuna.create_study(direction="maximize")
    for number, value in enumerate(values):
        ends = state if number == 0 else TrialState.COMPLETE
        study.add_trial(
            create_trial(
                state=ends,
                value=value if ends == TrialState.COMPLETE else None,
                params={"lr": 0.01},
                distributions={"lr": FloatDistribution(1e-4, 1e-1, log=True)},
                intermediate_values=dict.fromkeys(range(1, 5), value),
                user_attrs={"known": known} if number == 0 and known is not None else {},
            )
        )
    store_num_pictures(study, 80)
    return study


def test_the_interval_is_newcombes_and_the_cost_is_counted_in_trainings() -> None:
    gain = gain_of(study_of(0.6, 0.8, 0.7), SPEC)
    assert gain is not None
    assert (gain.best, gain.known, gain.pictures, gain.trainings) == (1, 0, 80, 3.0)
    # By hand, from Wilson's intervals 0.4904 to 0.7003 and 0.6990 to 0.8732 of 48 and 64 of 80.
    assert gain.interval is not None
    low, high = gain.interval
    assert (low, high) == pytest.approx((0.0576, 0.3318), abs=2e-3)
    assert gain.sentence == (
        "+20.00 points (4.5 sigma) over the first known recipe (trial 0, 60.00%); 95 % interval "
        f"{low * 100:+.2f} to {high * 100:+.2f}, from 80 pictures; the value of trial 1 is its own in "
        "the search, the best of many; for 3.0 full trainings"
    )


def test_a_confirmed_trial_counts_with_its_mean_and_its_error_over_seeds_widens_the_interval() -> None:
    study = study_of(0.6, 0.8, 0.7)
    claimed = gain_of(study, SPEC)
    candidate = Finalist(
        trial=1, num_params=1, search_accuracy=0.8, accuracies=(0.72, 0.80), standard_error=0.05, tied=False
    )
    found = Confirmation(
        trainings=2, done=2, candidates=(candidate,), winner=1, estimate=0.76, raw_best=0.8, test=None, sentence=""
    )
    gain = gain_of(study, SPEC, found)
    assert claimed is not None
    assert gain is not None
    assert (gain.best_value, gain.seeds) == (pytest.approx(0.76), 2)
    assert gain.interval is not None
    assert claimed.interval is not None
    assert gain.interval[1] - gain.interval[0] > claimed.interval[1] - claimed.interval[0] + 0.05
    assert "the value of trial 1 is its mean over 2 fresh seeds" in gain.sentence


def test_nothing_better_is_said_too() -> None:
    gain = gain_of(study_of(0.8, 0.7), SPEC)
    assert gain is not None
    assert gain.sentence == "nothing better than the first known recipe (trial 0, 80.00%), for 2.0 full trainings"


@pytest.mark.parametrize(
    "study",
    [
        study_of(0.6, 0.8, known=None),
        study_of(0.6, 0.8, known=1),
        study_of(0.6, 0.8, state=TrialState.PRUNED),
        study_of(),
    ],
)
def test_without_a_first_known_recipe_at_its_end_nothing_is_said(study: optuna.Study) -> None:
    assert gain_of(study, SPEC) is None


def test_a_difference_within_noise_is_told_as_such_and_the_tied_are_named() -> None:
    study = study_of(0.6, 0.7, 0.69)  # sigma is the binomial error alone, 5.1 points: 2.8 of it are 14.2
    noise, gain = noise_of(study, SPEC), gain_of(study, SPEC)
    assert noise is not None
    assert gain is not None
    assert noise.sigma == pytest.approx((0.7 * 0.3 / 80) ** 0.5)
    assert (noise.best, noise.tied, noise.repeats) == (1, (2, 0), 0)
    assert gain.sentence.startswith("+10.00 points (2.0 sigma: tied within noise) over the first known recipe")
    assert noise.sentence == (
        "one training's sigma is 5.12%, from the binomial error of 80 pictures; 2 other trials tied within noise with "
        "the best, trial 1"
    )
    assert noise_of(study_of(), SPEC) is None


def test_the_seeds_of_a_confirmation_count_and_a_loss_has_no_binomial_error() -> None:
    study = study_of(0.6, 0.8)
    candidates = (
        Finalist(trial=1, num_params=1, search_accuracy=0.8, accuracies=(0.72, 0.80), reported=(0.7, 0.74)),
        Finalist(trial=0, num_params=1, search_accuracy=0.6, accuracies=(0.6,)),
    )
    found = Confirmation(
        trainings=5, done=5, candidates=candidates, winner=1, estimate=0.72, raw_best=0.8, test=None, sentence=""
    )
    noise = noise_of(study, SPEC, found)
    assert noise is not None
    squares = (0.02**2 + 0.06**2 + 0.04**2 + 0.0) + 3 * 0.8 * 0.2 / 80
    assert noise.sigma == pytest.approx((squares / 6) ** 0.5)
    assert (noise.repeats, noise.repeated, noise.pictures) == (3, (1,), 80)
    by_loss = SPEC.model_copy(update={"search": SPEC.search.model_copy(update={"objective": "loss"})})
    assert noise_of(study, by_loss) is None
    seeds_alone = noise_of(study, by_loss, found)
    assert seeds_alone is not None
    assert seeds_alone.sigma == pytest.approx(((0.02**2 + 0.06**2 + 0.04**2) / 3) ** 0.5)
    assert seeds_alone.pictures is None
