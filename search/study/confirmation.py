"""The confirmation: the best trials of a search are trained again with fresh seeds, and the winner with further ones.

The best of many noisy values is an over-estimate. So the best candidates race with seeds that the search has not used
(``search.policy.race``), and the accuracy of the winner is the mean over further seeds, which had no part in the
choice. Each result is stored as soon as it is known, so an interrupted confirmation goes on where it stopped. Results
are in an attribute of the study, because Optuna adds nothing to finished trials.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import optuna
from optuna.trial import FrozenTrial
from pydantic import ValidationError, model_validator

from search.policy.race import Entrant, Round, Rounds, Standing, cost, report_seeds_of, rounds_for, standing
from search.study.budget import Spent
from search.study.finalists import TEST, Finalist, choose, pooled_deviation, ties
from search.study.lock import process_name
from search.study.marks import own_trials
from search.study.sampling import seed_of
from search.study.study import FINGERPRINT
from search.study.trial import exportable, outcome_of, rank, size_of, view_of
from search.words import count, duration, judged_on
from studies import StudySpec
from studies.final import Final, exported_size
from studies.limit import fits
from studies.objective import Objective, number_of
from trainer.config import RECIPE_VERSION
from trainer.values import FrozenModel, Json

CONFIRM = "featherweight:confirm"
"""Study attribute that holds the confirmation, see ``ConfirmationPlan``."""


def final_seed(spec: StudySpec, trial: int, number: int) -> int:
    """A fresh seed of a trial: the one with this ``number``, from 0. No training of the search has used it.

    The trainings of the confirmation and the final trainings have the same fresh seeds. So two of them with the same
    recipe and number are the same training.
    """
    return seed_of(spec.seed, trial, purpose=3 + number)


class Result(FrozenModel):
    """The result of one training of the confirmation."""

    trial: int
    seed: int
    """Number of the fresh seed, from 0."""
    accuracy: float | None
    """Value of the study's objective, also if that is not the accuracy; a loss is negated. None if it diverged."""
    seconds: float


class ConfirmationPlan(FrozenModel):
    """The plan of a confirmation, and the results so far: the content of the study attribute CONFIRM."""

    of: str
    """Identity of recipe and pictures, see ``_identity``."""
    workers: int
    """Number of trainings in parallel, for the estimate of the time left."""
    rounds: tuple[tuple[int, int], ...]
    """For each round, the number of candidates and the number of seeds, as they were when the confirmation began."""
    report_seeds: int = 0
    """Number of further seeds of the winner."""
    final: Final | None = None
    """The [final] with which the candidates had to fit the limit; None if an earlier version began the confirmation."""
    by: str = ""
    """Name of the process that trains the candidates, see ``process_name``."""
    results: tuple[Result, ...]

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: object) -> object:
        """Earlier versions stored [confirm], with the same number of seeds for each of the best."""
        if isinstance(values, Mapping) and isinstance(before := values.get("confirm"), Mapping):
            rounds = [(before.get("top"), before.get("seeds"))]
            return {name: value for name, value in values.items() if name != "confirm"} | {"rounds": rounds}
        return values

    @property
    def race(self) -> Rounds:
        """The rounds."""
        return tuple(Round(*one) for one in self.rounds)

    @property
    def first_report(self) -> int:
        """Number of the first seed that has no part in the choice."""
        return max((seeds for _, seeds in self.rounds), default=0)


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The confirmation of a study as it is now."""

    trainings: int
    """Number of trainings in all."""
    done: int
    """Number of finished trainings."""
    seconds: float = 0.0
    """Sum of the durations of the finished trainings."""
    eta_seconds: float | None = None
    """Estimated time until all trainings are finished; None if the study's owner is not running them."""
    candidates: tuple[Finalist, ...]
    """Candidates, best first."""
    winner: int | None
    """Number of the chosen trial; None before all trainings are finished, and if all candidates diverged."""
    estimate: float | None
    """Mean value of the winner over the seeds that had no part in the choice; if there are none, over all its seeds.
    None before all these values are known."""
    raw_best: float
    """Value of the best trial in the search."""
    test: str | None
    """TEST; None if there are too few results to test."""
    sentence: str
    """The confirmation in one line."""
    objective: Objective = "accuracy"
    """The study's objective; all values here are its values, a loss negated."""

    def candidate(self, trial: int | None) -> Finalist | None:
        """The candidate with this trial number; None if there is none."""
        return next((one for one in self.candidates if one.trial == trial), None)

    def to_json(self) -> dict[str, Json]:
        """The shape that is documented for ``search status --json``; metrics.json leaves out the two times."""
        values = asdict(self) | {"candidates": [one.to_json() for one in self.candidates]}
        if self.objective == "accuracy":  # earlier versions had no such key, and identities must not change
            del values["objective"]
        return values


def trainings_of(study: optuna.Study, spec: StudySpec) -> float:
    """The compute of a study's search in full trainings: its budget, or what it has spent if it has no such budget."""
    return spec.search.trainings or Spent.of(own_trials(study), spec).trainings


def candidates(study: optuna.Study, spec: StudySpec, rounds: Rounds) -> list[FrozenTrial]:
    """The trials to confirm, the one with the best prospects first. Each fits the limit with the members and views of
    [final].

    They are the best complete trials. If these are too few for the first round, unfinished trials follow: those with
    the most steps first, and among these the best.
    """
    most = rounds[0].keep if rounds else 0
    trials = own_trials(study)
    best = exportable(trials, spec)[:most]
    return best + _unfinished(trials, spec)[: most - len(best)] if best else []


def _unfinished(trials: list[FrozenTrial], spec: StudySpec) -> list[FrozenTrial]:
    """Feasible trials that are paused, or that the pruner has ended; those with the most steps first."""

    def fits_export(trial: FrozenTrial) -> bool:
        _, counted = exported_size([size_of(trial)] * spec.num_members, spec.final)
        return size_of(trial).params > 0 and fits(counted, spec.limit)

    found = [one for one in trials if outcome_of(one) in ("paused", "pruned") and one.intermediate_values]
    views = {one.number: view_of(one, spec.limit) for one in found}
    feasible = [one for one in found if views[one.number].feasible and fits_export(one)]
    return sorted(feasible, key=lambda one: (-views[one.number].epochs, *rank(views[one.number].value, 0, one.number)))


def plan_of(study: optuna.Study, spec: StudySpec, workers: int = 1) -> ConfirmationPlan:
    """The confirmation as a study's spec asks for it now, with the results so far.

    Args:
        study: the study.
        spec: its spec, for its ``confirm`` and ``final``.
        workers: number of trainings in parallel, for the estimate of the time left.
    """
    rounds = rounds_for(spec.confirm, trainings_of(study, spec))
    return ConfirmationPlan(
        of=_identity(study),
        workers=workers,
        rounds=tuple((one.keep, one.seeds) for one in rounds),
        report_seeds=report_seeds_of(spec.confirm),
        final=spec.final,
        by=process_name(),
        results=_results(study),
    )


def missing(study: optuna.Study, spec: StudySpec) -> list[tuple[FrozenTrial, int]]:
    """The trainings that can begin now, as (trial, number of the seed). During the race, they are those of its present
    round; after it, those that measure the winner; then none. Seed 0 of every candidate comes first."""
    plan = plan_of(study, spec)
    chosen = {trial.number: trial for trial in candidates(study, spec, plan.race)}
    race = _standing(list(chosen.values()), plan)
    todo = [*race.todo]
    if not todo and (winner := _winner(list(chosen.values()), plan, race)) is not None:
        done = {one.seed for one in plan.results if one.trial == winner}
        numbers = range(plan.first_report, plan.first_report + plan.report_seeds)
        todo = [(winner, number) for number in numbers if number not in done]
    return [(chosen[number], seed) for number, seed in todo]


def begin(study: optuna.Study, spec: StudySpec, workers: int = 1) -> None:
    """Store the plan of the confirmation, before its first training. It is made now, because the study file may have
    changed since the launch.

    Args:
        study: the study, owned.
        spec: the study's spec, for its ``confirm`` and ``final``.
        workers: number of trainings in parallel, for the estimate of the time left.
    """
    plan = plan_of(study, spec, workers)
    if _stored_plan(study) != plan:
        _store_plan(study, plan)


def record(study: optuna.Study, trial: int, number: int, accuracy: float | None, seconds: float) -> None:
    """Store the result of one training of the confirmation. A result that is stored twice counts once.

    Args:
        study: the study, owned; ``begin`` was called before.
        trial: number of the candidate's trial.
        number: number of the seed, from 0.
        accuracy: value of the objective; None if the training diverged.
        seconds: duration of the training.
    """
    plan = _stored_plan(study)
    assert plan is not None
    result = Result(trial=trial, seed=number, accuracy=accuracy, seconds=round(seconds, 3))
    others = [one for one in _results(study) if (one.trial, one.seed) != (trial, number)]
    _store_plan(study, plan.model_copy(update={"results": (*others, result)}))


def confirmation_of(study: optuna.Study, spec: StudySpec, *, owner: str | None = None) -> Confirmation | None:
    """The confirmation of a study as it is now; None if it is off or has no result yet.

    Args:
        study: the study.
        spec: the study's spec. Its ``confirm`` and ``final`` are not used, but those that ``begin`` has stored.
        owner: the process that owns the study now, as ``owner_of`` names it. If this process has begun the
            confirmation, it runs it now, and the time left is estimated. Any other owner, such as a search, does not
            run it, even if trainings are missing.
    """
    plan = _stored_plan(study)
    if plan is None:
        return None
    spec = spec.model_copy(update={"final": plan.final or spec.final})
    chosen = candidates(study, spec, plan.race)
    plan = plan.model_copy(update={"results": _counting(chosen, plan, _results(study))})
    if not plan.results:
        return None
    race = _standing(chosen, plan)
    number = _winner(chosen, plan, race)
    found = [_candidate(trial, plan, is_winner=trial.number == number) for trial in chosen]
    spread = pooled_deviation(found)
    tied = (
        set() if race.todo else ties([one for one in found if one.trial in race.alive or len(plan.rounds) == 1], spread)
    )
    total, done = cost(plan.race, len(chosen)) + plan.report_seeds, len(plan.results)
    winner = next((one for one in found if one.trial == number), None)
    is_over = not race.todo and (winner is None or len(winner.reported) == plan.report_seeds)
    seconds = sum(result.seconds for result in plan.results)
    goes_on = not is_over and owner is not None and owner.partition(" since ")[0] == plan.by
    eta_seconds = seconds / done * (total - done) / plan.workers
    known = [one for one in found if one.accuracies] if spread is not None else []
    errors = {one.trial: (spread or 0.0) / math.sqrt(one.seeds) for one in known}
    order = sorted(
        found,
        key=lambda one: (one.diverged > 0, one.trial != number, -one.seeds, *rank(one.mean, one.num_params, one.trial)),
    )
    confirmation = Confirmation(
        trainings=total,
        done=total if is_over else done,  # a race in which a training diverged is over sooner than planned
        seconds=seconds,
        eta_seconds=eta_seconds if goes_on else None,
        candidates=tuple(replace(one, standard_error=errors.get(one.trial), tied=one.trial in tied) for one in order),
        winner=number if is_over else None,
        estimate=winner.best_mean if winner and is_over else None,
        raw_best=max(one.search_accuracy for one in found if one.complete),
        test=TEST if spread is not None else None,
        sentence="",
        objective=spec.search.objective,
    )
    return replace(confirmation, sentence=_sentence(confirmation, spec))


def _counting(chosen: list[FrozenTrial], plan: ConfirmationPlan, results: tuple[Result, ...]) -> tuple[Result, ...]:
    """The results that count: those of these candidates, with seeds of the plan."""
    numbers, last = {trial.number for trial in chosen}, plan.first_report + plan.report_seeds
    return tuple(one for one in results if one.trial in numbers and one.seed < last)


def _standing(chosen: list[FrozenTrial], plan: ConfirmationPlan) -> Standing:
    """How the race between these trials stands."""
    results: dict[int, dict[int, float | None]] = {}
    for one in plan.results:
        results.setdefault(one.trial, {})[one.seed] = one.accuracy
    is_race = len(plan.rounds) > 1
    entrants = [
        Entrant(trial.number, trial.values[0] if is_race and trial.values else None, size_of(trial).params)
        for trial in chosen
    ]
    return standing(entrants, plan.race, results)


def _winner(chosen: list[FrozenTrial], plan: ConfirmationPlan, race: Standing) -> int | None:
    """Number of the winner; None before the end of the race, and if all candidates diverged."""
    if race.todo or not race.alive:
        return None
    if len(plan.rounds) > 1:
        return race.alive[0]
    # There is one round, with the same number of seeds for each candidate. Of the tied ones, the smallest wins.
    found = [_candidate(trial, plan) for trial in chosen]
    best = choose(found, ties(found, pooled_deviation(found)))
    return None if best is None else best.trial


def _candidate(trial: FrozenTrial, plan: ConfirmationPlan, *, is_winner: bool = False) -> Finalist:
    results = sorted((one for one in plan.results if one.trial == trial.number), key=lambda one: one.seed)
    values = [(one.seed, one.accuracy) for one in results if one.accuracy is not None]
    view = view_of(trial)
    return Finalist(
        trial=trial.number,
        num_params=trial.user_attrs["num_params"],
        search_accuracy=view.value or 0.0,
        complete=bool(trial.values),
        accuracies=tuple(value for seed, value in values if seed < plan.first_report),
        reported=tuple(value for seed, value in values if seed >= plan.first_report) if is_winner else (),
        diverged=len(results) - len(values),
    )


def _sentence(found: Confirmation, spec: StudySpec) -> str:
    if found.done < found.trainings:
        done = f"{found.done} of {found.trainings} trainings done"
        if found.eta_seconds is None:
            return f"the best are not all confirmed: {done}; search export-best does the others"
        return f"confirming the best: {done}, about {duration(found.eta_seconds)} left"
    best = found.candidate(found.winner)
    if best is None:
        return "confirmed: every candidate diverged with one seed or another"
    number = sum(one.tied for one in found.candidates) - 1
    tied = f", tied with {count(number, 'other')} within the noise" if number > 0 else ""
    part = " that had no part in the choice," if best.reported else ""
    return (
        f"confirmed: trial {best.trial}, {best.mean_in_words(found.objective)} over "
        f"{count(best.seeds, 'fresh seed')}{part} {judged_on(spec.data.folds)}{tied}; the search's best had claimed "
        f"{number_of(found.raw_best, found.objective)}"
    )


def _identity(study: optuna.Study) -> str:
    """Identity of recipe and pictures, from the fingerprint. Results with another identity are not used."""
    of = study.user_attrs.get(FINGERPRINT)
    if of is not None:  # an export trains with the present recipe, also if the last launch had an older one
        of = of | {"recipe_version": RECIPE_VERSION}
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def _stored_plan(study: optuna.Study) -> ConfirmationPlan | None:
    """The stored plan; None if it is missing or unreadable. The trainings are then done again."""
    try:
        return ConfirmationPlan.model_validate(study.user_attrs.get(CONFIRM))
    except ValidationError:
        return None


def _store_plan(study: optuna.Study, plan: ConfirmationPlan) -> None:
    study.set_user_attr(CONFIRM, plan.model_dump(mode="json"))


def _results(study: optuna.Study) -> tuple[Result, ...]:
    plan = _stored_plan(study)
    return plan.results if plan is not None and plan.of == _identity(study) else ()
