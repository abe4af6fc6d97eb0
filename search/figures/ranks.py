"""The figure of an export with [final.rerank]: the ranks of a layer's feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search.figures.png import open_pyplot

MARK = "#d1242f"


def draw_ranks(ranks: NDArray[np.int64], drawn_again: Sequence[int], path: Path, *, most: int, title: str) -> None:
    """Draw a heat map with filters on x and pictures on y; a bright cell has a high rank. Marks above it show the
    filters that were drawn again.

    Args:
        ranks: [pictures, filters], the rank of each feature map.
        drawn_again: the filters whose weights were drawn again.
        path: PNG to write.
        most: the largest possible rank.
        title: title of the figure.
    """
    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.2), dpi=120)
    drawn = axes.imshow(ranks, cmap="gray", vmin=0, vmax=most, interpolation="nearest", aspect="auto")
    axes.plot(
        drawn_again,
        [1.015] * len(drawn_again),
        "v",
        color=MARK,
        markersize=5,
        clip_on=False,
        transform=axes.get_xaxis_transform(),
        label="drawn again",
    )
    axes.set(xlabel="filter", ylabel="training picture")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper right", frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03).set_label("rank of the feature map", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
