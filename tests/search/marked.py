"""Finished trials as a search's own, for tests that let nobody train them."""

from __future__ import annotations

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial

from search.study.marks import ENDED, MARK, Marks
from search.study.study import UUID


def add_own(study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
    """Add trials with the mark of the search."""
    marks = Marks(study.user_attrs.get(UUID), None)
    for number, trial in enumerate(trials, len(study.get_trials(deepcopy=False))):
        trial.set_user_attr(MARK, marks.asked(number) + ENDED)
        study.add_trial(trial)
