"""Where workers run: the meaning of ``--gpus`` with a cluster, and the pool for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from search.console import tell_aside
from search.devices import WorkerDevice, parse_devices
from search.errors import UsageError
from search.workers.local import LocalPool
from search.workers.pool import Pool
from search.workers.slurm import SlurmPool
from studies import StudySpec
from studies.cluster import Cluster


def place_of(text: str | None) -> Literal["here", "slurm", "ray"]:
    """The place of the devices that a text asks for."""
    match (text or "").partition(":")[0]:
        case "slurm":
            return "slurm"
        case "ray":
            return "ray"
        case _:
            return "here"


def parse_places(text: str | None, cluster: Cluster, workers_per_gpu: int = 1) -> list[WorkerDevice]:
    """The device of each worker: devices of this machine, see ``parse_devices``, or devices that Slurm or Ray assigns.

    With Ray, this process is connected to the cluster.

    Args:
        text: "slurm:16" or "ray:16" for 16 GPUs; "slurm:cpu:16" or "ray:cpu:16" for 16 workers on the CPU; "slurm" for
            all GPUs of the allocation, "ray" for all GPUs of the cluster; if there is no GPU, for workers on all cores.
            Any other text is as for ``parse_devices``.
        cluster: how the study asks for workers on a cluster.
        workers_per_gpu: number of workers that will share each GPU.

    Raises:
        UsageError: the text has another form; Slurm or the Ray cluster is not there; several workers shall share a GPU
            of a cluster; and as for ``parse_devices``.
    """
    place = place_of(text)
    if text is None or place == "here":
        return parse_devices(text)
    form = re.fullmatch(r"(?:slurm|ray)(:cpu)?(?::([1-9][0-9]{0,4}))?", text)
    if form is None:
        raise UsageError(
            f"--gpus {text}: write {place}:N for N GPUs, {place}:cpu:N for N workers on the CPU, or {place}"
        )
    if place == "slurm" and shutil.which("srun") is None:
        raise UsageError(f"--gpus {text}: there is no srun on this machine; launch on a login node of the cluster")
    if workers_per_gpu > 1:
        raise UsageError(
            f"--gpus {text}: each worker of {place.capitalize()} has a GPU of its own; set search.workers_per_gpu = 1"
        )
    if place == "ray":
        from search.workers import ray_cluster

        ray_cluster.connect(text, cluster.address)
    on_cpu, number = form[1] is not None, int(form[2] or 0)
    if number == 0:
        gpus, cores = ray_cluster.size() if place == "ray" else _allocated(text)
        on_cpu = on_cpu or gpus == 0
        number = max(1, cores // cluster.threads) if on_cpu else gpus
    if place == "ray" and (shortage := ray_cluster.shortage(cluster.threads, on_cpu)):
        tell_aside(f"--gpus {text}: {shortage}")
    visible = None if on_cpu else "any"
    here: Literal["slurm", "ray"] = "ray" if place == "ray" else "slurm"
    return [WorkerDevice(f"{place}:{one}", visible, cluster.threads, place=here) for one in range(number)]


def open_pool(devices: Sequence[WorkerDevice], logs: Sequence[Path], spec: StudySpec, cache: Path) -> Pool:
    """The pool for these devices, which are all in one place. ``cache`` is the folder of the decoded pictures."""
    if devices and devices[0].place == "ray":
        from search.workers.ray import RayPool

        return RayPool(devices, logs, cache)
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
