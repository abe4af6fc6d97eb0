"""A figure of mistakes: each picture, and beside it a heat map of the areas that the decision depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search.figures.png import fonts_for, open_pyplot, short_name

PER_ROW = 3


@dataclass(frozen=True, eq=False)
class Mistake:
    """A picture that was classified wrongly."""

    picture: NDArray[np.uint8]
    """[size, size, channels]."""
    heat: NDArray[np.float32] | None
    """[size, size] from 0 to 1: how much each part raises the predicted class's logit; None if it is not known."""
    true: str
    predicted: str
    probability: float
    """Probability of the predicted class, 0 to 1."""


def caption(class_names: Sequence[str]) -> str:
    """The caption of the figure."""
    numbers = " Classes are numbered as the lines of class_map.txt." if _unwritable(class_names) else ""
    return (
        "The pictures of the evaluated split whose wrong class had the highest probability, each with its true class "
        "and, beside it, the predicted one. The bright parts raise the score of the predicted class most (LayerCAM, "
        f"Jiang et al., 2021).{numbers}"
    )


def _unwritable(class_names: Sequence[str]) -> bool:
    """Whether no font of this system has all letters of the names."""
    return fonts_for("".join(map(short_name, class_names))) is None


def draw_mistakes(mistakes: Sequence[Mistake], class_names: Sequence[str], path: Path) -> None:
    """Draw mistakes, at least one, as a PNG. Classes are numbered if no font of this system has all letters of the
    names."""
    pyplot = open_pyplot()
    rows = -(-len(mistakes) // PER_ROW)
    figure, grid = pyplot.subplots(
        rows, 2 * PER_ROW, figsize=(9, 1.75 * rows), dpi=120, squeeze=False, layout="constrained"
    )
    numbered = _unwritable(class_names)
    shown = {name: f"class {at}" if numbered else short_name(name) for at, name in enumerate(class_names, 1)}
    fonts = fonts_for("".join(shown.values()))
    for axes in grid.flat:
        axes.axis("off")
    for number, one in enumerate(mistakes):
        plain, heated = grid[number // PER_ROW, 2 * (number % PER_ROW) : 2 * (number % PER_ROW) + 2]
        picture = one.picture if one.picture.shape[2] == 3 else np.repeat(one.picture, 3, axis=2)
        for axes in (plain, heated):
            axes.imshow(picture, interpolation="nearest")
        if one.heat is not None:
            heated.imshow(one.heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
        style: dict[str, object] = {"fontsize": 8, "parse_math": False, "family": fonts, "loc": "left"}
        plain.set_title(f"is {shown[one.true]}", **style)
        heated.set_title(f"{shown[one.predicted]}, {one.probability:.1%}", **style)
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
