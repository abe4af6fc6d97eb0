"""Classify pictures with an export: ONNX Runtime and the preprocessing its config.json names. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from search.export.files import open_model, read_config, read_pictures


def predict(export: Path, pictures: list[Path], top: int = 5) -> dict[str, Any]:
    """The most likely classes of each picture.

    Args:
        export: folder that ``search export-best`` wrote.
        pictures: files.
        top: classes per picture.

    Returns:
        {"predictions": [{"picture", "classes": [{"name", "probability"}, ...]}, ...]}, likeliest first.

    Raises:
        UsageError: no export there, or one without ONNX.
        ProofFailed: a file of the export is not what was proven.
        DataError: pictures that cannot be read, all of them listed.
    """
    config = read_config(export)
    batch = read_pictures(pictures, config["pretrained_cfg"])
    session = open_model(export)
    logits = session.run(["logits"], {"pictures": batch})[0]
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    names = config["label_names"]
    answers = []
    for picture, row in zip(pictures, probabilities, strict=True):
        likeliest = np.argsort(-row)[:top]
        classes = [{"name": names[index], "probability": round(float(row[index]), 6)} for index in likeliest]
        answers.append({"picture": str(picture), "classes": classes})
    return {"predictions": answers}


def render(answer: dict[str, Any]) -> Any:
    """A table per picture."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("picture", "class", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    for prediction in answer["predictions"]:
        for rank, found in enumerate(prediction["classes"]):
            first = prediction["picture"] if rank == 0 else ""
            table.add_row(first, found["name"], f"{found['probability']:.2%}", style="" if rank else "bold")
    return table
