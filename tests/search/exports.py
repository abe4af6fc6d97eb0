"""Exports of a few numbers, as far as whoever classifies or compares with them reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trainer.sums import write_sums


def recorded() -> dict[str, Any]:
    """The metrics.json of a real export, as the program wrote it when version 2 of that file was new."""
    return json.loads((Path(__file__).parent / "metrics-2.json").read_text())  # type: ignore[no-any-return]


def write_export(folder: Path, *, names: list[str], weights: Any, source: str = "folder", **data: Any) -> Path:
    """An export as far as a comparison reads it: logits are ``weights`` times the mean of each channel.

    ``data``: further settings of its pictures, and the hash of their contents.
    """
    folder.mkdir()
    preprocessing = {"input_size": [3, 8, 8], "interpolation": "bicubic", "mean": [0.0] * 3, "std": [1.0] * 3}
    preprocessing |= {"crop_pct": 1.0, "crop_mode": "center"}
    (folder / "config.json").write_text(json.dumps({"label_names": names, "pretrained_cfg": preprocessing}))
    content_hash = data.pop("content_hash", "of pictures elsewhere")
    config = {"source": source, "image_size": 8} | data
    metrics = recorded() | {"study": "colours", "trial": 1, "identity": folder.name}
    metrics["model"] |= {"num_params": 9, "macs": 9}
    metrics["data"] |= {"source": source, "config": config, "content_hash": content_hash}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    matrix = numpy_helper.from_array(np.array(weights, np.float32), "weights")
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pictures", "axes"], ["means"], keepdims=0),
            helper.make_node("MatMul", ["means", "weights"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(names)])],
        [matrix, axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    write_sums(folder)
    return folder


def write_whole_export(folder: Path, *, identity: str = "") -> Path:
    """An export with all the files of one of today; nobody loads its weights."""
    write_export(folder, names=["a", "b"], weights=np.eye(3, 2))
    metrics = recorded() | {"version": 3, "identity": identity or folder.name}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "README.md").write_text("# A card\n")
    (folder / "class_map.txt").write_text("a\nb\n")
    (folder / "plots").mkdir()
    for name in ("curves", "confusion"):
        (folder / f"plots/{name}.png").write_bytes(name.encode())
    write_sums(folder)
    return folder
