"""The live view's content, and its tables as plain lines."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import RenderableType
from rich.text import Text


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
    text = Text(no_wrap=True)
    parts = [[Text(name, style="dim"), *(_cell(cell) for cell in cells)] for name, cells in columns.items()]
    widths = [max(cell.cell_len for cell in cells) for cells in parts]
    for number, row in enumerate(zip(*parts, strict=True)):
        line = Text(style=styles[number - 1] if styles and number else "")
        for name, width, cell in zip(columns, widths, row, strict=True):
            blank = " " * (width - cell.cell_len)
            line.append(blank if name not in left else "").append_text(cell)
            line.append((blank if name in left else "") + " " * gap)
        line.rstrip()
        text.append_text(Text("\n") if number else Text()).append_text(line)
    return text


def _cell(cell: str | Text | None) -> Text:
    return cell if isinstance(cell, Text) else Text("-" if cell is None else cell)


def cut(words: str, width: int) -> str:
    """Words of at most ``width`` columns, with an ellipsis if some were cut off."""
    return words if cell_len(words) <= width else set_cell_size(words, width - 1) + "…"


def small_bar(done: float, total: float) -> Text:
    """A bar of ten columns."""
    full = int(10 * min(1.0, done / max(1, total)))
    return Text("━" * full, style="cyan" if full < 10 else "green").append("─" * (10 - full), style="bar.back")
