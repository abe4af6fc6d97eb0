"""Searches that several tests look at: each is launched once, with the installed command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from desk import SMALL, STEADY, Answer, Desk
from optuna.trial import FrozenTrial
from rich.console import Console

from search.launch import prepare
from search.paths import Runs
from studies import load


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoded digits and the widest width, as any earlier search leaves them: 8 s less for each launch."""
    runs = Runs(tmp_path_factory.mktemp("earlier"))
    prepare(load(str(_study_file(tmp_path_factory.mktemp("study")))), runs, Console(quiet=True))
    return runs.cache


def _study_file(folder: Path) -> Path:
    file = folder / "small.toml"
    file.write_text(SMALL)
    return file


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
def uninterrupted(fresh_desk: Callable[[str], Desk]) -> list[FrozenTrial]:
    """Six trials that nobody disturbed, to compare with."""
    desk = fresh_desk("uninterrupted")
    try:
        answer = desk.search("launch", desk.write("steady.toml", STEADY), "--gpus", "cpu")
        assert answer.code == 0, answer.err
        return desk.trials("steady")
    finally:
        desk.clear()


@dataclass(frozen=True)
class Watched:
    """A search that has ended, and what others saw of it while it ran."""

    desk: Desk
    answer: Answer
    status: Answer
    """``search status --json`` in the middle of it, STUDY left out."""
    second: Answer
    """A second launch of the same study in the middle of it."""
    num_workers: int
    workers_alive: list[int]
    """Process ids of workers that were still there when the command had ended."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Nine trials on two workers, from nothing to the end. To change something in it, take ``used``."""
    desk = Desk(tmp_path_factory.mktemp("finished"))
    study = desk.write("small.toml", SMALL)
    launch = desk.start("launch", study, "--gpus", "cpu:2")
    try:
        launch.until(lambda: desk.checkpoint("small", 0).exists())
        workers = launch.workers()
        for worker in workers:
            worker.suspend()  # so that the search has not ended when the others come
        status = desk.start("status", "--json")
        second = desk.search("launch", study, "--gpus", "cpu")
        status_answer = status.wait()
        for worker in workers:
            worker.resume()
        answer = launch.wait()
        alive = [worker.pid for worker in launch.workers_seen if worker.is_running()]
        return Watched(desk, answer, status_answer, second, len(workers), alive)
    finally:
        desk.clear()


@pytest.fixture
def used(finished: Watched, tmp_path: Path) -> Iterator[Desk]:
    """A copy of the desk with the finished search, to do anything with."""
    place = finished.desk.copy(tmp_path / "desk")
    yield place
    place.clear()


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
