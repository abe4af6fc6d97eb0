"""Simulated time and workers for ``bench/scale.py``: a clock that counts the coordinator's CPU time, and workers that
play a script."""

from __future__ import annotations

import heapq
import math
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from sqlalchemy import event

from search.devices import WorkerDevice
from search.process import versions
from search.study.storage import backend_of
from search.workers.messages import (
    Answer,
    Assign,
    Epoch,
    FromWorker,
    Left,
    Placed,
    Ready,
    Started,
    ToWorker,
    from_worker,
    to_json,
)
from trainer.config import EpochResult

EPOCH_SECONDS = 30.0


class Clock:
    """CPU used, plus the time that was idle."""

    def __init__(self) -> None:
        self.idle = self._server = self._server_before = 0.0
        self._servers: set[int] = set()
        self._begun = time.process_time()

    def listen(self, study: optuna.Study) -> None:
        """Count the CPU of the server's processes for this study, too."""
        engine = backend_of(study).engine
        if engine.dialect.name == "postgresql":
            event.listen(engine, "checkout", lambda opened, *_: self._servers.add(opened.info.backend_pid))

    def look(self) -> None:
        """Read the CPU of the server's processes."""
        now = sum(_cpu_of(number) for number in self._servers)
        self._server += max(0.0, now - self._server_before)
        self._server_before = now

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """What the workers do, which on their own machines would take no time of the coordinator."""
        begun = time.process_time()
        yield
        self._begun += time.process_time() - begun

    @property
    def used(self) -> float:
        """CPU seconds."""
        return time.process_time() - self._begun + self._server

    def __call__(self) -> float:
        return self.used + self.idle


def _cpu_of(process: int) -> float:
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


@dataclass
class Play:
    """A worker's training."""

    trial: int
    epochs: int
    done: int
    quality: float
    seconds: float


class ScriptedPool:
    """Workers on the simulated clock: they take 2 s to count a candidate, and about 30 s for an epoch."""

    def __init__(self, workers: int, clock: Clock) -> None:
        self.devices = [WorkerDevice(f"gpu {number}", None, 1) for number in range(workers)]
        self.clock = clock
        self.done: dict[int, int] = {}
        """Trial -> epochs in the checkpoint of its present training."""
        self.free: dict[int, float] = {}
        """Worker -> the time since which it is free."""
        self.waits: list[float] = []
        """Seconds from a worker's end of a trial to its next assignment."""
        self.answers: list[float] = []
        """Seconds from an epoch to its answer."""
        self._plays: dict[int, Play] = {}
        self._due: list[tuple[float, int, int, bytes]] = []
        self._nowhere = os.open(os.devnull, os.O_WRONLY)
        self._sent: dict[int, float] = {}
        self._count = 0
        self._random = random.Random(0)

    def start(self, worker: int) -> None:
        """Ready after some seconds."""
        self._later(worker, 0.0, Placed(node="n", gpu=None, kind="cuda", versions=versions()))
        self._later(worker, self._random.random(), Ready(device="NVIDIA H100 80GB HBM3"))

    def send(self, worker: int, message: ToWorker) -> None:
        """Go on, let go, or begin."""
        os.write(self._nowhere, to_json(message))
        now = self.clock()
        with self.clock.left_out():
            if isinstance(message, Assign):
                if worker in self.free:
                    self.waits.append(now - self.free.pop(worker))
                self._begin(worker, message)
                return
            self.answers.append(now - self._sent[worker])
            play = self._plays[worker]
            if isinstance(message, Answer) and message.go_on and play.done < play.epochs:
                self._train(worker)
            else:
                self._later(worker, 0.01, Left(trial=play.trial))

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker]]:
        """All messages that are due."""
        self.clock.look()
        now = self.clock()
        until = min(now + timeout, self._due[0][0] if self._due else math.inf)
        self.clock.idle += max(0.0, until - now)
        now = max(now, until)
        while self._due and self._due[0][0] <= now:
            with self.clock.left_out():
                at, _, worker, line = heapq.heappop(self._due)
                self._sent[worker] = at
            message = from_worker(line)
            if isinstance(message, Left):
                self.free[worker] = at
            yield worker, message

    def kill(self, worker: int) -> None:
        """Nobody hangs here."""
        raise AssertionError(worker)

    abandon = log_tail = kill  # type: ignore[assignment]

    def close(self, patience_seconds: float = 5) -> list[int]:
        """Nothing is left over."""
        return []

    def _begin(self, worker: int, message: Assign) -> None:
        config = message.config
        write_checkpoints(Path(message.checkpoint).parent)
        done = self.done.pop(message.trial, 0)
        lr, noise = float(str(config["lr"])), random.Random(message.trial).gauss(0, 0.02)
        quality = 0.9 - 0.1 * math.log10(lr / 3e-3) ** 2 - 0.3 * float(str(config["dropout"])) ** 2 + noise
        seconds = EPOCH_SECONDS * random.Random(message.trial).uniform(0.7, 1.3)
        self._plays[worker] = Play(message.trial, int(str(config["epochs"])), done, quality, seconds)
        self._later(worker, 2.0, Started(trial=message.trial, num_params=900_000 + message.trial, macs=10**8))
        self._train(worker, after=2.0 + (seconds * self._random.random() if done else 0.0))

    def _train(self, worker: int, after: float = 0.0) -> None:
        play = self._plays[worker]
        play.done += 1
        result = EpochResult(
            epoch=play.done,
            train_loss=1.0,
            val_loss=1.0,
            val_accuracy=play.quality * (1 - math.exp(-play.done / 4)),
            seconds=play.seconds,
            images_per_second=12_345.0,
            final=play.done == play.epochs,
        )
        self._later(worker, after + play.seconds, Epoch(trial=play.trial, result=result, memory_bytes=1 << 30))

    def _later(self, worker: int, seconds: float, message: FromWorker) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.clock() + seconds, self._count, worker, to_json(message)))


def write_checkpoints(folder: Path) -> None:
    """The files of a trial in progress: the coordinator looks at their sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("checkpoint", "checkpoint.previous"):
        (folder / name).write_bytes(b"0")
