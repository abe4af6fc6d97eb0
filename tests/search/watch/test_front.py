"""What is shown of any database, to whom, and that nothing can be changed: requests without a server."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import StorageInternalError
from shown import TOKEN, Search, add_trial, ask, begin_search, names
from sqlalchemy.engine import URL, make_url

from search.paths import Runs
from search.study.lock import own_study
from search.study.readonly import Database
from search.watch.front import DashboardGate, build_app

# -- what is shown


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
    assert b"its file is missing" in ask(app, path).body
    for other in (path, "/artifacts/1/0", "/artifacts/1/..%2fsearch.db", "/artifacts/1/../search.db"):
        assert ask(app, other).status == 404, other


# -- what can be changed


def test_every_route_refuses_every_writing_method(search: Search) -> None:
    app = build_app(search.url)
    for path in routes(app):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get", "BREW"):
            answer = ask(app, path, method)
            assert answer.status == 405, (method, path)
            assert answer.headers["Allow"] == "GET, HEAD"
    assert names(app) == ["birds400"]
    assert "read-only" in json.loads(ask(app, "/api/studies/1", "DELETE").body)["reason"]


def routes(app: DashboardGate) -> list[str]:
    """A path for each route of optuna-dashboard."""
    rules = [(route.method, route.rule) for route in mounted(app).routes]
    assert {method for method, _ in rules} >= {"GET", "POST", "PUT", "DELETE"}, "the routes were not found"
    return sorted({re.sub(r"<[^>]*>", "x", re.sub(r"<[^>]*:int>", "1", rule)) for _, rule in rules})


def mounted(app: DashboardGate) -> Any:
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


# -- to whom


FOREIGN_HOSTS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost..:80",
    ".localhost",
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
    for host in ("127.0.0.1", "localhost", "LocalHost:9", "localhost.", "Localhost.:80", "[::1]", "[::1]:8080"):
        assert ask(app, "/api/studies", HTTP_HOST=host).status == 200, host


def test_another_name_can_be_allowed(search: Search) -> None:
    app = build_app(search.url, allowed_hosts={"box"})
    assert ask(app, "/api/studies", HTTP_HOST="box:80").status == 200
    dotted = build_app(search.url, allowed_hosts={"box.lan."})
    assert [ask(dotted, "/api/studies", HTTP_HOST=host).status for host in ("box.lan", "box.lan.")] == [200, 200]
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


# -- behind a proxy

PROXY_HEADERS = {
    "HTTP_X_FORWARDED_FOR": "127.0.0.1",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "localhost",
    "HTTP_X_FORWARDED_ANYTHING": "1",
    "HTTP_X_REAL_IP": "::1",
    "HTTP_FORWARDED": "for=127.0.0.1",
    "HTTP_VIA": "1.1 localhost",
}
ORIGIN = "https://box.example.org"


@pytest.mark.parametrize("header", PROXY_HEADERS)
def test_through_a_proxy_nobody_counts_as_this_machine(search: Search, header: str) -> None:
    behind = {header: PROXY_HEADERS[header], "REMOTE_ADDR": "127.0.0.1"}
    open_to_all = build_app(search.url)
    refused = ask(open_to_all, "/api/studies", **behind)
    assert (refused.status, b"--url https://HOST" in refused.body) == (401, True)
    assert ask(open_to_all, "/api/studies").status == 200
    assert ask(build_app(search.url, edits=True), "/api/studies/1", "DELETE", **behind).status == 401
    guarded = build_app(search.url, token=TOKEN, edits=True)
    assert ask(guarded, "/api/studies/1", "DELETE", **behind).status == 401
    brought = {"HTTP_COOKIE": f"featherweight-80={TOKEN}"}
    assert ask(guarded, "/api/studies", **brought, **behind).status == 200
    refused = ask(guarded, "/api/studies/1", "DELETE", **brought, **behind)
    assert (refused.status, b"through a proxy only if it was started with --url" in refused.body) == (403, True)
    assert ask(guarded, "/api/studies/1", "DELETE", **brought).status == 204


def test_what_a_proxy_or_its_client_says_changes_no_address(search: Search) -> None:
    app = build_app(search.url, token=TOKEN)
    forged = {"HTTP_X_FORWARDED_HOST": "evil.example", "HTTP_X_FORWARDED_PROTO": "gopher"}
    answer = ask(app, "/", HTTP_COOKIE=f"featherweight-80={TOKEN}", **forged)
    assert answer.headers["Location"] == "http://127.0.0.1:8080/dashboard"


def test_behind_a_proxy_with_tls_the_cookie_and_every_address_are_secure(search: Search) -> None:
    app = build_app(search.url, token=TOKEN, allowed_hosts={"box.example.org"}, origin=ORIGIN)
    here = {"HTTP_HOST": "box.example.org", "HTTP_X_FORWARDED_PROTO": "https"}
    cookie = ask(app, "/", QUERY_STRING=f"token={TOKEN}", **here).headers["Set-Cookie"]
    assert cookie == f"featherweight-80={TOKEN}; Path=/; HttpOnly; SameSite=Strict; Secure"
    brought = here | {"HTTP_COOKIE": f"featherweight-80={TOKEN}"}
    assert ask(app, "/", **brought).headers["Location"] == f"{ORIGIN}/dashboard"


def test_behind_a_proxy_with_tls_changes_come_from_its_pages_only(search: Search) -> None:
    app = build_app(search.url, token=TOKEN, allowed_hosts={"box.example.org"}, origin=ORIGIN, edits=True)
    brought = {"HTTP_HOST": "box.example.org", "HTTP_COOKIE": f"featherweight-80={TOKEN}", "HTTP_VIA": "1.1 box"}
    for origin in ("http://box.example.org", f"{ORIGIN}:8443", f"{ORIGIN}.evil.example", "http://127.0.0.1", "null"):
        assert ask(app, "/api/studies/1", "DELETE", HTTP_ORIGIN=origin, **brought).status == 403, origin
    assert ask(app, "/api/studies/1", "DELETE", HTTP_ORIGIN="https://Box.example.org", **brought).status == 204
