"""The gain of a search: its best trial compared with the first known recipe, with an interval and the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from search.study.budget import Spent
from search.study.confirmation import Confirmation
from search.study.finalists import Finalist
from search.study.noise import NUM_PICTURES, Z95, Noise, first_known, noise_of
from search.study.trial import best_of
from search.words import count
from studies import StudySpec
from studies.objective import Objective, words_of


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The best trial of a search compared with the first known recipe, by the study's objective."""

    objective: Objective
    best: int
    """Number of the best trial, or of the winner of the confirmation."""
    best_value: float
    known: int
    """Number of the trial of the first known recipe."""
    known_value: float
    interval: tuple[float, float] | None
    """95 % interval of the difference; None if it is not known, see ``gain_of``."""
    pictures: int
    """Number of pictures on which a candidate is measured."""
    seeds: int
    """Number of fresh seeds in the mean ``best_value``; 0: it is the value in the search, the highest of many."""
    known_seeds: int = 0
    """Number of fresh seeds in the mean ``known_value``; 0: it is the value in the search."""
    trainings: float
    """Cost of the search in full trainings."""
    noise: Noise | None = None
    """The noise; the difference is also given in its unit, sigma. None if it is not known."""

    @property
    def sentence(self) -> str:
        """The gain in one line."""
        cost = f"for {self.trainings:.1f} full trainings"
        known = f"the first known recipe (trial {self.known}, {words_of(self.known_value, self.objective)})"
        if self.best == self.known:
            return f"nothing better than {known}, {cost}"
        interval = ""
        if self.interval is not None:
            ends = self.interval[::-1] if self.objective == "loss" else self.interval
            low, high = map(self._number, ends)
            source = f"{self.pictures:,} pictures" if self.objective == "accuracy" else "the seeds alone"
            interval = f"95 % interval {low} to {high}, from {source}; "
        unit = f"{'' if self.objective == 'loss' else ' points'}{self._in_noise}"
        unit += " against" if self.objective == "loss" else " over"
        seeds = count(self.seeds, "fresh seed")
        whose = f"its mean over {seeds}" if self.seeds else "its own in the search, the best of many"
        return (
            f"{self._number(self.best_value - self.known_value)}{unit} {known}; {interval}the value "
            f"of trial {self.best} is {whose}; {cost}"
        )

    @property
    def _in_noise(self) -> str:
        """The difference in sigma, and whether it is within noise: " (0.7 sigma: tied within noise)"."""
        if self.noise is None or self.noise.sigma == 0:
            return ""
        difference = self.best_value - self.known_value
        tied = self.noise.is_tied(difference, self.seeds or 1, self.known_seeds or 1)
        return f" ({self.noise.in_sigma(difference)}{': tied within noise' if tied else ''})"

    def _number(self, difference: float) -> str:
        """A difference as text, in percentage points. A difference of losses is in the unit of the loss, and negative
        if the loss is lower."""
        return f"{-difference:+.4f}" if self.objective == "loss" else f"{difference * 100:+.2f}"


def gain_of(study: optuna.Study, spec: StudySpec, confirmation: Confirmation | None = None) -> Gain | None:
    """The gain of a search over its first known recipe.

    The interval is Newcombe's for two independent proportions (Statistics in Medicine 17, 1998, method 10). It is too
    wide for two models on the same pictures. If an accuracy is a mean over seeds, its standard error is added.

    Args:
        study: the study.
        spec: its spec.
        confirmation: its confirmation, if there is one.

    Returns:
        None if the first known recipe was not trained to its end, or if the number of pictures is not known.
    """
    trials, pictures = study.get_trials(deepcopy=False), study.user_attrs.get(NUM_PICTURES)
    known, best = first_known(trials), best_of(trials, spec.limit)
    if known is None or best is None or not isinstance(pictures, int):
        return None
    confirmed = {} if confirmation is None else {one.trial: one for one in confirmation.candidates}
    number = best.number
    if confirmation is not None and confirmation.winner is not None:
        number = confirmation.winner
    chosen = next(trial for trial in trials if trial.number == number)
    best_value, best_error, seeds = _value(chosen, confirmed.get(number))
    known_value, known_error, known_seeds = _value(known, confirmed.get(known.number))
    objective = spec.search.objective
    below, above = _newcombe(best_value, known_value, pictures) if objective == "accuracy" else (0.0, 0.0)
    error = Z95 * math.hypot(best_error, known_error)
    difference = best_value - known_value
    is_known = objective == "accuracy" or (best_error > 0 and known_error > 0)
    return Gain(
        objective=objective,
        best=number,
        best_value=best_value,
        known=known.number,
        known_value=known_value,
        interval=(difference - math.hypot(below, error), difference + math.hypot(above, error)) if is_known else None,
        pictures=pictures,
        seeds=seeds,
        known_seeds=known_seeds,
        trainings=Spent.of(trials, spec).trainings,
        noise=noise_of(study, spec, confirmation),
    )


def wilson_interval(hits: float, n: int) -> tuple[float, float]:
    """95 % interval of the proportion ``hits`` of ``n`` (Wilson, 1927). It stays below 1 for accuracies near 1."""
    share, spread = hits / n, Z95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _newcombe(one: float, other: float, n: int) -> tuple[float, float]:
    """For two shares of ``n``: distances from ``one - other`` to the lower and the upper end of its interval."""
    (low, high), (other_low, other_high) = wilson_interval(one * n, n), wilson_interval(other * n, n)
    return math.hypot(one - low, other_high - other), math.hypot(high - one, other - other_low)


def paired_interval(both: int, only_one: int, only_other: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference between two accuracies on the same pictures.

    The interval is Newcombe's for paired proportions (Statistics in Medicine 17, 1998, page 2635, method 10).

    Args:
        both: number of pictures that both classified correctly.
        only_one: number of those that only the first classified correctly.
        only_other: number of those that only the second classified correctly.
        n: number of pictures.
    """
    hits, others, neither = both + only_one, both + only_other, n - both - only_one - only_other
    product = both * neither - only_one * only_other
    spread = math.sqrt(hits * (n - hits) * others * (n - others))
    correlation = (max(product - n / 2, 0) if product > 0 else product) / spread if spread else 0.0
    one, other = hits / n, others / n
    (low, high), (other_low, other_high) = wilson_interval(hits, n), wilson_interval(others, n)

    def distance(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))

    difference = one - other
    return difference - distance(one - low, other_high - other), difference + distance(high - one, other - other_low)


def _value(trial: FrozenTrial, confirmed: Finalist | None) -> tuple[float, float, int]:
    """A trial's value, the value's standard error over seeds, and the number of seeds; both 0 without a
    confirmation."""
    if confirmed is not None and confirmed.best_mean is not None:
        return confirmed.best_mean, confirmed.standard_error or 0.0, confirmed.seeds
    assert trial.value is not None
    return trial.value, 0.0, 0
