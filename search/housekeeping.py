"""The commands about studies as a whole: list them, write a new study file, delete a study."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.console import tell, tell_aside
from search.errors import UsageError
from search.options import BegunArgument, JsonOption, RunsOption, StorageOption, places, print_answer
from search.paths import DEFAULT_RUNS, Runs
from search.words import count

if TYPE_CHECKING:
    from sqlalchemy import URL

    from search.study.inventory import Deleted, Listed
    from studies import Shipped


@dataclass(frozen=True, kw_only=True)
class Studies:
    """The answer of ``search studies``."""

    version: int = 2
    """Version of the JSON shape."""
    studies: tuple[Shipped, ...]
    """The studies that come with the program."""
    storage: str
    """URL of the database, without its password."""
    begun: tuple[Listed, ...]
    """The studies of the database."""


def studies(
    new: Annotated[Path | None, typer.Option("--new", help="Write a commented study file to start from.")] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """List the studies that come with the program and those of the database, or write a new study file."""
    import studies as shipped

    if new is not None:
        print_answer(shipped.write_new_file(new), shipped.text_of_new_file, as_json=as_json)
        return
    folder, url = places(storage, runs)
    print_answer(_all_studies(folder, url), _text_of_studies, as_json=as_json)


def delete(
    study: BegunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Delete a study from the database, with its journal and checkpoints. Its exports stay."""
    folder, url = places(storage, runs)

    from search.study.inventory import Deleted, delete_study, find_to_delete

    found = find_to_delete(study, url)
    deleted = yes or _is_wanted(found.question)
    if deleted:
        delete_study(found, url, folder)
    print_answer(Deleted(study=study, deleted=deleted, trials=found.trials), _text_of_deletion, as_json=as_json)


def _is_wanted(question: str) -> bool:
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError(f"{question} There is no terminal to ask in; --yes deletes without asking")
    tell(f"{question} [y/N]", sys.stderr)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _text_of_deletion(answer: Deleted) -> str:
    if not answer.deleted:
        return "nothing was deleted"
    return f"study {answer.study!r} is deleted, with its {count(answer.trials, 'trial')}; its exports stay"


def _all_studies(runs: Runs, url: URL) -> Studies:
    import studies as shipped
    from search.study.file import is_missing, sentence_if_lost

    begun: tuple[Listed, ...] = ()
    file = Path(url.database or "")
    if url.get_backend_name() == "sqlite" and is_missing(file):  # saves Optuna's import, 0.5 s
        if lost := sentence_if_lost(file, runs):
            tell_aside(lost)
    else:
        from search.study.inventory import list_studies

        begun = list_studies(url, runs)

    from search.study.storage import hidden

    return Studies(studies=shipped.shipped().studies, storage=hidden(url), begun=begun)


def _text_of_studies(answer: Studies) -> str:
    from studies import ShippedStudies, text_of_studies

    text = text_of_studies(ShippedStudies(answer.studies))
    if not answer.begun:
        return text
    rows = [("study", "owner", "state", "budget", "best", "last change"), *map(_row, answer.begun)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([text, "", f"in {answer.storage}:", *lines])


def _row(one: Listed) -> tuple[str, ...]:
    from studies.objective import words_of
    from trainer.errors import printable

    budget = f"{one.finished} trials finished"
    if one.budget is not None and one.spent is not None:
        budget = " ".join(one.budget.progress(one.spent))
    best = "-" if one.best is None or one.objective is None else words_of(one.best, one.objective)
    state = {"unreadable": "of another version", "foreign": "made or renamed by another program"}.get(
        one.state, one.state
    )
    changed = (one.last_change or "-").replace("T", " ")
    return printable(one.name), one.owner or "unknown", state, budget, best, changed
