"""Scores of an export besides its accuracy: over all classes, for each class, for the probabilities. Without torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.export.record import ClassScore, Score, Scores
from search.study.gain import wilson_interval
from search.study.noise import Z95
from trainer.scores import ClassCounts

TOP = 5
"""Number of likeliest classes; a picture counts for the top-5 accuracy if its class is one of them."""

BINS = 15
"""Number of bins of the calibration error, of equal width, as in Guo et al., 2017."""

RESAMPLES = 1000
"""Number of resamples of a bootstrap."""

ROWS = 4096
"""Number of pictures whose logits are evaluated at a time, because scikit-learn copies and sorts all of them."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a model for n pictures: the values that the scores need."""

    predicted: NDArray[np.int64]
    """[n]: the likeliest class."""
    confidence: NDArray[np.float64]
    """[n]: the probability of that class."""
    losses: NDArray[np.float64]
    """[n]: the cross-entropy of each picture."""
    in_top: int | None
    """Number of pictures whose class is among the TOP likeliest ones; None with TOP classes or fewer."""

    @classmethod
    def of(cls, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Answers:
        """The answers of logits [n, c] for pictures with labels [n]."""
        from sklearn.metrics import top_k_accuracy_score  # imported here: it takes 1 s

        classes = np.arange(logits.shape[1])
        confidence, losses, in_top = [], [], 0.0
        for start in range(0, len(logits), ROWS):
            rows = logits[start : start + ROWS].astype(np.float64)
            true = labels[start : start + ROWS]
            rows -= rows.max(1, keepdims=True)
            total = np.exp(rows).sum(1)
            confidence.append(1 / total)
            losses.append(np.log(total) - rows[np.arange(len(true)), true])
            if len(classes) > TOP:
                in_top += top_k_accuracy_score(true, rows, k=TOP, normalize=False, labels=classes)
        found = round(in_top) if len(classes) > TOP else None
        return cls(logits.argmax(1), np.concatenate(confidence), np.concatenate(losses), found)

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Join the answers for several batches of pictures."""
        return cls(
            np.concatenate([part.predicted for part in parts]),
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.losses for part in parts]),
            sum(part.in_top or 0 for part in parts) if parts[0].in_top is not None else None,
        )


def scores_of(answers: Answers, labels: NDArray[np.int64], names: Sequence[str]) -> Scores:
    """The scores of a model on n pictures.

    Intervals of macro F1, balanced accuracy and calibration error are the value +- 1.96 standard errors, cut at 0 and
    1. The standard errors are those of a bootstrap over the pictures, with a fixed seed (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13). Shares of pictures (recall, precision, top-5) have Wilson's
    interval.

    Args:
        answers: the answers of the model.
        labels: [n], the true classes.
        names: class names, in the order of the logits.
    """
    from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support

    predicted, n = answers.predicted, len(labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")  # a class without a test picture
        warnings.filterwarnings("ignore", "A single label was found")  # the test pictures are all of one class
        values = {
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
            "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
            "calibration_error": calibration_error(answers.confidence, predicted == labels),
        }
    errors = _bootstrap_errors(answers, labels, len(names))
    found = {
        name: Score(value=value, interval=_interval(value, float(error)))
        for (name, value), error in zip(values.items(), errors, strict=True)
    }
    precision, recall, f1, true = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(names)), zero_division=0
    )
    counts = np.bincount(predicted, minlength=len(names))
    classes = tuple(
        ClassScore(
            name=name,
            n=int(true[index]),
            predicted=int(counts[index]),
            precision=_share(precision[index], counts[index]),
            recall=_share(recall[index], true[index]),
            f1=float(f1[index]) if true[index] + counts[index] else None,
        )
        for index, name in enumerate(names)
    )
    top = None if answers.in_top is None else _share(answers.in_top / n, n)
    return Scores(**found, calibration_bins=BINS, resamples=RESAMPLES, top5=top, classes=classes)


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error: the mean distance between confidence and accuracy over bins of the confidence.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, with their 15 bins of equal width.

    Args:
        confidence: [n], the probability of the likeliest class.
        right: [n], whether the likeliest class is the true one.
    """
    gaps = np.bincount(_bins(confidence), weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each confidence; a bin includes its upper end."""
    bins: NDArray[np.int64] = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
    return bins


def _bootstrap_errors(answers: Answers, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Standard errors of macro F1, balanced accuracy and calibration error."""
    predicted, n, rng = answers.predicted, len(labels), np.random.default_rng(0)
    pairs, pair_of = np.unique(labels * num_classes + predicted, return_inverse=True)
    ends = np.stack([pairs // num_classes, pairs % num_classes], axis=1)
    gap, bin_of = (predicted == labels) - answers.confidence, _bins(answers.confidence)
    drawn = np.empty((RESAMPLES, 3))
    for resample in drawn:
        chosen = rng.integers(n, size=n)
        pictures = np.bincount(pair_of[chosen], minlength=len(pairs))
        counts = ClassCounts.of(np.column_stack([ends, pictures]), num_classes)
        gaps = np.bincount(bin_of[chosen], weights=gap[chosen], minlength=BINS)
        resample[:] = counts.macro_f1, counts.balanced_accuracy, np.abs(gaps).sum() / n
    errors: NDArray[np.float64] = drawn.std(axis=0, ddof=1)
    return errors


def _interval(value: float, error: float) -> tuple[float, float] | None:
    return (max(0.0, value - Z95 * error), min(1.0, value + Z95 * error)) if error > 0 else None


def _share(value: float, of: int) -> Score | None:
    """A share of ``of`` pictures with Wilson's interval; None if ``of`` is 0."""
    return Score(value=float(value), interval=wilson_interval(float(value) * of, int(of))) if of else None


SHOWN_CLASSES = 30
"""Largest number of classes that a card lists. If there are more, it lists those with the lowest F1."""


def score_rows(scores: Scores | None) -> dict[str, str]:
    """The scores over all classes in words: row -> value. Empty for an export of an earlier version."""
    if scores is None:
        return {}
    how = f"bootstrap over the pictures, {scores.resamples:,} resamples"
    rows = {
        "macro F1": (
            f"{scores.macro_f1.in_words}: the mean over the classes that have pictures or are predicted, as in "
            f"scikit-learn's f1_score{_counted_as_0(scores)} ({how})"
        ),
        "balanced accuracy": (
            f"{scores.balanced_accuracy.in_words}: the mean recall over the classes that have pictures, as in "
            f"scikit-learn's balanced_accuracy_score ({how})"
        ),
    }
    if scores.top5 is not None:
        rows["top-5 accuracy"] = f"{scores.top5.in_words} (Wilson)"
    rows["calibration error"] = (
        f"{scores.calibration_error.in_words}: mean distance between probability and accuracy, over "
        f"{scores.calibration_bins} bins of equal width (Guo et al., 2017; {how})"
    )
    return rows


def _counted_as_0(scores: Scores) -> str:
    count = sum(one.n == 0 and one.predicted > 0 for one in scores.classes)
    return (
        f"; {count:,} of them {'has no picture, and counts' if count == 1 else 'have no picture, and count'} as 0"
        if count
        else ""
    )


def class_rows(scores: Scores, spell: Callable[[str], str] = str) -> list[list[str]]:
    """A row for each class, at most SHOWN_CLASSES, with CLASS_COLUMNS; ``spell`` writes the name of a class."""
    shown: Sequence[ClassScore] = scores.classes
    if len(shown) > SHOWN_CLASSES:
        shown = sorted(scores.classes, key=lambda one: math.inf if one.f1 is None else one.f1)[:SHOWN_CLASSES]
    return [
        [
            spell(one.name),
            f"{one.n:,}",
            f"{one.predicted:,}",
            "-" if one.precision is None else one.precision.in_brief,
            "-" if one.recall is None else one.recall.in_brief,
            "-" if one.f1 is None else f"{one.f1:.2%}",
        ]
        for one in shown
    ]


def which_classes(scores: Scores) -> str:
    """The line above the table of ``class_rows``: which classes it has."""
    few = len(scores.classes) <= SHOWN_CLASSES
    which = "Each class" if few else f"The {SHOWN_CLASSES} classes with the lowest F1; metrics.json has all"
    return f"{which}, with Wilson's intervals:"


CLASS_COLUMNS = ("class", "pictures", "predicted", "precision", "recall", "F1")


def never_predicted(scores: Scores, spell: Callable[[str], str] = str) -> str:
    """A sentence with the classes that were never predicted, with pictures or without; empty if there are none."""
    names = [spell(one.name) for one in scores.classes if not one.predicted]
    return f"Never predicted: {_listed(names)}." if names else ""


def without_pictures(scores: Scores, where: str, spell: Callable[[str], str] = str) -> str:
    """A sentence with the classes of which the scores say nothing; empty if there are none.

    ``where``: the pictures in words, such as "in the test split".
    """
    names = [spell(one.name) for one in scores.classes if not one.n]
    if not names:
        return ""
    of = f"{len(names):,} of {len(scores.classes):,} classes"
    return f"{of} have no picture {where}, so the scores do not say how well they are recognised: {_listed(names)}."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_CLASSES:,} more" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(names[:SHOWN_CLASSES]) + more
