"""Where workers run: the meaning of ``--gpus`` with a cluster, and the pool for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from search.devices import WorkerDevice, parse_devices
from search.errors import UsageError
from search.workers.local import LocalPool
from search.workers.pool import Pool
from search.workers.slurm import SlurmPool
from studies import StudySpec


def parse_places(text: str | None, spec: StudySpec) -> list[WorkerDevice]:
    """The device of each worker: devices of this machine, see ``parse_devices``, or devices that Slurm assigns.

    Args:
        text: "slurm:16" for 16 GPUs, "slurm:cpu:16" for 16 workers on the CPU, "slurm" for all GPUs of the allocation
            or, if it has none, for its cores. Any other text is as for ``parse_devices``.
        spec: the study.

    Raises:
        UsageError: the text has another form, or there is no srun; and as for ``parse_devices``.
    """
    if text is None or text.partition(":")[0] != "slurm":
        return parse_devices(text)
    form = re.fullmatch(r"slurm(:cpu)?(?::([1-9][0-9]{0,4}))?", text)
    if form is None:
        raise UsageError(f"--gpus {text}: write slurm:N for N GPUs, slurm:cpu:N for N workers on the CPU, or slurm")
    if shutil.which("srun") is None:
        raise UsageError(f"--gpus {text}: there is no srun on this machine; launch on a login node of the cluster")
    if spec.search.workers_per_gpu > 1:
        raise UsageError(f"--gpus {text}: each worker of Slurm has a GPU of its own; set search.workers_per_gpu = 1")
    on_cpu, number = form[1] is not None, int(form[2] or 0)
    if number == 0:
        gpus, cores = _allocated(text)
        on_cpu = on_cpu or gpus == 0
        number = max(1, cores // spec.cluster.threads) if on_cpu else gpus
    visible = None if on_cpu else "any"
    return [WorkerDevice(f"slurm:{one}", visible, spec.cluster.threads, place="slurm") for one in range(number)]


def open_pool(devices: Sequence[WorkerDevice], logs: Sequence[Path], spec: StudySpec) -> Pool:
    """The pool for these devices, which are all in one place."""
    if devices and devices[0].place == "slurm":
        return SlurmPool(devices, logs, spec.name, spec.cluster.srun)
    return LocalPool(devices, logs)


def _allocated(text: str) -> tuple[int, int]:
    """Number of GPUs and of cores of the allocation that this process runs in."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UsageError(f"--gpus {text}: this is not an allocation of Slurm; name a number, {text}:16")
    told = _scontrol(text, "show", "job", "--details", job)
    gpus = cores = 0
    for nodes, resources in re.findall(r"^ *Nodes=(\S+) (.*)$", told, re.MULTILINE):  # equal nodes share a line
        number = len(_scontrol(text, "show", "hostnames", nodes).split())
        gpus += number * sum(map(int, re.findall(r"\bgpu(?::[\w.-]+)?:([0-9]+)\(", resources)))
    if found := re.search(r"\bNumCPUs=([0-9]+)", told):
        cores = int(found[1])
    return gpus, cores


def _scontrol(text: str, *words: str) -> str:
    answer = subprocess.run(["scontrol", *words], capture_output=True, text=True)
    if answer.returncode != 0:
        raise UsageError(f"--gpus {text}: scontrol {' '.join(words)} failed: {answer.stderr.strip()}")
    return answer.stdout
