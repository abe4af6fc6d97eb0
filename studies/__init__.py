"""Study files, and their content as validated values. Does not import Optuna.

spec       StudySpec: a whole study file, and the values that follow from it; [search], [faults], [confirm]
limit      [limit]: the largest size of a model
axes       the settings that [space] may sample; the checks of their ranges and choices, and of known recipes
objective  the value by which candidates are compared
final      [final]: the training for an export, and the names of the formats
notify     [notify] and [track]
cluster    [cluster]
reference  makes docs/settings.md from the fields and their docstrings
"""

from __future__ import annotations

import logging
import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from studies.axes import Range, values_of
from studies.final import Final, Finetune
from studies.limit import Limit
from studies.spec import Confirm, Faults, Search, StudySpec, describe_budget
from trainer.errors import ConfigError, no_room
from trainer.values import nearest, override, text_of, validate

__all__ = [
    "Confirm",
    "Faults",
    "Final",
    "Finetune",
    "Limit",
    "Range",
    "Search",
    "StudySpec",
    "load",
    "names",
    "shipped",
    "template",
    "text_of_new_file",
    "text_of_studies",
    "write_new_file",
]

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # the caller decides where log lines go

_FOLDER = Path(__file__).parent
_TEMPLATE = "template"


def names() -> list[str]:
    """Names of the studies that come with the program."""
    found = (file.relative_to(_FOLDER).with_suffix("").as_posix() for file in _FOLDER.rglob("*.toml"))
    return sorted(name for name in found if name != _TEMPLATE)


def load(study: str, assignments: Iterable[str] = ()) -> StudySpec:
    """Read a study: one that comes with the program by name, or a TOML file by path.

    Args:
        study: "digits", "contest/rexnet_sgd", or "path/to/mine.toml".
        assignments: "key=value" overrides, keys dotted as in the file.

    Raises:
        ConfigError: there is no such study, the file is not TOML, or a value is wrong; the message has a line for
            each problem that was found.
    """
    try:
        values = tomllib.loads(_text(study))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"study {study} is not TOML: {error}") from error
    return validate(StudySpec, override({"name": Path(study).stem} | values, assignments), f"study {study}")


def template() -> str:
    """The text of a commented study file to start from."""
    return (_FOLDER / f"{_TEMPLATE}.toml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class NewStudyFile:
    """A new study file."""

    written: Path


def write_new_file(file: Path) -> NewStudyFile:
    """Write the template as a new study file.

    Raises:
        ConfigError: the file exists already, or its folder is missing or cannot be written to.
    """
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {file.parent}; create it first")
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(template())
    except FileExistsError:
        raise ConfigError(f"{file} exists already; choose another name") from None
    except OSError as error:
        if full := no_room(error, file):
            raise full from error
        raise ConfigError(f"{file} cannot be written ({error.strerror}); choose another place") from error
    return NewStudyFile(file)


def text_of_new_file(new: NewStudyFile) -> str:
    """The output of ``search studies --new``."""
    return f"wrote {new.written}; edit it, then: search check {shlex.quote(str(new.written))} --data DIR"


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A study that comes with the program."""

    name: str
    data: str
    """Source of the pictures."""
    models: tuple[str, ...]
    """The models that the study searches."""
    trainings: float | None
    """Budget of compute, in full trainings."""
    trials: int | None
    """Budget of trials."""


@dataclass(frozen=True)
class ShippedStudies:
    """All studies that come with the program."""

    studies: tuple[Shipped, ...]


def shipped() -> ShippedStudies:
    """The studies that come with the program, by name."""
    return ShippedStudies(
        tuple(
            Shipped(
                name=name,
                data=spec.data.source,
                models=tuple(map(str, values_of("model", spec.train, spec.space))),
                trainings=spec.search.trainings,
                trials=spec.search.trials,
            )
            for name, spec in ((name, load(name)) for name in names())
        )
    )


def text_of_studies(answer: ShippedStudies) -> str:
    """The output of ``search studies``."""
    rows = [
        (study.name, study.data, study.models[0] if len(study.models) == 1 else f"{len(study.models)} models")
        for study in answer.studies
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    budgets = [describe_budget(study.trainings, study.trials) for study in answer.studies]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), budget])
        for cells, budget in zip(rows, budgets, strict=True)
    )


def _text(study: str) -> str:
    if study in names():
        logger.debug("study %s comes with the program", study)
        return (_FOLDER / f"{study}.toml").read_text(encoding="utf-8")
    path = Path(study)
    logger.debug("study file %s", path.absolute())
    try:
        if path.suffix != ".toml" and (path.is_dir() or not path.exists()):
            file = f"{study}.toml"
            cure = f"did you mean {file}?" if Path(file).is_file() else nearest(study, names())
            raise ConfigError(f"no study {study!r} comes with the program, nor is it a .toml file; {cure}")
        if not path.exists():
            raise ConfigError(f"there is no file {study}; search studies --new {study} begins one")
        return text_of(path)
    except UnicodeError as error:
        raise ConfigError(f"cannot read study {study}: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read study {study}: {error}") from error
