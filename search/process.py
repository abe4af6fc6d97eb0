"""The command as a process: signals, exit codes, the log, a closed terminal, no password in the process list."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import math
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, TextIO

from search.console import Say, tell_aside, without_controls
from search.errors import INTERNAL, SECOND_SIGNAL, Interrupted, SearchError, UsageError, exit_code_of, reason_of
from trainer.errors import DiskError, TrainerError, no_room

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals of Ctrl-C, of ``kill`` without options, and of a closed terminal."""

PACKAGES = ("search", "studies", "trainer")
"""Packages whose loggers belong to this program."""

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ESTALE)
"""Error numbers for a path that may not be written, is of another kind than expected, or is on a disk that fails."""

LOG_BYTES = 10_000_000
"""Size at which a log file is moved to NAME.1, over an earlier one, and a new file begins."""

HIDDEN_SETTINGS = "SEARCH_NOTIFY"
"""Environment variable with the values of ``--set notify.KEY=VALUE`` as a JSON list, instead of the command line."""

STUCK_SECONDS = 5.0
"""Longest time for a process to end by itself after the signal that ends it."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Collect no garbage while a block makes very many objects that stay: each collection would look at all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def run_command(command: Callable[..., object]) -> None:
    """Run the command line; a user's mistake ends in one sentence and the documented exit code."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupted)
    warnings.showwarning = _say_warning
    _hide_secrets()
    try:
        command(standalone_mode=True)
    except (SearchError, TrainerError) as error:
        _say(error)
        sys.exit(exit_code_of(error))
    except OSError as error:
        told = _of_disk(error)
        if told is None:
            traceback.print_exc()
            sys.exit(INTERNAL)
        _say(told)
        sys.exit(exit_code_of(told))
    except Signalled:
        stopped = Interrupted("interrupted; nothing is lost, the same command goes on from there")
        _say(stopped)
        sys.exit(stopped.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(INTERNAL)


def check_current_folder() -> None:
    """Check that the current folder is still there, before a relative path is looked for in it.

    Raises:
        UsageError: it was deleted or replaced.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError(
            'the current folder was deleted or replaced; enter the one in its place with: cd "$PWD" (or another one)'
        ) from None


def leave_after(run: Callable[[], object]) -> NoReturn:
    """Run a function, and then end the process immediately with the function's exit code.

    Once torch is imported, a normal end takes 1 to 3 s, because the interpreter frees a million objects one by one.
    """
    code = None
    end_although_stuck()
    try:
        run()
    except SystemExit as end:
        code = end.code
    for stream in filter(None, (sys.stderr, sys.stdout)):  # None where the shell closed it
        try:
            stream.flush()
        except OSError as error:  # the reader has ended, or the disk of the output is full
            told = _of_disk(error)
            code = code or (exit_code_of(told) if told is not None and stream is sys.stdout else None)
    assert not isinstance(code, str), "run_command prints errors"
    os._exit(code or 0)


def end_although_stuck() -> None:
    """Make sure that signals end the process even if a call to a database or a disk hangs.

    Python's own handlers run only after the main thread has returned from such a call. The system writes to the wakeup
    pipe immediately, and a thread reads it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch_signals, args=(reader,), daemon=True).start()


_grace_seconds = 20.0


def allow_grace(seconds: float) -> None:
    """Set the grace time after SIGTERM or a closed terminal: ``faults.grace_seconds``."""
    global _grace_seconds
    _grace_seconds = seconds


def _watch_signals(reader: int) -> None:
    """End the process if it has not ended by itself some time after a signal.

    After a second Ctrl-C or SIGTERM, this time is STUCK_SECONDS. After the first SIGTERM or SIGHUP, it is the grace
    time and STUCK_SECONDS. After the first Ctrl-C there is no limit, because the user can press it again.
    """
    asked, deadline, code = 0, math.inf, SECOND_SIGNAL
    while True:
        ready, _, _ = select.select([reader], [], [], None if deadline == math.inf else deadline - time.monotonic())
        if not ready:
            os._exit(code)
        for number in os.read(reader, 64):
            asked += number in (signal.SIGINT, signal.SIGTERM)
            if asked > 1:
                deadline, code = min(deadline, time.monotonic() + STUCK_SECONDS), SECOND_SIGNAL
            elif number in (signal.SIGTERM, signal.SIGHUP) and deadline == math.inf:
                deadline, code = time.monotonic() + _grace_seconds + STUCK_SECONDS, Interrupted.exit_code


def _of_disk(error: OSError) -> DiskError | None:
    """The error as one sentence if a file cannot be read or written; None if disk and permissions are not at fault."""
    full = no_room(error, "the output")
    if full is not None or error.errno not in REFUSED:
        return full
    return DiskError(f"{error.filename or 'a file'}: {error.strerror}; correct that, and the same command goes on")


def _hide_secrets() -> None:
    """Restart the process without secrets on the command line, which every user of the machine can read.

    A database URL with a password, and settings of [notify], move to the environment, which only this user can read.
    """
    words, hidden = [sys.executable], dict[str, str]()
    settings: list[str] = json.loads(os.environ.get(HIDDEN_SETTINGS, "[]"))
    given = iter(sys.orig_argv[1:])
    for word in given:
        option, equals, value = word.partition("=")
        parts = [word]
        if option in ("--storage", "--set") and not equals and (following := next(given, None)) is not None:
            parts, value = [word, following], following
        if option == "--storage" and value.startswith("postgres") and ("@" in value or "password" in value):
            hidden["SEARCH_STORAGE"] = value
        elif option == "--set" and value.startswith("notify."):
            hidden[HIDDEN_SETTINGS] = json.dumps(settings := [*settings, value])
        else:
            words += parts
    if hidden:
        os.execve(sys.executable, words, os.environ | hidden)


@contextlib.contextmanager
def debug_lines() -> Iterator[None]:
    """While active, debug lines of the packages go to stderr: ``--verbose``. All other lines are shown anyway."""
    with _logged_by(_DebugLines()):
        yield


@contextlib.contextmanager
def log_to(file: Path, say: Say) -> Iterator[None]:
    """While active, all log lines of the packages are appended to a file. The last line has the reason of the end.

    If the file cannot be written, the work goes on; the missing lines are not added later.

    Args:
        file: the log file, at most LOG_BYTES; older lines are in NAME.1.
        say: called once if the file cannot be written.
    """
    with _logged_by(_log_file(file, say)):
        logger.info("process %d: %s", os.getpid(), versions())
        try:
            yield
        except BaseException as error:
            logger.error("process %d ends: %s", os.getpid(), reason_of(error))
            raise
        logger.info("process %d ends", os.getpid())


@cache
def version_of(package: str) -> str:
    """The installed version of a package, without importing it. To find it takes milliseconds, so it is kept."""
    from importlib.metadata import version  # 20 ms

    return version(package)


def versions() -> str:
    """Versions of this program and of the packages that results depend on most."""
    packages = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "timm", "optuna"))
    return f"featherweight {version_of('featherweight')} (Python {sys.version.split()[0]}, {packages})"


@contextlib.contextmanager
def _logged_by(handler: logging.Handler) -> Iterator[None]:
    levels = {logger: logger.level for logger in map(logging.getLogger, PACKAGES)}
    for package in levels:
        package.addHandler(handler)
        package.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for package, level in levels.items():
            package.removeHandler(handler)
            package.setLevel(level)
        with contextlib.suppress(OSError):
            handler.close()


class _DebugLines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.addFilter(lambda record: record.levelno < logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        tell_aside(f"search: debug: {record.getMessage()}")


def _log_file(file: Path, say: Say) -> logging.Handler:
    from logging.handlers import RotatingFileHandler  # 35 ms

    class LogFile(RotatingFileHandler):
        """A log file that is opened with its first line, and again after a line that could not be written."""

        told = False

        def _open(self) -> TextIOWrapper:
            file.parent.mkdir(exist_ok=True)
            return super()._open()

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name in logging
            error = sys.exception()
            if not isinstance(error, OSError):
                super().handleError(record)  # a bug of this program
                return
            stream, self.stream = self.stream, None
            if stream is not None:
                with contextlib.suppress(OSError):  # there is no room for the stream's buffer
                    stream.close()
            if not self.told:
                self.told = True
                say(f"the log {file} cannot be written ({error.strerror}); going on without it", logging.WARNING)

    handler = LogFile(file, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    return handler


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as one line, without its source line."""
    logger.warning("%s", message)
    tell_aside(f"search: warning: {message}")


def _say(error: Exception) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone; the exit code still tells
        print(without_controls(f"search: {error}"), file=sys.stderr, flush=True)


class Signalled(BaseException):
    """A signal has asked the process to stop. This is no Exception, because torch's exporter catches every
    Exception."""


def _interrupted(_number: int, _frame: object) -> None:
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is _interrupted:  # a closed terminal signals twice, see search/running/launch.py
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else _stop_at_once)
    raise Signalled


def _stop_at_once(_number: int, _frame: object) -> None:
    os._exit(SECOND_SIGNAL)
