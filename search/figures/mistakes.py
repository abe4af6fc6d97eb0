"""A figure of mistakes: each picture, and beside it the map of what the decision rests on."""

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
    """[size, size] from 0 to 1: how much each part speaks for the predicted class; None if it is not known."""
    true: str
    predicted: str
    probability: float
    """Probability of the predicted class, 0 to 1."""


def draw_mistakes(mistakes: Sequence[Mistake], path: Path) -> None:
    """Draw at least one mistake as a PNG."""
    pyplot = open_pyplot()
    rows = -(-len(mistakes) // PER_ROW)
    figure, grid = pyplot.subplots(
        rows, 2 * PER_ROW, figsize=(9, 1.75 * rows), dpi=120, squeeze=False, layout="constrained"
    )
    fonts = fonts_for("".join(short_name(name) for one in mistakes for name in (one.true, one.predicted)))
    for axes in grid.flat:
        axes.axis("off")
    for number, one in enumerate(mistakes):
        plain, heated = grid[number // PER_ROW, 2 * (number % PER_ROW) : 2 * (number % PER_ROW) + 2]
        picture = one.picture if one.picture.shape[2] == 3 else np.repeat(one.picture, 3, axis=2)
        for axes in (plain, heated):
            axes.imshow(picture, interpolation="nearest")
        if one.heat is not None:
            heated.imshow(one.heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
        names = [short_name(name) for name in (one.true, one.predicted)]
        if fonts is None:  # no font of this system has all letters
            names = [name.encode("ascii", "backslashreplace").decode() for name in names]
        style: dict[str, object] = {"fontsize": 8, "parse_math": False, "family": fonts, "loc": "left"}
        plain.set_title(f"is {names[0]}", **style)
        heated.set_title(f"{names[1]}, {one.probability:.1%}", **style)
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
