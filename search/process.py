"""The command as a process: its signals, its exit codes, a terminal that goes away, no password in the process list."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

from search.errors import INTERNAL, SECOND_SIGNAL, Interrupted, SearchError, exit_code_of
from trainer.errors import TrainerError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the polite kill, and a closed terminal."""


def run_command(command: Callable[..., object]) -> None:
    """Run the command line; a user's mistake ends in one sentence and the documented exit code."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupted)
    warnings.formatwarning = lambda message, *_: f"search: warning: {message}\n"  # without the code's line
    _hide_password()
    try:
        command(standalone_mode=True)
    except (SearchError, TrainerError) as error:
        _say(error)
        sys.exit(exit_code_of(error))
    except Signalled:
        stopped = Interrupted("interrupted; nothing is lost, the same command goes on from there")
        _say(stopped)
        sys.exit(stopped.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(INTERNAL)


def leave_after(run: Callable[[], object]) -> NoReturn:
    """Run something, and end the process with its exit code at once.

    Once torch is imported, the interpreter takes 1 to 3 s to give a million objects back one by one.
    """
    code = None
    try:
        run()
    except SystemExit as end:
        code = end.code
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the shell closed it
        with contextlib.suppress(OSError):  # nobody reads any more
            stream.flush()
    assert not isinstance(code, str), "problems are errors, which run_command tells"
    os._exit(code or 0)


def _hide_password() -> None:
    """Start anew without a password on the command line, which everybody on the machine can read for as long as we run.

    The URL moves to the environment, which only this user can read.
    """
    words = [sys.executable, *sys.orig_argv[1:]]
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        joined = option == "--storage" and bool(equals)
        url = value if joined else words[index + 1] if word == "--storage" and index + 1 < len(words) else ""
        if url.startswith("postgres") and ("@" in url or "password" in url):
            del words[index : index + (1 if joined else 2)]
            os.execve(sys.executable, words, os.environ | {"SEARCH_STORAGE": url})


def _say(error: Exception) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone; the exit code is not
        print(f"search: {error}", file=sys.stderr, flush=True)


class Signalled(BaseException):
    """Unlike Interrupted no Exception: torch's exporter tries something else after those."""


def _interrupted(_number: int, _frame: object) -> None:
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is _interrupted:  # a closed terminal says so twice, see search/running/launch.py
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else _stop_at_once)
    raise Signalled


def _stop_at_once(_number: int, _frame: object) -> None:
    os._exit(SECOND_SIGNAL)
