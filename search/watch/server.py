"""The dashboard's server: waitress with limits, so that no client can prevent answers to other clients.

By default, waitress stops accepting at 100 connections. It closes an idle connection after two minutes, and never
closes a connection that sends or reads a byte now and then. This server always accepts the newest connection; if there
are too many, or if no file descriptor is left, it closes the oldest.
"""

from __future__ import annotations

import copy
import errno
import resource
import socket
import sys
import time
from collections.abc import Callable, Collection
from wsgiref.types import WSGIApplication

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher
from waitress.wasyncore import dispatcher

NUM_THREADS = 8

MAX_CONNECTIONS_PER_ADDRESS = 64
"""Largest number of connections from one address. A browser opens six, a proxy one for each request in progress."""

MAX_CONNECTIONS = 192
"""Largest number of connections. Each takes up to three file descriptors, and a process often has only 1,024."""

SPARE_FILES = 48
"""File descriptors that are kept for the program itself and the databases that it reads."""

LEAST_CONNECTIONS = 8
"""Number of connections that are always taken; a browser opens six."""

PATIENCE_SECONDS = 10.0
"""Longest time for a client to send a request or to read an answer. The time for its bytes, at MIN_BYTES_PER_SECOND, is
added."""

MIN_BYTES_PER_SECOND = 10_000

IDLE_SECONDS = 75.0
"""Longest time between an answer and the next request of a connection; longer than the time that nginx keeps one
open."""

MAX_HEADER_BYTES = 1 << 15

MAX_BODY_BYTES = 1 << 16
"""Largest body of a request that only reads, and so needs no body. By default, waitress stores up to a gigabyte."""

MAX_EDIT_BYTES = 1 << 27
"""Largest body of a request that may change studies: artifacts are sent in a body."""


class DashboardServer(TcpWSGIServer):  # type: ignore[misc]  # waitress ships no type information
    """Serves an application on a listening socket, with limits for each client."""

    def __init__(
        self,
        app: WSGIApplication,
        listener: socket.socket,
        connections: dict[int, dispatcher],
        may_edit: Callable[[str], bool],
    ) -> None:
        """Begin to accept connections; ``run`` answers requests until KeyboardInterrupt.

        Args:
            app: the application.
            listener: a bound socket, of IPv4 or IPv6.
            connections: filled by the server, so that the caller can close all of them.
            may_edit: returns whether a Cookie header allows requests of up to MAX_EDIT_BYTES.
        """
        self.may_edit = may_edit
        self._most = most_connections()
        settings = Adjustments(
            sockets=[listener],
            ident=None,
            # A limit that is never reached, so that waitress always accepts. It uses poll, because select cannot wait
            # for file descriptors above 1,023.
            connection_limit=2 * MAX_CONNECTIONS,
            asyncore_use_poll=True,
            cleanup_interval=1,
            max_request_header_size=MAX_HEADER_BYTES,
            max_request_body_size=MAX_BODY_BYTES,
            # If a client does not read its answer, the answer is stored on the disk, so that no thread waits.
            outbuf_high_watermark=sys.maxsize,
            # The gate of the application reads these headers.
            clear_untrusted_proxy_headers=False,
        )
        threads = ThreadedTaskDispatcher()
        threads.set_thread_count(NUM_THREADS)
        where = (listener.family, listener.type, listener.proto, listener.getsockname())
        super().__init__(
            app, connections, _sock=listener, dispatcher=threads, adj=settings, bind_socket=False, sockinfo=where
        )

    def channel_class(self, *arguments: object, **named: object) -> None:
        """Take an accepted connection. If there are too many connections, close the oldest."""
        newest = _Connection(*arguments, **named)
        others = [one for one in self.active_channels.values() if one is not newest]
        same = [one for one in others if one.addr[0] == newest.addr[0]]
        if len(same) >= min(MAX_CONNECTIONS_PER_ADDRESS, self._most):
            _oldest(same).handle_close()
        elif len(others) >= self._most:
            _oldest(others).handle_close()

    def accept(self) -> tuple[socket.socket, object] | None:
        """Accept a connection. If no file descriptor is left for it, close the oldest one, and accept it next time."""
        try:
            accepted: tuple[socket.socket, object] | None = super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self.active_channels:
                raise
            _oldest(self.active_channels.values()).handle_close()
            return None
        return accepted

    def maintenance(self, now: float) -> None:
        """Close connections whose client is too slow; waitress itself waits until it can write to them."""
        for connection in list(self.active_channels.values()):
            if connection.is_late(now):
                connection.handle_close()


def most_connections() -> int:
    """The number of connections for which this process has file descriptors, MAX_CONNECTIONS at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SPARE_FILES + 3 * MAX_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(LEAST_CONNECTIONS, min(MAX_CONNECTIONS, (soft - SPARE_FILES) // 3))


def _oldest(connections: Collection[_Connection]) -> _Connection:
    """The connection to close first: the oldest, preferably one whose answer is not being made."""
    return min(connections, key=lambda one: (bool(one.requests), one.begun))


class _Connection(HTTPChannel):  # type: ignore[misc]
    """A connection that records when its client began to send or read, and the number of bytes since then."""

    begun = 0.0
    """Time at which the connection, its present request, or the answer to it began."""
    moved = 0
    """Number of bytes since ``begun``."""
    answered = False
    """Whether an answer has begun, and no request after it."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        self.begun = self.creation_time

    def is_late(self, now: float) -> bool:
        """Whether the client has taken too long: between two requests, to send a request, or to read an answer."""
        if self.total_outbufs_len == 0:
            if self.requests:  # this program is still making the answer
                return False
            if self.request is None and self.answered:
                return bool(now - self.last_activity > IDLE_SECONDS)
        return now - self.begun > PATIENCE_SECONDS + self.moved / MIN_BYTES_PER_SECOND

    def handle_close(self) -> None:
        """Close the connection, and the file with the received part of a request."""
        super().handle_close()
        if self.request is not None:
            self.request.close()

    def parser_class(self, settings: Adjustments) -> _Request:
        """A parser for the next request."""
        return _Request(settings, self.server.may_edit)

    def received(self, data: bytes) -> bool:
        """Parse the bytes that the client has sent."""
        if self.answered:
            self.begun, self.moved, self.answered = time.time(), 0, False
        self.moved += len(data)
        taken = super().received(data)
        if len(self.requests) > 1:  # browsers wait for an answer before the next request; others could fill the memory
            self.handle_close()
        return bool(taken)

    def write_soon(self, data: object) -> int:
        """Queue a part of the answer, in the thread that makes it."""
        if self.total_outbufs_len == 0:
            self.begun, self.moved = time.time(), 0
        self.answered = True
        return int(super().write_soon(data))

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Send as much of the answer as the socket accepts."""
        sent = int(super().send(data, do_close=do_close))
        self.moved += sent
        return sent


class _Request(HTTPRequestParser):  # type: ignore[misc]
    """A request. Its body is stored before the gate checks the request, so only a client that may edit can send a large
    body."""

    def __init__(self, settings: Adjustments, may_edit: Callable[[str], bool]) -> None:
        super().__init__(settings)
        self.may_edit = may_edit

    def parse_header(self, header: bytes) -> None:
        """Read the header."""
        super().parse_header(header)
        if self.body_rcv is not None and self.may_edit(self.headers.get("COOKIE", "")):
            self.adj: Adjustments = copy.copy(self.adj)
            self.adj.max_request_body_size = MAX_EDIT_BYTES
