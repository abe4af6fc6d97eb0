"""The model files of an export: config.json and model.safetensors in timm's layout, model.onnx, model.pt2."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import timm
import torch
from torch import nn

from studies import StudySpec
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.evaluate import Ensemble
from trainer.models import build_model, is_stock, model_args


def build_nets(
    config: TrainConfig, weights: Sequence[dict[str, torch.Tensor]], spec: StudySpec, num_classes: int
) -> tuple[nn.Module, nn.Module]:
    """The exported model, and the net that model.safetensors holds: the same but for the views of a single net.

    Args:
        config: what every member is built from.
        weights: of each member.
        spec: the study; its ``final.tta`` names the views.
        num_classes: outputs.
    """
    members = []
    for state in weights:
        member = build_model(config, spec.data.shape_for(num_classes)).eval()
        member.load_state_dict(state)
        members.append(member)
    whole = Ensemble(members, spec.final.tta).eval()
    if len(members) > 1:
        return whole, whole
    return (whole if spec.final.tta else members[0]), members[0]


def loads_with_timm(config: TrainConfig, members: int) -> bool:
    """Whether stock ``timm.create_model("local-dir:...")`` builds the exported net."""
    return members == 1 and is_stock(config)


def write_weights(folder: Path, net: nn.Module, config: TrainConfig, spec: StudySpec, data: Dataset) -> None:
    """Write config.json and model.safetensors; an ensemble's tensors are named members.0..., members.1..., ..."""
    size, channels, names = spec.data.image_size, spec.data.channels, list(data.class_names)
    preprocessing = {
        "input_size": (channels, size, size),
        "interpolation": spec.data.interpolation,
        "mean": data.mean,
        "std": data.std,
        "crop_pct": spec.data.crop_pct,
        "crop_mode": "center" if spec.data.resize == "crop" else "squash",
    }
    args = model_args(config, size)
    if loads_with_timm(config, len(net.members) if isinstance(net, Ensemble) else 1):
        timm.models.save_for_hf(
            net,
            str(folder),
            model_config={"label_names": names},
            model_args=args,
            safe_serialization=True,
            data_config=preprocessing,
        )
        return
    safetensors.torch.save_model(net, str(folder / "model.safetensors"))
    described = {"architecture": config.model, "num_classes": len(names), "model_args": args, "label_names": names}
    if isinstance(net, Ensemble):
        described |= {"members": len(net.members), "views": list(net.views)}
    described["pretrained_cfg"] = preprocessing
    (folder / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


def write_graphs(folder: Path, whole: nn.Module, shape: tuple[int, int, int], formats: Sequence[str]) -> None:
    """Write model.pt2 and model.onnx, those that ``formats`` names, from one captured graph; any batch size.

    Args:
        folder: where.
        whole: the exported model, views and members included, in eval mode.
        shape: (channels, size, size) of a picture.
        formats: "onnx", "pt2".
    """
    if not formats:
        return
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    pictures = torch.zeros(2, *shape)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of the exporters about their own internals
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(whole, (pictures,), dynamic_shapes=({0: batch},), strict=False)
        if "pt2" in formats:
            archive = io.BytesIO()  # on a full disk, torch's own writer ends the process
            torch.export.save(program, archive)
            (folder / "model.pt2").write_bytes(archive.getvalue())
        if "onnx" in formats:
            torch.onnx.export(
                program,
                f=folder / "model.onnx",
                dynamo=True,
                input_names=["pictures"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
