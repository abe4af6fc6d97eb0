"""Frozen values: the pictures and the recipe. Without torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal, Self, TypeAlias, get_args

from pydantic import Field, field_validator, model_validator

from trainer.results import EpochResult, ModelSize, Shape
from trainer.values import FrozenModel

__all__ = [
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
    "View",
]

RECIPE_VERSION = 2
"""Version of the trainer's recipes. Raised by hand whenever the same configuration would give another result; the
tests' golden losses show when."""


Optimizer: TypeAlias = Literal["adam", "adamw", "nadam", "sgd", "rmsprop"]
View: TypeAlias = Literal["flip", "vflip"]

SizeSetting: TypeAlias = Literal["width_mult", "depth_mult", "initial_chs", "final_chs", "growth"]
SIZE_SETTINGS: tuple[SizeSetting, ...] = get_args(SizeSetting)
"""Settings of TrainConfig that change a model's size, in the families that have them (trainer/families.py)."""

MOST_ROTATIONS = 4
"""Largest number of rotations that are added up."""


class Columns(FrozenModel):
    """Names of the columns of label tables. Needed only if a name differs from the defaults."""

    file: str | None = None
    """Names or ids of the pictures. Default: id, image, image_id, img_path, file, file_name, filename or path."""
    label: str | None = None
    """Classes. Default: label, class or target."""
    split: str | None = None
    """Splits: train, val, test or other usual names of these. Default: split, if a column of this name has splits."""
    group: str | None = None
    """Groups of pictures that no split may divide, such as patients or videos. Default: group, if there is one."""


class DataConfig(FrozenModel):
    """The pictures, their size, and how they are split."""

    source: Literal["folder", "digits", "cifar10", "cifar100"] = "folder"
    """Where pictures come from: a folder, scikit-learn's built-in digits, or a torchvision data set."""
    path: str | None = None
    """Folder with the pictures: CLASS/* to be split, or train/CLASS/* with val/ and test/ where they exist; splits
    may have their other names too (Training, valid, dev, seg_test, eval-set).
    For cifar10 and cifar100 it may also be torchvision's own download folder. Usually given as --data. A relative
    path starts from the folder in which the command runs."""
    labels: str | None = None
    """CSV or TSV file with the class of each picture; its path is relative to ``path``. Its first line names the
    columns. A row without a label is an unlabelled picture. With a table, the names of folders have no meaning."""
    test_labels: str | None = None
    """CSV or TSV file of the same form for the test split."""
    columns: Columns | None = None
    """Columns of the tables, for example { file = "name", label = "species" }. Default: found by name."""
    group_by: str | None = None
    """Regular expression that is searched in each file's name (in its path if the expression has a slash). Pictures
    with the same match are never divided by a drawn split or fold. If the expression has a group in parentheses,
    the first group counts instead of the match. Default: none."""
    image_size: int = Field(224, ge=8, le=1024)
    """Height and width in pixels of the model's input."""
    resize: Literal["crop", "squash"] = "crop"
    """crop: shorter side to image_size, then the centre square. squash: both sides to image_size."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Filter of the resize, by Pillow, with antialiasing."""
    crop_pct: float = Field(1.0, gt=0, le=1)
    """Share of the resized picture's side that the crop keeps (timm's crop_pct): with 0.875 and image_size 224, a
    picture is resized to 256 and cropped to 224."""
    channels: Literal[1, 3] = 3
    """3: RGB. 1: gray, for models of one channel."""
    normalize: Literal["imagenet", "dataset"] = "imagenet"
    """Source of the mean and standard deviation that normalise the pictures: ImageNet, or the training split."""
    val_fraction: float = Field(0.1, gt=0, lt=0.9)
    """Share of the training pictures held out for validation if there is no val/ folder."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of each class's training pictures that is used, at least one of each, drawn by split_seed. Validation and
    test split are not reduced."""
    test_fraction: float = Field(0.0, ge=0, lt=0.9)
    """Share of all pictures held out as test split if the source has none. 0: no test split."""
    stratified: bool = True
    """true: each drawn split has the same share of every class. false: splits are drawn without regard to classes."""
    folds: int = Field(0, ge=0)
    """2 or more: cross-validation; a trial trains once for each fold of the training pictures, and its value is
    the mean accuracy. 0: one validation split."""
    split_seed: int = Field(0, ge=0)
    """Seed of the drawn splits, and of the folds."""
    bad_files: Literal["fail", "skip"] = "fail"
    """Files that cannot be read. fail: list them all and stop. skip: list them all and go on without them."""

    def shape_for(self, num_classes: int) -> Shape:
        """The shape for which a model of these images is built."""
        return Shape(num_classes, self.image_size, self.channels)

    @field_validator("path")
    @classmethod
    def _path_is_the_same_everywhere(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())

    @model_validator(mode="after")
    def _digits_need_no_folder(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds = 1 leaves nothing to train on; use 0 for one validation split, or at least 2")
        if self.source == "digits" and self.path is not None:
            raise ValueError(f'path = {self.path!r}: the digits are built in; use source = "folder" for your pictures')
        return self

    @model_validator(mode="after")
    def _labels_are_of_a_folder(self) -> Self:
        if self.labels is not None and self.source != "folder":
            raise ValueError(f'labels = {self.labels!r}: {self.source} has labels of its own; use source = "folder"')
        if self.labels is None and (self.test_labels is not None or self.columns is not None):
            name = "columns" if self.test_labels is None else "test_labels"
            raise ValueError(f"{name} would be ignored without labels; name the table of the training pictures too")
        if self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                raise ValueError(f"group_by = {self.group_by!r} is not a regular expression: {error}") from None
        return self


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
    """Channels of ReXNet's first block, before width_mult. Families: rexnet_100, rexnetr_100."""
    final_chs: int = Field(180, ge=1)
    """Channels by which ReXNet's blocks grow from the first to the last, before width_mult. Families: rexnet_100,
    rexnetr_100."""
    growth: float = Field(2.0, ge=1, le=4)
    """Factor on the channels from one stage of a ResNet to the next. Families: resnet*."""
    stem: Literal["timm", "cifar"] = "timm"
    """First layers of a ResNet. timm: timm's own, which divide the picture's sides by four. cifar: one 3x3 convolution
    of stride 1 and no pooling, for small pictures (He et al., 2015, section 4.2). Stock timm's create_model has no
    argument for cifar. Only for resnet*."""
    require_timm: bool = False
    """true: models that stock timm's create_model cannot build are refused. They are: every model with stem = "cifar",
    and some families. Families: wrn-*; where they are scaled, efficientnet_b0, mobilenetv3_*_100."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Drop rate before the classifier (timm's drop_rate)."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Drop rate of whole residual branches, rising with depth (timm's drop_path_rate; drop connect)."""

    epochs: int = Field(50, ge=1)
    """Passes over the training split."""
    batch_size: int = Field(128, ge=2)
    """Pictures per optimizer step. The incomplete last batch of an epoch is left out; each epoch has a new order, so
    the pictures in it change."""
    optimizer: Optimizer = "adamw"
    """Optimizer, by timm's name; sgd has Nesterov momentum."""
    sam: Sam | None = None
    """Sharpness-aware minimization, for example { rho = 0.05 }. Each step then takes two passes."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd and rmsprop; beta 1 of adam, adamw and nadam."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled in adamw, added to the gradient in sgd. Never applied to biases and normalisation (timm)."""
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
    """Adaptive gradient clipping: largest ratio of a unit's gradient to its weight (Brock et al., 2021); 0: none."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights. The average is evaluated and exported instead of
    the weights. In the first steps the decay is (1 + step) / (10 + step) if that is smaller. 0: no average."""
    patience: int | None = Field(None, ge=1)
    """Epochs without a better validation accuracy after which a training ends. Default: never early."""

    schedule: Literal["constant", "cosine", "step", "milestones", "warm_restarts", "plateau"] = "cosine"
    """Learning rate after the warm-up. constant: it stays. cosine: half a cosine, down to lr_min_ratio. step: it is
    multiplied by step_gamma every step_epochs. milestones: it is multiplied by step_gamma at each of the milestones.
    plateau: it is multiplied by step_gamma after plateau_patience epochs without a lower validation loss.
    warm_restarts: cosine cycles, each with its own warm-up. The first cycle takes step_epochs. Each further one is
    cycle_mult times as long as the one before, and its peak is multiplied by step_gamma."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs in which the learning rate rises linearly from 0 to lr, a little with every batch."""
    lr_min_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end of a cosine, as a share of lr."""
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
    """Largest rotation in degrees, 0 to 180, either way, drawn uniformly; uncovered corners are black. A list, for
    example [15, 25], has the largest angle of each of up to four rotations, which are added up."""
    rotations: int = Field(1, ge=1, le=MOST_ROTATIONS)
    """Number of rotations that are added up, each of at most ``rotate``, which must then be a number. The sum of two
    is more often near 0 than a single rotation."""
    shift: float = Field(0.0, ge=0, lt=1)
    """Largest shift along each axis, as a share of the picture; uncovered parts are black."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Largest zoom, in or out, as a share: 0.1 draws a factor from 0.9 to 1.1."""
    crop_padding: int = Field(0, ge=0)
    """Width in pixels of a black border that is added before a random crop of the picture's old size."""
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
    """auto: bf16 autocast on CUDA GPUs that have it, fp32 elsewhere. fp16: autocast with loss scaling, for GPUs without
    bf16; not with sam. In fp16, each step of nadam and rmsprop waits for the GPU once."""
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
        # If a rule combines settings that can be sampled, list them in studies.axes.TOGETHER: it checks whole spaces.
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
            raise ValueError('precision = "fp16" does not go with sam: an overflow would move the weights; use "auto"')
        if self.schedule == "milestones" and not self.milestones:
            raise ValueError('schedule = "milestones" needs milestones, for example [0.3, 0.5, 0.7, 0.9]')
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones = {list(self.milestones)}: write shares of the epochs, between 0 and 1")
        if self.schedule == "warm_restarts" and self.warmup_epochs >= self.step_epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs:g} must be less than a cycle, step_epochs = {self.step_epochs}"
            )
        return self
