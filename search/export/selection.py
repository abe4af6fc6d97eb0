"""Chooses the members of an ensemble if more models were trained than are exported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from search.console import show_progress
from search.export.build import build_models
from search.export.recorded import RecordedSelection
from search.export.retrain import Retraining
from search.export.trainings import Training
from studies.final import Selection
from studies.objective import Objective
from trainer.checkpoint import load_checkpoint
from trainer.device import Device
from trainer.evaluate import Metrics, measure, predict_logits
from trainer.scores import ClassCounts
from trainer.views import Views


def select(
    votes: Sequence[torch.Tensor], labels: NDArray[np.int64], keep: int, objective: Objective
) -> RecordedSelection:
    """Choose members by greedy forward selection without replacement (Caruana et al., "Ensemble selection from
    libraries of models", ICML 2004).

    The first member is the model that is best alone. Each further member is the one with which the mean of the
    probabilities is best. If two models are equal, the one with the lower cross-entropy is taken; if that is equal
    too, the one with the lower number.

    Args:
        votes: for each trained model, logarithms of its probabilities [n, classes].
        labels: [n], the true classes.
        keep: number of members to choose.
        objective: the value to maximize.
    """
    chosen: list[int] = []
    values: list[float] = []
    for _ in range(keep):
        merits = {}
        for number in range(len(votes)):
            if number not in chosen:
                together = torch.stack([votes[one] for one in (*chosen, number)])
                metrics = measure(torch.logsumexp(together, dim=0) - math.log(len(together)), labels)
                merits[number] = objective_of(metrics, objective, votes[0].shape[1]), -metrics.loss, -number
        best = max(merits, key=lambda number: merits[number])
        chosen.append(best)
        values.append(merits[best][0])
    return RecordedSelection(of=len(votes), members=tuple(number + 1 for number in chosen), values=tuple(values))


def objective_of(metrics: Metrics, objective: Objective, num_classes: int) -> float:
    """The value of an objective, from the metrics of an evaluation; a loss is negated."""
    match objective:
        case "accuracy":
            return metrics.accuracy
        case "macro_f1":
            return ClassCounts.of(metrics.confusion, num_classes).macro_f1
        case "balanced_accuracy":
            return ClassCounts.of(metrics.confusion, num_classes).balanced_accuracy
        case "loss":
            return -metrics.loss
        case _:
            assert_never(objective)


def select_members(retraining: Retraining, trained: Sequence[Training], views: Views) -> RecordedSelection | None:
    """Choose the members on the validation split if [final] exports fewer models than it trains; else None."""
    spec, data = retraining.spec, retraining.data
    if not isinstance(spec.final.ensemble, Selection):
        return None
    cpu, total = Device(torch.device("cpu"), torch.get_num_threads()), len(trained)
    votes = []
    with show_progress(retraining.console, retraining.raise_if_stopped) as progress:
        for done, training in enumerate(trained):
            progress("choosing members", done, total)
            saved = load_checkpoint(training.checkpoint)
            assert saved is not None
            member, _ = build_models([training.config], [saved.weights], views, data.shape)
            votes.append(torch.log_softmax(predict_logits(member, data, "val", cpu), dim=1))
        progress("choosing members", total, total)
    return select(votes, data.labels[data.splits["val"]], spec.num_members, spec.search.objective)
