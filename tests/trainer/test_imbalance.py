"""Uneven classes: weights, sampling, logit adjustment and the focal loss, each by its formula and in a training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short import at, config_of
from timm.loss import AsymmetricLossSingleLabel
from torch.nn import functional as F

from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import ConfigError
from trainer.fit import Training, fit
from trainer.losses import build_loss, count_classes, weights_of
from trainer.order import order_of_epoch
from trainer.values import validate

COUNTS = np.array([600, 30, 6])
CPU = torch.device("cpu")
CORRECTIONS: list[dict[str, Any]] = [
    {"class_weights": "inverse"},
    {"class_weights": "effective", "loss": "focal"},
    {"class_sampling": "balanced"},
    {"logit_adjustment": 1.0},
]


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(5, 3, requires_grad=True)


LABELS = torch.tensor([0, 0, 1, 2, 0])


def loss_of(logits: torch.Tensor, **settings: Any) -> torch.Tensor:
    return build_loss(config_of(**settings), COUNTS, CPU)(logits, LABELS)


@pytest.fixture
def uneven(digits: Dataset) -> Dataset:
    """Eight classes of digits with 4 training pictures, two with many more."""
    train, labels = digits.splits["train"], digits.labels[digits.splits["train"]]
    few = [train[labels == label][: 4 if label > 1 else None] for label in range(10)]
    return replace(digits, splits={**digits.splits, "train": np.sort(np.concatenate(few))})


# Losses


def test_the_asymmetric_loss_is_timms_with_our_smoothing(logits: torch.Tensor) -> None:
    expected = AsymmetricLossSingleLabel(eps=0.05)(logits, LABELS)
    assert torch.equal(loss_of(logits, loss="asymmetric", label_smoothing=0.05), expected)


def test_the_plain_loss_is_torchs_to_the_bit(logits: torch.Tensor) -> None:
    assert torch.equal(loss_of(logits, label_smoothing=0.1), F.cross_entropy(logits, LABELS, label_smoothing=0.1))


def test_the_focal_loss_follows_its_formula_and_is_the_cross_entropy_at_0(logits: torch.Tensor) -> None:
    chances = logits.softmax(dim=1).gather(1, LABELS[:, None])[:, 0]
    expected = ((1 - chances) ** 2 * -chances.log()).mean()
    assert torch.allclose(loss_of(logits, loss="focal"), expected)
    smoothed = {"label_smoothing": 0.1}
    assert torch.allclose(loss_of(logits, loss="focal", focal_gamma=0.0, **smoothed), loss_of(logits, **smoothed))


def test_the_focal_loss_of_a_certain_answer_has_a_gradient() -> None:
    certain = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    build_loss(config_of(loss="focal", focal_gamma=0.5), COUNTS, CPU)(certain, torch.tensor([0])).backward()  # type: ignore[no-untyped-call]
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()


def test_inverse_weights_are_those_of_scikit_learn_and_effective_ones_those_of_the_paper() -> None:
    inverse = weights_of(TrainConfig(class_weights="inverse"), COUNTS)
    assert inverse is not None
    assert inverse.tolist() == pytest.approx(COUNTS.sum() / (3 * COUNTS))  # its class_weight="balanced"
    effective = weights_of(TrainConfig(class_weights="effective"), COUNTS)
    assert effective is not None
    numbers = [(1 - 0.999**count) / 0.001 for count in COUNTS]
    assert (effective[2] / effective[0]).item() == pytest.approx(numbers[0] / numbers[2])
    assert (effective.numpy() * COUNTS).sum() == pytest.approx(COUNTS.sum())


@pytest.mark.parametrize("loss", ["cross_entropy", "asymmetric", "focal"])
def test_a_weight_multiplies_the_loss_of_its_pictures(loss: str, logits: torch.Tensor) -> None:
    weights = weights_of(TrainConfig(class_weights="inverse"), COUNTS)
    assert weights is not None
    plain = build_loss(config_of(loss=loss), COUNTS, CPU)
    each = [plain(logits[[i]], LABELS[[i]]) * weights[LABELS[i]] for i in range(5)]
    assert torch.allclose(loss_of(logits, loss=loss, class_weights="inverse"), torch.stack(each).mean())


@pytest.mark.parametrize("loss", ["cross_entropy", "asymmetric", "focal"])
def test_the_logit_adjustment_adds_the_logarithm_of_each_share(loss: str, logits: torch.Tensor) -> None:
    shifted = logits + 0.7 * torch.tensor([math.log(count / 636) for count in COUNTS])
    assert torch.allclose(loss_of(logits, loss=loss, logit_adjustment=0.7), loss_of(shifted, loss=loss))


@pytest.mark.parametrize("correction", [{"class_weights": "inverse"}, {"class_weights": "effective"}])
def test_even_classes_have_weights_of_1(correction: dict[str, Any]) -> None:
    weights = weights_of(TrainConfig.model_validate(correction), np.array([70, 70, 70]))
    assert weights is not None
    assert weights.tolist() == pytest.approx([1.0, 1.0, 1.0])


# Sampling


def test_a_balanced_epoch_has_as_many_of_each_class_and_repeats_none_more_than_needed() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 7])
    pictures = np.flatnonzero(labels >= 0) + 1000
    every = np.concatenate([np.zeros(1000, dtype=np.int64), labels])
    config = TrainConfig(class_sampling="balanced", seed=3)
    order = order_of_epoch(config, pictures, every, 2)
    assert len(order) == len(pictures)
    assert sorted(np.bincount(every[order])) == [32, 32, 33]
    for label, most in enumerate([1, 2, 5]):
        repeats = np.bincount(order[every[order] == label])
        assert repeats.max() == most
    assert len(set(order[every[order] == 2].tolist())) == 7, "each picture of the small class is shown"
    assert len(set(every[order][:12].tolist())) == 3, "classes come mixed"
    assert np.array_equal(order, order_of_epoch(config, pictures, every, 2))
    assert not np.array_equal(np.sort(order), np.sort(order_of_epoch(config, pictures, every, 3)))


@pytest.mark.parametrize("count", [40, 41])
def test_even_classes_keep_their_order(count: int) -> None:
    pictures, labels = np.arange(count), np.arange(count) % 4
    natural, balanced = (
        order_of_epoch(TrainConfig(seed=7, class_sampling=word), pictures, labels, 3)
        for word in ("natural", "balanced")
    )
    assert np.array_equal(natural, balanced)


def test_a_natural_epoch_has_the_order_it_always_had() -> None:
    pictures, labels = np.arange(50, 90), np.zeros(90, dtype=np.int64)
    expected = np.random.default_rng((7, 3)).permutation(pictures)
    assert np.array_equal(order_of_epoch(TrainConfig(seed=7), pictures, labels, 3), expected)


# Trainings


@pytest.mark.parametrize(
    "correction", [CORRECTIONS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in CORRECTIONS[1:])]
)
def test_an_interruption_changes_no_bit(
    correction: dict[str, Any], uneven: Dataset, cpu: Device, tmp_path: Path
) -> None:
    config = config_of(**correction, mixup=0.5, label_smoothing=0.1)
    straight = list(fit(config, uneven, cpu, checkpoint=tmp_path / "straight"))
    cut = fit(config, uneven, cpu, checkpoint=tmp_path / "cut")
    next(cut)
    cut.close()  # type: ignore[attr-defined]
    torch.manual_seed(12345)
    resumed = list(fit(config, uneven, cpu, checkpoint=tmp_path / "cut"))
    assert [r.train_loss for r in resumed] == [r.train_loss for r in straight]
    assert all(torch.equal(a, at(tmp_path / "cut").model[name]) for name, a in at(tmp_path / "straight").model.items())
    assert straight[0].train_loss != next(fit(config_of(mixup=0.5, label_smoothing=0.1), uneven, cpu)).train_loss


def test_parts_of_a_batch_add_up_to_the_whole(uneven: Dataset, cpu: Device) -> None:
    config = config_of(class_weights="inverse", batch_size=16, model="wrn-10-1")
    weights = weights_of(config, count_classes(uneven))
    assert weights is not None
    training = Training(config, uneven, cpu, micro_batches=3)
    training.model.eval()  # batch norm would see the parts
    batch = next(training.batches(1))
    each = F.cross_entropy(training.model(batch.images), batch.labels, reduction="none") * weights[batch.labels]
    assert training._backward(batch)[0].item() == pytest.approx(each.mean().item(), rel=1e-5)


def test_the_counts_are_of_what_is_trained_on(uneven: Dataset) -> None:
    train, val = (np.bincount(uneven.labels[uneven.splits[name]], minlength=10) for name in ("train", "val"))
    assert count_classes(uneven).tolist() == train.tolist()
    assert count_classes(uneven.trained_on("train+val")).tolist() == (train + val).tolist()
    fold = uneven.fold(0, 3, seed=0)
    assert count_classes(fold).sum() == len(fold.splits["train"]) < (train + val).sum()


def test_a_class_without_a_picture_counts_as_one_with_one(digits: Dataset) -> None:
    train = digits.splits["train"]
    lacking = replace(digits, splits={**digits.splits, "train": train[digits.labels[train] != 4]})
    counts = count_classes(lacking)
    assert counts[4] == 1
    loss = build_loss(config_of(logit_adjustment=1.0), counts, CPU)(torch.zeros(1, 10), torch.tensor([3]))
    assert math.isfinite(loss.item())


# Contradictions


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"class_weights": "inverse", "class_sampling": "balanced"},
            'class_weights = "inverse" and class_sampling = "balanced"',
        ),
        (
            {"class_sampling": "balanced", "logit_adjustment": 1.0},
            'class_sampling = "balanced" and logit_adjustment = 1.0',
        ),
        (
            {"class_weights": "effective", "logit_adjustment": 0.5},
            'class_weights = "effective" and logit_adjustment = 0.5',
        ),
    ],
)
def test_two_corrections_of_the_same_imbalance_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(TrainConfig, settings, "study.toml [train]")
    expected = f"  {named} correct the same imbalance more than once; keep one of them"
    assert str(error.value).splitlines()[1:] == [expected]
