"""Two exports on the same pictures; here models of a few numbers that look at a picture's mean colour."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from exports import write_export
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest

from search.errors import HeldError, ProofFailed, StorageError, UsageError
from search.export.compare import Comparison, compare, mcnemar
from search.export.comparison import text_of_comparison
from search.paths import Runs
from search.study.lock import own_study
from search.study.storage import open_storage, parse_url
from search.study.study import SPEC, TEST_OPENING, record_test_use
from studies import StudySpec
from trainer.config import DataConfig
from trainer.data import prepare_data
from trainer.errors import DataError
from trainer.sums import write_sums
from trainer.tree import BEFORE

NAMES = ["blue", "green", "red"]
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


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
    answer = compare(*exports, data=data, runs=Runs(tmp_path))
    first, second = answer.exports
    assert (first.accuracy, second.accuracy) == (28 / 30, 20 / 30)
    # Green pictures are right with the first alone, the two that are called red with the second alone.
    assert answer.to_json()["mcnemar"] == {
        "only_first": 10,
        "only_second": 2,
        "p": pytest.approx(binomtest(2, 12, 0.5).pvalue),
    }
    assert answer.to_json()["pictures"] == {"from": f"{data} (all of it: some may have been trained on)", "n": 30}
    assert [(one.name, one.n, one.first, one.second) for one in answer.classes] == [
        ("green", 10, 1.0, 0.0),
        ("red", 10, 0.8, 1.0),
        ("blue", 10, 1.0, 1.0),
    ]
    assert answer.classes[0].difference == -1.0
    assert answer.to_json()["classes"][0]["difference"] == -1.0
    assert set(first.latency_ms) == {"1", "64"}
    assert (first.interval[0], first.interval[1]) == pytest.approx((0.7868, 0.9815), abs=1e-4)
    # Of the first: 10 of 10 green and 2 red ones taken for green, 8 of 10 red, 10 of 10 blue.
    assert first.scores.macro_f1.value == pytest.approx((20 / 22 + 16 / 18 + 1) / 3)
    assert second.scores.balanced_accuracy.value == pytest.approx((0 + 1 + 1) / 3)
    means = np.array(COLOURS["green"]) / 255  # of a green picture, which the first export knows by its second channel
    assert first.loss == pytest.approx((28 * loss_of(means, 1) + 2 * loss_of(means, 0)) / 30, rel=1e-4)
    assert "chosen by" not in shown(answer)
    by_loss = replace(answer, exports=(replace(first, objective="loss"), second))
    assert re.search(r"\nchosen by +loss +accuracy\n", shown(by_loss))
    told = answer.to_json()["exports"][0]["scores"]  # type: ignore[index, call-overload]
    assert told["macro_f1"]["value"] == first.scores.macro_f1.value  # type: ignore[index, call-overload]
    json.dumps(answer.to_json())


def loss_of(logits: NDArray[np.float64], label: int) -> float:
    """The cross-entropy of one picture."""
    return float(np.log(np.exp(logits).sum()) - logits[label])


def shown(answer: Comparison) -> str:
    """What a terminal of 80 columns shows; sentences are its own to wrap."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(text_of_comparison(answer), soft_wrap=True)
    return capture.get()


def test_the_tables_fit_eighty_columns(exports: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    text = shown(compare(*exports, data=data, runs=Runs(tmp_path)))
    assert "McNemar's test, exact: p = 0.0386, chance alone seldom makes such a difference" in text
    assert re.search(r"\nmacro F1 +93\.27% \(8\d\.\d\d to 100\.00\) +5\d\.\d\d% \(\d\d\.\d\d to \d\d\.\d\d\)", text)
    assert "\ncolours-1: never predicted: green." in text
    assert max(len(line) for line in text.splitlines() if "macro" in line) <= 80
    assert "green" in text
    assert "-100.0%" in text
    assert "top-5" not in text, "three classes have no top 5"
    assert "blue" not in text, "classes without a difference are left out"


def test_a_test_folder_is_preferred(exports: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    data.rename(root / "test")
    (root / "train/red").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "train/red/0.png")
    answer = compare(*exports, data=root, runs=Runs(tmp_path))
    assert answer.to_json()["pictures"] == {"from": f"the test split of {root}", "n": 30}


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
    runs = Runs(tmp_path)
    for second in (other, elsewhere):
        assert compare(own, second, data=data, runs=runs).to_json()["pictures"] == {
            "from": f"the test split of {data}",
            "n": 9,
        }
    both = compare(own, again, data=data, runs=runs)
    assert both.n < 9, "what the one was tested on, the other was in part trained on"
    without = settings | {"test_fraction": 0.0}
    first, second = (write_export(tmp_path / name, **without) for name in ("first", "second"))
    assert compare(first, second, data=data, runs=runs).source == f"the val split of {data}"


def test_exports_of_a_study_of_before_that_used_a_folder_of_a_tracker_are_compared_on_what_tested_them(
    data: Path, tmp_path: Path
) -> None:
    (data / "wandb").mkdir()
    for index, file in enumerate(sorted(data.glob("*/*.png"))):
        with Image.open(file) as image:
            image.putpixel((0, 0), (index, 0, 0))
            image.save(file)
            image.transpose(Image.Transpose.ROTATE_180).save(data / "wandb" / f"{index}.png")
    config = DataConfig(path=str(data), image_size=8, test_fraction=0.3)
    trained = prepare_data(config, tmp_path / "cache", like=next(one for one in BEFORE if "wandb" not in one.litter))
    assert "wandb" in trained.class_names
    settings = {"names": [*NAMES, "wandb"], "weights": np.eye(3, 4), "content_hash": trained.content_hash}
    pair = [write_export(tmp_path / name, **settings, test_fraction=0.3) for name in ("first", "second")]
    answer = compare(pair[0], pair[1], data=data, runs=Runs(tmp_path))
    assert answer.source == f"the test split of {data}"
    assert answer.n == len(trained.splits["test"])
    assert sum(one.n for one in answer.classes if one.name == "wandb") > 0


def test_pictures_whose_table_lies_outside_their_folder_are_compared_with_the_table_of_the_study(
    data: Path, tmp_path: Path
) -> None:
    flat, rows = tmp_path / "flat", ["file,label"]
    flat.mkdir()
    for index, file in enumerate(sorted(data.glob("*/*.png"))):
        with Image.open(file) as image:
            image.putpixel((0, 0), (index, 0, 0))
            image.save(flat / f"{index}.png")
        rows.append(f"{index}.png,{file.parent.name}")
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    config = DataConfig(path=str(flat), labels=str(tmp_path / "mine.csv"), image_size=8, test_fraction=0.3)
    trained = prepare_data(config, tmp_path / "cache")
    settings = {"names": NAMES, "weights": np.eye(3), "content_hash": trained.content_hash, "test_fraction": 0.3}
    pair = [write_export(tmp_path / name, **settings, **config.named_tables) for name in ("own", "other")]
    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    storage = open_storage(url, create=True)
    study = optuna.create_study(study_name="colours", storage=storage)
    values = {"name": "colours", "data": config.model_dump(), "space": {"lr": {"low": 0.1, "high": 1.0}}}
    study.set_user_attr(SPEC, StudySpec.model_validate(values).model_dump(mode="json"))
    answer = compare(pair[0], pair[1], data=flat, runs=Runs(tmp_path), url=url)
    assert answer.to_json()["pictures"] == {"from": f"the test split of {flat}", "n": 9}
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (5, 5), (9, 1), (40, 20), (0, 300)])
def test_mcnemar_is_the_exact_binomial_test(counts: tuple[int, int]) -> None:
    expected = binomtest(counts[0], sum(counts), 0.5).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, abs=1e-12)


def test_what_cannot_be_compared_is_refused_in_a_sentence(
    exports: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    first, second = exports
    other = write_export(tmp_path / "other", names=["a", "b", "c"], weights=np.eye(3))
    with pytest.raises(UsageError, match="have different classes"):
        compare(first, other, data=data, runs=Runs(tmp_path))
    with pytest.raises(UsageError, match="say which to compare on with --data DIR"):
        compare(first, second, data=None, runs=Runs(tmp_path))
    (data / "yellow").mkdir()
    Image.new("RGB", (9, 9)).save(data / "yellow" / "0.png")
    with pytest.raises(DataError, match="do not have 1 of its classes"):
        compare(first, second, data=data, runs=Runs(tmp_path))
    (second / "model.onnx").write_bytes((first / "model.onnx").read_bytes())
    with pytest.raises(ProofFailed, match="is not the file that was proven"):
        compare(first, second, data=data, runs=Runs(tmp_path))


@pytest.fixture
def split(data: Path) -> Path:
    """The pictures as a test split, beside a picture to train on."""
    root = data.parent / "split"
    root.mkdir()
    data.rename(root / "test")
    (root / "train/red").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "train/red/0.png")
    return root


@pytest.fixture
def study(split: Path, tmp_path: Path) -> Iterator[optuna.Study]:
    """The exports' study."""
    storage = open_storage(parse_url(f"sqlite:///{tmp_path}/search.db"), create=True)
    study = optuna.create_study(study_name="colours", storage=storage)
    values = {"name": "colours", "data": {"path": str(split)}, "space": {"lr": {"low": 0.1, "high": 1.0}}}
    study.set_user_attr(SPEC, StudySpec.model_validate(values).model_dump(mode="json"))
    yield study
    storage.remove_session()
    storage.engine.dispose()


def test_a_look_at_a_studys_test_split_is_counted_in_the_study_once(
    exports: tuple[Path, Path], split: Path, study: optuna.Study, tmp_path: Path
) -> None:
    root, url = split, parse_url(f"sqlite:///{tmp_path}/search.db")
    answers = [compare(*exports, data=root, runs=Runs(tmp_path), url=url) for _ in range(2)]
    assert [answer.counted_in for answer in answers] == [("colours",)] * 2
    assert record_test_use(study, "a final model", trial=1) == 2, "the two comparisons were one look"
    elsewhere = compare(*exports, data=root / "test", runs=Runs(tmp_path), url=url)
    assert elsewhere.counted_in == (), "other pictures, as far as anybody can tell"
    nowhere = parse_url(f"sqlite:///{tmp_path}/no.db")
    answer = compare(*exports, data=root, runs=Runs(tmp_path), url=nowhere)
    assert answer.counted_in == ()
    assert "This is a use of a test split, counted nowhere: no study here has these pictures;" in shown(answer)
    assert "This is a use of a test split, counted in 'colours';" in shown(answers[0])


def test_a_look_that_cannot_be_counted_is_refused(
    exports: tuple[Path, Path], split: Path, study: optuna.Study, tmp_path: Path
) -> None:
    url, runs = parse_url(f"sqlite:///{tmp_path}/search.db"), Runs(tmp_path)
    with own_study("colours", url, runs), pytest.raises(HeldError, match="'colours' is in use by process "):
        compare(*exports, data=split, runs=runs, url=url)
    assert [name for name in study.user_attrs if name.startswith(TEST_OPENING)] == []
    (tmp_path / "diary.db").write_text("dear diary")
    with pytest.raises(StorageError, match="file is not a database"):
        compare(*exports, data=split, runs=runs, url=parse_url(f"sqlite:///{tmp_path}/diary.db"))


def test_an_export_whose_study_is_a_path_makes_no_file_there(
    exports: tuple[Path, Path], split: Path, study: optuna.Study, tmp_path: Path
) -> None:
    for export in exports:
        metrics = export / "metrics.json"
        metrics.write_text(metrics.read_text().replace('"colours"', '"../../escaped"'))
        write_sums(export)
    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    assert compare(*exports, data=split, runs=Runs(tmp_path / "runs"), url=url).counted_in == ()
    assert not list(tmp_path.rglob("*escaped*"))


def test_built_in_pictures_need_no_folder(tmp_path: Path) -> None:
    names = [str(digit) for digit in range(10)]
    rng = np.random.default_rng(0)
    one, two = (
        write_export(tmp_path / name, names=names, weights=rng.normal(size=(3, 10)), source="digits", **cached)
        for name, cached in (("one", {}), ("two", {"cache_size": 11}))
    )
    answer = compare(one, two, data=None, runs=Runs(tmp_path))
    assert answer.source == "the val split of digits", "this study has no test split"
    assert answer.n == sum(row.n for row in answer.classes)
