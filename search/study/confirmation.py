"""Which trial is best, honestly: the best of a search trained again with fresh seeds, ranked by their mean.

The best of many noisy values is an over-estimate; its mean over seeds that took no part in the search is much less of
one. Results are kept in the study's attributes as soon as they are known (finished trials take no more), so a
confirmation that was cut short goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev

import optuna
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from search.study.lock import owner_name
from search.study.sampling import seed_of
from search.study.study import FINGERPRINT
from search.study.trial import ranked
from search.words import count, duration
from studies import Confirm, StudySpec
from trainer.config import RECIPE_VERSION
from trainer.values import FrozenModel, Json

CONFIRM = "featherweight:confirm"
"""Study attribute: what the confirmation has found."""

SIGNIFICANCE = 0.05
"""Chance of telling two equally good candidates apart."""

TEST = (
    "Fisher's least significant difference at 5 %: a t test with the standard deviation over seeds pooled over all "
    "confirmed candidates"
)
"""What "tied" means."""


def final_seed(spec: StudySpec, trial: int, number: int) -> int:
    """The seed of a trial's confirming or final training ``number``, from 0; no training of the search had it.

    Both have the same, so that a confirming training is a final one wherever their recipes are the same.
    """
    return seed_of(spec.seed, trial, purpose=3 + number)


class Result(FrozenModel):
    """What one confirming training came to."""

    trial: int
    seed: int
    """Which of the fresh seeds, from 0."""
    accuracy: float | None
    """On validation; None where it diverged."""
    seconds: float


class Kept(FrozenModel):
    """What the study attribute CONFIRM holds."""

    of: str
    """What the results are of, see ``_identity``."""
    workers: int
    """Trainings at once, for the time that is left."""
    confirm: Confirm
    """How many candidates and seeds there are, as the confirmation was begun."""
    by: str = ""
    """The process that confirms, see ``owner_name``."""
    results: tuple[Result, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial and what its confirming trainings gave."""

    trial: int
    num_params: int
    search_accuracy: float
    """What the search reported."""
    accuracies: tuple[float, ...]
    """Validation accuracy of each seed, those known so far."""
    diverged: int = 0
    """Trainings that ended without a result; one is enough not to be chosen."""
    standard_error: float | None = None
    """Of the mean, from the deviation over seeds of all candidates; None where no candidate has two results."""
    tied: bool = False
    """Not to be told apart from the best mean, see TEST."""

    @property
    def mean(self) -> float | None:
        """Over the seeds; None before the first."""
        return fmean(self.accuracies) if self.accuracies else None

    @property
    def mean_in_words(self) -> str:
        """The mean with its standard error where that is known: "97.12% +- 0.30%"; "-" before the first result."""
        error = f" +- {self.standard_error:.2%}" if self.standard_error is not None else ""
        return "-" if self.mean is None else f"{self.mean:.2%}{error}"

    def to_json(self) -> dict[str, Json]:
        """All fields, and ``mean``."""
        return asdict(self) | {"accuracies": list(self.accuracies), "mean": self.mean}


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What the confirmation of a study has found so far."""

    trainings: int
    done: int
    seconds: float = 0.0
    """What the done trainings took."""
    eta_seconds: float | None = None
    """What the others will take; None unless the study's owner is at them."""
    candidates: tuple[Candidate, ...]
    """Best first."""
    winner: int | None
    """Number of the trial that is chosen; None before all trainings are done, and where all candidates diverged."""
    estimate: float | None
    """Its mean."""
    raw_best: float
    """What the search's best trial claimed."""
    test: str | None
    """What tied means; None where there is no test."""
    sentence: str
    """All of this in one line."""

    def candidate(self, trial: int | None) -> Candidate | None:
        """The candidate of a trial's number; None where the trial is none."""
        return next((one for one in self.candidates if one.trial == trial), None)

    def to_json(self) -> dict[str, Json]:
        """The documented shape in ``search status --json``; metrics.json leaves out the two times."""
        return asdict(self) | {"candidates": [one.to_json() for one in self.candidates]}


def candidates(study: optuna.Study, spec: StudySpec) -> list[FrozenTrial]:
    """The trials to confirm, best first."""
    return ranked(study.get_trials(deepcopy=False), spec.limit)[: spec.confirm.top]


def missing(study: optuna.Study, spec: StudySpec) -> list[tuple[FrozenTrial, int]]:
    """Confirming trainings that are still to be done, as (trial, number of the seed): every candidate once first."""
    done = {(result.trial, result.seed) for result in _results(study)}
    chosen = candidates(study, spec)
    return [
        (trial, number)
        for number in range(spec.confirm.seeds)
        for trial in chosen
        if (trial.number, number) not in done
    ]


def begin(study: optuna.Study, spec: StudySpec, workers: int = 1) -> None:
    """Keep what is to be confirmed, which a study file may have changed since the launch; before any ``record``.

    Args:
        study: the study, owned.
        spec: its ``confirm``.
        workers: how many train at once, for the time that is left.
    """
    kept = Kept(of=_identity(study), workers=workers, confirm=spec.confirm, by=owner_name(), results=_results(study))
    if _kept(study) != kept:
        _keep(study, kept)


def record(study: optuna.Study, trial: int, number: int, accuracy: float | None, seconds: float) -> None:
    """Keep the result of one confirming training; kept twice, it counts once.

    Args:
        study: the study, owned; ``begin`` was called before.
        trial: which candidate.
        number: which seed, from 0.
        accuracy: on validation; None where it diverged.
        seconds: that it took.
    """
    kept = _kept(study)
    assert kept is not None
    result = Result(trial=trial, seed=number, accuracy=accuracy, seconds=round(seconds, 3))
    others = [one for one in _results(study) if (one.trial, one.seed) != (trial, number)]
    _keep(study, kept.model_copy(update={"results": (*others, result)}))


def confirmed(study: optuna.Study, spec: StudySpec, *, owner: str | None = None) -> Confirmation | None:
    """What the confirmation of a study has found so far; None where it is off or not begun.

    Args:
        study: the study.
        spec: what it searches; how many candidates and seeds there are was kept when the confirmation began.
        owner: who owns the study now, in ``owner_of``'s words. A search that goes on may find a new candidate, which
            nobody confirms before the next export.
    """
    kept = _kept(study)
    if kept is None:
        return None
    spec = spec.model_copy(update={"confirm": kept.confirm})
    chosen = candidates(study, spec)
    numbers = {trial.number for trial in chosen}
    results = [one for one in _results(study) if one.seed < spec.confirm.seeds and one.trial in numbers]
    if not results:
        return None
    found = [_candidate(trial, [one for one in results if one.trial == trial.number]) for trial in chosen]
    total = len(chosen) * spec.confirm.seeds
    complete = len(results) == total
    spread = pooled_deviation(found)
    tied = ties(found, spread) if complete else set()
    winner = choose(found, tied) if complete else None
    seconds = sum(result.seconds for result in results)
    goes_on = not complete and owner is not None and owner.partition(" since ")[0] == kept.by
    eta_seconds = seconds / len(results) * (total - len(results)) / kept.workers
    known = [one for one in found if one.accuracies] if spread is not None else []
    errors = {one.trial: (spread or 0.0) / math.sqrt(len(one.accuracies)) for one in known}
    order = sorted(found, key=lambda one: (one.diverged > 0, -(one.mean or 0), one.num_params, one.trial))
    confirmation = Confirmation(
        trainings=total,
        done=len(results),
        seconds=seconds,
        eta_seconds=eta_seconds if goes_on else None,
        candidates=tuple(replace(one, standard_error=errors.get(one.trial), tied=one.trial in tied) for one in order),
        winner=winner.trial if winner else None,
        estimate=winner.mean if winner else None,
        raw_best=chosen[0].values[0],
        test=TEST if spread is not None else None,
        sentence="",
    )
    return replace(confirmation, sentence=_sentence(confirmation, spec.name))


def _candidate(trial: FrozenTrial, results: Sequence[Result]) -> Candidate:
    ordered = sorted(results, key=lambda one: one.seed)
    accuracies = tuple(one.accuracy for one in ordered if one.accuracy is not None)
    return Candidate(
        trial=trial.number,
        num_params=trial.user_attrs["num_params"],
        search_accuracy=trial.values[0],
        accuracies=accuracies,
        diverged=len(ordered) - len(accuracies),
    )


def pooled_deviation(found: Sequence[Candidate]) -> float | None:
    """Standard deviation over seeds, pooled over the candidates; None where none has two results.

    Pooled, because three values say little of their own spread, and candidates of one search differ little in it.
    """
    repeated = [one.accuracies for one in found if len(one.accuracies) > 1]
    if not repeated:
        return None
    freedom = sum(len(values) - 1 for values in repeated)
    return math.sqrt(sum((len(values) - 1) * stdev(values) ** 2 for values in repeated) / freedom)


def ties(found: Sequence[Candidate], spread: float | None) -> set[int]:
    """Trials that cannot be told apart from the best mean, itself included; see TEST.

    It knows the chance of the seeds on these validation pictures, not the chance of the pictures. With one seed each
    there is nothing to test by, and only equal results are tied.
    """
    sound = [one for one in found if not one.diverged and one.mean is not None]
    if not sound:
        return set()
    best = max(sound, key=lambda one: one.mean or 0)
    freedom = sum(len(one.accuracies) - 1 for one in found if len(one.accuracies) > 1)
    from scipy.special import stdtrit  # 0.25 s, for every command that never comes here

    bound = float(stdtrit(freedom, 1 - SIGNIFICANCE / 2)) if spread is not None else 0.0
    tied = set()
    for one in sound:
        allowed = bound * (spread or 0.0) * math.sqrt(1 / len(one.accuracies) + 1 / len(best.accuracies))
        if (best.mean or 0) - (one.mean or 0) <= allowed + 1e-12:
            tied.add(one.trial)
    return tied


def choose(found: Sequence[Candidate], tied: set[int]) -> Candidate | None:
    """The winner: of those tied with the best the one with the fewest parameters; None where all diverged."""
    among = [one for one in found if one.trial in tied]
    return min(among, key=lambda one: (one.num_params, -(one.mean or 0), one.trial), default=None)


def _sentence(found: Confirmation, study: str) -> str:
    if found.done < found.trainings:
        done = f"{found.done} of {found.trainings} trainings done"
        if found.eta_seconds is None:
            return f"the best are not all confirmed: {done}; search export-best {study} does the others"
        return f"confirming the best: {done}, about {duration(found.eta_seconds)} left"
    best = found.candidate(found.winner)
    if best is None:
        return "confirmed: every candidate diverged with one seed or another"
    number = sum(one.tied for one in found.candidates) - 1
    tied = f", tied with {number} other{'s' if number > 1 else ''}" if number else ""
    return (
        f"confirmed: trial {best.trial}, {best.mean_in_words} over {count(len(best.accuracies), 'fresh seed')} on "
        f"validation{tied}; the search's best had claimed {found.raw_best:.2%}"
    )


def _identity(study: optuna.Study) -> str:
    """Of what the results are: another recipe or other pictures make them void."""
    of = study.user_attrs.get(FINGERPRINT)
    if of is not None:  # an export trains by the recipe of today, even before the study's next launch
        of = of | {"recipe_version": RECIPE_VERSION}
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def _kept(study: optuna.Study) -> Kept | None:
    """The study attribute; None where there is none, and where it is not to be read: the trainings are done again."""
    try:
        return Kept.model_validate(study.user_attrs.get(CONFIRM))
    except ValidationError:
        return None


def _keep(study: optuna.Study, kept: Kept) -> None:
    study.set_user_attr(CONFIRM, kept.model_dump(mode="json"))


def _results(study: optuna.Study) -> tuple[Result, ...]:
    kept = _kept(study)
    return kept.results if kept is not None and kept.of == _identity(study) else ()
