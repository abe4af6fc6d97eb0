"""The lines of a journal as plain values that a test may change, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from search.study.events import Event, Launch, read_line


def values_of(events: Iterable[Event]) -> list[dict[str, Any]]:
    return [event.model_dump() for event in events]


def without_sums(values: Iterable[dict[str, Any]]) -> str:
    """As a version before wrote them."""
    return "".join(json.dumps(one) + "\n" for one in values)


def events_of(values: Iterable[dict[str, Any]]) -> list[Event]:
    return [read_line(line.encode(), None)[0] for line in without_sums(values).splitlines()]


def launch(uuid: str | None = None) -> Launch:
    """Of nothing."""
    return Launch(uuid=uuid, spec={}, space={}, versions={})
