"""Short trainings of a narrow net on digits, and what is compared of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import EpochResult, TrainConfig

PLAIN = TrainConfig(model="resnet10t", width_mult=0.125, epochs=2, batch_size=32, lr=5e-3, warmup_epochs=0.5)

FULL = PLAIN.model_copy(
    update={
        "epochs": 3,
        "batch_size": 64,
        "dropout": 0.3,
        "label_smoothing": 0.1,
        "hflip": 0.5,
        "rotate": 15.0,
        "crop_padding": 2,
        "erase": 0.3,
        "augment": ({"name": "GaussNoise", "std_range": (0.01, 0.1), "p": 0.5},),  # a tuple: JSON has none
    }
)
OPTIMIZERS = {"adamw": FULL, "sgd": FULL.model_copy(update={"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4})}

SMALL: dict[str, Any] = {"model": "resnet10t", "width_mult": 0.125, "epochs": 2, "batch_size": 64, "lr": 5e-3}


def config_of(**settings: Any) -> TrainConfig:
    return TrainConfig.model_validate(SMALL | settings)


def without_times(results: tuple[EpochResult, ...] | list[EpochResult]) -> list[EpochResult]:
    return [replace(result, seconds=0.0, images_per_second=0.0) for result in results]


def at(path: Path) -> Checkpoint:
    loaded = load_checkpoint(path)
    assert loaded is not None
    return loaded
