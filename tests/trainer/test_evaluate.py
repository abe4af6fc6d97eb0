"""Metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from trainer.augment import normalise
from trainer.data import Dataset
from trainer.device import Device
from trainer.evaluate import EVALUATION_BATCH, measure, predict_logits


def test_loss_accuracy_and_confusion_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 500)
    labels[labels == 4] = 3  # a class that the split lacks
    logits = torch.from_numpy(generator.normal(0, 2, (500, 6)) + 2 * np.eye(6)[labels])
    predicted = logits.argmax(dim=1).numpy()
    metrics = measure(logits, labels)
    assert metrics.accuracy == accuracy_score(labels, predicted)
    assert np.array_equal(metrics.confusion, confusion_matrix(labels, predicted, labels=range(6)))
    assert metrics.loss == pytest.approx(log_loss(labels, logits.softmax(dim=1).numpy(), labels=range(6)))


def test_logits_come_in_the_order_of_the_split_whatever_the_batches(digits: Dataset, cpu: Device) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    indices = digits.splits["test"]
    assert len(indices) > 2 * EVALUATION_BATCH
    logits = predict_logits(model, digits, "test", cpu)
    assert logits.shape == (len(indices), 10)
    assert logits.dtype == torch.float32
    images = torch.from_numpy(digits.images[indices]).permute(0, 3, 1, 2).float()
    at_once = model(normalise(images, digits.mean, digits.std))
    torch.testing.assert_close(logits, at_once.detach())
