"""Builds the exported model, members and views included, and writes the file of each format."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from search.export.formats.table import format_of
from studies.final import FormatName
from trainer.config import Shape, TrainConfig
from trainer.evaluate import Ensemble
from trainer.models import build_model
from trainer.views import Views


def build_models(
    configs: Sequence[TrainConfig], weights: Sequence[dict[str, torch.Tensor]], views: Views, shape: Shape
) -> tuple[nn.Module, nn.Module]:
    """The exported model, and the model in model.safetensors. They differ only if a single model has views.

    Args:
        configs: configuration of each member.
        weights: state dict of each member.
        views: the views that are averaged with a picture.
        shape: the pictures, and the number of classes.
    """
    members = []
    for config, state in zip(configs, weights, strict=True):
        member = build_model(config, shape).eval()
        member.load_state_dict(state)
        members.append(member)
    whole = Ensemble(members, views).eval()
    if len(members) > 1:
        return whole, whole
    return (whole if views.names else members[0]), members[0]


def write_graphs(
    folder: Path,
    whole: nn.Module,
    shape: tuple[int, int, int],
    formats: Sequence[FormatName],
    about: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the file of each format from one captured graph; any batch size.

    Args:
        folder: the folder to write to.
        whole: the exported model, views and members included, in eval mode.
        shape: (channels, size, size) of an image.
        formats: the formats to write.
        about: metadata of each file, from ``weights.metadata``.
        progress: called with (steps done, steps in all): the capture of the graph, and each file.
    """
    if not formats:
        return
    images, steps = torch.zeros(2, *shape), 1 + len(formats)
    progress(0, steps)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # the exporters warn about their own internals
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(whole, (images,), dynamic_shapes=({0: batch},), strict=False)
        for done, name in enumerate(formats, 1):
            progress(done, steps)
            made = format_of(name)
            made.write(program, folder / made.file, about)
    progress(steps, steps)
