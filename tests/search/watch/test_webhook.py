"""Who asked for it is told of a new best and of the end, by a real server; one that does not answer disturbs nobody."""

from __future__ import annotations

import html
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, get_args

import pytest
from choices import UNKNOWN
from moments import moment

from search.console import Say
from search.study.progress import Snapshot
from search.study.trial import TrialView
from search.watch import messenger, webhook
from search.watch.messenger import Message, Messenger
from search.watch.webhook import body_of, open_webhook
from studies.notify import Notify, WebhookFormat

SECRET = "d41d8cd98f00b204"


class Listener(ThreadingHTTPServer):
    """Keeps what is posted; answers with ``code``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.told: list[dict[str, Any]] = []
        self.code = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/{SECRET}"


class Answers(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:  # as the standard library calls it
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        assert self.path == f"/hooks/{SECRET}"
        self.server.told.append(json.loads(body))
        self.send_response(self.server.code)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hooks/{SECRET}"


def to(address: str, say: Say, form: WebhookFormat = "json") -> Messenger:
    return open_webhook(Notify(webhook=address, format=form), say)


def trial(number: int, value: float) -> TrialView:
    return TrialView(number, "COMPLETE", value, 3, {"lr": 0.01}, 200_000, 9_000_000, 30.0, "")


def snapshot(*values: float) -> Snapshot:
    return moment("birds", 6, tuple(trial(number, value) for number, value in enumerate(values)), (), 60.0)


def test_paused_candidates_are_told_as_such(listener: Listener) -> None:
    before = snapshot(0.5)
    hook = to(listener.url, lambda *_: None)
    hook.end(replace(before, spent=replace(before.spent, begun=4, paused=3)), "told to", 20)
    assert listener.told[0]["text"].startswith("birds: 1 of 6 trials finished, 1 complete, 3 paused, about")
    assert listener.told[0]["spent"]["paused"] == 3


def wait_for(listener: Listener, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(listener.told) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_new_best_and_the_end_are_told_and_nothing_else(listener: Listener) -> None:
    notes: list[str] = []
    hook = to(listener.url, lambda line, *_: notes.append(line))
    hook.watch(snapshot())
    hook.watch(snapshot(0.5))
    wait_for(listener, 1)
    hook.watch(snapshot(0.5))
    hook.watch(snapshot(0.5, 0.4))
    hook.watch(snapshot(0.5, 0.4, 0.6))
    wait_for(listener, 2)
    hook.end(snapshot(0.5, 0.4, 0.6), None, 20)
    assert [told["event"] for told in listener.told] == ["new_best", "new_best", "finished"]
    assert listener.told[1]["text"] == "birds: new best, trial 2, 60.00%"
    assert listener.told[1]["best"]["params"] == {"lr": 0.01}
    assert listener.told[2].keys() == {
        *("version", "event", "study", "at", "text", "budget", "spent", "eta_seconds", "objective", "best")
    }
    end = listener.told[2]
    assert (end["version"], end["spent"]["finished"], end["budget"]["trials"]) == (2, 3, 6)
    assert notes == []


def test_the_best_of_an_earlier_launch_is_not_new(listener: Listener) -> None:
    hook = to(listener.url, print)
    hook.watch(snapshot(0.5))
    hook.watch(snapshot(0.5, 0.4))
    hook.end(snapshot(0.5, 0.4), "no room on disk", 20)
    (told,) = listener.told
    assert told["event"] == "stopped"
    assert told["text"].endswith("stopped, best 50.00% (trial 0): no room on disk")


def test_a_server_that_hangs_delays_neither_the_search_nor_for_long_its_end(
    hanging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 1.5)
    monkeypatch.setattr(messenger, "END_SECONDS", 1.7)
    notes: list[str] = []
    hook = to(hanging, lambda line, *_: notes.append(line))
    began = time.monotonic()
    for number in range(200):
        hook.watch(snapshot(*(value / 1000 for value in range(number))))
    assert time.monotonic() - began < 60, "the search waits for nothing; 200 answers would take 300 s"
    hook.end(snapshot(0.5), None, 20)
    assert time.monotonic() - began < 60
    assert notes == [
        "webhook: 127.0.0.1 did not accept a message (no answer within 1.5 s); the search goes on",
        "webhook: 127.0.0.1 did not accept the last message within 1.7 s",
    ]


@pytest.mark.parametrize(("code", "why"), [(404, "it answers 404"), (302, "it answers 302"), (None, "refused")])
def test_a_server_that_refuses_is_named_once_without_its_secret(listener: Listener, code: int | None, why: str) -> None:
    address = listener.url
    if code is None:
        listener.shutdown()
        listener.server_close()
    else:
        listener.code = code
    notes: list[str] = []
    hook = to(address, lambda line, *_: notes.append(line))
    hook.watch(snapshot())
    hook.watch(snapshot(0.5))
    hook.end(replace(snapshot(0.5), stopping=True), "", 20)
    (note,) = notes
    assert note.startswith("webhook: 127.0.0.1 did not accept a message (")
    assert why in note
    assert SECRET not in note


# Chats


def text_of(form: WebhookFormat, body: Any) -> str:
    """The text that a chat shows, where its documentation has it; everything else is checked too."""
    match form:
        case "slack":
            assert body == {"text": body["text"], "mrkdwn": False}
            return html.unescape(body["text"])
        case "discord":
            assert body == {"content": body["content"], "allowed_mentions": {"parse": []}}
            return str(body["content"])
        case "teams":
            (attachment,) = body["attachments"]
            assert body == {"type": "message", "attachments": [attachment]}
            assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
            card = attachment["content"]
            assert (card["type"], card["version"]) == ("AdaptiveCard", "1.2")
            (block,) = card["body"]
            assert block == {"type": "TextBlock", "text": block["text"], "wrap": True}
            return str(block["text"])
        case _:
            return str(body["text"])


@pytest.mark.parametrize("form", get_args(WebhookFormat))
def test_each_chat_gets_the_sentence_in_its_own_shape(form: WebhookFormat, listener: Listener) -> None:
    hook = to(listener.url, lambda *_: None, form)
    hook.watch(snapshot())
    hook.watch(snapshot(0.5))
    wait_for(listener, 1)
    hook.end(snapshot(0.5), "no room & <!channel> @everyone", 20)
    first, last = (text_of(form, told) for told in listener.told)
    assert first == "birds: new best, trial 0, 50.00%"
    assert last.endswith("no room & <!channel> @everyone")
    assert "<!" not in listener.told[1].get("text", "") or form == "json", "Slack would tell the whole channel"


def test_a_text_too_long_for_discord_is_cut() -> None:
    message: Message = {"text": "x" * 3000}
    assert len(str(body_of(message, "discord")["content"])) == 2000


def test_a_shape_without_code_is_an_error() -> None:
    with pytest.raises(AssertionError, match=UNKNOWN):
        body_of({"text": "x"}, UNKNOWN)
