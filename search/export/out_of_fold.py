"""The out-of-fold predictions of fold models: each picture is classified by the model that was not trained on it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import nn

from search.console import show_progress
from search.export.recorded import RecordedOutOfFold
from search.export.retrain import Retraining
from search.study.gain import wilson_interval
from trainer.device import Device
from trainer.evaluate import Ensemble, measure, predict_logits


def write_out_of_fold(file: Path, whole: nn.Module, retraining: Retraining) -> RecordedOutOfFold | None:
    """Write a line for each picture of the training and the validation split, and measure the accuracy on them.

    Returns None, and writes nothing, if no fold models are exported.

    The columns are picture, fold (from 1), label, predicted, and one for each class, with its probability.

    Args:
        file: the CSV to write.
        whole: the exported ensemble. It has a model for each trial and fold.
        retraining: the export's trainings.
    """
    spec, data = retraining.spec, retraining.data
    if spec.final.ensemble != "folds":
        return None
    assert isinstance(whole, Ensemble)
    folds, members, names = spec.data.folds, list(whole.members), data.class_names
    cpu = Device(torch.device("cpu"), torch.get_num_threads())
    logits, labels = [], []
    with (
        file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as text,
        show_progress(retraining.console, retraining.raise_if_stopped) as progress,
    ):
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["picture", "fold", "label", "predicted", *names])
        for number in range(folds):
            progress("predicting out of fold, in folds", number, folds)
            part = data.fold(number, folds, spec.data.split_seed)
            # Each trial has its models in the order of the folds, so these are all models of one fold.
            found = predict_logits(Ensemble(members[number::folds], whole.views), part, "val", cpu)
            held_out = part.splits["val"]
            for index, answer in zip(held_out, found.exp().numpy(), strict=True):
                named = names[data.labels[index]], names[answer.argmax()]
                rows.writerow([data.names[index], number + 1, *named, *(f"{one:.6g}" for one in answer)])
            logits.append(found)
            labels.append(data.labels[held_out])
        progress("predicting out of fold, in folds", folds, folds)
    metrics, n = measure(torch.cat(logits), np.concatenate(labels)), sum(map(len, labels))
    interval = wilson_interval(round(metrics.accuracy * n), n)
    return RecordedOutOfFold(n=n, accuracy=metrics.accuracy, interval=interval, loss=metrics.loss)
