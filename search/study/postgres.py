"""Connections to a Postgres server that wait for no answer for ever: a table may be locked, a server may hang."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL

if TYPE_CHECKING:
    import psycopg
    from psycopg.abc import PQGen

T = TypeVar("T")

ANSWER_SECONDS, CONNECT_SECONDS = 5, 5
"""Longest wait for a sign of life of a server, and for it to accept a connection after that."""

KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""When client and server give each other up: 10 s of silence, then 3 questions, one every 5 s, without an answer."""

STATEMENT_SECONDS = 60
"""Longest that a statement may take, locks included: a report of 20,000 trials takes seconds."""

TURN_STATEMENT_SECONDS, TURN_LOCK_SECONDS = 3, 1
"""The same, and for locks alone, of a process that has workers, signals and a display to attend to."""

LATE_SECONDS = 2
"""A server that has not ended a statement so long after its time hangs, and the client gives the connection up."""


def arguments(url: URL) -> dict[str, Any]:
    """What libpq is told for every connection."""
    # The server's half: until it gives up a client that has vanished, by itself after two hours, that one's lock holds.
    halves = " ".join(f"-c tcp_{name}={value}" for name, value in KEEPALIVES.items())
    limit = 1000 * STATEMENT_SECONDS
    # The last of two equal options wins, so the URL's own may change those, and not the time zone.
    options = f"{halves} -c statement_timeout={limit} {url.query.get('options', '')} -c timezone=UTC"
    # The client's half: a server that vanishes without a word is given up after a quarter of an hour otherwise.
    return KEEPALIVES | {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 1000 * ANSWER_SECONDS,
        "options": options,
    }


def connector(url: URL, seconds: float = STATEMENT_SECONDS) -> Callable[[], psycopg.Connection]:
    """What opens a connection, for SQLAlchemy's ``creator``.

    Args:
        url: of the database.
        seconds: longest that a statement may take; the server is told by ``arguments``, or by ``hurry``.
    """
    kind: Any = url.get_dialect()
    # SQLAlchemy's own way from a URL to what the driver takes.
    args, options = kind(dbapi=kind.import_dbapi()).create_connect_args(url)

    def connect() -> psycopg.Connection:
        connection: psycopg.Connection = _patient().connect(*args, **{**options, **arguments(url)})
        connection.seconds = seconds + LATE_SECONDS  # type: ignore[attr-defined]
        return connection

    return connect


def hurry(connection: Any) -> None:
    """Tell a connection that its process has more to do than to wait."""
    milliseconds = {"statement_timeout": 1000 * TURN_STATEMENT_SECONDS, "lock_timeout": 1000 * TURN_LOCK_SECONDS}
    for name, value in milliseconds.items():
        connection.execute(f"SET {name} = {value}")
    connection.commit()  # else a rollback takes it back
    connection.seconds = TURN_STATEMENT_SECONDS + LATE_SECONDS


@cache
def _patient() -> Any:
    """The driver's connection with an end to its patience; psycopg belongs to an extra."""
    import psycopg
    from psycopg.errors import _WaitTimeout  # an OperationalError without a public name

    class Patient(psycopg.Connection[tuple[Any, ...]]):
        seconds: float = STATEMENT_SECONDS + LATE_SECONDS

        def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
            limit = self.seconds if timeout is None else timeout
            try:
                return super().wait(gen, interval, limit)
            except _WaitTimeout:
                self.pgconn.finish()  # an answer that comes later would be taken for the next one's
                raise psycopg.OperationalError(f"the server has not answered for {limit:g} s") from None

    return Patient
