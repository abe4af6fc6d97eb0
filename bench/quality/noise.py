"""How well sigma, the noise of one training, is known from two seeds: on recorded trainings with several seeds."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, variance

from search.study.noise import sigma_of

PICTURES = {"digits500": 897, "cifar1000": 1000}
"""Name of a table -> number of pictures of its validation split."""


def table(folder: Path) -> str:
    """The table in Markdown: of the best third of the recipes, the true sigma, and how far each estimate is off."""
    lines = [
        "| trainings | recipes | sigma, pooled | binomial error | off by: two seeds alone | binomial alone | both |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, pictures in PICTURES.items():
        pairs = _pairs(folder / f"{name}.jsonl")
        truth = math.sqrt(fmean([variance(pair) for pair in pairs]))
        alone = [sigma_of([pair], 0.0, None) or 0.0 for pair in pairs]
        binomial = [sigma_of([], fmean(pair), pictures) or 0.0 for pair in pairs]
        both = [sigma_of([pair], fmean(pair), pictures) or 0.0 for pair in pairs]
        numbers = " | ".join(f"{_off(estimates, truth):.2f}" for estimates in (alone, binomial, both))
        lines.append(f"| {name} | {len(pairs)} | {truth:.2%} | {fmean(binomial):.2%} | {numbers} |")
    return "\n".join(lines)


def _pairs(file: Path) -> list[tuple[float, ...]]:
    """The accuracies of the longest trainings of the best third of the recipes that have several seeds."""
    ends: dict[tuple[str, int], list[float]] = defaultdict(list)
    for line in map(json.loads, file.read_text().splitlines()):
        if curve := line.get("val_accuracy"):
            ends[str(line["config"]), line.get("epochs", len(curve))].append(curve[-1])
    longest = max(length for _, length in ends)
    repeated = [tuple(values) for (_, length), values in ends.items() if length == longest and len(values) > 1]
    return sorted(repeated, key=fmean, reverse=True)[: max(1, len(repeated) // 3)]


def _off(estimates: Sequence[float], truth: float) -> float:
    """The geometric mean of the factors by which estimates are off; equal values count as a hundredth of a point."""
    return math.exp(fmean([abs(math.log(max(one, 1e-4) / truth)) for one in estimates]))
