"""The connection to a Ray cluster: its address, and its token, without which anyone could run programs on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

from search.errors import UsageError
from search.words import count

CONNECT_SECONDS = 60.0
"""Longest time for a cluster to answer: if nothing listens at an address, Ray itself tries for many minutes."""

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # the pool reports the end of an actor
}
"""Environment variables for Ray, which reads them when it is imported."""

PROBE = """
import logging, sys
import ray
ray.init(sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
print("connected", flush=True)
"""
"""A program that connects to a cluster. With a wrong token, Ray itself tries for 20 s and raises an error without
a reason, but the lines that it prints have the reason at once."""

REFUSED = "InvalidAuthToken"
NONE_HERE = "Could not find any running Ray instance"


def connect(text: str, address: str) -> None:
    """Connect this process to the cluster, unless it is connected.

    Args:
        text: the text of ``--gpus``, for messages.
        address: ``cluster.address``; "": that of RAY_ADDRESS, else the cluster of this machine.

    Raises:
        UsageError: Ray is not installed, there is no token, the cluster cannot be reached, or it has another token or
            asks for none.
    """
    if find_spec("ray") is None:
        raise UsageError(f"--gpus {text}: Ray is not installed; pip install 'featherweight[ray]'")
    address = address or os.environ.get("RAY_ADDRESS", "auto")
    if "://" in address:
        raise UsageError(f"--gpus {text}: address {address}: launch on a node of the cluster, with HOST:PORT or auto")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if not os.environ.get("RAY_AUTH_TOKEN") and not file.is_file():
        raise UsageError(
            f"--gpus {text}: there is no token for Ray, neither in RAY_AUTH_TOKEN nor in {file}; make one with "
            "ray get-auth-token --generate, copy the file to each node, and start Ray there with RAY_AUTH_MODE=token"
        )
    os.environ.update(SETTINGS)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    without = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": os.devnull}
    probes = [_probe(address, os.environ | without), _probe(address, dict(os.environ))]
    ends = time.monotonic() + CONNECT_SECONDS
    open_to_all, ours = (_answer(probe, ends) for probe in probes)
    if open_to_all == "connected":
        raise UsageError(
            f"--gpus {text}: the cluster {address} asks for no token, so anyone who reaches it can run programs on it; "
            "start Ray on each node with RAY_AUTH_MODE=token"
        )
    if ours == REFUSED:
        own = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else file
        raise UsageError(f"--gpus {text}: the cluster {address} has another token; copy its token to {own}")
    if ours != "connected":
        raise UsageError(f"--gpus {text}: {_unanswered(address, ours)}")
    _init(address)


def size() -> tuple[int, int]:
    """Number of GPUs and of cores of the nodes that the cluster has now."""
    import ray

    there = ray.cluster_resources()
    return int(there.get("GPU", 0)), int(there.get("CPU", 0))


def shortage(threads: int, on_cpu: bool) -> str | None:
    """A sentence if none of the nodes that the cluster has now can hold a worker, else None."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= threads and (on_cpu or node.get("GPU", 0) >= 1) for node in nodes):
        return None
    needed = f"{'' if on_cpu else 'a GPU and '}{count(threads, 'CPU core')}"
    return (
        f"no node of the Ray cluster has {needed}, so the workers wait until one joins; cluster.threads sets the "
        "cores of a worker"
    )


def _unanswered(address: str, why: str) -> str:
    if NONE_HERE in why:  # Ray's sentence names options that this program does not have
        return (
            "Ray does not run on this machine; start it with RAY_AUTH_MODE=token ray start, and --head or the "
            "--address of a cluster"
        )
    return f"the Ray cluster {address} does not answer: {why}"


def _init(address: str) -> None:
    """Connect, and undo what Ray does to signals and to unexpected errors."""
    import logging

    hook, handler = sys.excepthook, signal.getsignal(signal.SIGTERM)
    import ray
    import ray._private.worker as printing

    printing._worker_logs_enabled = False  # log_to_driver does not stop what a raylet says about the end of a node
    ray.init(address, logging_level=logging.CRITICAL, log_to_driver=False)
    sys.excepthook = hook
    signal.signal(signal.SIGTERM, handler)


def _probe(address: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROBE, address],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _answer(probe: subprocess.Popen[str], ends: float) -> str:
    """The finding of a probe until the time ``ends``: "connected", REFUSED, or why there is no connection."""
    assert probe.stdout is not None
    last = "it ended without a word"
    timer = threading.Timer(max(0.0, ends - time.monotonic()), probe.kill)
    timer.daemon = True
    timer.start()
    found = None
    with probe:
        for line in probe.stdout:
            last = line.strip() or last
            found = next((word for word in ("connected", REFUSED) if word in line), None)
            if found is not None:
                probe.kill()
                break
    timer.cancel()
    timed_out = f"no answer within {CONNECT_SECONDS:g} s" if probe.returncode == -signal.SIGKILL else None
    return found or timed_out or last
