"""[final.rerank]: the gain over plain retraining of the same length, and the heat map of the ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from search.console import show_progress
from search.export.compare import mcnemar
from search.export.recorded import RecordedRerank
from search.export.retrain import Retraining
from search.export.trainings import Training
from search.figures.ranks import draw_ranks
from search.study.gain import paired_interval
from studies.final import num_drawn_again
from trainer.checkpoint import load_checkpoint
from trainer.device import Device
from trainer.evaluate import predict_logits
from trainer.hrank import ranks_at, ranks_file
from trainer.models import build_model


def compare_reranked(figure: Path, retraining: Retraining, trained: list[list[Training]]) -> RecordedRerank | None:
    """Compare the two trainings of the last stage on the validation split, and draw the ranks. None without
    [final.rerank].

    Args:
        figure: file for the heat map, a PNG.
        retraining: the export's trainings.
        trained: the stages; the last one has the reranked training, then the plain one.
    """
    rerank, data = retraining.spec.final.rerank, retraining.data
    if rerank is None:
        return None
    ((first,), (reranked, plain)) = trained
    cpu = Device(torch.device("cpu"), torch.get_num_threads())
    before = load_checkpoint(first.checkpoint)
    assert before is not None
    chosen = data.trained_on(reranked.fit_on)
    ranks = ranks_at(rerank.layer, first.config, before.weights, chosen, cpu, ranks_file(reranked.checkpoint))
    again = ranks.lowest(num_drawn_again(ranks.filters, rerank.share))
    title = f"{retraining.spec.name}, trial {first.trial}: {rerank.layer}, {len(again)} filters drawn again"
    figure.parent.mkdir(exist_ok=True)
    draw_ranks(ranks.values, again, figure, most=ranks.most, title=title)

    labels, right = data.labels[data.splits["val"]], list[NDArray[np.bool_]]()
    with show_progress(retraining.console, retraining.raise_if_stopped) as progress:
        for done, training in enumerate((reranked, plain)):
            progress("comparing with plain retraining", done, 2)
            saved = load_checkpoint(training.checkpoint)
            assert saved is not None
            model = build_model(training.config, data.shape).eval()
            model.load_state_dict(saved.weights)
            right.append(predict_logits(model, data, "val", cpu).argmax(1).numpy() == labels)
        progress("comparing with plain retraining", 2, 2)
    ours, theirs = right
    both, only_reranked, only_plain = (int(found.sum()) for found in (ours & theirs, ours & ~theirs, theirs & ~ours))
    return RecordedRerank(
        layer=rerank.layer,
        filters=ranks.filters,
        drawn_again=tuple(again),
        mean_ranks=tuple(ranks.values.mean(axis=0).round(3).tolist()),
        most=ranks.most,
        pictures=len(ranks.values),
        n=len(labels),
        accuracy=float(ours.mean()),
        plain_accuracy=float(theirs.mean()),
        only_reranked=only_reranked,
        only_plain=only_plain,
        interval=paired_interval(both, only_reranked, only_plain, len(labels)),
        p=mcnemar(only_reranked, only_plain),
    )
