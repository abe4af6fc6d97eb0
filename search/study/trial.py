"""A trial as the program sees it: its view, its rank among others, how it ended."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState

from search.errors import FailureKind
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS, Ladder
from studies import Limit, StudySpec
from studies.axes import WIDTH_SHARE, Value
from studies.final import exported_size
from studies.limit import fits
from studies.objective import Objective, words_of
from trainer.config import ModelSize
from trainer.results import macs_in_words

FAILED_UNDER = "failed_under"
"""Trial attribute: ``settings_hash`` of the study when the trial failed before its first epoch."""

DIVERGED, OUT_OF_MEMORY = "diverged", "out of memory"
"""Outcomes of trials that are PRUNED, but not by the pruner."""

FAILURE = "failure"
"""Trial attribute: the kind of failure that ended the trial. Studies of older versions do not have it."""


@dataclass(frozen=True)
class TrialView:
    """A trial that has finished, or is paused."""

    number: int
    state: str
    """Optuna's state, or PAUSED."""
    value: float | None
    """Value of the objective at the last finished epoch; a loss is negated."""
    epochs: int
    """The last step: the number of finished epochs (or folds) in all of its trainings."""
    params: dict[str, Value]
    num_params: int | None
    macs: int | None
    seconds: float
    reason: str
    failure: FailureKind | None = None
    """Kind of failure that ended the trial; None if nothing went wrong."""
    failed_under: str | None = None
    """``settings_hash`` of the study when the trial failed before its first epoch; None if it did not."""
    repeats: int | None = None
    """Number of the trial whose settings this one repeats with another seed; None if it is a candidate."""
    feasible: bool = True
    """Whether the model is within the study's limit, which may have been lowered since."""

    @property
    def size_in_words(self) -> str:
        """The known sizes of the model, each after a comma: ", 200,003 parameters"."""
        params = f", {self.num_params:,} parameters" if self.num_params else ""
        return params + (f", {macs_in_words(self.macs)}" if self.macs else "")

    def sentence(self, ladder: Ladder, objective: Objective) -> str:
        """One line for a log; ``ladder`` and ``objective`` are the study's."""
        value = "no epoch finished" if self.value is None else words_of(self.value, objective)
        why = f" ({self.reason.splitlines()[0]})" if self.reason else ""
        epoch, of_epochs = ladder.place_of(self.epochs)
        where = f"at epoch {epoch} of {of_epochs}"
        where += f" of training {ladder.stage_of(self.epochs) + 1} of {len(ladder.steps)}" if ladder.anew else ""
        again = "" if self.repeats is None else f", trial {self.repeats} again with another seed"
        return f"trial {self.number} {self.state.lower()}, {value} {where}{why}{again}"


def settings_hash(spec: StudySpec) -> str:
    """A hash of all settings that may decide whether a candidate can be trained.

    Settings at their default do not count, so that a setting of a later version changes nothing.
    """
    values = spec.model_dump(
        mode="json",
        exclude={
            "name": True,
            "search": {"trials", "trainings", "hours", "transfer"},
            "confirm": True,
            "final": True,
            "notify": True,
        },
        exclude_defaults=True,
    )
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def recipe_of(trial: FrozenTrial) -> dict[str, Value]:
    """A trial's sampled settings as a study file has them: the width instead of a sampled share of the widths."""
    recipe = dict(trial.params)
    if recipe.pop(WIDTH_SHARE, None) is not None and "sizes" in trial.user_attrs:
        recipe["width_mult"] = trial.user_attrs["sizes"]["width_mult"]
    return recipe


def rank(value: float | None, num_params: int | None, number: int) -> tuple[float, int, int]:
    """Sort key of completed trials, best first; if values are equal, the smaller model, then the older trial."""
    return math.inf if value is None else -value, num_params or 0, number


def is_feasible(trial: FrozenTrial, limit: Limit | None = None) -> bool:
    """Whether a trial's model is within the limit it was trained under and, if given, within ``limit``."""
    return all(excess <= 0 for excess in trial.constraints.values()) and fits(size_of(trial), limit or Limit())


def view_of(trial: FrozenTrial, limit: Limit | None = None) -> TrialView:
    """The view of a trial that has finished or is paused; ``limit`` as in ``is_feasible``."""
    values = trial.intermediate_values
    attributes = trial.user_attrs
    return TrialView(
        number=trial.number,
        state="PAUSED" if is_paused(trial) else trial.state.name,
        value=trial.values[0] if trial.values else values[max(values)] if values else None,
        epochs=max(values, default=0),
        params=recipe_of(trial),
        num_params=attributes.get("num_params"),
        macs=attributes.get("macs"),
        seconds=attributes.get("seconds", 0.0),
        reason=attributes.get("reason", ""),
        failure=failure_of(trial),
        failed_under=attributes.get(FAILED_UNDER),
        repeats=attributes.get(REPEATS),
        feasible=is_feasible(trial, limit),
    )


def ranked(trials: Sequence[FrozenTrial], limit: Limit | None = None) -> list[FrozenTrial]:
    """Feasible COMPLETE trials without repeats, best first; if values are equal, as in ``rank``.

    Args:
        trials: trials of one study.
        limit: the study's limit today, which may have been lowered since they were trained.
    """
    return sorted(
        (
            trial
            for trial in trials
            if trial.state == TrialState.COMPLETE and REPEATS not in trial.user_attrs and is_feasible(trial, limit)
        ),
        key=lambda trial: rank(trial.values[0], trial.user_attrs.get("num_params"), trial.number),
    )


def best_of(trials: Sequence[FrozenTrial], limit: Limit | None = None) -> FrozenTrial | None:
    """The first trial of ``ranked``; None if there is none."""
    return next(iter(ranked(trials, limit)), None)


def exportable(trials: Sequence[FrozenTrial], spec: StudySpec) -> list[FrozenTrial]:
    """The trials of ``ranked`` that fit the limit with the members and views of [final]."""
    fitting = []
    for trial in ranked(trials, spec.limit):
        _, counted = exported_size([size_of(trial)] * spec.num_members, spec.final)
        if fits(counted, spec.limit):
            fitting.append(trial)
    return fitting


def size_of(trial: FrozenTrial) -> ModelSize:
    """The size of a trial's model, as its worker counted it; 0 before that."""
    return ModelSize(params=trial.user_attrs.get("num_params", 0), macs=trial.user_attrs.get("macs", 0))


def sampled_axes(trials: Sequence[FrozenTrial], spec: StudySpec) -> dict[str, BaseDistribution]:
    """The search space of the latest trial, in the study file's order; empty before the first trial.

    If trials sample a share of the widths that fit, the width's axis spans the resulting widths.
    """
    axes = latest_axes(trials)
    widths = [float(recipe["width_mult"]) for recipe in map(recipe_of, trials) if "width_mult" in recipe]
    if WIDTH_SHARE in axes and widths:
        axes["width_mult"] = FloatDistribution(min(widths), max(widths))
    return {key: axes[key] for key in spec.space if key in axes}


def latest_axes(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The axes of the latest trial's sampled settings; empty before the first trial."""
    latest = max((trial for trial in trials if trial.distributions), key=lambda trial: trial.number, default=None)
    return {} if latest is None else dict(latest.distributions)


@lru_cache(maxsize=1024)
def axis_of(stored: str) -> BaseDistribution:
    """An axis as Optuna stores it, read once: all trials share the object, and nothing changes it."""
    return json_to_distribution(stored)


def position(axis: BaseDistribution, value: Value | None) -> float:
    """Position of a value between the ends of its range, 0 to 1; on a logarithmic scale if it is sampled on one."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices.index(value) / max(1, len(axis.choices) - 1)
    assert isinstance(axis, FloatDistribution | IntDistribution)
    assert isinstance(value, int | float)
    low, high, at = float(axis.low), float(axis.high), float(value)
    if low == high:
        return 0.5
    if axis.log:
        return math.log(at / low) / math.log(high / low)
    return (at - low) / (high - low)


def step_word(spec: StudySpec) -> str:
    """The word for a step of a trial: "epoch" or "fold"."""
    return "fold" if spec.data.folds else "epoch"


def failure_of(trial: FrozenTrial) -> FailureKind | None:
    """The kind of failure that ended a trial; None if nothing went wrong."""
    if FAILURE in trial.user_attrs:
        kept: FailureKind = trial.user_attrs[FAILURE]
        return kept
    reason = trial.user_attrs.get("reason", "")  # studies of older versions stored the sentence alone
    if trial.state == TrialState.PRUNED:
        return "diverged" if reason.startswith("DivergedError") else "memory" if reason.startswith("out of m") else None
    if trial.state == TrialState.FAIL:
        return "killed" if "signal 9" in reason else "memory" if "out of memory" in reason else "crash"
    return None


def is_paused(trial: FrozenTrial) -> bool:
    """Whether a trial is paused at a rung. For Optuna it is RUNNING, because ``ask`` would return a WAITING trial."""
    paused_at = trial.user_attrs.get(PAUSED_AT)
    running = trial.state == TrialState.RUNNING
    return running and paused_at is not None and trial.user_attrs.get(PROMOTED_AT) != paused_at


def paused_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The paused trials, from the highest rung to the lowest, and at each rung from the best to the worst."""
    return sorted(
        filter(is_paused, trials), key=lambda trial: (-trial.user_attrs[PAUSED_AT], rank(view_of(trial).value, 0, 0))
    )


def words_of_pause(paused_at: int, ladder: Ladder, step: str) -> str:
    """The pause of a trial in words: "paused at rung 1 of 2 (epoch 2)"; ``step`` is "epoch" or "fold"."""
    if paused_at not in ladder.rungs:
        return f"paused after {step} {paused_at}"
    rung = ladder.rungs.index(paused_at)
    return f"paused at rung {rung + 1} of {len(ladder.rungs)} ({step} {ladder.lengths[rung]})"


def outcome_of(trial: FrozenTrial) -> str:
    """A trial's state in words; if it is PRUNED, but not by the pruner, the cause."""
    if trial.state == TrialState.PRUNED:
        return {"diverged": DIVERGED, "memory": OUT_OF_MEMORY}.get(failure_of(trial) or "", "pruned")
    if is_paused(trial):
        return "paused"
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def states_of(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Optuna's state -> number of trials. Paused trials are counted under PAUSED, if there are any, and not as
    RUNNING."""
    found = Counter(view_of(trial).state for trial in trials)
    return {
        name: found[name] for name in (*(state.name for state in TrialState), *(["PAUSED"] if found["PAUSED"] else []))
    }


def sampled_settings(trial: FrozenTrial) -> dict[str, Value]:
    """The values for a trial's configuration: its sampled settings, with the sizes that its worker found."""
    sizes: dict[str, Value] = trial.user_attrs.get("sizes", {})  # set if a width_share was sampled
    return trial.params | sizes


def copy_of(trial: FrozenTrial) -> FrozenTrial:
    """A copy of a trial with its own mappings; the values in them are never changed."""
    made = copy.copy(trial)
    made.params, made.distributions = dict(trial.params), dict(trial.distributions)
    made.user_attrs, made.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    made.intermediate_values = dict(trial.intermediate_values)
    return made
