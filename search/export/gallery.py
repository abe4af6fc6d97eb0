"""The most confident mistakes of an exported model, with heat maps of the areas that each decision depends on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from search.figures.mistakes import Mistake
from trainer.augment import normalise
from trainer.data import Dataset
from trainer.evaluate import Ensemble

MISTAKES = 12
"""Number of mistakes that are shown."""

CELLS = 4
"""Smallest number of cells along each side of a heat map, if the model has so many. The last stage of a model for small
pictures has only one."""


def confident_mistakes(whole: nn.Module, data: Dataset, split: str, logits: NDArray[np.float32]) -> list[Mistake]:
    """The mistakes with the highest probability of the wrong class, the most confident first; at most MISTAKES.

    Args:
        whole: the exported model, in eval mode on the CPU. The heat map of an ensemble is the mean over its members.
        data: the pictures.
        split: the evaluated split.
        logits: [n, classes], the model's logits on the split.
    """
    indices = data.splits[split]
    labels, predicted = data.labels[indices], logits.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    probabilities = torch.from_numpy(logits[wrong]).double().softmax(1).amax(1).numpy()
    order = np.argsort(-probabilities, kind="stable")[:MISTAKES]
    if not len(order):
        return []
    chosen = wrong[order]
    pictures = data.images[indices[chosen]][data.centre]
    images = normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), data.mean, data.std)
    members = list(whole.members) if isinstance(whole, Ensemble) else [whole]
    found = [layer_cam(member, images, torch.from_numpy(predicted[chosen])) for member in members]
    maps = None if any(one is None for one in found) else np.mean([one for one in found if one is not None], axis=0)
    return [
        Mistake(
            picture=pictures[at],
            heat=None if maps is None else maps[at],
            true=data.class_names[labels[index]],
            predicted=data.class_names[predicted[index]],
            probability=float(probabilities[order[at]]),
        )
        for at, index in enumerate(chosen)
    ]


def layer_cam(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> NDArray[np.float32] | None:
    """How much each part of a picture raises a class's logit: LayerCAM on the last stage with at least CELLS cells per
    side.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021, equations 5
    to 7: the activations, each weighted by the positive part of its own gradient, are summed over the channels.

    Args:
        model: a model in eval mode.
        images: [n, channels, size, size], normalised.
        classes: [n], a class for each image.

    Returns:
        [n, size, size] from 0 to 1; None if the model has no square feature maps. (In a vision
        transformer, the output of the patch embedding is one.)
    """
    stage = _last_stage(model, images[:1])
    if stage is None:
        return None
    module, call = stage
    kept: list[torch.Tensor] = []
    calls = Counter[nn.Module]()

    def keep(seen: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if calls[seen] == call:
            kept.append(output)
        calls[seen] += 1

    handle = module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(images.clone().requires_grad_())
            score = logits.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, kept[0])
    finally:
        handle.remove()
    maps = F.relu((F.relu(gradient) * kept[0].detach()).sum(1, keepdim=True))
    maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    scaled: NDArray[np.float32] = (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)).numpy()
    return scaled


def _last_stage(model: nn.Module, image: torch.Tensor) -> tuple[nn.Module, int] | None:
    """The last module whose output has at least CELLS cells per side, and the number of the call, from 0.

    If no output has so many, it is the last module among those with the most cells. The number of the call is needed
    because a model may call the same module more than once in a forward pass.
    """
    found: list[tuple[nn.Module, int, int]] = []
    calls = Counter[nn.Module]()

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3]:
            found.append((module, calls[module], output.shape[2]))
        calls[module] += 1

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    most = max((side for _, _, side in found), default=0)
    return next(((module, call) for module, call, side in reversed(found) if side >= min(CELLS, most)), None)
