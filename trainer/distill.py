"""A teacher that a candidate learns from: loading, checks, and the teacher's part of the loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import timm
import torch
from torch import nn
from torch.nn import functional as F

from trainer.config import Distill, TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import ConfigError
from trainer.evaluate import Ensemble
from trainer.models import build_model
from trainer.sums import check_teacher
from trainer.values import expanded, nearest

moved: dict[str, Path] = {}
"""Teachers whose folder on this machine is not the one in the settings (on a node of a cluster): the name in the
settings -> the folder here. The settings keep the name, because checkpoints are compared with the settings."""


@dataclass(frozen=True)
class Normalization:
    """Normalisation of a model's images: mean and standard deviation of each channel, 0 to 1."""

    mean: Sequence[float]
    std: Sequence[float]


class Teacher:
    """A model whose weights stay as they are. It classifies the same views that the student sees."""

    def __init__(self, settings: Distill, model: nn.Module, rescale: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        self.settings, self.model, self.rescale = settings, model.eval().requires_grad_(False), rescale

    def blend(self, loss: torch.Tensor, logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The student's loss with the teacher's share.

        Hinton et al., 2015, section 2: the divergence of softened probabilities, times the squared temperature, which
        keeps the size of the gradient.

        Args:
            loss: loss on the labels, a scalar.
            logits: the student's logits, [batch, classes] float32.
            images: the student's images, normalised, [batch, channels, size, size].
        """
        temperature, weight = self.settings.temperature, self.settings.weight
        with torch.no_grad():
            views = images if self.rescale is None else images * self.rescale[0] + self.rescale[1]
            softened = F.log_softmax(self.model(views).float() / temperature, dim=1)
        student = F.log_softmax(logits / temperature, dim=1)
        divergence = F.kl_div(student, softened, reduction="batchmean", log_target=True)
        return (1 - weight) * loss + weight * temperature**2 * divergence


def open_teacher(settings: Distill, data: Dataset, device: Device) -> Teacher:
    """Load a teacher for these pictures.

    Raises:
        ConfigError: the teacher cannot be loaded, or its classes and their order differ from those of the pictures.
    """
    folder = moved.get(settings.teacher, expanded(settings.teacher))
    if (folder / "config.json").exists():
        model, names, wanted = _load_export(folder, data)
        if names != list(data.class_names):
            raise ConfigError(f"distill.teacher {settings.teacher} has other classes than these pictures")
    else:
        model, wanted = _load_timm(settings.teacher, len(data.class_names))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (wanted.mean, wanted.std))
    own_mean, own_std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    if mean.shape != own_mean.shape:
        raise ConfigError(f"distill.teacher {settings.teacher} takes pictures of {mean.shape[1]} channels")
    rescale = None
    if not (torch.equal(mean, own_mean) and torch.equal(std, own_std)):  # (x * own_std + own_mean - mean) / std
        rescale = ((own_std / std).to(device.torch_device), ((own_mean - mean) / std).to(device.torch_device))
    teacher = Teacher(settings, device.place(model), rescale)
    try:
        with torch.no_grad():
            teacher.model(torch.zeros(1, *data.shape.of_image, device=device.torch_device))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"distill.teacher {settings.teacher} does not take pictures of {data.shape.image_size} px: {error}"
        ) from error
    return teacher


def may_download(settings: Distill) -> bool:
    """Whether loading the teacher may use the network: a timm model may, an export does not.

    Raises:
        ConfigError: the teacher is neither an export nor a timm model.
    """
    if (expanded(settings.teacher) / "config.json").exists():
        return False
    _check_timm_name(settings.teacher)
    return True


def _check_timm_name(name: str) -> None:
    bare = name.partition(".")[0]
    if ":" not in name and bare not in timm.list_models():
        raise ConfigError(
            f"distill.teacher = {name!r} is neither an export nor a timm model; {nearest(bare, timm.list_models())}"
        )


def _load_export(folder: Path, data: Dataset) -> tuple[nn.Module, list[str], Normalization]:
    """The model, the class names and the normalisation of an export, from its folder."""
    check_teacher(str(folder))
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        recipes = [one["config"] for one in metrics.get("members", ())]
        recipes = recipes or [metrics["config"]] * described.get("members", 1)
        names = list(described["label_names"])
        wanted = Normalization(described["pretrained_cfg"]["mean"], described["pretrained_cfg"]["std"])
        shape = replace(data.shape, num_classes=len(names))
        members = [build_model(TrainConfig.model_validate(recipe), shape) for recipe in recipes]
        model = members[0] if len(members) == 1 else Ensemble(members)
        safetensors.torch.load_model(model, str(folder / "model.safetensors"))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ConfigError(f"distill.teacher {folder} is not an export that can be loaded: {error}") from error
    return model, names, wanted


def _load_timm(name: str, num_classes: int) -> tuple[nn.Module, Normalization]:
    """A timm model with its pretrained weights; it must have ``num_classes`` classes."""
    _check_timm_name(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # the network or the hub's library may raise anything
        raise ConfigError(f"distill.teacher {name} cannot be loaded: {error}") from error
    if (found := getattr(model, "num_classes", None)) != num_classes:
        raise ConfigError(f"distill.teacher {name} has {found} classes, these pictures have {num_classes}")
    described = timm.data.resolve_model_data_config(model)
    return model, Normalization(described["mean"], described["std"])
