"""``search limit``: how wide a model can be under a limit, with the proof one step wider."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from search.errors import UsageError
from search.plan.width import WIDEST, Fitter
from studies import Limit
from studies.spec import UNITS, describe_limit, excesses, fits
from trainer.config import ModelSize, Shape, TrainConfig
from trainer.values import validate


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

    from trainer.models import has_width

    fitter = Fitter(Shape(classes, image_size), limit, memory)
    answer: dict[str, Any] = {"model": model, "classes": classes, "image_size": image_size, "limit": limit.model_dump()}
    if width_mult is not None:
        size = fitter.size(config)
        verdict = fits(size, limit) if limit != Limit() else None
        return answer | {"width_mult": width_mult, **asdict(size), "fits": verdict, "next": None}
    if not has_width(model):
        size = fitter.check(config)
        return answer | {"width_mult": None, **asdict(size), "fits": True, "next": None}
    found = fitter.widest(config)
    following = {"width_mult": found.next_width_mult, **asdict(found.next_size)} if found.next_size else None
    return answer | {"width_mult": found.width_mult, **asdict(found.size), "fits": True, "next": following}


def render(answer: dict[str, Any]) -> str:
    """An answer of ``answer_limit`` for people: the question, the size, the proof."""
    limit = Limit(**answer["limit"])
    question = f"{answer['model']}, {answer['classes']} classes, {answer['image_size']} px; {describe_limit(limit)}"
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
