"""The command line of the trainer: python -m trainer STUDY.toml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.__main__ import EXIT_USER_ERROR, main

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "studies" / "digits.toml"
QUICK = [
    "--set",
    "train.epochs=1",
    "--set",
    "train.warmup_epochs=0",
    "--set",
    "train.width_mult=0.125",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["--set", "data.image_size=16", "--cache", str(tmp_path_factory.mktemp("caches"))]


def sentence_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr that a wrong command line gives."""
    assert main(list(arguments)) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.strip()


def test_it_prints_a_line_for_each_epoch(cache: list[str]) -> None:
    command = [sys.executable, "-W", "error", "-m", "trainer", str(DIGITS), *QUICK, *cache, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    model, data, *choices, header, epoch = done.stdout.splitlines()
    assert model == ("resnet10t, 108,562 parameters, 1,841,280 multiply-adds (0.00368 GFLOPs), on CPU, 1 thread")
    assert data == "10 classes, pictures: 1,222 train, 216 val, 359 test"
    assert [line.partition(":")[0] for line in choices] == [
        "picture set",
        "precision",
        "memory layout",
        "optimizer",
        "augmentation",
        "loader processes",
        "steps",
    ]
    assert header == "epoch  train loss  train acc.  val loss  val acc.  seconds  pictures/s"
    number, train_loss, trained, val_loss, accuracy, seconds, speed = epoch.split()
    assert number == "1"
    assert all(0 < float(loss) < 10 for loss in (train_loss, val_loss))
    assert 10 < float(trained.removesuffix("%")) <= 100
    assert 15 < float(accuracy.removesuffix("%")) <= 100
    assert float(seconds) > 0
    assert float(speed) > 0


def test_json_is_one_object_for_each_epoch_also_of_those_resumed(
    cache: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(DIGITS), *QUICK, *cache, "--json", "--device", "cpu", "--checkpoint", str(tmp_path / "trial.ckpt")]
    assert main(command) == 0
    first = capsys.readouterr().out
    result = json.loads(first)
    assert set(result) == {
        "epoch",
        "train_loss",
        "val_loss",
        "val_accuracy",
        "seconds",
        "images_per_second",
        "final",
        "train_accuracy",
        "val_macro_f1",
        "val_balanced_accuracy",
    }
    assert result["epoch"] == 1
    assert main(command) == 0
    assert capsys.readouterr().out == first


def test_a_wrong_setting_exits_2_with_a_sentence_and_no_traceback() -> None:
    command = [sys.executable, "-m", "trainer", str(DIGITS), "--set", "train.lable_smoothing=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"{DIGITS} [train]:\n  lable_smoothing: unknown key; did you mean label_smoothing?\n")


@pytest.mark.parametrize("assignment", ["epochs=1", "trian.epochs=1", "limit.params=3"])
def test_a_setting_that_would_not_be_used_is_refused(assignment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence_of(capsys, str(DIGITS), "--set", assignment) == (
        f"--set {assignment!r}: only data.* and train.* are used here, as in train.epochs=3"
    )


def test_folds_are_refused_instead_of_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence_of(capsys, str(DIGITS), "--set", "data.folds=5") == (
        "data.folds = 5: python -m trainer trains once, on one validation split; use --set data.folds=0, or the command"
        " search launch"
    )


def test_a_gray_net_is_counted_with_its_one_channel(cache: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DIGITS), *QUICK, *cache, "--set", "data.channels=1", "--device", "cpu"]) == 0
    fewer = 2 * 9 * 24  # the two other channels of the first convolution, which has 24 filters
    assert capsys.readouterr().out.startswith(f"resnet10t, {108_562 - fewer:,} parameters, ")


def test_a_study_that_is_not_there_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert sentence_of(capsys, str(missing)) == f"cannot read {missing}: No such file or directory"
    assert sentence_of(capsys, str(tmp_path)) == f"cannot read {tmp_path}: Is a directory"


def test_a_study_that_is_no_toml_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text("[train\nlr = 1")
    assert sentence_of(capsys, str(study)).startswith(f"{study} is not TOML: ")
    study.write_text("[train]\nlr = 1", encoding="utf-16")
    assert sentence_of(capsys, str(study)) == f"cannot read {study}: it is not text in UTF-8; save it as UTF-8"


def test_an_unknown_model_is_a_sentence(cache: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sentence = sentence_of(capsys, str(DIGITS), *QUICK, *cache, "--set", "train.model=rexnet100")
    assert sentence == "model = 'rexnet100' is not a timm model; did you mean rexnet_100?"


def test_pictures_too_small_for_the_model_are_a_sentence(cache: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sentence = sentence_of(
        capsys, str(DIGITS), *QUICK, *cache, "--set", "train.model=inception_v3", "--set", "train.width_mult=1"
    )
    assert sentence.startswith("inception_v3 does not take pictures of 16 px: ")


def test_a_missing_picture_folder_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text("[data]\nimage_size = 16\n")
    sentence = sentence_of(capsys, str(study), "--data", str(tmp_path / "none"), "--cache", str(tmp_path / "caches"))
    assert str(tmp_path / "none") in sentence


def test_a_folder_for_the_digits_is_refused_instead_of_ignored(
    cache: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "the digits are built in" in sentence_of(capsys, str(DIGITS), *QUICK, *cache, "--data", str(tmp_path))


def test_the_example_of_the_library_in_the_documents_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/trainer.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(example.replace("image_size=32", "image_size=16").replace("epochs=3", "epochs=1, width_mult=0.125"), {})
    assert capsys.readouterr().out.split()[0] == "1"
