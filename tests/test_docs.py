"""The documents say what the code does: commands, options, files, exit codes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main

from search.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

CODE_LINES = [
    line.split("  #")[0].split("   ")[0].strip()
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
SHOWN = sorted({line.removeprefix("$ ") for line in CODE_LINES if line.removeprefix("$ ").startswith("search ")})


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_readme_shows_every_command() -> None:
    missing = [name for name in COMMANDS if f"search {name}" not in README]
    assert not missing


def test_the_tests_that_the_promises_name_exist() -> None:
    table = README.partition("## Nothing is lost")[2].partition("\n## ")[0]
    folder, named = "", []
    for name in re.findall(r"`((?:\w+/)?test_\w+\.py)`", table):
        folder = name.partition("/")[0] if "/" in name else folder
        named.append(ROOT / "tests" / folder / Path(name).name)
    assert len(named) > 20
    assert [path for path in named if not path.exists()] == []


def test_readme_names_every_option_of_every_command() -> None:
    missing = [
        f"{name} {option}"
        for name, command in COMMANDS.items()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option != "--help" and option not in README
    ]
    assert not missing


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_line_of_the_readme_parses(line: str) -> None:
    words = shlex.split(line)[1:]
    command = COMMANDS[words[0]]
    with command.make_context(words[0], words[1:], resilient_parsing=False) as context:
        assert context.params


def test_readme_shows_at_least_the_three_commands_of_the_product() -> None:
    assert {line.split()[1] for line in SHOWN} >= {"launch", "dashboard", "export-best"}


def test_exit_codes_in_the_readme_are_those_of_the_errors() -> None:
    from search import errors

    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SearchError)]
    used = {kind.exit_code for kind in kinds} | set(errors.TRAINER_EXIT_CODES.values())
    assert documented == used | {errors.OK, errors.SECOND_SIGNAL}


def test_architecture_lists_every_source_file() -> None:
    sources = [
        name
        for name in tracked_files()
        if name.startswith(("search/", "studies/", "trainer/"))
        and name.endswith(".py")
        and (ROOT / name).stat().st_size > 200  # an empty __init__.py has nothing to say
    ]
    missing = [name for name in sources if f"`{name}`" not in ARCHITECTURE]
    assert not missing


def test_architecture_lists_no_file_that_is_gone() -> None:
    named = re.findall(r"`((?:search|studies|trainer)/[\w/.]+\.py)`", ARCHITECTURE)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_architecture_stays_short() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_no_file_has_a_name_that_says_nothing() -> None:
    bad = re.compile(r"(utils?|common|helpers?|manager)\.py$")
    assert [name for name in tracked_files() if bad.search(name)] == []
