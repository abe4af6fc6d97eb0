"""Which cases of a parametrized test run in ``make test``; the others run in ``make test-slow``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after(number: int, cases: Iterable[Any]) -> list[Any]:
    """Mark all cases after the first ones as slow. A case that is a tuple has the values of several parameters."""
    marked = list(cases)
    marked[number:] = [
        pytest.param(*case, marks=pytest.mark.slow)
        if isinstance(case, tuple)
        else pytest.param(case, marks=pytest.mark.slow)
        for case in marked[number:]
    ]
    return marked
