"""Options that commands share, with their help and shell completion; -v and -q; the storage URL; printing of
answers."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from search.console import Terminal, quietly, tell
from search.errors import SearchError, UsageError
from search.paths import DEFAULT_RUNS, Runs
from search.process import HIDDEN_SETTINGS, debug_lines, versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from sqlalchemy import URL

    from studies import StudySpec

Answer = TypeVar("Answer")

JSON_VERSION = 1
"""Version of the JSON shapes that have no version of their own."""

SAFE_WORD = re.compile(r"[\w.-]+", re.ASCII)
"""Pattern of names that are offered to a shell for completion. A folder can have any name, and some shells evaluate
it."""


LOUDNESS = "featherweight.verbose"
"""Key of a command line's ``meta``: whether debug lines are shown; absent if neither -v nor -q was given."""


class Commands(TyperGroup):
    """The commands. Each takes -v and -q after its name, as well as before."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        loudness = [option for option in self.params if option.name == "verbose"]
        for command in self.commands.values():
            command.params += loudness


def _set_loudness(context: typer.Context, verbose: bool | None) -> None:
    """Show debug lines if ``verbose`` is True, and only results and warnings if it is False.

    ``meta``, which all contexts of a command line share, holds the choice, so that the same option before and after the
    command's name counts once.
    """
    if verbose is not None and verbose != context.meta.get(LOUDNESS) and not context.resilient_parsing:
        context.meta[LOUDNESS] = verbose
        context.with_resource(debug_lines() if verbose else quietly())


def _show_version(wanted: bool) -> None:
    if wanted:
        tell(versions())
        raise typer.Exit


def _studies_to_search(incomplete: str) -> list[str]:
    from studies import names  # imported here: it takes 0.2 s

    return [name for name in names() if name.startswith(incomplete)]


def _studies_there(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the studies that have a folder in the runs folder; a query of the database would take half a second."""
    there = (
        path.parent.name
        for path in Runs(context.params.get("runs") or DEFAULT_RUNS.root).studies.glob("*/journal.jsonl")
    )
    return sorted(name for name in there if name.startswith(incomplete) and SAFE_WORD.fullmatch(name))


def _devices(incomplete: str) -> list[str]:
    """Values of ``--gpus`` on this machine; after a comma, the GPUs that are not named yet."""
    from search.devices import visible_gpus
    from trainer.cores import num_cores

    before, comma, last = incomplete.rpartition(",")
    gpus: list[str] = []
    with contextlib.suppress(SearchError):  # the command itself reports the error
        gpus = [str(number) for number, gpu in enumerate(visible_gpus()) if not gpu.problem]
    if comma:
        named = before.split(",")
        return [f"{before},{gpu}" for gpu in gpus if gpu.startswith(last) and gpu not in named]
    cpus = ["cpu", *(f"cpu:{number}" for number in range(2, num_cores() + 1))]
    return [word for word in [*gpus, *(["all"] if gpus else []), *cpus] if word.startswith(incomplete)]


SpecArgument = Annotated[
    str,
    typer.Argument(
        help="Name of a study that comes with the program, or a .toml file.", autocompletion=_studies_to_search
    ),
]
StudyArgument = Annotated[
    str | None,
    typer.Argument(help="Name of a study, or its file. Default: the one last launched.", autocompletion=_studies_there),
]
BegunArgument = Annotated[str, typer.Argument(help="Name of a study.", autocompletion=_studies_there)]
ExportedArgument = Annotated[
    str | None,
    typer.Argument(
        help="Name of a study, or its file; with the file, its present \\[confirm] and \\[final] are used. "
        "Default: the one last launched.",
        autocompletion=_studies_there,
    ),
]
ExportedTrialsOption = Annotated[
    str | None,
    typer.Option(
        "--trial",
        metavar="N[,N...]",
        help="Export this trial instead of the best; several, as 3,7,12, as an ensemble.",
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--runs", envvar="SEARCH_RUNS", help="Folder for everything a search writes.")
]
StorageOption = Annotated[
    str | None,
    typer.Option("--storage", envvar="SEARCH_STORAGE", help="Database URL. Default: sqlite:///RUNS/search.db"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
EndJsonOption = Annotated[
    bool, typer.Option("--json", help="End with one JSON object on stdout; messages go to stderr.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder with the pictures.")]
FigureOption = Annotated[
    Path | None, typer.Option("--pictures", help="Draw augmented training pictures into this PNG.")
]
DuplicatesOption = Annotated[
    bool, typer.Option("--duplicates", help="List near-duplicates across splits; draw them in STUDY-duplicates.png.")
]
LabelsOption = Annotated[
    str | None,
    typer.Option("--labels", metavar="FILE", help="Table of the classes, relative to the pictures' folder."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override the study file, e.g. train.epochs=5"),
]
TrainingsOption = Annotated[float | None, typer.Option(help="Budget: compute of the whole study, in full trainings.")]
HoursOption = Annotated[
    float | None,
    typer.Option(help="Budget: hours of this launch; with --export, of the whole study from its first launch on."),
]
ExportOption = Annotated[
    bool, typer.Option("--export", help="Go on to confirmation, final training and proven export, on the same devices.")
]
AcceptChangesOption = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although data, limit, recipe or space changed.")
]
TrialsOption = Annotated[int | None, typer.Option(help="Budget: trials of the whole study.")]
GpusOption = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        help="0,1,2 | all | cpu | cpu:2 (two workers). Default: all GPUs, else cpu.",
        autocompletion=_devices,
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD,NAME=FIELD,...",
        help="Columns of the .csv: picture, file, id, label, probability; NAME=FIELD renames one.",
    ),
]
LikeOption = Annotated[
    Path | None, typer.Option(help="Sample file: the .csv gets its ids, their order, and its columns.")
]
PicturesArgument = Annotated[
    list[Path], typer.Argument(help='Pictures, folders of them, patterns ("new/*.jpg"), or a .csv that lists them.')
]
HostOption = Annotated[str, typer.Option(help="Address to listen on; an address beyond this machine needs a token.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")]
TokenFileOption = Annotated[
    Path | None, typer.Option(help="File with the token. Default: where one is needed, a new one, printed once.")
]
AllowHostOption = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="A further host name to answer to (tunnel, container)."),
]
ProxyOption = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="https://HOST", help="Address of a proxy with TLS before the dashboard; needs a token."
    ),
]
AllowEditsOption = Annotated[
    bool,
    typer.Option(
        "--allow-edits", help="Let browsers of this machine, or of --url, change studies; not during a search."
    ),
]
LoudnessOption = Annotated[
    bool | None,
    typer.Option(
        "--verbose/--quiet",
        "-v/-q",
        callback=_set_loudness,
        expose_value=False,
        help="Show debug lines on stderr too; or only results, warnings and errors.",
    ),
]
VersionOption = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=_show_version,
        expose_value=False,
        is_eager=True,
        help="Print the versions of this program, Python, torch, timm and optuna.",
    ),
]


def places(storage: str | None, runs: Path) -> tuple[Runs, URL]:
    """The runs folder, and the storage URL with its default filled in."""
    from search.study.storage import parse_url, sqlite_url, with_database

    url = sqlite_url(Runs(runs).database) if storage is None else parse_url(storage)
    return with_database(Runs(runs), url), url


def print_answer(answer: Answer, text_of: Callable[[Answer], RenderableType], *, as_json: bool) -> None:
    """Print the answer of a command. In JSON, an answer's own ``version`` replaces JSON_VERSION."""
    if as_json:
        from trainer.values import to_json

        values = to_json(answer)
        assert isinstance(values, dict)
        tell(json.dumps({"version": JSON_VERSION} | values, indent=2))
    else:
        Terminal(highlight=False, markup=False).print(text_of(answer), soft_wrap=True)


def overrides_of(assignments: list[str] | None, data: Path | None, labels: str | None = None) -> list[str]:
    """``--set``, ``--data`` and ``--labels`` as "key=value" overrides of the study file."""
    given = {"path": data, "labels": labels}
    named = {name: json.dumps(str(one), ensure_ascii=False) for name, one in given.items() if one is not None}
    hidden: list[str] = json.loads(os.environ.get(HIDDEN_SETTINGS, "[]"))
    return [*(assignments or []), *hidden, *(f"data.{name}={value}" for name, value in named.items())]


def load_study(study: str, assignments: list[str], data: Path | None, labels: str | None = None) -> StudySpec:
    """A study from a file or from those that come with the program, with the overrides."""
    import studies as shipped

    return shipped.load(study, overrides_of(assignments, data, labels))


def study_name(study: str | None, runs: Runs) -> str:
    """Name of the requested study, given by its name or its file; by default, the study launched last."""
    if study is None:
        return runs.study_last_launched()
    return load_study(study, [], None).name if study.endswith(".toml") or "/" in study else study


def trial_numbers(text: str | None) -> tuple[int, ...]:
    """``--trial`` as sorted numbers, so that the same trials give the same export.

    Raises:
        UsageError: the text is not a list of different numbers.
    """
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise UsageError(f"--trial {text}: give the number of a trial, or several: --trial 3,7,12")
    numbers = sorted(map(int, parts))
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise UsageError(f"--trial {text} names trial {twice[0]} twice; name each once")
    return tuple(numbers)


def budget_of(*, trainings: float | None, trials: int | None, hours: float | None = None) -> list[str]:
    """``--trainings``, ``--trials`` and ``--hours`` as "key=value" overrides of the study file."""
    given = {"trainings": trainings, "trials": trials, "hours": hours}
    return [f"search.{name}={value}" for name, value in given.items() if value is not None]
