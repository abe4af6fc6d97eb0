"""The speed of a study's candidates: the largest one of each model is trained for a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.devices import WorkerDevice
from search.plan.survey import own_sizes
from search.plan.width import Fitter
from studies import StudySpec
from trainer.config import TrainConfig
from trainer.data import Dataset

MOST_TIMED = 4
"""Largest number of models of a study that are all timed."""

MEASURED_STEPS = 3
"""Number of training steps that are timed for the estimate, after one warm-up step."""


@dataclass(frozen=True)
class Speed:
    """The speed of a candidate on a device."""

    device: str
    """Name of the device as it is shown."""
    images_per_second: float
    """Training pictures per second, validation excluded."""
    seconds_per_epoch: float
    """Seconds for the whole training and validation splits."""


def largest_candidates(spec: StudySpec, space: Mapping[str, BaseDistribution], fitter: Fitter) -> list[TrainConfig]:
    """The candidates that are timed: the largest one of each model, or of a single model if there are many.

    With more than MOST_TIMED models, it is the model whose largest candidate has the most multiply-adds.
    """
    axis = space.get("model")
    models = (
        [str(choice) for choice in axis.choices] if isinstance(axis, CategoricalDistribution) else [spec.train.model]
    )
    if len(models) > MOST_TIMED:
        counted = own_sizes(spec.train, fitter)

        def macs(model: str) -> int:
            if model in counted:
                return counted[model].macs
            return fitter.size(largest_candidate(spec, space, fitter, model)).macs

        models = [max(models, key=macs)]
    return [largest_candidate(spec, space, fitter, model) for model in models]


def largest_candidate(
    spec: StudySpec, space: Mapping[str, BaseDistribution], fitter: Fitter, model: str
) -> TrainConfig:
    """The widest candidate of a model in the space, with the most augmentation and the smallest batches.

    A setting whose choices are not numbers gets its first choice.
    """
    sampled: dict[str, object] = {}
    for key, axis in space.items():
        if isinstance(axis, CategoricalDistribution):
            numbers = all(isinstance(choice, int | float) for choice in axis.choices)
            sampled[key] = max(axis.choices) if numbers else axis.choices[0]  # type: ignore[type-var]
        elif isinstance(axis, FloatDistribution | IntDistribution):
            sampled[key] = axis.high
    if "batch_size" in space:
        sampled["batch_size"] = min(batch_sizes(spec.train, space["batch_size"]))
    config = spec.config_for(sampled | {"model": model}, spec.seed)
    if not spec.sizes_vary:
        return config
    return fitter.resolve(config, 1.0, *spec.width_range)


def measure_speed(candidate: TrainConfig, data: Dataset, where: WorkerDevice) -> Speed:
    """Train ``candidate`` for a few real steps, validate one real batch, and scale both up to an epoch.

    A teacher that would have to be downloaded is left out.

    Raises:
        ConfigError: the model, its augmentation or its precision is impossible on this device.
    """
    from trainer.device import open_device
    from trainer.evaluate import EVALUATION_BATCH
    from trainer.fit import fit

    train, val = data.splits["train"], data.splits["val"]
    batch_size = min(candidate.batch_size, len(train))
    # With this learning rate, training cannot diverge in so few steps. The time does not depend on the rate.
    quick = candidate.model_copy(update={"epochs": 1, "warmup_epochs": 0.0, "lr": 1e-6})
    quick = quick.model_copy(update={"augment_from_epoch": 1, "augment_share": 1.0})
    if teacher_left_out(candidate) is not None:
        quick = quick.model_copy(update={"distill": None})
    device = open_device(where.kind, where.num_threads)
    for steps, num_val in ((1, 1), (MEASURED_STEPS, EVALUATION_BATCH)):  # the first round warms up
        sample = {"train": train[: steps * batch_size], "val": val[:num_val], "test": val[:0]}
        (result,) = fit(quick, replace(data, splits=sample), device)
    trained = len(sample["train"]) // batch_size * batch_size
    validation_seconds = result.seconds - trained / result.images_per_second
    return Speed(
        device=device.name,
        images_per_second=result.images_per_second,
        seconds_per_epoch=len(train) // batch_size * batch_size / result.images_per_second
        + validation_seconds * len(val) / len(sample["val"]),
    )


def teacher_left_out(candidate: TrainConfig) -> str | None:
    """A warning if the teacher would have to be downloaded; else None."""
    if candidate.distill is None:
        return None
    from trainer.distill import may_download

    if not may_download(candidate.distill):
        return None
    return (
        f"distill.teacher {candidate.distill.teacher} was not loaded, as a check never uses the network: its classes "
        "were not compared, and the time is that of a training without it"
    )


def batch_sizes(train: TrainConfig, axis: BaseDistribution | None) -> list[int]:
    """Every batch size of the space; for a range, its two ends."""
    if isinstance(axis, CategoricalDistribution):
        return [int(choice) for choice in axis.choices]  # type: ignore[arg-type]  # StudySpec accepts only integers
    if isinstance(axis, IntDistribution):
        return [axis.low, axis.high]
    return [train.batch_size]
