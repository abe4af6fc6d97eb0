"""The trials that a search queues: known recipes, recipes of earlier studies, and the repeat.

The repeat is the first known recipe, trained to its end a second time with another seed, to measure the noise. It is a
trial of its own, so a kill does not lose it, and its number gives it another seed. It is neither compared at rungs nor
pruned; this program's sampler, rankings and figures leave it out. Its epochs count as compute.
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
from search.study.sampling import QUEUED, why_impossible
from search.study.transfer import TRANSFERRED, transferred
from studies import StudySpec
from studies.axes import Value
from trainer.values import Json

REPEAT_FROM = 15
"""Smallest budget, in full trainings, with which a search trains the repeat."""


class Queued:
    """Queues each recipe once, and the repeat once.

    Args:
        study: the study, owned.
        spec: the study's spec.
        journal: the study's journal.
    """

    def __init__(self, study: Study, spec: StudySpec, journal: Journal) -> None:
        self.study, self.journal = study, journal
        enough = spec.search.trainings is not None and spec.search.trainings >= REPEAT_FROM
        self._repeats = enough and bool(spec.known) and has_repeat(study)
        """Whether the repeat must still be queued. Studies that an earlier version began have no repeat
        (``has_repeat``)."""

    def adopt(self, trials: Collection[FrozenTrial]) -> None:
        """Note whether an earlier launch has queued the repeat."""
        self._repeats = self._repeats and not any(REPEATS in trial.user_attrs for trial in trials)

    def enqueue(self, known: Sequence[Mapping[str, Value]]) -> None:
        """Queue the known recipes, given by their sampled settings, and those of earlier studies; each once in the
        study."""
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
        """Queue the repeat if the first known recipe is complete, and the budget has room for a training.

        Args:
            space: the axes of the study. If they exclude the recipe by now, it is not repeated.
            budget: the budget.
            spent: the part that is spent.
            committed: steps that the trials in progress, and the repeat, still need.
        """
        if not self._repeats or not budget.allows_compute(spent, committed):
            return
        trials = self.study.get_trials(deepcopy=False)
        known = first_known(trials)
        if known is None or known.params.keys() != space.keys() or why_impossible(known, space) is not None:
            return
        if not any(REPEATS in trial.user_attrs for trial in trials):  # if there is one, its acknowledgement was lost
            self.study.enqueue_trial(known.params, user_attrs={REPEATS: known.number})
        self.journal.append(Enqueue(params=known.params, repeats=known.number))
        self._repeats = False
