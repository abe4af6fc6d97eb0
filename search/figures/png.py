"""Figures of an export and of a search's best trial, as PNG: learning curves and confusion matrices."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from studies.objective import NAMES, Objective
from trainer.errors import printable

BLUE, GRAY = "#1f5fa8", "#6e7781"

NAMED_CLASSES = 40
"""Largest number of classes for which the matrix shows names; more names would not be readable."""

DRAWN_CELLS = 500
"""Largest number of rows of a drawn matrix."""

COUNTED_CLASSES = 20
"""Largest number of classes for which each cell shows its number."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A point of the learning curves: the results of an epoch."""

    stage: str
    """"training", or "finetuning" or "reranking" for the last stage."""
    epoch: int
    """Number of the epoch in its stage, from 1."""
    train_loss: float
    val_loss: float
    val_accuracy: float
    train_accuracy: float | None = None
    """Accuracy on augmented pictures, see ``trainer.config.EpochResult``; None in an export of an earlier version."""
    val_macro_f1: float | None = None
    val_balanced_accuracy: float | None = None


CURVE_COLUMNS = (
    "member",
    "stage",
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "val_balanced_accuracy",
)


def write_curves(histories: Sequence[Sequence[CurvePoint]], path: Path) -> None:
    """Write the learning curves as CSV, with a line for each epoch of each member. Members are counted from 1."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CURVE_COLUMNS)
        writer.writeheader()
        for member, history in enumerate(histories, 1):
            writer.writerows({"member": member} | asdict(one) for one in history)


@dataclass(frozen=True, kw_only=True)
class Confused:
    """Pictures of one class that were classified as another."""

    true: str
    predicted: str
    count: int
    of: int
    """Number of pictures of the true class."""


def draw_curves(histories: Sequence[Sequence[CurvePoint]], path: Path, *, title: str, seen: bool) -> None:
    """Draw losses and accuracy by epoch, a line for each member; a dashed line marks the beginning of a last stage.

    Args:
        histories: the epochs of each member.
        path: PNG to write.
        title: title of the figure.
        seen: whether the model was trained on the validation pictures; the legend then says so.
    """
    pyplot = open_pyplot()
    figure, (losses, accuracy) = pyplot.subplots(1, 2, figsize=(9, 3.4), dpi=120)
    faint = 1.0 if len(histories) == 1 else 0.55
    name = "validation pictures, trained on" if seen else "validation"
    for number, history in enumerate(histories):
        epochs = np.arange(1, len(history) + 1)
        labels = ("training", name) if number == 0 else (None, None)
        marker = "o" if len(history) == 1 else None
        train_losses, val_losses = [one.train_loss for one in history], [one.val_loss for one in history]
        for values, colour, label in ((train_losses, GRAY, labels[0]), (val_losses, BLUE, labels[1])):
            losses.plot(epochs, values, color=colour, label=label, alpha=faint, marker=marker)
        trained = [math.nan if one.train_accuracy is None else 100 * one.train_accuracy for one in history]
        if not all(map(math.isnan, trained)):
            accuracy.plot(epochs, trained, color=GRAY, label=labels[0], alpha=faint, marker=marker)
        accuracies = [100 * one.val_accuracy for one in history]
        accuracy.plot(epochs, accuracies, color=BLUE, label=labels[1], alpha=faint, marker=marker)
    first = sum(one.stage == "training" for one in histories[0])
    for axes, what in ((losses, "loss"), (accuracy, "accuracy, %")):
        if first < len(histories[0]):
            axes.axvline(first + 0.5, color=GRAY, linestyle="--", linewidth=1, label="last stage begins")
        axes.set(xlabel="epoch", ylabel=what)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb")
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def draw_values(
    trainings: Sequence[Mapping[int, float]], path: Path, *, title: str, step: str, objective: Objective
) -> None:
    """Draw a trial's value of the objective after each step, with the trial's trainings side by side.

    Args:
        trainings: step -> value, for each training; a loss is negated. Steps are counted through all trainings.
        path: PNG to write.
        title: title of the figure.
        step: "epoch" or "fold".
        objective: the study's objective.
    """
    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(figsize=(4.8, 3.4), dpi=120)
    for number, training in enumerate(trainings):
        values = [-value if objective == "loss" else 100 * value for value in training.values()]
        axes.plot([*training], values, color=BLUE, marker="o" if len(values) == 1 else None)
        if number:
            axes.axvline(min(training) - 0.5, color=GRAY, linestyle=":", linewidth=1)
    steps = f"{step}, through {len(trainings)} trainings" if len(trainings) > 1 else step
    axes.set(xlabel=steps, ylabel=f"validation {NAMES[objective]}{'' if objective == 'loss' else ', %'}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb")
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def dense(table: ArrayLike, classes: int, per_cell: int = 1) -> NDArray[np.int64]:
    """The matrix [c, c] of a confusion table [k, 3]; each cell sums ``per_cell`` neighbouring classes."""
    rows, columns, pictures = np.asarray(table, np.int64).reshape(-1, 3).T
    cells = -(-classes // per_cell)
    counts = np.zeros((cells, cells), np.int64)
    np.add.at(counts, (rows // per_cell, columns // per_cell), pictures)
    return counts


def draw_confusion(table: ArrayLike, names: Sequence[str], path: Path, *, title: str) -> None:
    """Draw a confusion matrix with a row for each true class. Cells are shares of the row; one may sum several classes.

    Args:
        table: [k, 3]: true class, predicted class, pictures.
        names: class names.
        path: PNG to write.
        title: title of the figure.
    """
    pyplot = open_pyplot()
    per_cell = -(-len(names) // DRAWN_CELLS)
    counts = dense(table, len(names), per_cell)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 4.2 if len(names) <= 12 else min(9.0, 3.0 + 0.18 * len(names))
    figure, axes = pyplot.subplots(figsize=(side + 1.2, side), dpi=120)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(names) <= NAMED_CLASSES:
        numbers = numbered(names)
        short = [str(number) for number in numbers] or [short_name(name) for name in names]
        fonts = fonts_for("".join(short))
        style: dict[str, object] = {"fontsize": 7, "parse_math": False, "family": fonts}  # a $ begins no formula
        axes.set_xticks(range(len(names)), short, rotation=90 if max(map(len, short)) > 2 else 0, **style)
        axes.set_yticks(range(len(names)), short, **style)
    if len(names) <= COUNTED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=7)
    each = f", {per_cell} neighbouring classes per cell" if per_cell > 1 else ""
    axes.set(xlabel=f"predicted{each}", ylabel=f"true{each}")
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def numbered(names: Sequence[str]) -> dict[int, str]:
    """The classes that ``draw_confusion`` numbers, because no font of this system has all letters of their names."""
    if len(names) > NAMED_CLASSES or fonts_for("".join(map(short_name, names))) is not None:
        return {}
    return dict(enumerate(names, 1))


def short_name(name: str) -> str:
    """A class name of at most 20 characters, all printable."""
    shown = printable(name)
    return shown if len(shown) <= 20 else f"{shown[:19]}…"


def fonts_for(text: str) -> list[str] | None:
    """Font families that together have all letters of a text; None if this system has no such fonts.

    Unicode's Last Resort font, which comes with Matplotlib, does not count: it has a box in place of each letter.
    """
    from matplotlib import font_manager, ft2font

    missing = {ord(letter) for letter in text if not letter.isspace()}
    families: list[str] = []
    default = ("DejaVu Sans", font_manager.findfont("DejaVu Sans"))
    installed = [(font.name, font.fname) for font in font_manager.fontManager.ttflist]
    for family, file in [default, *(font for font in installed if "last resort" not in font[0].lower())]:
        if not missing:
            break
        with contextlib.suppress(OSError, RuntimeError):  # the font was removed, or is damaged
            there = missing & set(ft2font.FT2Font(file).get_charmap())
            if there or not families:
                families.append(family)
                missing -= there
    return None if missing else families


def confused_pairs(table: ArrayLike, names: Sequence[str], top: int = 10) -> list[Confused]:
    """The most frequent mistakes, at most ``top``, in a confusion table [k, 3]."""
    known = np.asarray(table, np.int64).reshape(-1, 3)
    sizes = np.zeros(len(names), np.int64)
    np.add.at(sizes, known[:, 0], known[:, 2])
    mistakes = [(int(row), int(column), int(count)) for row, column, count in known[known[:, 0] != known[:, 1]]]
    order = sorted(mistakes, key=lambda one: (-one[2], -one[2] / sizes[one[0]], one[:2]))
    return [
        Confused(true=names[row], predicted=names[column], count=count, of=int(sizes[row]))
        for row, column, count in order[:top]
    ]


def open_pyplot() -> ModuleType:
    """Matplotlib's pyplot, which draws to files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot
