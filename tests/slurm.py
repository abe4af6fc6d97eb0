"""A Slurm cluster of our own on 127.0.0.1: munged, slurmctld and two slurmd, each a process of this test."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from needed import missing, program

NODES = ("n1", "n2")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=15
CredType=cred/munge
SlurmUser={user}
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
ReturnToService=2
SlurmdTimeout=10
KillWait=2
MinJobAge=10
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=100
"""

START_SECONDS = 60


@dataclass
class Cluster:
    """A running cluster; its GPUs are names without hardware."""

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> str:
        return str(self.folder / "slurm.conf")

    def ask(self, *words: str) -> str:
        answer = subprocess.run(words, env=os.environ | {"SLURM_CONF": self.conf}, capture_output=True, text=True)
        assert answer.returncode == 0, (words, answer.stderr)
        return answer.stdout.strip()

    def jobs(self, state: str = "R,PD") -> list[str]:
        return self.ask("squeue", "-h", "-t", state, "-o", "%i").split()

    def node_of(self, job: str) -> str:
        return self.ask("squeue", "-h", "-j", job, "-o", "%N")

    def workers(self) -> list[psutil.Process]:
        """Processes of workers that this cluster has placed."""
        found = []
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:4] == ["-P", "-m", "search.workers.worker"]:
                    found.append(process)
        return found

    def _processes(self) -> Iterator[psutil.Process]:
        """Processes that use this cluster; others of this machine may use another one."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.conf:
                    yield process

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name, "-f", self.conf)

    def kill_node(self, name: str) -> None:
        """As a power cut does it: nothing of the node is left, and nobody is told."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()
        gone = set[psutil.Process]()
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                above = process.parents()
                steps = [number for number, one in enumerate(above) if one.name() == "slurmstepd"]
                if process.environ().get("SLURMD_NODENAME") == name and steps:
                    gone |= {process, *above[: steps[0] + 1]}
        for what in (psutil.Process.suspend, psutil.Process.kill):
            for process in gone:
                with contextlib.suppress(psutil.Error):
                    what(process)

    def start(self, name: str, command: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            environment = os.environ | {"SLURM_CONF": self.conf}
            self.daemons[name] = subprocess.Popen(
                [program(command), *words], stdout=out, stderr=out, env=environment, start_new_session=True
            )

    def until_idle(self) -> None:
        """Wait for both nodes; one that Slurm took out of service, as it does under load, is put back."""
        deadline = time.monotonic() + START_SECONDS
        while (nodes := self.ask_quietly("sinfo", "-h", "-N", "-o", "%N %T")).split() != ["n1", "idle", "n2", "idle"]:
            if time.monotonic() > deadline:
                why = self.ask_quietly("sinfo", "-R")
                missing(f"Slurm is not idle here: {nodes}\n{why}\n{(self.folder / 'ctld.log').read_text()[-500:]}")
            for name, state in (line.split() for line in nodes.splitlines()):
                if "drain" in state or "down" in state:
                    self.ask_quietly("scontrol", "update", f"NodeName={name}", "State=RESUME")
            time.sleep(0.1)

    def ask_quietly(self, *words: str) -> str:
        return subprocess.run(words, env=os.environ | {"SLURM_CONF": self.conf}, capture_output=True, text=True).stdout

    def clear(self) -> None:
        """Cancel all jobs, and wait until both nodes are idle.

        A play that is abandoned does not notice the end of its input.
        """
        while jobs := self.jobs("R,PD,CG"):
            self.ask_quietly("scancel", "--signal=KILL", *(f"{job}.0" for job in jobs))
            self.ask_quietly("scancel", *jobs)
            time.sleep(0.1)
        self.until_idle()

    def close(self) -> None:
        for job in self.ask_quietly("squeue", "-h", "-o", "%i").split():
            self.ask_quietly("scancel", "--full", "--signal=KILL", job)
            self.ask_quietly("scancel", job)
        for process in reversed(self.daemons.values()):
            process.kill()
            process.wait()


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """A cluster of two nodes, of four cores and two GPUs each; skipped where Slurm is not installed."""
    for name in ("munged", "slurmctld", "slurmd", "srun"):
        program(name)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:  # the path of a socket is short
        cluster = Cluster(Path(name))
        for folder in ("munge", "state", *NODES):
            (cluster.folder / folder).mkdir(mode=0o700)
        key = cluster.folder / "munge/key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        for number in range(2):
            (cluster.folder / f"gpu{number}").touch()
        host, ports = socket.gethostname().partition(".")[0], _free_ports(3)
        text = CONF.format(host=host, ports=ports, folder=cluster.folder, user=getpass.getuser())
        (cluster.folder / "slurm.conf").write_text(text)
        (cluster.folder / "gres.conf").write_text(f"NodeName=n1,n2 Name=gpu File={cluster.folder}/gpu[0-1]\n")
        munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={cluster.folder}/munge/{file}" for option, file in munge.items()]
        try:
            cluster.start("munged", "munged", "--foreground", "--force", "--num-threads=2", *options)
            deadline = time.monotonic() + START_SECONDS
            while not (cluster.folder / "munge/socket").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            cluster.start("slurmctld", "slurmctld", "-D", "-f", cluster.conf)
            for node in NODES:
                cluster.start_node(node)
            cluster.until_idle()
            yield cluster
        finally:
            cluster.close()
