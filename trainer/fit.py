"""The training loop: one function, read from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from trainer.augment import Augmentation
from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trainer.config import EpochResult, TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import CheckpointError, DivergedError
from trainer.evaluate import measure, predict_logits
from trainer.models import build_model
from trainer.optim import build_optimizer, learning_rate


def fit(
    config: TrainConfig, data: Dataset, device: Device, *, checkpoint: Path | None = None
) -> Iterator[EpochResult]:
    """Train a candidate; yield one result per epoch. The caller owns the loop and stops it by not asking on.

    With ``checkpoint``, the state after each epoch is durable there before its result is yielded. Where the file
    exists already, its results are yielded first and training goes on after them, bit for bit as if it had never
    stopped (same kind of device; the thread count is taken from the checkpoint).

    Args:
        config: the candidate.
        data: pictures with "train" and "val" splits.
        device: where to train, from ``open_device``.
        checkpoint: file to resume from and to write; None keeps nothing.

    Raises:
        ConfigError: the model or the augmentation cannot be built.
        DivergedError: the loss is not finite.
        CheckpointError: the checkpoint is of another candidate or other pictures.
        DiskError: no room for the checkpoint.
    """
    # -- the candidate: model, optimizer, augmentation
    image_size = data.images.shape[1]
    torch.manual_seed(_derive(config.seed, 0))
    model = device.place(build_model(config, len(data.class_names), image_size))
    optimizer = build_optimizer(config, model)
    augment = Augmentation(config, device)

    train = data.splits["train"]
    batch_size = min(config.batch_size, len(train))
    steps_per_epoch = (
        len(train) // batch_size
    )  # the incomplete last batch is left out; another one each epoch

    # -- where it stopped, if it was here before
    history: list[EpochResult] = []
    resumed = load_checkpoint(checkpoint) if checkpoint else None
    if resumed is not None:
        # Compared as JSON, which knows no tuples: they were saved as lists, in albumentations' arguments.
        same_candidate = resumed.config.model_dump_json() == config.model_dump_json()
        if not same_candidate or resumed.data_hash != data.fingerprint:
            raise CheckpointError(
                f"{checkpoint} belongs to another candidate or other pictures; remove it or rename it"
            )
        model.load_state_dict(resumed.model)
        optimizer.load_state_dict(resumed.optimizer)
        torch.set_num_threads(resumed.num_threads)
        history = list(resumed.history)
        yield from history

    for epoch in range(len(history) + 1, config.epochs + 1):
        # -- one epoch of training; nothing in it waits for the device
        started = time.perf_counter()
        torch.manual_seed(_derive(config.seed, epoch))  # dropout, drop path
        order = np.random.default_rng((config.seed, epoch)).permutation(train)
        model.train()
        total_loss = torch.zeros((), device=device.torch_device)
        for batch in range(steps_per_epoch):
            step = (epoch - 1) * steps_per_epoch + batch
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, steps_per_epoch)
            chosen = order[batch * batch_size : (batch + 1) * batch_size]
            # From 1: numpy pads seeds with zeros, so (seed, epoch, 0) is what the order was drawn from.
            images = augment(data.images[chosen], config.seed, epoch, batch + 1)
            labels = device.copy(data.labels[chosen])
            with device.autocast(config):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.detach()
        train_loss = total_loss.item() / steps_per_epoch
        train_seconds = time.perf_counter() - started

        # -- what it is worth
        model.eval()
        with device.autocast(config):
            logits = predict_logits(model, data, "val", device)
        metrics = measure(logits, data.labels[data.splits["val"]])
        if not (math.isfinite(train_loss) and math.isfinite(metrics.loss)):
            raise DivergedError(
                f"epoch {epoch} has a training loss of {train_loss:g} and a validation loss of"
                f" {metrics.loss:g}; try a lower lr than {config.lr:g}"
            )
        history.append(
            EpochResult(
                epoch=epoch,
                train_loss=train_loss,
                val_loss=metrics.loss,
                val_accuracy=metrics.accuracy,
                seconds=time.perf_counter() - started,
                images_per_second=steps_per_epoch * batch_size / train_seconds,
            )
        )

        # -- durable before anyone hears of it
        if checkpoint:
            state = Checkpoint(
                config=config,
                data_hash=data.fingerprint,
                num_threads=torch.get_num_threads(),
                history=tuple(history),
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            save_checkpoint(checkpoint, state)
        yield history[-1]


def _derive(seed: int, epoch: int) -> int:
    """A seed for torch from (seed, epoch), without the correlations of seed + epoch."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
