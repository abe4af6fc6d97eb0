"""What a study means before it is launched: bounds, pictures, steps, time and disk, and all of its problems at once."""

from __future__ import annotations

import math
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Group
from rich.table import Table
from rich.text import Text

from search.console import Terminal
from search.devices import WorkerDevice, use_gpu
from search.paths import Runs
from search.plan.limit import size_line
from search.plan.prepare import Prepared, check_room, prepare, room_needed
from search.plan.preview import check_picture, draw_pictures
from search.plan.space import find_bounds, known_recipes
from search.plan.width import Fitter
from search.words import duration, megabytes
from studies import Limit, StudySpec
from studies.spec import describe_limit, exported_size, fits
from trainer.config import ModelSize, TrainConfig
from trainer.data import Dataset
from trainer.errors import ConfigError, DataError, DiskError, LimitError, as_lines
from trainer.scan import scan_folder

CLASSES_SHOWN = 12
"""With more classes than these the table shows the smallest, the median and the largest one."""

MEASURED_STEPS = 3
"""Training steps that the estimate of time is taken from, after one that warms up."""

BUILT_IN_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class Speed:
    """How fast a candidate trains on a device."""

    device: str
    """The device, as people call it."""
    images_per_second: float
    """Training pictures per second, validation excluded."""
    seconds_per_epoch: float
    """Of the whole training and validation splits."""


def check_study(
    spec: StudySpec,
    runs: Runs,
    devices: list[WorkerDevice],
    *,
    pictures: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Find out what a study means; decodes its pictures and trains a few steps on the first device.

    Args:
        spec: the study.
        runs: the runs folder; its cache is filled.
        devices: those the search would have, one worker each.
        pictures: PNG to draw augmented training pictures into.
        note: told what was drawn.

    Returns:
        ``study``, ``model``, ``epochs``, ``trials``, ``limit`` {params, macs}.
        ``pictures``: ``source``, ``path``, ``image_size``, ``splits`` {split: number}, ``classes``
        {class: {split: number}}, ``bad_files`` [{name, reason}], ``duplicates`` [{first, second, kind}].
        ``space``: {setting: {low, high, log, step} or {choices}}, with the exact upper end of width_mult.
        ``largest``: the largest candidate, {width_mult, params, macs}; ``widest``: the widest width that fits the limit
        and ``next``: the size one step wider, over it (both null where the width is not sampled).
        ``left_out``: models, and known recipes ("known.0"), that do not fit the limit, {name: why}.
        ``exported``: what the limit counts of its export, members and views included, {params, macs}.
        ``fixed``: settings of [train] that are neither sampled nor their default. ``known``: recipes tried first.
        ``steps_per_epoch``: {batch size: steps}.
        ``estimate``: ``model``, ``device``, ``workers``, ``workers_per_gpu``, ``images_per_second``,
        ``seconds_per_epoch``, ``seconds_per_trial`` and ``seconds_at_most`` of the largest candidate and of a search
        that prunes nothing; ``cache_bytes``, ``checkpoint_bytes``, ``free_bytes``.

    Raises:
        DataError, DiskError: the pictures cannot be used; problems of limit and recipes are in the message too.
        DiskError: there is no room for the checkpoints of a search.
        LimitError: nothing fits the limit.
        ConfigError: the model, a recipe or the device cannot be.
        UsageError: ``pictures`` cannot be written.
    """
    if pictures is not None:
        check_picture("--pictures", pictures)
    use_gpu(devices[0])
    prepared = _prepare(spec, runs)
    if pictures is not None:
        note(draw_pictures(spec, prepared.data, pictures))

    data, space, widest = prepared.data, prepared.space, prepared.width
    fitter = Fitter(data.shape, spec.limit, runs.widths)
    candidate = largest_candidate(spec, space, fitter)
    largest = fitter.size(candidate)
    for_checkpoints = room_needed(spec, prepared, len(devices))
    check_room(spec, runs, for_checkpoints)
    speed = measure_speed(candidate, data, devices[0])
    seconds_per_trial = max(1, spec.data.folds) * spec.train.epochs * speed.seconds_per_epoch
    num_train = len(data.splits["train"])
    alone = len({device.visible or device.label for device in devices})  # those of one GPU share its speed
    return {
        "study": spec.name,
        "model": spec.train.model,
        "epochs": spec.train.epochs,
        "trials": spec.search.trials,
        "limit": spec.limit.model_dump(),
        "pictures": {
            "source": spec.data.source,
            "path": spec.data.path,
            "image_size": spec.data.image_size,
            "splits": {split: len(indices) for split, indices in data.splits.items()},
            "classes": _pictures_per_class(data),
            "bad_files": [asdict(file) for file in data.bad_files],
            "duplicates": [asdict(duplicate) for duplicate in data.duplicates],
        },
        "space": {key: _axis_values(axis) for key, axis in space.items()},
        "largest": {"width_mult": candidate.width_mult, **asdict(largest)},
        "widest": widest and {"width_mult": widest.width_mult, **asdict(widest.size)},
        "next": widest and widest.next_size and {"width_mult": widest.next_width_mult, **asdict(widest.next_size)},
        "left_out": prepared.left_out,
        "exported": asdict(exported_size(largest, spec.final)[1]),
        "fixed": {
            key: value
            for key, value in spec.train.model_dump(mode="json", exclude_defaults=True).items()
            if key not in space and key not in ("model", "epochs", "seed")
        },
        "known": known_recipes(spec, prepared.left_out),
        "steps_per_epoch": {
            str(batch_size): num_train // min(batch_size, num_train)
            for batch_size in _batch_sizes(spec.train, space.get("batch_size"))
        },
        "estimate": {
            "workers": len(devices),
            "workers_per_gpu": len(devices) // alone,
            "model": candidate.model,
            **asdict(speed),
            "seconds_per_trial": seconds_per_trial,
            "seconds_at_most": math.ceil(spec.search.trials / alone) * seconds_per_trial,
            "cache_bytes": sum(file.stat().st_size for file in data.cache_path.iterdir()),
            "checkpoint_bytes": for_checkpoints,
            "free_bytes": shutil.disk_usage(runs.root).free,
        },
    }


def largest_candidate(spec: StudySpec, space: Mapping[str, BaseDistribution], fitter: Fitter) -> TrainConfig:
    """The widest candidate of the space, with most augmentation, in the smallest batches.

    Of words it has the first choice. So where a study samples the model, it is of the first one: others may be larger.
    """
    sampled: dict[str, Any] = {}
    for key, axis in space.items():
        if isinstance(axis, CategoricalDistribution):
            numbers = all(isinstance(choice, int | float) for choice in axis.choices)
            sampled[key] = max(axis.choices) if numbers else axis.choices[0]  # type: ignore[type-var]
        elif isinstance(axis, FloatDistribution | IntDistribution):
            sampled[key] = axis.high
    if "batch_size" in space:
        sampled["batch_size"] = min(_batch_sizes(spec.train, space["batch_size"]))
    config = spec.config_for(sampled, spec.seed)
    if not spec.sizes_vary:
        return config
    return fitter.resolve(config, 1.0, *spec.width_range)


def measure_speed(candidate: TrainConfig, data: Dataset, where: WorkerDevice) -> Speed:
    """Train ``candidate`` for a few real steps, validate one real batch, and scale both up to an epoch.

    Raises:
        ConfigError: the model, its augmentation or its precision cannot be on this device.
    """
    from trainer.device import open_device
    from trainer.evaluate import EVALUATION_BATCH
    from trainer.fit import fit

    train, val = data.splits["train"], data.splits["val"]
    batch_size = min(candidate.batch_size, len(train))
    # A rate that cannot diverge in so few steps; it costs the same time.
    quick = candidate.model_copy(update={"epochs": 1, "warmup_epochs": 0.0, "augment_from_epoch": 1, "lr": 1e-6})
    device = open_device(where.kind, where.num_threads)
    for steps, val_pictures in ((1, 1), (MEASURED_STEPS, EVALUATION_BATCH)):  # the first one warms up
        sample = {"train": train[: steps * batch_size], "val": val[:val_pictures], "test": val[:0]}
        (result,) = fit(quick, replace(data, splits=sample), device)
    trained = len(sample["train"]) // batch_size * batch_size
    validation_seconds = result.seconds - trained / result.images_per_second
    return Speed(
        device=device.name,
        images_per_second=result.images_per_second,
        seconds_per_epoch=len(train) // batch_size * batch_size / result.images_per_second
        + validation_seconds * len(val) / len(sample["val"]),
    )


def render(meaning: dict[str, Any]) -> Group:
    """What ``check_study`` found, for people; fits 80 columns unless names are longer."""
    pictures, limit = meaning["pictures"], Limit(**meaning["limit"])
    place = f" in {pictures['path']}" if pictures["path"] else ""
    epochs = f"{meaning['epochs']} epoch{'s' if meaning['epochs'] > 1 else ''}"
    models = meaning["space"].get("model")
    model = f"{len(models['choices'])} models" if models else meaning["model"]
    parts: list[Any] = [
        Text(f"{meaning['study']}: {meaning['trials']} trials of {model}, {epochs} each"),
        _heading(f"pictures: {pictures['source']}{place}, {pictures['image_size']} px"),
        _pictures_table(pictures["classes"], pictures["splits"]),
    ]
    if bad := pictures["bad_files"]:
        lines = as_lines([f"{file['name']}: {file['reason']}" for file in bad])
        parts.append(Text(f"{len(bad)} files left out because they cannot be read:{lines}", style="yellow"))
    if pairs := pictures["duplicates"]:
        lines = as_lines([f"{pair['kind']}: {pair['first']} = {pair['second']}" for pair in pairs])
        parts.append(Text(f"{len(pairs)} exact duplicates:{lines}", style="yellow"))
    if not pictures["splits"]["test"]:
        parts.append(
            Text(
                "no test split: an export would be measured on the validation pictures that chose it; "
                "add test/CLASS/*, or set data.test_fraction",
                style="yellow",
            )
        )
    parts += [
        _heading("no limit" if limit == Limit() else f"limit: {describe_limit(limit)}"),
        Text(size_line(meaning["largest"], limit)),
    ]
    if widest := meaning["widest"]:
        if widest["width_mult"] > meaning["largest"]["width_mult"]:
            parts.append(Text(f"the space ends below the widest that fits, {widest['width_mult']:g}"))
        elif meaning["next"]:
            parts.append(Text(size_line(meaning["next"], limit)))
    if left_out := meaning["left_out"]:
        lines = as_lines([f"{name}: {why}" for name, why in left_out.items()])
        parts.append(Text(f"{len(left_out)} left out because they do not fit:{lines}", style="yellow"))
    exported = ModelSize(**meaning["exported"])
    if not fits(exported, limit):
        parts.append(
            Text(
                f"as [final] has it, that is {exported.params:,} parameters and {exported.macs:,} multiply-adds to "
                "export, over the limit: fewer members or views, limit_each = true, or a lower limit to search under",
                style="yellow",
            )
        )
    parts += [_heading("space"), _space_table(meaning["space"])]
    if meaning["fixed"]:
        parts += [_heading("fixed, where it is not the default"), _pairs_table(meaning["fixed"])]
    if meaning["known"]:
        recipes = [", ".join(f"{key} {_show(value)}" for key, value in recipe.items()) for recipe in meaning["known"]]
        parts += [_heading("known recipes, tried first"), *(Text(f"  {recipe}") for recipe in recipes)]
    return Group(*parts, _heading("estimate"), _estimate_table(meaning))


def _prepare(spec: StudySpec, runs: Runs) -> Prepared:
    """As ``launch.prepare``, but pictures that cannot be used don't hide what is wrong with limit and recipes."""
    try:
        return prepare(spec, runs, Terminal(stderr=True))
    except (DataError, DiskError) as error:
        try:
            find_bounds(spec, _fewest_classes(spec), runs)
        except (LimitError, ConfigError) as other:
            raise type(error)(f"{error}\n{other}") from None
        raise


def _fewest_classes(spec: StudySpec) -> int:
    """A number of classes the data will not go below, so that no problem is made up: 2 where nothing is known."""
    if spec.data.source in BUILT_IN_CLASSES:
        return BUILT_IN_CLASSES[spec.data.source]
    if spec.data.path is None:
        return 2
    try:
        listing = scan_folder(Path(spec.data.path))
    except DataError:
        return 2
    return max(2, len({picture.class_name for picture in listing.pictures if picture.split == "train"}))


def _pictures_per_class(data: Dataset) -> dict[str, dict[str, int]]:
    counts = {split: Counter(data.labels[indices].tolist()) for split, indices in data.splits.items()}
    return {name: {split: counts[split][label] for split in data.splits} for label, name in enumerate(data.class_names)}


def _batch_sizes(train: TrainConfig, axis: BaseDistribution | None) -> list[int]:
    """Every batch size of the space, or both ends of its range."""
    if isinstance(axis, CategoricalDistribution):
        return [int(choice) for choice in axis.choices]  # type: ignore[arg-type]  # StudySpec lets only integers by
    if isinstance(axis, IntDistribution):
        return [axis.low, axis.high]
    return [train.batch_size]


def _axis_values(axis: BaseDistribution) -> dict[str, Any]:
    if isinstance(axis, CategoricalDistribution):
        return {"choices": list(axis.choices)}
    assert isinstance(axis, FloatDistribution | IntDistribution)
    return {"low": axis.low, "high": axis.high, "log": axis.log, "step": axis.step}


def _pictures_table(classes: dict[str, dict[str, int]], splits: dict[str, int]) -> Table:
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


def _space_table(space: dict[str, dict[str, Any]]) -> Table:
    table = _table("", "", right=False)
    for key, axis in space.items():
        if "choices" in axis:
            values = ", ".join(_show(choice) for choice in axis["choices"])
        else:
            steps = f", in steps of {axis['step']:g}" if axis["step"] not in (None, 1) else ""
            values = f"{axis['low']:g} to {axis['high']:g}{', logarithmic' if axis['log'] else ''}{steps}"
        table.add_row(f"  {key}", values)
    return table


def _estimate_table(meaning: dict[str, Any]) -> Table:
    estimate, steps = meaning["estimate"], meaning["steps_per_epoch"]
    workers = f"{estimate['workers']} worker{'s' if estimate['workers'] > 1 else ''}"
    if estimate["workers_per_gpu"] > 1:
        workers += f", {estimate['workers_per_gpu']} on each GPU"
    by_batch = ", ".join(f"{number:,} in batches of {size}" for size, number in steps.items())
    rows = {
        "steps per epoch": by_batch,
        "device": f"{estimate['device']}, {estimate['images_per_second']:,.0f} images/s with the largest "
        f"{estimate['model']}",
        "epoch": f"about {duration(estimate['seconds_per_epoch'])}",
        "trial": f"about {duration(estimate['seconds_per_trial'])} unless it is pruned",
        "search": f"at most about {duration(estimate['seconds_at_most'])} with {workers}; pruning makes it shorter",
        "disk": f"{megabytes(estimate['cache_bytes'])} cache, {megabytes(estimate['checkpoint_bytes'])} checkpoints; "
        f"{megabytes(estimate['free_bytes'])} free",
    }
    return _pairs_table(rows)


def _pairs_table(pairs: dict[str, Any]) -> Table:
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


def _printable(name: str) -> Text:
    return Text(name if name.isprintable() else ascii(name)[1:-1])


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
