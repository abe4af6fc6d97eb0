"""Pools whose workers play (plays.py), and what they say."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray_nodes
from slurm import Cluster

from search.devices import WorkerDevice
from search.workers.local import LocalPool
from search.workers.messages import Answer, Epoch, FromWorker, Placed, Ready
from search.workers.pool import Exit, Pool
from search.workers.slurm import SlurmPool

if TYPE_CHECKING:
    from search.workers.ray import RayPool

Said = list[tuple[int, FromWorker | Exit]]


def play_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Processes of this interpreter play from now on."""
    patch.setattr(sys, "executable", str(play_program(folder)))
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


def play_program(folder: Path) -> Path:
    """A program in the place of the interpreter, which plays whatever it is told to run."""
    program = folder / "program"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("plays.py")}"\n')
    program.chmod(0o755)
    return program


def local_pool(folder: Path, patch: pytest.MonkeyPatch) -> LocalPool:
    play_in(folder, patch)
    return LocalPool([WorkerDevice(f"cpu:{number}", None, 1) for number in range(2)], [folder / "0", folder / "1"])


def slurm_pool(folder: Path, patch: pytest.MonkeyPatch, cluster: Cluster, options: Sequence[str] = ()) -> SlurmPool:
    play_in(folder, patch)
    patch.setenv("SLURM_CONF", cluster.conf)
    devices = [WorkerDevice(f"slurm:{number}", None, 1, place="slurm") for number in range(2)]
    return SlurmPool(devices, [folder / "0", folder / "1"], "plays", options)


def ray_pool(folder: Path, patch: pytest.MonkeyPatch, cluster: ray_nodes.Cluster, cache: Path) -> RayPool:
    """A pool whose processes play on a node that is not the coordinator's."""
    for name, value in cluster.environment.items():
        patch.setenv(name, value)
    from search.workers import ray as on_ray
    from search.workers import ray_cluster

    ray_cluster.connect("ray:2", "")
    program = play_program(folder)

    class Host(on_ray.Host):
        def __init__(self, *given: Any) -> None:
            sys.executable = str(program)
            super().__init__(*given)

    patch.setattr(on_ray, "Host", Host)
    devices = [WorkerDevice(f"ray:{number}", None, 1, place="ray") for number in range(2)]
    return on_ray.RayPool(devices, [folder / "0", folder / "1"], cache)


def until(pool: Pool, done: Callable[[Said], bool], seconds: float = 60) -> Said:
    """What workers say until so much is said."""
    said: Said = []
    deadline = time.monotonic() + seconds
    while not done(said):
        assert time.monotonic() < deadline, said
        for worker, event in pool.events(0.2):
            said.append((worker, event))
            if isinstance(event, Epoch):
                pool.send(worker, Answer(go_on=not event.result.final))
    return said


def has(kind: type, number: int = 1) -> Callable[[Said], bool]:
    return lambda said: sum(isinstance(event, kind) for _, event in said) >= number


def begin(pool: Pool, *workers: int) -> None:
    for worker in workers:
        pool.start(worker)
    said = until(pool, has(Ready, len(workers)))
    for worker in workers:
        assert [type(event) for by, event in said if by == worker] == [Placed, Ready]
