"""Each format is written, opened and told; an ensemble's files hold all of it: members, views, any batch size."""

from __future__ import annotations

import ast
import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import exports
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from choices import UNKNOWN
from torch import nn

from search.errors import ProofFailed, UsageError
from search.export import formats
from search.export.build import build_models, write_graphs
from search.export.card import card
from search.export.files import check_sums
from search.export.formats import weights
from search.export.formats.format import Format
from search.export.formats.table import FORMAT_NAMES, format_of
from search.export.formats.weights import write_weights
from search.export.proof import _open_formats
from search.export.record import ExportRecord
from studies import StudySpec
from studies.final import Final, FormatName
from trainer.config import Shape
from trainer.data import Dataset
from trainer.evaluate import Ensemble
from trainer.models import build_model
from trainer.sums import write_sums
from trainer.views import NO_VIEWS, Views


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


VIEWS = Views(
    ("flip", "vflip", "rotate=10", "rotate=-90", "shift=3,-2", "gray", "fancy_pca"),
    (0.5, 0.45, 0.4),
    (0.25, 0.2, 0.3),
    (0.03, -0.02, 0.01),
)
ABOUT = {"class_names": json.dumps(["\ud55c\uad6d", "\udcff"]), "size": "8"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ensemble, Path]:
    torch.manual_seed(0)
    whole = Ensemble([tiny(), tiny()], VIEWS).eval()
    folder = tmp_path_factory.mktemp("formats")
    write_graphs(folder, whole, (3, 8, 8), ("onnx", "pt2"), ABOUT)
    return whole, folder


FORMATS = [format_of(name) for name in FORMAT_NAMES]
each_format = pytest.mark.parametrize("one", FORMATS, ids=FORMAT_NAMES)


@each_format
def test_each_format_that_a_study_may_name_comes_back_as_it_was_written(
    one: Format, exported: tuple[Ensemble, Path]
) -> None:
    whole, folder = exported
    images = torch.randn(3, 3, 8, 8)
    with torch.inference_mode():
        expected = whole(images).numpy()
    opened = one.open(folder / one.file)
    assert np.abs(opened.forward(images.numpy()) - expected).max() < 1e-5
    if opened.model is not None:
        counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (opened.model, whole)]
        assert counts[0] == counts[1]


def test_each_format_has_a_file_a_library_and_lines_of_its_own() -> None:
    for facts in ({one.file for one in FORMATS}, {one.library for one in FORMATS}, {one.loading for one in FORMATS}):
        assert len(facts) == len(FORMATS)
    assert weights.FILE not in {one.file for one in FORMATS}
    assert set(FORMAT_NAMES) == set(get_args(FormatName))


@each_format
def test_the_setting_the_card_and_the_versions_tell_of_a_format(one: Format) -> None:
    (name,) = (name for name in FORMAT_NAMES if format_of(name) is one)
    assert one.file in (Final.model_fields["formats"].description or "")
    recorded = ExportRecord.model_validate(exports.recorded())
    told = card(recorded.model_copy(update={"formats": (name,)}))
    assert [other.loading in told for other in FORMATS] == [other is one for other in FORMATS]
    assert f"PATH/TO/THIS/FOLDER/{one.file}" in one.loading
    nameless = recorded.model.model_copy(update={"stock_timm": False})
    assert f"library_name: {one.hub_library}\n" in card(
        recorded.model_copy(update={"formats": (name,), "model": nameless})
    )
    assert all(version(package) for package in one.packages)


def test_a_format_without_code_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=UNKNOWN):
        write_graphs(tmp_path, tiny().eval(), (3, 8, 8), [UNKNOWN], {})


def test_the_room_lists_its_files() -> None:
    folder = Path(formats.__file__).parent
    listed = {line.split()[0] for line in (formats.__doc__ or "").partition("\n\n")[2].splitlines()}
    assert listed == {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert {one.write.__module__ for one in FORMATS} == {
        f"search.export.formats.{name}" for name in listed - {"format", "table", "weights"}
    }


@pytest.mark.parametrize("file", sorted({one.open.__code__.co_filename for one in FORMATS} | {weights.__file__}))
def test_a_format_is_opened_by_stock_libraries_alone(file: str) -> None:
    """Else the proof would not notice that a stranger cannot open it."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    (function,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith("open")
    )
    ours = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("search", "studies", "trainer"):
            ours |= {name.asname or name.name for name in node.names}
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    assert used & ours == {"Opened"}


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
    views = replace(VIEWS, mean=digits.mean, std=digits.std)
    whole, plain = build_models(
        [spec.train] * 2, [build_model(spec.train, Shape(10, 16)).state_dict() for _ in range(2)], views, Shape(10, 16)
    )
    write_weights(tmp_path, plain, [spec.train] * (2 if spec.final.ensemble == 2 else 1), spec, digits)
    shutil.copy(exported[1] / "model.pt2", tmp_path)
    model = {"stock_timm": False, "members": 2, "views": list(VIEWS.names), "fancy_pca": {"shift": VIEWS.colour_shift}}
    card = {"model": model, "config": spec.train.model_dump(mode="json"), "formats": ["pt2"]}
    _, _, _, forwards = _open_formats(tmp_path, card, digits)
    assert [file for file, _ in forwards.values()] == ["model.pt2", "model.safetensors"]
    pictures = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        assert np.array_equal(forwards["this program"][1](pictures.numpy()), whole(pictures).numpy())


def test_a_net_with_the_stem_for_cifar_is_exported_as_what_it_is(digits: Dataset, tmp_path: Path) -> None:
    train = {"model": "resnet10t", "width_mult": 0.1, "stem": "cifar"}
    spec = StudySpec.model_validate({"name": "stem", "space": {"lr": [0.1]}, "train": train})
    state = build_model(spec.train, digits.shape).state_dict()
    whole, plain = build_models([spec.train], [state], NO_VIEWS, digits.shape)
    write_weights(tmp_path, plain, [spec.train] * (2 if spec.final.ensemble == 2 else 1), spec, digits)
    write_graphs(tmp_path, whole, (3, 16, 16), FORMAT_NAMES, {})
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["model_args"]["stem"] == "cifar"
    with pytest.raises(TypeError, match="stem"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    model = {"stock_timm": False, "members": 1, "views": []}
    card = {"model": model, "config": spec.train.model_dump(mode="json"), "formats": list(FORMAT_NAMES)}
    _, _, _, forwards = _open_formats(tmp_path, card, digits)
    assert "this program" in forwards
    pictures = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        expected = whole(pictures).numpy()
    for _, forward in forwards.values():
        assert np.abs(forward(pictures.numpy()) - expected).max() < 1e-4


def test_only_the_formats_asked_for_are_written(tmp_path: Path) -> None:
    write_graphs(tmp_path, tiny().eval(), (3, 8, 8), (), {})
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
