"""The live view's content, its entries and tables."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from search.console import without_controls

COLUMNS = 80
"""Width of all output; wider terminals do not get wider bars."""

LABEL_COLUMNS = 8
"""Width of the labels of entries."""


class View:
    """The live view. Its content is set before it is drawn, so that lines and the view are drawn at once."""

    content: RenderableType = ""

    def __rich__(self) -> RenderableType:
        return self.content


Cell: TypeAlias = str | Sequence[tuple[str, str]] | None
"""A cell of a table: words, or pieces of a text with the style of each; "-" stands for None."""


class Table:
    """A table. Rich's own tables take many times as long to draw.

    Args:
        columns: head of each column -> its cells.
        left: heads of the columns that are aligned to the left.
        gap: spaces between two columns.
        styles: the style of each row; "" if not given.
    """

    def __init__(
        self, columns: Mapping[str, Sequence[Cell]], *, left: Container[str], gap: int, styles: Sequence[str] = ()
    ) -> None:
        cells = [[((head, "dim"),), *map(_pieces, column)] for head, column in columns.items()]
        widths = [max(map(_width, column)) for column in cells]
        self._styles = ["", *(styles or [""] * (len(cells[0]) - 1))]
        self._lines = list[list[tuple[str, str]]]()
        for row in zip(*cells, strict=True):
            line = list[tuple[str, str]]()
            for head, width, cell in zip(columns, widths, row, strict=True):
                blank = " " * (width - _width(cell))
                before, after = ("", blank) if head in left else (blank, "")
                line += (((" " * gap if line else "") + before, ""), *cell, (after, ""))
            self._lines.append(_merged(line))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line, style in zip(self._lines, map(console.get_style, self._styles), strict=True):
            yield from (Segment(words, style + console.get_style(own)) for words, own in line)
            yield Segment.line()


def _merged(line: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pieces of a line, without empty ones and with those of one style joined: rich looks at each several times."""
    parts = groupby((piece for piece in line if piece[0]), key=itemgetter(1))
    return [("".join(words for words, _ in part), style) for style, part in parts]


def _pieces(cell: Cell) -> Sequence[tuple[str, str]]:
    return (("-" if cell is None else cell, ""),) if cell is None or isinstance(cell, str) else cell


def _width(cell: Sequence[tuple[str, str]]) -> int:
    return sum(cell_len(words) for words, _ in cell)


class Entry:
    """Words with a label to the left of their first line. Rich's own tables take many times as long to draw."""

    def __init__(self, label: str, words: str, style: str) -> None:
        self._label, self._words, self._style = label.ljust(LABEL_COLUMNS), words, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, style = max(1, min(COLUMNS, options.max_width) - LABEL_COLUMNS), console.get_style(self._style)
        words = without_controls(self._words).expandtabs()
        lines = [words]
        if "\n" in words or cell_len(words) > width:
            lines = [line.plain for line in Text(words).wrap(console, width, overflow="fold")]
        for number, line in enumerate(lines):
            yield Segment((" " * LABEL_COLUMNS if number else self._label) + line, style)
            yield Segment.line()


def cut(words: str, width: int) -> str:
    """Words of at most ``width`` columns without control characters, with an ellipsis if some were cut off."""
    words = without_controls(words)
    return words if cell_len(words) <= width else set_cell_size(words, width - 1) + "…"


def small_bar(done: float, total: float) -> Cell:
    """A bar of ten columns."""
    full = int(10 * min(1.0, done / max(1, total)))
    return ("━" * full, "cyan" if full < 10 else "green"), ("─" * (10 - full), "bar.back")
