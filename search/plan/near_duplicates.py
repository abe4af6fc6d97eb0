"""A figure of near-duplicates, pair by pair: ``search check --duplicates``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from search.plan.preview import save_figure
from trainer.data import Dataset
from trainer.near import NearDuplicate

PAIRS_A_ROW = 4
MOST_PAIRS = 60
"""Largest number of pairs that are drawn, the most similar first. The command lists the first 50 in words."""

CELL_PIXELS = 112
GAP_PIXELS = 4


def draw_pairs(data: Dataset, pairs: Sequence[NearDuplicate], out: Path) -> str:
    """Draw the pairs, each side by side, the most similar first. Returns a sentence about the figure.

    Raises:
        DiskError, UsageError: the file cannot be written.
    """
    index = {name: number for number, name in enumerate(data.names)}
    shown = pairs[:MOST_PAIRS]
    width, height = 2 * CELL_PIXELS + 3 * GAP_PIXELS, CELL_PIXELS + 2 * GAP_PIXELS
    rows = -(-len(shown) // PAIRS_A_ROW)
    sheet = Image.new("RGB", (width * min(PAIRS_A_ROW, len(shown)), height * rows), "white")
    for number, pair in enumerate(shown):
        left, top = width * (number % PAIRS_A_ROW), height * (number // PAIRS_A_ROW)
        for column, name in enumerate((pair.first, pair.second)):
            cell = Image.fromarray(data.images[index[name]].squeeze()).convert("RGB")
            x = left + GAP_PIXELS + column * (CELL_PIXELS + GAP_PIXELS)
            sheet.paste(cell.resize((CELL_PIXELS, CELL_PIXELS), Image.Resampling.BICUBIC), (x, top + GAP_PIXELS))
    save_figure("--duplicates", out, sheet.save)
    return f"wrote {out}: {len(shown)} of {len(pairs)} near-duplicates, each pair side by side, the most similar first"
