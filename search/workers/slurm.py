"""Workers on a Slurm cluster, each started by its own ``srun``, whose stdin and stdout are those of the worker.

Outside an allocation, each srun is a job, which may wait in the queue for any time. Inside an allocation, it is a step.
If Slurm ends a job (preemption, scancel, time limit), it first sends SIGTERM: the worker finishes its epoch, if Slurm's
KillWait or GraceTime is long enough, and ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from search.devices import WorkerDevice
from search.workers.local import worker_command
from search.workers.messages import FromWorker, from_worker
from search.workers.piped import END_SECONDS, PipedPool, Process, without_secrets
from search.workers.pool import Exit
from search.workers.worker import EXIT_PREEMPTED

ON_NODE = """
trap "" TERM INT HUP
printf '{"type": "step", "step": "%s.%s"}\\n' "$SLURM_JOB_ID" "$SLURM_STEP_ID"
"$@"
printf '\\n{"type": "exit", "code": %d}\\n' $?
"""
"""The shell script that runs a worker on its node. Its last line reports that the worker has ended by itself. srun's
exit code does not tell that: it may be 0 also if the node dies."""

WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.getppid() == int(sys.argv[1]) or sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""The Python program that becomes srun. It gets SIGTERM when the coordinator ends, so that a job in the queue is
cancelled."""

OUT_OF_MEMORY = 253
"""Exit code of srun if Slurm has killed a process of the step for lack of memory, SIG_OOM in Slurm's source."""

QUEUED = "queued and waiting for"
"""Words of srun once Slurm has accepted the request. If srun fails after them, the request was cancelled."""

CANCELLED, NODE_FAILURE = " CANCELLED AT ", "DUE TO NODE FAILURE"
"""Words of slurmstepd if Slurm ends a step. The reason may follow, such as DUE TO TIME LIMIT."""

SIZES = (
    *("SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_SOCKET", "SLURM_TRES_PER_TASK"),
    *("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_GPU", "SLURM_NNODES"),
    *("SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_PER_GPU", "SLURM_MEM_PER_NODE", "SLURM_DISTRIBUTION"),
)
"""Environment variables of an allocation. With them, srun would ask for the size of the allocation for each worker."""

_PYTHON = sys.executable


class SlurmPool(PipedPool):
    """One srun per worker.

    Args:
        devices: the devices to ask for, one for each worker.
        logs: for each worker, the file to which its output is appended.
        name: name of the study; the jobs are named after it.
        options: further options of srun.
    """

    def __init__(
        self, devices: Sequence[WorkerDevice], logs: Sequence[Path], name: str, options: Sequence[str]
    ) -> None:
        super().__init__(devices, logs)
        self._name, self._options = name, options
        self._cancels: list[subprocess.Popen[bytes]] = []

    def command(self, worker: int) -> tuple[list[str], dict[str, str]]:
        """An srun that runs the worker on a node."""
        device = self.devices[worker]
        environment = {name: value for name, value in without_secrets().items() if name not in SIZES}
        environment |= {"OMP_NUM_THREADS": str(device.num_threads), "NO_ALBUMENTATIONS_UPDATE": "1"}
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # Slurm sets it on the node
        srun = ["srun", "--nodes=1", "--ntasks=1", "--exact", f"--cpus-per-task={device.num_threads}", "--mpi=none"]
        srun += [f"--job-name={self._name}-{worker}", *(["--gpus=1"] if device.kind == "cuda" else [])]
        if "SLURM_JOB_ID" in environment:
            srun.append("--mem=0")  # each step may use all memory of the allocation on its node
        words = [*srun, *self._options, "sh", "-c", ON_NODE, "sh", *worker_command(device)]
        return [_PYTHON, "-I", "-c", WITH_PARENT, str(os.getpid()), *words], environment

    def read(self, entry: Process, line: bytes) -> FromWorker | None:
        """A message, or a line of the script on the node."""
        if not line:
            return None
        if step := re.fullmatch(rb'{"type": "step", "step": "([0-9.]+)"}', line):
            entry.step = step[1].decode()
        elif code := re.fullmatch(rb'{"type": "exit", "code": ([0-9]+)}', line):
            entry.code = int(code[1])
        else:
            return from_worker(line)
        return None

    def exit_of(self, entry: Process, code: int, log_tail: str) -> Exit:
        """The node has reported the worker's exit code, unless the node or the script was lost with the worker."""
        if entry.killed:
            return Exit(-signal.SIGKILL, log_tail)
        if entry.code is not None:  # the shell adds 128 to the number of a signal
            own = 128 - entry.code if entry.code > 128 else entry.code
            starved = own == -signal.SIGKILL and code == OUT_OF_MEMORY
            return Exit(own, log_tail, starved, "preempted" if own == EXIT_PREEMPTED else None)
        # Slurm has ended the script too, or the cause is unknown; srun's code may be 0, 1 or that of a signal.
        if code == OUT_OF_MEMORY:
            return Exit(-signal.SIGKILL, log_tail, out_of_memory=True)
        printed = entry.printed()
        if entry.step is None:
            return Exit(code, log_tail, lost="preempted" if QUEUED in printed else None)
        taken = CANCELLED in printed and NODE_FAILURE not in printed
        return Exit(code, log_tail, lost="preempted" if taken else "lost")

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker | Exit]]:
        """As for every pool. Processes of scancel that have ended are forgotten."""
        self._cancels = [process for process in self._cancels if process.poll() is None]
        yield from super().events(timeout)

    def end(self, entry: Process) -> None:
        """Cancel the worker's step, or its request while it waits in the queue. Does not wait for Slurm."""
        if entry.step is not None:
            words = ["scancel", "--signal=KILL", entry.step]
            with contextlib.suppress(OSError):  # the system refuses a process
                self._cancels.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True))
        entry.process.terminate()  # a step that scancel does not reach ends after Slurm's KillWait

    def close(self, patience_seconds: float = 5) -> list[int]:
        """As for every pool. Requests that wait in the queue are cancelled at once."""
        for entry in self._processes.values():
            if entry.step is None:
                self.end(entry)
        stuck = super().close(patience_seconds)
        deadline = time.monotonic() + END_SECONDS
        for process in self._cancels:
            with contextlib.suppress(subprocess.TimeoutExpired):  # Slurm does not answer
                process.wait(max(0.0, deadline - time.monotonic()))
        return stuck
