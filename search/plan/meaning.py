"""The answer of ``search check``, the meaning of a study: as values and as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.console import without_controls
from search.plan.after import AfterSearch
from search.plan.copies import text_of_copies
from search.plan.limit import size_line
from search.plan.width import SizedWidth
from search.study.budget import Budget
from search.study.transfer import Transferred
from search.words import count, duration, megabytes
from studies import Limit
from studies.axes import Value
from studies.final import Rerank, num_drawn_again
from studies.limit import describe_limit, fits
from trainer.config import ModelSize
from trainer.data import BadFile, Duplicate
from trainer.errors import as_lines, printable
from trainer.near import NearDuplicate
from trainer.results import macs_in_words
from trainer.values import Json
from trainer.views import View

CLASSES_SHOWN = 12
"""Largest number of classes that the table shows; of more, it shows the smallest, the median and the largest."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """The pictures of a study."""

    source: str
    path: str | None
    image_size: int
    cache_size: int | None
    """Size of the cached pictures, from which pictures of ``image_size`` are cut; None if the two sizes are equal."""
    background: str
    """grabcut: the background is made black. keep: the background stays."""
    splits: Mapping[str, int]
    """Number of pictures in each split."""
    classes: Mapping[str, Mapping[str, int]]
    """Class -> split -> number of pictures."""
    bad_files: tuple[BadFile, ...]
    """Files and rows of a table that are left out."""
    duplicates: tuple[Duplicate, ...]
    duplicates_cures: tuple[str, ...]
    near_duplicates: tuple[NearDuplicate, ...] | None
    """Near-duplicates across splits; None if they were not searched for."""
    warnings: tuple[str, ...]
    """Warnings about the pictures, a sentence each."""


@dataclass(frozen=True)
class RangeAxis:
    """A setting that is sampled from a range."""

    low: float
    high: float
    """Upper end of the range; for width_mult, the exact value where the limit determines it."""
    log: bool
    step: float | None


@dataclass(frozen=True)
class ChoiceAxis:
    """A setting that is sampled from a list."""

    choices: tuple[Value | None, ...]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Approximate number of candidates that a budget allows."""

    trained_to_the_end: int
    """Number of candidates if none is pruned or paused."""
    stopped_at_first_rung: int
    """Number of candidates if each is pruned or paused as early as possible."""
    first_rung: int
    """Steps (epochs or folds) after which a candidate can first be pruned or paused."""
    paused_at_rungs: int | None = None
    """Number of candidates if the usual share goes on from each rung; None if the pruner does not pause candidates."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Candidates, time and disk of a search, from the speed of the largest candidate of one model."""

    model: str
    """The model that the times are for: the slowest of those in ``timed``."""
    device: str
    """Name of the device as it is shown."""
    workers: int
    workers_per_gpu: int
    images_per_second: float
    """Training pictures per second, validation excluded."""
    timed: Mapping[str, float]
    """Model -> training pictures per second of its largest candidate. If a study has many models, only the one with the
    most multiply-adds is here."""
    seconds_per_epoch: float
    """Seconds for the whole training and validation splits."""
    seconds_per_trial: float
    """Seconds of a trial: all of its trainings, with all epochs and folds."""
    candidates: Candidates
    seconds_at_most: float
    """Seconds for the whole search, if no candidate is pruned or paused."""
    after: AfterSearch
    """The trainings of ``search export-best``."""
    cache_bytes: int
    checkpoint_bytes: int
    """Bytes of disk that the checkpoints of all workers need."""
    free_bytes: int
    """Bytes of disk that are free in the runs folder."""


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The answer of ``search check``: what a study means before its launch."""

    version: int = 2
    """Version of the JSON shape."""
    study: str
    model: str
    epochs: int
    budget: Budget
    rungs: str
    """The rungs in words; empty if the pruner does not pause candidates."""
    limit: Limit
    pictures: Images
    space: Mapping[str, RangeAxis | ChoiceAxis]
    """Sampled setting -> its axis."""
    largest: SizedWidth
    """The largest candidate of the model that the estimate is for."""
    widest: SizedWidth | None
    """The widest width that fits the limit; None if the width is not sampled."""
    next: SizedWidth | None
    """The size one step wider, which is over the limit; None if the width is not sampled, or if the widest possible
    width fits."""
    left_out: Mapping[str, str]
    """Model, pattern ("timm:*") or known recipe ("known.0") that does not fit or cannot be used -> reason."""
    exported: ModelSize
    """Size of the largest candidate's export as the limit counts it, with all members and views."""
    views: tuple[str, ...]
    """The views that an export averages with a picture, by name."""
    convolutions: Mapping[str, int]
    """Convolution of the largest candidate -> number of filters: the layers that [final.rerank] may name."""
    rerank: Rerank | None
    """The [final.rerank] table; None without it."""
    fixed: Mapping[str, Json]
    """Settings of [train] that are neither sampled nor their default."""
    known: tuple[Mapping[str, Value], ...]
    """The known recipes, which are tried first."""
    transferred: tuple[Transferred, ...]
    """Recipes of earlier studies that a launch would choose now. They are tried after the known ones."""
    steps_per_epoch: Mapping[int, int]
    """Batch size -> optimizer steps of an epoch."""
    estimate: Estimate


def text_of_check(meaning: Meaning) -> Group:
    """The output of ``search check``. It fits 80 columns, unless names are longer."""
    epochs = f"{meaning.epochs} epoch{'s' if meaning.epochs > 1 else ''}"
    models = _num_models(meaning)
    model = f"{models} models" if models > 1 else meaning.model
    return Group(
        Text(f"{meaning.study}: {meaning.budget.words} of {model}, {epochs} each"),
        *_text_of_images(meaning.pictures),
        *_text_of_sizes(meaning),
        *(_heading("space"), _space_table(meaning.space)),
        *_text_of_recipes(meaning),
        *(_heading("estimate"), _estimate_table(meaning)),
    )


def _text_of_images(images: Images) -> list[RenderableType]:
    place = f" in {images.path}" if images.path else ""
    cut = f", cut from {images.cache_size} px" if images.cache_size else ""
    cut += ", background removed by GrabCut" if images.background == "grabcut" else ""
    parts: list[RenderableType] = [
        _heading(f"pictures: {images.source}{place}, {images.image_size} px{cut}"),
        _images_table(images),
    ]
    if bad := images.bad_files:
        lines = as_lines([f"{file.name}: {file.reason}" for file in bad])
        parts.append(_warning(f'{len(bad)} left out (bad_files = "skip"):{lines}'))
    if images.duplicates:
        parts.append(_warning(without_controls(text_of_copies(images.duplicates, images.duplicates_cures))))
    if (near := images.near_duplicates) is not None:
        lines = as_lines([f"{'/'.join(pair.splits)}: {pair.first} ~ {pair.second}" for pair in near])
        which = "of each picture the most similar in each other split"
        told = f"{count(len(near), 'near-duplicate')} across splits, {which}:{lines}" if near else "no near-duplicates"
        parts.append(_warning(told))
    parts += [_warning(without_controls(line)) for line in images.warnings]
    if not images.splits["test"]:
        parts.append(
            _warning(
                "no test split: an export would be measured on the validation pictures that chose it; "
                "add test/CLASS/*, or set data.test_fraction"
            )
        )
    return parts


def _text_of_sizes(meaning: Meaning) -> list[RenderableType]:
    """The limit, and the sizes that fit."""
    limit, largest, widest = meaning.limit, meaning.largest, meaning.widest
    parts: list[RenderableType] = [
        _heading("no limit" if limit == Limit() else f"limit: {describe_limit(limit)}"),
        *([Text(f"  {_measured(meaning)}; others may be larger:")] if _num_models(meaning) > 1 else []),
        Text(size_line(largest.width_mult, largest, limit)),
    ]
    if widest is not None and widest.width_mult > largest.width_mult:
        parts.append(Text(f"the space ends below the widest that fits, {widest.width_mult:g}"))
    elif meaning.next is not None:
        parts.append(Text(size_line(meaning.next.width_mult, meaning.next, limit)))
    if left_out := meaning.left_out:
        lines = as_lines([f"{name}: {why}" for name, why in left_out.items()])
        parts.append(_warning(f"{len(left_out)} left out:{lines}"))
    exported = meaning.exported
    if not fits(exported, limit):
        parts.append(
            _warning(
                f"with [final], the export has {exported.params:,} parameters and {macs_in_words(exported.macs)}, over "
                "the limit: use fewer members or views, limit_each = true, or a lower limit for the search"
            )
        )
    return parts


def _text_of_recipes(meaning: Meaning) -> list[RenderableType]:
    """The fixed settings, and the known recipes."""
    parts: list[RenderableType] = []
    if meaning.fixed:
        parts += [_heading("fixed, where it is not the default"), _pairs_table(meaning.fixed)]
    if meaning.known:
        recipes = [", ".join(f"{key} {_show(value)}" for key, value in recipe.items()) for recipe in meaning.known]
        parts += [_heading("known recipes, tried first"), *(Text(f"  {recipe}") for recipe in recipes)]
    if meaning.transferred:
        first = "tried next" if meaning.known else "tried first"
        parts.append(_heading(f"recipes of earlier studies, {first}"))
        for one in meaning.transferred:
            settings = ", ".join(f"{key} {_show(value)}" for key, value in one.recipe.items())
            parts.append(Text(f"  {one.study}, trial {one.trial}: {settings}"))
    return parts


def _images_table(images: Images) -> Table:
    classes, splits = images.classes, images.splits
    table = _table("class", *splits)
    if len(classes) <= CLASSES_SHOWN:
        for name, counts in classes.items():
            table.add_row(_printable(name), *(f"{counts[split]:,}" for split in splits))
    else:
        for what, choose in (("smallest", min), ("median", statistics.median), ("largest", max)):
            numbers = [choose([counts[split] for counts in classes.values()]) for split in splits]
            table.add_row(what, *(f"{number:,g}" for number in numbers))
    table.add_row(f"all {len(classes):,}", *(f"{number:,}" for number in splits.values()), style="bold")
    return table


def _space_table(space: Mapping[str, RangeAxis | ChoiceAxis]) -> Table:
    table = _table("", "", right=False)
    for key, axis in space.items():
        if isinstance(axis, ChoiceAxis):
            values = ", ".join(_show(choice) for choice in axis.choices)
        else:
            steps = f", in steps of {axis.step:g}" if axis.step not in (None, 1) else ""
            values = f"{axis.low:g} to {axis.high:g}{', logarithmic' if axis.log else ''}{steps}"
        table.add_row(f"  {key}", values)
    return table


def _estimate_table(meaning: Meaning) -> Table:
    estimate = meaning.estimate
    workers = f"{estimate.workers} worker{'s' if estimate.workers > 1 else ''}"
    if estimate.workers_per_gpu > 1:
        workers += f", {estimate.workers_per_gpu} on each GPU"
    stops = bool(meaning.rungs) or estimate.candidates.first_rung < meaning.budget.steps
    shorter = "; pruning makes it shorter" if stops and meaning.budget.trainings is None else ""
    early = f" unless it is {'paused' if meaning.rungs else 'pruned'}" if stops else ""
    at_most, as_long = "at most ", ""
    if _num_models(meaning) > len(estimate.timed):
        at_most, as_long = "", f", if each model takes as long as {estimate.model}"
    return _pairs_table(
        {
            "steps per epoch": ", ".join(
                _steps(number, size, meaning.pictures.splits["train"])
                for size, number in meaning.steps_per_epoch.items()
            ),
            "device": f"{estimate.device}, {estimate.images_per_second:,.0f} pictures/s with {_measured(meaning)}",
            **({"models": _others(estimate)} if len(estimate.timed) > 1 else {}),
            "epoch": f"about {duration(estimate.seconds_per_epoch)}",
            "trial": f"about {duration(estimate.seconds_per_trial)}{early}",
            **({"rungs": meaning.rungs} if meaning.rungs else {}),
            "search": f"{at_most}about {duration(estimate.seconds_at_most)} with {workers}{shorter}{as_long}",
            "budget": _bought(meaning),
            "export": estimate.after.words,
            **({} if meaning.rerank is None else {"rerank": _rerank(meaning.rerank, meaning.convolutions)}),
            **({"views": _views(meaning.views)} if meaning.views else {}),
            "disk": f"{megabytes(estimate.cache_bytes)} cache, {megabytes(estimate.checkpoint_bytes)} checkpoints; "
            f"{megabytes(estimate.free_bytes)} free",
        }
    )


def _views(names: tuple[str, ...]) -> str:
    """The views of an export, and their cost."""
    words = ", ".join(View.parse(name).words for name in names)
    return f"{words}, averaged with the picture; {1 + len(names)} times the multiply-adds"


def _num_models(meaning: Meaning) -> int:
    """Number of models in the space."""
    models = meaning.space.get("model")
    return len(models.choices) if isinstance(models, ChoiceAxis) else 1


def _measured(meaning: Meaning) -> str:
    """The candidate whose size and speed are told, in words."""
    models, model = _num_models(meaning), meaning.estimate.model
    if models == 1:
        return f"the largest {model}"
    is_slowest = len(meaning.estimate.timed) == models
    return f"{model}, {'the slowest' if is_slowest else 'which has the most multiply-adds'} of {models} models"


def _others(estimate: Estimate) -> str:
    """The speed of each model that was timed, and the one that the times are for."""
    speeds = ", ".join(f"{model} {speed:,.0f}" for model, speed in estimate.timed.items())
    return f"{speeds} pictures/s; the times below are for {estimate.model}"


def _rerank(rerank: Rerank, convolutions: Mapping[str, int]) -> str:
    """The filters that are drawn again, and the other layers that could be named."""
    filters = convolutions[rerank.layer]
    again = num_drawn_again(filters, rerank.share)
    others = ", ".join(f"{name} ({number})" for name, number in convolutions.items() if name != rerank.layer)
    return (
        f"{again} of the {filters} filters of {rerank.layer} are drawn again, then two more trainings; "
        f"other layers: {others}"
    )


def _bought(meaning: Meaning) -> str:
    """The number of candidates that the budget allows, in words."""
    candidates, hours = meaning.estimate.candidates, meaning.budget.hours
    least, most = candidates.trained_to_the_end, candidates.stopped_at_first_rung
    words = f"{meaning.budget.words}: {count(least, 'candidate')} trained to the end"
    if (usual := candidates.paused_at_rungs) is not None:
        words += f", about {usual:,} if the usual share goes on from each rung" if usual > least else ""
        words += f", up to {most:,} if none does" if most > usual else ""
    elif most > least:
        words += f", up to {most:,} if each is stopped at its first rung"
    return words if hours is None else f"{words}; none begins after {hours:g} hours of a launch"


def _steps(number: int, batch_size: int, num_train: int) -> str:
    left_out = num_train - number * min(batch_size, num_train)
    much = left_out > num_train / 10
    told = f"; {left_out:,} of {num_train:,} pictures left out, different ones each epoch" if much else ""
    return f"{number:,} in batches of {batch_size}{told}"


def _pairs_table(pairs: Mapping[str, object]) -> Table:
    table = _table("", "", right=False)
    for key, value in pairs.items():
        table.add_row(f"  {key}", Text(_show(value)))
    return table


def _table(*columns: str, right: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if right and number else "left", overflow="fold")
    return table


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _warning(text: str) -> Text:
    return Text(text, style="yellow")


def _printable(name: str) -> Text:
    return Text(printable(name))


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
