"""The gate between browsers and optuna-dashboard, as one WSGI application.

optuna-dashboard 0.21 has no login, no read-only mode and no check of the Host header: a DELETE request from a foreign
page removes a study. So this gate checks every request first. It lets only GET and HEAD pass, unless edits are
allowed. As a second protection, the dashboard's database connection then cannot write.
"""

from __future__ import annotations

import hmac
import html
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import StorageInternalError
from optuna_dashboard import wsgi
from sqlalchemy.exc import SQLAlchemyError

from search.errors import StorageError
from search.paths import Runs
from search.study.lock import owner_of
from search.study.readonly import Database, NotReadyError
from studies.spec import STUDY_NAME

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

PROXY_HEADERS = ("HTTP_X_FORWARDED", "HTTP_X_REAL_IP", "HTTP_FORWARDED", "HTTP_VIA")
"""Prefixes of the headers that only a proxy adds, in WSGI's spelling."""

RETRY_SECONDS = 3  # time between two requests of the waiting page

SLOW_SECONDS = 0.5
"""A failure of the database that takes longer than this is not waited for by each request."""

# SAMEORIGIN and not DENY, because the dashboard shows its own artifact pages in frames.
SECURITY_HEADERS = (
    ("X-Frame-Options", "SAMEORIGIN"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)

# An artifact may be a page with scripts; in a sandbox they run without this site's cookie and cannot read the API.
ARTIFACT_HEADERS = (("Content-Security-Policy", "sandbox allow-scripts"),)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{meta}<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{sentence}</p>
<p>{advice}</p>
</body>
</html>
"""

# The cookie is SameSite=Strict: after a click in a chat or a mail, the browser withholds it until the next click here.
TOKEN_ADVICE = """Open the address that <code>search dashboard</code> printed when it started, with its
<code>?token=</code>. If you have just done so from a link on another page, <a href="/">go on</a>."""

WAITING_ADVICE = f"""Start a search with <code>search launch</code>. This page asks again
every {RETRY_SECONDS} seconds."""


def build_app(
    storage_url: str,
    *,
    runs: Runs | None = None,
    allowed_hosts: Collection[str] = LOOPBACK_HOSTS,
    token: str | None = None,
    edits: bool = False,
    origin: str | None = None,
) -> DashboardGate:
    """The gate with the dashboard behind it, as one WSGI application. The first request opens the database.

    Args:
        storage_url: the database.
        runs: the runs folder, with the artifacts of the studies and the names of the processes that search them.
        allowed_hosts: host names in lower case, without port, an IPv6 address in brackets.
        token: the token that browsers need. None: all requests pass, except those through a proxy.
        edits: whether browsers may also change studies, while no study is searched.
        origin: the dashboard's address behind a proxy with TLS, for example "https://box.example.org".

    Raises:
        StorageError: not a storage URL, or its driver is not installed.
    """
    database = Database(storage_url, writable=edits, hurried=True)
    return DashboardGate(database, allowed_hosts, runs=runs, token=token, origin=origin)


class _Hanging(NotReadyError):
    """The database has just made a request wait in vain."""


class DashboardGate:
    """The WSGI application between browsers and the mounted dashboard.

    It checks a request in this order: the Host is known; the token is right; the method only reads, or edits are
    allowed and the Origin is the dashboard's own; if the request writes, no study is in use; the database exists.
    """

    def __init__(
        self,
        database: Database,
        allowed_hosts: Collection[str],
        *,
        runs: Runs | None,
        token: str | None,
        origin: str | None,
    ) -> None:
        self._database = database
        self._allowed_hosts = allowed_hosts
        self._runs = runs
        self._artifacts = runs and FileSystemArtifactStore(runs.artifacts)
        self._token = token
        self._origin = origin
        self._lock = threading.Lock()
        self._hangs = (0.0, "")
        """The time until which requests to the database get the sentence at once."""
        self._mounted: WSGIApplication | None = None
        self._mounted_for: tuple[int, int] | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "")

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            # The dashboard allows pages of any origin to read artifacts (`Access-Control-Allow-Origin: *`).
            kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
            added = SECURITY_HEADERS + (ARTIFACT_HEADERS if path.startswith("/artifacts/") else ())
            return start_response(status, [*kept, *added], exc_info)

        # A foreign page whose name resolves to 127.0.0.1 (DNS rebinding) still sends its own name as Host.
        host = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]*)?", environ.get("HTTP_HOST", "").lower())
        allowed = {name.removesuffix(".") for name in self._allowed_hosts}
        if host is None or host[1].removesuffix(".") not in allowed:
            names = ", ".join(sorted(self._allowed_hosts))
            sentence = (
                f"This dashboard answers only under these names: {names}; --allow-host adds one, --url that of a proxy."
            )
            return _answer(environ, start, "403 Forbidden", sentence)
        # Requests through a proxy on this machine look like requests from this machine.
        proxied = [name for name in environ if name.startswith(PROXY_HEADERS)]
        if self._token is None and proxied:
            sentence = (
                "This dashboard was started without a token, so it does not answer requests through a proxy; "
                "start it with search dashboard --url https://HOST."
            )
            return _answer(environ, start, "401 Unauthorized", sentence)
        if self._token is not None:
            given = parse_qs(environ.get("QUERY_STRING", "")).get("token", [])
            if path == "/" and any(self._is_token(value) for value in given):
                secure = "; Secure" if self._origin else ""
                cookie = f"{_cookie(environ['SERVER_PORT'])}={self._token}; Path=/; HttpOnly; SameSite=Strict{secure}"
                return _answer(environ, start, "303 See Other", "", ("Location", "/"), ("Set-Cookie", cookie))
            if not self.has_cookie(environ.get("HTTP_COOKIE", ""), environ["SERVER_PORT"]):
                sentence = "This dashboard answers only requests with its token."
                return _answer(environ, start, "401 Unauthorized", sentence)
        origin = self._origin or f"http://{host[0]}"
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            if not self._database.writable:
                sentence = "This dashboard is read-only: it shows studies and changes nothing."
                return _answer(environ, start, "405 Method Not Allowed", sentence, ("Allow", "GET, HEAD"))
            if proxied and self._origin is None:
                sentence = (
                    "This dashboard accepts changes through a proxy only if it was started with --url https://HOST."
                )
                return _answer(environ, start, "403 Forbidden", sentence)
            # A foreign page can send requests, although it cannot read the answers. Programs send no Origin.
            if environ.get("HTTP_ORIGIN", origin).lower() != origin:
                sentence = "This dashboard accepts changes only from its own pages."
                return _answer(environ, start, "403 Forbidden", sentence)
        for name in proxied:  # removed, because the client may have sent them, and optuna-dashboard trusts them
            del environ[name]
        environ["wsgi.url_scheme"], _, environ["HTTP_HOST"] = origin.partition("://")
        # optuna-dashboard reads this header without a default and answers 500 to a client that sends none.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")
        begun = time.monotonic()
        try:
            if path.startswith("/api/"):
                self._raise_if_it_hangs()
            if environ["REQUEST_METHOD"] not in ("GET", "HEAD") and (owned := self._owned()) is not None:
                sentence = f"{owned}, its only writer; change studies when it has stopped (search stop)."
                return _answer(environ, start, "409 Conflict", sentence)
            return self._show(environ, start)
        except ArtifactNotFound:
            return _answer(environ, start, "404 Not Found", "The study has this artifact, but its file is missing.")
        except _Hanging as error:
            sentence = str(error)
        except NotReadyError as error:
            self._mounted = None  # a new database often has the old one's inode, and would count as the same file
            sentence = str(error)
        except (SQLAlchemyError, StorageInternalError, StorageError) as error:
            sentence = str(self._database.unreadable(error))
        self._note_wait(begun, sentence)
        retry = ("Retry-After", str(RETRY_SECONDS))
        return _answer(environ, start, "503 Service Unavailable", sentence, retry)

    def _show(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """optuna-dashboard's answer. If it made a 500 of a failure of the database, raise that instead."""
        answers: list[Any] = []

        def wait(*answer: Any) -> Callable[[bytes], object]:
            answers[:] = answer
            return lambda _: None

        mounted = self.mounted()
        self._database.failure()  # of an earlier request
        chunks = mounted(environ, wait)
        failure = self._database.failure()
        if failure is not None and answers[0].startswith("500"):
            raise failure
        start(*answers)
        return chunks

    def hears(self, _record: logging.LogRecord) -> bool:
        """Whether a log record of this thread is shown: not one about the database, whose failure is the answer."""
        return not self._database.has_failed()

    def _note_wait(self, begun: float, sentence: str) -> None:
        """If a request failed only after a wait, let those of the next seconds fail at once: waiting requests occupy
        the threads, and others are not answered then."""
        if time.monotonic() - begun > SLOW_SECONDS:
            self._hangs = (time.monotonic() + RETRY_SECONDS, sentence)

    def _raise_if_it_hangs(self) -> None:
        until, sentence = self._hangs
        if time.monotonic() < until:
            raise _Hanging(sentence)

    def _owned(self) -> str | None:
        """The beginning of a sentence about a study that a process uses; None if there is no such study."""
        if self._runs is None:
            return None
        for name in optuna.get_all_study_names(self._database.open()):
            if not STUDY_NAME.fullmatch(name):  # a study of another program; its name could be a path
                continue
            owner = owner_of(name, self._database.asked, self._runs)
            if owner is not None:
                return f"Study {name!r} is in use by {owner}"
        return None

    def has_cookie(self, cookies: str, port: str) -> bool:
        """Whether a Cookie header has the token of the dashboard on this port; False if the dashboard has no token."""
        pairs = (pair.strip().partition("=") for pair in cookies.split(";"))
        return self._token is not None and any(
            name == _cookie(port) and self._is_token(value) for name, _, value in pairs
        )

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given.encode(errors="replace"), self._token.encode())

    def mounted(self) -> WSGIApplication:
        """optuna-dashboard itself, without the gate. Raises NotReadyError until the database exists.

        The application is built again if the database file was replaced, because the dashboard caches trials by study
        id, and SQLite counts ids from 1 in every file.
        """
        with self._lock:
            identity = self._database.identity()
            if self._mounted is None or identity != self._mounted_for:
                self._raise_if_it_hangs()
                begun = time.monotonic()
                try:
                    opened = self._database.open()
                except NotReadyError as error:
                    self._note_wait(begun, str(error))  # before the next request leaves the queue for this lock
                    raise
                dashboard = wsgi(opened, artifact_store=self._artifacts)
                # Errors outside its JSON views are raised to this gate, and do not become a page with a traceback.
                dashboard.catchall = False
                self._mounted, self._mounted_for = dashboard, identity
            return self._mounted


def _cookie(port: str) -> str:
    return f"featherweight-{port}"  # browsers share cookies among a host's ports


def _answer(
    environ: WSGIEnvironment, start: StartResponse, status: str, sentence: str, *headers: tuple[str, str]
) -> list[bytes]:
    """An answer of the gate itself. For the API, it has the form of the dashboard's errors, which its page shows."""
    if environ.get("PATH_INFO", "").startswith("/api/"):
        kind, text = "application/json", json.dumps({"reason": sentence})
    elif status.startswith(("401", "503")):
        waits = status.startswith("503")
        kind = "text/html"
        text = PAGE.format(
            meta=f'<meta http-equiv="refresh" content="{RETRY_SECONDS}">\n' if waits else "",
            title="Waiting for a search" if waits else "A token is needed",
            sentence=html.escape(sentence),
            advice=WAITING_ADVICE if waits else TOKEN_ADVICE,
        )
    else:
        kind, text = "text/plain", sentence + "\n"
    body = text.encode()
    start(
        status,
        [
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            *headers,
        ],
    )
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
