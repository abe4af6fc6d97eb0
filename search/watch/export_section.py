"""The report's section about the last export: its scores, its classes, its most confident mistakes.

The export stores the section's content in the study's folder. The figure of mistakes shows the user's own pictures, so
the export itself has it only with ``[final] gallery = true``.
"""

from __future__ import annotations

import html

from pydantic import ValidationError

from search.paths import Runs
from trainer.kept import recall, write_checked
from trainer.values import FrozenModel


class ExportSection(FrozenModel):
    """The content of the section, in words."""

    trial: int
    which_trials: str = ""
    """The exported trials in words."""
    measured: str
    """The accuracy in words, with its split and interval."""
    rows: dict[str, str]
    """Name of a score -> its value in words."""
    columns: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    """A row for each class that is shown, in the order of ``columns``."""
    which: str
    """The line above the table of classes: which classes are shown."""
    never: str
    """Sentences about the classes without pictures, and those never predicted; empty if there are none."""
    mistakes: str | None
    """PNG of the most confident mistakes in base64; None if there was no mistake."""
    caption: str = ""
    """The caption of ``mistakes``."""


def store_section(content: ExportSection, runs: Runs, study: str) -> None:
    """Store the content of the report's section about an export; it replaces that of an earlier export."""
    write_checked(runs.export_section(study), content.model_dump(mode="json"))


def stored_section(runs: Runs, study: str) -> ExportSection | None:
    """The content of the section about the last export; None if there is none on this machine, or of this version."""
    values = recall(runs.export_section(study), "the report leaves the export out; export again")
    try:
        return None if values is None else ExportSection.model_validate(values)
    except ValidationError:  # of another version
        return None


def section(runs: Runs, study: str) -> str:
    """The report's section about the last export, in HTML; empty if there is none on this machine."""
    one = stored_section(runs, study)
    if one is None:
        return ""
    rows = {"accuracy": one.measured} | one.rows
    facts = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in rows.items())
    head = "".join(f"<th>{_text(name)}</th>" for name in one.columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in one.classes)
    classes = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    which = one.which_trials or f"trial {one.trial}"
    parts = [
        f"<h2>The exported model, {which}</h2><div class=wide><table><tbody>{facts}</tbody></table></div>",
        f"<p>{_text(one.which)}</p><div class=wide>{classes}</div>",
        f"<p>{_text(one.never)}</p>" if one.never else "",
    ]
    if one.mistakes is not None:
        parts.append(
            f"<figure><h2>Its most confident mistakes</h2><figcaption>{_text(one.caption)}</figcaption>"
            f'<img style="max-width:100%" alt="Pictures that were mistaken" src="data:image/png;base64,{one.mistakes}">'
            "</figure>"
        )
    return "".join(parts)


def _text(words: str) -> str:
    return html.escape(words)
