"""The limit, exactly: the widest width that fits, found by bisection on the meta device and remembered."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from studies import Limit
from studies.spec import describe_limit, fits
from trainer.config import SIZE_SETTINGS, ModelSize, TrainConfig
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


def check_fits(
    config: TrainConfig,
    num_classes: int,
    image_size: int,
    limit: Limit,
    channels: int = 3,
    *,
    memory: Path | None = None,
) -> ModelSize:
    """The size of a candidate as it is; ``memory`` is a file of answers already found.

    Raises:
        LimitError: it is over the limit.
    """
    key = _question(config, SIZE_SETTINGS, num_classes, image_size, channels)
    known = _recall(memory)
    if key in known:
        size = ModelSize(**known[key])
    else:
        from trainer.models import count  # torch and timm: 5 s, and not at all where the answer is remembered

        size = count(config, num_classes, image_size, channels)
        _remember(memory, known | {key: asdict(size)})
    if not fits(size, limit):
        raise LimitError(
            f"{config.model} at width_mult {config.width_mult:g} has {size.params:,} parameters and {size.macs:,} "
            f"multiply-adds with {num_classes} classes at {image_size} px; the limit is {describe_limit(limit)}; "
            "raise it or choose a smaller model"
        )
    return size


def widest(
    config: TrainConfig,
    num_classes: int,
    image_size: int,
    limit: Limit,
    *,
    low: float = WIDTH_STEP,
    channels: int = 3,
    memory: Path | None = None,
) -> Width:
    """Find the widest width_mult up to which every width fits: exact to WIDTH_STEP, about 20 counts.

    Args:
        config: the family and what else changes its size; its own width_mult is ignored.
        num_classes: outputs of the classifier.
        image_size: pixels; multiply-adds depend on it.
        limit: what not to exceed.
        low: smallest width of interest.
        channels: of the pictures.
        memory: file of answers already found.

    Raises:
        LimitError: not even ``low`` fits.
        ConfigError: no such model, or one without a width.
    """
    others = [name for name in SIZE_SETTINGS if name != "width_mult"]
    key = _question(config, others, num_classes, image_size, channels, limit.params, limit.macs, low)
    known = _recall(memory)
    if key in known:
        width_mult, size, next_width_mult, next_size = known[key]
        return Width(width_mult, ModelSize(**size), next_width_mult, ModelSize(**next_size) if next_size else None)

    from trainer.models import count, count_params, dip

    def at(steps: int) -> TrainConfig:
        return config.model_copy(update={"width_mult": width_of(steps)})

    def width_of(steps: int) -> float:
        return max(low, round(steps * WIDTH_STEP, 5))

    def size_of(steps: int) -> ModelSize:
        return count(at(steps), num_classes, image_size, channels)

    def is_over(steps: int) -> bool:
        if limit.macs is None:  # parameters alone need no forward pass
            return (
                limit.params is not None and count_params(at(steps), num_classes, image_size, channels) > limit.params
            )
        return not fits(size_of(steps), limit)

    fitting, end = math.floor(low / WIDTH_STEP), round(WIDEST / WIDTH_STEP)
    narrowest = size_of(fitting)
    if not fits(narrowest, limit):
        raise LimitError(
            f"no width of {config.model} fits: at {low:g}, the narrowest, it has {narrowest.params:,} parameters and "
            f"{narrowest.macs:,} multiply-adds with {num_classes} classes at {image_size} px; the limit is "
            f"{describe_limit(limit)}; raise it, or choose a smaller width or model"
        )
    # Sizes rise with the width but for one dip, so what fits at its brim and at the end fits all the way.
    fall = dip(config)
    brim = [] if fall is None else [math.ceil(fall / WIDTH_STEP) - 1]
    over = [steps for steps in (*brim, end) if steps > fitting and is_over(steps)]
    if not over:
        found = Width(width_of(end), size_of(end), None, None)
    else:
        failing = over[0]
        while failing - fitting > 1:
            middle = (fitting + failing) // 2
            if is_over(middle):
                failing = middle
            else:
                fitting = middle
        found = Width(width_of(fitting), size_of(fitting), width_of(failing), size_of(failing))
    _remember(memory, known | {key: list(asdict(found).values())})
    return found


def resolve_sizes(
    config: TrainConfig,
    share: float,
    low: float,
    high: float | None,
    num_classes: int,
    image_size: int,
    limit: Limit,
    channels: int = 3,
) -> TrainConfig:
    """The candidate that a sampled share of the feasible widths stands for.

    Size settings that its family does not have go back to their defaults: the space is flat, and a trial samples
    them all.

    Args:
        config: the candidate but for its width.
        share: 0 the narrowest, 1 the widest that fits.
        low: the narrowest width.
        high: the widest of interest; None for no other bound than the limit.
        num_classes: outputs of the classifier.
        image_size: pixels.
        limit: what not to exceed.
        channels: of the pictures.

    Raises:
        LimitError: not even ``low`` fits.
    """
    from trainer.models import size_settings

    own = size_settings(config.model)
    config = config.model_copy(
        update={name: TrainConfig.model_fields[name].default for name in SIZE_SETTINGS if name not in own}
    )
    if "width_mult" not in own:
        check_fits(config, num_classes, image_size, limit, channels)
        return config
    top = widest(config, num_classes, image_size, limit, low=low, channels=channels).width_mult
    top = top if high is None else min(top, high)
    return config.model_copy(update={"width_mult": low + share * (top - low)})


def _question(config: TrainConfig, sizes: Iterable[str], *others: float | None) -> str:
    """What an answer is remembered by: all that it depends on."""
    settings = {name: getattr(config, name) for name in ("model", "model_args", *sizes)}
    return json.dumps([settings, others, version("timm"), version("torch")])


def _recall(memory: Path | None) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads(memory.read_text()) if memory else {}
    except (OSError, ValueError):  # none yet, or damaged: it is only a memory
        return {}
    return known


def _remember(memory: Path | None, answers: dict[str, Any]) -> None:
    if memory is None:
        return
    partial = memory.with_suffix(f".{os.getpid()}.partial")
    with contextlib.suppress(OSError):  # a folder that nobody may write to costs the next call some seconds
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(answers))
        partial.replace(memory)
