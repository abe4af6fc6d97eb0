"""What a search queues: the known recipes, those of earlier studies, and the repeat.

The repeat is the first known recipe, trained to its end a second time with another seed, to measure the noise. It is a
trial of its own, so it survives kills as every trial does. Its own number makes its seed another one. It is neither
compared at rungs nor pruned; this program's sampler, rankings and figures leave it out. It counts as compute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from search.policy.ladder import REPEATS
from search.study.budget import Budget, Spent
from search.study.events import Enqueue
from search.study.journal import Journal
from search.study.noise import KNOWN, first_known, has_repeat
from search.study.sampling import QUEUED, impossible
from search.study.transfer import TRANSFERRED, transferred
from studies import StudySpec
from studies.axes import Value
from trainer.values import Json

REPEAT_FROM = 15
"""Smallest budget, in full trainings, of which one training is spent on the repeat."""


class Queued:
    """Queues each recipe, and the repeat, once.

    Args:
        study: the study, owned.
        spec: its spec.
        journal: its journal.
    """

    def __init__(self, study: Study, spec: StudySpec, journal: Journal) -> None:
        self.study, self.journal = study, journal
        enough = spec.search.trainings is not None and spec.search.trainings >= REPEAT_FROM
        self._repeats = enough and bool(spec.known) and has_repeat(study)
        """Whether the repeat is still to be queued. Studies of earlier versions have none (``has_repeat``)."""

    def adopt(self, trials: Collection[FrozenTrial]) -> None:
        """Note whether an earlier launch has queued the repeat."""
        self._repeats = self._repeats and not any(REPEATS in trial.user_attrs for trial in trials)

    def enqueue(self, known: Sequence[Mapping[str, Value]]) -> None:
        """Queue the known recipes, with the sampled settings as keys, and those of earlier studies, unless they were
        queued before."""
        queued = [trial.system_attrs.get(QUEUED) for trial in self.study.get_trials(deepcopy=False)]
        recipes: list[tuple[Mapping[str, Value], dict[str, Json]]] = [
            (recipe, {KNOWN: number}) for number, recipe in enumerate(known)
        ]
        recipes += [(one.recipe, {TRANSFERRED: one.source}) for one in transferred(self.study) or ()]
        for recipe, source in recipes:
            if recipe not in queued:
                self.study.enqueue_trial(dict(recipe), user_attrs=source)
                self.journal.append(Enqueue(params=recipe))

    def repeat(self, space: dict[str, BaseDistribution], budget: Budget, spent: Spent, committed: int) -> None:
        """Queue the repeat if it is due: the first known recipe is complete, and the budget has room for a training.

        Args:
            space: the axes of the study; a recipe that they exclude by now is not repeated.
            budget: the budget.
            spent: the part that is spent.
            committed: steps that the trials in progress, and the repeat, still need.
        """
        if not self._repeats or not budget.allows_compute(spent, committed):
            return
        trials = self.study.get_trials(deepcopy=False)
        known = first_known(trials)
        if known is None or known.params.keys() != space.keys() or impossible(known, space) is not None:
            return
        if not any(REPEATS in trial.user_attrs for trial in trials):  # else its acknowledgement was lost
            self.study.enqueue_trial(known.params, user_attrs={REPEATS: known.number})
        self.journal.append(Enqueue(params=known.params, repeats=known.number))
        self._repeats = False
