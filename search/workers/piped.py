"""The part that all pools of subprocesses share: messages are lines of JSON over pipes, whatever the command is."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import subprocess
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from search.devices import WorkerDevice
from search.process import HIDDEN_SETTINGS
from search.workers.messages import FromWorker, ToWorker, to_json
from search.workers.pool import Exit

LOG_TAIL_LINES = 15
"""Number of lines of a dead worker's log that become part of the failure's reason."""

END_SECONDS = 5.0
"""Longest time for killed processes to end before ``close`` leaves them to the system."""

logger = logging.getLogger(__name__)

SECRETS = ("SEARCH_STORAGE", "PGPASSWORD", HIDDEN_SETTINGS)
"""Environment variables that may hold the database's password; workers do not get them."""


@dataclass
class Process:
    """A worker's process."""

    device: WorkerDevice
    process: subprocess.Popen[bytes]
    log: Path
    log_begins: int
    """Bytes of the log that earlier processes have written."""
    oom_kills: int
    """Number of processes that the system had killed for lack of memory when this one was started."""
    killed: bool = False
    """Whether this pool killed the process."""
    unread: bytes = b""
    """Beginning of a line that the process has not finished writing."""
    unsent: bytes = b""
    """Input for which the pipe has no room yet: a stopped process reads nothing."""
    step: str | None = None
    """On Slurm: job and step, such as "4711.0"; None while the request waits in the queue."""
    code: int | None = None
    """On Slurm: the worker's exit code, as the node has reported it; None before that."""
    has_hung_up: bool = False
    """Whether the process has closed its end of the pipe, and so is about to end."""

    def printed(self) -> str:
        """The output of this process; "" if its log cannot be read."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(self.log_begins)
            return file.read().decode(errors="replace")
        return ""


class PipedPool(ABC):
    """A subprocess for each worker. ``search.workers.pool.Pool`` documents the methods.

    Args:
        devices: the devices to train on, one for each worker.
        logs: for each worker, the file to which its output is appended.
    """

    def __init__(self, devices: Sequence[WorkerDevice], logs: Sequence[Path]) -> None:
        self.devices, self._logs = list(devices), list(logs)
        self._processes: dict[int, Process] = {}
        self._selector = selectors.DefaultSelector()
        self._unstarted: list[int] = []
        """Workers whose process the system could not start; their Exits are due."""

    @abstractmethod
    def command(self, worker: int) -> tuple[list[str], dict[str, str]]:
        """The command of a worker's process, and its environment."""

    @abstractmethod
    def read(self, entry: Process, line: bytes) -> FromWorker | None:
        """The message in a line of a process's output; None if the line is for the pool alone.

        Raises:
            pydantic.ValidationError: the line is no message.
        """

    @abstractmethod
    def exit_of(self, entry: Process, code: int, log_tail: str) -> Exit:
        """The Exit for the end of a process with this exit code."""

    def add(self, device: WorkerDevice, log: Path) -> None:
        """Note the device."""
        self.devices.append(device)
        self._logs.append(log)

    def start(self, worker: int) -> None:
        """Start the worker's command; if the system refuses a process, an Exit follows."""
        device, log = self.devices[worker], self._logs[worker]
        command, environment = self.command(worker)
        with opened(log) as output:
            log_begins = output.tell()
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env=environment,
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C and a closed terminal reach the coordinator alone
                )
            except OSError as error:  # for example, too many processes or open files
                self._unstarted.append(worker)
                output.write(f"the system refuses a process: {error}\n".encode())
                return
        os.set_blocking(_pipe(process.stdin).fileno(), False)
        self._processes[worker] = Process(device, process, log, log_begins, oom_kills())
        self._selector.register(_pipe(process.stdout), selectors.EVENT_READ, worker)
        logger.debug("worker %d on %s: process %d, log %s", worker, device.label, process.pid, log)

    def send(self, worker: int, message: ToWorker) -> None:
        """Write to the process's pipe; if the pipe is full, the rest is written while ``events`` waits."""
        entry = self._processes.get(worker)
        if entry is not None and not entry.killed:
            waits = bool(entry.unsent)
            entry.unsent += to_json(message)
            if not waits:
                self._flush(worker)

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker | Exit]]:
        """Read every pipe that has data, and reap the processes that have closed theirs."""
        for key, _ in self._selector.select(timeout):
            worker: int = key.data
            entry = self._processes.get(worker)
            if entry is None:  # the caller abandoned it on an earlier event
                continue
            if key.fileobj is entry.process.stdin:
                self._selector.unregister(key.fileobj)
                self._flush(worker)
                continue
            chunk = os.read(key.fd, 1 << 16)
            *lines, entry.unread = (entry.unread + chunk).split(b"\n")
            for line in lines:
                try:
                    message = self.read(entry, line)
                except ValidationError as error:  # another version, or a library writes to the channel
                    with opened(self._logs[worker]) as log:
                        log.write(f"ended for a line that is not a message: {line!r}\n{error}\n".encode())
                    self.kill(worker)
                    break
                if message is not None:
                    yield worker, message
            if not chunk:
                self._selector.unregister(key.fileobj)
                entry.has_hung_up = True
        for worker, entry in list(self._processes.items()):
            if entry.has_hung_up and _ends_within(entry.process, timeout):
                code = self._reap(worker)
                yield worker, self.exit_of(entry, code, self.log_tail(worker))
        unstarted, self._unstarted = self._unstarted, []
        for worker in unstarted:
            yield worker, Exit(1, self.log_tail(worker))

    def log_tail(self, worker: int) -> str:
        """The end of the worker's log, which has the traceback if the worker failed."""
        return tail_of(self._logs[worker])

    def wait(self, seconds: float) -> None:
        """Wait until a process has said something, for at most so long. Other threads may use the pool meanwhile."""
        self._selector.select(seconds)

    def kill(self, worker: int) -> None:
        """End the process at once."""
        if worker in self._processes:
            self._processes[worker].killed = True
            self.end(self._processes[worker])

    def release(self, worker: int) -> None:
        """A device is free once its process has ended."""
        assert worker not in self._processes, "it has a process"

    def end(self, entry: Process) -> None:
        """Send signal 9."""
        entry.process.kill()

    def abandon(self, worker: int) -> int:
        """Close the process's pipes, and leave it to the system."""
        entry = self._processes.pop(worker)
        if not entry.has_hung_up:
            self._selector.unregister(_pipe(entry.process.stdout))
        self._close_pipes(entry.process)
        return entry.process.pid

    def close(self, patience_seconds: float = 5) -> list[int]:
        """Close every process's input, at which it ends; kill those that have not ended after ``patience_seconds``."""
        for entry in self._processes.values():
            self._hang_up(entry.process)
        deadline = time.monotonic() + patience_seconds
        for entry in self._processes.values():
            if not _ends_within(entry.process, deadline - time.monotonic()):
                self.end(entry)
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
        self._close_pipes(process)
        code = process.wait()
        logger.debug("worker %d: process %d ended with code %d", worker, process.pid, code)
        return code

    def _flush(self, worker: int) -> None:
        """Write as much unsent input as the pipe has room for; the rest follows when there is room again."""
        entry = self._processes[worker]
        stdin = _pipe(entry.process.stdin)
        try:
            entry.unsent = entry.unsent[os.write(stdin.fileno(), entry.unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # the process has ended; its Exit follows
            entry.unsent = b""
        if entry.unsent:
            self._selector.register(stdin, selectors.EVENT_WRITE, worker)

    def _close_pipes(self, process: subprocess.Popen[bytes]) -> None:
        self._hang_up(process)
        _pipe(process.stdout).close()

    def _hang_up(self, process: subprocess.Popen[bytes]) -> None:
        stdin = _pipe(process.stdin)
        with contextlib.suppress(KeyError, ValueError):  # nothing waits to be sent, or it is closed already
            self._selector.unregister(stdin)
        stdin.close()


@contextlib.contextmanager
def opened(log: Path) -> Iterator[IO[bytes]]:
    """Open a log to append to. If it cannot be opened, the output is dropped: a missing log must not stop the work."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab", buffering=0)
    except OSError as error:
        warnings.warn(f"the log {log} cannot be written ({error.strerror}); going on without it", stacklevel=3)
        file = Path(os.devnull).open("ab", buffering=0)  # noqa: SIM115  # closed below
    with file, contextlib.suppress(OSError):
        yield file


def tail_of(log: Path) -> str:
    """The last lines of a log; "" if it was removed, or could not be made."""
    try:
        said = log.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(said.splitlines()[-LOG_TAIL_LINES:])


def without_secrets() -> dict[str, str]:
    """This process's environment without SECRETS, for a child process."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def _oom_counters() -> Iterator[Path]:
    """Files in which the system counts out-of-memory kills: first those of this process's cgroup, then of the
    machine."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                yield Path(f"/sys/fs/cgroup{group}/memory.events")
            elif "memory" in controllers.split(","):
                yield Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control")
    yield Path("/sys/fs/cgroup/memory.events")  # a container that sees its own group as the root
    yield Path("/proc/vmstat")


def oom_kills() -> int:
    """Number of processes that the system has killed for lack of memory."""
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


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
