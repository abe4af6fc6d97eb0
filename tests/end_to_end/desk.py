"""A place to work at: a folder, and the installed command in it, as a user has them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
import psutil
from inside import run_inside
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

COMMAND = Path(sys.executable).with_name("search")
KILLED = Path(__file__).with_name("killed.py")

PATIENCE_SECONDS = 200
"""After this long a command hangs; a whole tiny search takes a twentieth of it on two quiet cores."""

LIMIT = 60_000

PICTURES = """
[data]
source = "digits"
image_size = 16
val_fraction = 0.4
test_fraction = 0.3

[limit]
params = 60_000
"""

# Two recipes that learn, one that cannot, one that diverges at once: with the first two ahead of it in the rung,
# successive halving prunes the third whatever the sampler does later.
SMALL = f"""
{PICTURES}
[train]
model = "resnet10t"
epochs = 3
batch_size = 64

[space]
lr = [0.01, 0.005, 1e-9, 1e30]
dropout = {{ low = 0.0, high = 0.3 }}
width_mult = {{ low = 0.05 }}

[[known]]
lr = 0.01
dropout = 0.0
width_mult = 0.07

[[known]]
lr = 0.005

[[known]]
lr = 1e-9

[[known]]
lr = 1e30

[search]
trials = 9
sampler = "tpe"
startup_trials = 4
pruner = "successive_halving"

[confirm]
top = 2
seeds = 2
"""

# Nothing is pruned, so every trial runs all its epochs; the sampler models from trial 2 on, so that a value that
# differs in its last bit changes what is asked next.
STEADY = f"""
{PICTURES}
[train]
model = "resnet10t"
epochs = 4
batch_size = 64
optimizer = "sgd"
warmup_epochs = 1
rotate = 10

[space]
lr = {{ low = 0.01, high = 0.2, log = true }}
dropout = {{ low = 0.0, high = 0.5 }}
width_mult = {{ low = 0.05 }}

[search]
trials = 6
startup_trials = 2
pruner = "none"
"""

# Pictures in a folder, three classes of shapes; the width is fixed, so torch is not needed to find the widest.
SHAPES = """
[data]
image_size = 24
val_fraction = 0.25

[train]
model = "resnet10t"
width_mult = 0.06
epochs = 15
batch_size = 8
optimizer = "sgd"

[limit]
params = 60_000

[space]
lr = { low = 0.05, high = 0.2, log = true }

[search]
trials = 2

[confirm]
top = 0
"""

# Every training fails the same way: a crop that is larger than the pictures, too rare for a launch to see it.
BROKEN = f"""
{PICTURES}
[train]
model = "resnet10t"
width_mult = 0.05
epochs = 2
batch_size = 64
augment = [{{ name = "RandomCrop", height = 64, width = 64, p = 0.02 }}]

[space]
lr = {{ low = 0.01, high = 0.2, log = true }}

[search]
trials = 6
"""


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Running:
    """A command that runs, in a session of its own as in a terminal."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    workers_seen: list[psutil.Process] = field(default_factory=list)

    def workers(self) -> list[psutil.Process]:
        """Its worker processes now."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if "search.workers.worker" in child.cmdline():
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        self.workers_seen += [worker for worker in found if worker not in self.workers_seen]
        return found

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def until(self, what: Callable[[], object]) -> None:
        """Wait for something while the command runs."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            if self.process.poll() is not None:
                answer = self.wait()
                raise AssertionError(f"it ended with {answer.code} before that:\n{answer.out}\n{answer.err}")
            assert time.monotonic() < deadline, f"waited in vain:\n{self.out.read_text()}\n{self.err.read_text()}"
            time.sleep(0.01)

    def wait(self, timeout: float = PATIENCE_SECONDS) -> Answer:
        return Answer(self.process.wait(timeout), self.out.read_text(), self.err.read_text())


def as_in_a_terminal() -> None:
    """For a child before it runs: signals as a shell leaves them, even where tests run under nohup, whose ignored
    signals the command would respect."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Desk:
    """A folder with study files and a runs folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.commands: list[Running] = []

    def __reduce__(self) -> Any:  # commands are their process's own
        return Desk, (self.folder,)

    def write(self, name: str, text: str) -> str:
        """A study file; returns its name for the command line."""
        (self.folder / name).write_text(text)
        return name

    def start(
        self, *arguments: object, killed_at: str | None = None, unread: bool = False, **environment: str
    ) -> Running:
        """Start the command here, with nobody's settings in its environment but those given.

        ``killed_at`` is a point at which a process ends by kill -9; see killed.py. ``unread``: its output goes into a
        pipe whose reader has gone away.
        """
        number = len(list(self.folder.glob(".out-*")))
        out, err = self.folder / f".out-{number}", self.folder / f".err-{number}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SEARCH_")}
        with out.open("wb") as out_file, err.open("wb") as err_file:
            if unread:
                reader, writer = os.pipe()
                os.dup2(writer, out_file.fileno())
                os.close(reader)
                os.close(writer)
            process = subprocess.Popen(
                [*([COMMAND] if killed_at is None else [sys.executable, KILLED, killed_at]), *map(str, arguments)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                env=inherited | environment,
                start_new_session=True,
                preexec_fn=as_in_a_terminal,
            )
        running = Running(process, out, err)
        self.commands.append(running)
        return running

    def search(self, *arguments: object, **environment: str) -> Answer:
        """Run the command here to its end."""
        return self.start(*arguments, **environment).wait()

    def inside(self, *arguments: object, **environment: str) -> Answer:
        """The same in this process: a second or two less for a command that starts no worker, and seven with torch."""
        with patch.dict(os.environ, environment):
            return Answer(*run_inside(self.folder, *arguments))

    def checkpoint(self, study: str, trial: int) -> Path:
        return self.runs / "studies" / study / "trials" / str(trial) / "checkpoint"

    def trials(self, study: str) -> list[FrozenTrial]:
        """The trials in the database, as Optuna reads them."""
        with open_database(f"sqlite:///{self.runs}/search.db") as storage:
            return optuna.load_study(study_name=study, storage=storage).get_trials()

    def copy(self, folder: Path) -> Desk:
        """The same desk elsewhere, to be changed."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Desk(folder)

    def clear(self) -> None:
        """End whatever still runs; its workers follow it by themselves."""
        for command in self.commands:
            if command.process.poll() is None:
                command.process.kill()
                command.process.wait()


@dataclass(frozen=True)
class Watched:
    """A search that has ended, and what others saw of it while it ran."""

    desk: Desk
    answer: Answer
    status: Answer
    """``search status --json`` in the middle of it, STUDY left out."""
    watching: Answer
    """``search status --watch`` from the middle of it to its end."""
    second: Answer
    """A second launch of the same study in the middle of it."""
    num_workers: int
    workers_alive: list[int]
    """Process ids of workers that were still there when the command had ended."""
    webhook: str
    told: list[dict[str, Any]]
    """The address that the search was to tell how it goes, and what it told."""


@contextmanager
def open_database(url: str) -> Iterator[RDBStorage]:
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()
