"""Finished trials as a search's own, for tests that let nobody train them."""

from __future__ import annotations

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial

from search.study.marks import ENDED, MARK, Marks
from search.study.study import UUID


def add_own(study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
    """Add trials with the mark of the search."""
    for number, trial in enumerate(trials, len(study.get_trials(deepcopy=False))):
        trial.set_user_attr(MARK, mark_of(study, number))
        study.add_trial(trial)


def mark_of(study: optuna.Study, number: int) -> str:
    """The mark of a trial whose end is about to be stored."""
    return Marks(study.user_attrs.get(UUID), None).mark_of(number) + ENDED
