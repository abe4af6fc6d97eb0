"""The standings of a study's candidates at its rungs, computed from its trials when a search or a replay begins."""

from __future__ import annotations

from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

from search.policy.ladder import PAUSED_AT, REPEATS, reached
from search.policy.promotion import Promotion
from search.study.sampling import build_ladder
from search.study.trial import failure_of, is_paused
from studies import StudySpec


def standings_of(spec: StudySpec, trials: Iterable[FrozenTrial]) -> Promotion:
    """The standings after these trials: the candidates that have reached each rung, and those paused there."""
    ladder = build_ladder(spec)
    standings = Promotion(ladder, spec.search.reduction_factor)
    for trial in (one for one in trials if REPEATS not in one.user_attrs):
        for rung, value in reached(trial, ladder).items():
            if rung < len(ladder.rungs):
                standings.arrive(trial.number, ladder.steps[rung], value)
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            standings.complete(trial.number, trial.value)
        elif trial.state in (TrialState.PRUNED, TrialState.FAIL):
            standings.end_early(trial.number, diverged=failure_of(trial) == "diverged")
        elif is_paused(trial):
            standings.pause(trial.number, trial.user_attrs[PAUSED_AT])
    return standings
