"""The dashboard shows everything and can change nothing."""

from __future__ import annotations

import io
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import optuna
import psutil
import pytest
from needed import postgres, required
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url

from search.dashboard import dashboard_beside, serve_dashboard
from search.errors import StorageError, UsageError
from search.front import Database, Front, build_app
from search.paths import Runs
from search.study import own_study

SECRET = "s3cr{e}t"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(app: Any, path: str, method: str = "GET", **environ: str) -> Answer:
    """One request to a WSGI application, as a browser on this machine sends it."""
    request: dict[str, Any] = {"HTTP_HOST": "127.0.0.1:8080", "REQUEST_METHOD": method}
    request |= {"SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": ""}
    setup_testing_defaults(request)
    if method not in ("GET", "HEAD"):
        request |= {
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": "2",
            "wsgi.input": io.BytesIO(b"{}"),
        }
    request |= environ
    started: list[Any] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        started[:] = [int(status.split()[0]), dict(headers)]
        return lambda data: None

    chunks = app(request, start)
    body = b"".join(chunks)
    if hasattr(chunks, "close"):
        chunks.close()
    return Answer(started[0], started[1], body)


def names(app: Any) -> list[str]:
    return [study["study_name"] for study in json.loads(ask(app, "/api/studies").body)["study_summaries"]]


def add_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    trial = study.ask({"lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)})
    for epoch in (1, 2):
        trial.report(0.4 * epoch, step=epoch)
    trial.set_user_attr("num_params", 4_967_719)
    return study.tell(trial, 0.8)


class Search(NamedTuple):
    """A study in a database of its own, with the writer that a running search would be."""

    url: str
    path: Path
    study: optuna.Study
    storage: RDBStorage


def begin_search(path: Path) -> Search:
    url = f"sqlite:///{path}"
    storage = RDBStorage(url)
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("pragma journal_mode=wal")
    study = optuna.create_study(storage=storage, study_name="birds400", direction="maximize")
    for _ in range(3):
        add_trial(study)
    return Search(url, path, study, storage)


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Search]:
    begun = begin_search(tmp_path / "search.db")
    yield begun
    begun.storage.engine.dispose()


def test_the_study_and_its_trials_come_through(search: Search) -> None:
    app = build_app(search.url)
    assert names(app) == ["birds400"]
    detail = json.loads(ask(app, "/api/studies/1").body)
    assert detail["has_intermediate_values"]
    assert len(detail["trials"]) == 3
    best = detail["best_trials"][0]
    assert best["values"] == [0.8]
    assert [step["value"] for step in best["intermediate_values"]] == [0.4, 0.8]
    assert {"key": "num_params", "value": "4967719"} in best["user_attrs"]
    assert "birds400" in ask(app, "/csv/1").headers["Content-Disposition"]


def test_the_page_and_its_script_come_through_to_a_strict_server(search: Search) -> None:
    app = validator(build_app(search.url))
    assert ask(app, "/", SERVER_PROTOCOL="HTTP/1.1").status == 302
    page = ask(app, "/dashboard")
    assert page.status == 200
    script = re.search(rb'src="(/static/[^"]+)"', page.body)
    assert script is not None
    # no Accept-Encoding: optuna-dashboard alone answers 500
    assert len(ask(app, script[1].decode()).body) > 100_000


def test_head_answers_without_a_body(search: Search) -> None:
    app = build_app(search.url)
    assert ask(app, "/dashboard", "HEAD")[::2] == (200, b"")
    assert ask(build_app("sqlite:////nowhere/search.db"), "/", "HEAD")[::2] == (503, b"")


def test_a_trial_that_the_search_adds_appears(search: Search) -> None:
    app = build_app(search.url)
    assert len(json.loads(ask(app, "/api/studies/1").body)["trials"]) == 3
    add_trial(search.study)
    deadline = time.monotonic() + 10  # the dashboard keeps a short list of trials for two seconds
    while len(json.loads(ask(app, "/api/studies/1").body)["trials"]) != 4:
        assert time.monotonic() < deadline, "the fourth trial did not appear"
        time.sleep(0.2)


def test_a_page_is_served_and_the_search_goes_on_while_each_holds_the_database(search: Search) -> None:
    app = build_app(search.url)
    with search.storage.engine.connect() as writer:
        writer.exec_driver_sql("begin immediate")
        assert names(app) == ["birds400"]
    with Database(search.url).open().engine.connect() as reader:
        reader.exec_driver_sql("begin")
        reader.exec_driver_sql("select count(*) from trials").one()
        add_trial(search.study)


def test_every_route_refuses_every_writing_method(search: Search) -> None:
    app = build_app(search.url)
    for path in routes(app):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get", "BREW"):
            answer = ask(app, path, method)
            assert answer.status == 405, (method, path)
            assert answer.headers["Allow"] == "GET, HEAD"
    assert names(app) == ["birds400"]
    assert "read-only" in json.loads(ask(app, "/api/studies/1", "DELETE").body)["reason"]


def routes(app: Front) -> list[str]:
    """A path for each route of optuna-dashboard."""
    rules = [(route.method, route.rule) for route in mounted(app).routes]
    assert {method for method, _ in rules} >= {"GET", "POST", "PUT", "DELETE"}, "the routes were not found"
    return sorted({re.sub(r"<[^>]*>", "x", re.sub(r"<[^>]*:int>", "1", rule)) for _, rule in rules})


def mounted(app: Front) -> Any:
    """optuna-dashboard's own Bottle application, past the filter."""
    return app.mounted()


def test_past_the_filter_a_write_still_fails(search: Search) -> None:
    app = build_app(search.url)
    before = json.loads(ask(app, "/api/studies/1").body)
    assert ask(mounted(app), "/api/studies/1", "DELETE").status == 500
    forged = b'{"user_attrs": {"num_params": 1}}'
    answer = ask(
        mounted(app),
        "/api/trials/1/user-attrs",
        "POST",
        **{"CONTENT_LENGTH": str(len(forged)), "wsgi.input": io.BytesIO(forged)},  # type: ignore[arg-type]
    )
    assert answer.status == 500
    with pytest.raises(StorageInternalError) as failure:
        Database(search.url).open().delete_study(1)
    assert "readonly" in str(failure.value.__cause__)
    assert json.loads(ask(app, "/api/studies/1").body) == before
    assert search.study.trials[0].user_attrs == {"num_params": 4_967_719}


def test_a_waiting_page_gives_way_to_the_dashboard(tmp_path: Path) -> None:
    path = tmp_path / "<runs>" / "search.db"
    app = build_app(f"sqlite:///{path}")
    waiting = ask(app, "/dashboard")
    assert waiting.status == 503
    assert waiting.headers["Retry-After"] == "3"
    assert b'http-equiv="refresh" content="3"' in waiting.body
    assert b"search launch" in waiting.body
    assert b"&lt;runs&gt;/search.db" in waiting.body
    assert json.loads(ask(app, "/api/studies").body) == {"reason": f"There is no database at {path} yet."}
    path.parent.mkdir()
    assert list(path.parent.iterdir()) == [], "watching must not create a database"
    path.touch()
    assert ask(app, "/api/studies").status == 503
    search = begin_search(path)
    assert names(app) == ["birds400"]
    search.storage.engine.dispose()


def test_a_database_that_is_half_created_is_waited_for(search: Search) -> None:
    app = build_app(search.url)
    with search.storage.engine.begin() as connection:
        connection.exec_driver_sql("delete from alembic_version")
    assert b"is being created" in ask(app, "/").body
    with search.storage.engine.begin() as connection:
        connection.exec_driver_sql("drop table alembic_version")
    assert b"has no study yet" in ask(app, "/").body


def test_a_database_that_was_deleted_and_begun_anew_is_shown_anew(search: Search, tmp_path: Path) -> None:
    app = build_app(search.url)
    assert len(json.loads(ask(app, "/api/studies/1").body)["trials"]) == 3
    search.storage.engine.dispose()
    other = begin_search(tmp_path / "other.db")
    add_trial(other.study)
    other.storage.engine.dispose()
    search.path.unlink()
    assert ask(app, "/api/studies").status == 503
    for part in tmp_path.glob("search.db-*"):
        part.unlink()
    other.path.rename(search.path)
    assert len(json.loads(ask(app, "/api/studies/1").body)["trials"]) == 4


@pytest.mark.parametrize("version", ["v3.0.0.a", "v99.0.0.a"])
def test_a_database_of_another_optuna_is_named_as_such(search: Search, version: str) -> None:
    with search.storage.engine.begin() as connection:
        connection.exec_driver_sql(f"update alembic_version set version_num = '{version}'")
    assert "another version of Optuna" in json.loads(ask(build_app(search.url), "/api/studies").body)["reason"]


def test_a_file_that_is_no_database_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "search.db"
    path.write_text("a letter" * 1000)
    reason = json.loads(ask(build_app(f"sqlite:///{path}"), "/api/studies").body)["reason"]
    assert reason == f"{path} cannot be read (file is not a database)."


def test_a_folder_name_with_url_letters_is_only_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "a b?c#d%41{e}é"
    folder.mkdir()
    search = begin_search(tmp_path / "search.db")
    search.storage.engine.dispose()
    search.path.rename(folder / "search.db")
    path = str(folder / "search.db")
    assert names(build_app(URL.create("sqlite", database=path).render_as_string())) == ["birds400"]


FOREIGN_HOSTS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.:80",
    "10.0.0.1",
    "",
    "[::2]",
    "a@localhost",
]


def test_a_foreign_host_is_refused(search: Search) -> None:
    app = build_app(search.url)
    for host in FOREIGN_HOSTS:
        for path in routes(app):
            answer = ask(app, path, HTTP_HOST=host)
            assert answer.status == 403, (host, path)
            assert b"only under these names" in answer.body
            assert b"birds400" not in answer.body


def test_names_of_this_machine_are_answered(search: Search) -> None:
    app = build_app(search.url)
    for host in ("127.0.0.1", "localhost", "LocalHost:9", "[::1]", "[::1]:8080"):
        assert ask(app, "/api/studies", HTTP_HOST=host).status == 200, host


def test_another_name_can_be_allowed(search: Search) -> None:
    app = build_app(search.url, allowed_hosts={"box"})
    assert ask(app, "/api/studies", HTTP_HOST="box:80").status == 200
    assert ask(app, "/api/studies", HTTP_HOST="localhost").status == 403


def test_every_answer_carries_the_security_headers_and_none_opens_it_to_other_origins(search: Search) -> None:
    app = build_app(search.url)
    for answer in (
        ask(app, "/dashboard"),
        ask(app, "/", HTTP_HOST="x"),
        ask(app, "/", "POST"),
        ask(app, "/csv/1"),
    ):
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def add_artifact(search: Search, folder: Path, name: str, text: str) -> str:
    """A file that belongs to the study, as the coordinator adds one; returns its address."""
    folder.mkdir(exist_ok=True)
    file = folder.parent / name
    file.write_text(text)
    store = FileSystemArtifactStore(folder)
    identity = upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=search.study)
    return f"/artifacts/1/{identity}"


def test_an_artifact_of_the_study_is_shown_in_a_sandbox_and_to_no_other_origin(search: Search, tmp_path: Path) -> None:
    app = build_app(search.url, runs=Runs(tmp_path))
    path = add_artifact(search, tmp_path / "artifacts", "curves.html", "<p>curves")
    answer = ask(app, path)
    assert (answer.status, answer.body) == (200, b"<p>curves")
    assert answer.headers["Content-Type"] == "text/html"
    assert answer.headers["Content-Security-Policy"] == "sandbox allow-scripts"
    assert not [name for name in answer.headers if name.startswith("Access-Control")]
    listed = json.loads(ask(app, "/api/studies/1").body)["artifacts"]
    assert [artifact["filename"] for artifact in listed] == ["curves.html"]
    assert ask(app, path, "DELETE").status == 405
    assert ask(app, path.replace("/artifacts/", "/api/artifacts/"), "DELETE").status == 405
    assert ask(app, "/api/artifacts/1", "POST").status == 405
    assert ask(build_app(search.url, runs=Runs(tmp_path), token=TOKEN), path).status == 401
    assert ask(app, path, HTTP_HOST="evil.example").status == 403


def test_an_artifact_that_is_gone_or_no_artifact_is_not_found(search: Search, tmp_path: Path) -> None:
    app = build_app(search.url, runs=Runs(tmp_path))
    path = add_artifact(search, tmp_path / "artifacts", "curves.html", "<p>curves")
    for file in (tmp_path / "artifacts").iterdir():
        file.unlink()
    assert b"its file is gone" in ask(app, path).body
    for other in (path, "/artifacts/1/0", "/artifacts/1/..%2fsearch.db", "/artifacts/1/../search.db"):
        assert ask(app, other).status == 404, other


TOKEN = "d41d8cd98f00b204e9800998ecf8427e"


def test_without_the_token_nothing_is_shown(search: Search) -> None:
    app = build_app(search.url, token=TOKEN)
    cookies = ("", "featherweight-80=", f"featherweight-80={TOKEN[:-1]}", f"other={TOKEN}", f"featherweight-81={TOKEN}")
    for path in routes(app):
        for cookie in cookies:
            answer = ask(app, path, HTTP_COOKIE=cookie)
            assert answer.status == 401, (path, cookie)
            assert b"birds400" not in answer.body
            assert TOKEN.encode() not in answer.body
    for path, query in (
        ("/", f"token={TOKEN[:-1]}"),
        ("/", "token="),
        ("/", "token=%ff"),
        ("/dashboard", f"token={TOKEN}"),
    ):
        assert ask(app, path, QUERY_STRING=query).status == 401, (path, query)
    assert ask(app, "/api/studies/1", "DELETE").status == 401


def test_a_token_becomes_a_cookie_and_leaves_the_address(search: Search) -> None:
    app = build_app(search.url, token=TOKEN)
    answer = ask(app, "/", QUERY_STRING=f"token={TOKEN}")
    assert answer.status == 303
    assert answer.headers["Location"] == "/"
    assert answer.headers["Set-Cookie"] == f"featherweight-80={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    assert TOKEN.encode() not in answer.body
    brought = {"HTTP_COOKIE": f"theme={{odd; featherweight-80={TOKEN}"}
    assert ask(app, "/api/studies", **brought).status == 200
    assert ask(app, "/api/studies/1", "DELETE", **brought).status == 405
    assert ask(app, "/api/studies", HTTP_HOST="evil.example", **brought).status == 403


def test_with_edits_the_pages_of_the_dashboard_write_and_foreign_pages_do_not(search: Search) -> None:
    app = build_app(search.url, edits=True)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9", "https://127.0.0.1:8080"):
        assert ask(app, "/api/studies/1", "DELETE", HTTP_ORIGIN=origin).status == 403, origin
    assert ask(app, "/api/studies/1", "DELETE", HTTP_HOST="evil.example").status == 403
    assert names(app) == ["birds400"]
    assert ask(app, "/api/studies/1", "DELETE", HTTP_ORIGIN="http://127.0.0.1:8080").status == 204
    assert names(app) == []


def test_nothing_can_be_edited_while_a_study_is_searched(search: Search, tmp_path: Path) -> None:
    app = build_app(search.url, runs=Runs(tmp_path), edits=True)
    with own_study("birds400", make_url(search.url), Runs(tmp_path)):
        for path in routes(app):
            answer = ask(app, path, "DELETE")
            assert answer.status == 409, path
            assert b"Study 'birds400' is in use by process " in answer.body
        assert names(app) == ["birds400"], "reading goes on"
    assert ask(app, "/api/studies/1", "DELETE").status == 204


def test_no_lock_file_is_made_for_a_study_whose_name_is_a_path(search: Search, tmp_path: Path) -> None:
    optuna.create_study(study_name="../../escaped/x", storage=search.storage)
    app = build_app(search.url, runs=Runs(tmp_path / "runs"), edits=True)
    assert ask(app, "/api/studies/1", "DELETE").status == 204
    assert not list(tmp_path.rglob("*escaped*"))


def test_edits_do_not_create_a_database(tmp_path: Path) -> None:
    app = build_app(f"sqlite:///{tmp_path / 'search.db'}", edits=True)
    assert ask(app, "/api/studies").status == 503
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("beyond", "name"),
    [({"host": "0.0.0.0"}, "0.0.0.0"), ({"host": "::"}, r"\[::\]"), ({"allow_hosts": ["Box.example"]}, "box.example")],
)
def test_edits_beyond_this_machine_are_refused(beyond: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"--allow-edits is for this machine alone, not for {name}"):
        serve_dashboard("sqlite:///search.db", port=0, edits=True, **beyond)


@pytest.mark.parametrize("name", ["http://box", "box:8080", "*", "", "a b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a host"):
        serve_dashboard("sqlite:///search.db", port=0, allow_hosts=[name])


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
    with pytest.raises(UsageError, match=r"--host 192\.0\.2\.1 is no address of this machine"):
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
        assert ask(mounted(app), "/api/studies/1", "DELETE").status == 500
        with Database(url).open().engine.connect() as connection:
            assert connection.exec_driver_sql("show timezone").scalar() == "UTC"
            with pytest.raises(Exception, match="read-only transaction"):
                connection.exec_driver_sql("delete from studies")
        assert names(app) == ["birds400"]
        storage.engine.dispose()
    stopped = ask(app, "/dashboard")
    assert (stopped.status, b"does not answer" in stopped.body) == (503, True)


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


@pytest.mark.parametrize("farewell", [signal.SIGTERM, signal.SIGINT])
def test_the_server_listens_on_loopback_only_and_ends_when_told(search: Search, farewell: signal.Signals) -> None:
    program = (
        "import sys; from functools import partial; from search.dashboard import serve_dashboard;"
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


def status_of(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
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
            (child,) = (p for p in psutil.Process().children() if "search.dashboard" in p.cmdline())
            assert search.url not in " ".join(child.cmdline())
            assert child.nice() > psutil.Process().nice()
    assert not child.is_running()
    assert (tmp_path / "runs" / "dashboard.log").read_bytes() == b""


def names_at(address: str) -> list[str]:
    with urllib.request.urlopen(f"{address}api/studies", timeout=30) as answer:
        return [study["study_name"] for study in json.load(answer)["study_summaries"]]


def test_a_dashboard_follows_a_search_that_is_killed(search: Search, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from search.dashboard import dashboard_beside;"
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
