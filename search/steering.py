"""The commands to a running search: stop it, change its GPUs."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from search.console import remark
from search.options import (
    EndJsonOption,
    RunsOption,
    StorageOption,
    StudyArgument,
    places,
    print_answer,
    study_name,
)
from search.paths import DEFAULT_RUNS


def stop(
    study: StudyArgument = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="End its paused trials, too: they count as pruned, and never go on.")
    ] = False,
    as_json: EndJsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """End a search from another terminal: every worker finishes its epoch. An export ends at once."""
    folder, url = places(storage, runs)

    from search.running.stop import stop_search, text_of_stop

    name = study_name(study, folder)
    stopped = stop_search(name, url, folder, finish=finish, tell=partial(remark, to_stderr=as_json))
    print_answer(stopped, text_of_stop, as_json=as_json)


def gpus(
    study: StudyArgument = None,
    add: Annotated[str | None, typer.Option("--add", metavar="GPUS", help="More GPUs, named as for --gpus.")] = None,
    drain: Annotated[
        str | None, typer.Option("--drain", metavar="GPUS", help="GPUs that finish their epoch and are free then.")
    ] = None,
    as_json: EndJsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """List the GPUs of a running search, add some, or take some away, until it ends."""
    folder, url = places(storage, runs)

    from search.running.elastic import Request, change_gpus, text_of_gpus

    name, request = study_name(study, folder), Request(add=add, drain=drain)
    changed = change_gpus(name, url, folder, request, tell=partial(remark, to_stderr=as_json))
    print_answer(changed, text_of_gpus, as_json=as_json)
