"""The proof of an export fails when a file says or does anything else than in the training."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from desk import Answer
from safetensors.numpy import load_file, save_file
from stranger import Exported, onnx_logits

import search.export.export
import search.export.proof
from search.export.proof import Difference
from studies import load
from trainer.data import prepare_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["fc.bias"] = tensors["fc.bias"] + np.float32(0.001)
    save_file(tensors, folder / "model.safetensors")


def _mean(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (folder / "config.json").write_text(json.dumps(config))


def _names(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["label_names"].reverse()
    (folder / "config.json").write_text(json.dumps(config))


def _accuracy(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["evaluation"]["plain_accuracy"] += 1 / metrics["evaluation"]["n"]
    (folder / "metrics.json").write_text(json.dumps(metrics))


def _metrics(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def _limit(folder: Path) -> None:
    _metrics(folder, lambda metrics: metrics["limit"].update(params=metrics["model"]["num_params"] - 1))


def _macs(folder: Path) -> None:
    _metrics(folder, lambda metrics: metrics["model"].update(macs=metrics["model"]["macs"] + 1))


def _other_onnx(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    bias = next(array for array in model.graph.initializer if array.name == "fc.bias")
    values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, folder / "model.onnx")


def _no_onnx(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def _nothing(_folder: Path) -> None:
    """The proof of an export that nobody touched."""


TAMPERED: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "nothing": (_nothing, 0, ""),
    "weights": (_weights, 9, "timm's logits differ by 1.0e-03, more than 1e-04"),
    "mean": (_mean, 9, "timm's logits differ by "),
    "names": (_names, 9, "class names: ['9', '8', "),
    "accuracy": (_accuracy, 9, "accuracy through timm: 0."),
    "limit": (_limit, 9, "parameters, over the limit of "),
    "multiply-adds": (_macs, 9, "multiply-adds: "),
    "a file": (_no_onnx, 9, "model.onnx is not there, although metrics.json lists its format"),
    "onnx": (_other_onnx, 9, "ONNX Runtime's logits differ by 1.0e-02, more than 1e-04"),
}


def test_the_proof_finds_files_that_are_not_read_as_in_the_training(exported: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.shapes.folder, tmp_path / "export")
    _metrics(folder, lambda metrics: metrics.update(formats=[]))
    np.savez(folder / "reference-logits.npz", whole=exported.shapes.logits, plain=exported.shapes.logits)
    pictures = exported.shapes.test_pictures[0].parents[2]
    config = load(str(pictures.parent / "shapes.toml"), [f"data.path={pictures}"]).data
    data = prepare_data(config, tmp_path / "cache")
    black = torch.zeros(3, 24, 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.export.proof, "read_images", lambda files, _: black.expand(len(files), 3, 24, 24).numpy())
        with pytest.raises(Difference, match="reads pictures differently"):
            search.export.proof.prove(folder, config, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm.data, "create_transform", lambda **_: lambda _: black)
        with pytest.raises(Difference, match="raw files, read as timm's own"):
            search.export.proof.prove(folder, config, data)
    moved = config.model_copy(update={"path": str(tmp_path)})
    with pytest.raises(Difference, match=r"\.png is missing; the accuracy of the card was measured on it"):
        search.export.proof.prove(folder, moved, data)


@pytest.fixture(scope="module")
def proofs(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """The proof of each copy of the export in which one thing was changed."""
    root = tmp_path_factory.mktemp("tampered")
    config = load(str(exported.desk.folder / "small.toml")).data
    data = prepare_data(config, exported.desk.runs / "cache")
    stated = json.loads((exported.digits.folder / "config.json").read_text())["pretrained_cfg"]
    pixels = data.images[data.splits["test"]].astype(np.float32) / 255
    normalised = (pixels - np.array(stated["mean"], np.float32)) / np.array(stated["std"], np.float32)
    batch = np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=np.float32)
    reference = onnx_logits(exported.digits.folder, batch)

    def prove(name: str) -> Answer:
        folder = shutil.copytree(exported.digits.folder, root / name)
        np.savez(folder / "reference-logits.npz", whole=reference, plain=reference)
        TAMPERED[name][0](folder)
        if name == "nothing":
            search.export.proof.prove(folder, config, data)
            return Answer(0, "", "")
        if name != "weights":  # a process of its own costs seconds
            with pytest.raises(Difference) as caught:
                search.export.proof.prove(folder, config, data)
            return Answer(search.export.proof.EXIT_PROOF_FAILED, "", f"{caught.value}\n")
        command = [sys.executable, "-m", "search.export.proof", folder, data.cache_path, config.model_dump_json()]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        return Answer(process.returncode, process.stdout, process.stderr)

    return {name: prove(name) for name in TAMPERED}


@pytest.mark.parametrize("name", list(TAMPERED))
def test_the_proof_finds_what_was_tampered_with(proofs: dict[str, Answer], name: str) -> None:
    _, code, sentence = TAMPERED[name]
    assert proofs[name].code == code, proofs[name]
    assert sentence in proofs[name].err
    assert "Traceback" not in proofs[name].err
    assert len(proofs[name].err.splitlines()) == (1 if code else 0)
