"""An export that is killed in each of its stages goes on, and ends as one that was never disturbed.

It is an ensemble with everything that [final] has, in the one format that costs little to write.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from desk import LIMIT, SMALL, Answer, Desk, Watched

from search.export.choice import check_limit
from studies import load
from trainer.data import prepare_data
from trainer.errors import LimitError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FINAL = """
[final]
fit_on = "train+val"
epochs = 2
ema = 0.5
ensemble = 2
limit_each = true
tta = ["flip"]
formats = ["pt2"]
finetune = { epochs = 1, hflip = 0.0 }
"""


@dataclass(frozen=True)
class Ended:
    """What one desk came to."""

    desk: Desk
    answers: list[Answer]
    """Of each command, the last one undisturbed."""
    too_early: list[Path]
    """Exports that were in place before the last command."""
    folder: Path
    metrics: dict[str, Any]


@pytest.fixture(scope="module")
def exports(finished: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ended, Ended]]:
    """One that was never disturbed, and one that was killed while confirming, while retraining and while writing."""
    root = tmp_path_factory.mktemp("killed")
    desks = [finished.desk.copy(root / name) for name in ("straight", "killed")]
    for desk in desks:
        desk.write("small.toml", SMALL.replace("seeds = 2", "seeds = 1") + FINAL)
    try:
        with ThreadPoolExecutor(1) as pool:
            straight = pool.submit(_ended, desks[0], [], [], unread=True)
            killed = _killed(desks[1])
        yield straight.result(), killed
    finally:
        for desk in desks:
            desk.clear()


def _killed(desk: Desk) -> Ended:
    answers, there = [], list[Path]()
    partial = ".*.partial/model.safetensors"
    for number, stage in ((signal.SIGKILL, "confirming: "), (signal.SIGINT, "retraining: "), (signal.SIGKILL, partial)):
        running = desk.start("export-best", "small.toml", "--gpus", "cpu")
        if stage is partial:
            running.until(lambda: list((desk.runs / "exports").glob(partial)))
        else:
            running.until(lambda running=running, stage=stage: stage in running.out.read_text())
        running.send(number)
        answers.append(running.wait())
        there += (desk.runs / "exports").glob("small-*")
    return _ended(desk, answers, there)


def _ended(desk: Desk, answers: list[Answer], there: list[Path], *, unread: bool = False) -> Ended:
    """``unread``: as after ``| head``, nobody reads any more what it says."""
    answer = desk.start("export-best", "small.toml", "--gpus", "cpu", unread=unread).wait()
    assert answer.code == 0, answer.err
    (folder,) = (desk.runs / "exports").glob("small-*")
    metrics = json.loads((folder / "metrics.json").read_text())
    return Ended(desk, [*answers, answer], there, folder, metrics)


def test_killed_in_three_stages_it_ends_in_the_same_export(exports: tuple[Ended, Ended]) -> None:
    straight, killed = exports
    assert [answer.code for answer in killed.answers] == [-9, 75, -9, 0]
    assert killed.answers[1].err == "search: interrupted; nothing is lost, the same command goes on from there\n"
    assert killed.too_early == []
    for name in ("model.safetensors", "config.json"):
        assert (straight.folder / name).read_bytes() == (killed.folder / name).read_bytes()
    own = {"created", "measured_on_this_machine"}
    assert straight.metrics.keys() == killed.metrics.keys()
    assert {name for name in straight.metrics if straight.metrics[name] != killed.metrics[name]} <= own


def test_what_was_trained_before_the_kill_is_not_trained_again(exports: tuple[Ended, Ended]) -> None:
    killed = exports[1]
    assert "confirming: " in killed.answers[0].out
    assert "1 of them already" in killed.answers[1].out or "confirming" not in killed.answers[1].out
    assert "confirming: " not in killed.answers[2].out
    assert "trainings done" not in killed.answers[3].out


def test_nothing_temporary_is_left(exports: tuple[Ended, Ended]) -> None:
    for ended in exports:
        assert [path.name for path in ended.folder.parent.iterdir()] == [ended.folder.name]


def test_the_file_of_an_ensemble_holds_all_of_it(exports: tuple[Ended, Ended]) -> None:
    ended = exports[0]
    model, evaluation = ended.metrics["model"], ended.metrics["evaluation"]
    data = prepare_data(load(str(ended.desk.folder / "small.toml")).data, ended.desk.runs / "cache")
    program = torch.export.load(ended.folder / "model.pt2").module()
    assert sum(parameter.numel() for parameter in program.parameters()) == model["num_params"]
    assert model["members"] == 2
    assert LIMIT < model["num_params"] <= 2 * LIMIT, "over the limit together, within it each"
    indices = data.splits["test"]
    pictures = torch.from_numpy(data.images[indices]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    with torch.inference_mode():
        logits = program((pictures - mean) / std).numpy()
    assert float((logits.argmax(1) == data.labels[indices]).mean()) == evaluation["accuracy"]
    assert np.exp(logits).sum(1) == pytest.approx(1.0, abs=1e-5)
    assert len(evaluation["member_accuracies"]) == 2
    stages = [[epoch["stage"] for epoch in history] for history in ended.metrics["histories"]]
    assert stages == [["training", "training", "finetuning"]] * 2


def test_the_card_of_an_ensemble_hides_nothing(exports: tuple[Ended, Ended]) -> None:
    card = (exports[0].folder / "README.md").read_text()
    params = exports[0].metrics["model"]["num_params"]
    assert f"{params // 2:,} of at most {LIMIT:,} in each of 2 members, {params:,} in all" in card
    assert "Stock timm cannot build an ensemble by name" in card
    assert "which it was trained on" in card
    assert "so no validation result decided when its training ended" in card
    assert "torch.export.load(" in card
    assert "onnxruntime.InferenceSession" not in card


def test_predict_without_onnx_says_what_to_export(exports: tuple[Ended, Ended]) -> None:
    (exports[0].desk.folder / "robin.png").write_bytes((exports[0].folder / "plots" / "confusion.png").read_bytes())
    answer = exports[0].desk.inside("predict", exports[0].folder, "robin.png")
    assert answer.code == 2
    assert 'export with final.formats = ["onnx"]' in answer.err


def test_members_that_exceed_the_limit_together_are_refused(exports: tuple[Ended, Ended]) -> None:
    desk = exports[0].desk
    spec = load(str(desk.folder / "small.toml"))
    data = prepare_data(spec.data, desk.runs / "cache")
    sampled = {"lr": 0.01, "dropout": 0.0, "width_mult": 0.07}
    together = spec.model_copy(update={"final": spec.final.model_copy(update={"limit_each": False})})
    with pytest.raises(
        LimitError, match=r"^2 members with 2 views of a picture have .* the limit is 60,000 parameters;"
    ):
        check_limit([together.final_config_for(sampled, 0)], together, data)
    assert sum(one.params for one in check_limit([spec.final_config_for(sampled, 0)], spec, data)) > LIMIT
