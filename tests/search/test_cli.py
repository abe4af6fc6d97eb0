"""The command line's surface: help without the heavy libraries, and a sentence for every option."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from exports import write_export
from moments import moment
from PIL import Image
from scripted import Bench, ScriptedPool, trains
from typer.testing import CliRunner

from search import errors
from search.cli import app
from search.running.stop import Stopped
from search.study.progress import Snapshot
from studies import StudySpec
from trainer.errors import ConfigError

COMMAND = Path(sys.executable).with_name("search")

HEAVY = ("torch", "optuna", "sqlalchemy", "timm", "numpy")

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_help_starts_the_installed_command() -> None:
    answer = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    for name in COMMANDS:
        assert f" {name} " in answer.stdout
    assert "75 interrupted" in answer.stdout


ASKED: list[list[str]] = [[], *([name] for name in sorted(COMMANDS))]

LOOK = """
import contextlib, io, json, sys
from search.cli import app
from search.process import run_command

for words, heavy in json.loads(sys.argv[1]):
    sys.argv = ["search", *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            run_command(app)
        except SystemExit as end:
            code = end.code
    imported = [name for name in heavy if sys.modules.pop(name, None)]
    print(json.dumps([code, imported, out.getvalue()]))
"""


@pytest.fixture(scope="module")
def helps() -> list[list[Any]]:
    """What one process tells of each help: its exit code, what it was the first to import, and the text."""
    heavy = [[words, HEAVY if words else (*HEAVY, "pydantic")] for words in ASKED]  # typer reads arguments with it
    command = [sys.executable, "-c", LOOK, json.dumps(heavy)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    return [json.loads(line) for line in answer.stdout.splitlines()]


@pytest.mark.parametrize("arguments", ASKED, ids=lambda words: " ".join(words))
def test_help_imports_nothing_heavy(arguments: list[str], helps: list[list[Any]]) -> None:
    code, heavy, text = helps[ASKED.index(arguments)]
    assert (code, heavy) == (0, [])
    assert "Usage: search" in text


@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit()", 0), ("sys.exit(75)", 75)])
def test_a_command_leaves_at_once_with_its_exit_code_and_all_it_said(end: str, code: int) -> None:
    program = (
        "import atexit, sys; from search.process import leave_after\n"
        "atexit.register(print, 'and goes on for seconds')\n"
        "def run():\n"
        "    print('done')\n"
        "    print('a problem', file=sys.stderr)\n"
        f"    {end}\n"
        "leave_after(run)"
    )
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (code, "done\n", "a problem\n")
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (code, "a problem\n")


def test_a_warning_is_one_line_without_our_code() -> None:
    program = (
        "import warnings; from search.process import run_command\n"
        "run_command(lambda **_: warnings.warn('the disk is slow', stacklevel=1))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stderr == "search: warning: the disk is slow\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_every_option_says_what_it_does(name: str) -> None:
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_every_exit_code_of_the_table_is_in_the_help() -> None:
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SearchError))
    codes = {kind.exit_code for kind in kinds} | set(errors.TRAINER_EXIT_CODES.values())
    codes |= {0, errors.SECOND_SIGNAL, errors.INTERNAL}
    epilog = str(app.info.epilog)
    assert {code for code in codes if f" {code} " not in epilog} == set()


def test_every_answer_in_json_has_what_the_documents_say_and_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Bench(Path("runs")).coordinator(ScriptedPool(trains)).run()
    (tmp_path / "pictures/red").mkdir(parents=True)
    Image.new("RGB", (9, 9), "red").save("pictures/red/0.png")
    exports = [str(write_export(Path(name), names=["blue", "red"], weights=np.eye(3)[:, 1:])) for name in "ab"]
    words = {
        "studies": [],
        "limit": ["resnet10t", "--classes", "10", "--width-mult", "0.1"],
        "status": ["scripted"],
        "stop": ["scripted"],
        "replay": ["scripted"],
        "report": ["scripted"],
        "predict": [exports[0], "pictures/red/0.png"],
        "compare": [*exports, "--data", "pictures"],
        "delete": ["scripted", "--yes"],
    }
    page = (Path(__file__).parents[2] / "docs/scripting.md").read_text(encoding="utf-8")
    documented = {
        name: (int(version), re.findall(r"`(\w+)`", re.sub(r"\{.*?\}", "", keys)))
        for names, version, keys in re.findall(r"^\| (`.*`) \| (\d) \| (.*) \|$", page, re.MULTILINE)
        for name in re.findall(r"`(.*?)`", names)
    }
    assert documented.keys() == COMMANDS.keys() - {"dashboard"}
    for name in words:
        answer = CliRunner().invoke(app, [name, *words[name], "--json"])
        assert answer.exit_code == 0, (name, answer.output, answer.exception)
        found, (version, keys) = json.loads(answer.stdout), documented[name]
        assert found["version"] == version, name
        assert [key for key in keys if key not in found] == [], name
    # asked by tests of their own, or no answer
    elsewhere = {"launch", "gpus", "check", "lr-range", "export-best", "dashboard"}
    assert words.keys() == COMMANDS.keys() - elsewhere


def test_a_study_may_be_named_by_its_file_which_may_give_it_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Bench(Path("runs")).coordinator(ScriptedPool(trains)).run()
    Path("mine.toml").write_text('name = "scripted"\n[space]\ndropout = [0.1, 0.2]\n')
    for name in ("status", "stop"):
        answer = CliRunner().invoke(app, [name, "mine.toml", "--json"])
        assert answer.exit_code == 0, (answer.output, answer.exception)
        assert json.loads(answer.stdout)["study"] == "scripted"


def test_a_reader_that_goes_away_is_no_error() -> None:
    for arguments in (["studies"], ["studies", "--json"]):
        process = subprocess.Popen([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate()
        assert (process.returncode, err) == (0, b"")


def test_a_launch_and_a_stop_end_with_one_json_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(*_: object, **__: object) -> Snapshot:
        print("what a launch says meanwhile")
        return moment("digits", {"trainings": 30}, (), (), None)

    def stopped(*_: object, finish: bool, tell: Any) -> Stopped:
        tell("what a stop says meanwhile")
        return Stopped("digits", True)

    monkeypatch.setattr("search.pipeline.launch", launched)
    monkeypatch.setattr("search.running.stop.stop_search", stopped)
    runs = ["--json", "--runs", str(tmp_path)]
    launch = CliRunner().invoke(app, ["launch", "--gpus", "cpu", *runs])
    told = json.loads(launch.stdout)
    assert (told["version"], told["study"], told["budget"]["trainings"]) == (3, "digits", 30)
    assert "what a launch says meanwhile" in launch.stderr
    stop = CliRunner().invoke(app, ["stop", "digits", *runs])
    assert json.loads(stop.stdout) == {"version": 1, "study": "digits", "stopped": True, "finished": 0}
    assert "what a stop says meanwhile" in stop.stderr


def test_the_budget_is_named_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[StudySpec] = []

    def begun(spec: StudySpec, *_: object, **__: object) -> Snapshot:
        specs.append(spec)
        raise errors.UsageError("enough")

    monkeypatch.setattr("search.pipeline.launch", begun)
    monkeypatch.setattr("search.plan.check.check_study", begun)
    for command in ("launch", "check"):
        for options in (["--trainings", "4.5"], ["--trials", "7"], ["--trainings", "4.5", "--trials", "7"]):
            CliRunner().invoke(app, [command, "digits", *options, "--gpus", "cpu", "--runs", str(tmp_path)])
    budgets = [(spec.search.trainings, spec.search.trials) for spec in specs]
    assert budgets == [(4.5, None), (8, 7), (4.5, 7)] * 2
    answer = CliRunner().invoke(app, ["launch", "survey", "--trainings", "0"])
    assert isinstance(answer.exception, ConfigError)


def test_an_unknown_command_or_option_is_a_usage_error() -> None:
    for arguments in (["lunch"], ["launch", "--gpu", "0"], ["launch", "--trials", "many"]):
        answer = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)
        assert answer.returncode == 2
        assert "Traceback" not in answer.stderr


def test_a_mistake_of_ours_is_a_traceback_and_the_code_for_it(tmp_path: Path) -> None:
    fails = (
        "import sys, search.cli\n"
        "def broken(*_): raise RuntimeError('ours')\n"
        "search.cli._places = broken\n"
        "sys.argv = ['search', 'launch', '--gpus', 'cpu']\n"
        "search.cli.main()"
    )
    command = [sys.executable, "-c", fails]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.returncode == 70
    assert "RuntimeError: ours" in answer.stderr


@pytest.mark.parametrize(
    "arguments", [["launch", "digits"], ["status"], ["studies"], ["export-best", "birds", "--out", "."]], ids=" ".join
)
def test_in_a_folder_that_was_deleted_every_command_says_so(tmp_path: Path, arguments: list[str]) -> None:
    (gone := tmp_path / "gone").mkdir()
    remove_and_run = ["sh", "-c", 'rmdir ../gone && exec "$@"', "sh", str(COMMAND), *arguments]
    ended = subprocess.run(remove_and_run, cwd=gone, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith("search: the current folder was deleted or replaced; enter the one in its place")
