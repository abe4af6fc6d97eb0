"""Numbers in words: durations, sizes, counts, and a setting's value."""

from __future__ import annotations

import json


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def megabytes(num_bytes: float) -> str:
    """Bytes as people say them: "12.3 MB", "1.4 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def show(value: object) -> str:
    """A setting's value, for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def count(number: int, noun: str) -> str:
    """A number of things: "1 trial", "1,200 trials"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_json(value: object) -> str:
    """A value in JSON, cut in the middle if it is long."""
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:28]}...{shown[-28:]}"
