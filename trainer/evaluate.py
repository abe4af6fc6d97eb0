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
from trainer.data import Dataset
from trainer.device import Device
from trainer.views import NO_VIEWS, View, Views

EVALUATION_BATCH = 256
"""Pictures per forward pass: fixed, so that a result does not depend on the training batch."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a gray picture (ITU-R BT.601), as Pillow and OpenCV have them."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """Metrics of a model on a split of pictures with c classes."""

    loss: float
    """Mean cross-entropy, without label smoothing."""
    accuracy: float
    """Top-1 accuracy, 0 to 1."""
    confusion: NDArray[np.int64]
    """[k, 3]: true class, predicted class, number of pictures. There is one row for each pair of classes that occurs,
    sorted. A matrix of 10,000 classes would have 100 million numbers."""


def view_of(pictures: torch.Tensor, view: View, views: Views) -> torch.Tensor:
    """A view of normalised pictures [n, channels, size, size], for averaging with the pictures themselves.

    It is made of operations that every format of an export has. Uncovered parts are black.
    """
    match view.kind:
        case "flip":
            return pictures.flip(3)
        case "vflip":
            return pictures.flip(2)
        case "rotate":
            (degrees,) = view.numbers
            return _uncovering_black(pictures, views, lambda dark: rotated(dark, degrees))
        case "shift":
            right, down = (int(number) for number in view.numbers)
            return _uncovering_black(pictures, views, lambda dark: shifted(dark, right, down))
        case "gray":
            mean, std = _channels(views.mean), _channels(views.std)
            return ((pictures * std + mean) * _channels(LUMA)).sum(1, keepdim=True).sub(mean).div(std)
        case "fancy_pca":
            mean, std = _channels(views.mean), _channels(views.std)
            moved = pictures + _channels(views.colour_shift) / std
            return torch.minimum(torch.maximum(moved, -mean / std), (1 - mean) / std)
        case _:
            assert_never(view.kind)


def rotated(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Images [n, c, h, w] turned counter-clockwise about their centre, bilinear; uncovered parts are 0."""
    height, width = images.shape[2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x = (torch.arange(width) - (width - 1) / 2).view(1, width)
    y = (torch.arange(height) - (height - 1) / 2).view(height, 1)
    grid = torch.stack([(cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)], dim=2)
    grid = grid.expand(images.shape[0], height, width, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def shifted(images: torch.Tensor, right: int, down: int) -> torch.Tensor:
    """Images [n, c, h, w] moved by whole pixels, negative to the left and up; uncovered parts are 0."""
    height, width = images.shape[2:]
    kept = images[:, :, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    return F.pad(kept, (max(0, right), max(0, -right), max(0, down), max(0, -down)))


def _uncovering_black(
    pictures: torch.Tensor, views: Views, move: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Apply ``move`` to normalised pictures so that uncovered parts are black; ``move`` alone would fill them with 0,
    which is another colour after normalisation."""
    black = _channels(views.mean) / _channels(views.std)
    return move(pictures + black) - black


def _channels(values: Sequence[float]) -> torch.Tensor:
    """[1, channels, 1, 1]"""
    return torch.tensor(values).view(1, -1, 1, 1)


class Ensemble(nn.Module):
    """Soft voting: the mean of the probabilities over members and views.

    The output is the logarithm of that mean. Used like any model's logits, its argmax is the voted class, and its
    softmax is exactly the mean of the probabilities.

    Args:
        members: models with the same classes.
        views: views of a picture, in addition to the picture itself.
    """

    def __init__(self, members: Sequence[nn.Module], views: Views = NO_VIEWS) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.views = views

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """[n, channels, size, size] -> [n, classes]."""
        seen = [pictures, *(view_of(pictures, View.parse(name), self.views) for name in self.views.names)]
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
