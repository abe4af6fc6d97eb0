"""The confirmation: the best trials of a search are trained again with fresh seeds and ranked by their mean.

The best of many noisy values is an over-estimate. The mean over fresh seeds, which the search has not used, is much
less so. Each result is stored in the study's attributes as soon as it is known, because Optuna adds nothing to finished
trials. So an interrupted confirmation goes on where it stopped.
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
from search.study.marks import own_trials
from search.study.sampling import seed_of
from search.study.study import FINGERPRINT
from search.study.trial import exportable, rank
from search.words import count, duration, judged_on
from studies import Confirm, StudySpec
from studies.final import Final
from studies.objective import Objective, number_of, spread_of, words_of
from trainer.config import RECIPE_VERSION
from trainer.values import FrozenModel, Json

CONFIRM = "featherweight:confirm"
"""Study attribute that holds the confirmation, see ``Kept``."""

SIGNIFICANCE = 0.05
"""Probability that the test finds a difference between two equally good candidates."""

TEST = (
    "Fisher's least significant difference at 5 %: a t test with the standard deviation over seeds pooled over all "
    "confirmed candidates"
)
"""The test that decides which candidates are tied."""


def final_seed(spec: StudySpec, trial: int, number: int) -> int:
    """The seed of a trial's confirming or final training ``number``, from 0. No training of the search used it.

    Confirming and final trainings share their seeds, so with the same recipe they are the same training.
    """
    return seed_of(spec.seed, trial, purpose=3 + number)


class Result(FrozenModel):
    """The result of one confirming training."""

    trial: int
    seed: int
    """Number of the fresh seed, from 0."""
    accuracy: float | None
    """Value of the study's objective, whichever it is; a loss is negated. None if the training diverged."""
    seconds: float


class Kept(FrozenModel):
    """Content of the study attribute CONFIRM."""

    of: str
    """Identity of recipe and pictures, see ``_identity``."""
    workers: int
    """Number of trainings at once, for the estimate of the time left."""
    confirm: Confirm
    """Numbers of candidates and seeds, as they were when the confirmation began."""
    final: Final | None = None
    """The [final] whose size the candidates had to fit; None if an earlier version, which did not store it, began."""
    by: str = ""
    """Name of the confirming process, see ``owner_name``."""
    results: tuple[Result, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial and the results of its confirming trainings."""

    trial: int
    num_params: int
    search_accuracy: float
    """Value of the study's objective in the search, as in ``Result``."""
    accuracies: tuple[float, ...]
    """Value of each seed that is known so far."""
    diverged: int = 0
    """Number of trainings that diverged; a candidate with one is never chosen."""
    standard_error: float | None = None
    """Standard error of the mean, from the pooled deviation over seeds; None if no candidate has two results."""
    tied: bool = False
    """Whether the test finds no difference between its mean and the best one, see TEST."""

    @property
    def mean(self) -> float | None:
        """Mean value over the seeds; None before the first result."""
        return fmean(self.accuracies) if self.accuracies else None

    def mean_in_words(self, objective: Objective) -> str:
        """The mean and, if known, its standard error: "97.12% +- 0.30%". "-" before the first result."""
        error = "" if self.standard_error is None else f" +- {spread_of(self.standard_error, objective)}"
        return "-" if self.mean is None else f"{words_of(self.mean, objective)}{error}"

    def to_json(self) -> dict[str, Json]:
        """All fields, and ``mean``."""
        return asdict(self) | {"accuracies": list(self.accuracies), "mean": self.mean}


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The confirmation of a study as it is now."""

    trainings: int
    done: int
    seconds: float = 0.0
    """Duration of the trainings that are done, added up."""
    eta_seconds: float | None = None
    """Estimated time until all are done; None unless the study's owner is running them."""
    candidates: tuple[Candidate, ...]
    """Candidates, best first."""
    winner: int | None
    """Number of the chosen trial; None before all trainings are done, and if all candidates diverged."""
    estimate: float | None
    """Mean value of the winner."""
    raw_best: float
    """Value of the best trial in the search."""
    test: str | None
    """TEST; None if there are too few results to test."""
    sentence: str
    """The confirmation in one line."""
    objective: Objective = "accuracy"
    """What the values are of; a loss is negated."""

    def candidate(self, trial: int | None) -> Candidate | None:
        """The candidate with this trial number; None if there is none."""
        return next((one for one in self.candidates if one.trial == trial), None)

    def to_json(self) -> dict[str, Json]:
        """The documented shape in ``search status --json``; metrics.json leaves out the two times."""
        values = asdict(self) | {"candidates": [one.to_json() for one in self.candidates]}
        if self.objective == "accuracy":  # as of the versions that had no other, or exports would have another identity
            del values["objective"]
        return values


def candidates(study: optuna.Study, spec: StudySpec) -> list[FrozenTrial]:
    """The trials to confirm, best first. Their exports, with [final], are within the limit."""
    return exportable(own_trials(study), spec)[: spec.confirm.top]


def missing(study: optuna.Study, spec: StudySpec) -> list[tuple[FrozenTrial, int]]:
    """Confirming trainings still to be done, as (trial, number of the seed). Seed 0 of every candidate comes first."""
    done = {(result.trial, result.seed) for result in _results(study)}
    chosen = candidates(study, spec)
    return [
        (trial, number)
        for number in range(spec.confirm.seeds)
        for trial in chosen
        if (trial.number, number) not in done
    ]


def begin(study: optuna.Study, spec: StudySpec, workers: int = 1) -> None:
    """Store the candidates and the number of seeds, because the study file may have changed since the launch.

    To be called before ``record``.

    Args:
        study: the study, owned.
        spec: the study's spec, for its ``confirm`` and ``final``.
        workers: number of trainings at once, for the estimate of the time left.
    """
    asked = {"confirm": spec.confirm, "final": spec.final}
    kept = Kept(of=_identity(study), workers=workers, by=owner_name(), results=_results(study), **asked)
    if _kept(study) != kept:
        _keep(study, kept)


def record(study: optuna.Study, trial: int, number: int, accuracy: float | None, seconds: float) -> None:
    """Store the result of one confirming training. A result that is stored twice counts once.

    Args:
        study: the study, owned; ``begin`` was called before.
        trial: number of the candidate's trial.
        number: number of the seed, from 0.
        accuracy: value of the objective; None if the training diverged.
        seconds: duration of the training.
    """
    kept = _kept(study)
    assert kept is not None
    result = Result(trial=trial, seed=number, accuracy=accuracy, seconds=round(seconds, 3))
    others = [one for one in _results(study) if (one.trial, one.seed) != (trial, number)]
    _keep(study, kept.model_copy(update={"results": (*others, result)}))


def confirmed(study: optuna.Study, spec: StudySpec, *, owner: str | None = None) -> Confirmation | None:
    """The confirmation of a study as it is now; None if it is off or has no result yet.

    Args:
        study: the study.
        spec: the study's spec. Its ``confirm`` and ``final`` are those stored by ``begin``.
        owner: the present owner of the study, as ``owner_of`` names it. The time left is estimated only if this owner
            began the confirmation: a running search may have a new candidate, which only the next export confirms.
    """
    kept = _kept(study)
    if kept is None:
        return None
    spec = spec.model_copy(update={"confirm": kept.confirm, "final": kept.final or spec.final})
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
    order = sorted(found, key=lambda one: (one.diverged > 0, *rank(one.mean, one.num_params, one.trial)))
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
        objective=spec.search.objective,
    )
    return replace(confirmation, sentence=_sentence(confirmation, spec))


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
    """Standard deviation over seeds, pooled over the candidates; None if none has two results.

    It is pooled because three values of one candidate give a poor estimate, and candidates have similar deviations.
    """
    repeated = [one.accuracies for one in found if len(one.accuracies) > 1]
    if not repeated:
        return None
    freedom = sum(len(values) - 1 for values in repeated)
    return math.sqrt(sum((len(values) - 1) * stdev(values) ** 2 for values in repeated) / freedom)


def ties(found: Sequence[Candidate], spread: float | None) -> set[int]:
    """The best candidate, and those for which the test finds no difference between its mean and theirs; see TEST.

    The test covers the randomness of the seeds on these validation pictures, not that of the choice of pictures. With
    one seed each no test is possible, and only equal results are tied.
    """
    sound = [one for one in found if not one.diverged and one.mean is not None]
    if not sound:
        return set()
    best = min(sound, key=lambda one: rank(one.mean, 0, 0))
    freedom = sum(len(one.accuracies) - 1 for one in found if len(one.accuracies) > 1)
    from scipy.special import stdtrit  # imported here: it takes 0.25 s, and most commands never need it

    bound = float(stdtrit(freedom, 1 - SIGNIFICANCE / 2)) if spread is not None else 0.0
    tied = set()
    for one in sound:
        allowed = bound * (spread or 0.0) * math.sqrt(1 / len(one.accuracies) + 1 / len(best.accuracies))
        if (best.mean or 0) - (one.mean or 0) <= allowed + 1e-12:
            tied.add(one.trial)
    return tied


def choose(found: Sequence[Candidate], tied: set[int]) -> Candidate | None:
    """The winner: among the candidates tied with the best, the one with the fewest parameters; None if all diverged."""
    among = [one for one in found if one.trial in tied]
    return min(among, key=lambda one: (one.num_params, *rank(one.mean, 0, one.trial)), default=None)


def _sentence(found: Confirmation, spec: StudySpec) -> str:
    if found.done < found.trainings:
        done = f"{found.done} of {found.trainings} trainings done"
        if found.eta_seconds is None:
            return f"the best are not all confirmed: {done}; search export-best {spec.name} does the others"
        return f"confirming the best: {done}, about {duration(found.eta_seconds)} left"
    best = found.candidate(found.winner)
    if best is None:
        return "confirmed: every candidate diverged with one seed or another"
    number = sum(one.tied for one in found.candidates) - 1
    tied = f", tied with {number} other{'s' if number > 1 else ''}" if number else ""
    return (
        f"confirmed: trial {best.trial}, {best.mean_in_words(found.objective)} over "
        f"{count(len(best.accuracies), 'fresh seed')} {judged_on(spec.data.folds)}{tied}; the search's best had "
        f"claimed {number_of(found.raw_best, found.objective)}"
    )


def _identity(study: optuna.Study) -> str:
    """Identity of recipe and pictures. Results with another identity are not used."""
    of = study.user_attrs.get(FINGERPRINT)
    if of is not None:  # an export trains with this program's recipe, even before the study's next launch
        of = of | {"recipe_version": RECIPE_VERSION}
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def _kept(study: optuna.Study) -> Kept | None:
    """The value of CONFIRM; None if it is missing or unreadable: the trainings are then done again."""
    try:
        return Kept.model_validate(study.user_attrs.get(CONFIRM))
    except ValidationError:
        return None


def _keep(study: optuna.Study, kept: Kept) -> None:
    study.set_user_attr(CONFIRM, kept.model_dump(mode="json"))


def _results(study: optuna.Study) -> tuple[Result, ...]:
    kept = _kept(study)
    return kept.results if kept is not None and kept.of == _identity(study) else ()
