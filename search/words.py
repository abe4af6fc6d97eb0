"""Durations, sizes, counts and settings as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile

SHORT = 60
"""Largest number of characters of a value that is shown whole."""

CONTEXT, ITEMS = 20, 2
"""Number of characters, and of items of a list, that are shown on both sides of the difference of two long values."""


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def clock_time(at: float) -> str:
    """A time, in seconds since 1970, on the clock of this machine: "06:40", or "2026-11-30 06:40" on another day."""
    then = datetime.fromtimestamp(at)
    return f"{then:%H:%M}" if then.date() == datetime.now().date() else f"{then:%Y-%m-%d %H:%M}"


def megabytes(num_bytes: float) -> str:
    """Bytes as people say them: "12.3 MB", "1.4 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def show(value: object) -> str:
    """A setting's value as it is shown."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def count(number: int, noun: str) -> str:
    """A number of things: "1 trial", "1,200 trials"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def trials_in_words(numbers: Sequence[int]) -> str:
    """Trials by their numbers: "trial 3", "trials 3, 7 and 12"."""
    *first, last = map(str, numbers)
    return f"trials {', '.join(first)} and {last}" if first else f"trial {last}"


def judged_on(folds: int) -> str:
    """The pictures on which a candidate's accuracy is measured: "on validation", "in 5-fold cross-validation"."""
    return f"in {folds}-fold cross-validation" if folds else "on validation"


def short_json(value: object) -> str:
    """A value in JSON, cut in the middle if it is long."""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= SHORT else f"{shown[:28]}...{shown[-28:]}"


def short_change(before: object, after: object) -> tuple[str, str]:
    """Two values in JSON. If one is long, both are cut to the part that differs, with a little around it."""
    texts = [json.dumps(value, ensure_ascii=False) for value in (before, after)]
    if max(map(len, texts)) > SHORT and isinstance(before, list) and isinstance(after, list):
        items = [[json.dumps(item, ensure_ascii=False) for item in value] for value in (before, after)]
        texts = [f"[{', '.join(part)}]" for part in _differing(items, ITEMS, "...")]
    if max(map(len, texts)) > 2 * SHORT:
        texts = ["".join(part)[: 2 * SHORT] for part in _differing(texts, CONTEXT, "...")]
    return texts[0], texts[1]


def _differing(values: Sequence[Sequence[str]], around: int, gap: str) -> list[list[str]]:
    """The part of two sequences in which they differ, with ``around`` equal items before it and after it."""
    same = _same(*values)
    end = _same(*(value[same:][::-1] for value in values))
    parts = []
    for value in values:
        first, last = max(0, same - around), min(len(value), len(value) - end + around)
        parts.append([*[gap] * (first > 0), *value[first:last], *[gap] * (last < len(value))])
    return parts


def _same(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of equal items with which both sequences begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
