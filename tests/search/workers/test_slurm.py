"""What only Slurm does: a queue, jobs that it cancels, allocations; on a real cluster of two nodes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from plays import assignment
from pools import begin, has, slurm_pool, until
from scripted import spec_of
from slurm import Cluster

from search.devices import WorkerDevice
from search.errors import UsageError
from search.workers import slurm as on_slurm
from search.workers.messages import Ready
from search.workers.piped import SECRETS
from search.workers.places import open_pool, parse_places
from search.workers.pool import Exit
from search.workers.slurm import SlurmPool
from studies import cluster as of_study


@pytest.fixture(autouse=True)
def idle(slurm: Cluster) -> None:
    """Each test finds both nodes free, whatever the one before it left."""
    slurm.clear()


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_worker_in_the_queue_says_nothing_and_leaves_the_queue_when_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Cluster
) -> None:
    pool = slurm_pool(tmp_path, monkeypatch, slurm, ["--exclusive", "--nodelist=n1"])
    begin(pool, 0)
    pool.start(1)
    wait_for(lambda: len(slurm.jobs("PD")) == 1)
    assert [event for _ in range(5) for event in pool.events(0.1)] == []
    pool.kill(1)
    assert until(pool, has(Exit)) == [(1, Exit(-signal.SIGKILL, pool.log_tail(1)))]
    wait_for(lambda: not slurm.jobs("PD"))
    pool.start(1)
    wait_for(lambda: len(slurm.jobs("PD")) == 1)
    begun = time.monotonic()
    pool.close(patience_seconds=60)
    assert time.monotonic() - begun < 40, "no epoch is in progress"
    wait_for(lambda: not slurm.jobs())  # neither the waiting one nor the running one


@pytest.mark.parametrize("began", [True, False], ids=["running", "waiting"])
def test_a_job_that_slurm_cancels_is_preempted_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Cluster, began: bool
) -> None:
    pool = slurm_pool(tmp_path, monkeypatch, slurm, [] if began else ["--hold"])
    pool.start(0)
    if began:
        until(pool, has(Ready))
        pool.send(0, assignment("sleeps"))
    while len(slurm.jobs()) < 1:
        time.sleep(0.1)
    slurm.ask("scancel", *slurm.jobs())
    ((_, exit_),) = until(pool, has(Exit))
    assert isinstance(exit_, Exit)
    assert exit_.lost == "preempted", exit_
    pool.close()


def test_an_option_that_srun_refuses_is_a_failed_start_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Cluster
) -> None:
    pool = slurm_pool(tmp_path, monkeypatch, slurm, ["--partition=nowhere"])
    pool.start(0)
    ((_, exit_),) = until(pool, has(Exit))
    assert isinstance(exit_, Exit)
    assert (exit_.returncode, exit_.lost) == (1, None)
    assert "invalid partition specified: nowhere" in exit_.log_tail
    pool.close()


@pytest.mark.parametrize("script_ends", [False, True], ids=["with the script", "the worker alone"])
def test_a_worker_that_slurm_kills_for_lack_of_memory_has_run_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script_ends: bool
) -> None:
    """A program stands in for srun: the cluster of these tests has no cgroups, with which Slurm limits memory."""
    own_end = 'echo \'{"type": "exit", "code": 137}\'\n' if script_ends else ""
    srun = tmp_path / "srun"
    srun.write_text(f'#!/bin/sh\necho \'{{"type": "step", "step": "7.0"}}\'\n{own_end}exit 253\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pool = SlurmPool([WorkerDevice("slurm:0", None, 1, place="slurm")], [tmp_path / "log"], "plays", [])
    pool.start(0)
    assert until(pool, has(Exit)) == [(0, Exit(-signal.SIGKILL, "", out_of_memory=True))]
    pool.close()


def test_a_slurm_that_does_not_answer_does_not_hold_the_end_of_a_search_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs stand in for srun and for a scancel that hangs."""
    step = """echo '{"type": "step", "step": "7.0"}'"""
    for name, words in (("srun", f"{step}\nexec sleep 60"), ("scancel", "exec sleep 60")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(on_slurm, "END_SECONDS", 0.2)
    pool = SlurmPool([WorkerDevice("slurm:0", None, 1, place="slurm")], [tmp_path / "log"], "plays", [])
    pool.start(0)
    wait_for(lambda: list(pool.events(0.1)) or pool._processes[0].step)
    begun = time.monotonic()
    assert pool.close(patience_seconds=0) == []
    assert time.monotonic() - begun < 30
    for process in pool._cancels:
        process.kill()
        process.wait()


def test_a_coordinator_that_is_killed_takes_its_jobs_with_it(tmp_path: Path, slurm: Cluster) -> None:
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("plays.py")}"\n')
    program.chmod(0o755)
    text = f"""
import sys
from pathlib import Path
from search.devices import WorkerDevice
from search.workers.places import open_pool, parse_places
from search.workers.slurm import SlurmPool
from studies import cluster as study_cluster
sys.executable = {str(program)!r}
devices = [WorkerDevice("slurm:0", None, 1, place="slurm")] * 2
pool = SlurmPool(devices, [Path({str(tmp_path / "log")!r})] * 2, "plays", [])
pool.start(0)
while not any(event.type == "ready" for _, event in pool.events(1)):
    pass
pool._options = ["--hold"]
pool.start(1)
print("both", flush=True)
while True:
    list(pool.events(1))
"""
    environment = os.environ | {"SLURM_CONF": slurm.conf, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"both\n"
        while len(slurm.jobs()) < 2:
            time.sleep(0.1)
        process.kill()
    wait_for(lambda: not slurm.jobs())


def test_workers_in_an_allocation_share_its_nodes_each_with_its_own_gpu_cores_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Cluster
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nenv >&2\nexec sleep 5\n")
    program.chmod(0o755)
    monkeypatch.setenv("SLURM_CONF", slurm.conf)
    job = slurm.ask("salloc", "--no-shell", "-N2", "--gpus-per-node=2", "--cpus-per-gpu=2", "--mem=1000", "-J", "held")
    (number,) = slurm.jobs("R")
    assert job == ""
    monkeypatch.setenv("SLURM_JOB_ID", number)
    for name, value in {"SLURM_GPUS_PER_NODE": "2", "SLURM_CPUS_PER_GPU": "2", "SLURM_MEM_PER_NODE": "1000"}.items():
        monkeypatch.setenv(name, value)
    for secret in SECRETS:
        monkeypatch.setenv(secret, "hunter2")
    devices = parse_places("slurm", of_study.Cluster(threads=2))
    assert [(one.label, one.kind, one.num_threads) for one in devices] == [(f"slurm:{n}", "cuda", 2) for n in range(4)]
    monkeypatch.setattr(sys, "executable", str(program))
    logs = [tmp_path / f"log{number}" for number in range(4)]
    pool = open_pool(devices, logs, spec_of(), tmp_path)
    for worker in range(4):
        pool.start(worker)
    deadline = time.monotonic() + 20
    while not all(log.exists() and "SLURMD_NODENAME" in log.read_text() for log in logs):
        assert time.monotonic() < deadline, [log.read_text() for log in logs]
        list(pool.events(0.2))
    said = [dict(line.split("=", 1) for line in log.read_text().splitlines() if "=" in line) for log in logs]
    assert sorted(one["SLURMD_NODENAME"] for one in said) == ["n1", "n1", "n2", "n2"]
    assert {(one["OMP_NUM_THREADS"], one["SLURM_GPUS_ON_NODE"], one["SLURM_CPUS_ON_NODE"]) for one in said} == {
        ("2", "1", "2")
    }
    assert not any("hunter2" in log.read_text() for log in logs)
    pool.close(patience_seconds=0)
    slurm.ask("scancel", number)


@pytest.mark.parametrize(
    ("text", "kinds", "labels"),
    [
        ("slurm:2", {"cuda"}, ["slurm:0", "slurm:1"]),
        ("slurm:cpu:3", {"cpu"}, ["slurm:0", "slurm:1", "slurm:2"]),
    ],
)
def test_workers_of_slurm_are_named_by_their_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, kinds: set[str], labels: list[str]
) -> None:
    _srun(tmp_path, monkeypatch)
    devices = parse_places(text, of_study.Cluster())
    assert ([one.label for one in devices], {one.kind for one in devices}) == (labels, kinds)
    assert {(one.num_threads, one.place, one.uuid) for one in devices} == {(4, "slurm", None)}


def test_what_slurm_cannot_do_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no srun on this machine; launch on a login node of the cluster"):
        parse_places("slurm:2", of_study.Cluster())
    _srun(tmp_path, monkeypatch)
    for text in ("slurm:0", "slurm:x", "slurm:gpu:2", "slurm2", "slurm:cpu:"):
        with pytest.raises(UsageError):
            parse_places(text, of_study.Cluster())
    with pytest.raises(UsageError, match=r"this is not an allocation of Slurm; name a number, slurm:16"):
        parse_places("slurm", of_study.Cluster())
    with pytest.raises(UsageError, match=r"set search.workers_per_gpu = 1"):
        parse_places("slurm:2", of_study.Cluster(), workers_per_gpu=2)


def _srun(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A machine with an srun."""
    (folder / "srun").touch(mode=0o755)
    patch.setenv("PATH", str(folder))


def sbatch_file() -> str:
    """The one of the documents, for this cluster."""
    page = (Path(__file__).parents[3] / "docs/cluster.md").read_text()
    (text,) = (block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "#SBATCH" in block)
    return text.replace("--gpus=16 --cpus-per-gpu=4 --mem-per-gpu=32G", "--gpus=1 --cpus-per-gpu=1 --mem-per-gpu=100")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param("USR1", 0, id="the time is up", marks=pytest.mark.slow),  # Slurm waits 15 s before it begins again
        pytest.param("TERM", 75, id="preempted"),
        pytest.param(None, 75, id="search stop"),
        pytest.param(None, 137, id="killed"),
    ],
)
def test_the_sbatch_file_of_the_documents_requeues_itself_only_when_its_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Cluster, sent: str | None, code: int
) -> None:
    """A program in the place of ``search`` ends with 75 when it is told to stop, and with 0 when it is run again."""
    program = tmp_path / "search"
    program.write_text(
        "#!/bin/sh\n"
        'trap "echo stopped; exit 75" TERM\n'
        'echo "$@ restart=$SLURM_RESTART_COUNT"\n'
        '[ -z "$SLURM_RESTART_COUNT" ] || exit 0\n'
        "while [ ! -e stop ]; do sleep 0.1; done\n"
        "exit $(cat stop)\n"
    )
    program.chmod(0o755)
    (tmp_path / "job.sh").write_text(sbatch_file())
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = slurm.ask("sbatch", "--parsable", f"--chdir={tmp_path}", f"--output={tmp_path}/out", f"{tmp_path}/job.sh")
    out = tmp_path / "out"

    def until(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline, slurm.ask("scontrol", "show", "job", job)
            time.sleep(0.1)

    until(lambda: out.exists() and "restart=" in out.read_text())
    if sent == "USR1":
        slurm.ask("scancel", "--batch", "--signal=USR1", job)
        until(lambda: "JobState=COMPLETED" in slurm.ask("scontrol", "show", "job", job))
        begun = "launch birds400 --data /root/birds --gpus slurm --set faults.grace_seconds=250 restart="
        said = [line for line in out.read_text().splitlines() if "DUE TO JOB REQUEUE" not in line]  # Slurm's own, late
        assert [line.replace(str(Path.home()), "/root") for line in said] == [begun, "stopped", f"{begun}1"]
    else:
        if sent == "TERM":
            slurm.ask("scancel", "--full", "--signal=TERM", job)  # to the script and to the search
        else:
            (tmp_path / "code").write_text(str(code))
            (tmp_path / "code").rename(tmp_path / "stop")
        until(lambda: "JobState=FAILED" in slurm.ask("scontrol", "show", "job", job))
        assert f"ExitCode={code}:0" in slurm.ask("scontrol", "show", "job", job)
