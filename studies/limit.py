"""A limit on a model's size."""

from __future__ import annotations

from pydantic import Field

from trainer.config import ModelSize
from trainer.results import macs_in_words
from trainer.values import FrozenModel

UNITS = {"params": "parameters", "macs": "multiply-adds"}
"""Field of a Limit -> its unit in words."""


class Limit(FrozenModel):
    """The largest size that a model may have."""

    params: int | None = Field(None, ge=1)
    """Largest number of trainable parameters. Default: no limit."""
    macs: int | None = Field(None, ge=1)
    """Largest number of multiply-adds for one picture of the study's size. Default: no limit."""


def fits(size: ModelSize, limit: Limit) -> bool:
    """Whether a model of this size is within the limit."""
    return all(excess <= 0 for excess in excesses(size, limit).values())


def excesses(size: ModelSize, limit: Limit) -> dict[str, int]:
    """Excess over each limit. At zero or less, the limit is kept (Optuna's convention for constraints)."""
    limits = {"params": limit.params, "macs": limit.macs}
    return {name: getattr(size, name) - bound for name, bound in limits.items() if bound is not None}


def describe_limit(limit: Limit) -> str:
    """The limit in words."""
    parts = [f"{limit.params:,} parameters"] if limit.params else []
    parts += [macs_in_words(limit.macs)] if limit.macs else []
    return " and ".join(parts) or "no limit"
