"""The answer of ``search compare`` in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from search.export.compare import LATENCY_BATCHES, TEST, Compared, Comparison
from search.export.record import Score
from search.export.scores import never_predicted, without_pictures
from studies.objective import NAMES
from trainer.errors import printable
from trainer.results import gflops

if TYPE_CHECKING:
    from rich.console import Group

CLASSES_SHOWN = 10
"""Number of classes that are shown: those with the largest differences."""


def text_of_comparison(answer: Comparison) -> Group:
    """Tables for the terminal. They fit 80 columns, unless the names of the exports are longer."""
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    first, second = answer.exports
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for one in (first, second):
        table.add_column(one.name, justify="right", overflow="fold")
    rows: dict[str, Callable[[Compared], str]] = {
        "accuracy": lambda one: Score(value=one.accuracy, interval=one.interval).in_brief,
        "macro F1": lambda one: one.scores.macro_f1.in_brief,
        "balanced accuracy": lambda one: one.scores.balanced_accuracy.in_brief,
        "top-5 accuracy": lambda one: one.scores.top5.in_brief if one.scores.top5 else "-",
        "calibration error": lambda one: one.scores.calibration_error.in_brief,
        "loss": lambda one: f"{one.loss:.4f}",
        "parameters": lambda one: f"{one.num_params:,}",
        "multiply-adds": lambda one: f"{one.macs:,} ({gflops(one.macs)})",
        "model.onnx": lambda one: f"{one.bytes / 1e6:.2f} MB",
    }
    if first.scores.top5 is None and second.scores.top5 is None:  # both have few classes
        del rows["top-5 accuracy"]
    if {one.objective for one in (first, second)} != {"accuracy"}:
        rows = {"chosen by": lambda one: NAMES[one.objective]} | rows
    for name, show in rows.items():
        table.add_row(name, show(first), show(second))
    for batch in LATENCY_BATCHES:
        table.add_row(f"batch of {batch}", *(f"{one.latency_ms[str(batch)]:,.1f} ms" for one in (first, second)))
    verdict = "chance alone seldom makes such a difference" if answer.p < 0.05 else "it may well be chance"
    lines = (
        f"{answer.n:,} pictures of {answer.source}; only the first was right on {answer.only_first}, only the second "
        f"on {answer.only_second}\n"
        f"McNemar's test, exact: p = {answer.p:.3g}, {verdict}\n"
        "in brackets: 95 % intervals; they cover the choice of the pictures alone"
    )
    if missing := without_pictures(first.scores, "there", printable):
        lines += f"\n{missing}"
    for one in (first, second):
        if never := never_predicted(one.scores, printable):
            lines += f"\n{one.name}: {never[0].lower()}{never[1:]}"
    if answer.source.startswith(TEST):
        where = ", ".join(map(repr, answer.counted_in))
        counted = f"counted in {where}" if where else "counted nowhere: no study here has these pictures"
        lines += f"\nThis is a use of a test split, {counted}; a model chosen by it needs new pictures as a test"
    classes = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("class", "pictures", "first", "second", "difference"):
        classes.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    for differing in [one for one in answer.classes if one.difference][:CLASSES_SHOWN]:
        name = printable(differing.name)
        values = (f"{differing.first:.1%}", f"{differing.second:.1%}", f"{differing.difference:+.1%}")
        classes.add_row(Text(name), str(differing.n), *values)
    parts: list[RenderableType] = [table, Text(f"\n{lines}")]
    if classes.rows:
        parts += [Text("\nclasses that differ most", style="bold"), classes]
    return Group(*parts)
