"""Evaluation of a model on a split; the ensemble of models and views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from trainer.augment import normalise
from trainer.config import View
from trainer.data import Dataset
from trainer.device import Device

EVALUATION_BATCH = 256
"""Pictures per forward pass: fixed, so that a result does not depend on the training batch."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """Metrics of a model on a split of pictures with c classes."""

    loss: float
    """Mean cross-entropy, without label smoothing."""
    accuracy: float
    """Top-1 accuracy, 0 to 1."""
    confusion: NDArray[np.int64]
    """[k, 3]: true class, predicted class, pictures; each pair that occurs, in order. A matrix of 10,000 classes would
    have 100 million numbers."""


def view_of(pictures: torch.Tensor, name: View) -> torch.Tensor:
    """A view of pictures [n, channels, height, width], for averaging with the pictures themselves."""
    match name:
        case "flip":
            return pictures.flip(3)
        case "vflip":
            return pictures.flip(2)
        case _:
            assert_never(name)


class Ensemble(nn.Module):
    """Soft voting: the mean of the probabilities over members and views.

    The output is the logarithm of that mean. Used like any model's logits, its argmax is the voted class, and its
    softmax is exactly the mean of the probabilities.

    Args:
        members: models with the same classes.
        views: views of a picture, in addition to the picture itself.
    """

    def __init__(self, members: Sequence[nn.Module], views: Sequence[View] = ()) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.views = tuple(views)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """[n, channels, size, size] -> [n, classes]."""
        seen = [pictures, *(view_of(pictures, name) for name in self.views)]
        votes = [F.log_softmax(member(view), dim=1) for member in self.members for view in seen]
        return torch.logsumexp(torch.stack(votes), dim=0) - math.log(len(votes))


def predict_logits(
    forward: Callable[[torch.Tensor], torch.Tensor], data: Dataset, split: str, device: Device
) -> torch.Tensor:
    """Logits of a split, in its order: [n, classes] float32 on the device."""
    indices, resident = data.splits[split], device.resident(data.images)
    logits = []
    with torch.inference_mode():
        for start in range(0, len(indices), EVALUATION_BATCH):
            chosen = indices[start : start + EVALUATION_BATCH]
            pictures = device.copy(data.images[chosen]) if resident is None else resident[device.copy(chosen)]
            images = pictures[data.centre].permute(0, 3, 1, 2).float()
            logits.append(forward(normalise(images, data.mean, data.std)).float())
    return torch.cat(logits)


def measure(logits: torch.Tensor, labels: NDArray[np.int64]) -> Metrics:
    """Metrics from logits [n, c] and labels [n]."""
    targets = torch.from_numpy(labels).to(logits.device)
    num_classes = logits.shape[1]
    predicted = logits.argmax(dim=1)
    pairs, pictures = torch.unique(targets * num_classes + predicted, return_counts=True)
    confusion = torch.stack([pairs // num_classes, pairs % num_classes, pictures], dim=1)
    return Metrics(
        loss=F.cross_entropy(logits, targets).item(),
        accuracy=(predicted == targets).sum().item() / len(labels),
        confusion=confusion.cpu().numpy(),
    )
