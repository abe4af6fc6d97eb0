"""Metrics against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from trainer.augment import normalise
from trainer.data import Dataset
from trainer.device import Device
from trainer.evaluate import EVALUATION_BATCH, Ensemble, measure, predict_logits, view_of
from trainer.fancy_pca import draw_fancy_pca
from trainer.views import View, Views


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


VIEWS = Views((), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.05, -0.02, -0.03))


def test_an_ensemble_votes_with_the_mean_of_probabilities_over_members_and_views() -> None:
    torch.manual_seed(0)
    members = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5)) for _ in range(3)]
    pictures = 3 * torch.randn(7, 3, 8, 8)
    with torch.inference_mode():
        found = Ensemble(members, Views(("flip", "vflip")))(pictures)
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


def photo() -> Image.Image:
    """A picture of 24 x 24 with edges, light and dark colours, in a black frame: Pillow does not blend its border."""
    pixels = np.full((24, 24, 3), (250, 120, 4), np.uint8)
    pixels[4:9, 3:20], pixels[9:21, 10:13] = (10, 200, 90), (60, 30, 255)
    return Image.fromarray(np.pad(pixels[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0))))


def seen_as(name: str, views: Views) -> NDArray[np.float32]:
    """A view of ``photo`` as the net sees it, in levels of 255."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (views.mean, views.std))
    pictures = torch.from_numpy(np.array(photo())).permute(2, 0, 1)[None].float() / 255
    view = view_of((pictures - mean) / std, View.parse(name), views) * std + mean
    return 255 * view[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("degrees", [10, -25, 90, 180])
def test_a_view_is_rotated_as_pillow_rotates_with_black_corners(degrees: int) -> None:
    expected = [band.convert("F").rotate(degrees, Image.Resampling.BILINEAR) for band in photo().split()]
    assert np.abs(seen_as(f"rotate={degrees}", VIEWS) - np.dstack(expected)).max() < 0.01


@pytest.mark.parametrize(("right", "down"), [(4, -3), (-5, 2), (0, 6)])
def test_a_view_is_shifted_to_the_right_and_down_with_black_borders(right: int, down: int) -> None:
    moved = Image.new("RGB", photo().size)
    moved.paste(photo(), (right, down))
    assert np.abs(seen_as(f"shift={right},{down}", VIEWS) - np.asarray(moved)).max() < 0.01


def test_a_gray_view_has_pillows_luma_and_the_colour_shift_stays_within_what_a_picture_holds() -> None:
    gray = np.asarray(photo().convert("L"), np.float32)[..., None]
    assert np.abs(seen_as("gray", VIEWS) - gray).max() < 1
    shift = 255 * np.array(VIEWS.colour_shift)
    expected = (np.asarray(photo()) + shift).clip(0, 255)
    assert expected.max() == 255
    assert expected.min() == 0
    assert np.abs(seen_as("fancy_pca", VIEWS) - expected).max() < 0.01


def test_the_colour_shift_follows_the_axes_of_the_training_pictures(digits: Dataset) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal((120, 90, 60), (1, 1, 1), (len(digits.images), 4, 4, 3))
    images += rng.normal(0, 20, images.shape[:3])[..., None] * np.array([2, 1, -1])  # one axis of nearly all colours
    train = digits.splits["train"]
    images[np.setdiff1d(np.arange(len(images)), train)] = 0  # other splits do not count
    data = replace(digits, images=images.clip(0, 255).astype(np.uint8))
    found = draw_fancy_pca(data, 3)
    assert found.axes[0] == pytest.approx(np.array([2, 1, -1]) / 6**0.5, abs=0.05)
    pixels = data.images[train].reshape(-1, 3) / 255
    assert found.variances[0] == pytest.approx(np.var(pixels @ np.array(found.axes[0])), rel=1e-3)
    moved = sum(np.array(axis) * d * v for axis, d, v in zip(found.axes, found.draws, found.variances, strict=True))
    assert found.shift == pytest.approx(moved, abs=1e-5)
    assert found.draws == tuple(np.random.default_rng(3).normal(0, 0.1, 3).round(6))
    assert draw_fancy_pca(data, 4).shift != found.shift
    assert draw_fancy_pca(data, 3) == found
