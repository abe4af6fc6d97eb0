"""Makes docs/settings.md from the fields and their docstrings: a page of Markdown with every setting of a study file.

python -m studies.reference > docs/settings.md      after a setting was added or its docstring changed
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from studies.axes import SAMPLED, Range
from studies.spec import StudySpec
from trainer.values import FrozenModel

HEAD = """# Settings of a study file

Every table and key that a study file may have. How they work together: [writing a study](writing-a-study.md).
A key that is left out has its default; a key that is not listed here is an error. On the command line,
`--set TABLE.KEY=VALUE` sets a key, for example `--set train.epochs=5`. If a table has the column "searched",
a yes there means that `[space]` may search the setting. In `[space]`, the key of a nested table
is written with the table's name before it, as in `"sam.rho"`.
Settings that change the size of a model, such as `width_mult`, exist only for some models: the text of the setting
lists them after "Families:". With another model in `[train]`, any value but the default is an error. If `[space]` has
several models, the setting has no effect on those that do not have it.

This page is generated from the program: `python -m studies.reference > docs/settings.md`.
"""

WORDS: dict[object, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    list[int]: "list of whole numbers",
    NoneType: "",
}


def page() -> str:
    """The text of docs/settings.md."""
    plain = [name for name, field in StudySpec.model_fields.items() if not _is_section(name, field)]
    parts = [HEAD, "## Above all tables\n", "\n".join(_rows(StudySpec, only=plain)), ""]
    for name, field in StudySpec.model_fields.items():
        if (kind := model_of(field.annotation)) is not None:
            prefix = "" if name == "train" else None
            parts += [f"## [{name}]\n", _docstring(kind), "", "\n".join(_rows(kind, searched_as=prefix)), ""]
            for key, inner in kind.model_fields.items():
                if (nested := model_of(inner.annotation)) is not None:
                    prefix = f"{key}." if name == "train" else None
                    parts += [f"### {key} in [{name}]\n", _docstring(nested), ""]
                    parts += ["\n".join(_rows(nested, searched_as=prefix)), ""]
        elif name == "space":
            parts += ["## [space]\n", _text(field.description or ""), "", "\n".join(_rows(Range)), ""]
        elif name == "known":
            parts += ["## [[known]]\n", _text(field.description or ""), ""]
    return "\n".join(parts)


def _is_section(name: str, field: FieldInfo) -> bool:
    return model_of(field.annotation) is not None or name in ("space", "known")


def _rows(
    kind: type[FrozenModel], *, searched_as: str | None = None, only: Sequence[str] | None = None
) -> Iterator[str]:
    """A Markdown table, one row for each field.

    Args:
        kind: the class of the table.
        searched_as: prefix of the fields' names in [space], such as "sam.". None: [space] cannot sample the fields.
        only: names of the fields to list. None: all fields.
    """
    searched = {
        name: searched_as is not None and f"{searched_as}{name}" in SAMPLED for name in only or kind.model_fields
    }
    last = " searched |" if any(searched.values()) else ""
    yield f"| key | values | default | meaning |{last}"
    yield f"| --- | --- | --- | --- |{' --- |' if last else ''}"
    for name, is_searched in searched.items():
        field = kind.model_fields[name]
        cell = f" {'yes' if is_searched else ''} |" if last else ""
        yield f"| `{name}` | {_values(field)} | {_default(field)} | {_text(field.description or '')} |{cell}"


def _values(field: FieldInfo) -> str:
    """The values that a key may have, such as "number, above 0"."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{words[name]} {getattr(bound, name):g}" for bound in field.metadata for name in words if hasattr(bound, name)
    ]
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: object) -> str:
    """A type in the words of a TOML file."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) in (Union, UnionType) and len(parts) > 1:
        tables_last = sorted(parts, key=lambda part: model_of(part) is not None)
        return " or ".join(map(_kind, tables_last))
    if (kind := model_of(annotation)) is not None:
        return f"table: {', '.join(f'`{name}`' for name in kind.model_fields)}"
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in inside)
    if origin is tuple:
        return f"list of: {_kind(inside[0])}"
    if isinstance(annotation, UnionType) or NoneType in inside:
        return " or ".join(filter(None, map(_kind, inside)))
    if origin is dict:
        return "table"
    return WORDS[annotation]


def model_of(annotation: object) -> type[FrozenModel] | None:
    """The class of the table that a field holds; None if a field holds no table."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if inspect.isclass(kind)]
    return next((kind for kind in kinds if get_origin(kind) is None and issubclass(kind, FrozenModel)), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "" if "Default:" in (field.description or "") else "required"
    default = field.get_default(call_default_factory=True)
    return "" if default is None else f"`{json.dumps(default)}`"


def _docstring(kind: type[FrozenModel]) -> str:
    return _text(inspect.getdoc(kind) or "")


def _text(docstring: str) -> str:
    """A docstring as one line of Markdown."""
    line = " ".join(docstring.split()).replace("``", "`")
    return line.replace("*", r"\*").replace("|", r"\|")


if __name__ == "__main__":
    print(page(), end="")
