"""Messages through apprise, to a real server; its addresses are secrets that nobody is shown."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from inside import run_inside
from moments import moment
from needed import required
from tiny import tiny_study

from search.study.progress import Snapshot
from search.study.trial import TrialView
from search.watch.services import open_services

SECRET = "d41d8cd98f00b204"


class Answers(BaseHTTPRequestHandler):
    code = 200
    told: list[bytes] = []  # noqa: RUF012  # of the class, emptied by each test

    def do_POST(self) -> None:
        self.told.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    required("apprise")
    Answers.code, Answers.told[:] = 200, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"json://127.0.0.1:{server.server_port}/{SECRET}"
        server.shutdown()


def snapshot(*values: float) -> Snapshot:
    finished = (TrialView(number, "COMPLETE", value, 3, {}, 9, 9, 3.0, "") for number, value in enumerate(values))
    return moment("birds", 6, tuple(finished), (), 60.0)


def test_a_service_is_told_of_the_end(url: str) -> None:
    notes: list[str] = []
    (service,) = open_services((url,), lambda line, *_: notes.append(line))
    service.end(snapshot(0.5), None, 20)
    (told,) = Answers.told
    assert b"featherweight: birds" in told
    assert b"finished, best 50.00% (trial 0)" in told
    assert notes == []


def test_one_that_refuses_is_named_by_its_service_alone(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    Answers.code = 500
    notes: list[str] = []
    with caplog.at_level(logging.DEBUG):
        (service,) = open_services((url,), lambda line, *_: notes.append(line))
        service.end(snapshot(0.5), None, 20)
    why = "(apprise could not deliver the message)"
    assert notes == [f"notify.urls: json did not accept a message {why}; the search goes on"]
    assert SECRET not in "".join(record.getMessage() for record in caplog.records)
    assert SECRET not in "".join(capfd.readouterr())


def launch(folder: Path, end: str) -> tuple[int, str]:
    """Launch a study that would not go far; its exit code and what it said."""
    (folder / "tiny.toml").write_text(tiny_study("tiny", trials=1) + end)
    code, out, err = run_inside(folder, "launch", "tiny.toml", "--gpus", "cpu")
    return code, out + err


def test_an_address_that_apprise_does_not_know_is_refused_by_its_place(tmp_path: Path) -> None:
    required("apprise")
    code, said = launch(tmp_path, f'[notify]\nurls = ["json://localhost", "nothing://{SECRET}"]\n')
    assert (code, SECRET in said) == (2, False)
    assert "notify.urls.1 is not an address that apprise understands; its form is SERVICE://..." in said
    assert not (tmp_path / "runs" / "studies").exists(), "nothing has begun"


@pytest.mark.parametrize(
    "value", [f'"json://{SECRET}"', f'["{SECRET}"]', f'[["json://{SECRET}"]]', f'{{ a = "json://{SECRET}" }}']
)
def test_an_address_of_another_form_is_refused_without_being_shown(tmp_path: Path, value: str) -> None:
    code, said = launch(tmp_path, f"[notify]\nurls = {value}\n")
    assert (code, SECRET in said) == (2, False)
    assert 'notify.urls: is not a list of addresses; write ["SERVICE://...", ...]' in said


@pytest.mark.parametrize(
    ("package", "table", "sentence"),
    [
        (
            "apprise",
            '[notify]\nurls = ["json://localhost"]\n',
            "notify.urls needs the package apprise: pip install 'featherweight[notify]' first",
        ),
        (
            "tensorboard",
            "[track]\ntensorboard = true\n",
            "track.tensorboard = true needs the package tensorboard: pip install 'featherweight[tensorboard]' first",
        ),
    ],
)
@pytest.mark.parametrize("command", ["launch", "check"])
def test_a_missing_extra_is_said_before_anything_begins(
    command: str, package: str, table: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    (tmp_path / "tiny.toml").write_text(tiny_study("tiny", trials=1) + table)
    code, _, err = run_inside(tmp_path, command, "tiny.toml", "--gpus", "cpu")
    assert (code, err) == (2, f"search: {sentence}\n")
    assert not (tmp_path / "runs" / "studies").exists()
