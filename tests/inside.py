"""The command itself, run in this process: for what needs torch, whose import takes each new process seconds."""

from __future__ import annotations

import signal
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from search.cli import app
from search.process import STOP_SIGNALS, run_command


def run_inside(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """Run ``search`` in a folder; its exit code, and what it said on stdout and stderr."""
    out, err, handlers = StringIO(), StringIO(), {number: signal.getsignal(number) for number in STOP_SIGNALS}
    command = patch.object(sys, "argv", ["search", *map(str, arguments)])
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(err), command:
            run_command(app)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code, out.getvalue(), err.getvalue()
