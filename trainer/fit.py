"""The training loop: one function, read from top to bottom."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from trainer.augment import Augmentation, Batch
from trainer.casting import HalfWeights
from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trainer.config import EpochResult, TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.distill import open_teacher
from trainer.errors import CheckpointError, DivergedError
from trainer.evaluate import measure, predict_logits
from trainer.families import OTHER, family_of
from trainer.graph import Replay
from trainer.kernels import save_launches
from trainer.loader import Loader
from trainer.losses import build_loss, count_classes
from trainer.models import build_model
from trainer.optim import Ascent, WeightAverage, build_optimizer, learning_rate, limit_gradient, load_state
from trainer.order import order_of_epoch
from trainer.padding import Padding
from trainer.results import fold_checkpoint, over_folds
from trainer.scores import ClassCounts


def fit(
    config: TrainConfig,
    data: Dataset,
    device: Device,
    *,
    checkpoint: Path | None = None,
    micro_batches: int = 1,
    start: dict[str, torch.Tensor] | None = None,
) -> Iterator[EpochResult]:
    """Train a candidate; yield one result per epoch. The caller owns the loop, and can stop it at any epoch.

    Long: the loop is one function to be read from top to bottom, without callbacks or hooks.

    With ``checkpoint``, the state after each epoch is durable there before its result is yielded. If the file exists
    already, its results are yielded first, and training goes on after them, bit for bit as if it had never stopped (on
    the same kind of device; the thread count is taken from the checkpoint).

    Args:
        config: the candidate.
        data: pictures with "train" and "val" splits.
        device: the device to train on, from ``open_device``.
        checkpoint: file to resume from and to write; None: no state is kept.
        micro_batches: number of parts of each batch, whose gradients are added up, to save memory. Batch norm sees the
            parts, so the result is not bit for bit that of whole batches.
        start: weights to begin with. Default: random weights.

    Raises:
        ConfigError: the model, its teacher or the augmentation cannot be built, or the device lacks the precision.
        DivergedError: the loss is not finite.
        CheckpointError: the checkpoint belongs to another candidate or to other pictures.
        DiskError: there is no room for the checkpoint, or it cannot be read.
    """
    training = Training(config, data, device, micro_batches, start)
    model, optimizer, padding = training.model, training.optimizer, training.padding
    average = WeightAverage(config, model) if config.ema else None
    take_step: Callable[[Batch, float], torch.Tensor] = training.step
    if device.replays(config, micro_batches)[0]:
        take_step = Replay(training, device, mixes=config.mixup + config.cutmix > 0)
    steps_per_epoch = training.steps_per_epoch

    # -- resume from the checkpoint, if there is one
    history: list[EpochResult] = []
    resumed = load_checkpoint(checkpoint) if checkpoint else None
    if resumed is not None:
        # Compared as JSON, where tuples are lists: those in the arguments of ``augment`` were saved as lists.
        same_candidate = resumed.config.model_dump_json() == config.model_dump_json()
        if not same_candidate or resumed.data_hash != data.fingerprint:
            raise CheckpointError(
                f"{checkpoint} belongs to another candidate or other pictures; remove it or rename it"
            )
        model.load_state_dict(padding.padded(resumed.model))
        load_state(optimizer, padding.padded_optimizer(optimizer, resumed.optimizer))
        if resumed.scaler is not None:
            training.scaler.load_state_dict(resumed.scaler)
        if average is not None and resumed.ema is not None:
            average.model.load_state_dict(padding.padded(resumed.ema))
        torch.set_num_threads(resumed.num_threads)
        history = list(resumed.history)
        yield from history

    while not (history and history[-1].final):
        # -- train one epoch, without waiting for the device
        epoch = len(history) + 1
        started = time.perf_counter()
        val_losses = [result.val_loss for result in history]
        model.train()
        totals = torch.zeros(2, device=device.torch_device)
        for number, batch in enumerate(training.batches(epoch)):
            step = (epoch - 1) * steps_per_epoch + number
            totals += take_step(batch, learning_rate(config, step, steps_per_epoch, val_losses))
            if average is not None:
                average.update(step)
        train_loss, train_accuracy = (total / steps_per_epoch for total in totals.tolist())
        train_seconds = time.perf_counter() - started

        # -- evaluate
        evaluated = (average.model if average is not None else model).eval()
        with device.autocast(config):
            logits = predict_logits(evaluated, data, "val", device)
        metrics = measure(logits, data.labels[data.splits["val"]])
        if not (math.isfinite(train_loss) and math.isfinite(metrics.loss)):
            raise DivergedError(
                f"epoch {epoch} has a training loss of {train_loss:g} and a validation loss of"
                f" {metrics.loss:g}; try a lower lr than {config.lr:g}"
            )
        accuracies = [*(result.val_accuracy for result in history), metrics.accuracy]
        counts = ClassCounts.of(metrics.confusion, data.shape.num_classes)
        history.append(
            EpochResult(
                epoch=epoch,
                train_loss=train_loss,
                val_loss=metrics.loss,
                val_accuracy=metrics.accuracy,
                seconds=time.perf_counter() - started,
                images_per_second=steps_per_epoch * training.batch_size / train_seconds,
                final=epoch == config.epochs or _out_of_patience(accuracies, config.patience),
                train_accuracy=train_accuracy,
                val_macro_f1=counts.macro_f1,
                val_balanced_accuracy=counts.balanced_accuracy,
            )
        )

        # -- make the state durable before the result is yielded
        if checkpoint:
            state = Checkpoint(
                config=config,
                data_hash=data.fingerprint,
                num_threads=torch.get_num_threads(),
                history=tuple(history),
                model=padding.real(model.state_dict()),
                optimizer=padding.real_optimizer(optimizer),
                ema=padding.real(average.model.state_dict()) if average is not None else None,
                scaler=training.scaler.state_dict() if training.scaler.is_enabled() else None,
            )
            save_checkpoint(checkpoint, state)
        yield history[-1]


def fit_folds(
    config: TrainConfig,
    data: Dataset,
    device: Device,
    *,
    folds: int,
    seed: int,
    checkpoint: Path,
    micro_batches: int = 1,
) -> Iterator[EpochResult]:
    """Train a candidate once per fold; yield one result per finished fold.

    Many parameters: those of ``fit`` except ``start``, and two for the folds.

    In a result, ``epoch`` counts finished folds; losses, accuracies and F1 are means over the folds' last epochs.
    Resumable like ``fit``: every fold has its own checkpoint beside ``checkpoint``.

    Args:
        config: the candidate.
        data: the pictures; the train and val splits together are divided into folds.
        device: the device to train on.
        folds: number of folds.
        seed: seed of the folds, the same for all candidates.
        checkpoint: base name of the folds' checkpoints.
        micro_batches: as in ``fit``.

    Raises:
        DataError: as in ``Dataset.fold``. Other errors as in ``fit``.
    """
    ends: list[EpochResult] = []
    for number in range(folds):
        part = data.fold(number, folds, seed)
        file = fold_checkpoint(checkpoint, number)
        results = list(fit(config, part, device, checkpoint=file, micro_batches=micro_batches))
        seconds = sum(result.seconds for result in results)
        ends.append(replace(results[-1], seconds=seconds))
        yield over_folds(ends, folds)


def sweep_lr(
    config: TrainConfig, data: Dataset, device: Device, low: float, high: float, steps: int
) -> Iterator[tuple[float, float]]:
    """Train ``steps`` steps while the learning rate rises from ``low`` to ``high``; yield each rate and its loss.

    The learning-rate range test of Smith, 2015, with a rate that rises evenly on a logarithmic scale. Batches and
    steps are those of ``fit``; only the rate differs.

    Raises:
        ConfigError: the model, its teacher or the augmentation cannot be built, or the device lacks the precision.
    """
    training = Training(config, data, device)
    training.model.train()
    batches = itertools.chain.from_iterable(training.batches(epoch) for epoch in itertools.count(1))
    for number, batch in enumerate(itertools.islice(batches, steps)):
        lr = low * (high / low) ** (number / (steps - 1))
        yield lr, training.step(batch, lr)[0].item()


class Training:
    """The training of a candidate: its model, its batches, and the optimizer step.

    Args:
        config, data, device, micro_batches, start: as in ``fit``.

    Raises:
        ConfigError: the model, its teacher or the augmentation cannot be built.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        device: Device,
        micro_batches: int = 1,
        start: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.config, self.data, self.device, self.micro_batches = config, data, device, micro_batches
        torch.manual_seed(_derive(config.seed, 0))
        model = build_model(config, data.shape)
        if start is not None:
            model.load_state_dict(start)
        self.padding = Padding(model)
        self.model = device.place(model)
        save_launches(self.model)
        # Only known families have half weights: another model may use a weight outside of autocast, in full precision.
        is_known = family_of(config.model) is not OTHER
        self.forward: Callable[[torch.Tensor], torch.Tensor] = HalfWeights(self.model) if is_known else self.model
        self.optimizer = build_optimizer(config, self.model)
        self.scaler = device.scaler(config)
        self.ascent = Ascent(config, self.model) if config.sam else None
        self.loss_of = build_loss(config, count_classes(data), device.torch_device)
        self.teacher = open_teacher(config.distill, data, device) if config.distill else None
        self.augment = Augmentation(config, device, data.mean, data.std, data.shape.image_size)
        self.loader = Loader(data, self.augment.on_host, device, config.seed)
        num_train = len(data.splits["train"])
        self.batch_size = min(config.batch_size, num_train)
        # The incomplete last batch is left out. Its pictures change, because each epoch has a new order.
        self.steps_per_epoch = num_train // self.batch_size

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch (from 1). Also seeds the epoch's dropout and drop path."""
        seed, size = self.config.seed, self.batch_size
        torch.manual_seed(_derive(seed, epoch))
        order = order_of_epoch(self.config, self.data.splits["train"], self.data.labels, epoch)
        chosen = [order[start : start + size] for start in range(0, self.steps_per_epoch * size, size)]
        plain = not self.config.is_augmented(epoch)
        for number, pictures in enumerate(self.loader.epoch(epoch, chosen, plain=plain)):
            labels = self.device.copy(self.data.labels[chosen[number]])
            # Numbered from 1: numpy pads seeds with zeros, so (seed, epoch, 0) would repeat the seed of the order.
            yield self.augment(pictures, labels, seed, epoch, number + 1, plain=plain)

    def step(self, batch: Batch, lr: float | torch.Tensor) -> torch.Tensor:
        """Take one optimizer step.

        Args:
            batch: the batch. In a step that is captured, its shares are tensors on the device.
            lr: the learning rate; in a step that is captured, a tensor [] on the device.

        Returns:
            [2], detached, on the device: the batch's mean loss and its accuracy, both before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        found = self._backward(batch)
        if self.ascent is not None:
            self.ascent.climb()
            self.optimizer.zero_grad(set_to_none=True)
            self._backward(batch)
            self.ascent.descend()
        self.scaler.unscale_(self.optimizer)
        limit_gradient(self.config, self.model)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return found

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Add the gradient of the batch's mean loss to the parameters' gradients. Returns loss and accuracy."""
        total = torch.zeros(2, device=self.device.torch_device)
        for part in batch.parts(self.micro_batches):
            share = len(part.labels) / len(batch.labels)
            loss, accuracy = self._loss(part)
            loss = loss * share
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += torch.stack([loss.detach(), accuracy * share])
        return total

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of a batch, and its accuracy."""
        with self.device.autocast(self.config):
            logits = self.forward(batch.images)
        loss = self.loss_of(logits.float(), batch.labels)
        if batch.other_labels is not None:
            loss = batch.share * loss + batch.other_share * self.loss_of(logits.float(), batch.other_labels)
        accuracy = _accuracy(logits.detach(), batch)
        if self.teacher is None:
            return loss, accuracy
        with self.device.autocast(self.config):
            return self.teacher.blend(loss, logits.float(), batch.images), accuracy


def _accuracy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Accuracy on a batch. In a picture mixed of two, the predicted label counts with its share.

    As in the code of Zhang et al., 2017, https://github.com/facebookresearch/mixup-cifar10.
    """
    predicted = logits.argmax(dim=1)
    accuracy = (predicted == batch.labels).float().mean()
    if batch.other_labels is not None:
        accuracy = batch.share * accuracy + batch.other_share * (predicted == batch.other_labels).float().mean()
    return accuracy


def _out_of_patience(accuracies: list[float], patience: int | None) -> bool:
    """Whether the last ``patience`` epochs brought no better accuracy."""
    return patience is not None and len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience


def _derive(seed: int, epoch: int) -> int:
    """A seed for torch from (seed, epoch), without the correlations that seed + epoch would have."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
