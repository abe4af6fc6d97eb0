"""Training: it learns, a seed is all that it depends on, and an interruption changes not one bit.

The golden losses in golden/losses.json hold the recipe: they change whenever the same configuration trains to another
result. If that is meant, raise RECIPE_VERSION in trainer/config.py and renew them:

    python tests/trainer/test_fit.py
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import RECIPE_VERSION, DataConfig, EpochResult, Sam, TrainConfig
from trainer.data import Dataset, prepare_data
from trainer.device import Device, open_device
from trainer.errors import CheckpointError, ConfigError, DiskError, DivergedError
from trainer.evaluate import predict_logits
from trainer.fit import fit
from trainer.models import build_model

GOLDEN = Path(__file__).parent / "golden" / "losses.json"

PLAIN = TrainConfig(model="resnet10t", width_mult=0.125, epochs=2, batch_size=32, lr=5e-3, warmup_epochs=0.5)

FULL = PLAIN.model_copy(
    update={
        "epochs": 3,
        "batch_size": 64,
        "dropout": 0.3,
        "label_smoothing": 0.1,
        "hflip": 0.5,
        "rotate": 15.0,
        "crop_padding": 2,
        "erase": 0.3,
        "augment": ({"name": "GaussNoise", "std_range": (0.01, 0.1), "p": 0.5},),  # a tuple: JSON has none
    }
)
OPTIMIZERS = {"adamw": FULL, "sgd": FULL.model_copy(update={"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4})}


def without_times(results: tuple[EpochResult, ...] | list[EpochResult]) -> list[EpochResult]:
    return [replace(result, seconds=0.0, images_per_second=0.0) for result in results]


def at(path: Path) -> Checkpoint:
    loaded = load_checkpoint(path)
    assert loaded is not None
    return loaded


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


# What a training gives


def test_it_learns_and_its_results_are_what_the_weights_are_worth(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"epochs": 3, "batch_size": 16})
    results = list(fit(config, digits, cpu, checkpoint=tmp_path / "trial.ckpt"))
    assert [result.epoch for result in results] == [1, 2, 3]
    assert results[-1].val_accuracy > 0.8  # chance is 0.1; six seeds gave 0.86 to 0.95
    assert results[-1].train_loss < results[0].train_loss
    assert all(result.seconds > 0 for result in results)
    # Validation takes time too, and is no part of the training's speed.
    assert all(result.images_per_second > 430 // 16 * 16 / result.seconds for result in results)

    state = at(tmp_path / "trial.ckpt")
    assert state.history == tuple(results)
    model = cpu.place(build_model(config, 10, 16)).eval()
    model.load_state_dict(state.model)
    logits = predict_logits(model, digits, "val", cpu)
    labels = digits.labels[digits.splits["val"]]
    assert results[-1].val_accuracy == accuracy_score(labels, logits.argmax(dim=1))
    assert results[-1].val_loss == pytest.approx(log_loss(labels, logits.double().softmax(dim=1)), rel=1e-5)


def test_the_same_seed_gives_the_same_result_and_another_seed_another(digits: Dataset, cpu: Device) -> None:
    config = PLAIN.model_copy(update={"epochs": 1, "batch_size": 64})
    first = without_times(list(fit(config, digits, cpu)))
    torch.manual_seed(1234)
    np.random.default_rng(5).random(3)
    assert without_times(list(fit(config, digits, cpu))) == first
    assert without_times(list(fit(config.model_copy(update={"seed": 1}), digits, cpu))) != first


def test_the_caller_may_draw_random_numbers_between_epochs(digits: Dataset, cpu: Device) -> None:
    config = FULL.model_copy(update={"epochs": 2, "batch_size": 128, "augment": ()})
    expected = without_times(list(fit(config, digits, cpu)))
    results = []
    for result in fit(config, digits, cpu):
        torch.rand(result.epoch)
        results.append(result)
    assert without_times(results) == expected


def steps_taken(path: Path) -> int:
    return int(at(path).optimizer["state"][0]["step"].item())


def test_the_incomplete_last_batch_is_left_out(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    assert len(digits.splits["train"]) == 430
    config = PLAIN.model_copy(update={"epochs": 2, "batch_size": 108})
    list(fit(config, digits, cpu, checkpoint=tmp_path / "trial.ckpt"))
    assert steps_taken(tmp_path / "trial.ckpt") == 2 * 3  # 430 = 3 * 108 + 106


def test_a_batch_larger_than_the_set_is_the_whole_set(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"batch_size": 10_000})
    results = list(fit(config, digits, cpu, checkpoint=tmp_path / "trial.ckpt"))
    assert steps_taken(tmp_path / "trial.ckpt") == 2
    assert 0 < results[0].train_loss < 10


def test_the_learning_rate_follows_its_schedule_step_by_step(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"batch_size": 200, "warmup_epochs": 0.0, "lr": 0.1})
    training = fit(config, digits, cpu, checkpoint=tmp_path / "trial.ckpt")
    next(training)  # 2 of 4 steps: the last one taken at a quarter of the cosine
    rates = [group["lr"] for group in at(tmp_path / "trial.ckpt").optimizer["param_groups"]]
    assert rates == pytest.approx([0.1 * (1 + np.cos(np.pi / 4)) / 2] * len(rates))


def test_a_loss_that_is_not_finite_stops_the_training_with_a_sentence(digits: Dataset, cpu: Device) -> None:
    config = PLAIN.model_copy(update={"optimizer": "sgd", "lr": 1e20, "batch_size": 128, "warmup_epochs": 0.0})
    with pytest.raises(DivergedError, match=r"epoch 1 has a training loss of .*nan.*; try a lower lr than 1e\+20"):
        list(fit(config, digits, cpu))


def test_a_precision_that_the_device_lacks_is_a_sentence(digits: Dataset, cpu: Device) -> None:
    with pytest.raises(ConfigError, match="needs a GPU that has it"):
        next(fit(PLAIN.model_copy(update={"precision": "bf16"}), digits, cpu))


# Going on after an interruption

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
    digits: Dataset, digits_config: DataConfig, cpu: Device, tmp_path: Path, straight: dict[str, Checkpoint]
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
    assert len(list(fit(FULL, digits, cpu, checkpoint=path))) == 3
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


# The loop does not wait


BUSY: dict[str, Any] = {"optimizer": "sgd", "ema": 0.9, "sam": Sam(), "mixup": 0.5, "cutmix": 0.5, "brightness": 0.1}


class CountsReads(TorchDispatchMode):
    """Counts how often a value is read back from the device: each would make a GPU's queue run dry."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_an_epoch_reads_nothing_back_from_the_device_until_its_end(digits: Dataset, cpu: Device) -> None:
    reads = []
    for batch_size in (215, 43):  # 2 steps, 10 steps
        config = FULL.model_copy(update={**BUSY, "epochs": 1, "batch_size": batch_size, "clip": 1.0, "agc": 0.1})
        with CountsReads() as counting:
            next(fit(config, digits, cpu))
        reads.append(counting.reads)
    assert reads[0] == reads[1] > 0  # the epoch's mean loss, and what its validation is worth


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")  # what else would tell?
@pytest.mark.parametrize("resident", [True, False])
def test_on_a_gpu_no_step_waits_for_the_device(
    resident: bool, digits: Dataset, cuda: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on; the first one makes what stays on the device."""
    if not resident:
        monkeypatch.setattr("trainer.device.RESIDENT_SHARE", 0.0)
    steps = 0

    def watch(*_: object) -> None:
        nonlocal steps
        steps += 1
        torch.cuda.set_sync_debug_mode("error" if steps < 10 else "default")

    hook = register_optimizer_step_post_hook(watch)
    try:
        assert (cuda.hold(digits.images, TrainConfig()) is not None) == resident
        config = FULL.model_copy(update={**BUSY, "epochs": 1, "batch_size": 43, "augment": ()})
        next(fit(config, digits, cuda))
    finally:
        hook.remove()
        torch.cuda.set_sync_debug_mode("default")
    assert steps == 10


# The recipe


GOLDEN_CONFIG = FULL.model_copy(update={"epochs": 2, "seed": 7, "augment": ()})


GOLDEN_RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "adam": {"optimizer": "adam"},
    "nadam": {"optimizer": "nadam"},
    "rmsprop": {"optimizer": "rmsprop", "lr": 1e-3},
    "rexnet": {"model": "rexnet_100", "width_mult": 0.37, "depth_mult": 0.5, "epochs": 1},
    "sgd with sam": {"optimizer": "sgd", "lr": 0.05, "sam": Sam(rho=0.05)},
}


def train_losses(recipe: str, data: Dataset) -> list[float]:
    results = fit(GOLDEN_CONFIG.model_copy(update=GOLDEN_RECIPES[recipe]), data, open_device("cpu", 1))
    return [result.train_loss for result in results]


@pytest.mark.parametrize("recipe", GOLDEN_RECIPES)
def test_the_losses_are_those_of_the_recipe(recipe: str, digits: Dataset) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["recipe_version"] == RECIPE_VERSION, "renew the golden losses: python tests/trainer/test_fit.py"
    # Other CPUs round otherwise: 5e-6 between AVX2 and no vector instructions at all.
    assert train_losses(recipe, digits) == pytest.approx(golden["train_loss"][recipe], rel=1e-4), (
        "the same configuration trains to another result; if that is meant, raise RECIPE_VERSION and renew:"
        " python tests/trainer/test_fit.py"
    )


def renew_golden_losses() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(
            DataConfig(source="digits", image_size=16, val_fraction=0.2, test_fraction=0.7), Path(folder)
        )
        losses = {name: train_losses(name, data) for name in GOLDEN_RECIPES}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"recipe_version": RECIPE_VERSION, "train_loss": losses}, indent=2) + "\n")


# On a GPU


@pytest.mark.cuda
def test_a_gpu_trains_too(digits: Dataset, cuda: Device) -> None:
    config = OPTIMIZERS["adamw"].model_copy(update={"epochs": 1})
    (result,) = fit(config, digits, cuda)
    assert 0 < result.train_loss < 10
    assert result.images_per_second > 0


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


def test_micro_batches_give_the_gradient_of_the_whole_batch(digits: Dataset, cpu: Device) -> None:
    """Of a net without batch norm, which would see the parts: the same training but for rounding."""
    config = TrainConfig(model="test_vit", epochs=1, batch_size=64, lr=1e-3, mixup=0.5, rotate=10.0, optimizer="sgd")
    (whole,) = fit(config, digits, cpu)
    (parts,) = fit(config, digits, cpu, micro_batches=3)
    (other,) = fit(config.model_copy(update={"batch_size": 21}), digits, cpu)
    assert parts.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    assert parts.val_loss == pytest.approx(whole.val_loss, rel=1e-4)
    assert other.val_loss != pytest.approx(whole.val_loss, rel=1e-4)


if __name__ == "__main__":
    renew_golden_losses()
