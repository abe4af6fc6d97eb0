"""Classify images with an export: ONNX Runtime, and the preprocessing that config.json describes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search.export.files import open_model, read_config, read_images
from trainer.errors import printable

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Class:
    """A possible class of a picture."""

    name: str
    probability: float
    """Probability from 0 to 1."""


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of a picture."""

    picture: str
    """Path of the picture."""
    classes: tuple[Class, ...]
    """Classes, the most likely first."""


@dataclass(frozen=True)
class Predictions:
    """The answer of ``search predict``."""

    predictions: tuple[Prediction, ...]
    """Predictions, in the order of the files."""
    version: int = 1


def predict(export: Path, images: list[Path], top: int = 5) -> Predictions:
    """The most likely classes of each image.

    Args:
        export: folder that ``search export-best`` wrote.
        images: picture files.
        top: number of classes per picture.

    Raises:
        UsageError: the folder is no export, or has no model.onnx.
        ProofFailed: a file of the export has changed since the proof.
        DataError: pictures cannot be read; the message lists all of them.
    """
    config = read_config(export)
    batch = read_images(images, config.pretrained_cfg)
    logits = open_model(export)(batch)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = []
    for image, row in zip(images, probabilities, strict=True):
        likeliest = np.argsort(-row)[:top]
        classes = (Class(config.label_names[index], round(float(row[index]), 6)) for index in likeliest)
        found.append(Prediction(str(image), tuple(classes)))
    return Predictions(tuple(found))


def text_of_prediction(answer: Predictions) -> Table:
    """A table per image."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("picture", "class", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    for prediction in answer.predictions:
        for rank, found in enumerate(prediction.classes):
            first = prediction.picture if rank == 0 else ""
            table.add_row(
                printable(first), printable(found.name), f"{found.probability:.2%}", style="" if rank else "bold"
            )
    table.width = Console(width=10**6).measure(table).maximum  # a file's name is never broken, nor in a pipe
    return table
