"""A study in a database of its own for the dashboard to show, and how a browser asks for it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import optuna
from optuna.storages import RDBStorage

TOKEN = "d41d8cd98f00b204e9800998ecf8427e"


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
