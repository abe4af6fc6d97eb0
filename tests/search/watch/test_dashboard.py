"""The dashboard as a server: what it is started with, where it listens and how it ends, alone or beside a search."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from fast import slow_after
from needed import postgres, required
from optuna.storages import RDBStorage
from shown import TOKEN, Search, add_trial, ask, names

from search.errors import StorageError, UsageError
from search.paths import Runs
from search.study.readonly import Database
from search.watch.dashboard import dashboard_beside, parse_origin, serve_dashboard
from search.watch.front import build_app

SECRET = "s3cr{e}t"


# -- what it is started with


@pytest.mark.parametrize(
    ("beyond", "name"),
    [({"host": "0.0.0.0"}, "0.0.0.0"), ({"host": "::"}, r"\[::\]"), ({"allow_hosts": ["Box.example"]}, "box.example")],
)
def test_edits_beyond_this_machine_are_refused(beyond: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"--allow-edits is for this machine alone, not for {name}"):
        serve_dashboard("sqlite:///search.db", port=0, edits=True, **beyond)


@pytest.mark.parametrize("name", ["http://box", "box:8080", "*", "", "a b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a host name"):
        serve_dashboard("sqlite:///search.db", port=0, allow_hosts=[name])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://box.example.org/optuna", "needs a host name of its own and works under no path"),
        ("https://box.example.org/optuna/", "write --url https://box.example.org$"),
        ("https://box.example.org//", "works under no path"),
        ("https://box.example.org/?a=b", "works under no path"),
        ("https://box.example.org#a", "works under no path"),
        ("https://me:word@box.example.org", "^--url has a user or a password before the host name; write it without"),
        ("me:word@box.example.org", "^--url has a user or a password before the host name; write it without"),
        ("http://me:word@box:port/x", "^--url has a user or a password before the host name; write it without"),
        ("https://b\u00f6rse.example", "is not the address of a host; write its name as browsers send it, in the form"),
        ("https://\u9ce5.example/x", "in the form that begins with xn--$"),
        ("http://box.example.org", "must reach the proxy by https; without TLS use --allow-host box.example.org"),
        ("box.example.org", "is not the address of a host; write --url https://box.example.org"),
        ("https://", "is not the address of a host"),
        ("https://a b", "is not the address of a host"),
        ("https://box:port", "is not the address of a host"),
        ("https://box:99999", "is not the address of a host"),
        ("", "is not the address of a host"),
    ],
)
def test_a_url_that_is_more_or_less_than_a_host_with_tls_is_refused(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        serve_dashboard("sqlite:///search.db", port=0, url=url)


def test_a_name_with_other_letters_is_refused_with_the_form_to_write() -> None:
    with pytest.raises(
        UsageError, match="is not a host name as browsers send it; write its form of a to z, which begi"
    ):
        serve_dashboard("sqlite:///search.db", port=0, allow_hosts=["b\u00f6rse.example"])


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Box.example.org", "https://box.example.org"),
        ("https://box.example.org/", "https://box.example.org"),
        ("https://box:443", "https://box"),
        ("https://box:8443/", "https://box:8443"),
        ("https://[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_a_url_counts_as_browsers_write_its_origin(url: str, origin: str) -> None:
    assert parse_origin(url) == origin


@pytest.mark.parametrize("text", ["", "short", "with space in the middle", "two\nlines-of-characters", "ü" * 20])
def test_a_token_that_is_weak_or_breaks_a_cookie_is_refused_and_not_shown(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(UsageError, match="must hold at least 16 letters") as refusal:
        serve_dashboard("sqlite:///search.db", port=0, token_file=file)
    assert not text or text not in str(refusal.value)


def test_a_token_file_that_is_missing_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"token cannot be read \(No such file or directory\); make one: openssl"):
        serve_dashboard("sqlite:///search.db", port=0, token_file=tmp_path / "token")


def test_an_address_of_another_machine_is_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"--host 192\.0\.2\.1 is not an address of this machine"):
        serve_dashboard("sqlite:///search.db", host="192.0.2.1", port=0)


def test_a_storage_that_makes_no_sense_is_refused_without_its_password() -> None:
    for url in ("runs/search.db", "", f"postgresql://me:{SECRET}@host:{SECRET}/db", f"mysql://me:{SECRET}@host/db"):
        with pytest.raises(StorageError) as refusal:
            build_app(url)
        assert SECRET not in str(refusal.value)


def test_an_unreachable_postgres_is_waited_for_without_its_password(
    capfd: pytest.CaptureFixture[str],
) -> None:
    required("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    for url in (
        f"postgresql://me:{SECRET}@127.0.0.1:{port}/db",
        f"postgresql://127.0.0.1:{port}/db?user=me&password={SECRET}",
        f"postgresql://me:a@{SECRET}.invalid/db",
    ):
        app = build_app(url)
        for path in ("/dashboard", "/api/studies"):
            answer = ask(app, path)
            assert answer.status == 503
            assert b"does not answer" in answer.body
            assert SECRET.encode() not in answer.body
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.postgres
def test_postgres_is_shown_and_cannot_be_written() -> None:
    with postgres() as server:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        app = build_app(url)
        assert "has no study yet" in json.loads(ask(app, "/api/studies").body)["reason"]
        storage = RDBStorage(url)
        add_trial(optuna.create_study(storage=storage, study_name="birds400", direction="maximize"))
        assert names(app) == ["birds400"]
        assert len(json.loads(ask(app, "/api/studies/1").body)["trials"]) == 1
        assert ask(app.mounted(), "/api/studies/1", "DELETE").status == 500
        with Database(url).open().engine.connect() as connection:
            assert connection.exec_driver_sql("show timezone").scalar() == "UTC"
            with pytest.raises(Exception, match="read-only transaction"):
                connection.exec_driver_sql("delete from studies")
        assert names(app) == ["birds400"]
        storage.engine.dispose()
    stopped = ask(app, "/dashboard")
    assert (stopped.status, b"does not answer" in stopped.body) == (503, True)


@pytest.mark.postgres
@pytest.mark.parametrize("held", ["trials, studies", "version_info, alembic_version"])
def test_while_a_table_is_held_requests_get_the_reason_soon_and_others_are_answered(tmp_path: Path, held: str) -> None:
    with postgres() as server:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        storage = RDBStorage(url)
        add_trial(optuna.create_study(storage=storage, study_name="birds400", direction="maximize"))
        storage.engine.dispose()
        with served("--storage", url, "--runs", tmp_path) as (_, line), ThreadPoolExecutor(32) as pool:
            if held.startswith("trials"):
                assert names_at(line) == ["birds400"]
            with required("psycopg").connect(server.get_uri()) as holder:
                holder.execute(f"LOCK TABLE {held} IN ACCESS EXCLUSIVE MODE")
                begun = time.monotonic()
                waiting = [pool.submit(reason_at, f"{line}api/studies") for _ in range(24)]
                time.sleep(0.1)
                assert status_of(line, Host="evil.example") == 403
                if held.startswith("trials"):
                    assert status_of(f"{line}dashboard/") == 200
                answers = {one.result() for one in waiting}
                assert time.monotonic() - begun < 8, "a lock is waited for once, 1 s; 8 threads answer"
                (answer,) = answers
                assert answer.startswith("503: The Postgres database cannot be read now: another session holds a lock")
            while status_of(f"{line}api/studies") == 503:
                assert time.monotonic() - begun < 30
                time.sleep(0.2)
            assert names_at(line) == ["birds400"]


def reason_at(address: str) -> str:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address, timeout=30)
    with refused.value as answer:
        return f"{answer.code}: {json.load(answer)['reason']}"


# -- the server


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match=f"port {port} does not exist"):
        serve_dashboard("sqlite:///search.db", port=port)


def test_a_taken_port_is_a_sentence_and_announces_nothing() -> None:
    announced: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is taken; choose another with --port"):
            serve_dashboard("sqlite:///search.db", port=port, announce=announced.append)
    assert announced == []


@pytest.mark.parametrize("farewell", slow_after(1, [signal.SIGTERM, signal.SIGINT]))
def test_the_server_listens_on_loopback_only_and_ends_when_told(search: Search, farewell: signal.Signals) -> None:
    program = (
        "import sys; from functools import partial; from search.watch.dashboard import serve_dashboard;"
        "serve_dashboard(sys.argv[1], port=0, announce=partial(print, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, search.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), server.communicate()
            with urllib.request.urlopen(f"{address}api/studies", timeout=20) as answer:
                assert json.load(answer)["study_summaries"][0]["study_name"] == "birds400"
            with urllib.request.urlopen(address, timeout=20) as answer:
                assert answer.url == f"{address}dashboard"
            listening = [
                connection.laddr.ip
                for connection in psutil.Process(server.pid).net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            ]
            assert listening == ["127.0.0.1"]
            server.send_signal(farewell)
            rest, errors = server.communicate(timeout=20)
        finally:
            server.kill()
    assert (server.returncode, rest, errors) == (0, "", "")


COMMAND = Path(sys.executable).with_name("search")


@contextmanager
def served(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`search dashboard` as a process, and the first line that it prints."""
    with subprocess.Popen(
        [COMMAND, "dashboard", "--port", "0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as server:
        try:
            assert server.stdout is not None
            yield server, server.stdout.readline().strip()
        finally:
            server.kill()


def status_of(address: str, method: str = "GET", **headers: str) -> int:
    request = urllib.request.Request(address, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return int(refusal.code)


def test_beyond_loopback_a_token_is_made_and_shown_once(search: Search) -> None:
    with served("--host", "0.0.0.0", "--allow-host", "Box.example", "--storage", search.url) as (server, line):
        found = re.fullmatch(r"(http://box\.example:(\d+)/)\?token=([\w-]{43})", line)
        assert found, server.communicate()
        local = f"http://127.0.0.1:{found[2]}/"
        assert status_of(f"{local}api/studies") == 401
        assert status_of(f"{local}api/studies", Host="box.example") == 401
        assert status_of(f"{local}api/studies", Host="other.example") == 403
        cookie = f"featherweight-{found[2]}={found[3]}"
        assert status_of(f"{local}api/studies", Host="box.example", Cookie=cookie) == 200
        assert status_of(f"{local}?token={found[3]}") == 401, "urllib follows the redirect and keeps no cookie"
        server.send_signal(signal.SIGTERM)
        assert server.communicate(timeout=20) == ("", "")


def test_edits_need_a_token_on_this_machine_too(search: Search) -> None:
    with served("--allow-edits", "--storage", search.url) as (server, line):
        found = re.fullmatch(r"(http://127\.0\.0\.1:(\d+)/)\?token=([\w-]{43})", line)
        assert found, server.communicate()
        address = f"{found[1]}api/studies/1"
        assert status_of(address) == 401
        assert status_of(address, "DELETE") == 401
        cookie = f"featherweight-{found[2]}={found[3]}"
        assert status_of(address, "DELETE", Cookie=cookie, Origin="http://evil.example") == 403
        assert status_of(address, "DELETE", Cookie=cookie) == 204


@pytest.mark.slow
def test_behind_a_proxy_its_name_is_answered_with_a_token_and_edits_are_allowed(search: Search) -> None:
    url = "https://box.example.org:8443"
    with served("--url", url, "--host", "0.0.0.0", "--allow-edits", "--storage", search.url) as (server, line):
        found = re.fullmatch(rf"{url}/\?token=([\w-]{{43}})", line)
        assert found, server.communicate()
        (port,) = {connection.laddr.port for connection in psutil.Process(server.pid).net_connections("inet")}
        address, here = f"http://127.0.0.1:{port}/api/studies/1", {"Host": "box.example.org", "Via": "1.1 box"}
        assert status_of(address) == 401
        assert status_of(address, "DELETE", **here) == 401
        here["Cookie"] = f"featherweight-{port}={found[1]}"
        assert status_of(address, "DELETE", Origin="https://box.example.org", **here) == 403
        assert status_of(address, "DELETE", Origin=url, **here) == 204


def test_a_token_from_a_file_is_never_shown_and_a_password_is_in_no_process_list(tmp_path: Path) -> None:
    required("psycopg")
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    url = "postgresql+psycopg://me:ge-heim@127.0.0.1:1/db"
    with served("--storage", url, "--token-file", file) as (server, line):
        address = line.split("?")[0]
        assert line == f"{address}?token=TOKEN, with the token in {file}", server.communicate()
        assert status_of(f"{address}api/studies") == 401
        port = address.rpartition(":")[2].rstrip("/")
        request = urllib.request.Request(f"{address}api/studies", headers={"Cookie": f"featherweight-{port}={TOKEN}"})
        with pytest.raises(urllib.error.HTTPError) as waiting:
            urllib.request.urlopen(request, timeout=20)
        with waiting.value as answer:
            assert "does not answer" in json.load(answer)["reason"]
        assert psutil.Process(server.pid).cmdline()[-4:] == ["--port", "0", "--token-file", str(file)]
        server.send_signal(signal.SIGTERM)
        assert server.communicate(timeout=20) == ("", "")


def test_a_dashboard_beside_a_search_takes_the_next_free_port_gives_way_and_ends_with_it(
    search: Search, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with dashboard_beside(search.url, Runs(tmp_path / "runs"), port=taken) as address:
            assert int(address.rpartition(":")[2].rstrip("/")) > taken
            assert names_at(address) == ["birds400"]
            assert status_of(f"{address}api/studies", Host="evil.example") == 403
            (child,) = (p for p in psutil.Process().children() if "search.watch.dashboard" in p.cmdline())
            assert search.url not in " ".join(child.cmdline())
            assert child.nice() > psutil.Process().nice()
    assert not child.is_running()
    assert (tmp_path / "runs" / "dashboard.log").read_bytes() == b""


def names_at(address: str) -> list[str]:
    with urllib.request.urlopen(f"{address}api/studies", timeout=30) as answer:
        return [study["study_name"] for study in json.load(answer)["study_summaries"]]


def test_a_dashboard_follows_a_search_that_is_killed(search: Search, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from search.watch.dashboard import dashboard_beside;"
        "from search.paths import Runs; beside = dashboard_beside(sys.argv[1], Runs(Path(sys.argv[2])), port=0);"
        "print(beside.__enter__(), flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, search.url, str(tmp_path / "runs")], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        assert names_at(launcher.stdout.readline().strip()) == ["birds400"]
        (child,) = psutil.Process(launcher.pid).children()
        launcher.kill()
    child.wait(10)
