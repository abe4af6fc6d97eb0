"""An ensemble's files hold all of it: its members, its views, any batch size."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from search.errors import ProofFailed, UsageError
from search.export.files import check_sums, write_sums
from search.export.formats import build_nets, write_graphs, write_weights
from search.export.proof import _open_formats
from studies import StudySpec
from trainer.config import Shape
from trainer.data import Dataset
from trainer.evaluate import Ensemble
from trainer.models import build_model


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ensemble, Path]:
    torch.manual_seed(0)
    whole = Ensemble([tiny(), tiny()], ("flip",)).eval()
    folder = tmp_path_factory.mktemp("formats")
    write_graphs(folder, whole, (3, 8, 8), ("onnx", "pt2"))
    return whole, folder


@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_and_torch_vote_as_the_ensemble_does(exported: tuple[Ensemble, Path], batch: int) -> None:
    whole, folder = exported
    pictures = torch.randn(batch, 3, 8, 8)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(folder / "model.pt2").module()
    with torch.inference_mode():
        expected = whole(pictures).numpy()
        alone = [member(pictures).log_softmax(1).numpy() for member in whole.members]
        by_torch = program(pictures).numpy()
    by_onnx = session.run(["logits"], {"pictures": pictures.numpy()})[0]
    assert np.abs(by_torch - expected).max() < 1e-5
    assert np.abs(by_onnx - expected).max() < 1e-5
    assert all(np.abs(one - expected).max() > 1e-3 for one in alone), "no member is the whole"
    assert sum(parameter.numel() for parameter in program.parameters()) == sum(
        parameter.numel() for parameter in whole.parameters()
    )


def test_an_ensembles_weights_are_proven_too_although_no_stock_library_has_its_net(
    exported: tuple[Ensemble, Path], digits: Dataset, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"name": "two", "space": {"lr": [0.1]}, "final": {"ensemble": 2}}
    spec = StudySpec.model_validate(values | {"train": {"model": "resnet10t", "width_mult": 0.1}})
    whole, plain = build_nets(
        spec.train, [build_model(spec.train, Shape(10, 16)).state_dict() for _ in range(2)], spec, 10
    )
    write_weights(tmp_path, plain, spec.train, spec, digits)
    shutil.copy(exported[1] / "model.pt2", tmp_path)
    model = {"stock_timm": False, "members": 2, "views": []}
    _, _, forwards = _open_formats(tmp_path, {"model": model, "config": spec.train.model_dump(mode="json")}, digits)
    assert [file for file, _ in forwards.values()] == ["model.pt2", "model.safetensors"]
    pictures = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        assert np.array_equal(forwards["the product"][1](pictures.numpy()), whole(pictures).numpy())


def test_only_the_formats_asked_for_are_written(tmp_path: Path) -> None:
    write_graphs(tmp_path, tiny().eval(), (3, 8, 8), ())
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    for name in ("a.txt", "plots/b.txt"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    check_sums(tmp_path)
    (tmp_path / "plots/b.txt").write_text("tampered")
    check_sums(tmp_path, ["a.txt"])
    for names in (None, ["plots/b.txt"], ["unlisted"]):
        with pytest.raises(ProofFailed, match="is not the file that was proven"):
            check_sums(tmp_path, names)
    with pytest.raises(UsageError, match="has no usable SHA256SUMS"):
        check_sums(tmp_path / "plots")
