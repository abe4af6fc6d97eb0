"""A launch that goes on to the export, killed in the search and in the confirmation; the same command goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from desk import Desk
from tiny import tiny_study

from search.paths import Runs
from search.study.lock import owner_of
from search.study.storage import parse_url

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_same_command_goes_on_from_a_kill_in_each_stage_to_one_proven_export(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    launch = (
        "launch",
        desk.write("tiny.toml", tiny_study("tiny", trials=2, epochs=2)),
        "--export",
        "--gpus",
        "cpu",
        "--json",
    )
    searching = desk.start(*launch)
    searching.until(desk.checkpoint("tiny", 0).exists)
    searching.send(signal.SIGKILL)
    searching.wait()
    finals = desk.runs / "studies" / "tiny" / "final"
    confirming = desk.start(*launch)
    confirming.until(lambda: any(finals.rglob("checkpoint*")))
    assert owner_of("tiny", parse_url(f"sqlite:///{desk.runs}/search.db"), Runs(desk.runs)), "it still owns the study"
    confirming.send(signal.SIGKILL)
    confirming.wait()
    stopped = desk.start(*launch)
    stopped.until(lambda: any((desk.runs / "exports").glob(".*")))
    stopped.send(signal.SIGINT)
    assert stopped.wait().code == 75
    last = desk.search(*launch)
    assert last.code == 0, last.err
    assert last.json()["exported"]["confirmation"]["winner"] == last.json()["exported"]["trial"]
    assert last.json()["exported"].get("unconfirmed") is None
    assert last.json()["confirmation"]["done"] == last.json()["confirmation"]["trainings"]
    again = desk.search(*launch)
    assert again.json()["exported"] == last.json()["exported"]
    assert "was exported before, and nothing has changed" in again.err
    over = desk.search(*launch, "--hours", "0.001")
    assert "plan: the 0.001 hours from the first launch" in over.err
    assert over.json()["exported"]["identity"] == last.json()["exported"]["identity"], "it was confirmed in time"
    assert desk.search("replay", "tiny").code == 0
