"""A Ray cluster of our own: a head without cores, and nodes with a folder each, all processes of this test."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil
from needed import missing

ROOT = Path(__file__).parents[1]
START_SECONDS = 90
CORES = 4
"""Cores of each node, as Ray counts them."""


@dataclass
class Cluster:
    """A running cluster. Its nodes share a machine but no folder: each has its own for temporary files."""

    folder: Path
    token: str
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    address: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to use the cluster."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_TMPDIR": str(self.folder / "ray"),
        }

    def start(self, name: str, *words: str, **settings: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        environment = os.environ | self.environment | {"TMPDIR": str(self.folder / name)}
        environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/search/workers'}", "RAY_raylet_start_wait_time_s": "60"}
        environment.pop("RAY_ADDRESS")
        environment |= settings
        with (self.folder / f"{name}.out").open("ab") as out:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
            command += ["--object-store-memory=100000000", "--include-log-monitor=false", *words]
            self.nodes[name] = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, start_new_session=True
            )

    def start_head(self) -> None:
        self.start(
            "head",
            "--head",
            "--port=0",
            "--num-cpus=0",
            "--num-gpus=0",
            "--include-dashboard=false",
            f"--temp-dir={self.folder / 'ray'}",
        )
        file, deadline = self.folder / "ray/ray_current_cluster", time.monotonic() + START_SECONDS
        while not (file.exists() and file.read_text().strip()):
            if time.monotonic() > deadline:
                missing(f"Ray does not start here: {(self.folder / 'head.out').read_text()[-500:]}")
            time.sleep(0.1)
        self.address = file.read_text().strip()

    def start_node(self, name: str, cores: int = CORES, **settings: str) -> None:
        words = [f"--address={self.address}", f"--num-cpus={cores}", "--num-gpus=2", f'--resources={{"{name}": 1}}']
        self.start(name, *words, **settings)

    def wait_for_node(self, name: str) -> None:
        """Wait until a node has joined."""
        text = (
            "import sys, time, ray; ray.init(sys.argv[1], log_to_driver=False)\n"
            "while not any(n['Alive'] and sys.argv[2] in n['Resources'] for n in ray.nodes()): time.sleep(0.1)"
        )
        self.ask(sys.executable, "-c", text, self.address, name)

    def processes(self, name: str) -> list[psutil.Process]:
        """All processes of a node; those of Ray's workers have sessions of their own."""
        folder = f"TMPDIR={self.folder / name}"
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if folder.partition("=")[2] == process.environ().get("TMPDIR"):
                    found.append(process)
        return found

    def workers(self, name: str) -> list[psutil.Process]:
        """Processes of workers on a node."""
        found = []
        for process in self.processes(name):
            with contextlib.suppress(psutil.Error):
                if "search.workers.worker" in process.cmdline():
                    found.append(process)
        return found

    def kill_node(self, name: str) -> None:
        """As a power cut does it: nothing of the node is left, and nobody is told."""
        gone = self.processes(name)
        for process in gone:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        for process in gone:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.nodes.pop(name).wait()

    def drain(self, name: str) -> None:
        """Announce the end of a node, as a cloud does before it takes one back."""
        text = (
            "import json, sys, ray; ray.init(sys.argv[1], log_to_driver=False)\n"
            "print(next(n['NodeID'] for n in ray.nodes() if n['Alive'] and sys.argv[2] in n['Resources']))"
        )
        node = self.ask(sys.executable, "-c", text, self.address, name)
        drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={self.address}"]
        drain += [f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        self.ask(*drain, "--deadline-remaining-seconds=120")

    def ask(self, *words: str) -> str:
        """What a command prints."""
        answer = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

    def close(self) -> None:
        for name in list(self.nodes):
            self.kill_node(name)


@contextlib.contextmanager
def ray_cluster(*names: str, cores: int = CORES) -> Iterator[Cluster]:
    """A cluster with these nodes; skipped where Ray is not installed."""
    if find_spec("ray") is None:  # not imported: it would read its settings now
        missing("ray is not installed")
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:  # the path of a socket is short
        cluster = Cluster(Path(folder), secrets.token_hex(16))
        try:
            cluster.start_head()
            for name in names:
                cluster.start_node(name, cores)
            yield cluster
        finally:
            if (ray := sys.modules.get("ray")) is not None:  # its end would wait for a cluster that is gone
                ray.shutdown()
            cluster.close()
