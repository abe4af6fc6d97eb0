"""Metrics of a model on a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.augment import normalise
from trainer.data import Dataset
from trainer.device import Device

EVALUATION_BATCH = 256
"""Pictures per forward pass: fixed, so that a result does not depend on the training batch."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """What a model does on a split of n pictures of c classes."""

    loss: float
    """Mean cross-entropy, no label smoothing."""
    accuracy: float
    """Top-1, 0 to 1."""
    confusion: NDArray[np.int64]
    """[c, c]: rows are true classes, columns predicted ones."""


def predict_logits(
    forward: Callable[[torch.Tensor], torch.Tensor], data: Dataset, split: str, device: Device
) -> torch.Tensor:
    """Logits [n, classes], float32 on the device, of a split in its own order."""
    indices = data.splits[split]
    logits = []
    with torch.inference_mode():
        for start in range(0, len(indices), EVALUATION_BATCH):
            pictures = data.images[indices[start : start + EVALUATION_BATCH]]
            images = device.copy(pictures).permute(0, 3, 1, 2).float()
            logits.append(forward(normalise(images, data.mean, data.std)).float())
    return torch.cat(logits)


def measure(logits: torch.Tensor, labels: NDArray[np.int64]) -> Metrics:
    """Metrics from logits [n, c] and labels [n]."""
    targets = torch.from_numpy(labels).to(logits.device)
    num_classes = logits.shape[1]
    pairs = targets * num_classes + logits.argmax(dim=1)
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    return Metrics(
        loss=F.cross_entropy(logits, targets).item(),
        accuracy=confusion.diag().sum().item() / len(labels),
        confusion=confusion.cpu().numpy(),
    )
