"""The plan of the trainings after a search: to choose the model, to measure it, and to train the exported model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from search.policy.race import costs, report_seeds_of, rounds_for
from search.words import count, duration
from studies import StudySpec

RERANKED = 2
"""Number of trainings of [final.rerank] after the final one: with filters drawn again, and without."""


@dataclass(frozen=True, kw_only=True)
class AfterSearch:
    """The trainings of ``search export-best``."""

    choosing: int
    """Number of trainings of the best candidates with fresh seeds."""
    measuring: int
    """Number of trainings of the winner with further seeds, which alone measure its accuracy."""
    final: int
    """Number of trainings of the exported model, without those that are counted in ``measuring`` already."""
    seconds: float
    """Duration of all these trainings."""
    last_seconds: float
    """Duration of the final trainings alone, if nothing is confirmed."""

    @property
    def trainings(self) -> str:
        """The trainings in words: "8 trainings to choose the model, 2 to measure it"."""
        stages = {"choose the model": self.choosing, "measure it": self.measuring, "export it": self.final}
        (first, number), *others = ((purpose, number) for purpose, number in stages.items() if number)
        return ", ".join([f"{count(number, 'training')} to {first}", *(f"{more} to {then}" for then, more in others)])

    @property
    def words(self) -> str:
        """The trainings and their duration: "8 trainings to choose the model, 2 to measure it: about 12 min"."""
        return f"{self.trainings}: about {duration(self.seconds)}"


def after_search(spec: StudySpec, candidates: int, seconds: float, parallel: int) -> AfterSearch:
    """Plan the trainings after a search.

    Args:
        spec: the study.
        candidates: number of candidates of the search if all are trained to the end. It decides the length of the race
            if the study has no budget of compute.
        seconds: duration of a full training, with all folds.
        parallel: number of trainings at the same time.
    """
    rounds, measuring = rounds_for(spec.confirm, spec.search.trainings or candidates), report_seeds_of(spec.confirm)
    members, is_same = spec.num_final_trainings, final_is_as_searched(spec)
    final = max(0, members - measuring) if measuring and is_same else members
    final -= min(final, 1) if rounds and not measuring and is_same else 0  # the winner's first seed is trained already
    again = 0 if spec.final.rerank is None else RERANKED
    stages = costs(rounds, rounds[0].keep) if rounds else []
    waves = sum(math.ceil(stage / parallel) for stage in (*stages, measuring))
    # With folds, ``seconds`` is the time of all folds. A final training takes the time of one, unless all are exported.
    parts = 1 if spec.final.ensemble == "folds" else max(1, spec.data.folds)
    of_final = seconds * final_epochs(spec) / (spec.train.epochs * parts)
    return AfterSearch(
        choosing=sum(stages),
        measuring=measuring,
        final=final + again,
        seconds=waves * seconds + (math.ceil(final / parallel) + math.ceil(again / parallel)) * of_final,
        last_seconds=(math.ceil(members / parallel) + math.ceil(again / parallel)) * of_final,
    )


def final_epochs(spec: StudySpec) -> int:
    """Number of epochs of a final training, with its last stage."""
    final = spec.final
    return (final.epochs or spec.train.epochs) + (final.finetune.epochs if final.finetune is not None else 0)


def final_is_as_searched(spec: StudySpec) -> bool:
    """Whether the final training has the recipe and the pictures of the search, so that it can share a checkpoint."""
    final = spec.final
    own = final.epochs in (None, spec.train.epochs) and final.ema in (None, spec.train.ema) and final.distill is None
    return own and final.fit_on == "train" and (not spec.data.folds or final.ensemble == "folds")
