"""Progress of what takes its time: bars in a terminal, lines in a log, and the time left in both; names in lines."""

from __future__ import annotations

from io import StringIO

import pytest

import search.console
from search.console import Terminal, quietly, show_progress, without_controls


class Clock:
    """The time, as the test says it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(search.console.time, "monotonic", lambda: self.now)


def written(clock: Clock, console: Terminal) -> str:
    """What a stage of 100 steps writes, each of which takes two seconds."""
    with show_progress(console) as progress:
        for done in range(101):
            progress("proving, in pictures", done, 100)
            clock.now += 2
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_log_gets_a_line_with_the_time_left_for_each_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = written(Clock(monkeypatch), Terminal(file=StringIO())).splitlines()
    assert lines[0] == "proving, in pictures: 5 of 100, about 3 min left"
    assert lines[1] == "proving, in pictures: 15 of 100, about 3 min left"
    assert lines[-1] == "proving, in pictures: 95 of 100, about 10 s left"
    assert len(lines) == 10


def test_a_stage_of_a_few_seconds_and_a_quiet_one_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, console = Clock(monkeypatch), Terminal(file=StringIO())
    with show_progress(console) as progress:
        for done in range(10):
            progress("writing", done, 10)
            clock.now += 1
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue() == ""
    with quietly():
        assert written(clock, console) == ""


def test_a_terminal_has_bars_with_the_time_left_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = written(Clock(monkeypatch), Terminal(file=StringIO(), force_terminal=True, width=80))
    assert "proving, in pictures" in shown
    assert "100/100" in shown
    assert "left" not in shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\U0001f469\u200d\U0001f52c", "\U0001f469\u200d\U0001f52c"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("ca\u200dt", "ca\\u200dt"),
        ("\u732b\u200d", "\u732b\\u200d"),
        ("\u202ecat\x1b[2J", "\\u202ecat\\x1b[2J"),
    ],
    ids=["emoji", "Persian", "Latin", "at the end", "a direction and an escape"],
)
def test_joiners_of_emojis_and_persian_words_are_shown_and_other_unseen_characters_are_spelled(
    name: str, shown: str
) -> None:
    assert without_controls(f"class {name}") == f"class {shown}"
