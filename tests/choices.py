"""Settings that are a choice of words, found by their types, so that a test of all of them forgets none."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

UNKNOWN: Any = "no such word"
"""A word that no setting has."""


def words_of(annotation: object) -> tuple[Any, ...]:
    """All words of a type that is a Literal, or holds one."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for part in get_args(annotation) for word in words_of(part))


def choices_of(kind: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """The settings of a kind that are a choice of words, with their words."""
    fields = {name: words_of(field.annotation) for name, field in kind.model_fields.items()}
    return {name: words for name, words in fields.items() if words}


def with_word(kind: type[BaseModel], setting: str, word: object, **others: Any) -> Any:
    """A value of this kind whose setting is a word that need not be allowed."""
    return kind.model_validate(others).model_copy(update={setting: word})
