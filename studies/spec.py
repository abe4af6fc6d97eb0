"""StudySpec: a study file, validated.

Every field has a docstring with its unit, and with its default where the code alone does not show it: here, in axes.py,
limit.py, final.py, notify.py and cluster.py, and for [train] and [data] in trainer/config.py and data_config.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from studies.axes import (
    WIDTH_SHARE,
    Axis,
    Range,
    Value,
    assign,
    axis_problems,
    corner_problems,
    numbers_of,
    recipe_problems,
    sizes_vary,
    values_of,
)
from studies.cluster import Cluster
from studies.final import Final, Selection, view_problem
from studies.limit import Limit
from studies.notify import Notify, Track
from studies.objective import Objective
from trainer.config import SIZE_SETTINGS, DataConfig, TrainConfig
from trainer.values import FrozenModel, validate

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Valid names of studies. They become names of folders, so a path is not valid."""


def _read_recipes(known: object) -> object:
    if isinstance(known, dict):
        raise ValueError("is one table, but must be a list of tables; write [[known]] above each recipe")
    return known


class Search(FrozenModel):
    """Sampler, pruner and budget. May be changed between two launches of a study, with two exceptions. ``objective``
    may not be changed once a trial has a value. A change of the rungs (``pruner``, ``min_epochs``,
    ``reduction_factor``) is refused if trials are paused, or were trained up to a rung with a schedule of its own."""

    trainings: float | None = Field(30, gt=0)
    """Budget: compute, in full trainings. Every epoch (or fold) of every trial counts: 10 epochs of 30 are a third.
    Default: no limit if ``trials`` is set, else 30."""
    trials: int | None = Field(None, ge=1)
    """Budget: number of trials that begin, however they end. If the study file is corrected, trials that failed before
    their first epoch no longer count. Default: no limit."""
    hours: float | None = Field(None, gt=0)
    """Budget: hours after which a launch neither begins nor promotes a trial; with `search launch --export`, hours from
    the first launch to the end of the export. Default: no limit."""
    objective: Objective = "accuracy"
    """The value on the validation split by which candidates are compared, confirmed and chosen. accuracy: the share of
    correct predictions. macro_f1: the mean F1 over the classes that have pictures or are predicted, as in scikit-learn.
    balanced_accuracy: the mean recall over the classes that have pictures. loss: the mean cross-entropy, which is
    stored negated, so that higher is better. May not be changed once a trial has a value."""
    sampler: Literal["model", "tpe", "random", "gp"] = "model"
    """model: a Gaussian process that learns from all candidates except failed ones; it estimates the final value of
    unfinished ones. The others are Optuna's. tpe: a tree-structured Parzen estimator. random: uniform draws. gp: a
    Gaussian process that learns from completed candidates only; it is slow with more than 200 trials."""
    startup_trials: int = Field(10, ge=1)
    """Number of trials before the sampler uses what it has learned. tpe, gp: these trials are random. model: they are
    spread evenly over the space; a trial counts once it has reached a rung or the end, or has diverged. The pruner
    median prunes nothing before this number of trials is complete."""
    pruner: Literal["promote", "successive_halving", "hyperband", "median", "none"] = "promote"
    """promote: candidates are compared at rungs; those that do not go on are paused, and may be promoted later. The
    others are Optuna's: they are asked after every epoch except the last, and a pruned trial has ended."""
    min_epochs: int | None = Field(None, ge=1)
    """Epochs (or folds) before a trial can be paused or pruned. This is the first rung. The pruner median can prune one
    epoch before it, if min_epochs is 2 or more. Default with promote: the epochs divided by reduction_factor^2 (a ninth
    with factor 3). If all schedules of the study are cosine or milestones and that is less than two epochs, it is the
    epochs divided by reduction_factor (a third). If the study has any other schedule, it is at least one epoch more
    than the warm-up. With folds, it is the folds divided by reduction_factor^2, and at least 1. Default with the other
    pruners: 1."""
    reduction_factor: int = Field(3, ge=2)
    """Factor of promote, successive_halving and hyperband, which compare trials at rungs. With 3, each rung has three
    times the epochs of the rung before it, and one of three trials goes on from a rung."""
    transfer: int = Field(0, ge=0)
    """Largest number of recipes that are taken from earlier studies and tried after the known recipes. Only studies of
    the same person count, and of them only recipes whose model is of a family that this study trains."""
    workers_per_gpu: int = Field(1, ge=1, le=16)
    """Workers on each GPU, each with its own trial. Useful if one small model does not keep the GPU busy. No effect on
    a CPU: there, ``--gpus cpu:2`` sets two workers."""

    @model_validator(mode="before")
    @classmethod
    def _of_two_budgets_the_unnamed_is_none(cls, values: object) -> object:
        if isinstance(values, Mapping) and not {"trainings", "trials"}.isdisjoint(values):
            return {"trainings": None, "trials": None} | dict(values)
        return values

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if self.trainings is None and self.trials is None:
            raise ValueError("no budget: name trainings, or trials, or both")
        return self


class Faults(FrozenModel):
    """Retries, time-outs and quota. May be changed between two launches of a study."""

    retries: int = Field(2, ge=0)
    """Retries of a trial after a crash, a hang or a kill; then it fails. Each finished epoch resets the count. CUDA
    errors, lost workers and lack of memory do not count here. A worker that fails to start more than ``retries`` times
    is put aside."""
    hang_factor: float = Field(10, gt=1)
    """A worker is killed if an epoch (or fold) takes this many times as long as the slowest one of its trial. The trial
    goes on in a new process."""
    hang_seconds: float = Field(120, gt=0)
    """A worker whose trial has a result is not killed before it has been this many seconds without a further one,
    however short its epochs are. Until the first result, ``first_epoch_seconds`` counts instead."""
    first_epoch_seconds: float = Field(3600, gt=0)
    """Seconds after which a worker is killed while it starts, or if its trial has no result yet. In a study with folds,
    the first result may take this time for each epoch of the fold. If ``hang_factor`` times the slowest epoch (or fold)
    of the search is longer, that time counts for the first result."""
    grace_seconds: float = Field(20, ge=0)
    """Seconds that workers have to finish their epoch after SIGTERM; after that, the epoch is lost. (By default, Slurm
    kills after 30 s.)"""
    storage_minutes: float = Field(60, ge=0)
    """Minutes that a search goes on without its database before it stops; results wait in order. An export finishes its
    trainings without the database, and then waits for this time."""
    checkpoint_gb: float = Field(20, gt=0)
    """Quota in GB (1e9 bytes) for a study's checkpoints. Over the quota, a search deletes checkpoints of earlier
    exports, and of other studies of the same name (deleted ones, or those of another database), the oldest first. Then
    it deletes those of its own paused trials, which begin anew if they are promoted. An export deletes none of its own
    checkpoints before it has ended. Exported folders are never deleted."""


class Confirm(FrozenModel):
    """The best trials are trained again before one of them is exported. May be changed at any time.

    The default is a race. The best three trials are trained with one fresh seed, and then the better two of them with
    a second one. If the search has spent 30 full trainings or more, the best four are trained with one fresh seed, and
    then the better two with two more. A study file that names ``top`` or ``seeds`` has no race: each of the ``top``
    best trials is trained with ``seeds`` fresh seeds.
    """

    top: int | None = Field(None, ge=0)
    """Number of the best trials to train again. 0: none is, and the best trial of the search is exported. Default: a
    race, or 5 if ``seeds`` is named."""
    seeds: int | None = Field(None, ge=1)
    """Number of fresh seeds for each of these trials. With one, only equal results are a tie. Default: a race, or 3 if
    ``top`` is named."""
    report_seeds: int | None = Field(None, ge=0)
    """Number of further fresh seeds of the winner. They have no part in the choice, and only they measure the winner.
    0: the reported mean is over the seeds of the choice, so it is somewhat too high. Default: 2 after a race, 0 if
    ``top`` or ``seeds`` is named."""

    @property
    def is_race(self) -> bool:
        """Whether the rounds are those of a race."""
        return self.top is None and self.seeds is None

    @property
    def is_off(self) -> bool:
        """Whether no trial is trained again before the export."""
        return self.top == 0


class StudySpec(FrozenModel):
    """A study: data, limit, fixed recipe, space, budget, confirmation and export."""

    name: str
    """Name of the study in the database and of its folder. Default: the study file's name."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler. With the trial's number, it also gives the seed of each training."""
    data: DataConfig = DataConfig()
    """The pictures."""
    limit: Limit = Limit()
    """The largest size that a candidate may have."""
    train: TrainConfig = TrainConfig()
    """The fixed recipe, which all candidates share."""
    space: dict[str, Axis]
    """The settings of [train] that are searched. Each has a range { low, high, log, step } or a list of choices."""
    known: Annotated[tuple[dict[str, Value], ...], BeforeValidator(_read_recipes)] = ()
    """Recipes to try first: each [[known]] is a table of settings from the space. Missing settings are sampled."""
    search: Search = Search()
    """Sampler, pruner and budget."""
    faults: Faults = Faults()
    """Retries, time-outs and quota."""
    notify: Notify = Notify()
    """Messages about the search."""
    cluster: Cluster = Cluster()
    """Workers on a cluster."""
    track: Track = Track()
    """Records for other programs."""
    confirm: Confirm = Confirm()
    """How the best trials are confirmed before an export."""
    final: Final = Final()
    """How the confirmed best is retrained and exported."""

    @field_validator("name")
    @classmethod
    def _name_is_no_path(cls, name: str) -> str:
        if not STUDY_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name a study; use 1 to 64 letters, digits, '.', '_' or '-'; rename the file, or give "
                "--set name=NEW"
            )
        return name

    # Each table has a check of its own, against the tables above it. So a mistake in one table hides few in others.
    @field_validator("train")
    @classmethod
    def _crops_have_room(cls, train: TrainConfig, info: ValidationInfo) -> TrainConfig:
        if "data" in info.data and (problem := info.data["data"].crop_problem(train.random_crop)):
            raise ValueError(problem)
        return train

    @field_validator("space")
    @classmethod
    def _space_can_be_sampled(cls, space: dict[str, Axis], info: ValidationInfo) -> dict[str, Axis]:
        if not space:
            raise ValueError("is empty; name at least one setting to sample, for example lr")
        train, limited, shared = info.data.get("train"), info.data.get("limit") != Limit(), sizes_vary(space)
        found: list[tuple[tuple[str, ...], str]] = [
            ((key,), text)
            for key, axis in space.items()
            for text in axis_problems(key, axis, train, limited=limited, width_is_shared=shared)
        ]
        found += corner_problems(space, train, info.data.get("data")) if train is not None else ()
        if found:
            raise _problems(found)
        return space

    @field_validator("known")
    @classmethod
    def _known_are_in_the_space(
        cls, known: tuple[dict[str, Value], ...], info: ValidationInfo
    ) -> tuple[dict[str, Value], ...]:
        space, train = info.data.get("space"), info.data.get("train")
        if space is None:  # its problems are reported already
            return known
        found = [
            ((number, key), text)
            for number, recipe in enumerate(known)
            for key, value in recipe.items()
            for text in recipe_problems(key, value, space, train)
        ]
        if found:
            raise _problems(found)
        return known

    @field_validator("search")
    @classmethod
    def _pruner_has_room(cls, search: Search, info: ValidationInfo) -> Search:
        train, data = info.data.get("train"), info.data.get("data")
        folds = data.folds if data is not None else 0
        if train is not None and (search.min_epochs or 1) > (folds or train.epochs):
            name, steps = ("data.folds", folds) if folds else ("train.epochs", train.epochs)
            text = f"{search.min_epochs} exceeds {name} = {steps}; lower min_epochs, or raise {name}"
            raise _problems([(("min_epochs",), text)])
        return search

    @field_validator("final")
    @classmethod
    def _final_can_be_trained(cls, final: Final, info: ValidationInfo) -> Final:
        train: TrainConfig | None = info.data.get("train")
        if "data" in info.data and (problem := view_problem(final, info.data["data"])) is not None:
            raise _problems([(("tta",), problem)])
        if train is None:
            return final
        if final.ensemble == "folds" and "data" in info.data and not info.data["data"].folds:
            raise _problems([(("ensemble",), '"folds" needs data.folds, for example data.folds = 5; it is 0')])
        space = info.data.get("space") or {}
        longest = max(numbers_of("warmup_epochs", train, space))
        if final.epochs is not None and final.epochs <= longest:
            table = "space" if "warmup_epochs" in space else "train"
            text = f"{final.epochs} must be more than {table}.warmup_epochs = {longest:g}"
            raise _problems([(("epochs",), text)])
        if final.fits_on_validation and "plateau" in values_of("schedule", train, space):
            text = '"train+val" leaves no validation loss for the schedule "plateau"; use fit_on = "train", or search '
            text += "without this schedule"
            raise _problems([(("fit_on",), text)])
        return final

    @property
    def num_steps(self) -> int:
        """Number of results that a trial reports: epochs, or folds."""
        return self.data.folds or self.train.epochs

    @property
    def num_members(self) -> int:
        """Number of models in an export of one trial."""
        ensemble = self.final.ensemble
        if ensemble == "folds":
            return self.data.folds
        return ensemble.keep if isinstance(ensemble, Selection) else ensemble

    @property
    def num_final_trainings(self) -> int:
        """Number of final trainings for an export of one trial. With "folds", one training makes all of its models."""
        ensemble = self.final.ensemble
        return 1 if ensemble == "folds" else ensemble.of if isinstance(ensemble, Selection) else ensemble

    @property
    def sizes_vary(self) -> bool:
        """Whether sampled settings other than the width change the size."""
        return sizes_vary(self.space)

    @property
    def shares_width(self) -> bool:
        """Whether a share of the feasible widths is sampled, because other sampled settings change the size too."""
        return self.sizes_vary and "width_mult" in self.space

    @property
    def width_range(self) -> tuple[float, float | None]:
        """The narrowest and the widest width of the study, equal if the width is fixed. None: the widest that fits."""
        axis = self.space.get("width_mult")
        return (axis.low, axis.high) if isinstance(axis, Range) else (self.train.width_mult, self.train.width_mult)

    @property
    def decays_as_a_whole(self) -> bool:
        """Whether each schedule that the study may use has lowered the learning rate in full when a training ends, even
        a shortened one."""
        return {"cosine", "milestones"}.issuperset(values_of("schedule", self.train, self.space))

    def values_for(self, sampled: Mapping[str, object], seed: int, epochs: int | None = None) -> dict[str, object]:
        """The settings of a trial, as plain values that are not validated.

        TrainConfig accepts them for each point of the present space. It may refuse
        those of a trial that was sampled before the space was changed.

        Args:
            sampled: the trial's sampled values.
            seed: seed of its training.
            epochs: length of a shorter training. ``warmup_epochs`` and ``augment_from_epoch`` shrink in proportion.
                Default: the study's epochs.
        """
        values: dict[str, object] = self.train.model_dump(mode="json") | {"seed": seed}
        for key, value in sampled.items():
            if key != WIDTH_SHARE:  # search.plan.width finds the width for it
                assign(values, key, value)
        if epochs is not None and epochs != self.train.epochs:
            share = epochs / self.train.epochs
            warmup, first = values["warmup_epochs"], values["augment_from_epoch"]
            assert isinstance(warmup, int | float)
            assert isinstance(first, int)
            values |= {"epochs": epochs, "warmup_epochs": warmup * share}
            values["augment_from_epoch"] = 1 + round((first - 1) * share)
        return values

    def config_for(self, sampled: Mapping[str, object], seed: int) -> TrainConfig:
        """The candidate for a trial's sampled values and seed.

        Raises:
            ConfigError: the values contradict each other.
        """
        return validate(TrainConfig, self.values_for(sampled, seed), "candidate")

    def final_config_for(self, sampled: Mapping[str, object], seed: int) -> TrainConfig:
        """The candidate of ``config_for`` with the changes of [final]."""
        final, config = self.final, self.config_for(sampled, seed)
        changes = {name: getattr(final, name) for name in ("epochs", "ema", "distill")}
        chosen = {name: value for name, value in changes.items() if value is not None}
        if final.fits_on_validation:
            chosen["patience"] = None
        return validate(TrainConfig, config.model_dump() | chosen, "final")

    def finetune_config(self, config: TrainConfig) -> TrainConfig:
        """The config of [final.finetune], the last training. ``config`` is that of the training before it."""
        assert self.final.finetune is not None
        kept = {"batch_size", "weight_decay", "momentum", "label_smoothing", "loss", "clip", "agc", "precision", "seed"}
        kept |= {"focal_gamma", "class_weights", "class_sampling", "logit_adjustment"}
        model = {"model", "model_args", *SIZE_SETTINGS, "stem", "require_timm", "drop_path"}
        values = {name: getattr(config, name) for name in kept | model}
        values |= {"schedule": "constant"} | self.final.finetune.model_dump()
        return TrainConfig.model_validate(values)


def describe_budget(trainings: float | None, trials: int | None) -> str:
    """The budget of a whole study in words: "30 full trainings", "30 full trainings or 60 trials"."""
    parts = [] if trainings is None else [f"{trainings:,g} full training{'' if trainings == 1 else 's'}"]
    parts += [] if trials is None else [f"{trials:,} trial{'' if trials == 1 else 's'}"]
    return " or ".join(parts)


def _problems(found: Sequence[tuple[tuple[int | str, ...], str]]) -> ValidationError:
    """An error with several problems of one field, each as (place in the field, problem)."""
    lines = [InitErrorDetails(type=PydanticCustomError("value_error", text), loc=at, input=None) for at, text in found]
    return ValidationError.from_exception_data("StudySpec", lines)
