"""The rank of feature maps (Lin et al., 2020, "HRank"): a filter whose maps have a low rank carries little information.

A convolution's feature maps are taken after the normalisation and the activation that follow it directly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainer.augment import normalise
from trainer.config import Shape, TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import ConfigError
from trainer.kept import recall, write_checked
from trainer.models import build_model
from trainer.values import nearest

PICTURES = 500
"""Largest number of training pictures whose feature maps are taken, evenly spaced; as many as in the paper."""

BATCH = 50

State = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of the feature maps of a convolution."""

    values: NDArray[np.int64]
    """[pictures, filters]"""
    most: int
    """The largest possible rank: the shorter side of a map."""

    @property
    def filters(self) -> int:
        """Number of filters."""
        return int(self.values.shape[1])

    def lowest(self, number: int) -> list[int]:
        """Indices of the filters with the lowest mean rank, sorted by index; of equal filters the first are taken."""
        return sorted(np.argsort(self.values.mean(axis=0), kind="stable")[:number].tolist())


def ranks_file(checkpoint: Path) -> Path:
    """The file that keeps the ranks of a training, beside its checkpoint."""
    return checkpoint.with_name("ranks.json")


def convolutions(config: TrainConfig, shape: Shape) -> dict[str, int]:
    """Convolutions of a candidate whose feature maps have more than one pixel: name -> number of filters.

    Raises:
        ConfigError: as in ``build_model``.
    """
    model, found = build_model(config, shape, "meta").eval(), dict[str, int]()

    def note(name: str) -> Callable[[nn.Module, tuple[object, ...], torch.Tensor], None]:
        def after(_module: nn.Module, _inputs: tuple[object, ...], maps: torch.Tensor) -> None:
            if maps.ndim == 4 and min(maps.shape[2:]) > 1:
                found[name] = maps.shape[1]

        return after

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        model(torch.empty(1, *shape.of_image, device="meta"))
    return found


def check_layer(config: TrainConfig, shape: Shape, layer: str) -> None:
    """Check that a candidate has a convolution of this name.

    Raises:
        ConfigError: it has none; the message names the nearest, or those that it has.
    """
    known = convolutions(config, shape)
    if layer not in known:
        raise ConfigError(
            f"final.rerank.layer = {layer!r}: {config.model} has no such convolution, or its maps have one pixel; "
            f"{nearest(layer, known)}"
        )


def feature_maps(model: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """The feature maps [n, filters, h, w] of a convolution, after the modules that follow it directly.

    A module follows if its input is the unchanged output of the module before it, its output has the same shape, and it
    contains no convolution or linear layer. So the series ends at a residual connection, a pooling or the next
    convolution.
    """
    convolution = model.get_submodule(layer)
    last: torch.Tensor | None = None
    version, maps = -1, images
    fed: dict[nn.Module, bool] = {}

    def before(module: nn.Module, inputs: tuple[object, ...]) -> None:
        # The version tells whether the tensor was changed in place, as residual connections do.
        fed[module] = last is not None and bool(inputs) and inputs[0] is last and last._version == version

    def after(module: nn.Module, _inputs: tuple[object, ...], output: torch.Tensor) -> None:
        nonlocal last, version, maps
        if module is convolution or (fed[module] and output.shape == maps.shape):
            last, version, maps = output, output._version, output.clone()

    weighty = (nn.Conv1d, nn.Conv2d, nn.Linear)
    handles = []
    for module in model.modules():
        if module is convolution or not any(isinstance(part, weighty) for part in module.modules()):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return maps


def ranks_at(layer: str, config: TrainConfig, weights: State, data: Dataset, device: Device, file: Path) -> Ranks:
    """The ranks of a convolution's feature maps over training pictures: those in the file, or else measured.

    The file keeps the ranks. A training that goes on after a kill, perhaps on another device, then has the same ones.

    Args:
        layer: name of the convolution.
        config: the candidate.
        weights: its trained weights.
        data: pictures with a "train" split.
        device: the device that computes the maps; the ranks are computed on the CPU.
        file: file that keeps the ranks.
    """
    match recall(file, "the ranks are measured again"):
        case {"ranks": [*rows], "most": int(most)}:
            return Ranks(np.array(rows, np.int64), most)
    model = build_model(config, data.shape)
    model.load_state_dict(weights)
    model = device.place(model).eval()
    train, rows, most = data.splits["train"], [], 0
    chosen = train[:: -(-len(train) // PICTURES)]
    for start in range(0, len(chosen), BATCH):
        pictures = device.copy(data.images[chosen[start : start + BATCH]][data.centre]).permute(0, 3, 1, 2).float()
        maps = feature_maps(model, layer, normalise(pictures, data.mean, data.std)).cpu()
        rows += torch.linalg.matrix_rank(maps).tolist()
        most = min(maps.shape[2:])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_checked(file, {"ranks": rows, "most": most})
    return Ranks(np.array(rows, np.int64), most)


def drawn_again(config: TrainConfig, shape: Shape, weights: State, layer: str, filters: list[int]) -> State:
    """The weights, with new random values for some filters of a convolution. The candidate's seed decides the values.

    Only the convolution's own tensors change: the normalisation after it adapts in the training.
    """
    torch.manual_seed(int(np.random.SeedSequence((config.seed, 0, 1)).generate_state(1, np.uint64)[0]))
    model = build_model(config, shape)
    fresh, changed = model.state_dict(), dict(weights)
    for name, _ in model.get_submodule(layer).named_parameters(recurse=False):
        changed[f"{layer}.{name}"] = weights[f"{layer}.{name}"].clone()
        changed[f"{layer}.{name}"][filters] = fresh[f"{layer}.{name}"][filters]
    return changed
