"""Connections to a Postgres server with a time limit for every answer, because a table may be locked or the server
hang."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL

if TYPE_CHECKING:
    import psycopg
    from psycopg.abc import PQGen

T = TypeVar("T")

ANSWER_SECONDS, CONNECT_SECONDS = 5, 5
"""Longest time in which the server must acknowledge data, and longest time in which it must accept a connection."""

KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""Client and server each close the connection after 10 s of silence and 3 unanswered probes, one every 5 s."""

STATEMENT_SECONDS = 60
"""Longest time for a statement, waiting for locks included; a report of 20,000 trials takes a few seconds."""

TURN_STATEMENT_SECONDS, TURN_LOCK_SECONDS = 3, 1
"""Longest time for a statement, and for its locks alone, in a process that serves workers, signals and a display."""

LATE_SECONDS = 2
"""If the server has not cancelled a statement this many seconds after its time limit, the client closes the
connection."""

READ_ONLY = "25006"
"""SQLSTATE of a write to a standby, to a server in recovery, or to one that is set to read-only."""

CONNECTION, DUPLICATE = "08", "23505"
"""Class of the SQLSTATEs of a connection, and the SQLSTATE of a value that must be unique and is not."""

SEQUENCES = (
    "the numbers of new rows are taken already, as after a restore of the data alone; set the sequences of all tables "
    "(setval; docs/troubleshooting.md has the lines for psql)"
)
"""The cause and cure of ``is_old_number``."""

POOLED, REFUSED_OPTION = "pooled", "refused option"
"""Instead of a SQLSTATE: a pooler that gives each transaction another session, and one that refuses a parameter."""

CURES = {
    POOLED: "a study's lock needs one session; let the pooler keep sessions (PgBouncer: pool_mode = session), or name "
    "the server's own port",
    REFUSED_OPTION: "the pooler does not accept this parameter of a connection; remove it from the URL or from the "
    "environment (PG...)",
    READ_ONLY: "the server accepts no writes now (a standby, or set to read-only); name the primary, or wait for it",
    "53100": "the disk of the server is full; make room there",
    "53300": "the server has no connection left; close others, or raise max_connections",
    "55P03": "another session holds a lock that is needed (of a table, or this search's own from before a broken "
    "connection); wait until that ends",
    "57014": "the server did not finish a statement in time (a locked table, or too much to do), or somebody cancelled "
    "it; look for the cause in pg_stat_activity",
    "57P01": "the server is shutting down, or it has ended this connection; wait until it accepts connections",
    "57P03": "the server is starting, recovering or shutting down; wait until it is ready",
    "55P02": "the server accepts this parameter only when a connection begins; remove it from the URL, or set it for "
    "the role (ALTER ROLE ... SET)",
    "42501": "the role lacks this permission; ask the owner of the database for it (GRANT)",
    "28P01": "the server does not accept this password; check user and password (in the URL, PGPASSFILE or PGPASSWORD)",
    "28000": "the server does not let this user in; check the user, or ask the server's administrator (pg_hba.conf)",
    "3D000": "the server has no database of this name; check the name, or create it (createdb)",
}
"""SQLSTATE -> the cause and its cure, in words."""

REFUSALS = ("42501", "28P01", "28000", "3D000", "55P02", POOLED, REFUSED_OPTION)
"""The SQLSTATEs after which a person must change something. They end a launch, but not a search that runs already."""

_WORDS = {
    "another session for each transaction": POOLED,
    "unsupported startup parameter": REFUSED_OPTION,
    "no more connections allowed": "53300",
    "no such database": "3D000",
    "no such user": "28000",
    "too many c": "53300",
    "connection slots are": "53300",
    "the database system is": "57P03",
    "No space left on device": "53100",
    "permission denied": "42501",
    "password authentication failed": "28P01",
    "no password supplied": "28P01",
    "authentication failed": "28000",
    "pg_hba.conf": "28000",
    "is not permitted to log in": "28000",
    'FATAL: *role ".*" does not exist': "28000",
    'FATAL: *database ".*" does not exist': "3D000",
}
"""Words with which a server refuses a connection -> the SQLSTATE, which psycopg does not know then."""


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of an error of the driver. A refused connection has none, so its words are read."""
    state: str | None = getattr(error, "sqlstate", None)
    return state or next((state for words, state in _WORDS.items() if re.search(words, str(error))), None)


def cure_of(error: BaseException) -> str:
    """The cause of an error of the driver and its cure, in words; "" for an error of which only its own words tell."""
    state = sqlstate_of(error)
    if state is None or state.startswith(CONNECTION):
        return "check host, port, user and password, and that the server runs"
    return CURES.get(state, "")


def is_old_number(error: BaseException) -> bool:
    """Whether a new row got the number of another row, because a sequence is behind."""
    constraint = getattr(getattr(error, "diag", None), "constraint_name", None)
    return sqlstate_of(error) == DUPLICATE and str(constraint).endswith("_pkey")


def arguments(url: URL) -> dict[str, Any]:
    """Arguments for libpq, the same for every connection."""
    _, others = _options_of(url)
    # For the client: otherwise it waits a quarter of an hour for a vanished server.
    return KEEPALIVES | {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 1000 * ANSWER_SECONDS,
        "options": " ".join(others),  # even if empty, so that PGOPTIONS does not count
    }


def settings(url: URL) -> dict[str, str]:
    """The settings of every session. They are set after the connection is open, because poolers refuse them before."""
    # For the server: otherwise it keeps the lock of a vanished client, by default for two hours.
    halves = {f"tcp_{name}": str(value) for name, value in KEEPALIVES.items()}
    chosen, _ = _options_of(url)
    # The URL's options override those before them, but not the time zone.
    return halves | {"statement_timeout": str(1000 * STATEMENT_SECONDS)} | chosen | {"timezone": "UTC"}


def _options_of(url: URL) -> tuple[dict[str, str], list[str]]:
    """The settings in the URL's options (``-c name=value``, ``--name=value``), and the other options as they are."""
    given = url.query.get("options", "")
    words = iter(re.findall(r"(?:\\.|[^\\\s])+", given if isinstance(given, str) else " ".join(given), re.DOTALL))
    chosen, others = dict[str, str](), list[str]()
    for word in words:
        setting = next(words, "") if word == "-c" else word
        name, equals, value = setting.removeprefix("-c").removeprefix("--").partition("=")
        if equals and (word == "-c" or word.startswith(("-c", "--"))):
            chosen[name.replace("-", "_").lower()] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        else:
            others += [word, setting] if word == "-c" else [word]
    return chosen, others


def connector(url: URL, seconds: float = STATEMENT_SECONDS) -> Callable[[], psycopg.Connection]:
    """A function that opens a connection, for SQLAlchemy's ``creator``.

    Args:
        url: URL of the database.
        seconds: longest time for a statement, on the client's side; ``settings`` or ``hurry`` limits it on the server.
    """
    kind: Any = url.get_dialect()
    # SQLAlchemy's own conversion of a URL into arguments for the driver.
    args, options = kind(dbapi=kind.import_dbapi()).create_connect_args(url)

    def connect() -> psycopg.Connection:
        begun = time.monotonic()
        connection: psycopg.Connection = _patient().connect(*args, **{**options, **arguments(url)}, autocommit=True)
        # A pooler that hangs may let the client in, and answer nothing.
        connection.seconds = max(1.0, begun + CONNECT_SECONDS - time.monotonic())  # type: ignore[attr-defined]
        return connection

    def prepare() -> psycopg.Connection:
        connection = connect()
        try:
            # Before the first setting, which a pooler would otherwise give to the sessions of other programs.
            _check_session(connection, connect)
            pairs = [word for pair in settings(url).items() for word in pair]
            connection.execute(f"SELECT {', '.join(['set_config(%s, %s, false)'] * (len(pairs) // 2))}", pairs)
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        connection.seconds = seconds + LATE_SECONDS  # type: ignore[attr-defined]
        return connection

    return prepare


def _check_session(connection: Any, connect: Callable[[], Any]) -> None:
    """Check that a connection has one session of the server for itself. A pooler may keep it for one transaction only.

    Raises:
        OperationalError: it has not.
    """
    first = _session_of(connection)
    if first == connection.info.backend_pid:  # the server itself has let the client in
        return
    # While another transaction is open, a pooler has to give this connection another session, or that one the same.
    with connect() as other:
        try:
            with other.transaction():
                second = _session_of(other)
                is_shared = second == first or _session_of(connection) != first
            with other.transaction():  # two sessions in turns would look as if each connection had one
                is_shared = is_shared or _session_of(other) != second
        except other.Error as error:
            if "statement pooling" not in str(error):
                raise
            is_shared = True
    if is_shared:
        raise other.OperationalError("the pooler hands out another session for each transaction")


def _session_of(connection: Any) -> int:
    """Process of the server for a connection, asked from the server."""
    return int(connection.execute("SELECT pg_backend_pid()").fetchone()[0])


def hurry(connection: Any) -> None:
    """Give a connection the short limits of a process that must not wait: TURN_STATEMENT_SECONDS, TURN_LOCK_SECONDS."""
    milliseconds = {"statement_timeout": 1000 * TURN_STATEMENT_SECONDS, "lock_timeout": 1000 * TURN_LOCK_SECONDS}
    for name, value in milliseconds.items():
        connection.execute(f"SET {name} = {value}")
    connection.commit()  # otherwise a rollback would undo SET
    connection.seconds = TURN_STATEMENT_SECONDS + LATE_SECONDS


@cache
def _patient() -> Any:
    """The driver's connection class with a time limit. The class is made on first use, because psycopg is in an
    extra."""
    import psycopg
    from psycopg.errors import _WaitTimeout  # a subclass of OperationalError without a public name

    class Patient(psycopg.Connection[tuple[Any, ...]]):
        seconds: float = STATEMENT_SECONDS + LATE_SECONDS

        def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
            limit = self.seconds if timeout is None else timeout
            try:
                return super().wait(gen, interval, limit)
            except _WaitTimeout:
                self.pgconn.finish()  # a late answer would be taken for the answer to the next statement
                raise psycopg.OperationalError(f"the server has not answered for {limit:g} s") from None

    return Patient
