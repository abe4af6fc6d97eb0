"""The candidates of a confirmation: their results with fresh seeds, the ties between them, and the choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from search.study.trial import rank
from studies.objective import Objective, spread_of, words_of
from trainer.values import Json

SIGNIFICANCE = 0.05
"""Probability that the test finds a difference between two equally good candidates."""

TEST = (
    "Fisher's least significant difference at 5 %: a t test with the standard deviation over seeds pooled over all "
    "confirmed candidates"
)
"""The test that decides which candidates are tied."""


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A trial and the results of its trainings with fresh seeds."""

    trial: int
    num_params: int
    search_accuracy: float
    """Value of the study's objective in the search, at the trial's last step there."""
    complete: bool = True
    """Whether the search trained the trial to its end."""
    accuracies: tuple[float, ...]
    """The values known so far, one for each seed that has a part in the choice."""
    reported: tuple[float, ...] = ()
    """The values known so far, one for each seed that has no part in the choice; only the winner has such seeds."""
    diverged: int = 0
    """Number of trainings that diverged. If it is not 0, the candidate is never chosen."""
    standard_error: float | None = None
    """Standard error of ``best_mean``, from the pooled deviation over seeds; None if no candidate has two results."""
    tied: bool = False
    """Whether the test finds no difference between the candidate's mean and the best one, see TEST."""

    @property
    def mean(self) -> float | None:
        """Mean value over the seeds that had a part in the choice; None before the first result."""
        return fmean(self.accuracies) if self.accuracies else None

    @property
    def best_mean(self) -> float | None:
        """The mean to report: over the seeds that have no part in the choice; if there are none, ``mean``."""
        return fmean(self.reported) if self.reported else self.mean

    @property
    def seeds(self) -> int:
        """Number of seeds of ``best_mean``."""
        return len(self.reported or self.accuracies)

    def mean_in_words(self, objective: Objective) -> str:
        """``best_mean`` and, if known, its standard error: "97.12% +- 0.30%". "-" before the first result."""
        error = "" if self.standard_error is None else f" +- {spread_of(self.standard_error, objective)}"
        return "-" if self.best_mean is None else f"{words_of(self.best_mean, objective)}{error}"

    def to_json(self) -> dict[str, Json]:
        """All fields, and ``mean``. ``complete`` is left out if it is true, ``reported`` if it is empty.

        Earlier versions had neither key, and the identities of their exports must not change.
        """
        values: dict[str, Json] = asdict(self) | {"accuracies": list(self.accuracies), "mean": self.mean}
        del values["complete"], values["reported"]
        values |= {} if self.complete else {"complete": False}
        return values | ({"reported": list(self.reported)} if self.reported else {})


def values_of_seeds(one: Finalist) -> tuple[float, ...]:
    """The values of a candidate with all of its fresh seeds."""
    return (*one.accuracies, *one.reported)


def pooled_deviation(found: Sequence[Finalist]) -> float | None:
    """Standard deviation over seeds, pooled over the candidates; None if no candidate has two results.

    It is pooled because three values of one candidate give a poor estimate, and candidates have similar deviations.
    """
    repeated = [values for one in found if len(values := values_of_seeds(one)) > 1]
    if not repeated:
        return None
    freedom = sum(len(values) - 1 for values in repeated)
    return math.sqrt(sum((len(values) - 1) * stdev(values) ** 2 for values in repeated) / freedom)


def ties(found: Sequence[Finalist], spread: float | None) -> set[int]:
    """Trial numbers of the best candidate, and of those whose means the test cannot distinguish from its mean; see
    TEST.

    The test covers the randomness of the seeds on these validation pictures, not that of the choice of pictures. With
    one seed for each candidate no test is possible, and only equal results are tied.
    """
    sound = [one for one in found if not one.diverged and one.mean is not None]
    if not sound:
        return set()
    best = min(sound, key=lambda one: rank(one.mean, 0, 0))
    freedom = sum(max(0, len(one.accuracies) + len(one.reported) - 1) for one in found)
    from scipy.special import stdtrit  # imported here: it takes 0.25 s, and most commands never need it

    bound = float(stdtrit(freedom, 1 - SIGNIFICANCE / 2)) if spread is not None else 0.0
    tied = set()
    for one in sound:
        allowed = bound * (spread or 0.0) * math.sqrt(1 / len(one.accuracies) + 1 / len(best.accuracies))
        if (best.mean or 0) - (one.mean or 0) <= allowed + 1e-12:
            tied.add(one.trial)
    return tied


def choose(found: Sequence[Finalist], tied: set[int]) -> Finalist | None:
    """The winner: among the candidates tied with the best, the one with the fewest parameters; None if all diverged."""
    among = [one for one in found if one.trial in tied]
    return min(among, key=lambda one: (one.num_params, *rank(one.mean, 0, one.trial)), default=None)
