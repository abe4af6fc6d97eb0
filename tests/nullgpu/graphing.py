"""Trains with ``cuda_graph`` on the null GPU, and prints as one JSON object what became of each training.

Run by test_graph.py under the null GPU's environment.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from counting import RECIPE, counts, library, pictures, step_of
from torch import nn

from trainer.checkpoint import load_checkpoint
from trainer.config import TrainConfig
from trainer.device import open_device
from trainer.fit import Training, fit
from trainer.graph import Replay

found: dict[str, Any] = {}
device = open_device("cuda", 1)
data = pictures()


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.model_validate(RECIPE | {"model": "resnet10t", "cuda_graph": True} | settings)


def replays(training: Callable[[], object]) -> dict[str, Any]:
    """Runs a training; returns the replays of graphs, and the lines for the log."""
    library.nullgpu_reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training()
    return {"replays": counts()["graph_launches"], "lines": [str(one.message) for one in caught]}


def with_forward(change: Callable[[nn.Module, torch.Tensor], None]) -> dict[str, Any]:
    """A training of eight steps, in which something else happens before each forward pass."""
    training = Training(config(), data, replace(device, keeps_pictures=False))
    training.model.train()
    training.model.register_buffer("seen", torch.zeros(64, device="cuda"))

    def forward(images: torch.Tensor) -> torch.Tensor:
        change(training.model, images)
        logits: torch.Tensor = training.model(images)
        return logits

    training.forward = forward
    take_step = step_of(training)
    assert isinstance(take_step, Replay)

    def train() -> None:
        for epoch in range(1, 5):
            for batch in training.batches(epoch):
                take_step(batch, 1e-3)

    answer = replays(train)
    answer["batches"] = batches(training.model.state_dict())
    return answer


def batches(state: dict[str, torch.Tensor]) -> list[int]:
    """The different numbers of batches that the batch norms of a net have counted."""
    return sorted({int(number) for name, number in state.items() if name.endswith("num_batches_tracked")})


def main() -> None:
    forward_passes = itertools.count(1)

    def counts_on_the_host(model: nn.Module, _: torch.Tensor) -> None:
        number = torch.full((64,), float(next(forward_passes))).pin_memory()
        model.get_buffer("seen").copy_(number, non_blocking=True)

    def waits(_: nn.Module, images: torch.Tensor) -> None:
        images.sum().item()

    def waits_while_captured(model: nn.Module, images: torch.Tensor) -> None:
        if torch.cuda.is_current_stream_capturing():
            waits(model, images)

    found["plain"] = with_forward(lambda model, images: None)
    found["differs"] = with_forward(counts_on_the_host)
    found["waits"] = with_forward(waits)
    found["fails"] = with_forward(waits_while_captured)

    # -- a training that is interrupted after three of six epochs of two steps, and resumed
    file, recipe = Path(sys.argv[1]) / "checkpoint.pt", config(epochs=6, ema=0.9, mixup=0.5)
    found["begun"] = replays(lambda: list(itertools.islice(fit(recipe, data, device, checkpoint=file), 3)))
    found["resumed"] = replays(lambda: list(fit(recipe, data, device, checkpoint=file)))
    checkpoint = load_checkpoint(file)
    assert checkpoint is not None
    found["resumed"]["batches"] = batches(checkpoint.model)

    # -- what is not captured
    for name, settings, micro_batches in (
        ("off", {"cuda_graph": False}, 1),
        ("fp16", {"precision": "fp16"}, 1),
        ("nadam", {"optimizer": "nadam"}, 1),
        ("divided", {}, 2),
    ):
        training = partial(fit, config(epochs=3, **settings), data, device, micro_batches=micro_batches)
        found[name] = replays(lambda training=training: list(training()))  # type: ignore[misc]
        found[name]["choice"] = device.choices(config(**settings), data.images)[-1]
    found["chosen"] = device.choices(config(), data.images)[-1]
    print(json.dumps(found), flush=True)
    os._exit(0)


main()
