"""What every command takes: --version, -v and -q, and what a shell completes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import typer.main
from inside import run_inside
from scripted import Bench, ScriptedPool, trains

import search.devices
import studies
from search.cli import app
from search.devices import Gpu
from search.errors import UsageError
from search.options import _devices
from search.running.stop import Stopped

SEARCH = Path(sys.executable).with_name("search")

HEAVY = ("torch", "optuna", "sqlalchemy", "timm", "numpy", "sklearn")


def ask(*command: str | Path, **environment: str) -> tuple[int, str, str]:
    words = [str(word) for word in command]
    answer = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | environment)
    return answer.returncode, answer.stdout, answer.stderr


def test_the_version_is_that_of_the_program_and_of_what_decides_its_results() -> None:
    code, out, err = ask(SEARCH, "--version")
    assert (code, err) == (0, "")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "optuna"))
    assert out == f"featherweight {version('featherweight')} (Python {platform.python_version()}, {packages})\n"


def test_the_version_imports_nothing_heavy() -> None:
    look = (
        "import sys; from search.cli import app; from search.process import run_command\n"
        "sys.argv = ['search', '--version']\n"
        "try: run_command(app)\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    assert ask(sys.executable, "-c", look)[2] == "[]\n"


def test_the_package_run_by_python_is_the_command() -> None:
    assert ask(sys.executable, "-m", "search", "--version") == ask(SEARCH, "--version")
    code, out, _ = ask(sys.executable, "-m", "search", "lunch")
    assert (code, out) == (2, "")


# -- -v and -q


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Bench(tmp_path / "runs").coordinator(ScriptedPool(trains)).run()
    (tmp_path / "mine.toml").write_text('name = "scripted"\n[space]\ndropout = [0.1, 0.2]\n')
    return tmp_path


@pytest.mark.parametrize("words", [["-v", "status"], ["status", "-v"], ["--verbose", "status"], ["-v", "status", "-v"]])
def test_v_adds_debug_lines_on_stderr_before_the_command_and_after_it(folder: Path, words: list[str]) -> None:
    plain = run_inside(folder, "status", "mine.toml")
    assert plain[0] == 0
    assert plain[2] == ""
    debug = f"search: debug: study file {folder}/mine.toml\n"
    assert run_inside(folder, *words, "mine.toml") == (*plain[:2], debug)
    assert run_inside(folder, "status", "mine.toml") == plain, "it ends with its command"


@pytest.mark.parametrize("words", [["-q", "stop"], ["stop", "--quiet"]])
def test_q_leaves_results_and_errors_before_the_command_and_after_it(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, finish: bool, tell: Any) -> Stopped:
        tell("asked process 7 to stop")
        return Stopped("scripted", True)

    monkeypatch.setattr("search.running.stop.stop_search", stopped)
    result = "study 'scripted' has stopped; nothing is lost, the same command goes on from there\n"
    assert run_inside(folder, *words, "scripted") == (0, result, "")
    assert run_inside(folder, "stop", "scripted") == (0, f"asked process 7 to stop\n{result}", "")
    code, out, err = run_inside(folder, "-q", "replay", "nobody")
    assert (code, out) == (2, "")
    assert err.startswith("search: ")


def test_every_command_takes_both() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        options = {word for option in command.params for word in (*option.opts, *option.secondary_opts)}
        assert options >= {"-v", "--verbose", "-q", "--quiet"}, name


@pytest.mark.parametrize("words", [["-v", "launch"], ["-q", "launch"], ["launch", "-v"], ["launch"]])
def test_the_observers_of_a_callers_script_are_those_of_the_launch(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    observer, found = object(), []

    def launched(*_: object, further: object, **__: object) -> NoReturn:
        found.append(further)
        raise UsageError("not launched here")

    monkeypatch.setattr("search.pipeline.launch_study", launched)
    with chdir(folder), pytest.raises(UsageError, match="not launched here"):
        app([*words, "mine.toml", "--gpus", "cpu"], obj=(observer,), standalone_mode=False)
    assert found == [(observer,)]


# -- what a shell completes


def complete(line: str, folder: Path, **environment: str) -> list[str]:
    """As bash asks."""
    words = line.split(" ")
    asked = {"_SEARCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    answer = subprocess.run(
        [SEARCH], capture_output=True, text=True, check=True, cwd=folder, env=os.environ | asked | environment
    )
    assert answer.stderr == ""
    return answer.stdout.split()


def test_a_shell_completes_commands_studies_and_devices(folder: Path) -> None:
    assert complete("search st", folder) == ["status", "stop", "studies"]
    assert complete("search launch contest/", folder) == [one for one in studies.names() if one.startswith("contest/")]
    assert complete("search status ", folder) == ["scripted"]
    assert complete("search status scr", folder) == ["scripted"]
    assert complete("search status --runs elsewhere ", folder) == []
    assert complete("search export-best ", folder / "..", SEARCH_RUNS=str(folder / "runs")) == ["scripted"]
    assert complete("search launch --gpus c", folder)[0] == "cpu"


def test_no_folder_name_that_a_shell_could_take_for_a_command_is_completed(folder: Path) -> None:
    for name in ("$(touch", "`id`", "a;b", "a b", "a'b"):
        (folder / "runs/studies" / name).mkdir()
    assert complete("search status ", folder) == ["scripted"]


def test_gpus_are_completed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.devices, "visible_gpus", lambda: [Gpu(str(number), f"GPU-{number}") for number in "012"])
    monkeypatch.setattr("trainer.cores.num_cores", lambda: 3)
    assert _devices("") == ["0", "1", "2", "all", "cpu", "cpu:2", "cpu:3"]
    assert _devices("cpu:") == ["cpu:2", "cpu:3"]
    assert _devices("0,2,") == ["0,2,1"]


def test_completing_imports_nothing_heavy(folder: Path) -> None:
    look = (
        "import sys, os; sys.argv = ['search']\n"
        "from search.cli import app; from search.process import run_command\n"
        "try: run_command(app)\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules])"
    )
    for line in ("search launch ", "search status ", "search launch --gpus "):
        asked = {"_SEARCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        code, out, err = ask(sys.executable, "-c", look, SEARCH_RUNS=str(folder / "runs"), **asked)
        assert (code, err, out.splitlines()[-1]) == (0, "", "[]"), line
        assert len(out.splitlines()) > 1


def test_the_script_for_a_shell_is_shown_and_installed(tmp_path: Path) -> None:
    bash = SimpleNamespace(shell="bash", HOME=str(tmp_path))
    shown = subprocess.run(
        [bash.shell, "-c", f"{SEARCH} --show-completion; true"], capture_output=True, text=True, check=True
    ).stdout
    assert "complete -o default -F _search_completion search" in shown
    subprocess.run(
        [bash.shell, "-c", f"{SEARCH} --install-completion; true"],
        check=True,
        capture_output=True,
        env=os.environ | {"HOME": bash.HOME},
    )
    installed = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_search_completion" in text for text in installed)
