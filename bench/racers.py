"""What races in trainer.py: trainings that never end, each a process of its own that prints a line every few steps.

``python bench/racers.py KIND SETUP``, with SETUP the JSON of a ``Setup``. Kinds: fit (ours), bare (forward, backward
and optimizer on one fixed batch), padded (bare, with our padded channels), folder (a DataLoader over JPEG files) and
arrays (one over pictures in memory).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PICTURES_WITHOUT_END = 1_000_000
"""In an epoch that does not end within a race."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all racers of one race share."""

    pictures: str
    """Folder train/CLASS/*.jpg, each of the race's size already."""
    cache: str
    """Folder for our decode-once cache."""
    size: int
    train: dict[str, Any]
    """TrainConfig, as values."""
    device: str
    threads: int
    loaders: int = 0
    """Processes of a DataLoader."""
    every: int = 1
    """Steps between two lines."""


def main() -> None:
    """Train until killed."""
    kind, setup = sys.argv[1], Setup(**json.loads(sys.argv[2]))

    import numpy as np
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from trainer.config import DataConfig, TrainConfig
    from trainer.data import prepare_data
    from trainer.device import open_device

    device = open_device(setup.device, setup.threads)
    done = 0

    def count_step(*_: object) -> None:
        nonlocal done
        done += 1
        if done % setup.every == 0:
            if setup.device == "cuda":
                torch.cuda.synchronize()
            print("step", flush=True)

    register_optimizer_step_post_hook(count_step)
    config = TrainConfig.model_validate(setup.train)
    source = DataConfig(path=setup.pictures, image_size=setup.size, val_fraction=0.05)
    data = prepare_data(source, Path(setup.cache))
    if kind == "fit":
        from trainer.fit import fit

        train = data.splits["train"]
        endless = np.tile(train, PICTURES_WITHOUT_END // len(train))
        next(fit(config, replace(data, splits={**data.splits, "train": endless}), device))
    else:
        train_plainly(config, setup, data, device, batches_of(kind, setup, data, device), padded=kind == "padded")


def train_plainly(config: Any, setup: Setup, data: Any, device: Any, batches: Iterable[Any], *, padded: bool) -> None:
    """The loop that anyone would write: channels last, fused AdamW."""
    import torch

    from trainer.losses import build_loss, count_classes
    from trainer.models import build_model
    from trainer.optim import build_optimizer
    from trainer.padding import Padding

    torch.manual_seed(0)
    model = build_model(config, data.shape).train()
    if padded:
        Padding(model)
    model = device.place(model)
    optimizer, loss_of = build_optimizer(config, model), build_loss(config, count_classes(data), device.torch_device)
    for images, labels in batches:
        images = images.to(device.torch_device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(device.torch_device, non_blocking=True)
        with device.autocast(config):
            logits = model(images)
        loss = loss_of(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def batches_of(kind: str, setup: Setup, data: Any, device: Any) -> Iterable[Any]:
    """Batches of (images, labels) without end."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.datasets import ImageFolder

    batch_size = setup.train["batch_size"]
    if kind in ("bare", "padded"):
        size = (batch_size, 3, setup.size, setup.size)
        images = torch.randn(size).to(device.torch_device, memory_format=torch.channels_last)
        labels = torch.randint(len(data.class_names), (batch_size,)).to(device.torch_device)
        while True:
            yield images, labels
    transform = torchvision_transform(setup.train)

    class Arrays(Dataset[Any]):
        """As torchvision's own CIFAR10: pictures in memory, through PIL."""

        def __init__(self, images: Any, labels: Any, transform: Callable[..., Any]) -> None:
            self.images, self.labels, self.transform = images, labels, transform

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Any:
            return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])

    if kind == "folder":
        pictures: Dataset[Any] = ImageFolder(Path(setup.pictures) / "train", transform)
    else:
        train = data.splits["train"]
        pictures = Arrays(data.images[train], data.labels[train], transform)
    loader = DataLoader(
        pictures,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=setup.loaders,
        persistent_workers=setup.loaders > 0,
        pin_memory=setup.device == "cuda",
    )
    while True:
        yield from loader


def torchvision_transform(train: dict[str, Any], interpolation: Any = None) -> Callable[..., Any]:
    """The race's augmentation in torchvision's words: flip, rotations (nearest by default), normalise, erase."""
    from torchvision import transforms

    from trainer.data import IMAGENET_MEAN, IMAGENET_STD

    chosen = interpolation or transforms.InterpolationMode.NEAREST
    return transforms.Compose(
        [
            transforms.RandomHorizontalFlip(train["hflip"]),
            *(transforms.RandomRotation(train["rotate"], chosen) for _ in range(train["rotations"])),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            transforms.RandomErasing(train["erase"]),
        ]
    )


if __name__ == "__main__":
    main()
