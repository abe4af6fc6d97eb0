"""Searches that several tests look at: each is launched once, with the installed command."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from desk import SMALL, STEADY, Desk, Watched
from filelock import FileLock
from optuna.trial import FrozenTrial
from rich.console import Console
from stranger import Exported, both_exports

from search.paths import Runs
from search.plan.prepare import prepare
from studies import load

Once = Callable[[str, Callable[[Path], Any]], Any]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes something in a folder once for all of pytest-xdist's processes, by the recipe of its documentation."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], Any]) -> Any:
        folder, made_already = root / name, root / f"{name}.pickle"
        with FileLock(f"{folder}.lock"):
            if not made_already.exists():
                folder.mkdir(exist_ok=True)
                made_already.write_bytes(pickle.dumps(make(folder)))
            return pickle.loads(made_already.read_bytes())

    return made


@pytest.fixture(scope="session")
def cache(once: Once) -> Path:
    """The decoded digits and the widest width, as any earlier search leaves them: 8 s less for each launch."""

    def make(folder: Path) -> Path:
        (folder / "small.toml").write_text(SMALL)
        runs = Runs(folder)
        prepare(load(str(folder / "small.toml")), runs, Console(quiet=True))
        return runs.cache

    made: Path = once("earlier", make)
    return made


@pytest.fixture(scope="session")
def fresh_desk(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Callable[[str], Desk]:
    """Makes places to work at, where no study was launched yet."""

    def make(name: str) -> Desk:
        place = Desk(tmp_path_factory.mktemp(name))
        shutil.copytree(cache, place.runs / "cache")
        return place

    return make


@pytest.fixture
def desk(fresh_desk: Callable[[str], Desk]) -> Iterator[Desk]:
    """A place to work at, where no study was launched yet."""
    place = fresh_desk("desk")
    yield place
    place.clear()


@pytest.fixture(scope="session")
def uninterrupted(once: Once, cache: Path) -> list[FrozenTrial]:
    """Seven trials that nobody disturbed, to compare with."""

    def make(folder: Path) -> list[FrozenTrial]:
        desk = Desk(folder)
        shutil.copytree(cache, desk.runs / "cache")
        try:
            answer = desk.search("launch", desk.write("steady.toml", STEADY), "--gpus", "cpu", "--trials", 7)
            assert answer.code == 0, answer.err
            return desk.trials("steady")
        finally:
            desk.clear()

    made: list[FrozenTrial] = once("uninterrupted", make)
    return made


class Listener(ThreadingHTTPServer):
    """A chat's server: keeps what is posted to an address that only we know."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.told: list[dict[str, Any]] = []
        self.secret = secrets.token_hex(16)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/{self.secret}"


class Answers(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:  # as the standard library calls it
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == f"/hooks/{self.server.secret}":
            self.server.told.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def finished(once: Once) -> Watched:
    """Nine trials on two workers, from nothing to the end. To change something in it, take ``used``."""
    made: Watched = once("finished", _finished)
    return made


def _finished(folder: Path) -> Watched:
    desk = Desk(folder)
    study = desk.write("small.toml", SMALL)
    listener = Listener()
    Thread(target=listener.serve_forever, args=(0.1,), daemon=True).start()
    launch = desk.start("launch", study, "--gpus", "cpu:2", "--set", f"notify.webhook={listener.url}")
    try:
        state = desk.runs / "studies" / "small" / "state.json"
        launch.until(
            lambda: state.exists() and '"val_accuracy": 0' in state.read_text()
        )  # after somebody's first epoch
        workers = launch.workers()
        for worker in workers:
            worker.suspend()  # so that the search has not ended when the others come
        status = desk.start("status", "--json")
        second = desk.search("launch", study, "--gpus", "cpu")
        status_answer = status.wait()
        watching = desk.start("status", "--watch")
        watching.until(lambda: watching.out.read_text())
        for worker in workers:
            worker.resume()
        answer = launch.wait()
        (folder / "alone").mkdir()
        shutil.copy(desk.runs / "search.db", folder / "alone")  # before others close it
        watched = watching.wait()
        alive = [worker.pid for worker in launch.workers_seen if worker.is_running()]
        return Watched(
            desk, answer, status_answer, watched, second, len(workers), alive, webhook=listener.url, told=listener.told
        )
    finally:
        listener.shutdown()
        listener.server_close()
        desk.clear()


@pytest.fixture
def used(finished: Watched, tmp_path: Path) -> Iterator[Desk]:
    """A copy of the desk with the finished search, to do anything with."""
    place = finished.desk.copy(tmp_path / "desk")
    yield place
    place.clear()


@pytest.fixture(scope="session")
def exported(once: Once, finished: Watched, pictures: Callable[[Path], Path]) -> Iterator[Exported]:
    """The finished search and one on an image folder, exported; only test_export.py runs commands at their desk."""
    made: Exported = once("exported", lambda folder: both_exports(folder, finished, pictures))
    yield made
    made.desk.clear()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Copies an image folder: three kinds of shapes, 60 pictures of many sizes, a third of them to test with."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 8)):
        for name in ("bars", "checks", "plain"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                width, height = (int(side) for side in rng.integers(17, 60, 2))
                x, y = np.meshgrid(np.arange(width), np.arange(height))
                on = {"bars": x // 4 % 2, "checks": (x // 4 + y // 4) % 2, "plain": x * 0}[name]
                pixels = np.where(on[..., None], rng.integers(160, 255, 3), rng.integers(0, 90, 3))
                noisy = pixels + rng.integers(-20, 20, pixels.shape)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")

    def copy(folder: Path) -> Path:
        shutil.copytree(root, folder)
        return folder

    return copy
