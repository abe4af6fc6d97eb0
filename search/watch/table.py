"""The live view's content, and its tables as plain lines."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Span, Text

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


def table(
    columns: Mapping[str, Sequence[str | Text | None]], *, left: Container[str], gap: int, styles: Sequence[str] = ()
) -> Text:
    """A table as plain lines. Rich's own tables take many times as long to draw.

    Args:
        columns: head of each column -> its cells; "-" stands for None.
        left: heads of the columns that are aligned to the left.
        gap: spaces between two columns.
        styles: the style of each row; "" if not given.
    """
    parts = [[Text(name, style="dim"), *(_cell(cell) for cell in cells)] for name, cells in columns.items()]
    widths = [max(cell.cell_len for cell in cells) for cells in parts]
    plain, spans = "", list[Span]()  # collected here, because each change of a Text looks at all of it
    for number, row in enumerate(zip(*parts, strict=True)):
        begun, line = len(plain), ""
        first = len(spans)
        for name, width, cell in zip(columns, widths, row, strict=True):
            blank = " " * (width - cell.cell_len)
            line += "" if name in left else blank
            at = begun + len(line)
            spans += [Span(at, at + len(cell.plain), cell.style)] if cell.style else []
            spans += [span.move(at) for span in cell.spans]
            line += cell.plain + (blank if name in left else "") + " " * gap
        line = line.rstrip()
        if styles and number:  # below the styles of its cells
            spans.insert(first, Span(begun, begun + len(line), styles[number - 1]))
        plain += line + "\n"
    return Text(plain[:-1], no_wrap=True, spans=spans)


def _cell(cell: str | Text | None) -> Text:
    return cell if isinstance(cell, Text) else Text("-" if cell is None else cell)


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
    """Words of at most ``width`` columns, with an ellipsis if some were cut off."""
    return words if cell_len(words) <= width else set_cell_size(words, width - 1) + "…"


def small_bar(done: float, total: float) -> Text:
    """A bar of ten columns."""
    full = int(10 * min(1.0, done / max(1, total)))
    return Text("━" * full, style="cyan" if full < 10 else "green").append("─" * (10 - full), style="bar.back")
