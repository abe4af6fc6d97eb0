"""A worker's process: what it says of a training, what it logs, and how it names what went wrong."""

from __future__ import annotations

import queue
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handed_over import train_in_a_worker

import search.devices
from search.devices import Gpu, WorkerDevice
from search.export.trainings import Training
from search.workers.local import LocalPool
from search.workers.messages import Answer, Assign, Epoch, FromWorker, Left, Placed, Ready, Started
from search.workers.pool import Exit
from search.workers.worker import EXIT_PREEMPTED, Preemption, _failure_of, _own_gpu, _train
from studies import Limit
from studies.final import Rerank
from trainer import distill
from trainer.checkpoint import load_checkpoint
from trainer.config import DataConfig, TrainConfig
from trainer.data import prepare_data
from trainer.device import open_device
from trainer.errors import ConfigError, DiskError, DivergedError, LimitError
from trainer.fit import fit


def test_an_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert _failure_of(caught.value).kind == "memory"
    with pytest.raises(MemoryError) as python:
        bytearray(1 << 62)
    assert _failure_of(python.value).kind == "memory"
    assert _failure_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).kind == "memory"
    for text in (
        "CUDA error: out of memory\nSearch for `cudaError",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",
    ):
        assert _failure_of(RuntimeError(text)).kind == "memory"


def test_errors_of_the_device_get_a_new_process() -> None:
    advice = (
        "CUDA error: an illegal memory access was encountered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    )
    failure = _failure_of(torch.AcceleratorError(advice))
    assert (failure.kind, failure.sentence) == ("device", f"AcceleratorError: {advice.splitlines()[0]}")
    assert _failure_of(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")).kind == "device"


def test_errors_that_a_retry_cannot_mend_are_told_from_those_it_may() -> None:
    kinds = [
        _failure_of(error).kind for error in (DivergedError("x"), DiskError("x"), LimitError("x"), ValueError("x"))
    ]
    assert kinds == ["diverged", "disk", "user", "crash"]


def test_on_a_cluster_nvml_names_the_gpu_and_a_node_without_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Gpu("0", "", problem="the driver cannot open it")
    there = [broken, Gpu("1", "GPU-b"), Gpu("2", "GPU-c", parts=(Gpu("MIG-d", "MIG-d"),))]
    monkeypatch.setattr(search.devices, "visible_gpus", lambda: there)
    assert _own_gpu("slurm") == "GPU-b"
    del there[1]
    assert _own_gpu("slurm") == "MIG-d", "a divided GPU cannot be used as a whole"
    del there[1]
    with pytest.raises(ConfigError, match="shows no GPU that can be used, and its job asked for one"):
        _own_gpu("slurm")


def test_a_candidate_whose_settings_contradict_each_other_is_a_mistake_of_the_users() -> None:
    assignment = Assign(
        trial=0,
        config={"mixup": 0.8, "cutmix": 0.5},
        data=DataConfig(source="digits"),
        cache="cache",
        checkpoint="checkpoint",
        limit=Limit(),
    )
    with pytest.raises(ConfigError, match=r"^candidate:\n  mixup = 0.8 and cutmix = 0.5 are shares") as refused:
        _train(assignment, open_device("cpu", 1), {}, queue.SimpleQueue(), print, Preemption())
    assert _failure_of(refused.value).kind == "user"


def test_the_teacher_is_where_the_assignment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(source="digits", image_size=16, test_fraction=0.8)
    cache = str(prepare_data(data, tmp_path).cache_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/config.json").write_text("it was looked for here")
    config: dict[str, object] = {"model": "resnet10t", "width_mult": 0.05, "distill": {"teacher": "/elsewhere/teacher"}}
    assignment = Assign(trial=0, config=config, data=data, cache=cache, checkpoint=str(tmp_path / "c"), limit=Limit())
    assignment = replace(assignment, teacher=str(tmp_path / "there"))
    monkeypatch.setattr(distill, "moved", {})
    with pytest.raises(ConfigError, match=f"distill.teacher {tmp_path}/there"):
        _train(assignment, open_device("cpu", 1), {}, queue.SimpleQueue(), lambda _: None, Preemption())


def test_a_reranked_training_goes_on_after_a_kill_with_the_ranks_that_it_began_with(tmp_path: Path) -> None:
    data = DataConfig(source="digits", image_size=16, test_fraction=0.8)
    config = TrainConfig(model="resnet10t", width_mult=0.05, epochs=2, batch_size=32)
    digits = prepare_data(data, tmp_path)
    first = Training(label="first", config=config, trial=0, folder=tmp_path / "first")
    list(fit(config, digits, open_device("cpu", 1), checkpoint=first.checkpoint))

    def ended(name: str, *parts: int, rerank: Rerank | None) -> dict[str, torch.Tensor]:
        folder = tmp_path / name
        training = Training(label=name, config=config, trial=0, folder=folder, start=first, rerank=rerank)
        for epochs in parts:
            train_in_a_worker(training, data, digits.cache_path, epochs=epochs)
        saved = load_checkpoint(training.checkpoint)
        assert saved is not None
        return saved.weights

    half = Rerank(layer="layer1.0.conv1", share=0.5)
    straight, killed = ended("straight", 2, rerank=half), ended("killed", 1, 2, rerank=half)
    assert (tmp_path / "killed" / "ranks.json").read_bytes() == (tmp_path / "straight" / "ranks.json").read_bytes()
    assert all(torch.equal(killed[name], tensor) for name, tensor in straight.items())
    plain = ended("plain", 2, rerank=None)
    assert not torch.equal(plain["layer1.0.conv1.weight"], straight["layer1.0.conv1.weight"])
    assert not (tmp_path / "plain" / "ranks.json").exists()


def test_a_worker_whose_cluster_takes_its_device_back_finishes_its_epoch_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    data = DataConfig(source="digits", image_size=16, test_fraction=0.8)
    config = TrainConfig(model="resnet10t", width_mult=0.05, epochs=3, batch_size=32)
    assignment = Assign(
        trial=0,
        config=config.model_dump(mode="json"),
        data=data,
        cache=str(prepare_data(data, tmp_path).cache_path),
        checkpoint=str(tmp_path / "checkpoint"),
        limit=Limit(params=60_000),
    )
    pool, said = LocalPool([WorkerDevice("slurm:0", None, 1, place="slurm")], [tmp_path / "log"]), list[object]()
    pool.start(0)
    deadline = time.monotonic() + 150
    while not any(isinstance(message, Exit) for message in said):
        assert time.monotonic() < deadline, said
        for _, message in pool.events(1):
            said.append(message)
            if isinstance(message, Ready):
                pool.send(0, assignment)
            elif isinstance(message, Epoch):  # its checkpoint is written, and it waits for the answer
                pool._processes[0].process.terminate()
                time.sleep(0.5)
                pool.send(0, Answer(go_on=True))
    assert [type(message) for message in said] == [Placed, Ready, Started, Epoch, Exit]
    assert isinstance(said[0], Placed)
    assert isinstance(said[-1], Exit)
    assert (said[0].node, said[-1].returncode) == ("n7", EXIT_PREEMPTED)
    assert load_checkpoint(tmp_path / "checkpoint") is not None
    pool.close()


def test_a_worker_without_work_ends_at_once_when_its_cluster_takes_its_device_back() -> None:
    text = """
import time
from search.workers.worker import Preemption
preemption = Preemption()
preemption.watch()
with preemption.may_leave():
    print("idle", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"idle\n"
        process.terminate()
        assert process.wait(timeout=30) == EXIT_PREEMPTED


@pytest.mark.slow
def test_folds_and_micro_batches_are_trained_in_a_worker_which_logs_once_what_its_device_chose(tmp_path: Path) -> None:
    data = DataConfig(source="digits", image_size=16, test_fraction=0.8, folds=3)
    config = TrainConfig(model="resnet10t", width_mult=0.05, epochs=1, batch_size=32)
    log, said = tmp_path / "worker.log", list[FromWorker]()
    pool = LocalPool([WorkerDevice("cpu", None, 1)], [log])
    one_split = data.model_copy(update={"folds": 0})
    digits = prepare_data(one_split, tmp_path)
    folded = Assign(
        trial=0,
        config=config.model_dump(mode="json"),
        data=data,
        cache=str(prepare_data(data, tmp_path).cache_path),
        checkpoint=str(tmp_path / "trial-0.ckpt"),
        limit=Limit(params=60_000),
    )
    again = replace(folded, trial=1, checkpoint=str(tmp_path / "trial-1.ckpt"))
    checkpoint = str(tmp_path / "trial-2.ckpt")
    parts = replace(
        folded, trial=2, checkpoint=checkpoint, data=one_split, cache=str(digits.cache_path), micro_batches=2
    )
    assignments = [folded, again, parts]
    pool.start(0)
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and sum(isinstance(message, Left) for message in said) < 3:
        for _, message in pool.events(1):
            assert not isinstance(message, Exit), message
            said.append(message)
            trial = sum(isinstance(earlier, Left) for earlier in said)
            if isinstance(message, Ready | Left) and trial < len(assignments):
                pool.send(0, assignments[trial])
            elif isinstance(message, Epoch):
                pool.send(0, Answer(go_on=not message.result.final))
    pool.close()
    results, _, (trained_in_parts,) = (
        [message.result for message in said if isinstance(message, Epoch) and message.trial == trial]
        for trial in range(3)
    )
    assert [(result.epoch, result.final) for result in results] == [(1, False), (2, False), (3, True)]
    assert sorted(file.name for file in tmp_path.glob("trial-0*")) == [f"trial-0.ckpt-fold{n}" for n in range(3)]
    assert log.read_text().count("loader processes: none") == 2, "once for each way to read the pictures"

    def losses(parts: int) -> tuple[float, float]:
        checkpoint = tmp_path / f"in-{parts}.ckpt"
        (result,) = fit(config, digits, open_device("cpu", 1), checkpoint=checkpoint, micro_batches=parts)
        return result.train_loss, result.val_loss

    found = trained_in_parts.train_loss, trained_in_parts.val_loss
    assert found == pytest.approx(losses(2), rel=1e-3)
    assert found != pytest.approx(losses(1), rel=1e-3), "batch norm sees the parts"
    assert _steps(tmp_path / "trial-2.ckpt") == _steps(tmp_path / "in-2.ckpt") == _steps(tmp_path / "in-1.ckpt") > 1


def _steps(checkpoint: Path) -> int:
    """Steps that the optimizer has taken."""
    saved = load_checkpoint(checkpoint)
    assert saved is not None
    (steps,) = {int(state["step"]) for state in saved.optimizer["state"].values()}
    return steps
