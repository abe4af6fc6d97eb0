"""Searches on a Slurm cluster whose workers, nodes, jobs and coordinators end in every way."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from desk import COMMAND, PATIENCE_SECONDS, STEADY, Desk
from on_cluster import Disturbed, EndsInEveryWay
from optuna.trial import FrozenTrial
from slurm import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PAGE = Path(__file__).parents[2] / "docs/cluster.md"


@pytest.fixture(scope="module")
def disturbed(fresh_desk: Callable[[str], Desk], slurm: Cluster) -> Iterator[Disturbed]:
    """A worker was killed, then a job cancelled, a node, the coordinator."""
    slurm.clear()
    desk = fresh_desk("slurm")
    search = Disturbed(desk, "slurm:cpu:1", 4, {"SLURM_CONF": slurm.conf})
    try:
        running = search.launch()
        running.until(desk.checkpoint("steady", 0).exists)
        (worker,) = slurm.workers()
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
        search.last = search.launch().wait()
        search.export(slurm.workers)
        yield search
    finally:
        desk.clear()


class TestOnSlurm(EndsInEveryWay):
    def test_every_trial_is_what_it_would_have_been_on_one_machine(
        self, disturbed: Disturbed, uninterrupted: list[FrozenTrial]
    ) -> None:
        self.compare(disturbed, uninterrupted)


def test_each_end_of_a_worker_is_told_for_what_it_is(disturbed: Disturbed) -> None:
    assert disturbed.first is not None
    said = disturbed.first.out
    assert "worker slurm:0 ended with signal 9; trial 0 goes on from its last epoch" in said
    assert re.search(r"worker slurm:0 was preempted on n[12]; trial 1 goes on from its last epoch", said), said
    assert re.search(r"worker slurm:0 was lost with n[12]; trial 2 goes on from its last epoch", said), said


def test_the_sbatch_file_of_the_documents_requeues_itself_and_the_search_goes_on(
    fresh_desk: Callable[[str], Desk], slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.clear()
    monkeypatch.setenv("PATH", f"{COMMAND.parent}:{os.environ['PATH']}")
    desk = fresh_desk("sbatch")
    desk.write("steady.toml", STEADY)
    script = next(text for text in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) if "#SBATCH" in text)
    for old, new in {
        "--gpus=16 --cpus-per-gpu=4 --mem-per-gpu=32G": "--ntasks=1 --cpus-per-task=1",
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
