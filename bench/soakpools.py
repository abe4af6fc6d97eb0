"""Where the workers of the soak test run, and what can happen to them there."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # its clusters

import ray_nodes
import slurm

from trainer.cores import num_cores

ABSENT_SECONDS = (5.0, 60.0)
"""A killed node, or another one in its place, comes after so long. Slurm notices its end after about 26 s, Ray after
two."""

ONE_THREAD_EACH = f"cpu:{num_cores()}"

COORDINATORS = (*["the coordinator killed"] * 2, "coordinator and workers killed at once")


class Place(Protocol):
    """A place for workers."""

    gpus: str
    alone: str
    """Devices of this machine for an export to compare with: workers there have as many threads."""
    environment: dict[str, str]
    """What a command needs to use the place."""
    faults: tuple[str, ...]
    """What happens to a search; each as likely as it is often in here."""
    own: tuple[str, ...]
    """Those of them that only this place has, and that happen to an export, too."""

    def workers(self, command: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """The worker processes of a command; not those that draw or prove."""

    def disturb(self, fault: str) -> bool:
        """Let one of the place's own faults happen; whether it did."""

    def mend(self) -> None:
        """Start nodes whose absence is over."""


class Here:
    """This machine."""

    def __init__(self, gpus: str, faults: tuple[str, ...]) -> None:
        self.gpus, self.alone, self.faults, self.own = gpus, gpus, faults, ()
        self.environment: dict[str, str] = {}

    def workers(self, command: subprocess.Popen[bytes]) -> list[psutil.Process]:
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(command.pid).children():
                if "search.workers.worker" in child.cmdline():
                    found.append(child)
        return found

    def disturb(self, fault: str) -> bool:
        raise AssertionError(f"this machine does not know: {fault}")

    def mend(self) -> None:
        """Nothing is absent."""


class Absent:
    """Nodes that were killed."""

    def __init__(self, chance: random.Random, start: Callable[[str], object]) -> None:
        self._chance, self._start = chance, start
        self._until: dict[str, float] = {}
        """Name of each node that will come -> when."""

    def add(self, name: str) -> None:
        self._until[name] = time.monotonic() + self._chance.uniform(*ABSENT_SECONDS)

    def mend(self) -> None:
        for name in [name for name, when in self._until.items() if time.monotonic() > when]:
            del self._until[name]
            self._start(name)


class OnSlurm:
    """Two nodes of a Slurm cluster on this machine."""

    gpus, alone = "slurm:cpu:2", ONE_THREAD_EACH
    own = ("a node killed", "a node killed", "a job cancelled")
    faults = (*["a worker killed"] * 3, *COORDINATORS, *own)

    def __init__(self, cluster: slurm.Cluster, chance: random.Random) -> None:
        self.cluster, self._chance = cluster, chance
        self.environment = {"SLURM_CONF": cluster.conf}
        self._absent = Absent(chance, cluster.start_node)

    def workers(self, command: subprocess.Popen[bytes]) -> list[psutil.Process]:
        return self.cluster.workers()

    def disturb(self, fault: str) -> bool:
        nodes = sorted(set(slurm.NODES) & self.cluster.daemons.keys())
        if not (there := self.cluster.jobs("R") if fault == "a job cancelled" else nodes):
            return False
        chosen = self._chance.choice(there)
        if fault == "a job cancelled":
            self.cluster.ask_quietly("scancel", chosen)
        else:
            self.cluster.kill_node(chosen)
            self._absent.add(chosen)
        return True

    def mend(self) -> None:
        self._absent.mend()


class OnRay:
    """Two nodes of a Ray cluster on this machine, with a folder each; another one comes for each that is killed."""

    gpus, alone = "ray:cpu:2", ONE_THREAD_EACH
    own = ("a node killed", "a node killed", "a node drained, then killed")
    faults = (*["a worker killed"] * 3, *COORDINATORS, *own)

    def __init__(self, cluster: ray_nodes.Cluster, chance: random.Random) -> None:
        self.cluster, self._chance = cluster, chance
        self.environment = cluster.environment
        self._absent = Absent(chance, lambda name: cluster.start_node(name, cores=2))
        self._started = len(self._nodes)

    @property
    def _nodes(self) -> list[str]:
        return sorted(name for name in self.cluster.nodes if name != "head")

    def workers(self, command: subprocess.Popen[bytes]) -> list[psutil.Process]:
        return [worker for name in self._nodes for worker in self.cluster.workers(name)]

    def disturb(self, fault: str) -> bool:
        if not (nodes := self._nodes):
            return False
        name = self._chance.choice(nodes)
        if fault == "a node drained, then killed":
            with contextlib.suppress(AssertionError):  # it has not joined yet
                self.cluster.drain(name)
            time.sleep(self._chance.uniform(0, 10))
        self.cluster.kill_node(name)
        self._started += 1
        self._absent.add(f"n{self._started}")
        return True

    def mend(self) -> None:
        self._absent.mend()


@contextlib.contextmanager
def open_place(pool: str, chance: random.Random) -> Iterator[Place]:
    """A cluster that ends with the block."""
    if pool == "slurm":
        with slurm.slurm_cluster() as cluster:
            yield OnSlurm(cluster, chance)
    else:
        with ray_nodes.ray_cluster("n1", "n2", cores=2) as nodes:
            yield OnRay(nodes, chance)
