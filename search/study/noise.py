"""The noise of a training: the standard deviation of its value over seeds, the unit in which differences are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import variance

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.policy.ladder import REPEATS
from search.study.confirmation import Confirmation
from search.study.finalists import values_of_seeds
from search.study.marks import own_trials
from search.study.study import HAS_REPEAT
from search.study.trial import ranked
from search.words import count
from studies import StudySpec
from studies.objective import Objective, spread_of
from trainer.values import Json

NUM_PICTURES = "featherweight:pictures"
"""Study attribute: number of pictures on which a candidate is measured: those of the validation split, or of all
folds."""

KNOWN = "known"
"""Trial attribute: number of the known recipe that was queued, from 0."""

Z95 = 1.959964
"""97.5 % quantile of the normal distribution, for an interval of 95 %."""

BINOMIAL = 3
"""Number of further seeds that the binomial variance counts for. In two studies (16 and 27 good recipes), sigma from
two seeds alone was off by factors of 1.51 and 2.40; with this variance, by 1.09 and 1.17 (bench/commands.md, "The
noise of a training")."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise of one training of a study, in the unit of its objective."""

    sigma: float
    """Standard deviation of the value of one training, over seeds."""
    repeats: int
    """Degrees of freedom: number of trainings that repeat another one with a further seed."""
    repeated: tuple[int, ...]
    """Numbers of the trials that were trained with several seeds."""
    pictures: int | None
    """Number of pictures whose binomial error is a part of sigma; None if the objective has no such error."""
    best: int
    """Number of the best trial of the search."""
    tied: tuple[int, ...]
    """Numbers of the other complete trials that cannot be distinguished from the best, see ``is_tied``."""
    objective: Objective

    def is_tied(self, difference: float, one: int = 1, other: int = 1) -> bool:
        """Whether a difference of two means is within noise: chance alone gives a larger one with a probability of at
        least 5 %.

        Args:
            difference: the difference of the means, in the unit of the objective.
            one: number of trainings in the first mean.
            other: number of trainings in the second.
        """
        return abs(difference) <= Z95 * self.sigma * math.sqrt(1 / one + 1 / other) + 1e-12

    def in_sigma(self, difference: float) -> str:
        """A difference in words: "1.9 sigma". Sigma must not be 0. (It is, if repeated
        trainings are equal and the objective has no binomial error.)"""
        return f"{abs(difference) / self.sigma:.1f} sigma"

    @property
    def sentence(self) -> str:
        """The noise in one line."""
        which = f"trial{'s' if len(self.repeated) > 1 else ''} {', '.join(map(str, self.repeated))}"
        sources = [f"further seeds of {which}"] if self.repeated else []
        sources += [f"the binomial error of {self.pictures:,} pictures"] if self.pictures else []
        others = (
            f"{count(len(self.tied), 'other trial')} tied within noise with the best, trial {self.best}"
            if self.tied
            else f"no other trial is tied within noise with the best, trial {self.best}"
        )
        return (
            f"one training's sigma is {spread_of(self.sigma, self.objective)}, from {' and '.join(sources)}; {others}"
        )

    def to_json(self) -> dict[str, Json]:
        """All fields."""
        return asdict(self) | {"repeated": list(self.repeated), "tied": list(self.tied)}


def noise_of(study: optuna.Study, spec: StudySpec, confirmation: Confirmation | None = None) -> Noise | None:
    """The noise of one training, as far as it is known now.

    Repeated trainings are those of the first known recipe and its repeat, and of the confirmed candidates with fresh
    seeds; ``sigma_of`` pools them. The values of the confirmed candidates in the search do not count, because these
    candidates were chosen by those values.

    Args:
        study: the study.
        spec: its spec.
        confirmation: its confirmation, if there is one.

    Returns:
        None if no trial is complete, or if nothing was repeated and the objective has no binomial error.
    """
    trials, pictures = own_trials(study), study.user_attrs.get(NUM_PICTURES)
    complete = ranked(trials, spec.limit)
    if not complete:
        return None
    best = complete[0].values[0]
    groups = _repeated(trials)
    for one in () if confirmation is None else confirmation.candidates:
        if len(values := values_of_seeds(one)) > 1:
            groups.append((one.trial, values))
    if spec.search.objective != "accuracy" or not isinstance(pictures, int) or pictures < 1:
        pictures = None
    sigma = sigma_of([values for _, values in groups], best, pictures)
    if sigma is None:
        return None
    noise = Noise(
        sigma=sigma,
        repeats=sum(len(values) - 1 for _, values in groups),
        repeated=tuple(sorted({trial for trial, _ in groups})),
        pictures=pictures,
        best=complete[0].number,
        tied=(),
        objective=spec.search.objective,
    )
    tied = tuple(trial.number for trial in complete[1:] if noise.is_tied(best - trial.values[0]))
    return replace(noise, tied=tied)


def sigma_of(groups: Sequence[Sequence[float]], share: float, pictures: int | None) -> float | None:
    """Standard deviation of one training, pooled over groups of trainings with the same settings.

    The binomial variance of the validation split, share (1 - share) / pictures, counts like ``BINOMIAL`` further
    seeds. So sigma is not 0 if two trainings happen to be equal, and it is known before any repetition.

    Args:
        groups: values of trainings with the same settings, at least two in each group.
        share: accuracy of the best trial.
        pictures: number of pictures that measured it; None: without the binomial variance.

    Returns:
        None if nothing is known.
    """
    squares = sum((len(values) - 1) * variance(values) for values in groups)
    freedom = sum(len(values) - 1 for values in groups)
    if pictures is not None:
        squares, freedom = squares + BINOMIAL * share * (1 - share) / pictures, freedom + BINOMIAL
    return math.sqrt(squares / freedom) if freedom else None


def _repeated(trials: Sequence[FrozenTrial]) -> list[tuple[int, tuple[float, ...]]]:
    """The number of the first known recipe's trial, with the values of this trial and of its repeat; empty without a
    repeat."""
    known = first_known(trials)
    again = [
        trial.values[0]
        for trial in trials
        if known is not None
        and trial.state == TrialState.COMPLETE
        and trial.user_attrs.get(REPEATS) == known.number
        and trial.params == known.params
    ]
    return [(known.number, (known.values[0], *again))] if known is not None and again else []


def first_known(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The trial of the first known recipe; None if it is not complete."""
    known = [one for one in trials if one.user_attrs.get(KNOWN) == 0 and one.state == TrialState.COMPLETE]
    return min(known, key=lambda one: one.number, default=None)


def has_repeat(study: optuna.Study) -> bool:
    """Whether the study was begun by a version of this program that repeats the first known recipe."""
    return study.user_attrs.get(HAS_REPEAT) is True


def store_num_pictures(study: optuna.Study, pictures: int) -> None:
    """Store the number of pictures on which a candidate is measured."""
    if study.user_attrs.get(NUM_PICTURES) != pictures:
        study.set_user_attr(NUM_PICTURES, pictures)
