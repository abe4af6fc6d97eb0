"""Metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from trainer.augment import normalise
from trainer.data import Dataset
from trainer.device import Device
from trainer.evaluate import EVALUATION_BATCH, Ensemble, measure, predict_logits


def test_loss_accuracy_and_confusion_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 500)
    labels[labels == 4] = 3  # a class that the split lacks
    logits = torch.from_numpy(generator.normal(0, 2, (500, 6)) + 2 * np.eye(6)[labels])
    predicted = logits.argmax(dim=1).numpy()
    metrics = measure(logits, labels)
    assert metrics.accuracy == accuracy_score(labels, predicted)
    rows, columns, pictures = metrics.confusion.T
    confusion = np.zeros((6, 6), int)
    confusion[rows, columns] = pictures
    assert np.array_equal(confusion, confusion_matrix(labels, predicted, labels=range(6)))
    assert pictures.min() > 0, "what does not occur takes no room"
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


def test_an_ensemble_votes_with_the_mean_of_probabilities_over_members_and_views() -> None:
    torch.manual_seed(0)
    members = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5)) for _ in range(3)]
    pictures = 3 * torch.randn(7, 3, 8, 8)
    with torch.inference_mode():
        found = Ensemble(members, ("flip", "vflip"))(pictures)
        views = [pictures.numpy(), pictures.numpy()[..., ::-1], pictures.numpy()[..., ::-1, :]]
        votes = [member(torch.from_numpy(view.copy())).softmax(1) for member in members for view in views]
    mean = torch.stack(votes).mean(0)
    torch.testing.assert_close(found.exp(), mean)
    torch.testing.assert_close(found.softmax(1), mean)
    assert torch.equal(found.argmax(1), mean.argmax(1))


def test_an_ensemble_is_sure_where_a_member_is_certain() -> None:
    """The logarithm of a probability that has underflowed to zero must not become infinite."""
    member = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    member[1].weight.data = torch.tensor([[500.0, 0, 0], [-500.0, 0, 0]])
    assert torch.isfinite(Ensemble([member, member])(torch.ones(1, 3, 1, 1))).all()
