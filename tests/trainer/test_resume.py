"""Going on after an interruption of any kind, on the CPU or a GPU, changes not one bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from short import FULL, OPTIMIZERS, PLAIN, at, without_times

from trainer.checkpoint import Checkpoint
from trainer.config import DataConfig, TrainConfig
from trainer.data import Dataset, prepare_data
from trainer.device import Device, open_device
from trainer.errors import CheckpointError, DiskError
from trainer.fit import fit


def assert_same_bits(one: Any, other: Any) -> None:
    """Of weights and of optimizer states, however nested."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same_bits(*pair)
    else:
        assert one == other


def assert_same_training(one: Checkpoint, other: Checkpoint) -> None:
    assert_same_bits(one.model, other.model)
    assert_same_bits(one.optimizer, other.optimizer)
    assert without_times(one.history) == without_times(other.history)


@pytest.fixture(scope="module")
def straight(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Where each optimizer comes to if nothing interrupts it."""
    folder = tmp_path_factory.mktemp("straight")
    for name, config in OPTIMIZERS.items():
        list(fit(config, digits, open_device("cpu", 1), checkpoint=folder / name))
    return {name: at(folder / name) for name in OPTIMIZERS}


RESUME = """
import json, sys
from pathlib import Path
from trainer.config import DataConfig, TrainConfig
from trainer.data import open_data
from trainer.device import open_device
from trainer.fit import fit
import torch

asked = json.loads(sys.argv[1])
data = open_data(DataConfig.model_validate(asked["data"]), Path(asked["cache"]))
for config, checkpoint in asked["trials"]:
    device = open_device(asked["device"], 2)
    results = list(fit(TrainConfig.model_validate(config), data, device, checkpoint=Path(checkpoint)))
    print(len(results), torch.get_num_threads())
"""


def python(code: str, asked: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, json.dumps(asked)], capture_output=True, text=True, timeout=200
    )


def interrupted_after_one_epoch(config: TrainConfig, data: Dataset, device: Device, path: Path) -> None:
    training = fit(config, data, device, checkpoint=path)
    next(training)
    training.close()  # type: ignore[attr-defined]
    assert len(at(path).history) == 1


@pytest.mark.slow
def test_resumed_in_a_fresh_process_with_other_threads_it_ends_in_the_same_bits(
    digits: Dataset, digits_config: DataConfig, cpu: Device, tmp_path: Path, straight: dict[str, Checkpoint]
) -> None:
    trials = []
    for name, config in OPTIMIZERS.items():
        interrupted_after_one_epoch(config, digits, cpu, tmp_path / f"{name}.ckpt")
        trials.append([config.model_dump(mode="json"), str(tmp_path / f"{name}.ckpt")])
    asked = {"data": digits_config.model_dump(), "cache": str(digits.cache_path), "trials": trials, "device": "cpu"}
    done = python(RESUME, asked)
    assert done.stdout == "3 1\n3 1\n", done.stderr  # the thread count is the checkpoint's, not the process's
    for name in OPTIMIZERS:
        assert_same_training(at(tmp_path / f"{name}.ckpt"), straight[name])


KILLED = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from trainer.config import DataConfig, TrainConfig
from trainer.data import open_data
from trainer.device import open_device
from trainer.fit import fit

class KillsAtTheFifthBatchOfTheSecondEpoch:
    def __init__(self, images):
        self.images, self.shape, self.batches = images, images.shape, 0
    def __getitem__(self, indices):
        self.batches += 1
        if self.batches == 6 + 1 + 5:  # an epoch is 6 batches to train on and one to validate on
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[indices]

asked = json.loads(sys.argv[1])
data = open_data(DataConfig.model_validate(asked["data"]), Path(asked["cache"]))
data = replace(data, images=KillsAtTheFifthBatchOfTheSecondEpoch(data.images))
for result in fit(TrainConfig.model_validate(asked["config"]), data, open_device("cpu", 1),
                  checkpoint=Path(asked["checkpoint"])):
    print(result.epoch, flush=True)
"""


def test_kill_9_in_the_middle_of_an_epoch_loses_only_that_epoch(
    digits: Dataset, digits_config: DataConfig, tmp_path: Path, straight: dict[str, Checkpoint]
) -> None:
    path = tmp_path / "trial.ckpt"
    asked = {
        "data": digits_config.model_dump(),
        "cache": str(digits.cache_path),
        "config": FULL.model_dump(mode="json"),
        "checkpoint": str(path),
    }
    done = python(KILLED, asked)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1\n"), done.stderr
    assert len(at(path).history) == 1
    assert len(list(fit(FULL, digits, open_device("cpu", 2), checkpoint=path))) == 3
    assert torch.get_num_threads() == 1, "the thread count is the checkpoint's, not the device's"
    assert_same_training(at(path), straight["adamw"])


def test_a_flipped_bit_costs_one_epoch_and_changes_nothing_else(
    digits: Dataset, cpu: Device, tmp_path: Path, straight: dict[str, Checkpoint]
) -> None:
    path = tmp_path / "trial.ckpt"
    training = fit(FULL, digits, cpu, checkpoint=path)
    first = [next(training), next(training)]
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged .*set aside as trial.ckpt.damaged"):
        results = list(fit(FULL, digits, cpu, checkpoint=path))
    assert results[0] == first[0]
    assert without_times(results[1:2]) == without_times(first[1:])
    assert_same_training(at(path), straight["adamw"])


def test_a_finished_training_gives_its_results_again_without_training(
    digits: Dataset, cpu: Device, tmp_path: Path
) -> None:
    path = tmp_path / "trial.ckpt"
    config = PLAIN.model_copy(update={"epochs": 1, "batch_size": 200, "warmup_epochs": 0.0})
    results = list(fit(config, digits, cpu, checkpoint=path))
    written = path.stat().st_mtime_ns
    assert list(fit(config, digits, cpu, checkpoint=path)) == results
    assert path.stat().st_mtime_ns == written


def test_a_checkpoint_of_another_candidate_or_of_other_pictures_is_refused_and_kept(
    digits: Dataset, digits_config: DataConfig, cpu: Device, tmp_path: Path
) -> None:
    path = tmp_path / "trial.ckpt"
    config = PLAIN.model_copy(update={"epochs": 1, "batch_size": 200, "warmup_epochs": 0.0})
    list(fit(config, digits, cpu, checkpoint=path))
    before = path.read_bytes()
    split_otherwise = prepare_data(digits_config.model_copy(update={"split_seed": 1}), digits.cache_path.parent)
    for changed, data in (
        (config.model_copy(update={"lr": 0.004}), digits),
        (config.model_copy(update={"epochs": 2}), digits),
        (config, split_otherwise),
    ):
        with pytest.raises(
            CheckpointError, match=r"trial\.ckpt belongs to another candidate or other pictures; remove"
        ):
            list(fit(changed, data, cpu, checkpoint=path))
    assert path.read_bytes() == before


def test_a_full_disk_stops_the_training_and_room_lets_it_go_on_as_if_nothing_had_been(
    digits: Dataset, cpu: Device, tmp_path: Path, straight: dict[str, Checkpoint]
) -> None:
    path = tmp_path / "trial.ckpt"
    training = fit(FULL, digits, cpu, checkpoint=path)
    next(training)
    path.with_suffix(".partial").symlink_to("/dev/full")  # every write to it finds no space left
    with pytest.raises(DiskError, match="no room for a checkpoint"):
        next(training)
    assert len(at(path).history) == 1
    list(fit(FULL, digits, cpu, checkpoint=path))
    assert_same_training(at(path), straight["adamw"])


@pytest.mark.cuda
def test_on_a_gpu_it_resumes_in_a_fresh_process_bit_for_bit(
    digits: Dataset, digits_config: DataConfig, cuda: Device, tmp_path: Path
) -> None:
    trials = []
    for name, config in OPTIMIZERS.items():
        list(fit(config, digits, cuda, checkpoint=tmp_path / f"{name}-straight.ckpt"))
        interrupted_after_one_epoch(config, digits, cuda, tmp_path / f"{name}.ckpt")
        trials.append([config.model_dump(mode="json"), str(tmp_path / f"{name}.ckpt")])
    asked = {"data": digits_config.model_dump(), "cache": str(digits.cache_path), "trials": trials, "device": "cuda"}
    done = python(RESUME, asked)
    assert done.stdout == "3 1\n3 1\n", done.stderr
    for name in OPTIMIZERS:
        assert_same_training(at(tmp_path / f"{name}.ckpt"), at(tmp_path / f"{name}-straight.ckpt"))
