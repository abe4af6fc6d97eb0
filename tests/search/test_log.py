"""What is logged, and where it goes: nowhere by itself; to a file that ends no search; with --verbose to stderr."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import search.process
from search.console import Terminal, quietly
from search.errors import StorageError
from search.process import PACKAGES, log_to, versions
from search.watch.live import Display

logger = logging.getLogger("search.running")


def forget(line: str, level: int = logging.INFO) -> None:
    """Nobody hears it."""


def test_importing_the_packages_configures_no_logging_of_anybody() -> None:
    look = (
        "import logging, sys\n"
        "import search.cli, search.console, search.watch.observers, studies, trainer.config, trainer.cache\n"
        "root = logging.getLogger()\n"
        "assert (root.level, root.handlers) == (logging.WARNING, []), root.handlers\n"
        "assert logging.raiseExceptions and logging.lastResort.level == logging.WARNING\n"
        f"for name in {PACKAGES}:\n"
        "    logger = logging.getLogger(name)\n"
        "    assert [type(handler) for handler in logger.handlers] == [logging.NullHandler], name\n"
        "    assert (logger.level, logger.propagate, logger.disabled) == (logging.NOTSET, True, False), name\n"
        "    logger.error('nobody has asked')"
    )
    answer = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_every_line_is_appended_with_time_and_level_and_the_end_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The odd byte must not get into pytest's own record of the log, which its workers could not send.
    monkeypatch.setattr(logging.getLogger("trainer"), "propagate", False)
    file = tmp_path / "logs/coordinator.log"
    with log_to(file, forget):
        logger.debug("asked for trial %d", 7)
        logging.getLogger("trainer.fit").warning("odd: \udcff")
        logging.getLogger("optuna.storages").error("another's")
    with pytest.raises(StorageError), log_to(file, forget):
        raise StorageError("the disk of the database is full")
    with pytest.raises(RuntimeError), log_to(file, forget):
        raise RuntimeError("postgresql://bob:secret@host")
    lines = [line.split(" ", 2) for line in file.read_text().splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", f"{day} {time}") for day, time, _ in lines)
    process = f"process {os.getpid()}"
    begins = f"INFO    {process}: {versions()}"
    assert [words for _, _, words in lines] == [
        begins,
        "DEBUG   asked for trial 7",
        "WARNING odd: \\udcff",
        f"INFO    {process} ends",
        begins,
        f"ERROR   {process} ends: the disk of the database is full",
        begins,
        f"ERROR   {process} ends: RuntimeError",
    ]


def test_afterwards_everything_is_as_before(tmp_path: Path) -> None:
    before = {name: (list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in PACKAGES}
    with log_to(tmp_path / "log", forget):
        assert logging.getLogger("trainer").level == logging.DEBUG
    assert before == {name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in PACKAGES}


def test_a_log_that_is_full_goes_on_in_a_new_file_and_the_one_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.process, "LOG_BYTES", 2000)
    file = tmp_path / "log"
    with log_to(file, forget):
        for number in range(100):
            logger.info("line %d", number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    assert "line 99" in file.read_text()


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null/log"])
def test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file, said = tmp_path / "log", list[tuple[str, int]]()
    file.symlink_to(place)

    def say(line: str, level: int = logging.INFO) -> None:
        said.append((line, level))
        logger.log(level, line)  # as who says it does

    with log_to(file, say):
        for number in range(3):
            logger.info("line %d", number)
        (tmp_path / "other").touch()
        file.unlink()
        (tmp_path / "other").rename(file)
        logger.info("there is room again")
    why = "No space left on device" if place == "/dev/full" else "Not a directory"
    assert said == [(f"the log {file} cannot be written ({why}); going on without it", logging.WARNING)]
    assert "INFO    there is room again" in file.read_text()
    assert capfd.readouterr() == ("", ""), "logging's own complaint is a traceback"


def test_a_line_that_we_wrote_wrongly_is_not_taken_for_a_disk_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("search"), "propagate", False)  # pytest's own handler raises
    with log_to(tmp_path / "log", forget):
        logger.debug("trial %d", "seven")
    assert "TypeError" in capfd.readouterr().err


def test_what_is_shown_is_logged_and_quiet_shows_warnings_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_to(tmp_path / "log", forget), Display() as display, Display(quiet=True) as quiet:
        for show in (display.say, quiet.say, Terminal(quiet=True).say):
            show("trial 1 complete")
            show("gpu 0 [x] is put aside", logging.WARNING)
        with quietly():
            Terminal().say("exporting trial 1")
    shown = capsys.readouterr()
    assert shown.out == "trial 1 complete\ngpu 0 [x] is put aside\n"
    assert shown.err == 2 * "gpu 0 [x] is put aside\n"
    text = (tmp_path / "log").read_text()
    assert text.count("INFO    trial 1 complete") == text.count("WARNING gpu 0 [x] is put aside") == 3
    assert "INFO    exporting trial 1" in text
