"""Workers as subprocesses of this machine, pinned to a device, speaking JSON lines over their pipes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from search.devices import WorkerDevice

Message = dict[str, Any]

LOG_TAIL_LINES = 15
"""Lines of a dead worker's log that go into the reason."""

END_SECONDS = 5.0
"""How long processes that were killed may take to end before ``close`` leaves them to the system."""

SECRETS = ("SEARCH_STORAGE", "PGPASSWORD")
"""Environment variables that may hold the database's password: no worker's business."""


@dataclass(frozen=True)
class Exit:
    """A worker process has ended."""

    returncode: int
    log_tail: str
    out_of_memory: bool = False
    """Whether the system killed it for want of memory."""


@dataclass
class _Process:
    device: WorkerDevice
    process: subprocess.Popen[bytes]
    oom_kills: int
    """What the system had killed for want of memory when the process was started."""
    killed: bool = False
    """Whether it was ended from here."""
    unread: bytes = field(default=b"")
    silent: bool = False
    """Whether it has closed its end of the pipe: it is about to end."""


class LocalPool:
    """One subprocess per device. Workers have a number, from 0, which stays when their process is replaced."""

    def __init__(self, devices: list[WorkerDevice], logs: list[Path]) -> None:
        self.devices = devices
        self._logs = logs
        self._processes: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._oom_explained = 0
        """The system's count of kills for want of memory, up to which they explain no further worker's end."""

    def start(self, worker: int) -> None:
        """Start a worker's process; its first message is {"type": "ready"}."""
        device, log = self.devices[worker], self._logs[worker]
        log.parent.mkdir(parents=True, exist_ok=True)
        # CUDA reads its variable when torch is imported, so it is in the child's environment from the start.
        environment = without_secrets() | {
            "OMP_NUM_THREADS": str(device.num_threads),
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with it
            "CUDA_VISIBLE_DEVICES": device.visible or "",
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                # -P: a folder named search or trainer where the user stands must not be imported instead.
                [sys.executable, "-P", "-m", "search.workers.worker", device.kind, str(device.num_threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C and a closed terminal reach the coordinator alone
            )
        self._processes[worker] = _Process(device, process, _oom_kills())
        self._selector.register(_pipe(process.stdout), selectors.EVENT_READ, worker)

    def send(self, worker: int, message: Message) -> None:
        """Send a message; a worker that is gone is noticed by ``events``, not here."""
        if worker not in self._processes:
            return
        stdin = _pipe(self._processes[worker].process.stdin)
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()

    def events(self, timeout: float) -> Iterator[tuple[int, Message | Exit]]:
        """What workers said within ``timeout`` seconds, each message whole and in order; an Exit is a worker's last."""
        for key, _ in self._selector.select(timeout):
            worker: int = key.data
            entry = self._processes[worker]
            chunk = os.read(key.fd, 1 << 16)
            *lines, entry.unread = (entry.unread + chunk).split(b"\n")
            for line in lines:
                yield worker, json.loads(line)
            if not chunk:
                self._selector.unregister(key.fileobj)
                entry.silent = True
        for worker, entry in list(self._processes.items()):
            if entry.silent and _ends_within(entry.process, timeout):
                code = self._reap(worker)
                starved = code == -signal.SIGKILL and not entry.killed and self._explain(entry)
                yield worker, Exit(code, self.log_tail(worker), out_of_memory=starved)

    def log_tail(self, worker: int) -> str:
        """The last lines that a worker printed: its traceback, where it failed."""
        return "\n".join(self._logs[worker].read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def kill(self, worker: int) -> None:
        """End a worker's process at once; its Exit comes through ``events``."""
        if worker in self._processes:
            self._processes[worker].killed = True
            self._processes[worker].process.kill()

    def abandon(self, worker: int) -> int:
        """Forget a process that was killed and does not end; its number in the system. No Exit comes any more."""
        entry = self._processes.pop(worker)
        if not entry.silent:
            self._selector.unregister(_pipe(entry.process.stdout))
        _close_pipes(entry.process)
        return entry.process.pid

    def close(self, patience_seconds: float = 5) -> list[int]:
        """End all processes: those that wait see the end of their input, those still busy then are killed.

        Returns:
            Numbers in the system of those that were killed and did not end.
        """
        for entry in self._processes.values():
            _hang_up(entry.process.stdin)
        deadline = time.monotonic() + patience_seconds
        for entry in self._processes.values():
            if not _ends_within(entry.process, deadline - time.monotonic()):
                entry.process.kill()
        deadline = time.monotonic() + END_SECONDS
        stuck = []
        for worker, entry in list(self._processes.items()):
            if _ends_within(entry.process, deadline - time.monotonic()):
                self._reap(worker)
            else:
                stuck.append(self.abandon(worker))
        self._selector.close()
        return stuck

    def _reap(self, worker: int) -> int:
        process = self._processes.pop(worker).process
        _close_pipes(process)
        return process.wait()

    def _explain(self, entry: _Process) -> bool:
        """Whether the system has killed something for want of memory, since this began, that was no other worker."""
        before = max(entry.oom_kills, self._oom_explained)
        if _oom_kills() <= before:
            return False
        self._oom_explained = before + 1
        return True


def without_secrets() -> dict[str, str]:
    """This process's environment as a child may have it."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def _oom_counters() -> Iterator[Path]:
    """Where the system counts such kills: in this process's own group; the whole machine only where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                yield Path(f"/sys/fs/cgroup{group}/memory.events")
            elif "memory" in controllers.split(","):
                yield Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control")
    yield Path("/sys/fs/cgroup/memory.events")  # a container that sees its own group as the root
    yield Path("/proc/vmstat")


def _oom_kills() -> int:
    """Processes that the system has killed for want of memory."""
    for file in _oom_counters():
        with contextlib.suppress(OSError):
            for line in file.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return False
    return True


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    _hang_up(process.stdin)
    _pipe(process.stdout).close()


def _hang_up(pipe: IO[bytes] | None) -> None:
    with contextlib.suppress(BrokenPipeError):  # the last message was never read
        _pipe(pipe).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
