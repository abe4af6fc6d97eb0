"""The whole product on GPUs that are not there (tests/nullgpu): searches, kills, an export, what GPUs may do wrong.

Kernels compute nothing, so no accuracy is looked at.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from desk import STEADY, Desk
from optuna.trial import TrialState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TWO_PER_GPU = STEADY.replace("[search]", "[search]\nworkers_per_gpu = 2") + "\n[confirm]\ntop = 1\nseeds = 1\n"

SECOND = "GPU-00000001"
"""How the UUID of the second GPU begins."""


class NullDesk(Desk):
    """A desk at a machine with two GPUs."""

    environment: dict[str, str]

    def launch(self, *arguments: object, **settings: str) -> tuple[int, str, str]:
        answer = self.search("launch", "study.toml", *arguments, **self.environment, **settings)
        return answer.code, answer.out, answer.err


@pytest.fixture
def desk(fresh_desk: Callable[[str], Desk], null_gpu: dict[str, str]) -> Iterator[NullDesk]:
    place = NullDesk(fresh_desk("null").folder)
    place.environment = {name: null_gpu[name] for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH")}
    place.write("study.toml", TWO_PER_GPU)
    yield place
    place.clear()


def test_a_search_on_two_gpus_is_killed_goes_on_and_is_exported(desk: NullDesk) -> None:
    longer = ("--gpus", "0,1", "--trials", 5, "--set", "train.epochs=25")
    search = desk.start("launch", "study.toml", *longer, **desk.environment)
    state = desk.runs / "studies" / "study" / "state.json"
    search.until(lambda: state.exists() and '"val_accuracy": 0' in state.read_text())  # after somebody's first epoch
    workers = search.workers()
    assert len(workers) == 4
    assert {worker.environ()["CUDA_VISIBLE_DEVICES"][:12] for worker in workers} == {"GPU-00000000", SECOND}
    for worker in workers:
        worker.kill()
    search.until(lambda: "goes on from its last epoch" in search.out.read_text())
    os.kill(search.process.pid, signal.SIGKILL)
    search.process.wait()

    code, out, err = desk.launch(*longer)
    assert (code, err) == (0, ""), err
    assert "on gpu 0:0, gpu 1:0, gpu 0:1, gpu 1:1" in out
    trials = desk.trials("study")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    assert {trial.user_attrs["device"] for trial in trials} == {"NVIDIA Null"}
    log = (desk.runs / "studies/study/logs/worker-0.log").read_text()
    assert "precision: bf16 autocast" in log
    assert (
        "picture set: in the GPU's memory: 0.0 GB are at most 50% of 40.0 GB, the part of one of the GPU's 2 workers"
        in log
    )

    exported = desk.search("export-best", "study", "--gpus", "0,1", **desk.environment)
    assert exported.code == 0, exported.err
    assert "agree to 0.0e+00" in exported.out


def test_out_of_memory_first_costs_the_pictures_place_then_divides_the_batch(desk: NullDesk) -> None:
    code, out, err = desk.launch("--gpus", "0", "--trials", 1, NULLGPU_BYTES="40000000")
    assert code == 0, err
    told = [out.find(words) for words in ("with its pictures on the host", "with 2 micro-batches", "trial 0 pruned")]
    assert told == sorted(told)
    assert -1 not in told
    assert desk.trials("study")[0].user_attrs["failure"] == "memory"


def test_a_gpu_with_illegal_accesses_is_put_aside_and_another_goes_on(desk: NullDesk) -> None:
    fails = {"NULLGPU_FAIL_AFTER": "500", "NULLGPU_FAIL_UUID": SECOND}
    code, out, err = desk.launch("--gpus", "1", "--trials", 3, **fails)
    what = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert code == 10, err
    assert f"gpu 1 is put aside after 3 CUDA errors, the last: {what}\n" in out
    assert "no device is left" in err
    code, out, err = desk.launch("--gpus", "0", "--trials", 3, **fails)
    assert (code, err) == (0, "")
    assert [trial.state for trial in desk.trials("study")] == [TrialState.COMPLETE] * 3


def test_a_lost_gpu_is_left_out_and_one_that_others_fill_is_named(desk: NullDesk) -> None:
    odd = {"NULLGPU_LOST": "0", "NULLGPU_OTHERS_BYTES": "50000000000"}
    code, out, err = desk.launch("--trials", 1, **odd)
    assert code == 0, err
    assert err.startswith("gpu 0 is left out: the driver cannot open it (GPU is lost)")
    assert "gpu 1: another program has 50.0 GB of its 80.0 GB" in out
    assert "on gpu 1:0, gpu 1:1" in out


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (
            ["--gpus", "0"],
            {"NULLGPU_LOST": "0"},
            "--gpus 0: gpu 0 cannot be used: the driver cannot open it (GPU is lost)",
        ),
        ([], {"NULLGPU_DRIVER_CUDA": "12040"}, "no GPU of this machine can be used: its driver is too old"),
        ([], {"NULLGPU_CAPABILITY": "61"}, "has no kernels for its compute capability 6.1"),
    ],
)
def test_what_cannot_train_is_one_sentence_before_a_worker_starts(
    desk: NullDesk, arguments: list[str], settings: dict[str, str], sentence: str
) -> None:
    code, out, err = desk.launch(*arguments, "--trials", 1, **settings)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence in err
    assert not (desk.runs / "studies").exists()
