"""A study's lock on Postgres while connections break: a search knows its own old session from another owner."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from needed import postgres
from sqlalchemy import make_url

import search.study.lock
import search.study.outage
from search.errors import HeldError
from search.paths import Runs
from search.study.lock import own_study
from search.study.outage import Outage

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with postgres() as server:
        yield server


class Network:
    """A way to the server that breaks as when a machine gets a new address: the server hears nothing of it."""

    def __init__(self, server: Any) -> None:
        self._where = server.get_uri()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = make_url(self._where).set(
            drivername="postgresql+psycopg", host="127.0.0.1", port=self._listener.getsockname()[1], query={}
        )
        self._near: list[socket.socket] = []
        self._opened: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = self._reach()
            self._near.append(near)
            self._opened += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _reach(self) -> socket.socket:
        url = make_url(self._where)
        if url.host:
            return socket.create_connection((url.host, url.port or 5432))
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{url.query['host']}/.s.PGSQL.{url.port or 5432}")
        return far

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            if source in self._near:  # the client has closed it, and the way is whole
                target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self) -> None:
        """Break all connections for the client; for the server they last."""
        broken, self._near = self._near, []
        for near in broken:
            near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in self._opened:  # otherwise threads that read keep them open, and the server keeps its sessions
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for one in (self._listener, *self._opened):
            one.close()


@pytest.fixture
def network(server: Any) -> Iterator[Network]:
    network = Network(server)
    yield network
    network.close()


def session_with_the_lock(server: Any) -> int:
    """Process of the server for the session that has a study's lock, and a mark."""
    found = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' GROUP BY pid HAVING count(*) = 2"
    return int(server.psql(f"COPY ({found}) TO STDOUT;"))


def test_after_a_break_of_the_network_a_search_takes_its_lock_from_its_old_session(
    server: Any, network: Network, tmp_path: Path
) -> None:
    here, there = Runs(tmp_path / "here"), Runs(tmp_path / "there")
    with own_study("birds", network.url, here) as check_lock:
        for _ in range(2):
            before = session_with_the_lock(server)
            network.cut()
            assert session_with_the_lock(server) == before, "the server has heard nothing"
            check_lock()
            assert session_with_the_lock(server) != before
            with pytest.raises(HeldError, match="in use by "), own_study("birds", network.url, there):
                pass


def test_while_its_old_session_keeps_the_lock_a_search_waits_as_in_any_outage(
    server: Any, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    monkeypatch.setattr(search.study.lock, "LOCK_PATIENCE_SECONDS", 0.2)
    said: list[str] = []
    outage = Outage(lambda line, _level=0: said.append(line))
    with own_study("birds", network.url, Runs(tmp_path)) as check_lock:
        assert outage.with_database(check_lock)
        old = psutil.Process(session_with_the_lock(server))
        old.suspend()  # so it does not end when it is told to
        try:
            network.cut()
            for _ in range(3):
                assert not outage.with_database(check_lock), "and not: in use by another launch"
            (sentence,) = said
            assert "another session holds a lock" in sentence
            assert "training goes on" in sentence
        finally:
            old.resume()
        while not outage.with_database(check_lock):
            time.sleep(0.1)
        assert session_with_the_lock(server) != old.pid


def test_a_launch_that_was_faster_after_a_break_of_the_network_is_told_from_the_old_session(
    server: Any, network: Network, tmp_path: Path
) -> None:
    with own_study("birds", network.url, Runs(tmp_path / "here")) as check_lock:
        network.cut()
        server.psql(f"SELECT pg_terminate_backend({session_with_the_lock(server)});")
        with own_study("birds", network.url, Runs(tmp_path / "there")):
            session = session_with_the_lock(server)
            for _ in range(2):
                with pytest.raises(HeldError, match="in use by a launch from another runs folder, which was faster"):
                    check_lock()
            assert session_with_the_lock(server) == session, "it is left alone"
        check_lock()
