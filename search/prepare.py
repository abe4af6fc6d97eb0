"""A study made concrete before anything trains: its pictures, its space's exact bounds, room for its checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from rich.console import Console

from search.budget import Width, check_fits, resolve_sizes, widest
from search.console import show_progress
from search.paths import Runs
from search.space import as_sampled, distributions, feasible_models, known_recipes
from search.status import megabytes
from studies import Range, StudySpec
from trainer.config import SIZE_SETTINGS
from trainer.data import Dataset, prepare_data
from trainer.errors import DiskError

CHECKPOINT_BYTES_PER_PARAMETER = 12
"""fp32 weights and AdamW's two moments; an average of the weights comes on top."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """A study's space with exact bounds."""

    width: Width | None
    """The widest width that fits; None where the study does not sample it, or where it depends on the trial."""
    most_params: int
    """Parameters of the largest candidate; where that depends on the trial, the limit, or about as many."""
    space: dict[str, BaseDistribution]
    known: list[dict[str, Any]]
    """The known recipes in terms of what is sampled."""
    left_out: dict[str, str]
    """Models of the space, and known recipes ("known.0"), that do not fit the limit, and why."""


@dataclass(frozen=True, kw_only=True)
class Prepared(Bounds):
    """A study made concrete: its pictures, and its space."""

    data: Dataset

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return len(self.data.class_names)


def prepare(spec: StudySpec, runs: Runs, console: Console, look: Callable[[], None] = lambda: None) -> Prepared:
    """Read the pictures and find the exact bounds of the space; ``look`` as in ``show_progress``.

    Raises:
        DataError, DiskError: the pictures cannot be used.
        LimitError: no candidate fits.
        ConfigError: the model or a recipe cannot be.
    """
    with show_progress(console, look) as progress:
        data = prepare_data(spec.data, runs.cache, progress=progress)
    return Prepared(data=data, **vars(find_bounds(spec, len(data.class_names), runs)))


def find_bounds(spec: StudySpec, num_classes: int, runs: Runs) -> Bounds:
    """Find the exact bounds of the space for so many classes.

    Raises:
        LimitError: no candidate fits.
        ConfigError: the model or a recipe cannot be.
    """
    pictures = (num_classes, spec.data.image_size, spec.limit)
    if spec.sizes_vary:
        models, left_out = feasible_models(spec, num_classes)
        return Bounds(
            width=None,
            most_params=spec.limit.params or _most_params(spec, models, num_classes),
            space=distributions(spec, None, models if "model" in spec.space else None),
            known=[as_sampled(spec, recipe, num_classes) for recipe in known_recipes(spec, left_out)],
            left_out=left_out,
        )
    known = known_recipes(spec, {})
    if "width_mult" not in spec.space:
        params = check_fits(spec.train, *pictures, spec.data.channels, memory=runs.widths).params
        return Bounds(width=None, most_params=params, space=distributions(spec, None), known=known, left_out={})
    low, _ = spec.width_range
    width = widest(spec.train, *pictures, low=low, channels=spec.data.channels, memory=runs.widths)
    space = distributions(spec, width)
    return Bounds(width=width, most_params=width.size.params, space=space, known=known, left_out={})


def _most_params(spec: StudySpec, models: list[str], num_classes: int) -> int:
    """Parameters of about the largest candidate: the largest of each other setting, and the widest that fits."""
    from trainer.models import count_params  # torch and timm: 5 s, and rarely needed

    pictures = (num_classes, spec.data.image_size)
    others = {
        key: axis.high if isinstance(axis, Range) else max(axis)
        for key, axis in spec.space.items()
        if key in SIZE_SETTINGS and key != "width_mult"
    }
    most = 0
    for model in models:
        config = spec.config_for(others | {"model": model}, 0)
        largest = resolve_sizes(config, 1.0, *spec.width_range, *pictures, spec.limit, spec.data.channels)
        most = max(most, count_params(largest, *pictures, spec.data.channels))
    return most


def checkpoint_bytes(params: int, workers: int, *, averaged: bool = False, folds: int = 0) -> int:
    """Disk that checkpoints need: each running trial keeps two of every fold, and writes the next beside them.

    Args:
        params: parameters of the largest candidate.
        workers: trials that run at once.
        averaged: whether candidates keep an average of their weights.
        folds: of the data; 0 for one validation split.
    """
    return (2 * max(1, folds) + 1) * workers * (CHECKPOINT_BYTES_PER_PARAMETER + 4 * averaged) * params


def room_needed(spec: StudySpec, bounds: Bounds, workers: int) -> int:
    """Bytes of disk for so many workers, what their trials have written already included."""
    averaged = spec.train.ema > 0 or "ema" in spec.space
    return checkpoint_bytes(bounds.most_params, workers, averaged=averaged, folds=spec.data.folds)


def check_room(spec: StudySpec, runs: Runs, needed: int) -> None:
    """See whether there is room for the checkpoints of all workers, which ``room_needed`` counts.

    Raises:
        DiskError: there is not.
    """
    free, needed = shutil.disk_usage(runs.root).free, runs.still_needed(spec.name, needed, spec.data.folds)
    if free < needed:
        raise DiskError(
            f"checkpoints need {megabytes(needed)} in {runs.root}, {megabytes(free)} are free; free some or use --runs"
        )


def pictures_of(prepared: Prepared) -> str:
    """How many pictures each split has, in words."""
    return ", ".join(f"{len(indices):,} {split}" for split, indices in prepared.data.splits.items() if len(indices))


def models_of(spec: StudySpec, prepared: Prepared) -> list[str]:
    """The models that are searched."""
    return list(getattr(prepared.space.get("model"), "choices", [spec.train.model]))
