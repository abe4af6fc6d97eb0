"""Preparation of a study before any training: pictures, exact bounds of the space, room for checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from search.console import show_progress
from search.paths import Runs
from search.plan.space import Bounds, find_bounds, smallest_candidate
from search.study.transfer import DataSize
from search.words import megabytes
from studies import StudySpec
from studies.axes import TIMM, values_of
from trainer.begun import prepare_as_begun
from trainer.config import AUGMENTATIONS, Distill, Shape, TrainConfig
from trainer.data import Dataset
from trainer.errors import ConfigError, DiskError
from trainer.sums import background_of_teacher, check_teacher

AUGMENTED = 16
"""Number of pictures on which ``augment`` is tried: most transforms apply to half of the pictures."""

CHECKPOINT_BYTES_PER_PARAMETER = 12
"""Bytes of the fp32 weights and of AdamW's two moments. An average of the weights needs 4 bytes more."""


@dataclass(frozen=True, kw_only=True)
class Prepared(Bounds):
    """A prepared study: its pictures, and its space."""

    data: Dataset
    notes: tuple[str, ...] = ()
    """Sentences about settings that have no effect, transforms of ``augment``, teachers, and surveys of models."""

    @property
    def num_classes(self) -> int:
        """Number of outputs of the classifier."""
        return len(self.data.class_names)


def prepare(
    spec: StudySpec,
    runs: Runs,
    console: Console,
    raise_if_stopped: Callable[[], None] = lambda: None,
    *,
    download: bool = True,
    begun: str | None = None,
) -> Prepared:
    """Read the pictures and find the exact bounds of the space. ``raise_if_stopped`` is called regularly.

    With ``download`` off, the network is not used. ``begun`` is the content hash of the study's pictures, if the study
    has begun.

    Raises:
        DataError, DiskError: the pictures cannot be used.
        LimitError: no candidate fits.
        ConfigError: the model, a recipe, a transform of ``augment`` or the layer of [final.rerank] is impossible, or
            the teacher has changed since its proof.
    """
    if spec.train.distill is not None:
        check_teacher(spec.train.distill.teacher)
    with show_progress(console, raise_if_stopped) as progress:
        data = prepare_as_begun(spec.data, runs.cache, begun, progress=progress, download=download)
    notes = (*_check_augment(spec, data), *_about_plain_epochs(spec), *_about_teachers(spec), *_about_survey(spec))
    with show_progress(console, raise_if_stopped) as progress:
        bounds = find_bounds(spec, len(data.class_names), runs, progress)
    _check_rerank(spec, data.shape, bounds)
    return Prepared(data=data, notes=notes, **vars(bounds))


def _about_plain_epochs(spec: StudySpec) -> Iterator[str]:
    """A note for each setting that chooses the augmented epochs, if no epoch is augmented.

    Such a study is not refused, because studies of earlier versions may be so.
    """
    if any(any(values_of(key, spec.train, spec.space)) for key in AUGMENTATIONS):
        first, epochs = spec.train.augment_from_epoch, spec.train.epochs
        if "augment_from_epoch" not in spec.space and first > epochs:
            yield f"no epoch is augmented: augment_from_epoch = {first} is after the last epoch, {epochs}; lower it"
        return
    for key in ("augment_from_epoch", "augment_share"):
        if key in spec.space:
            yield f"space.{key} has no effect, because the study has no augmentation; add one, such as hflip"
        elif (value := getattr(spec.train, key)) != TrainConfig.model_fields[key].default:
            yield f"{key} = {value:g} has no effect, because the study has no augmentation; add one, such as hflip"


def _about_teachers(spec: StudySpec) -> Iterator[str]:
    """A note for each teacher that was trained on pictures with another background than those of the study, and one if
    the teacher of [final], which only the export opens, cannot be loaded."""
    own = spec.data.background
    if spec.final.distill is not None and (problem := _problem_of(spec.final.distill)):
        yield f"final.{problem}"
    for table, distill in (("train", spec.train.distill), ("final", spec.final.distill)):
        background = None if distill is None else background_of_teacher(distill.teacher)
        if distill is None or background in (None, own):
            continue
        seen, shown = ("without", "with") if own == "keep" else ("with", "without")
        yield (
            f"{table}.distill.teacher {distill.teacher} was trained on pictures {seen} their background and would see "
            f'pictures {shown} it; use another teacher, or data.background = "{background}"'
        )


def _problem_of(teacher: Distill) -> str | None:
    """Why a teacher cannot be loaded, as far as its name and its files' checksums tell; None if it can be."""
    from trainer.distill import may_download  # imports torch and timm, 5 s, and few studies need it

    try:
        check_teacher(teacher.teacher)
        may_download(teacher)
    except ConfigError as error:
        return str(error)
    return None


def _about_survey(spec: StudySpec) -> list[str]:
    """Advice for a study that compares all models of timm."""
    patterns = [str(one) for one in values_of("model", spec.train, spec.space) if str(one).startswith(TIMM)]
    if not patterns or spec.search.sampler == "random":
        return []
    return [
        f'model = "{patterns[0]}" is a survey: with so many models, sampler = "random" in [search] tries more of them '
        f"than {spec.search.sampler}, which returns to those that it has tried"
    ]


def _check_rerank(spec: StudySpec, shape: Shape, bounds: Bounds) -> None:
    """Check that every model of the space has the convolution that [final.rerank] names.

    Raises:
        ConfigError: a model has no convolution of this name.
    """
    if spec.final.rerank is None:
        return
    from trainer.hrank import check_layer  # imports torch

    for model in getattr(bounds.space.get("model"), "choices", [spec.train.model]):
        check_layer(smallest_candidate(spec, model), shape, spec.final.rerank.layer)


def _check_augment(spec: StudySpec, data: Dataset) -> tuple[str, ...]:
    """Build the transforms that a study names in ``augment``, and apply them to some of its pictures.

    Returns:
        A sentence for each warning of the transforms' library, and for each transform that changes the size of
        pictures.

    Raises:
        ConfigError: a transform does not exist, or refuses its arguments or these pictures.
    """
    if not spec.train.augment:
        return ()
    from trainer.transforms import HostAugmentation  # imports torch and OpenCV, 4 s, and few studies need it

    try:
        tried = np.asarray(data.images[data.splits["train"][:AUGMENTED]])
        return tuple(HostAugmentation(spec.train).notes(tried, spec.seed))
    except ConfigError:
        raise
    except Exception as error:  # transforms raise errors of their own
        raise ConfigError(f"augment: a transform fails on the pictures of this study: {error}") from error


def checkpoint_bytes(params: int, workers: int, *, averaged: bool = False, folds: int = 0) -> int:
    """Bytes of disk for checkpoints: a running trial has two for each fold, and writes the next one beside them.

    Args:
        params: number of parameters of the largest candidate.
        workers: number of trials that run at the same time.
        averaged: whether candidates keep an average of their weights.
        folds: number of folds; 0 for one validation split.
    """
    return (2 * max(1, folds) + 1) * workers * (CHECKPOINT_BYTES_PER_PARAMETER + 4 * averaged) * params


def room_needed(spec: StudySpec, bounds: Bounds, workers: int) -> int:
    """Bytes of disk for the checkpoints of this number of workers, including those already written."""
    averaged = spec.train.ema > 0 or "ema" in spec.space
    return checkpoint_bytes(bounds.most_params, workers, averaged=averaged, folds=spec.data.folds)


def check_room(spec: StudySpec, runs: Runs, needed: int) -> None:
    """Check that the disk has room for ``needed`` bytes of checkpoints, see ``room_needed``.

    Raises:
        DiskError: there is too little room.
    """
    free, needed = shutil.disk_usage(runs.root).free, runs.still_needed(spec.name, needed, spec.data.folds)
    if free < needed:
        raise DiskError(
            f"checkpoints need {megabytes(needed)} in {runs.root}, {megabytes(free)} are free; free some or use --runs"
        )


def data_size_of(data: Dataset) -> DataSize:
    """The size of a study's data. By it, the nearest earlier studies are found."""
    return DataSize(classes=len(data.class_names), image_size=data.shape.image_size, pictures=len(data.splits["train"]))


def num_judging_pictures(data: Dataset, folds: int) -> int:
    """Number of pictures on which a candidate is measured: those of the validation split, or of all folds."""
    return len(data.splits["val"]) + (len(data.splits["train"]) if folds else 0)


def images_of(prepared: Prepared) -> str:
    """The number of pictures of each split, in words."""
    return ", ".join(f"{len(indices):,} {split}" for split, indices in prepared.data.splits.items() if len(indices))


def models_of(spec: StudySpec, prepared: Prepared) -> list[str]:
    """The models that the study searches."""
    return list(getattr(prepared.space.get("model"), "choices", [spec.train.model]))
