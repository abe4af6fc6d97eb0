"""The list of formats: those that ``final.formats`` may name."""

from __future__ import annotations

from typing import assert_never, get_args

from search.export.formats.format import Format
from studies.final import FormatName

FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)


def format_of(name: FormatName) -> Format:
    """A format by its name. Its library is imported only here, because that of pt2 is torch."""
    match name:
        case "onnx":
            from search.export.formats.onnx import ONNX

            return ONNX
        case "pt2":
            from search.export.formats.pt2 import PT2

            return PT2
        case _:
            assert_never(name)
