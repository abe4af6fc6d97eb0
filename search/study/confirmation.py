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
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.study.lock import owner_name
from search.study.sampling import seed_of
from search.study.study import FINGERPRINT
from search.study.trial import ranked
from search.words import duration
from studies import Confirm, StudySpec
from trainer.config import RECIPE_VERSION

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

    @property
    def mean(self) -> float | None:
        """Over the seeds; None before the first."""
        return fmean(self.accuracies) if self.accuracies else None


def candidates(study: optuna.Study, spec: StudySpec) -> list[FrozenTrial]:
    """The trials to confirm, best first."""
    return ranked(study.get_trials(deepcopy=False), spec.limit)[: spec.confirm.top]


def missing(study: optuna.Study, spec: StudySpec) -> list[tuple[FrozenTrial, int]]:
    """Confirming trainings that are still to be done, as (trial, number of the seed): every candidate once first."""
    done = {(result["trial"], result["seed"]) for result in _results(study)}
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
    asked = {"of": _identity(study), "workers": workers, "confirm": spec.confirm.model_dump()}
    kept = asked | {"by": owner_name(), "results": _results(study)}
    if study.user_attrs.get(CONFIRM) != kept:
        study.set_user_attr(CONFIRM, kept)


def record(study: optuna.Study, trial: int, number: int, accuracy: float | None, seconds: float) -> None:
    """Keep the result of one confirming training; kept twice, it counts once.

    Args:
        study: the study, owned.
        trial: which candidate.
        number: which seed, from 0.
        accuracy: on validation; None where it diverged.
        seconds: that it took.
    """
    result = {"trial": trial, "seed": number, "accuracy": accuracy, "seconds": round(seconds, 3)}
    others = [one for one in _results(study) if (one["trial"], one["seed"]) != (trial, number)]
    study.set_user_attr(CONFIRM, study.user_attrs[CONFIRM] | {"results": [*others, result]})


def confirmed(study: optuna.Study, spec: StudySpec, *, owner: str | None = None) -> dict[str, Any] | None:
    """What the confirmation of a study has found so far, in plain values; None where it is off or not begun.

    Args:
        study: the study.
        spec: what it searches; how many candidates and seeds there are was kept when the confirmation began.
        owner: who owns the study now, in ``owner_of``'s words. A search that goes on may find a new candidate, which
            nobody confirms before the next export.

    Returns:
        ``trainings`` and ``done``, their numbers; ``sentence``, all this in one line; ``seconds``, what the done ones
        took; ``eta_seconds``, what the others will take, None unless the owner is at them; ``candidates``, best first,
        each {``trial``, ``num_params``, ``search_accuracy``, ``accuracies``, ``mean``, ``standard_error``,
        ``diverged``, ``tied``: not to be told apart from the best mean}; and, once all is done, ``winner``, a trial's
        number, ``estimate``, its mean; ``raw_best``, what the search's best trial claimed; ``test``, what tied means.
    """
    if not _results(study):
        return None
    spec = spec.model_copy(update={"confirm": Confirm.model_validate(study.user_attrs[CONFIRM]["confirm"])})
    results = [result for result in _results(study) if result["seed"] < spec.confirm.seeds]
    chosen = candidates(study, spec)
    numbers = {trial.number for trial in chosen}
    results = [result for result in results if result["trial"] in numbers]
    if not results:
        return None
    found = []
    for trial in chosen:
        own = sorted((result for result in results if result["trial"] == trial.number), key=lambda one: one["seed"])
        accuracies = [result["accuracy"] for result in own if result["accuracy"] is not None]
        found.append(
            Candidate(
                trial=trial.number,
                num_params=trial.user_attrs["num_params"],
                search_accuracy=trial.values[0],
                accuracies=tuple(accuracies),
                diverged=len(own) - len(accuracies),
            )
        )
    total = len(chosen) * spec.confirm.seeds
    complete = len(results) == total
    spread = pooled_deviation(found)
    tied = ties(found, spread) if complete else set()
    winner = choose(found, tied) if complete else None
    order = sorted(found, key=lambda one: (one.diverged > 0, -(one.mean or 0), one.num_params, one.trial))
    seconds = sum(result["seconds"] for result in results)
    kept = study.user_attrs[CONFIRM]
    goes_on = not complete and owner is not None and owner.partition(" since ")[0] == kept.get("by")
    eta_seconds = seconds / len(results) * (total - len(results)) / kept["workers"]
    answer: dict[str, Any] = {
        "trainings": total,
        "done": len(results),
        "seconds": seconds,
        "eta_seconds": eta_seconds if goes_on else None,
        "candidates": [
            {
                "trial": one.trial,
                "num_params": one.num_params,
                "search_accuracy": one.search_accuracy,
                "accuracies": list(one.accuracies),
                "mean": one.mean,
                "standard_error": spread / math.sqrt(len(one.accuracies))
                if spread is not None and one.accuracies
                else None,
                "diverged": one.diverged,
                "tied": one.trial in tied,
            }
            for one in order
        ],
        "winner": winner.trial if winner else None,
        "estimate": winner.mean if winner else None,
        "raw_best": chosen[0].values[0],
        "test": TEST if spread is not None else None,
    }
    return answer | {"sentence": _sentence(answer, spec.name)}


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


def _sentence(found: dict[str, Any], study: str) -> str:
    if found["done"] < found["trainings"]:
        done = f"{found['done']} of {found['trainings']} trainings done"
        if found["eta_seconds"] is None:
            return f"the best are not all confirmed: {done}; search export-best {study} does the others"
        return f"confirming the best: {done}, about {duration(found['eta_seconds'])} left"
    if found["winner"] is None:
        return "confirmed: every candidate diverged with one seed or another"
    best = next(one for one in found["candidates"] if one["trial"] == found["winner"])
    error = f" +- {best['standard_error']:.2%}" if best["standard_error"] is not None else ""
    several = len(best["accuracies"]) > 1
    seeds = f"{len(best['accuracies'])} fresh seed{'s' if several else ''}"
    number = sum(one["tied"] for one in found["candidates"]) - 1
    tied = f", tied with {number} other{'s' if number > 1 else ''}" if number else ""
    return (
        f"confirmed: trial {best['trial']}, {best['mean']:.2%}{error} over {seeds} on validation{tied}; "
        f"the search's best had claimed {found['raw_best']:.2%}"
    )


def _identity(study: optuna.Study) -> str:
    """Of what the results are: another recipe or other pictures make them void."""
    of = study.user_attrs.get(FINGERPRINT)
    if of is not None:  # an export trains by the recipe of today, even before the study's next launch
        of = of | {"recipe_version": RECIPE_VERSION}
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def _results(study: optuna.Study) -> list[dict[str, Any]]:
    kept = study.user_attrs.get(CONFIRM)
    return list(kept["results"]) if kept and kept["of"] == _identity(study) else []
