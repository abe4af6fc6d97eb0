"""What only Ray does: actors that wait, files that travel, tokens; on a real cluster of a head and a node."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from filelock import FileLock
from needed import required
from plays import assignment
from pools import Said, begin, has, play_program, ray_pool, until
from ray_nodes import CORES, ROOT, Cluster

from search.devices import WorkerDevice
from search.errors import UsageError
from search.workers.messages import Answer, Assign, Epoch, Failed, Left, Placed, Ready
from search.workers.piped import SECRETS
from search.workers.places import parse_places
from search.workers.pool import Exit, Pool
from search.workers.ray_cluster import PROBE, _unanswered
from studies import cluster as of_study
from trainer.data import Dataset
from trainer.kept import move_into_place


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: Cluster, digits: Dataset) -> Iterator[Pool]:
    made = ray_pool(tmp_path, monkeypatch, ray, digits.cache_path)
    yield made
    made.close(patience_seconds=0)


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def players(cluster: Cluster) -> list[psutil.Process]:
    """Processes of workers on the node."""
    found = []
    for process in cluster.processes("n1"):
        with contextlib.suppress(psutil.Error):
            if any("plays.py" in word for word in process.cmdline()):
                found.append(process)
    return found


def keeps(folder: Path, trial: int = 0, start: Path | None = None) -> Assign:
    """A training that appends the number of each epoch to its checkpoint, and writes another file once."""
    given = assignment("keeps", trial)
    return replace(given, checkpoint=str(folder / "checkpoint"), start=None if start is None else str(start))


def test_a_trainings_files_are_at_home_before_its_epoch_is_heard_and_travel_to_the_next_worker(
    pool: Pool, ray: Cluster, tmp_path: Path, digits: Dataset
) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before/checkpoint").write_text("s")
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").write_text("its teacher")
    home, heard, others = tmp_path / "home", list[str](), set[int]()
    home.mkdir()
    (home / "ranks.json").touch()
    unchanged = (home / "ranks.json").stat()
    begin(pool, 0, 1)
    for worker in (0, 1):
        given = keeps(home, start=tmp_path / "before/checkpoint")
        given.config["distill"] = {"teacher": str(tmp_path / "teacher")}
        pool.send(worker, given)
        said: Said = []
        while not has(Left)(said):
            for by, event in pool.events(0.2):
                said.append((by, event))
                if isinstance(event, Epoch):
                    heard.append((home / "checkpoint").read_text())
                    others.add((home / "confusion.npz").stat().st_ino)
                    pool.send(by, Answer(go_on=True))
    assert heard == ["s1", "s12", "s121", "s1212"]
    assert pool.log_tail(1) == "its teacher"
    assert len(list((ray.folder / "n1").glob("featherweight-*/work/*/training/teacher/config.json"))) == 2
    here = [file.name for file in home.iterdir()]
    assert sorted(here) == ["checkpoint", "checkpoint.previous", "confusion.npz", "ranks.json"]
    assert (home / "ranks.json").stat().st_ino == unchanged.st_ino, "only changed files go home"
    assert len(others) == 1, "and each of them once"
    assert (home / "checkpoint.previous").read_text() == "s121"
    (node,) = (ray.folder / "n1").glob("featherweight-*")
    assert len(list(node.glob("work/*/training/checkpoint"))) == 2, "on the node"
    (cache,) = (folder for folder in (node / "cache").iterdir() if folder.is_dir())
    for file in ("pictures.npy", "index.json"):
        assert (cache / file).read_bytes() == (digits.cache_path / file).read_bytes()


def test_files_that_cannot_go_home_are_a_failure_of_the_disk_and_the_worker_takes_the_next(
    pool: Pool, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    begin(pool, 0)
    pool.send(0, keeps(tmp_path / "file", 7))
    ((_, failed),) = until(pool, has(Failed))
    assert isinstance(failed, Failed)
    assert (failed.trial, failed.failure.kind) == (7, "disk")
    assert str(tmp_path / "file/checkpoint") in failed.failure.sentence
    pool.send(0, keeps(tmp_path / "folder"))
    until(pool, has(Left))


def test_files_travel_again_after_the_depots_process_was_killed(pool: Pool, tmp_path: Path) -> None:
    begin(pool, 0)
    cluster, depot = sys.modules["ray"], vars(pool)["_depot"]
    cluster.kill(depot, no_restart=False)

    def answers() -> bool:
        with contextlib.suppress(cluster.exceptions.RayError):
            return cluster.get(depot.files.remote(str(tmp_path / "no folder"))) == {}
        return False

    wait_for(answers)
    pool.send(0, keeps(tmp_path / "home"))
    until(pool, has(Left))
    assert (tmp_path / "home/checkpoint").read_text() == "12"


def test_a_node_that_does_not_get_a_trainings_files_fails_it(pool: Pool, tmp_path: Path) -> None:
    begin(pool, 0)
    sys.modules["ray"].kill(vars(pool)["_depot"])
    pool.send(0, keeps(tmp_path / "home", 7))
    ((_, failed),) = until(pool, has(Failed))
    assert isinstance(failed, Failed)
    assert (failed.trial, failed.failure.kind) == (7, "crash")
    assert failed.failure.sentence.startswith("the node did not get a training's files: ")
    assert "\n" not in failed.failure.sentence


def test_a_damaged_cache_of_a_node_is_fetched_again(pool: Pool, ray: Cluster, digits: Dataset) -> None:
    begin(pool, 0)
    (pictures,) = (ray.folder / "n1").glob(f"featherweight-*/cache/{digits.cache_path.name}/pictures.npy")
    with pictures.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    begin(pool, 1)
    assert pictures.read_bytes() == (digits.cache_path / "pictures.npy").read_bytes()


def test_an_actor_that_is_killed_is_lost_and_its_process_ends_with_it(pool: Pool, ray: Cluster) -> None:
    begin(pool, 0)
    (player,) = players(ray)
    actor = player.parent()
    assert actor is not None
    assert actor.name().startswith("ray::Host")
    actor.kill()
    ((_, exit_),) = until(pool, has(Exit))
    assert isinstance(exit_, Exit)
    assert (exit_.lost, exit_.out_of_memory) == ("lost", False)
    wait_for(lambda: not players(ray))
    begin(pool, 0)
    used = list((ray.folder / "n1").glob("featherweight-*/work/*"))
    assert len(used) == 1, "the folder that it left is removed"


def test_a_process_that_is_killed_is_replaced_on_its_device(pool: Pool, ray: Cluster) -> None:
    begin(pool, 0)
    (pictures,) = (ray.folder / "n1").glob("featherweight-*/cache/*/pictures.npy")
    fetched = pictures.stat()
    (player,) = players(ray)
    actor = player.parent()
    player.kill()
    assert until(pool, has(Exit)) == [(0, Exit(-signal.SIGKILL, ""))]
    begin(pool, 0)
    assert pictures.stat().st_ino == fetched.st_ino, "pictures travel once to each node"
    (player,) = players(ray)
    assert player.parent() == actor


def test_a_process_that_is_killed_before_it_has_begun_ends(pool: Pool, ray: Cluster, digits: Dataset) -> None:
    begin(pool, 0)
    pool.kill(0)
    until(pool, has(Exit))
    (cache,) = (ray.folder / "n1").glob(f"featherweight-*/cache/{digits.cache_path.name}")
    with FileLock(cache.with_name(f".{cache.name}.lock")):  # its pictures are looked at
        pool.start(0)
        assert [event for _ in range(3) for event in pool.events(0.2)] == []
        pool.kill(0)
        time.sleep(1)
    assert until(pool, has(Exit)) == [(0, Exit(-signal.SIGKILL, ""))]
    begin(pool, 0)


def test_a_worker_without_room_waits_and_is_placed_when_another_gives_its_device_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: Cluster, digits: Dataset
) -> None:
    pool = ray_pool(tmp_path, monkeypatch, ray, digits.cache_path)
    pool.devices = [replace(device, num_threads=CORES) for device in pool.devices]
    pool.add(pool.devices[0], tmp_path / "2")
    begin(pool, 0)
    cluster = sys.modules["ray"]
    wait_for(lambda: cluster.available_resources().get("CPU", 0) == cluster.cluster_resources()["CPU"] - CORES)
    pool.start(1)
    pool.start(2)
    assert [event for _ in range(5) for event in pool.events(0.2)] == []
    pool.kill(2)
    assert until(pool, has(Exit)) == [(2, Exit(-signal.SIGKILL, ""))]
    pool.kill(0)
    until(pool, has(Exit))
    assert [event for _ in range(5) for event in pool.events(0.2)] == [], "the first one has kept its device"
    pool.release(0)
    assert [type(event) for _, event in until(pool, has(Ready))] == [Placed, Ready]
    pool.close()


def test_on_the_coordinators_own_node_no_file_travels(pool: Pool, ray: Cluster, tmp_path: Path) -> None:
    cluster = sys.modules["ray"]
    wait_for(lambda: any("n1" in node["Resources"] for node in cluster.nodes()))
    (own,) = (node["NodeID"] for node in cluster.nodes() if "n1" in node["Resources"])
    vars(pool)["_home"] = own
    begin(pool, 0)
    pool.send(0, keeps(tmp_path / "home"))
    until(pool, has(Left))
    assert (tmp_path / "home/checkpoint").read_text() == "12"
    assert not list((ray.folder / "n1").glob("featherweight-*/work/*/training"))


@pytest.mark.slow
def test_a_worker_that_ray_ends_because_its_node_has_little_memory_ran_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: Cluster, digits: Dataset
) -> None:
    ray.start_node("full", 2 * CORES, RAY_memory_usage_threshold="0.001", RAY_memory_monitor_refresh_ms="500")
    pool = ray_pool(tmp_path, monkeypatch, ray, digits.cache_path)
    pool.devices[0] = replace(pool.devices[0], num_threads=2 * CORES)
    pool.start(0)
    exit_ = until(pool, has(Exit))[-1][1]
    assert isinstance(exit_, Exit)
    assert (exit_.out_of_memory, exit_.lost) == (True, None)
    pool.close()
    ray.kill_node("full")
    wait_for(lambda: not [one for one in sys.modules["ray"].nodes() if one["Alive"] and "full" in one["Resources"]])


def test_each_worker_has_its_own_gpu_its_threads_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: Cluster, digits: Dataset
) -> None:
    for secret in SECRETS:
        monkeypatch.setenv(secret, "hunter2")
    pool = ray_pool(tmp_path, monkeypatch, ray, digits.cache_path)
    pool.devices = [WorkerDevice(f"ray:{number}", "any", 2, place="ray") for number in range(2)]
    play_program(tmp_path).write_text("#!/bin/sh\nenv >&2\n")
    pool.start(0)
    pool.start(1)
    until(pool, has(Exit, 2))
    said = [
        dict(line.split("=", 1) for line in (tmp_path / log).read_text().splitlines() if "=" in line) for log in "01"
    ]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in said} == {"0", "1"}
    assert {one["OMP_NUM_THREADS"] for one in said} == {"2"}
    assert not any("hunter2" in str(one) for one in said)
    pool.close()


def test_a_coordinator_that_is_killed_takes_its_workers_with_it(tmp_path: Path, ray: Cluster, digits: Dataset) -> None:
    text = f"""
import pytest
from pathlib import Path
from pools import begin, ray_pool
from ray_nodes import Cluster
cluster = Cluster(Path({str(ray.folder)!r}), {ray.token!r}, address={ray.address!r})
pool = ray_pool(Path({str(tmp_path)!r}), pytest.MonkeyPatch(), cluster, Path({str(digits.cache_path)!r}))
begin(pool, 0)
print("begun", flush=True)
while True:
    list(pool.events(1))
"""
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": ":".join(sys.path)}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert len(players(ray)) == 1
        process.kill()
    wait_for(lambda: not players(ray))


# -- what is said before a worker exists


def refusal(cluster: Cluster, **environment: str) -> str:
    """What a process of its own is told that connects to the cluster."""
    text = "from search.workers.ray_cluster import connect; connect('ray:2', '')"
    own = os.environ | cluster.environment | {"PYTHONPATH": ":".join(sys.path)} | environment
    answer = subprocess.run([sys.executable, "-c", text], env=own, capture_output=True, text=True)
    return answer.stderr.splitlines()[-1]


def test_a_missing_or_wrong_token_is_said_at_once_with_the_cure(ray: Cluster, tmp_path: Path) -> None:
    begun = time.monotonic()
    told = refusal(ray, RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert "there is no token for Ray" in told
    assert "ray get-auth-token --generate" in told
    told = refusal(ray, RAY_AUTH_TOKEN="0" * 32)
    assert f"the cluster {ray.address} has another token" in told
    assert time.monotonic() - begun < 15, "Ray itself needs 20 s"


def test_what_ray_cannot_do_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("ray:0", "ray:x", "ray:gpu:2", "ray:cpu:"):
        with pytest.raises(UsageError, match="write ray:N for N GPUs, ray:cpu:N for N workers on the CPU, or ray"):
            parse_places(text, of_study.Cluster())
    with pytest.raises(UsageError, match="each worker of Ray has a GPU of its own"):
        parse_places("ray:2", of_study.Cluster(), workers_per_gpu=2)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UsageError, match="launch on a node of the cluster, with HOST:PORT or auto"):
        parse_places("ray:2", of_study.Cluster())
    monkeypatch.setattr("search.workers.ray_cluster.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Ray is not installed; pip install 'featherweight\[ray\]'"):
        parse_places("ray:2", of_study.Cluster())


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_goes_home(tmp_path: Path) -> None:
    required("ray")
    from search.workers.ray_node import _state_of

    files = [tmp_path / "checkpoint", tmp_path / "checkpoint.partial"]
    for file in files:
        file.write_bytes(file.name[:10].encode())
        os.utime(file, ns=(10**18, 10**18))
    before = _state_of(files[0])
    assert _state_of(files[0]) == before
    move_into_place(files[1], files[0])
    assert _state_of(files[0]) != before


@pytest.fixture
def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """What a launch is told that looks for a cluster, at the address of its study file; no cluster is there.

    A program stands in for the interpreter that connects: it is let in at "open:1" without a token, is refused at
    "other:1" for its token, and says elsewhere where it was.
    """
    required("ray")
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\n"
        'case "$4 $RAY_AUTH_MODE" in\n'
        '"open:1 disabled") echo connected; exec sleep 60;;\n'
        '"other:1 token") echo InvalidAuthToken; exec sleep 60;;\n'
        "esac\n"
        'echo "nobody is at $4"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # the cluster of other tests, to which it may be connected
    monkeypatch.setenv("RAY_AUTH_TOKEN", "1" * 32)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def told(address: str) -> str:
        with pytest.raises(UsageError) as refused:
            parse_places("ray:2", of_study.Cluster(address=address))
        return str(refused.value)

    return told


def test_a_cluster_that_asks_for_no_token_or_has_another_is_refused(asked_for: Callable[[str], str]) -> None:
    assert "the cluster open:1 asks for no token, so anyone who reaches it can run programs" in asked_for("open:1")
    assert "the cluster other:1 has another token; copy its token to RAY_AUTH_TOKEN" in asked_for("other:1")


def test_the_cluster_is_that_of_the_study_file_else_of_the_environment_else_of_this_machine(
    asked_for: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(address: str) -> str:
        return asked_for(address).partition("nobody is at ")[2]

    assert asked("") == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "environment:1")
    assert asked("") == "environment:1"
    assert asked("file:1") == "file:1"


def test_paths_are_whole_before_they_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors run in folders of their own."""
    required("ray")
    from search.workers.ray import _with_whole_paths

    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").touch()
    given = replace(assignment("trains"), checkpoint="runs/checkpoint", start="runs/start")
    given.config["distill"] = {"teacher": "teacher"}
    whole = _with_whole_paths(given)
    assert [whole.checkpoint, whole.start, whole.teacher] == [
        str(tmp_path / name) for name in ("runs/checkpoint", "runs/start", "teacher")
    ]
    given.config["distill"] = {"teacher": "convnext_tiny"}
    assert _with_whole_paths(given).teacher is None, "a model of timm"


def test_without_a_number_there_is_a_worker_for_each_gpu_or_for_so_many_cores(
    pool: Pool, ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: len(parse_places("ray", of_study.Cluster())) == 2)
    devices = parse_places("ray", of_study.Cluster())
    assert [(one.label, one.kind, one.place) for one in devices] == [("ray:0", "cuda", "ray"), ("ray:1", "cuda", "ray")]
    assert [one.kind for one in parse_places("ray:cpu", of_study.Cluster())] == ["cpu"] * (CORES // 4)


def test_workers_for_which_no_node_is_large_enough_wait_and_that_is_said(
    pool: Pool, ray: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for(lambda: len(parse_places("ray", of_study.Cluster())) == 2)
    capsys.readouterr()
    for text in ("ray:2", "ray:cpu:2"):
        parse_places(text, of_study.Cluster(threads=CORES))
    assert capsys.readouterr().err == ""
    for text, needed in (("ray:2", "a GPU and 5 CPU cores"), ("ray:cpu:2", "5 CPU cores")):
        assert len(parse_places(text, of_study.Cluster(threads=CORES + 1))) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"--gpus {text}: no node of the Ray cluster has {needed}, so the workers wait"), told


def test_where_no_ray_runs_the_cure_is_to_start_it(tmp_path: Path) -> None:
    folder = {"RAY_TMPDIR": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    text = "import psutil; psutil.process_iter = lambda *_, **__: iter(())\n" + PROBE  # others of this machine run Ray
    answer = subprocess.run(
        [sys.executable, "-c", text, "auto"], env=os.environ | folder, capture_output=True, text=True
    )
    told = _unanswered("auto", answer.stderr.splitlines()[-1])
    assert told.startswith("Ray does not run on this machine; start it with RAY_AUTH_MODE=token ray start"), told


# -- the files of the documents


def _fields(*required: str, **properties: Any) -> dict[str, Any]:
    """Schema of an object with these fields and no others."""
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _list_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1}


TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
CONTAINER = _fields(
    "name",
    "image",
    name=TEXT,
    image=TEXT,
    env=_list_of(_fields("name", "value", name=TEXT, value=TEXT)),
    resources=_fields(requests=TEXTS, limits=TEXTS),
    volumeMounts=_list_of(_fields("name", "mountPath", name=TEXT, mountPath=TEXT)),
)
VOLUME = _fields(
    "name",
    name=TEXT,
    persistentVolumeClaim=_fields("claimName", claimName=TEXT),
    emptyDir=_fields(sizeLimit=TEXT),
)
PODS = _fields(
    "spec",
    spec=_fields(
        "containers",
        terminationGracePeriodSeconds=NUMBER,
        containers=_list_of(CONTAINER),
        volumes=_list_of(VOLUME),
    ),
)
HEAD = {"rayStartParams": TEXTS, "template": PODS}
WORKERS = HEAD | {"groupName": TEXT, "replicas": NUMBER, "minReplicas": NUMBER, "maxReplicas": NUMBER}
MANIFEST = _fields(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=_fields("name", name=TEXT),
    spec=_fields(
        "headGroupSpec",
        rayVersion=TEXT,
        authOptions=_fields(mode={"enum": ["disabled", "token"]}),
        enableInTreeAutoscaling={"type": "boolean"},
        headGroupSpec=_fields("template", **HEAD),
        workerGroupSpecs=_list_of(_fields("groupName", "maxReplicas", "minReplicas", "template", **WORKERS)),
    ),
)
"""The part of the schema of a RayCluster, ray.io/v1 of KubeRay 1.5, that the manifest uses."""


def test_the_autoscaler_file_and_the_manifest_of_the_documents_ask_for_a_token_and_have_the_form_of_ray() -> None:
    validate, root = required("jsonschema").validate, importlib.util.find_spec("ray")
    assert root is not None
    assert root.origin is not None
    page = (ROOT / "docs/cluster.md").read_text()
    launcher, kuberay = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    validate(launcher, json.loads((Path(root.origin).parent / "autoscaler/ray-schema.json").read_text()))
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert launcher[commands][-1].startswith("RAY_AUTH_MODE=token ray start ")
    validate(kuberay, MANIFEST)
    assert kuberay["spec"]["authOptions"] == {"mode": "token"}
    (image,) = re.findall(r"FROM rayproject/ray:([0-9.]+)-", page)
    assert kuberay["spec"]["rayVersion"] == image
