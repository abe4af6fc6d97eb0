"""The load of a machine during a measurement is that of other processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from exports import recorded

import search.export.machine_load
from search.export.card import card
from search.export.machine_load import Load, with_load
from search.export.record import ExportRecord

BUSY = "import time; end = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


def test_the_work_of_others_counts_and_our_own_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own figures are others' too, so here the file that a system gives says what was worked."""
    monkeypatch.setattr(search.export.machine_load, "_STAT", stat := tmp_path / "stat")
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    clock = iter([10.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    own = iter([1.0, 6.0])
    monkeypatch.setattr(time, "process_time", lambda: next(own))
    stat.write_text("cpu  1000 100 200 5000 70 10 20 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n")
    after = "cpu  1700 200 300 5100 90 10 20 0 0 0\n"  # 9 s of work in 10 s of 4 cores, 5 of them ours
    _, load = with_load(lambda: stat.write_text(after))
    assert load.others == 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_systems_own_figures_are_read() -> None:
    _, load = with_load(lambda: subprocess.run([sys.executable, "-c", BUSY.format(seconds=0.3)], check=True))
    assert load.others is not None
    assert load.others > 0.05, "of two cores or so, another process took one"


def test_a_system_that_does_not_tell_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.export.machine_load, "_STAT", tmp_path / "none")
    _, load = with_load(lambda: None)
    assert load.others is None


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (None, "It was not measured whether the machine was quiet."),
        (Load(1.2, 0.9, None), "The system does not report what other processes took; the load average for each core"),
        (Load(1.2, 0.9, 0.1), "The machine was quiet: other processes took 10% of the cores meanwhile (10% at most"),
        (Load(0.2, 0.3, 0.25), "**The machine was not quiet**: other processes took 25% of the cores meanwhile"),
    ],
)
def test_the_card_says_whether_the_machine_was_quiet(load: Load | None, words: str) -> None:
    record = ExportRecord.model_validate(recorded())
    measured = record.measured_on_this_machine.model_copy(update={"load": load})
    found = card(record.model_copy(update={"measured_on_this_machine": measured}))
    assert words in found
    if load is not None:
        assert f"{load.before:.2f} before and {load.after:.2f} after" in found
