"""``search check``: the meaning of a study before its launch (bounds, steps, time, disk), and all of its problems."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import assert_never

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from sqlalchemy import URL

from search.console import Terminal, show_progress
from search.devices import WorkerDevice, use_gpu
from search.paths import Runs
from search.plan.after import after_search
from search.plan.copies import cures_of_copies
from search.plan.data_warnings import never_predicted, warnings_about
from search.plan.extras import check_extras
from search.plan.meaning import Candidates, ChoiceAxis, Estimate, Images, Meaning, RangeAxis
from search.plan.near_duplicates import draw_pairs
from search.plan.prepare import Prepared, check_room, data_size_of, prepare, room_needed
from search.plan.preview import check_figure, draw_images
from search.plan.space import find_bounds, known_recipes
from search.plan.speed import batch_sizes, largest_candidates, measure_speed, teacher_left_out
from search.plan.transfer import recipes_within
from search.plan.width import Fitter, SizedWidth
from search.study.budget import Budget
from search.study.sampling import build_ladder, first_rung
from search.study.transfer import find_transfers
from search.study.trial import step_word
from studies import StudySpec
from studies.final import exported_size
from trainer.config import DataConfig, TrainConfig
from trainer.data import Dataset
from trainer.errors import ConfigError, DataError, DiskError, LimitError
from trainer.near import NearDuplicate, find_near_duplicates
from trainer.scan import scan
from trainer.values import Json


def check_study(
    spec: StudySpec,
    runs: Runs,
    devices: list[WorkerDevice],
    *,
    url: URL | None = None,
    figure: Path | None = None,
    duplicates: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Meaning:
    """Find out what a study means, without the network. Decode its pictures and train a few steps on one device.

    Many parameters: the options of the command.

    Long: most of the function is one value, whose fields are named one by one.

    Args:
        spec: the study.
        runs: the runs folder; its cache is filled.
        devices: the devices of the search, one for each worker.
        url: the database with earlier studies, for their recipes; None: without such recipes.
        figure: PNG for augmented training pictures; None: no such figure is drawn.
        duplicates: PNG for near-duplicates across splits; None: near-duplicates are not searched for.
        say: called with a line about each figure.

    Raises:
        DataError, DiskError: the pictures or the disk cannot be used; the message also has other problems.
        LimitError: no candidate fits the limit.
        ConfigError: the model, a recipe or the device is impossible, or an extra is not installed.
        UsageError, StorageError: a PNG cannot be written, or the database cannot be read.
    """
    for option, file in (("--pictures", figure), ("--duplicates", duplicates)):
        if file is not None:
            check_figure(option, file)
    use_gpu(devices[0])
    from trainer.hrank import convolutions  # imports torch, after ``use_gpu``

    prepared = _prepare(spec, runs)
    data, space, width = prepared.data, prepared.space, prepared.width
    if figure is not None:
        say(draw_images(spec, data, figure))
    fitter = Fitter(data.shape, spec.limit, runs.widths)
    timed = largest_candidates(spec, space, fitter)
    for_checkpoints = room_needed(spec, prepared, len(devices))
    check_room(spec, runs, for_checkpoints)
    speeds = {one.model: measure_speed(one, data, devices[0]) for one in timed}
    candidate = max(timed, key=lambda one: speeds[one.model].seconds_per_epoch)
    largest, speed = fitter.size(candidate), speeds[candidate.model]
    ladder, candidates = build_ladder(spec), candidates_for(spec)
    seconds_per_step = (spec.train.epochs if spec.data.folds else 1) * speed.seconds_per_epoch
    seconds_per_trial = ladder.last_step * seconds_per_step
    alone = len({device.visible or device.label for device in devices})  # workers on one GPU share its speed
    return Meaning(
        study=spec.name,
        model=spec.train.model,
        epochs=spec.train.epochs,
        budget=Budget.of(spec),
        rungs=ladder.describe(step_word(spec), spec.search.reduction_factor),
        limit=spec.limit,
        pictures=_images_of(spec, prepared, runs, _near_duplicates(data, spec.data, duplicates, say), candidate),
        space={key: _axis_of(axis) for key, axis in space.items()},
        largest=SizedWidth.of(candidate.width_mult, largest),
        widest=None if width is None else width.widest,
        next=None if width is None else width.next,
        left_out=prepared.left_out,
        exported=exported_size([largest] * spec.num_members, spec.final)[1],
        views=spec.final.tta,
        convolutions=convolutions(candidate, data.shape),
        rerank=spec.final.rerank,
        fixed=_fixed(spec, space),
        known=tuple(known_recipes(spec, prepared.left_out)),
        transferred=tuple(
            recipes_within(spec, space, find_transfers(spec, data_size_of(data), url), fitter) if url else ()
        ),
        steps_per_epoch=_steps_per_epoch(len(data.splits["train"]), batch_sizes(spec.train, space.get("batch_size"))),
        estimate=Estimate(
            model=candidate.model,
            device=speed.device,
            workers=len(devices),
            workers_per_gpu=len(devices) // alone,
            images_per_second=speed.images_per_second,
            timed={model: one.images_per_second for model, one in speeds.items()},
            seconds_per_epoch=speed.seconds_per_epoch,
            seconds_per_trial=seconds_per_trial,
            candidates=candidates,
            seconds_at_most=math.ceil(candidates.trained_to_the_end / alone) * seconds_per_trial,
            after=after_search(spec, candidates.trained_to_the_end, spec.num_steps * seconds_per_step, alone),
            cache_bytes=sum(file.stat().st_size for file in data.cache_path.iterdir()),
            checkpoint_bytes=for_checkpoints,
            free_bytes=shutil.disk_usage(runs.root).free,
        ),
    )


def candidates_for(spec: StudySpec) -> Candidates:
    """The number of candidates that the budget of a study allows.

    A series of trainings costs the sum of its epochs. No candidate costs less than the epochs up to the first rung. If
    one of ``reduction_factor`` candidates goes on from each rung, a candidate costs on average the epochs up to the
    first rung, 1 / ``reduction_factor`` of the epochs from there to the next rung, and so on.
    """
    budget, ladder, first = Budget.of(spec), build_ladder(spec), first_rung(spec)
    lengths = [end - begin for begin, end in pairwise((0, *ladder.steps))]  # steps from each rung to the next
    usual = sum(length / spec.search.reduction_factor**rung for rung, length in enumerate(lengths))
    most = math.inf if budget.trials is None else budget.trials
    costs = (ladder.last_step, first, usual)
    numbers = (most if budget.trainings is None else budget.trainings * budget.steps / each for each in costs)
    at_least, at_most, about = (math.ceil(min(most, round(number, 6))) for number in numbers)
    return Candidates(
        trained_to_the_end=at_least,
        stopped_at_first_rung=at_most,
        first_rung=first,
        paused_at_rungs=about if ladder.rungs else None,
    )


def _near_duplicates(
    data: Dataset, config: DataConfig, out: Path | None, say: Callable[[str], None]
) -> tuple[NearDuplicate, ...] | None:
    """Find near-duplicates across splits or folds and draw them into ``out``; None if ``out`` is None."""
    if out is None:
        return None
    with show_progress(Terminal(stderr=True)) as progress:
        pairs = find_near_duplicates(data, data.parts(config.folds, config.split_seed), progress)
    if pairs:
        say(draw_pairs(data, pairs, out))
    return tuple(pairs)


def _prepare(spec: StudySpec, runs: Runs) -> Prepared:
    """Like ``prepare``, but if the pictures cannot be used, the error also has the problems of limit and recipes.

    If the number of classes is not known, it has the problems of the model alone.
    """
    check_extras(spec)
    try:
        return prepare(spec, runs, Terminal(stderr=True), download=False)
    except (DataError, DiskError) as error:
        classes = _classes_of(spec)
        try:
            find_bounds(spec if classes else spec.model_copy(update={"known": ()}), classes or 2, runs)
        except (LimitError, ConfigError) as other:
            if classes or isinstance(other, ConfigError):
                raise type(error)(f"{error}\n{other}") from None
        raise


def _classes_of(spec: StudySpec) -> int | None:
    """The number of classes, or a lower bound: a model over the limit with it is over the limit with more classes, too.

    None if nothing is known.
    """
    match spec.data.source:
        case "digits" | "cifar10":
            return 10
        case "cifar100":
            return 100
        case "folder":
            pass
        case _:
            assert_never(spec.data.source)
    if spec.data.path is None:
        return None
    try:
        listing = scan(spec.data)
    except DataError:
        return None
    return max(2, len({picture.class_name for picture in listing.pictures if picture.split == "train"}))


def _fixed(spec: StudySpec, space: Mapping[str, BaseDistribution]) -> dict[str, Json]:
    """The settings of [train] that are neither sampled nor their default."""
    named = spec.train.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in named.items() if key not in {*space, "model", "epochs", "seed"}}


def _images_of(
    spec: StudySpec,
    prepared: Prepared,
    runs: Runs,
    near_duplicates: tuple[NearDuplicate, ...] | None,
    candidate: TrainConfig,
) -> Images:
    data = prepared.data
    unanswered = never_predicted(runs.confusion(spec.name), data.class_names)
    counts = {split: Counter(data.labels[indices].tolist()) for split, indices in data.splits.items()}
    return Images(
        source=spec.data.source,
        path=spec.data.path,
        image_size=spec.data.image_size,
        cache_size=spec.data.cache_size,
        background=spec.data.background,
        splits={split: len(indices) for split, indices in data.splits.items()},
        classes={
            name: {split: counts[split][label] for split in data.splits} for label, name in enumerate(data.class_names)
        },
        bad_files=data.bad_files,
        duplicates=data.duplicates,
        duplicates_cures=tuple(cures_of_copies(data, spec.data)),
        near_duplicates=near_duplicates,
        warnings=(
            *warnings_about(data, spec.data),
            *filter(None, [unanswered, teacher_left_out(candidate)]),
            *prepared.notes,
        ),
    )


def _steps_per_epoch(num_train: int, sizes: list[int]) -> dict[int, int]:
    return {batch_size: num_train // min(batch_size, num_train) for batch_size in sizes}


def _axis_of(axis: BaseDistribution) -> RangeAxis | ChoiceAxis:
    if isinstance(axis, CategoricalDistribution):
        return ChoiceAxis(tuple(axis.choices))
    assert isinstance(axis, FloatDistribution | IntDistribution)
    return RangeAxis(axis.low, axis.high, axis.log, axis.step)
