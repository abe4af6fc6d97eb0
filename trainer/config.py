"""Frozen values of the recipe; trainer.data_config has those of the pictures. Neither module imports torch."""

from __future__ import annotations

import json
from typing import Literal, Self, TypeAlias, get_args

from pydantic import Field, field_validator, model_validator

from trainer.data_config import Columns, DataConfig
from trainer.results import EpochResult, ModelSize, Shape
from trainer.values import FrozenModel

__all__ = [
    "AUGMENTATIONS",
    "MOST_ROTATIONS",
    "RECIPE_VERSION",
    "SIZE_SETTINGS",
    "Columns",
    "DataConfig",
    "Distill",
    "EpochResult",
    "ModelSize",
    "Optimizer",
    "Sam",
    "Shape",
    "SizeSetting",
    "TrainConfig",
]

RECIPE_VERSION = 2
"""Version of the trainer's recipes. Raised by hand whenever the same configuration would give another result. The
golden losses of the tests show that."""


Optimizer: TypeAlias = Literal["adam", "adamw", "nadam", "sgd", "rmsprop"]

SizeSetting: TypeAlias = Literal["width_mult", "depth_mult", "initial_chs", "final_chs", "growth"]
SIZE_SETTINGS: tuple[SizeSetting, ...] = get_args(SizeSetting)
"""Settings of TrainConfig that change a model's size, in the families that have them (trainer/families.py)."""

AUGMENTATIONS = (
    *("hflip", "vflip", "rotate", "shift", "scale", "crop_padding", "random_crop", "random_resized_crop"),
    *("erase", "brightness", "augment", "mixup", "cutmix"),
)
"""Settings of TrainConfig that each turn an augmentation on. Plain epochs have none of them."""

MOST_ROTATIONS = 4
"""Largest number of rotations that are added up."""


class Sam(FrozenModel):
    """Sharpness-aware minimization (Foret et al., 2021)."""

    rho: float = Field(0.05, gt=0)
    """Distance from the weights to the point at which the gradient is taken."""
    adaptive: bool = False
    """true: ASAM (Kwon et al., 2021), with rho in units of each weight's size; choose rho about ten times larger."""


class Distill(FrozenModel):
    """A teacher: the model learns the teacher's probabilities for the augmented pictures, besides the labels (Hinton et
    al., 2015)."""

    teacher: str
    """Folder of an export of the same classes, or a timm model with its weights, for example "hf-hub:me/birds"."""
    temperature: float = Field(4.0, gt=0)
    """Divisor of both models' logits. Above 1, classes to which the teacher gives a low probability count more."""
    weight: float = Field(0.5, ge=0, le=1)
    """Share of the teacher in the loss; the rest is the share of the labels."""


class TrainConfig(FrozenModel):
    """One candidate: a model and the recipe it is trained with. Everything but the pictures."""

    model: str = "rexnet_100"
    """Name of a timm model, trained from random weights; or wrn-D-K, a wide ResNet of depth D and width K. In [space],
    "timm:*" stands for all timm models that fit the limit, and "timm:*mobile*" for those with a matching name."""
    model_args: dict[str, bool | int | float | str | list[int]] = Field({})
    """Further keyword arguments for timm.create_model, for example { act_layer = "relu" }."""
    width_mult: float = Field(1.0, gt=0, le=10)
    """Factor on the model's channels. Families: rexnet_100, rexnetr_100, resnet*, efficientnet_b0, mobilenetv3_*_100,
    wrn-*."""
    depth_mult: float = Field(1.0, gt=0, le=10)
    """Factor on the layers of each stage. The number of layers is rounded, so search it as a list of choices. Families:
    rexnet_100, rexnetr_100, efficientnet_b0."""
    initial_chs: int = Field(16, ge=1)
    """Channels of ReXNet's first block, times width_mult if that is above 1. Families: rexnet_100, rexnetr_100."""
    final_chs: int = Field(180, ge=1)
    """Each of ReXNet's n blocks has final_chs / n channels more than the one before it, before width_mult. Families:
    rexnet_100, rexnetr_100."""
    growth: float = Field(2.0, ge=1, le=4)
    """Factor on the channels from one stage of a ResNet to the next. Families: resnet*."""
    stem: Literal["timm", "cifar"] = "timm"
    """First layers of a ResNet. timm: timm's own, which divide the picture's sides by four. cifar: one 3x3 convolution
    of stride 1 and no pooling, for small pictures (He et al., 2015, section 4.2). Stock timm's create_model has no
    argument for cifar. Only for resnet*."""
    require_timm: bool = False
    """true: models that stock timm's create_model cannot build are refused. These are all models of wrn-*; models with
    stem = "cifar"; and, unless width_mult and depth_mult are 1, those of efficientnet_b0, mobilenetv3_*_100."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Drop rate before the classifier (timm's drop_rate); in wrn-*, between the two convolutions of each block."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Drop rate of whole residual branches, rising with depth (timm's drop_path_rate; drop connect)."""

    epochs: int = Field(50, ge=1)
    """Passes over the training split."""
    batch_size: int = Field(128, ge=2)
    """Pictures per optimizer step, or the whole training split if it is smaller. The incomplete last batch of an epoch
    is left out. Its pictures differ from epoch to epoch, because each epoch has a new order."""
    optimizer: Optimizer = "adamw"
    """Optimizer, by timm's name; sgd has Nesterov momentum."""
    sam: Sam | None = None
    """Sharpness-aware minimization, for example { rho = 0.05 }. Each step then takes two passes."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd and rmsprop; beta 1 of adam, adamw and nadam."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled in adamw, added to the gradient in the others. Never applied to biases and normalisation (timm)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability mass spread evenly over all classes (Szegedy et al., 2016)."""
    loss: Literal["cross_entropy", "asymmetric", "focal"] = "cross_entropy"
    """Cross-entropy; timm's asymmetric loss for a single label, with gammas 1 and 4 (Ridnik et al., 2021); or the focal
    loss (Lin et al., 2017), in which pictures that are classified well count for less."""
    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of the focal loss. With 0 it equals the cross-entropy."""
    class_weights: Literal["none", "inverse", "effective"] = "none"
    """Weight of a picture in the loss, by the number n of training pictures of its class. inverse: 1/n. effective: the
    inverse of the effective number of pictures, (1 - b) / (1 - b^n) with b = 0.999 (Cui et al., 2019). The mean weight
    of the training pictures is 1."""
    class_sampling: Literal["natural", "balanced"] = "natural"
    """Pictures of an epoch. natural: each picture once. balanced: the same number for each class (Kang et al., 2020):
    pictures of small classes are repeated, and some pictures of large classes are left out, different ones in each
    epoch. The number of steps is the same."""
    logit_adjustment: float = Field(0.0, ge=0)
    """Factor tau of the logit adjustment (Menon et al., 2021): in the loss, tau times the logarithm of each class's
    share of the training pictures is added to its logit, so that small classes need larger logits. 1 aims at balanced
    accuracy. 0: off."""
    distill: Distill | None = None
    """A teacher, for example { teacher = "runs/exports/big-7", temperature = 4.0, weight = 0.5 }."""
    clip: float = Field(0.0, ge=0)
    """Largest norm of the gradient of all parameters together; 0: no clipping."""
    agc: float = Field(0.0, ge=0)
    """Adaptive gradient clipping (Brock et al., 2021): largest ratio of the norm of a unit's gradient to that of its
    weights. The classifier is not clipped. 0: none."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights. The average is evaluated and exported instead of
    the weights. In the first steps the decay is (1 + step) / (10 + step) if that is smaller. 0: no average."""
    patience: int | None = Field(None, ge=1)
    """A training ends after this many epochs without a better validation accuracy, whatever search.objective is.
    Default: it never ends early."""

    schedule: Literal["constant", "cosine", "step", "milestones", "warm_restarts", "plateau"] = "cosine"
    """Learning rate after the warm-up. constant: it stays. cosine: half a cosine, down to lr_min_ratio. step: it is
    multiplied by step_gamma every step_epochs. milestones: it is multiplied by step_gamma at each of the milestones.
    plateau: it is multiplied by step_gamma after plateau_patience epochs without a lower validation loss.
    warm_restarts: cosine cycles, each with its own warm-up. The first cycle takes step_epochs. Each further one is
    cycle_mult times as long as the one before, and its peak is multiplied by step_gamma."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs in which the learning rate rises linearly from 0 to lr, a little with every batch."""
    lr_min_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end of a cosine, as a share of its peak."""
    step_epochs: int = Field(10, ge=1)
    """step: epochs between two steps. warm_restarts: epochs of the first cycle."""
    step_gamma: float = Field(0.1, gt=0, le=1)
    """Factor on the learning rate at each step; in warm_restarts, on the peak of each further cycle."""
    milestones: tuple[float, ...] = ()
    """Points at which the milestones schedule steps, as shares of the epochs, for example [0.3, 0.5, 0.7, 0.9]."""
    cycle_mult: int = Field(2, ge=1)
    """Length of each cycle of warm_restarts as a multiple of the one before."""
    plateau_patience: int = Field(5, ge=1)
    """Epochs without a lower validation loss before the plateau schedule steps."""

    hflip: float = Field(0.0, ge=0, le=1)
    """Probability of a left-right flip."""
    vflip: float = Field(0.0, ge=0, le=1)
    """Probability of a top-bottom flip."""
    rotate: float | tuple[float, ...] = 0.0
    """Largest rotation in degrees, 0 to 180, either way, drawn uniformly. Uncovered corners are black; with
    data.cache_size, they show the part of the cached picture around the crop. A list, for example [15, 25], has the
    largest angle of each of up to four rotations, which are added up."""
    rotations: int = Field(1, ge=1, le=MOST_ROTATIONS)
    """Number of rotations that are added up, each of at most ``rotate``. Above 1, ``rotate`` must not be a list. The
    sum of two rotations is more often near 0 than a single one."""
    shift: float = Field(0.0, ge=0, lt=1)
    """Largest shift along each axis, as a share of the picture. Uncovered parts are filled as with rotate."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Largest zoom, in or out, as a share: 0.1 draws a factor from 0.9 to 1.1. Uncovered parts are filled as with
    rotate."""
    crop_padding: int = Field(0, ge=0)
    """Width in pixels of a border that is added before a random crop of the picture's old size. It is filled as with
    rotate."""
    random_crop: float = Field(0.0, ge=0, le=1)
    """Largest distance of a random crop of image_size from the centre of the cached picture, as a share of the room
    that data.cache_size leaves. 1: each place is equally likely. 0: the centre."""
    random_resized_crop: float = Field(0.0, ge=0, le=1)
    """Smallest share of the cached picture's area that a random crop covers. The crop has an aspect ratio from 3:4 to
    4:3 and is resized to image_size (torchvision's RandomResizedCrop), without antialiasing: data.cache_size should be
    at most twice image_size. For example 0.35. 0: no such crop."""
    erase: float = Field(0.0, ge=0, le=1)
    """Probability of erasing a rectangle of 2 to 33 % of the picture with the mean colour (Zhong et al., 2017)."""
    brightness: float = Field(0.0, ge=0, lt=1)
    """Largest change of brightness, contrast and saturation, as a share: 0.2 draws each factor from 0.8 to 1.2."""
    augment: tuple[str | dict[str, object], ...] = ()
    """Further transforms, applied first, on the CPU: any of albumentations by its name, or torchvision's AutoAugment,
    RandAugment, TrivialAugmentWide and AugMix. A transform with arguments is a table. For example
    ["AutoAugment", { name = "FancyPCA", alpha = 0.1, p = 0.5 }]."""
    mixup: float = Field(0.0, ge=0, le=1)
    """Share of the batches in which each picture is blended with another one of the batch (Zhang et al., 2017)."""
    cutmix: float = Field(0.0, ge=0, le=1)
    """Share of the batches in which each picture gets a rectangle of another one of the batch (Yun et al., 2019)."""
    mix_alpha: float = Field(1.0, gt=0)
    """Both parameters of the Beta distribution from which mixup and cutmix draw the other picture's share."""
    augment_from_epoch: int = Field(1, ge=1)
    """First epoch with augmentation; earlier epochs use the plain pictures."""
    augment_share: float = Field(1.0, ge=0, le=1)
    """Share of the epochs with augmentation, spread evenly over the training; the others use the plain pictures. With
    0.5, the epochs 2, 4, 6 and so on are augmented."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 autocast on GPUs that have it, fp32 elsewhere. bf16: refused on other devices. fp16: autocast with
    loss scaling, for GPUs without bf16; refused on a CPU, and with sam. In fp16, each step of nadam and rmsprop waits
    for the GPU once."""
    cuda_graph: bool = False
    """true: on a GPU, training steps are replays of a CUDA graph, for which the host needs a tenth of the time. The
    first replay is compared with the same step taken kernel by kernel. If any bit differs, the training goes on kernel
    by kernel, and the log says so. No effect on a CPU, with fp16, nadam or rmsprop, or on batches that were divided
    because memory ran out. Not yet measured on a real GPU."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights, the order, the augmentation and the dropout."""

    def is_augmented(self, epoch: int) -> bool:
        """Whether an epoch (from 1) uses augmented pictures."""
        begun, before = (int(round(number * self.augment_share, 9)) for number in (epoch, epoch - 1))
        return epoch >= self.augment_from_epoch and begun > before

    @property
    def angles(self) -> tuple[float, ...]:
        """The largest angle in degrees of each rotation; the rotations are added up."""
        return self.rotate if isinstance(self.rotate, tuple) else (self.rotate,) * self.rotations

    @field_validator("rotate", mode="before")
    @classmethod
    def _angles_are_degrees(cls, rotate: object) -> object:
        angles = list(rotate) if isinstance(rotate, list | tuple) else [rotate]
        if not 1 <= len(angles) <= MOST_ROTATIONS:
            raise ValueError(f"{angles}: list 1 to {MOST_ROTATIONS} angles")
        for angle in angles:
            if not (isinstance(angle, int | float) and 0 <= angle <= 180):
                raise ValueError(f"{angle!r} is not an angle; write degrees from 0 to 180, or a list such as [15, 25]")
        return rotate

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        # If a rule combines settings that can be sampled, add them to studies.axes.TOGETHER, for search spaces.
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs:g} must be less than epochs = {self.epochs}")
        for transform in self.augment:
            if isinstance(transform, dict) and not isinstance(transform.get("name"), str):
                raise ValueError(f'augment: {transform} needs a name, as in {{ name = "FancyPCA" }}')
        if self.augment_share < 1 and self.augment_from_epoch > 1:
            raise ValueError(
                f"augment_share = {self.augment_share:g} spreads the plain epochs over the training, and "
                f"augment_from_epoch = {self.augment_from_epoch} puts them first; leave one of them out"
            )
        if isinstance(self.rotate, tuple) and self.rotations != 1:
            raise ValueError(
                f"rotate = {list(self.rotate)} lists every rotation, and rotations = {self.rotations} repeats one; "
                "leave rotations out"
            )
        if self.mixup + self.cutmix > 1:
            raise ValueError(
                f"mixup = {self.mixup:g} and cutmix = {self.cutmix:g} are shares of batches; at most 1 together"
            )
        if self.random_crop and self.random_resized_crop:
            raise ValueError(
                f"random_crop = {self.random_crop:g} and random_resized_crop = {self.random_resized_crop:g} both cut "
                "the picture; leave one of them out"
            )
        corrections = [
            f"{name} = {json.dumps(value)}"
            for name, value in (
                ("class_weights", self.class_weights),
                ("class_sampling", self.class_sampling),
                ("logit_adjustment", self.logit_adjustment),
            )
            if value != type(self).model_fields[name].default
        ]
        if len(corrections) > 1:
            raise ValueError(f"{' and '.join(corrections)} correct the same imbalance more than once; keep one of them")
        if self.precision == "fp16" and self.sam is not None:
            raise ValueError(
                'precision = "fp16" does not go with sam: sam would move the weights by an overflow; use "auto"'
            )
        if self.schedule == "milestones" and not self.milestones:
            raise ValueError('schedule = "milestones" needs milestones, for example [0.3, 0.5, 0.7, 0.9]')
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones = {list(self.milestones)}: write shares of the epochs, between 0 and 1")
        if self.schedule == "warm_restarts" and self.warmup_epochs >= self.step_epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs:g} must be less than a cycle, step_epochs = {self.step_epochs}"
            )
        return self
