"""Searches on a Slurm cluster whose workers, nodes, jobs and coordinators end in every way."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from desk import COMMAND, PATIENCE_SECONDS, STEADY, Answer, Desk, Running
from optuna.trial import FrozenTrial
from slurm import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LAUNCH = ("launch", "steady.toml", "--gpus", "slurm:cpu:1", "--set", "cluster.threads=1", "--trials", "4")
PAGE = Path(__file__).parents[2] / "docs/cluster.md"


def node_workers() -> list[psutil.Process]:
    """Worker processes that Slurm has placed."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (words := process.info["cmdline"] or [])[-1:] == ["slurm"]
        and "search.workers.worker" in words
        and words[0] != "srun"
        and "sh" not in words
    ]


@dataclass
class Disturbed:
    """A search on a cluster: a worker was killed, then a job cancelled, a node, the coordinator."""

    desk: Desk
    cluster: Cluster
    left_behind: list[str] = field(default_factory=list)
    """Jobs that were there 20 s after the coordinator was killed."""
    first: Answer | None = None
    last: Answer | None = None

    def launch_up_to(self, trial: int) -> Running:
        running = self.desk.start(*LAUNCH, SLURM_CONF=self.cluster.conf)
        running.until(self.desk.checkpoint("steady", trial).exists)
        return running


@pytest.fixture(scope="module")
def disturbed(fresh_desk: Callable[[str], Desk], slurm: Cluster) -> Iterator[Disturbed]:
    desk = fresh_desk("slurm")
    desk.write("steady.toml", STEADY)
    search = Disturbed(desk, slurm)
    try:
        running = search.launch_up_to(0)
        (worker,) = node_workers()
        worker.kill()
        running.until(desk.checkpoint("steady", 1).exists)
        (job,) = slurm.jobs("R")
        slurm.ask("scancel", "--signal=TERM", f"{job}.0")
        running.until(desk.checkpoint("steady", 2).exists)
        (job,) = slurm.jobs("R")
        node = slurm.node_of(job)
        slurm.kill_node(node)
        running.until(desk.checkpoint("steady", 3).exists)
        running.send(signal.SIGKILL)
        search.first = running.wait()
        deadline = time.monotonic() + 20
        while (jobs := slurm.jobs()) and time.monotonic() < deadline:
            time.sleep(0.2)
        search.left_behind = jobs
        slurm.start_node(node)
        slurm.until_idle()
        search.last = desk.search(*LAUNCH, SLURM_CONF=slurm.conf)
        yield search
    finally:
        desk.clear()


def test_every_trial_is_what_it_would_have_been_on_one_machine(
    disturbed: Disturbed, uninterrupted: list[FrozenTrial]
) -> None:
    assert disturbed.last is not None
    assert disturbed.last.code == 0, disturbed.last
    trials = disturbed.desk.trials("steady")
    assert [trial.params for trial in trials] == [trial.params for trial in uninterrupted[:4]]
    assert [trial.intermediate_values for trial in trials] == [one.intermediate_values for one in uninterrupted[:4]]


def test_each_end_of_a_worker_is_told_for_what_it_is(disturbed: Disturbed) -> None:
    assert disturbed.first is not None
    said = disturbed.first.out
    assert "worker slurm:0 ended with signal 9; trial 0 goes on from its last epoch" in said
    assert re.search(r"worker slurm:0 was preempted on n[12]; trial 1 goes on from its last epoch", said), said
    assert re.search(r"worker slurm:0 was lost with n[12]; trial 2 goes on from its last epoch", said), said


def test_a_killed_coordinator_leaves_no_job_and_no_worker(disturbed: Disturbed) -> None:
    assert disturbed.left_behind == []


def test_the_search_can_be_replayed(disturbed: Disturbed) -> None:
    assert disturbed.desk.inside("replay", "steady", "--json").json()["identical"]


def test_the_sbatch_file_of_the_documents_requeues_itself_and_the_search_goes_on(
    fresh_desk: Callable[[str], Desk], slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{COMMAND.parent}:{os.environ['PATH']}")
    desk = fresh_desk("sbatch")
    desk.write("steady.toml", STEADY)
    script = next(text for text in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) if "#SBATCH" in text)
    for old, new in {
        "--gpus=16 --cpus-per-gpu=8 --mem-per-gpu=32G": "--ntasks=1 --cpus-per-task=1",
        "birds400 --data ~/birds": "steady.toml --trials 2 --set cluster.threads=1",
    }.items():
        assert old in script
        script = script.replace(old, new)
    (desk.folder / "job.sh").write_text(script)
    out = desk.folder / "job.out"
    job = slurm.ask("sbatch", "--parsable", f"--chdir={desk.folder}", f"--output={out}", str(desk.folder / "job.sh"))

    def until(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.1)

    until(desk.checkpoint("steady", 0).exists)
    slurm.ask("scancel", "--batch", "--signal=USR1", job)
    until(lambda: "Restarts=1" in slurm.ask("scontrol", "show", "job", job))
    until(lambda: "JobState=COMPLETED" in slurm.ask("scontrol", "show", "job", job))
    said = out.read_text()
    assert "nothing is lost, the same command goes on from there" in said
    assert "going on with trial 0" in said
    assert [trial.state.name for trial in desk.trials("steady")] == ["COMPLETE"] * 2
