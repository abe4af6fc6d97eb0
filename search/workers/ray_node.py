"""What runs on the nodes of a Ray cluster: the process of a worker in a local pool, and the files that travel.

Nodes need no disk in common. The decoded pictures travel to a node once, before its first process starts. A training's
files travel with its assignment, and go home, to the coordinator's machine, after each epoch, before the coordinator
hears of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import ray
from filelock import FileLock
from ray.exceptions import RayError

from search.devices import WorkerDevice
from search.workers.failures import Failure
from search.workers.local import LocalPool
from search.workers.messages import Answer, Assign, Epoch, Failed, FromWorker, Left, ToWorker
from search.workers.pool import Exit

PIECE_BYTES = 64 << 20
"""Files travel in pieces of this size, so that no node needs memory for a whole file."""

UNFINISHED = (".partial", ".previous", ".damaged")
"""Suffixes of files beside a checkpoint that do not go home: home keeps its own previous ones."""

Said: TypeAlias = tuple[list[FromWorker | Exit], bytes]
"""Messages of a worker, and the output of its process meanwhile."""


class Depot:
    """The files of the coordinator's machine, for workers on other nodes. An actor beside the coordinator."""

    def files(self, folder: str) -> dict[str, int]:
        """Name and size of each file in a folder, without hidden and unfinished ones; none if there is no such
        folder."""
        found = Path(folder).iterdir() if Path(folder).is_dir() else ()
        return {
            file.name: file.stat().st_size
            for file in found
            if file.is_file() and file.suffix != ".partial" and not file.name.startswith(".")
        }

    def read(self, file: str, offset: int) -> bytes:
        """A piece of a file."""
        with Path(file).open("rb") as opened_file:
            opened_file.seek(offset)
            return opened_file.read(PIECE_BYTES)

    def write(self, file: str, writer: str, piece: bytes, *, last: bool) -> str | None:
        """Append a piece to a file that is written aside; after the last one, make it durable and move it into place.

        Returns:
            None; or why the file could not be written.
        """
        from trainer.kept import move_into_place

        path = Path(file)
        partial = path.with_name(f".{path.name}.{writer}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab") as target:
                target.write(piece)
                if last:
                    target.flush()
                    os.fsync(target.fileno())
            if last:
                move_into_place(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            return f"{file} cannot be written: {error.strerror}"
        return None


class Host:
    """An actor: the process of one worker on its node, and the files for it.

    Args:
        device: the worker's device, as Ray was asked for it.
        depot: the depot.
        home: id of the coordinator's node, where all files are already.
    """

    def __init__(self, device: WorkerDevice, depot: Any, home: str) -> None:
        if device.kind == "cuda":  # Ray has chosen one
            device = replace(device, visible=os.environ["CUDA_VISIBLE_DEVICES"])
        self._depot, self._is_home = depot, ray.get_runtime_context().get_node_id() == home
        self._folder, self._lock_of_work = _own_folder()
        self._log, self._log_read = self._folder / "log", 0
        self._pool = LocalPool([device], [self._log])
        self._lock = threading.Lock()
        """Held while the pool is used: messages come in, and are sent, in threads of their own."""
        self._cache = ""
        self._home: Path | None = None
        """The folder of the present training's files at home; None if nothing travels."""
        self._sent: dict[str, tuple[int, ...]] = {}
        """Name of each file of the present training that is at home -> its state, see ``_state_of``."""
        self._outbox: list[FromWorker | Exit] = []
        self._failure: Failure | None = None
        """Why the present training's files could not go home, so that it ends as a failure; None if they could."""

    def start(self, cache: str) -> Said:
        """Start the process, once its pictures are here. Returns what it says first."""
        self._cache = cache if self._is_home else str(self._fetched_cache(cache))
        with self._lock:
            self._pool.start(0)
        return self.listen()

    def pid(self) -> int:
        """The number of the worker's process on its node; 0 if there is none."""
        return next((entry.process.pid for entry in self._pool._processes.values()), 0)

    def listen(self) -> Said:
        """Wait until the process says something."""
        while True:
            with self._lock:
                heard = [*self._outbox, *(event for _, event in self._pool.events(0))]
                self._outbox = []
            said = [passed for event in heard if (passed := self._passed_on(event)) is not None]
            if said:
                return said, self._printed()
            self._pool.wait(0.2)

    def send(self, message: ToWorker) -> None:
        """Pass a message on to the process. Before a training, its files are fetched."""
        if isinstance(message, Assign):
            failure: Failure | None = None
            try:
                message = self._arranged(message)
            except OSError as error:
                why = error.strerror or _last_line(error)  # an error of the depot has no strerror
                failure = Failure(kind="disk", sentence=f"the node cannot keep a training's files: {why}")
            except RayError as error:  # nobody reads the answer of this call, so the coordinator would wait
                why = _last_line(error)
                failure = Failure(kind="crash", sentence=f"the node did not get a training's files: {why}")
            if failure is not None:
                with self._lock:
                    self._outbox.append(Failed(trial=message.trial, failure=failure))
                return
        with self._lock:
            self._pool.send(0, message)

    def kill(self) -> None:
        """End the process at once; its Exit follows."""
        with self._lock:
            self._pool.kill(0)

    def close(self, patience_seconds: float) -> list[int]:
        """End the process. Returns its number if it does not end."""
        with self._lock:
            stuck = self._pool.close(patience_seconds)
        shutil.rmtree(self._folder, ignore_errors=True)
        return stuck

    def _printed(self) -> bytes:
        text = b""
        with contextlib.suppress(OSError), self._log.open("rb") as file:  # without room on the disk, there is no log
            file.seek(self._log_read)
            text = file.read()
        self._log_read += len(text)
        return text

    # -- files

    def _fetched_cache(self, cache: str) -> Path:
        """The pictures on this node. The first worker fetches them, the others wait; each checks them."""
        from trainer.cache import open_whole
        from trainer.errors import DataError

        target = self._folder.parents[1] / "cache" / Path(cache).name
        target.parent.mkdir(exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            try:
                open_whole(target)
            except DataError:
                aside = target.with_name(f".partial-{target.name}")
                for folder in (target, aside):
                    shutil.rmtree(folder, ignore_errors=True)
                self._fetch(cache, aside)
                open_whole(aside)
                aside.rename(target)
        return target

    def _fetch(self, source: str, target: Path) -> None:
        """Copy the files of a folder at home into a new folder here."""
        target.mkdir(parents=True)
        for name, size in answer_of(self._depot.files.remote(source)).items():
            with (target / name).open("wb") as file:
                for offset in range(0, size, PIECE_BYTES):
                    file.write(answer_of(self._depot.read.remote(f"{source}/{name}", offset)))

    def _arranged(self, given: Assign) -> Assign:
        """The assignment with the paths of this node, where the files of its training are now."""
        given, self._home, self._failure = replace(given, cache=self._cache), None, None
        if self._is_home:
            return given
        self._home, here = Path(given.checkpoint).parent, self._folder / "training"
        shutil.rmtree(here, ignore_errors=True)
        self._fetch(str(self._home), here)
        self._sent = {file.name: _state_of(file) for file in here.iterdir()}
        if given.start is not None:
            self._fetch(str(Path(given.start).parent), here / "start")
            given = replace(given, start=str(here / "start" / Path(given.start).name))
        if given.teacher is not None:
            self._fetch(given.teacher, here / "teacher")
            given = replace(given, teacher=str(here / "teacher"))
        return replace(given, checkpoint=str(here / Path(given.checkpoint).name))

    def _passed_on(self, event: FromWorker | Exit) -> FromWorker | Exit | None:
        """The message for the coordinator, which hears of an epoch only when its checkpoint is at home."""
        if isinstance(event, Epoch) and self._home is not None and (problem := self._bring(self._home)):
            self._failure = Failure(kind="disk", sentence=problem)
            with self._lock:
                self._pool.send(0, Answer(go_on=False))
            return None
        if isinstance(event, Left) and self._failure is not None:
            return Failed(trial=event.trial, failure=self._failure)
        return event

    def _bring(self, home: Path) -> str | None:
        """Send files home that were written since the last time. Returns the problem if there is one."""
        writer = uuid.uuid4().hex[:8]
        for file in sorted((self._folder / "training").iterdir()):
            state = _state_of(file)
            if file.is_dir() or file.suffix in UNFINISHED or file.name.startswith("."):
                continue
            if state == self._sent.get(file.name):
                continue
            with file.open("rb") as source:
                last = False
                while not last:
                    piece = source.read(PIECE_BYTES)
                    last = source.tell() == state[0]
                    target = str(home / file.name)
                    problem: str | None = answer_of(self._depot.write.remote(target, writer, piece, last=last))
                    if problem is not None:
                        return problem
            self._sent[file.name] = state
        return None


def answer_of(reference: Any, timeout: float | None = None) -> Any:
    """The answer of an actor."""
    return ray.get(reference, timeout=timeout)


def _last_line(error: Exception) -> str:
    """The last line of an error of Ray: the lines before it are a traceback."""
    return str(error).strip().splitlines()[-1]


def _state_of(file: Path) -> tuple[int, ...]:
    """Size, times and inode: a file that is replaced within a tick of the clock has another inode."""
    state = file.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns


def _own_folder() -> tuple[Path, int]:
    """A new folder for one worker, in the folder of this user for temporary files, and a lock that shows its use.

    Folders of workers that were killed are removed.
    """
    root = Path(tempfile.gettempdir()) / f"featherweight-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.lstat().st_uid != os.getuid():
        raise PermissionError(f"{root} belongs to another user; set TMPDIR before ray start")
    with FileLock(root / ".lock"):
        (root / "work").mkdir(exist_ok=True)
        for left in (root / "work").iterdir():
            with (left / "lock").open("ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=root / "work"))
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock
