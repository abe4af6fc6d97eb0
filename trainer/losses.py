"""The loss of a candidate, with its correction of class imbalance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from timm.loss import AsymmetricLossSingleLabel
from torch import nn
from torch.nn import functional as F

from trainer.config import TrainConfig

if TYPE_CHECKING:
    from trainer.data import Dataset

EFFECTIVE_BASE = 0.999
"""The b of the effective number of pictures, which is then at most 1,000. The code of Cui et al., 2019, has this value
for ImageNet and iNaturalist (https://github.com/richardaecn/class-balanced-loss)."""

SMALLEST_REST = 1e-7
"""Smallest 1 - p in the focal loss. With a gamma below 1, the slope of (1 - p) ** gamma is infinite at 0."""


class FocalLoss(nn.Module):
    """Cross-entropy with each class's term multiplied by (1 - p) ** gamma (Lin et al., 2017, equation 4).

    The targets may be smoothed, as in ``nn.CrossEntropyLoss``; each class then has a term.
    """

    def __init__(self, gamma: float, label_smoothing: float, reduction: str) -> None:
        super().__init__()
        self.gamma, self.label_smoothing, self.reduction = gamma, label_smoothing, reduction

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] and labels [batch] -> a scalar, or [batch] with the reduction "none"."""
        logs = F.log_softmax(logits, dim=1)
        terms = logs * (-torch.expm1(logs)).clamp_min(SMALLEST_REST) ** self.gamma
        own = F.nll_loss(terms, labels, reduction="none")  # the backward pass of gather is not deterministic on a GPU
        each = (1 - self.label_smoothing) * own - self.label_smoothing * terms.mean(dim=1)
        return each.mean() if self.reduction == "mean" else each


def count_classes(data: Dataset) -> NDArray[np.int64]:
    """Number of training pictures of each class, [classes]; at least 1, also for a class without pictures.

    Such a class occurs if an export is tuned on the validation split, which may lack some classes. In a fold, it does
    not occur.
    """
    return np.bincount(data.labels[data.splits["train"]], minlength=data.shape.num_classes).clip(1)


def weights_of(config: TrainConfig, counts: NDArray[np.int64]) -> torch.Tensor | None:
    """Weight in the loss of the pictures of each class, [classes] float32; None if all weights are 1.

    The mean weight of the training pictures is 1.

    Args:
        config: the candidate.
        counts: training pictures of each class.
    """
    pictures = torch.from_numpy(counts).double()
    match config.class_weights:
        case "none":
            return None
        case "inverse":
            weights = 1 / pictures
        case "effective":  # Cui et al., 2019, equation 2
            weights = (1 - EFFECTIVE_BASE) / (1 - EFFECTIVE_BASE**pictures)
        case _:
            assert_never(config.class_weights)
    return (weights * (pictures.sum() / (weights * pictures).sum())).float()


def build_loss(
    config: TrainConfig, counts: NDArray[np.int64], where: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function for the mean loss of logits [batch, classes] and labels [batch].

    Args:
        config: the candidate.
        counts: training pictures of each class, from ``count_classes``.
        where: device of the logits.
    """
    weights = weights_of(config, counts)
    reduction = "mean" if weights is None else "none"
    loss: nn.Module
    match config.loss:
        case "cross_entropy":
            loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing, reduction=reduction)
        case "asymmetric":
            loss = AsymmetricLossSingleLabel(eps=config.label_smoothing, reduction=reduction)
        case "focal":
            loss = FocalLoss(config.focal_gamma, config.label_smoothing, reduction)
        case _:
            assert_never(config.loss)
    if config.logit_adjustment:  # Menon et al., 2021, equation 10
        offsets = torch.tensor(config.logit_adjustment * np.log(counts / counts.sum()), dtype=torch.float32).to(where)
        loss = _Adjusted(loss, offsets)
    return loss if weights is None else _Weighted(loss, weights.to(where))


class _Adjusted(nn.Module):
    """A loss of logits to which offsets [classes] are added."""

    def __init__(self, loss: nn.Module, offsets: torch.Tensor) -> None:
        super().__init__()
        self.loss, self.offsets = loss, offsets

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(logits + self.offsets, labels)  # type: ignore[no-any-return]


class _Weighted(nn.Module):
    """The mean of the losses of the pictures, each multiplied by the weight of its class [classes].

    It is divided by the number of pictures and not by the sum of their weights, so that the parts of a batch add up.
    """

    def __init__(self, loss: nn.Module, weights: torch.Tensor) -> None:
        super().__init__()
        self.loss, self.weights = loss, weights

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses: torch.Tensor = self.loss(logits, labels)
        return (losses * self.weights[labels]).mean()
