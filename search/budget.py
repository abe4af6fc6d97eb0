"""The limit, exactly: the widest width that fits, found by bisection on the meta device and remembered."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from studies import Limit
from trainer.config import ModelSize, TrainConfig
from trainer.errors import LimitError

WIDTH_STEP = 1e-5
"""Widths are looked at in steps of this; parameters are a monotone staircase in the width, far coarser."""

WIDEST = 10.0
"""TrainConfig takes no width beyond this one."""


@dataclass(frozen=True)
class Width:
    """The widest width that fits a limit, with the proof."""

    width_mult: float
    """Widest width_mult that fits."""
    size: ModelSize
    """Its parameters and multiply-adds."""
    next_width_mult: float | None
    """One step wider; None where even the widest possible fits."""
    next_size: ModelSize | None
    """Its size, over the limit."""


def fits(size: ModelSize, limit: Limit) -> bool:
    """Whether a model of this size is within the limit."""
    return all(excess <= 0 for excess in excesses(size, limit).values())


def excesses(size: ModelSize, limit: Limit) -> dict[str, int]:
    """By how much each limit is exceeded; zero or less is feasible (Optuna's convention for constraints)."""
    limits = {"params": limit.params, "macs": limit.macs}
    return {name: getattr(size, name) - bound for name, bound in limits.items() if bound is not None}


def describe(limit: Limit) -> str:
    """The limit in words."""
    parts = [f"{limit.params:,} parameters"] if limit.params else []
    parts += [f"{limit.macs:,} multiply-adds"] if limit.macs else []
    return " and ".join(parts) or "no limit"


def check_fits(config: TrainConfig, num_classes: int, image_size: int, limit: Limit) -> ModelSize:
    """The size of a candidate as it is.

    Raises:
        LimitError: it is over the limit.
    """
    from trainer.models import count  # torch and timm: 5 s, and not at all where the answer is remembered

    size = count(config, num_classes, image_size)
    if not fits(size, limit):
        raise LimitError(
            f"{config.model} at width_mult {config.width_mult:g} has {size.params:,} parameters and {size.macs:,} "
            f"multiply-adds with {num_classes} classes at {image_size} px; the limit is {describe(limit)}"
        )
    return size


def widest(
    config: TrainConfig,
    num_classes: int,
    image_size: int,
    limit: Limit,
    *,
    low: float = WIDTH_STEP,
    memory: Path | None = None,
) -> Width:
    """Find the widest width_mult of a family that fits: exact to WIDTH_STEP, about 20 counts.

    Args:
        config: the family and what else changes its size; its own width_mult is ignored.
        num_classes: outputs of the classifier.
        image_size: pixels; multiply-adds depend on it.
        limit: what not to exceed.
        low: smallest width of interest.
        memory: file of answers already found.

    Raises:
        LimitError: not even ``low`` fits.
        ConfigError: no such model, or one without a width.
    """
    question = [config.model, config.model_args, num_classes, image_size, limit.params, limit.macs, low]
    key = json.dumps([*question, version("timm"), version("torch")])
    known: dict[str, Any] = json.loads(memory.read_text()) if memory and memory.exists() else {}
    if key in known:
        answer = known[key]
        return Width(*(ModelSize(**part) if isinstance(part, dict) else part for part in answer))

    from trainer.models import count

    def at(width_mult: float) -> TrainConfig:
        return config.model_copy(update={"width_mult": width_mult})

    def width_of(steps: int) -> float:
        return max(low, round(steps * WIDTH_STEP, 5))

    def size_of(steps: int) -> ModelSize:
        return count(at(width_of(steps)), num_classes, image_size)

    check_fits(at(low), num_classes, image_size, limit)
    fitting, failing = math.floor(low / WIDTH_STEP), round(WIDEST / WIDTH_STEP)
    if fits(size_of(failing), limit):
        found = Width(WIDEST, size_of(failing), None, None)
    else:
        while failing - fitting > 1:
            middle = (fitting + failing) // 2
            if fits(size_of(middle), limit):
                fitting = middle
            else:
                failing = middle
        found = Width(width_of(fitting), size_of(fitting), width_of(failing), size_of(failing))
    if memory:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(known | {key: list(asdict(found).values())}))
        partial.replace(memory)
    return found
