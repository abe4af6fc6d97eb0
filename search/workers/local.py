"""Workers as subprocesses on this machine, each pinned to a device."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from search.devices import WorkerDevice
from search.workers.messages import FromWorker, from_worker
from search.workers.piped import PipedPool, Process, oom_kills, without_secrets
from search.workers.pool import Exit

STARVED = ("MemoryError", "bad_alloc", "allocate memory", "out of memory")
"""Words of libraries that show, in the last lines of a process's log, that memory ran out."""


def worker_command(device: WorkerDevice) -> list[str]:
    """The command of a worker's process on its machine."""
    settings = (device.kind, device.num_threads, device.sharing, device.place)
    # -P: a folder named search or trainer in the user's current folder must not be imported instead.
    return [sys.executable, "-P", "-m", "search.workers.worker", *map(str, settings)]


class LocalPool(PipedPool):
    """One subprocess per device of this machine."""

    def __init__(self, devices: Sequence[WorkerDevice], logs: Sequence[Path]) -> None:
        super().__init__(devices, logs)
        self._oom_explained = 0
        """The part of the system's count of out-of-memory kills that is used up: those that explain the end of a
        worker, and those before the start of that worker. Only later kills can explain another end."""

    def command(self, worker: int) -> tuple[list[str], dict[str, str]]:
        """This interpreter, with the worker's device in its environment."""
        device = self.devices[worker]
        # CUDA reads its variable when torch is imported, so it is in the child's environment from the start.
        environment = without_secrets() | {
            "OMP_NUM_THREADS": str(device.num_threads),
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "CUDA_VISIBLE_DEVICES": device.visible or "",
        }
        return worker_command(device), environment

    def read(self, entry: Process, line: bytes) -> FromWorker:
        """Each line is a message."""
        return from_worker(line)

    def exit_of(self, entry: Process, code: int, log_tail: str) -> Exit:
        """The code is the worker's own. The system's counter, or words in the log, tell whether memory ran out."""
        starved = code == -signal.SIGKILL and not entry.killed and self._explain(entry)
        starved |= code == -signal.SIGABRT and any(words in log_tail for words in STARVED)
        return Exit(code, log_tail, out_of_memory=starved)

    def _explain(self, entry: Process) -> bool:
        """Whether an out-of-memory kill since the start of this process explains its end. Each kill explains one
        end."""
        before = max(entry.oom_kills, self._oom_explained)
        if oom_kills() <= before:
            return False
        self._oom_explained = before + 1
        return True
