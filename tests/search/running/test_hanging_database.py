"""A Postgres server that hangs or refuses to store: the search lives on, hears its signals, and loses nothing."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from needed import pooler, postgres, required
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from scripted import EPOCHS, Listener, ScriptedPool, spec_of, states, trains
from sqlalchemy import URL, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

import search.study.outage
import search.study.postgres
from search.errors import StorageError
from search.paths import Runs
from search.plan.space import Bounds, distributions
from search.running.clock import Clock
from search.running.coordinator import Coordinator
from search.study.lock import own_study
from search.study.outage import Outage
from search.study.owned import OwnedStudy
from search.study.postgres import ANSWER_SECONDS
from search.study.storage import backend_of, is_outage, open_storage, parse_url, storage_errors, wait_briefly
from search.study.study import open_study
from search.watch.heard import heard
from search.watch.live import Display

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with postgres() as server:
        yield server


@pytest.fixture
def url(server: Any, request: pytest.FixtureRequest) -> str:
    """Of a database of the test's own."""
    name = f"t{abs(hash(request.node.name))}"
    server.psql(f"CREATE DATABASE {name};")
    found: str = server.get_uri(database=name).replace("postgresql://", "postgresql+psycopg://")
    return found


@contextmanager
def locked(url: str) -> Iterator[Any]:
    """As VACUUM FULL, ALTER TABLE or pg_restore do it."""
    connection = required("psycopg").connect(make_url(url).set(drivername="postgresql").render_as_string(False))
    connection.execute("LOCK TABLE trials IN ACCESS EXCLUSIVE MODE")
    try:
        yield connection
    finally:
        connection.close()


def searching(url: str, folder: Path, notes: list[str], pool: ScriptedPool) -> Coordinator:
    spec, runs = spec_of(trials=3), Runs(folder)
    study = open_study(spec, open_storage(parse_url(url), create=True), "content")
    bounds = Bounds(width=None, most_params=0, space=distributions(spec, None), known=[], left_out={})
    say = Listener(lambda line, *_: notes.append(line))
    return Coordinator(
        OwnedStudy(study, spec, lambda: None), bounds, pool, runs, "cache", say, Clock(spec.search.hours)
    )


def test_while_another_connection_locks_a_table_training_goes_on_and_nothing_is_lost_or_doubled(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0.1)
    notes: list[str] = []
    pool = ScriptedPool(trains, num_workers=2)
    coordinator = searching(url, tmp_path, notes, pool)
    coordinator.begin()
    while len(pool.answers) < 2:
        coordinator.turn()
    answered = len(pool.answers)
    with locked(url):
        begun = time.monotonic()
        while len(pool.answers) < answered + 2:
            turn = time.monotonic()
            coordinator.turn()
            assert time.monotonic() - turn < 2 * search.study.postgres.TURN_LOCK_SECONDS + 2, "a turn stays short"
            assert time.monotonic() - begun < 60
        assert coordinator.outage.is_on
        assert coordinator.snapshot().problems
    while coordinator.turn():
        pass
    coordinator.crew.close(0)
    engine = backend_of(coordinator.trials.study).engine
    assert any(note.startswith("the database is back after") for note in notes)
    trials = coordinator.trials.study.get_trials()
    assert states(coordinator.trials.study) == ["COMPLETE"] * 3
    assert [sorted(trial.intermediate_values) for trial in trials] == [list(range(1, EPOCHS + 1))] * 3
    engine.dispose()


@contextmanager
def read_only(server: Any) -> Iterator[None]:
    """As after a failover, or as managed servers do it when their disk is full."""
    server.psql("ALTER SYSTEM SET default_transaction_read_only = on;")
    server.psql("SELECT pg_reload_conf();")
    try:
        yield
    finally:
        server.psql("ALTER SYSTEM RESET default_transaction_read_only;")
        server.psql("SELECT pg_reload_conf();")


def test_while_the_server_is_read_only_training_goes_on_and_nothing_is_lost_or_doubled(
    url: str, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0.1)
    notes: list[str] = []
    pool = ScriptedPool(trains, num_workers=2)
    coordinator = searching(url, tmp_path, notes, pool)
    coordinator.begin()
    while len(pool.answers) < 2:
        coordinator.turn()
    answered, begun = len(pool.answers), time.monotonic()
    with read_only(server):
        while len(pool.answers) < answered + 2 or not coordinator.outage.is_on:
            coordinator.turn()
            assert time.monotonic() - begun < 60
    assert any(note.startswith("the database cannot be used now: the server accepts no writes") for note in notes)
    while coordinator.turn():
        pass
    coordinator.crew.close(0)
    trials = coordinator.trials.study.get_trials()
    assert any(note.startswith("the database is back after") for note in notes)
    assert states(coordinator.trials.study) == ["COMPLETE"] * 3
    assert [sorted(trial.intermediate_values) for trial in trials] == [list(range(1, EPOCHS + 1))] * 3
    backend_of(coordinator.trials.study).engine.dispose()


def test_a_connection_to_a_read_only_server_is_left_for_one_that_may_lead_to_another_server(
    url: str, server: Any
) -> None:
    study = open_study(spec_of(), open_storage(parse_url(url), create=True), "content")
    engine = backend_of(study).engine
    engine.dispose()
    database = make_url(url).database
    server.psql(f"ALTER DATABASE {database} SET default_transaction_read_only = on;")  # for new connections
    with pytest.raises(StorageInternalError) as raised:
        study.set_user_attr("one", 1)
    assert is_outage(raised.value)
    server.psql(f"ALTER DATABASE {database} RESET default_transaction_read_only;")
    study.set_user_attr("one", 1)  # the session that was read-only is not used again
    engine.dispose()


@pytest.mark.parametrize(
    ("state", "cure", "comes_back"),
    [
        ("25006", "name the primary, or wait for it", True),
        ("53100", "the disk of the server is full; make room there", True),
        ("53300", "the server has no connection left", True),
        ("57P01", "the server is shutting down", True),
        ("57P03", "wait until it is ready", True),
        ("55P03", "another session holds a lock that is needed", True),
        ("57014", "look for the cause in pg_stat_activity", True),
        ("08006", "check host, port, user and password", True),
        ("42501", r"ask the owner of the database for it \(GRANT\)", False),
    ],
)
def test_each_refusal_of_a_server_has_its_own_cure(url: str, state: str, cure: str, comes_back: bool) -> None:
    engine = open_storage(parse_url(url), create=True).engine
    statement = text(f"DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(DBAPIError) as raised, engine.begin() as connection:
        connection.execute(statement)
    assert is_outage(raised.value) is comes_back
    with pytest.raises(StorageError, match=f"refused; .*{cure}"), storage_errors(parse_url(url)):
        raise raised.value
    engine.dispose()


def test_an_error_without_a_cure_of_its_own_is_told_in_the_servers_words_alone(url: str) -> None:
    engine = open_storage(parse_url(url), create=True).engine
    for state in ("23505", "23514", "40P01", "42P01", "XX000"):
        statement = text(f"DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END $$")
        with pytest.raises(StorageError, match=r": refused$"), storage_errors(parse_url(url)), engine.begin() as one:
            one.execute(statement)
    engine.dispose()


@pytest.mark.parametrize(
    ("table", "column", "write"),
    [
        ("trials", "trial_id", lambda study: study.ask()),
        ("studies", "study_id", lambda study: optuna.create_study(storage=study._storage, study_name="two")),
        # Optuna itself passes over this one without a word.
        ("study_user_attributes", "study_user_attribute_id", lambda study: study.set_user_attr("two", 2)),
        ("trial_params", "param_id", lambda study: study.trials and study.ask({"lr": FloatDistribution(0, 1)})),
    ],
)
def test_rows_without_their_sequences_are_refused_with_lines_that_set_these(
    url: str, server: Any, table: str, column: str, write: Callable[[optuna.Study], object]
) -> None:
    storage = open_storage(parse_url(url), create=True)
    study = optuna.create_study(storage=storage, study_name="one")
    study.tell(study.ask({"lr": FloatDistribution(0, 1)}), 1)
    study.set_user_attr("one", 1)
    as_admin(url, f"ALTER SEQUENCE {table}_{column}_seq RESTART")
    with pytest.raises(StorageError, match=f'unique constraint "{table}_pkey"; the numbers of new rows are taken'):
        write(study)
    docs = (Path(__file__).parents[3] / "docs/troubleshooting.md").read_text()
    (lines,) = re.findall(r"```sql\n(.*?)```", docs, re.DOTALL)
    as_admin(url, lines)
    write(study)
    storage.engine.dispose()


def test_a_refused_connection_and_a_launch_on_a_read_only_server_are_told_in_one_true_sentence(
    url: str, server: Any
) -> None:
    database = make_url(url).database
    server.psql(f"CREATE ROLE ann LOGIN CONNECTION LIMIT 0; GRANT ALL ON DATABASE {database} TO ann;")
    with pytest.raises(StorageError, match=r"too many connections for role .ann.; the server has no connection left"):
        open_storage(make_url(url).set(username="ann"), create=True)
    with (
        read_only(server),
        pytest.raises(StorageError, match="read-only transaction; the server accepts no writes now"),
        storage_errors(make_url(url)),
    ):
        open_study(spec_of(), open_storage(make_url(url), create=True), "content")


def as_admin(url: str, *statements: str) -> None:
    with required("psycopg").connect(make_url(url).set(drivername="postgresql").render_as_string(False)) as connection:
        for statement in statements:
            connection.execute(statement)


def is_refused(url: URL) -> bool:
    try:
        required("psycopg").connect(url.set(drivername="postgresql").render_as_string(False)).close()
    except required("psycopg").OperationalError:
        return True
    return False


@contextmanager
def needs_a_password(server: Any, role: str) -> Iterator[None]:
    rules = Path(server.pgdata) / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all {role} scram-sha-256\nhost all {role} all scram-sha-256\n{before}")
    server.psql("SELECT pg_reload_conf();")
    deadline = time.monotonic() + 10
    while not is_refused(make_url(server.get_uri()).set(username=role)):
        assert time.monotonic() < deadline, "the server has not read its file"
    try:
        yield
    finally:
        rules.write_text(before)
        server.psql("SELECT pg_reload_conf();")


REFUSED = {
    "42501": (
        r"ask the owner of the database for it \(GRANT\)",
        "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC, {role}",
    ),
    "28000": ("the server does not let this user in", "ALTER ROLE {role} NOLOGIN"),
    "no role": ("the server does not let this user in", "ALTER ROLE {role} RENAME TO {role}_before"),
    "3D000": (r"check the name, or create it \(createdb\)", "DROP DATABASE {database}"),
    "28P01": ("the server does not accept this password", "ALTER ROLE {role} PASSWORD 'another'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_user_or_database_that_the_server_refuses_ends_a_launch_with_the_cure(
    url: str, server: Any, case: str
) -> None:
    (cure, statement), role = REFUSED[case], f"r{abs(hash(case))}"
    as_admin(url, f"CREATE ROLE {role} LOGIN PASSWORD 'mine'")
    server.psql(f"{statement.format(database=make_url(url).database, role=role)};")
    refused = make_url(url).set(username=role, password="mine")
    with needs_a_password(server, role) if case == "28P01" else nullcontext():
        with pytest.raises(StorageError, match=cure) as said:
            open_storage(refused, create=True)
        assert "mine" not in str(said.value)
        engine = create_engine(refused, poolclass=NullPool)
        notes: list[str] = []
        with pytest.raises(OperationalError):
            Outage(lambda line, *_: notes.append(line)).with_database(engine.connect)
        assert notes == []


@pytest.mark.parametrize(
    ("refuse", "allow", "cure"),
    [
        (
            "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC, {role}",
            "GRANT CONNECT ON DATABASE {database} TO {role}",
            "GRANT",
        ),
        ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN", "does not let this user in"),
        (
            "REVOKE INSERT, UPDATE ON ALL TABLES IN SCHEMA public FROM {role}",
            "GRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}",
            "GRANT",
        ),
    ],
)
def test_a_running_search_waits_for_the_permission_that_it_has_lost_and_names_the_cure(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: str, allow: str, cure: str
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0.1)
    database, role = make_url(url).database, f"r{abs(hash(refuse))}"
    as_admin(url, f"CREATE ROLE {role} LOGIN", f"ALTER DATABASE {database} OWNER TO {role}")
    notes: list[str] = []
    pool = ScriptedPool(trains, num_workers=2)
    coordinator = searching(make_url(url).set(username=role).render_as_string(False), tmp_path, notes, pool)
    coordinator.begin()
    while len(pool.answers) < 2:
        coordinator.turn()
    answered, begun = len(pool.answers), time.monotonic()
    ends = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    as_admin(url, refuse.format(database=database, role=role), ends)
    while len(pool.answers) < answered + 2 or not coordinator.outage.is_on or not any(cure in note for note in notes):
        coordinator.turn()
        assert time.monotonic() - begun < 60, notes
    as_admin(url, allow.format(database=database, role=role))
    while coordinator.turn():
        pass
    coordinator.crew.close(0)
    trials = coordinator.trials.study.get_trials()
    assert any(note.startswith("the database is back after") for note in notes)
    assert states(coordinator.trials.study) == ["COMPLETE"] * 3
    assert [sorted(trial.intermediate_values) for trial in trials] == [list(range(1, EPOCHS + 1))] * 3
    backend_of(coordinator.trials.study).engine.dispose()


def test_a_server_that_is_stopped_is_given_up_by_the_client_and_counts_as_away(
    url: str, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.postgres, "TURN_STATEMENT_SECONDS", 1)
    monkeypatch.setattr(search.study.postgres, "LATE_SECONDS", 0.5)
    study = open_study(spec_of(), open_storage(parse_url(url), create=True), "content")
    wait_briefly(study)
    engine = backend_of(study).engine
    with engine.connect() as connection:
        number = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        process = psutil.Process(number)
        process.suspend()
        try:
            begun = time.monotonic()
            with pytest.raises(OperationalError, match=r"the server has not answered for 1\.5 s") as raised:
                connection.execute(text("SELECT 1"))
            assert time.monotonic() - begun < 10
        finally:
            process.resume()
        assert is_outage(raised.value)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1, "a new connection"
    engine.dispose()


@pytest.mark.parametrize("frozen", ["pooler", "server"])
def test_while_a_pooler_or_the_server_hangs_a_stop_is_heard_within_a_second_and_turns_are_short(
    url: str, server: Any, tmp_path: Path, frozen: str
) -> None:
    said: list[tuple[float, str]] = []
    between = pooler(server) if frozen == "pooler" else nullcontext((URL.create(""), psutil.Process(server.get_pid())))
    with between as (at_pooler, process):
        way = at_pooler.set(database=make_url(url).database) if frozen == "pooler" else make_url(url)
        workers = ScriptedPool(trains, num_workers=2)
        coordinator = searching(way.render_as_string(False), tmp_path, [], workers)
        coordinator.say = coordinator.outage._say = lambda line, *_: said.append((time.monotonic(), line))
        hearing = heard(Display(quiet=True), is_stopping=lambda: coordinator.stopping, announce=coordinator.announce)
        with own_study("scripted", way, Runs(tmp_path)) as check, hearing:
            coordinator.owned._check_lock = check
            coordinator.begin()
            while len(workers.answers) < 2:
                coordinator.turn()
            processes = [process, *process.children()]
            for one in processes:
                one.suspend()
            try:
                stopped = time.monotonic() + 1
                stop = threading.Timer(1, coordinator.stop)
                stop.start()
                while not coordinator.outage.is_on:
                    begun = time.monotonic()
                    coordinator.turn()
                    assert time.monotonic() - begun < ANSWER_SECONDS + 2, "it waits for one answer only"
                stop.join()
            finally:
                for one in processes:
                    one.resume()
            (heard_at,) = [at for at, line in said if line.startswith("finishing the epoch")]
            assert heard_at - stopped < 1
            while coordinator.turn():
                pass
            coordinator.crew.close(0)
            check()
    backend_of(coordinator.trials.study).engine.dispose()


STUCK = """
import ctypes, signal, sys
from search.process import STOP_SIGNALS, allow_grace, leave_after
allow_grace(float(sys.argv[1]))
for number in STOP_SIGNALS:
    signal.signal(number, lambda *_: None)

def hang():
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    print("hangs", flush=True)
    libc.pthread_mutex_lock(mutex)

leave_after(hang)
"""
"""A main thread in a call of the system that never comes back, as of a disk that hangs: no handler of Python's runs."""


@pytest.mark.parametrize(
    ("signals", "code"),
    [((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM, signal.SIGINT), 130), ((signal.SIGTERM,), 75)],
)
def test_no_signal_waits_for_a_call_that_never_comes_back(signals: tuple[signal.Signals, ...], code: int) -> None:
    assert ctypes.CDLL(None).pthread_mutex_lock
    program = STUCK.replace("leave_after(hang)", "search.process.STUCK_SECONDS = 0.2\nleave_after(hang)").replace(
        "import ctypes, signal, sys", "import ctypes, signal, sys, search.process"
    )
    with subprocess.Popen([sys.executable, "-c", program, "0.2"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        for number in signals:
            os.kill(process.pid, number)
            time.sleep(0.1)
        assert process.wait(20) == code
