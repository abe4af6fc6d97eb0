"""The accuracy on the training batches: what is counted, and that each epoch's result has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from short import PLAIN, config_of
from sklearn.metrics import balanced_accuracy_score, f1_score

from trainer.augment import Batch
from trainer.data import Dataset
from trainer.device import Device
from trainer.evaluate import predict_logits
from trainer.fit import Training, _accuracy, fit, fit_folds
from trainer.optim import learning_rate


def test_a_mixed_picture_counts_with_the_share_of_the_label_that_was_predicted() -> None:
    logits = torch.eye(4)[[0, 1, 2, 3]]  # predicted: 0, 1, 2, 3
    labels, others = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 1, 2, 0])
    plain = Batch(torch.zeros(4), labels, None, 1.0)
    assert _accuracy(logits, plain).item() == 0.5
    mixed = Batch(torch.zeros(4), labels, others, 0.75, 0.25)
    assert _accuracy(logits, mixed).item() == pytest.approx((0.75 + 1 + 0.25 + 0) / 4)


@pytest.mark.parametrize("settings", [{}, {"mixup": 0.5, "cutmix": 0.5}, {"sam": {"rho": 0.05}}])
def test_it_is_of_the_batches_as_they_are_before_each_step(
    digits: Dataset, cpu: Device, settings: dict[str, object]
) -> None:
    """SGD without a step: the net of all batches is the first one."""
    config = config_of(epochs=1, lr=1e-30, optimizer="sgd", weight_decay=0.0, warmup_epochs=0.0, **settings)
    training = Training(config, digits, cpu)
    model, found = training.model.train(), []
    for batch in training.batches(1):
        with torch.no_grad():
            found.append(_accuracy(model(batch.images), batch).item())
    (result,) = fit(config, digits, cpu)
    assert result.train_accuracy == pytest.approx(sum(found) / len(found), abs=1e-6)
    assert sum(found) > 0


def test_an_epoch_tells_macro_f1_and_balanced_accuracy_of_validation(digits: Dataset, cpu: Device) -> None:
    few = replace(digits, splits=digits.splits | {"val": digits.splits["val"][:40]})
    training_of = PLAIN.model_copy(update={"epochs": 1})
    (result,) = fit(training_of, few, cpu)
    model = Training(training_of, few, cpu)  # the same seed: trained again here, to look at its answers
    model.model.train()
    for number, batch in enumerate(model.batches(1)):
        model.step(batch, learning_rate(training_of, number, model.steps_per_epoch))
    predicted = predict_logits(model.model.eval(), few, "val", cpu).argmax(1).numpy()
    labels = few.labels[few.splits["val"]]
    assert result.val_macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert result.val_balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert result.val_macro_f1 != result.val_accuracy


def test_of_folds_it_is_the_mean(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    config = config_of(epochs=1)
    first, both = fit_folds(config, digits, cpu, folds=2, seed=0, checkpoint=tmp_path / "trial.ckpt")
    assert first.train_accuracy is not None
    assert both.train_accuracy is not None
    (alone,) = fit(config, digits.fold(1, 2, 0), cpu)
    for name in ("train_accuracy", "val_macro_f1", "val_balanced_accuracy"):
        assert getattr(both, name) == pytest.approx((getattr(first, name) + getattr(alone, name)) / 2)
