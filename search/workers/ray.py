"""Workers on a Ray cluster: an actor per worker, which runs a local pool of one process on its node.

An actor stays when its process is replaced, and so keeps its GPU. Until Ray has a place for an actor, its worker waits.
To import Ray takes a second. So only the modules for Ray do, and ``places`` imports them only for ``--gpus ray``.
"""

from __future__ import annotations

import contextlib
import queue
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.devices import WorkerDevice
from search.workers.messages import Assign, FromWorker, ToWorker
from search.workers.piped import END_SECONDS, opened, tail_of
from search.workers.pool import Exit
from search.workers.ray_node import Depot, Host, Said, answer_of
from trainer.values import expanded


@dataclass
class Actor:
    """The actor of a worker, as the pool sees it."""

    handle: Any
    running: bool = True
    """Whether the actor has a process, and the pool has not yet yielded its Exit."""
    placed: bool = False
    """Whether the actor has answered since its process was asked for. Before that, it may still wait for a place, or
    for its pictures, and has no process that can be killed."""
    killed: bool = False
    """Whether this pool has killed the actor's process."""


class RayPool:
    """An actor per worker. ``search.workers.pool.Pool`` documents the methods.

    Args:
        devices: the devices to ask for, one for each worker.
        logs: for each worker, the file to which its output is appended.
        cache: folder of the decoded pictures.
    """

    def __init__(self, devices: Sequence[WorkerDevice], logs: Sequence[Path], cache: Path) -> None:
        self.devices, self._logs, self._cache = list(devices), list(logs), str(cache.resolve())
        self._actors: dict[int, Actor] = {}
        self._kept: list[Any] = []
        """Actors whose process does not end: they keep their devices."""
        self._heard: queue.SimpleQueue[tuple[int, Actor, Future[Said]]] = queue.SimpleQueue()
        self._home = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(self._home, soft=False)
        remote: Any = ray.remote  # its types know no concurrency groups
        depot = remote(Depot).options(num_cpus=0, max_concurrency=4, max_restarts=-1, scheduling_strategy=here)
        self._depot = depot.remote()
        # Method -> its group of threads. These methods can run while ``start`` or ``listen`` runs: for example, a
        # process can be killed while its pictures are fetched.
        methods = {"send": "send", "kill": "kill", "close": "kill", "pid": "kill"}
        host = type(
            "Host",
            (Host,),
            {name: ray.method(concurrency_group=group)(getattr(Host, name)) for name, group in methods.items()},
        )
        self._host = remote(concurrency_groups={"send": 1, "kill": 1})(host)

    def add(self, device: WorkerDevice, log: Path) -> None:
        """Note the device."""
        self.devices.append(device)
        self._logs.append(log)

    def start(self, worker: int) -> None:
        """Ask Ray for an actor, unless the worker still has one, and the actor for a process."""
        device = self.devices[worker]
        kept = self._actors.pop(worker, None)
        if kept is None:
            options = self._host.options(num_cpus=device.num_threads, num_gpus=int(device.kind == "cuda"))
            actor = Actor(options.remote(device, self._depot, self._home))
        else:
            actor = Actor(kept.handle)
        self._actors[worker] = actor
        self._listen(worker, actor, actor.handle.start.remote(self._cache))

    def send(self, worker: int, message: ToWorker) -> None:
        """Call the actor, without waiting for the answer."""
        actor = self._actors.get(worker)
        if actor is not None and actor.running and not actor.killed:
            if isinstance(message, Assign):
                message = _with_whole_paths(message)
            actor.handle.send.remote(message)

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker | Exit]]:
        """Take the answers of the actors; call each actor again whose process has not ended."""
        wait = True
        while True:
            try:
                worker, actor, answer = self._heard.get(wait, timeout)
            except queue.Empty:
                return
            wait = False
            if self._actors.get(worker) is not actor:  # it was abandoned
                continue
            error = answer.exception()
            said, printed = ([self._end(worker, actor, error)], b"") if error else answer.result()
            if printed:
                with opened(self._logs[worker]) as log:
                    log.write(printed)
            actor.placed = True
            if isinstance(said[-1], Exit):
                actor.running = False
            else:
                self._listen(worker, actor, actor.handle.listen.remote())
            for event in said:
                if error or self._actors.get(worker) is actor:
                    yield worker, event

    def log_tail(self, worker: int) -> str:
        """The end of the worker's log, as far as it has come from its node."""
        return tail_of(self._logs[worker])

    def kill(self, worker: int) -> None:
        """End the process at once; an actor that has none yet is given up."""
        actor = self._actors.get(worker)
        if actor is None or not actor.running or actor.killed:
            return
        actor.killed = True
        if actor.placed:
            actor.handle.kill.remote()
        else:
            ray.kill(actor.handle)

    def release(self, worker: int) -> None:
        """Give the worker's device back to Ray."""
        if (actor := self._actors.pop(worker, None)) is not None:
            ray.kill(actor.handle)

    def abandon(self, worker: int) -> int:
        """Forget the actor. It keeps its device."""
        actor = self._actors.pop(worker)
        self._kept.append(actor.handle)
        try:
            return int(answer_of(actor.handle.pid.remote(), END_SECONDS))
        except RayError:
            return 0

    def close(self, patience_seconds: float = 5) -> list[int]:
        """End the processes, then the actors."""
        ends = [actor.handle.close.remote(patience_seconds) for actor in self._actors.values() if actor.placed]
        ready: list[Any] = []
        if ends:
            ready, _ = ray.wait(ends, num_returns=len(ends), timeout=patience_seconds + 2 * END_SECONDS)
        stuck: list[int] = []
        for end in ready:
            with contextlib.suppress(RayError):  # its node is gone
                stuck += answer_of(end)
        for handle in (*(actor.handle for actor in self._actors.values()), *self._kept, self._depot):
            ray.kill(handle)
        self._actors.clear()
        return stuck

    def _listen(self, worker: int, actor: Actor, answer: Any) -> None:
        answer.future().add_done_callback(lambda future: self._heard.put((worker, actor, future)))

    def _end(self, worker: int, actor: Actor, error: BaseException) -> Exit:
        """The Exit for an actor that does not answer, because it is gone or could not start."""
        self.release(worker)
        if actor.killed:
            return Exit(-signal.SIGKILL, self.log_tail(worker))
        with opened(self._logs[worker]) as log:
            log.write(f"{error}\n".encode())
        tail = self.log_tail(worker)
        if isinstance(error, OutOfMemoryError):  # Ray ends actors when their node has little memory left
            return Exit(-signal.SIGKILL, tail, out_of_memory=True)
        if not isinstance(error, RayActorError) or error.actor_init_failed:
            return Exit(1, tail)
        return Exit(-signal.SIGKILL, tail, lost="lost")


def _with_whole_paths(given: Assign) -> Assign:
    """The assignment with absolute paths, and with the path of the teacher if it is an export."""
    start = None if given.start is None else str(Path(given.start).resolve())
    given = replace(given, checkpoint=str(Path(given.checkpoint).resolve()), start=start)
    distill = given.config.get("distill")
    if isinstance(distill, dict) and (folder := expanded(distill["teacher"]) / "config.json").exists():
        given = replace(given, teacher=str(folder.parent.resolve()))
    return given
