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

from search.errors import UsageError
from studies import Final, Limit
from trainer.config import SIZE_SETTINGS, ModelSize, TrainConfig, validate
from trainer.errors import LimitError

WIDTH_STEP = 1e-5
"""Widths are looked at in steps of this; parameters are a monotone staircase in the width, far coarser."""

WIDEST = 10.0
"""TrainConfig takes no width beyond this one."""

UNITS = {"params": "parameters", "macs": "multiply-adds"}
"""What a Limit counts, in words."""


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


def exported_size(one: ModelSize, final: Final) -> tuple[ModelSize, ModelSize]:
    """The size of all that an export holds, and of what the limit counts of it.

    Args:
        one: a member's size, for one look at a picture.
        final: how many members and views there are, and whether the limit counts each member alone.
    """
    each = ModelSize(params=one.params, macs=one.macs * (1 + len(final.tta)))
    whole = ModelSize(params=each.params * final.ensemble, macs=each.macs * final.ensemble)
    return whole, each if final.limit_each else whole


def describe(limit: Limit) -> str:
    """The limit in words."""
    parts = [f"{limit.params:,} parameters"] if limit.params else []
    parts += [f"{limit.macs:,} multiply-adds"] if limit.macs else []
    return " and ".join(parts) or "no limit"


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
            f"multiply-adds with {num_classes} classes at {image_size} px; the limit is {describe(limit)}; "
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
            f"{describe(limit)}; raise it, or choose a smaller width or model"
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


def answer_limit(
    model: str,
    classes: int,
    image_size: int,
    *,
    max_params: int | None = None,
    max_macs: int | None = None,
    width_mult: float | None = None,
    memory: Path | None = None,
) -> dict[str, Any]:
    """What ``search limit`` says.

    Args:
        model: name of a timm model.
        classes: outputs of the classifier.
        image_size: pixels.
        max_params: largest number of parameters.
        max_macs: largest number of multiply-adds.
        width_mult: count this width instead of finding the widest.
        memory: file of answers already found.

    Returns:
        The question: ``model``, ``classes``, ``image_size``, ``limit`` {``params``, ``macs``; each may be null}.
        The answer: ``width_mult`` (null where the model has no width), ``params`` and ``macs`` at it, ``fits`` (null
        without a limit), and ``next``, the proof: {``width_mult``, ``params``, ``macs``} one step wider, over the
        limit (null where a width was given, or none can be wider).

    Raises:
        UsageError: there is nothing to answer: no limit and no width.
        LimitError: nothing fits.
        ConfigError: no such model or width.
    """
    limit = Limit(params=max_params, macs=max_macs)
    if max_params is None and max_macs is None and width_mult is None:
        raise UsageError(
            "give --max-params, --max-macs or both, or a --width-mult to count; for example: "
            f"search limit {model} --classes {classes} --max-params 5000000"
        )
    values = {"model": model} if width_mult is None else {"model": model, "width_mult": width_mult}
    config = validate(TrainConfig, values, f"search limit {model}")

    from trainer.models import count, has_width

    answer: dict[str, Any] = {"model": model, "classes": classes, "image_size": image_size, "limit": limit.model_dump()}
    if width_mult is not None:
        size = count(config, classes, image_size)
        verdict = fits(size, limit) if limit != Limit() else None
        return answer | {"width_mult": width_mult, **asdict(size), "fits": verdict, "next": None}
    if not has_width(model):
        size = check_fits(config, classes, image_size, limit)
        return answer | {"width_mult": None, **asdict(size), "fits": True, "next": None}
    found = widest(config, classes, image_size, limit, memory=memory)
    following = {"width_mult": found.next_width_mult, **asdict(found.next_size)} if found.next_size else None
    return answer | {"width_mult": found.width_mult, **asdict(found.size), "fits": True, "next": following}


def render(answer: dict[str, Any]) -> str:
    """An answer of ``answer_limit`` for people: the question, the size, the proof."""
    limit = Limit(**answer["limit"])
    question = f"{answer['model']}, {answer['classes']} classes, {answer['image_size']} px; {describe(limit)}"
    lines = [question if limit == Limit() else f"{question} at most", size_line(answer, limit)]
    if answer["next"]:
        lines.append(size_line(answer["next"], limit))
    elif answer["fits"] and answer["width_mult"] == WIDEST:
        lines.append(f"no width beyond {WIDEST:g} is tried")
    return "\n".join(lines)


def size_line(answer: dict[str, Any], limit: Limit) -> str:
    """One width, its counts, and whether they fit: "width_mult 1.12452   5,001,941 parameters   ..."."""
    size = ModelSize(params=answer["params"], macs=answer["macs"])
    over = [f"{excess:,} {UNITS[name]} over" for name, excess in excesses(size, limit).items() if excess > 0]
    verdict = ", ".join(over) if over else "fits" if limit != Limit() else ""
    width = "its one size" if answer["width_mult"] is None else f"width_mult {answer['width_mult']:g}"
    return f"  {width:18} {size.params:>12,} parameters {size.macs:>15,} multiply-adds  {verdict}".rstrip()


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
