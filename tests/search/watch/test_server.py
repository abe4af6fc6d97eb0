"""Clients that wait, send or read slowly, or ask for too much at once: everybody else is answered all the same."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from waitress import wasyncore

from search.watch import server
from search.watch.server import MAX_BODY_BYTES, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, DashboardServer

GENEROUS_SECONDS = 20
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = 30 << 20
COOKIE = "token=right"


class Served:
    """A server of an application whose answer to /slow takes until ``release``, and to /large is large."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.slow = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._connections: dict[int, wasyncore.dispatcher] = {}
        self._server = DashboardServer(self._app, self._listener, self._connections, lambda cookie: cookie == COOKIE)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        self._clients: list[socket.socket] = []

    def _app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/slow":
            self.slow.release()
            assert self.release.wait(GENEROUS_SECONDS)
        is_large = environ["PATH_INFO"] == "/large"
        body = [b"x" * (1 << 20)] * 30 if is_large else [b"%d" % len(environ["wsgi.input"].read())]
        start_response("200 OK", [("Content-Length", str(sum(map(len, body))))])
        return body

    def client(self, sends: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
        client = socket.create_connection(self.address, GENEROUS_SECONDS, source_address=(source, 0))
        self._clients.append(client)
        client.sendall(sends)
        return client

    def num_open(self) -> int:
        return len(self._server.active_channels)

    def close(self) -> None:
        self.release.set()
        for client in self._clients:
            client.close()
        self._server.trigger.pull_trigger(self._close_all)
        self._thread.join(GENEROUS_SECONDS)
        self._server.task_dispatcher.shutdown()

    def _close_all(self) -> None:
        for connection in list(self._server.active_channels.values()):
            connection.handle_close()
        wasyncore.close_all(self._connections)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Its patience has no end: what is closed is closed for another reason, unless a test says otherwise."""
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 10 * GENEROUS_SECONDS)
    one = Served()
    yield one
    one.close()


@pytest.fixture
def hasty(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are given no time, or a test would wait for it."""
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 0.2)


def answer(client: socket.socket) -> bytes:
    """The first bytes that come, or none where the server has closed the connection."""
    try:
        return client.recv(4096)
    except ConnectionError:
        return b""


def body_of(client: socket.socket) -> bytes:
    with HTTPResponse(client) as response:
        response.begin()
        return response.read()


def is_answered(served: Served) -> bool:
    return answer(served.client(GET % b"/")).startswith(b"HTTP/1.1 200")


# -- connections that stay


@pytest.mark.parametrize(
    "sends", [b"", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"\r\n"]
)
def test_the_newest_is_answered_however_many_of_its_own_address_wait(served: Served, sends: bytes) -> None:
    first = served.client(sends)
    for _ in range(2 * MAX_CONNECTIONS):
        served.client(sends)
    assert is_answered(served)
    assert answer(first) == b"", "the oldest made room"
    assert served.num_open() <= MAX_CONNECTIONS_PER_ADDRESS


FEW_FILES = """
import resource, socket, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from search.watch.server import DashboardServer

def app(environ, start_response):
    with open(__file__) as file:
        body = file.read(5).encode()
    start_response("200 OK", [("Content-Length", "5")])
    return [body]

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
DashboardServer(app, listener, {}, lambda cookie: False).run()
"""


def test_a_process_that_may_open_few_files_answers_the_newest_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text(FEW_FILES)
    command = [sys.executable, "-P", str(tmp_path / "few.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        clients = list[socket.socket]()
        try:
            assert process.stdout is not None
            address = ("127.0.0.1", int(process.stdout.readline()))
            for _ in range(150):
                clients.append(socket.create_connection(address, GENEROUS_SECONDS))
            clients[-1].sendall(GET % b"/")
            assert body_of(clients[-1]) == b"\nimpo"
        finally:
            process.terminate()
            for client in clients:
                client.close()
        assert process.communicate(timeout=GENEROUS_SECONDS)[1] == ""


def test_connections_that_were_answered_and_stay_open_make_room_too(served: Served) -> None:
    for _ in range(2 * MAX_CONNECTIONS_PER_ADDRESS):
        assert is_answered(served)
    assert served.num_open() <= MAX_CONNECTIONS_PER_ADDRESS


def test_an_address_of_its_own_keeps_a_connection_while_another_opens_hundreds(served: Served) -> None:
    mine = served.client(source="127.0.0.2")
    for _ in range(2 * MAX_CONNECTIONS):
        served.client(b"GET")
    assert is_answered(served)
    mine.sendall(GET % b"/")
    assert answer(mine).startswith(b"HTTP/1.1 200")


def test_the_newest_is_answered_however_many_addresses_wait(served: Served) -> None:
    for number in range(2 * MAX_CONNECTIONS):
        served.client(b"GET", source=f"127.0.1.{1 + number % 200}")
    assert is_answered(served)
    assert served.num_open() <= MAX_CONNECTIONS


def test_who_waits_for_an_answer_that_is_being_made_does_not_make_room(served: Served, hasty: None) -> None:
    asked = served.client(GET % b"/slow")
    assert served.slow.acquire(timeout=GENEROUS_SECONDS)
    for _ in range(2 * MAX_CONNECTIONS_PER_ADDRESS):
        served.client()
    assert is_answered(served)
    served.release.set()
    assert answer(asked).startswith(b"HTTP/1.1 200")


def test_a_connection_is_used_again_after_an_answer(served: Served) -> None:
    client = served.client()
    for _ in range(3):
        client.sendall(GET % b"/")
        assert body_of(client) == b"0"


# -- clients that take their time


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("sends", "drips"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (b"GET / HTTP/1.1\r\nX: ", b"x"),
        (b"POST / HTTP/1.1\r\nContent-Length: 60000\r\n\r\n", b"x"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_a_request_that_comes_in_drips_is_given_up(served: Served, sends: bytes, drips: bytes) -> None:
    client = served.client(sends)
    client.settimeout(0.05)
    for _ in range(20 * GENEROUS_SECONDS):
        with contextlib.suppress(TimeoutError):
            assert answer(client) == b""
            break
        with contextlib.suppress(ConnectionError):
            client.sendall(drips)
    else:
        pytest.fail("the server still waits for more")
    assert is_answered(served)


def test_many_who_do_not_read_a_large_answer_hold_no_thread(served: Served) -> None:
    for _ in range(2 * server.NUM_THREADS):
        served.client(GET % b"/large")
    assert is_answered(served)


@pytest.mark.usefixtures("hasty")
def test_an_answer_that_nobody_reads_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MIN_BYTES_PER_SECOND", 1 << 30)  # what the system keeps for the client counts as read
    asked = served.client(GET % b"/large")
    assert answer(asked).startswith(b"HTTP/1.1 200")
    until(lambda: served.num_open() == 0)


def test_a_slow_reader_gets_a_large_answer_to_its_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = served.client(GET % b"/large")
    got = len(answer(client))
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 0.0)  # and a second for every MIN_BYTES_PER_SECOND
    while got < LARGE:
        more = client.recv(1 << 16)
        assert more
        got += len(more)


def until(condition: Callable[[], bool]) -> None:
    patience = threading.Event()
    for _ in range(20 * GENEROUS_SECONDS):
        if condition():
            return
        patience.wait(0.05)
    pytest.fail("it never came true")


# -- clients that send too much


def test_a_body_is_kept_only_for_whoever_may_edit(served: Served) -> None:
    length = 10 * MAX_BODY_BYTES
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
    for cookie in ("", "Cookie: token=wrong\r\n"):
        stranger = served.client(f"{head}{cookie}\r\n".encode())
        assert answer(stranger).startswith(b"HTTP/1.1 413"), "before the body was sent"
    known = served.client(f"{head}Cookie: {COOKIE}\r\n\r\n".encode() + b"x" * length)
    assert body_of(known) == b"%d" % length


def test_a_body_in_chunks_is_kept_only_for_whoever_may_edit(served: Served) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    stranger = served.client(head + b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
    with contextlib.suppress(ConnectionError):
        for _ in range(20):
            stranger.sendall(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
    assert answer(stranger)[:12] in (b"HTTP/1.1 413", b""), "told so, or cut off while it was still sending"


def test_headers_without_end_are_refused(served: Served) -> None:
    client = served.client(b"GET / HTTP/1.1\r\n")
    with contextlib.suppress(ConnectionError):
        for _ in range(50):
            client.sendall(b"X: " + b"x" * 1000 + b"\r\n")
    assert answer(client)[:12] in (b"HTTP/1.0 431", b"HTTP/1.1 431", b"")


def test_who_asks_again_before_it_was_answered_is_cut_off(served: Served) -> None:
    client = served.client(GET % b"/slow" * 3)
    assert answer(client) == b""
    assert is_answered(served)
