"""A disk without room or inodes, a log folder that is gone, memory that runs out: one sentence, or the work goes on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tiny import tiny_study

import search.export.export
from search.console import Terminal
from search.devices import WorkerDevice
from search.errors import ProofFailed
from search.paths import Runs
from search.process import run_command
from search.study.journal import Journal
from search.study.lock import own_study
from search.study.storage import open_storage, parse_url, storage_errors
from search.workers.local import LocalPool
from search.workers.pool import Exit
from studies import StudySpec
from trainer.data import Dataset
from trainer.errors import DiskError
from trainer.kept import write_checked, write_whole

LIMIT = ("limit", "resnet10t", "--classes", "3", "--image-size", "16", "--max-params", "100000")


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, marks=pytest.mark.slow) for words in ((*LIMIT, "--json"), LIMIT)]
    + [("studies",), ("--version",), ("--help",)],
    ids=lambda words: " ".join(words[::6]),
)
def test_a_full_disk_of_the_output_is_exit_11(words: tuple[str, ...], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-P", "-m", "search", *words]
        answer = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False, env=os.environ
        )
    assert answer.returncode == 11, answer.stderr
    assert answer.stderr.startswith("search: the output cannot be written: No space left on device")
    assert answer.stderr.count("\n") == 1


def test_a_reader_that_has_gone_is_no_full_disk(tmp_path: Path) -> None:
    command = f"{sys.executable} -P -m search studies --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


def raises_for(number: int, named: str) -> Callable[..., Any]:
    """In place of os.open: a disk on which one file finds no room."""
    before = os.open

    def opens(path: Any, flags: int, *arguments: Any, **named_arguments: Any) -> int:
        if flags & os.O_CREAT and named in os.fspath(path) and not Path(path).exists():
            raise OSError(number, os.strerror(number), os.fspath(path))
        return before(path, flags, *arguments, **named_arguments)

    return opens


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("of", ["the lock", "the database", "the database's lock"])
def test_a_file_that_finds_no_room_is_named_and_exit_11(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str, number: int
) -> None:
    """Of the first files that a launch makes; the others are opened by Python's own open, and end at the same place."""
    runs, url = Runs(tmp_path / "runs"), parse_url(f"sqlite:///{tmp_path}/search.db")
    named = {"the lock": "tiny/lock", "the database": "search.db.lock", "the database's lock": "search.db.tiny"}[of]
    monkeypatch.setattr(os, "open", raises_for(number, named))
    sentence = rf"^{tmp_path}/.*{named}.* cannot be written: "
    with pytest.raises(DiskError, match=sentence) as told, own_study("tiny", url, runs):
        open_storage(url, create=True)
    why = "(the space, the inodes, a quota or a limit on the size of a file is used up)"
    assert str(told.value).endswith(f"{why}; make room, and the same command goes on")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), 11, "search: x cannot be written: No space left"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 11, "search: x: Read-only file system; correct that"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 11, "search: x: Permission denied; correct that"),
        (OSError(errno.EIO, "Input/output error"), 11, "search: a file: Input/output error; correct that"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 70, "Traceback"),  # a mistake of ours
    ],
)
def test_what_a_disk_refuses_anywhere_is_one_sentence(
    error: OSError, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise error

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(SystemExit) as end:
        run_command(fails)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert end.value.code == code
    assert capsys.readouterr().err.startswith(sentence)


def test_a_small_file_that_finds_no_room_is_named_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last-study"
    write_checked(file, {"study": "birds"})
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as refused:
        write_whole(file, b"other")
    assert refused.value.filename == str(file)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("last-study", before)]


def test_a_database_on_a_full_disk_is_exit_11(tmp_path: Path) -> None:
    from sqlalchemy.exc import OperationalError

    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    with (
        pytest.raises(DiskError, match=r"^database .*/search\.db: database or disk is full; make room"),
        storage_errors(url),
    ):
        raise OperationalError("", None, Exception("database or disk is full"))


def test_a_journal_without_an_inode_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("in the way")
    with pytest.raises(OSError) as refused:  # noqa: PT011  # whatever the system says of it; run_command tells
        Journal(tmp_path / "study/journal.jsonl")
    assert "study" in str(refused.value.filename)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """In place of Python: a script."""
    file = tmp_path / "interpreter"

    def says(script: str) -> None:
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    monkeypatch.setattr(sys, "executable", str(file))
    return says


def end_of(pool: LocalPool) -> Exit:
    while True:
        for _, event in pool.events(1.0):
            if isinstance(event, Exit):
                return event


def test_a_worker_whose_log_folder_is_gone_or_cannot_be_made_is_started_all_the_same(
    tmp_path: Path, shell: Callable[[str], None]
) -> None:
    logs = tmp_path / "study/logs"
    pool = LocalPool([WorkerDevice("cpu", None, 1)], [logs / "worker-0.log"])
    shell("echo last words >&2; read line; exit 3")
    pool.start(0)
    shutil.rmtree(logs)
    os.kill(pool._processes[0].process.pid, signal.SIGKILL)
    assert end_of(pool).log_tail == "", "somebody has removed it"
    shell("exit 3")
    pool.start(0)
    assert end_of(pool).returncode == 3
    assert logs.is_dir(), "made again"
    shutil.rmtree(logs)
    logs.write_text("in the way")
    with pytest.warns(UserWarning, match=r"the log .*/worker-0\.log cannot be written \(.*\); going on without it"):
        pool.start(0)
    assert end_of(pool).returncode == 3
    pool.close(0)


def test_a_worker_that_its_allocator_ended_ran_out_of_memory(tmp_path: Path, shell: Callable[[str], None]) -> None:
    pool = LocalPool([WorkerDevice("cpu", None, 1)], [tmp_path / "log"])
    shell("echo \"terminate called after throwing an instance of 'std::bad_alloc'\" >&2; kill -ABRT $$")
    pool.start(0)
    assert end_of(pool).out_of_memory
    shell("echo other words > log; kill -ABRT $$")
    pool.close(0)


@pytest.mark.parametrize(
    ("script", "counted", "sentence"),
    [
        (
            "kill -9 $$",
            1,
            r"^the proof ran out of memory and was killed by the system; nothing was put in place; free some",
        ),
        (
            "kill -9 $$",
            0,
            r"it was killed by signal 9, which the system sends if memory is short; it was not put in place",
        ),
        ("echo MemoryError >&2; exit 1", 0, r"^the proof ran out of memory: MemoryError; nothing was put"),
        ('echo "RuntimeError: can\'t allocate memory" >&2; exit 1', 0, r"^the proof ran out of memory: RuntimeError"),
    ],
)
def test_a_proof_that_memory_ran_out_for_says_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shell: Callable[[str], None],
    script: str,
    counted: int,
    sentence: str,
) -> None:
    counts = iter([7, 7 + counted])
    monkeypatch.setattr(search.export.export, "oom_kills", lambda: next(counts))
    shell(script)
    spec = StudySpec.model_validate(tomllib.loads(tiny_study("tiny", trials=1)))
    data = cast(Dataset, SimpleNamespace(cache_path=tmp_path))
    with pytest.raises(ProofFailed, match=sentence):
        search.export.export.prove(tmp_path, spec, data, Terminal(quiet=True))
