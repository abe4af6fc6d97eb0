"""Frozen, validated values: built from plain values, with clear errors, and turned into JSON."""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from trainer.errors import ConfigError

Json: TypeAlias = JsonValue
"""A value that JSON can represent."""


@runtime_checkable
class OwnForm(Protocol):
    """A value whose JSON form differs from its fields."""

    def to_json(self) -> Json:
        """The value's JSON form."""


class FrozenModel(BaseModel):
    """A validated, immutable value whose every field is documented and whose unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def text_of(file: Path) -> str:
    """The text of a study file, with or without a byte order mark, with which Windows' editors begin a file.

    Raises:
        OSError: the file cannot be read.
        UnicodeError: its encoding is not UTF-8. The message is a clause with the cure.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16
        raise UnicodeError("it is not text in UTF-8; save it as UTF-8")
    return text


def nearest(word: str, words: Iterable[str]) -> str:
    """A clause that names the closest known word, or lists the known words if none is close.

    >>> nearest("lable_smoothing", ["label_smoothing", "lr"])
    'did you mean label_smoothing?'
    """
    known = sorted(words)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known[:40])}{f' and {len(known) - 40:,} more' if len(known) > 40 else ''}"


def expanded(path: str) -> Path:
    """The path, with ~ and ~USER replaced by a home folder; if there is no such user, the path as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


Model = TypeVar("Model", bound=BaseModel)


def override(values: dict[str, object], assignments: Iterable[str]) -> dict[str, object]:
    """A copy of a study file's values with ``key=value`` assignments applied.

    Keys are dotted as in the file ("train.lr=0.01"). Values are TOML; a value that is not valid TOML is a string.

    Raises:
        ConfigError: an assignment has no "=", or goes through a key that is not a table.
    """
    values = copy.deepcopy(values)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {assignment!r}: write key=value, for example --set train.lr=0.01")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        *tables, last = key.strip().split(".")
        table = values
        for name in tables:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {assignment!r}: {name} is a value, not a table")
            table = inner
        table[last] = value
    return values


def validate(kind: type[Model], values: object, where: str) -> Model:
    """Build ``kind`` from plain values. Each problem is one line of the ConfigError's message."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(describe_problem(kind, problem) for problem in error.errors())
        raise ConfigError(f"{where}:\n{problems}") from None


def describe_problem(kind: type[BaseModel], problem: ErrorDetails) -> str:
    """One line for a pydantic problem: the key's path, the problem with its value, and the cure."""
    path: Sequence[str | int] = problem["loc"]
    name = ".".join(str(part) for part in path) or kind.__name__
    if problem["type"] == "extra_forbidden":
        return f"  {name}: unknown key; {nearest(str(path[-1]), _fields_at(kind, path[:-1]))}"
    if problem["type"] == "missing":
        return f"  {name}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"  {message}" if not path else f"  {name}: {message}"
    return f"  {name} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def to_json(value: object) -> Json:
    """The JSON form of a value: its ``to_json``, an object of its fields, an array of its items, or a path's text.

    Raises:
        TypeError: values of this type have no JSON form.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, OwnForm):
        return value.to_json()
    if isinstance(value, BaseModel):
        return to_json(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _fields_at(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Names of the fields of the model that ``path`` leads to."""
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                kind = candidate
                break
    return list(kind.model_fields)
