"""``search limit``: the widest model within a limit and, as proof, its size one step wider."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from search.errors import UsageError
from search.plan.width import WIDEST, Fitter, SizedWidth
from studies import Limit
from studies.limit import UNITS, describe_limit, excesses, fits
from trainer.config import ModelSize, TrainConfig
from trainer.results import gflops
from trainer.values import validate


@dataclass(frozen=True, kw_only=True)
class LimitAnswer:
    """The question that ``search limit`` was asked, and its answer."""

    model: str
    classes: int
    image_size: int
    limit: Limit
    width_mult: float | None
    """The requested width, or the widest that fits; None if the model has no width."""
    params: int
    """Parameters at this width."""
    macs: int
    """Multiply-adds at this width."""
    fits: bool | None
    """Whether the counts are within the limit; None without a limit."""
    next: SizedWidth | None
    """The proof: the size one step wider, which is over the limit. None if a width was given, or if none is wider."""


def answer_limit(model: str, fitter: Fitter, width_mult: float | None = None) -> LimitAnswer:
    """Find the widest width of a model that fits, or count the width that is given.

    Args:
        model: name of a timm model.
        fitter: the classes and pictures that the model is for, and the limit.
        width_mult: the width to count, instead of the widest.

    Raises:
        UsageError: there is neither a limit nor a width.
        LimitError: no width fits.
        ConfigError: there is no such model or width.
    """
    limit = fitter.limit
    if limit == Limit() and width_mult is None:
        raise UsageError(
            "give --max-params, --max-macs or both, or a --width-mult to count; for example: "
            f"search limit {shlex.quote(model)} --classes {fitter.shape.num_classes} --max-params 5000000"
        )
    values = {"model": model} if width_mult is None else {"model": model, "width_mult": width_mult}
    config = validate(TrainConfig, values, f"search limit {model}")

    from trainer.models import has_width

    size: ModelSize
    following = None
    if width_mult is not None:
        size = fitter.size(config)
    elif has_width(model):
        found = fitter.widest(config)
        size, width_mult, following = found.widest, found.widest.width_mult, found.next
    else:
        size = fitter.check(config)
    return LimitAnswer(
        model=model,
        classes=fitter.shape.num_classes,
        image_size=fitter.shape.image_size,
        limit=limit,
        width_mult=width_mult,
        params=size.params,
        macs=size.macs,
        fits=fits(size, limit) if limit != Limit() else None,
        next=following,
    )


def text_of_limit(answer: LimitAnswer) -> str:
    """The output of ``search limit``: the question, the size, the proof."""
    limit = answer.limit
    question = f"{answer.model}, {answer.classes} classes, {answer.image_size} px; {describe_limit(limit)}"
    size = ModelSize(params=answer.params, macs=answer.macs)
    lines = [question if limit == Limit() else f"{question} at most", size_line(answer.width_mult, size, limit)]
    if answer.next is not None:
        lines.append(size_line(answer.next.width_mult, answer.next, limit))
    elif answer.fits and answer.width_mult == WIDEST:
        lines.append(f"no width beyond {WIDEST:g} is tried")
    return "\n".join(lines)


def size_line(width_mult: float | None, size: ModelSize, limit: Limit) -> str:
    """A line with a width, its counts and the verdict: "width_mult 1.12452   5,001,941 parameters   ..."."""
    over = [f"{excess:,} {UNITS[name]} over" for name, excess in excesses(size, limit).items() if excess > 0]
    verdict = ", ".join(over) if over else "fits" if limit != Limit() else ""
    name = "its one size" if width_mult is None else f"width_mult {width_mult:g}"
    counts = f"{size.params:>12,} parameters {size.macs:>15,} multiply-adds {gflops(size.macs):>13}"
    return f"  {name:18} {counts}  {verdict}".rstrip()
