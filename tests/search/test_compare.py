"""Two exports on the same pictures; here models of a few numbers that look at a picture's mean colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import optuna
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest

from search.compare import compare, mcnemar, render
from search.errors import ProofFailed, UsageError
from search.formats import write_sums
from search.storage import open_storage, parse_url
from search.study import SPEC, open_test_split
from studies import StudySpec
from trainer.config import DataConfig
from trainer.data import prepare_data
from trainer.errors import DataError

NAMES = ["blue", "green", "red"]
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


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
    metrics = {"study": "colours", "trial": 1, "identity": folder.name, "model": {"num_params": 9, "macs": 9}}
    metrics["data"] = {"source": source, "config": config, "content_hash": content_hash}
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


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten pictures of each colour, two of the red ones painted green."""
    for name, colour in COLOURS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(10):
            shown = COLOURS["green"] if name == "red" and index < 2 else colour
            Image.new("RGB", (12, 9 + index), shown).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def exports(tmp_path: Path) -> tuple[Path, Path]:
    """One that knows all colours; one, with its classes in another order, that takes green for red."""
    first = write_export(tmp_path / "first", names=NAMES, weights=[[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    second = write_export(
        tmp_path / "second", names=["red", "green", "blue"], weights=[[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    )
    return first, second


def test_both_are_asked_about_the_same_pictures_whatever_their_order_of_classes(
    exports: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    answer = compare(*exports, data=data, cache=tmp_path / "cache")
    first, second = answer["exports"]
    assert (first["accuracy"], second["accuracy"]) == (28 / 30, 20 / 30)
    # Green pictures are right with the first alone, the two that are called red with the second alone.
    assert answer["mcnemar"] == {
        "only_first": 10,
        "only_second": 2,
        "p": pytest.approx(binomtest(2, 12, 0.5).pvalue),
    }
    assert answer["pictures"] == {"from": f"{data} (all of it: some may have been trained on)", "n": 30}
    assert [(one["name"], one["n"], one["first"], one["second"]) for one in answer["classes"]] == [
        ("green", 10, 1.0, 0.0),
        ("red", 10, 0.8, 1.0),
        ("blue", 10, 1.0, 1.0),
    ]
    assert answer["classes"][0]["difference"] == -1.0
    assert set(first["latency_ms"]) == {"1", "64"}
    json.dumps(answer)


def test_the_tables_fit_eighty_columns(exports: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    console = Console(width=80, record=True, quiet=True, file=None)
    with console.capture():
        console.print(render(compare(*exports, data=data, cache=tmp_path / "cache")))
    console.quiet = False
    with console.capture() as capture:
        console.print(render(compare(*exports, data=data, cache=tmp_path / "cache")))
    text = capture.get()
    assert "McNemar's test, exact: p = 0.0386, a difference that chance alone seldom makes" in text
    assert "green" in text
    assert "-100.0%" in text
    assert "blue" not in text, "classes without a difference are left out"


def test_a_test_folder_is_preferred(exports: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    data.rename(root / "test")
    (root / "train/red").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "train/red/0.png")
    answer = compare(*exports, data=root, cache=tmp_path / "cache")
    assert answer["pictures"] == {"from": f"the test split of {root}", "n": 30}


def test_of_a_folder_that_the_exports_were_trained_on_only_what_tested_them_is_taken(
    data: Path, tmp_path: Path
) -> None:
    for index, file in enumerate(sorted(data.glob("*/*.png"))):  # contents that differ, or all are one picture
        with Image.open(file) as image:
            image.putpixel((0, 0), (index, 0, 0))
            image.save(file)
    trained = prepare_data(DataConfig(path=str(data), image_size=8, test_fraction=0.3), tmp_path / "cache")
    settings = {"names": NAMES, "weights": np.eye(3), "content_hash": trained.content_hash, "test_fraction": 0.3}
    own, other = (write_export(tmp_path / name, **settings) for name in ("own", "other"))
    again = write_export(tmp_path / "again", **settings, split_seed=1)
    elsewhere = write_export(tmp_path / "elsewhere", names=NAMES, weights=np.eye(3))
    cache = tmp_path / "cache"
    for second in (other, elsewhere):
        assert compare(own, second, data=data, cache=cache)["pictures"] == {"from": f"the test split of {data}", "n": 9}
    both = compare(own, again, data=data, cache=cache)["pictures"]
    assert both["n"] < 9, "what the one was tested on, the other was in part trained on"
    without = settings | {"test_fraction": 0.0}
    first, second = (write_export(tmp_path / name, **without) for name in ("first", "second"))
    assert compare(first, second, data=data, cache=cache)["pictures"]["from"] == f"the val split of {data}"


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (5, 5), (9, 1), (40, 20), (0, 300)])
def test_mcnemar_is_the_exact_binomial_test(counts: tuple[int, int]) -> None:
    expected = binomtest(counts[0], sum(counts), 0.5).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, abs=1e-12)


def test_what_cannot_be_compared_is_refused_in_a_sentence(
    exports: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    first, second = exports
    other = write_export(tmp_path / "other", names=["a", "b", "c"], weights=np.eye(3))
    with pytest.raises(UsageError, match="know different classes"):
        compare(first, other, data=data, cache=tmp_path)
    with pytest.raises(UsageError, match="say which to compare on with --data DIR"):
        compare(first, second, data=None, cache=tmp_path)
    (data / "yellow").mkdir()
    Image.new("RGB", (9, 9)).save(data / "yellow" / "0.png")
    with pytest.raises(DataError, match="do not know 1 of its classes"):
        compare(first, second, data=data, cache=tmp_path)
    (second / "model.onnx").write_bytes((first / "model.onnx").read_bytes())
    with pytest.raises(ProofFailed, match="is not the file that was proven"):
        compare(first, second, data=data, cache=tmp_path)


def test_a_look_at_a_studys_test_split_is_counted_in_the_study_once(
    exports: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "split"
    root.mkdir()
    data.rename(root / "test")
    (root / "train/red").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "train/red/0.png")
    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    storage = open_storage(url, create=True)
    study = optuna.create_study(study_name="colours", storage=storage)
    values = {"name": "colours", "data": {"path": str(root)}, "space": {"lr": {"low": 0.1, "high": 1.0}}}
    spec = StudySpec.model_validate(values)
    study.set_user_attr(SPEC, spec.model_dump(mode="json"))
    answers = [compare(*exports, data=root, cache=tmp_path / "cache", url=url) for _ in range(2)]
    assert [answer["counted_in"] for answer in answers] == [["colours"]] * 2
    assert open_test_split(study, "a final model", trial=1) == 2, "the two comparisons were one look"
    elsewhere = compare(*exports, data=root / "test", cache=tmp_path / "cache", url=url)
    assert elsewhere["counted_in"] == [], "other pictures, as far as anybody can tell"
    nowhere = parse_url(f"sqlite:///{tmp_path}/no.db")
    assert compare(*exports, data=root, cache=tmp_path / "cache", url=nowhere)["counted_in"] == []
    storage.remove_session()
    storage.engine.dispose()


def test_built_in_pictures_need_no_folder(tmp_path: Path) -> None:
    names = [str(digit) for digit in range(10)]
    rng = np.random.default_rng(0)
    one, two = (
        write_export(tmp_path / name, names=names, weights=rng.normal(size=(3, 10)), source="digits")
        for name in ("one", "two")
    )
    answer = compare(one, two, data=None, cache=tmp_path / "cache")
    assert answer["pictures"]["from"] == "the val split of digits", "this study has no test split"
    assert answer["pictures"]["n"] == sum(row["n"] for row in answer["classes"])
