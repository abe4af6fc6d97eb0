"""Frozen values of a training and of a model: the result of an epoch, a shape, a size. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The result of one finished epoch."""

    epoch: int
    """Number of finished epochs, from 1."""
    train_loss: float
    """Mean loss over the epoch's batches, as trained (smoothed labels, augmented pictures)."""
    val_loss: float
    """Mean cross-entropy on the validation split, without label smoothing."""
    val_accuracy: float
    """Top-1 accuracy on the validation split, 0 to 1."""
    seconds: float
    """Wall time of the epoch, validation included."""
    images_per_second: float
    """Training pictures per second of training time, validation excluded."""
    final: bool = False
    """Whether no epoch follows, because all are done or because of ``patience``."""
    train_accuracy: float | None = None
    """Top-1 accuracy over the epoch's batches, as trained: on augmented pictures, with the weights before each step. If
    a picture is mixed of two, either label counts by its share. None in a result of an older version."""
    val_macro_f1: float | None = None
    """Mean F1 over the classes that the validation split has or that are predicted. None as in ``train_accuracy``."""
    val_balanced_accuracy: float | None = None
    """Mean recall over the classes of the validation split. None as in ``train_accuracy``."""


@dataclass(frozen=True)
class Shape:
    """The outputs and the input of a model."""

    num_classes: int
    """Number of outputs of the classifier."""
    image_size: int
    """Height and width of an image, in pixels."""
    channels: int = 3
    """Number of channels of an image: 3 or 1."""

    @property
    def of_image(self) -> tuple[int, int, int]:
        """Channels, height and width of one image, in torch's order."""
        return self.channels, self.image_size, self.image_size


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Size of a model: exact counts, for one picture."""

    params: int
    """Trainable parameters; batch norm's running statistics are buffers and do not count."""
    macs: int
    """Multiply-adds of one forward pass in eval mode, as torch.utils.flop_counter counts them
    (convolutions and matrix products; FLOPs / 2)."""


def gflops(macs: int) -> str:
    """Multiply-adds as billions of floating-point operations, two for each: "1.11 GFLOPs"."""
    value = 2 * macs / 1e9
    return f"{value:,.2f} GFLOPs" if value >= 1 else f"{value:.3g} GFLOPs"


def macs_in_words(macs: int) -> str:
    """Both numbers: "555,422,720 multiply-adds (1.11 GFLOPs)"."""
    return f"{macs:,} multiply-adds ({gflops(macs)})"


def fold_checkpoint(checkpoint: Path, number: int) -> Path:
    """Path of the checkpoint of fold ``number``, from 0: beside ``checkpoint``, which names the cross-validation."""
    return checkpoint.with_name(f"{checkpoint.name}-fold{number}")


def over_folds(ends: Sequence[EpochResult], folds: int) -> EpochResult:
    """The result of a cross-validation after some of its folds: means over the last epochs of these folds.

    ``epoch`` is the number of these folds; ``seconds`` and ``images_per_second`` are those of the last fold.
    """
    return replace(
        ends[-1],
        epoch=len(ends),
        train_loss=sum(end.train_loss for end in ends) / len(ends),
        val_loss=sum(end.val_loss for end in ends) / len(ends),
        val_accuracy=sum(end.val_accuracy for end in ends) / len(ends),
        final=len(ends) == folds,
        train_accuracy=_mean([end.train_accuracy for end in ends]),
        val_macro_f1=_mean([end.val_macro_f1 for end in ends]),
        val_balanced_accuracy=_mean([end.val_balanced_accuracy for end in ends]),
    )


def _mean(values: list[float | None]) -> float | None:
    """The mean of values that are all known; else None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
