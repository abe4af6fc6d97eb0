"""GPUs that are added to a running search, and taken away from it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from scripted import Bench, ScriptedPool, spec_of, states, trains
from typer.testing import CliRunner

from search import devices, gpu_locks
from search.cli import app
from search.devices import Gpu, WorkerDevice
from search.errors import DeviceHeld, UsageError
from search.gpu_locks import hold_devices
from search.paths import Runs
from search.plan.prepare import room_needed
from search.plan.space import Bounds
from search.running.coordinator import Coordinator
from search.running.elastic import Elastic, Gpus, Request, change_gpus, text_of_gpus
from search.running.pace import GATHERED_FOR
from search.study.events import Assign
from search.study.journal import read_journal
from search.study.lock import own_study
from search.study.storage import parse_url
from search.workers.messages import Epoch
from trainer.kept import read_checked, with_sum, write_checked

GPUS = [WorkerDevice(f"gpu {number}", f"GPU-{number}", 2) for number in range(3)]
BOUNDS = Bounds(width=None, most_params=1000, space={}, known=[], left_out={})


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs, and a folder for locks that all users share."""
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(gpu_locks, "LOCK_FOLDERS", (folder,))
    monkeypatch.setattr(gpu_locks, "_use_of", lambda uuid: None)
    monkeypatch.setattr(devices, "visible_gpus", lambda: [Gpu(str(n), f"GPU-{n}") for n in range(3)])


def is_free(device: WorkerDevice) -> bool:
    try:
        with hold_devices([device], print):
            return True
    except DeviceHeld:
        return False


def test_a_drained_gpu_finishes_its_epoch_and_an_added_one_goes_on_with_its_trial(bench: Bench) -> None:
    runs, answers, free = Runs(bench.folder), list[Result](), list[list[bool]]()

    def ask() -> None:
        words = ["gpus", "scripted", "--add", "1", "--drain", "0", "--json", "--runs", str(bench.folder)]
        answers.append(CliRunner().invoke(app, words))

    asking = threading.Thread(target=ask)

    def on_epoch(said: Epoch) -> None:
        if said.trial == 0 and asking.ident is None:
            asking.start()
            until = time.monotonic() + 60
            while not list(runs.gpu_requests("scripted").glob("*.request")):
                assert time.monotonic() < until
                time.sleep(0.01)
        elif said.trial == 1:
            free.append([is_free(device) for device in GPUS])

    pool = ScriptedPool(trains, on_epoch=on_epoch)
    pool.devices = GPUS[:1]
    coordinator = bench.coordinator(pool, spec_of(trials=2))
    url = parse_url(f"sqlite:///{runs.database}")
    with own_study("scripted", url, runs), hold_devices(GPUS[:1], print) as held:
        elastic = Elastic(coordinator, GPUS[:1], held, BOUNDS)
        coordinator.each_turn = elastic.turn
        assert coordinator.run() is True
        asking.join()
    assert states(coordinator.trials.study) == ["COMPLETE"] * 2
    lines = [line for line in read_journal(coordinator.journal.path) if isinstance(line, Assign)]
    assert [(line.trial, line.worker) for line in lines] == [(0, "gpu 0"), (0, "gpu 1"), (1, "gpu 1")]
    assert (pool.started, pool.answers[0]) == ([0, 1], False), "the epoch in progress is its last there"
    assert [worker.label for worker in coordinator.crew.present] == ["gpu 1"]
    assert pool.released == [0], "a cluster may give it to others"
    assert free == [[True, False, True]] * 3, "other programs may use the GPU that was drained"
    assert elastic.devices == GPUS[1:2], "for an export"
    (answer,) = answers
    assert (answer.exit_code, json.loads(answer.stdout)) == (
        0,
        {"version": 1, "study": "scripted", "gpus": ["gpu 1"], "added": ["gpu 1"], "drained": ["gpu 0"]},
    )


@pytest.fixture
def elastic(bench: Bench) -> Any:
    pool = ScriptedPool(trains)
    pool.devices = GPUS[:1]
    with hold_devices(GPUS[:1], print) as held:
        yield Elastic(bench.coordinator(pool), GPUS[:1], held, BOUNDS)


def ask(elastic: Elastic, **request: str) -> dict[str, Any]:
    coordinator: Coordinator = elastic._search
    folder = coordinator.runs.gpu_requests("scripted")
    folder.mkdir(exist_ok=True)
    write_checked(folder / "1.request", Request(**request).model_dump())
    elastic.turn()
    assert not (folder / "1.request").exists()
    return read_checked(folder / "1.answer")


REFUSED: list[tuple[dict[str, str], str]] = [
    ({"drain": "0"}, "--drain 0 would leave no GPU; search stop scripted --runs RUNS ends a search"),
    ({"drain": "2"}, "--drain 2: '2' is not in use; the search uses gpu 0"),
    ({"drain": "0,GPU-0"}, "--drain 0,GPU-0: 'GPU-0' is named twice; the search uses gpu 0"),
    ({"add": "0"}, "--add 0: the search uses gpu 0 already"),
    ({"add": "1", "drain": "7"}, "--drain 7: '7' is not in use; the search uses gpu 0"),
    ({"add": "9"}, "--gpus 9: there is no GPU '9'; those here are 0, 1, 2"),
]


def test_an_impossible_change_is_refused_and_changes_nothing(elastic: Elastic) -> None:
    for request, error in REFUSED:
        assert ask(elastic, **request)["error"] == error.replace("RUNS", str(elastic._search.runs.root))
        assert (elastic.devices, elastic._search.crew.pool.devices) == (GPUS[:1], GPUS[:1])
        assert [is_free(device) for device in GPUS] == [False, True, True]


def test_an_added_gpu_begins_at_once_and_its_checkpoints_need_room(elastic: Elastic) -> None:
    coordinator: Any = elastic._search
    assert ask(elastic, add="1,2")["added"] == ["gpu 1", "gpu 2"]
    assert coordinator.pool.started == [1, 2]
    assert coordinator.room_needed == room_needed(coordinator.spec, BOUNDS, 3)
    assert coordinator.looking.most == pytest.approx(3 * GATHERED_FOR)


def test_the_answer_says_how_long_a_change_lasts() -> None:
    changed = Gpus(study="birds", gpus=("gpu 1",), added=("gpu 1",), drained=("gpu 0",))
    assert text_of_gpus(changed).splitlines() == [
        "study 'birds' is searched on gpu 1",
        "added: gpu 1",
        "drained: gpu 0, free after the epoch in progress",
        "until this launch ends",
    ]
    assert text_of_gpus(Gpus(study="birds", gpus=("gpu 1",), added=(), drained=())).count("\n") == 0


def test_the_last_gpu_that_works_cannot_be_drained(elastic: Elastic) -> None:
    assert ask(elastic, add="1")["gpus"] == ["gpu 0", "gpu 1"]
    elastic._search.crew.workers[0].disabled_reason = "3 CUDA errors"
    error = ask(elastic, drain="1")["error"]
    assert error.startswith("--drain 1 would leave no GPU but those that are put aside; search stop scripted")
    assert ask(elastic, drain="0")["gpus"] == ["gpu 1"]


def test_a_search_that_stops_keeps_its_gpus(elastic: Elastic) -> None:
    elastic._search.stop()
    assert ask(elastic, add="1")["error"] == "the search is stopping, and keeps its GPUs until it has"
    assert ask(elastic)["gpus"] == ["gpu 0"]
    assert [is_free(device) for device in GPUS] == [False, True, True]


@pytest.mark.parametrize("content", [b"no JSON", with_sum({"later": 1})])
@pytest.mark.filterwarnings("ignore:.*it changes nothing")
def test_a_request_that_cannot_be_read_is_answered_and_does_not_end_the_search(
    elastic: Elastic, content: bytes
) -> None:
    folder = elastic._search.runs.gpu_requests("scripted")
    folder.mkdir()
    (folder / "1.request").write_bytes(content)
    elastic.turn()
    assert "the search cannot read the request" in str(read_checked(folder / "1.answer")["error"])


def test_a_request_that_a_search_has_taken_and_not_answered_is_not_waited_for(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains))
    runs = Runs(bench.folder)
    url = parse_url(f"sqlite:///{runs.database}")
    owns = contextlib.ExitStack()
    owns.enter_context(own_study("scripted", url, runs))

    def take_and_end(_: str) -> None:
        (request,) = runs.gpu_requests("scripted").glob("*.request")
        request.unlink()
        owns.close()

    with owns, pytest.raises(UsageError, match=r"took the request and did not answer; search gpus scripted --runs"):
        change_gpus("scripted", url, runs, Request(add="1"), tell=take_and_end)


def test_a_gpu_of_another_search_is_refused_and_no_other_is_taken(elastic: Elastic) -> None:
    with hold_devices(GPUS[2:], print):
        assert "gpu 2 is in use by another search" in ask(elastic, add="1,2")["error"]
    assert [is_free(device) for device in GPUS] == [False, True, True]


def test_cpu_workers_get_labels_and_threads_that_suit_the_others(elastic: Elastic) -> None:
    elastic.devices = [WorkerDevice("cpu:0", None, 3)]
    elastic._search.pool.devices[:] = elastic.devices
    assert ask(elastic, add="cpu")["added"] == ["cpu:1"]
    assert elastic.devices[-1] == WorkerDevice("cpu:1", None, 3)
    assert ask(elastic, drain="cpu:0")["gpus"] == ["cpu:1"]


def test_workers_of_slurm_are_added_and_drained_by_their_numbers(
    elastic: Elastic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic.devices = [WorkerDevice("slurm:0", "any", 4, place="slurm")]
    elastic._search.pool.devices[:] = elastic.devices
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask(elastic, add="slurm:2", drain="slurm:0")["gpus"] == ["slurm:1", "slurm:2"]
    assert [worker.drained for worker in elastic._search.crew.workers] == [True, False, False]
    for other in ("cpu", "ray:2"):  # nothing is asked of Ray, which is not there
        error = f"--add {other}: the search uses slurm:1, and a search is in one place"
        assert ask(elastic, add=other)["error"] == error


def test_a_worker_without_a_process_gives_its_device_back_when_it_is_drained(elastic: Elastic) -> None:
    crew = elastic._search.crew
    crew.workers[0].process = "none"
    crew.workers[0].disabled_reason = "no new process of it can start"
    assert ask(elastic, add="1", drain="0")["gpus"] == ["gpu 1"]
    assert isinstance(elastic._search.pool, ScriptedPool)
    assert elastic._search.pool.released == [0]


def test_a_study_that_nobody_searches_has_no_gpus(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains))
    asked = CliRunner().invoke(app, ["gpus", "scripted", "--runs", str(bench.folder)])
    assert str(asked.exception) == "no process searches study 'scripted'; search launch --gpus names its GPUs"


def test_a_gpu_without_a_process_goes_on_for_one_that_is_drained(bench: Bench) -> None:
    requested = False

    def on_epoch(said: Epoch) -> None:
        nonlocal requested
        if not requested:
            requested = True
            folder = coordinator.runs.gpu_requests("scripted")
            folder.mkdir()
            write_checked(folder / "1.request", Request(drain="0").model_dump())

    pool = ScriptedPool(trains, on_epoch=on_epoch)
    pool.devices = GPUS[:2]
    coordinator = bench.coordinator(pool, spec_of(trials=1))
    with hold_devices(GPUS[:2], print) as held:
        coordinator.each_turn = Elastic(coordinator, GPUS[:2], held, BOUNDS).turn
        coordinator.begin()
        assert pool.started == [0]
        for _ in range(30):
            coordinator.turn()
    assert states(coordinator.trials.study) == ["COMPLETE"]
    assert (pool.started, pool.trials) == ([0, 1], [0, 0])
