"""A search on a Ray cluster whose workers, nodes and coordinator end in every way. The nodes share no folder."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest
from desk import Desk, Running
from on_cluster import Disturbed, EndsInEveryWay
from optuna.trial import FrozenTrial
from ray_nodes import Cluster, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with ray_cluster("n1", cores=1) as cluster:
        cluster.wait_for_node("n1")  # without a node, a launch says that it waits
        yield cluster


@dataclass
class OnRay(Disturbed):
    """Its worker was killed, its node was drained and killed, and so was the one that joined then, and at last the
    coordinator."""

    cluster: Cluster = field(kw_only=True)

    def waits(self) -> bool:
        """Whether the search's worker waits for a node."""
        (worker,) = self.desk.inside("status", "steady", "--json").json()["workers"]
        return bool(worker["waiting"])

    def worker_on(self, node: str, running: Running) -> psutil.Process:
        """The worker on a node, after the next epoch that has come from there."""
        running.until(lambda: self.cluster.workers(node))
        began = time.time()
        running.until(lambda: self.newest_checkpoint() > began)
        (worker,) = self.cluster.workers(node)
        return worker

    def newest_checkpoint(self) -> float:
        times = [0.0]
        for file in (self.desk.runs / "studies/steady/trials").glob("**/checkpoint"):
            with contextlib.suppress(FileNotFoundError):  # its trial has just ended
                times.append(file.stat().st_mtime)
        return max(times)


@pytest.fixture(scope="module")
def disturbed(fresh_desk: Callable[[str], Desk], nodes: Cluster) -> Iterator[OnRay]:
    desk = fresh_desk("ray")
    search = OnRay(desk, "ray:cpu:1", 7, nodes.environment, cluster=nodes)
    try:
        running = search.launch()
        search.worker_on("n1", running).kill()
        search.worker_on("n1", running).suspend()  # so that its trial does not end meanwhile
        nodes.drain("n1")
        nodes.kill_node("n1")
        running.until(search.waits)
        nodes.start_node("n2", cores=1)
        search.worker_on("n2", running)
        nodes.start_node("n3", cores=1)
        nodes.kill_node("n2")
        search.worker_on("n3", running)
        running.send(signal.SIGKILL)
        search.first = running.wait()
        deadline = time.monotonic() + 10
        while (workers := nodes.workers("n3")) and time.monotonic() < deadline:
            time.sleep(0.1)
        search.left_behind = workers
        search.last = search.launch().wait()
        search.export(lambda: nodes.workers("n3"))
        yield search
    finally:
        desk.clear()


class TestOnRay(EndsInEveryWay):
    def test_every_trial_is_what_it_would_have_been_if_nothing_had_ended(
        self, disturbed: Disturbed, uninterrupted: list[FrozenTrial]
    ) -> None:
        self.compare(disturbed, uninterrupted)


def test_each_end_of_a_worker_is_told_for_what_it_is(disturbed: Disturbed) -> None:
    assert disturbed.first is not None
    said = disturbed.first.out
    assert re.search(r"worker ray:0 ended with signal 9; trial [0-6] goes on from its last epoch", said), said
    assert len(re.findall(r"worker ray:0 was lost with \S+; trial [0-6] goes on from its last epoch", said)) == 2, said
    assert (disturbed.first.err, "raylet" in said) == ("", False), "Ray prints nothing to the terminal"
