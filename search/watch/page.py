"""A study's page in the dashboard, kept up to date during the search: a note, figures, the figures of an export.

Drawing takes seconds, and importing optuna-dashboard takes two more. So a separate process draws. It reads the database
over a connection that cannot write. It computes the study attributes that the dashboard's own functions would store,
and writes them into a file. The coordinator sends lines of JSON to the drawing process:

    {"storage", "study", "runs"}   once: the database to read, and the runs folder for the file
    {"note"}                       order to draw, with the text of the note; when it is done, the file appears

The coordinator is the study's only writer. It stores the attributes, a few at a time, between answers to its workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial
from sqlalchemy import URL

from search.paths import Runs
from search.study.confirmation import Confirmation, confirmation_of
from search.study.gain import gain_of
from search.study.lock import process_name
from search.study.marks import own_trials
from search.study.owned import OwnedStudy
from search.study.progress import Snapshot, nodes_in_words
from search.study.sampling import build_ladder
from search.study.trial import best_of, step_word
from search.watch.artifacts import show_figures
from search.watch.live import headline
from search.words import count, judged_on, show
from studies import Range, StudySpec
from studies.axes import Axis
from studies.limit import describe_limit
from studies.objective import number_of, words_of
from trainer.kept import read_checked, write_checked
from trainer.values import Json

FIRST_SECONDS = 30.0
"""A shorter search gets no page, because starting the drawing process takes some seconds of CPU time."""

UPDATE_SECONDS = 60.0
"""Time between two updates without a new best."""

NEW_BEST_SECONDS = 10.0
"""Time between two updates that each show a new best."""

WRITES = 8
"""Number of attributes that are written at a time; each write takes one or two milliseconds."""

NICENESS = 10
"""Niceness of the drawing process, so that it does not take CPU time from training."""

EXPORTED = "#### Exported\n\n"
CONFIRMED = "#### Confirmed with fresh seeds\n\n"
SEARCHED = "\n\n---\n\n"
"""Beginnings of the parts of the note, in their order: the export's part, which a later search does not change; the
confirmation's part; the search's part, which is the last because its value is the least certain. In notes of earlier
versions, the search's part is the first, and has no such beginning."""
EXPORTED_BEFORE = "#### Handed over\n\n"  # in notes of earlier versions


class StudyPage:
    """Keeps a study's page up to date: an observer of its search.

    Args:
        owned: the study.
        facts: further lines of the note, as (name, words).
        url: URL of the study's storage, for the drawing process.
        runs: the runs folder, for the files and the log of the drawing process.
    """

    name = "the study's page in the dashboard"

    def __init__(self, owned: OwnedStudy, facts: Sequence[tuple[str, str]], url: URL, runs: Runs) -> None:
        spec = owned.spec
        self._owned, self._spec, self._facts, self._url = owned, spec, facts, url
        self._storage, self._study_id = owned.study._storage, owned.study._study_id
        self._runs, self._file, self._log = runs, runs.page(spec.name), runs.page_log(spec.name)
        self._begun = time.monotonic()
        self._ordered = -float("inf")
        self._best: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._drawing = False
        self._waiting: list[tuple[str, Json]] = []

    def watch(self, snapshot: Snapshot) -> None:
        """Store a few attributes of the last update; if there are none, order the next update when it is due."""
        self._take_drawing()
        if self._waiting:
            self._write()
            return
        now, best = time.monotonic(), snapshot.best.number if snapshot.best else None
        wait = UPDATE_SECONDS if best == self._best else NEW_BEST_SECONDS
        if now - self._begun >= FIRST_SECONDS and now - self._ordered >= wait and not self._drawing:
            self._order(snapshot, "is being stopped" if snapshot.stopping else "is being searched")

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """Store a last update, if the page was begun and the drawing is done in time."""
        process = self._process
        if process is None:
            return
        deadline = time.monotonic() + seconds
        try:
            if lost:
                return
            self._wait_for_drawing(deadline)
            if not self._drawing and seconds:
                stopped = "was stopped; to go on, repeat its `search launch`"
                self._order(snapshot, "has spent its budget" if reason is None else stopped)
                self._wait_for_drawing(deadline)
        finally:
            process.kill()
            process.communicate()
            self._file.unlink(missing_ok=True)

    def _order(self, snapshot: Snapshot, state: str) -> None:
        if self._process is None:
            self._process = self._start()
        gain = gain_of(self._owned.study, self._spec)
        facts = [*self._facts, *([] if gain is None else [("gain", gain.sentence)])]
        note = note_text(self._spec, facts, snapshot, state, datetime.now().astimezone(), self._runs)
        self._say(self._process, {"note": note})
        self._best = snapshot.best.number if snapshot.best else None
        self._drawing, self._ordered = True, time.monotonic()

    def _start(self) -> subprocess.Popen[bytes]:
        self._file.unlink(missing_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "search.watch.page"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the search
            )
        # Sent over stdin: the URL may hold a password, and every user can read command lines.
        address = self._url.render_as_string(hide_password=False)
        self._say(process, {"storage": address, "study": self._spec.name, "runs": str(self._runs.root)})
        return process

    @staticmethod
    def _say(process: subprocess.Popen[bytes], order: dict[str, str]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()

    def _take_drawing(self) -> None:
        if self._drawing and self._file.exists():
            self._waiting = [*read_checked(self._file).items()]
            self._file.unlink()
            self._drawing = False
        elif self._process is not None and self._process.poll() is not None:
            self._process.communicate()
            self._process, self._drawing = None, False
            raise RuntimeError(f"it cannot be drawn; see {self._log}")

    def _write(self) -> None:
        self._owned.check()  # here too, because during an outage of the database the coordinator checks less often
        for key, value in self._waiting[:WRITES]:
            self._storage.set_study_system_attr(self._study_id, key, value)
        del self._waiting[:WRITES]  # only after the writes, so that writes that failed in an outage are repeated

    def _wait_for_drawing(self, deadline: float) -> None:
        while self._drawing and time.monotonic() < deadline:
            time.sleep(0.02)
            self._take_drawing()
        while self._waiting:
            self._write()


def note_text(
    spec: StudySpec, facts: Sequence[tuple[str, str]], snapshot: Snapshot, state: str, now: datetime, runs: Runs
) -> str:
    """The study's note, in Markdown.

    Args:
        spec: the study's spec.
        facts: further lines, as (name, words).
        snapshot: the progress of the search.
        state: predicate for the study, such as "is being searched".
        now: time of the note.
        runs: the runs folder, for the command that exports the best.
    """
    lines = []
    if (best := snapshot.best) is not None:
        lines += [f"#### Best so far: {snapshot.best_number}", ""]
        claim = f"{judged_on(spec.data.folds)}, of one training, in the search"
        lines += [f"Trial {best.number}{best.size_in_words}; {claim}. If two are equal, the smaller model is best.", ""]
        if snapshot.objective == "loss":
            lines += ["This dashboard shows the negated loss, because the study is maximised: higher is better.", ""]
        lines += ["| setting | value |", "| --- | --- |"]
        lines += [f"| {key} | {show(value)} |" for key, value in best.params.items()]
        lines += ["", f"Confirm it and export it: `{runs.command('export-best', spec.name)}`", ""]
    lines += ["#### Progress", ""]
    lines += [f"{headline(snapshot).partition(': ')[2]}, at {now:%H:%M %Z on %-d %B %Y}. The study {state}.", ""]
    if nodes := nodes_in_words(snapshot.workers):
        lines += [f"Workers: {nodes}.", ""]
    lines += ["#### What is searched", ""]
    lines += [f"- **{name}**: {words}" for name, words in [*facts, ("limit", describe_limit(spec.limit))]]
    lines += [f"- **space**: {', '.join(f'{key} {_axis(axis)}' for key, axis in spec.space.items())}"]
    search, step = spec.search, step_word(spec)
    how = build_ladder(spec).describe(step, search.reduction_factor) or f"{count(spec.num_steps, step)} for each trial"
    lines += [f"- **how**: {search.sampler}, {search.pruner.replace('_', ' ')}, {how}"]
    return "\n".join(lines)


def text_of_paused(rows: Sequence[tuple[str, str, str]]) -> str:
    """The paused trials in Markdown, for the end of the note; ``rows`` are from ``paused_rows``."""
    from search.watch.findings import PAUSED, PAUSED_ROWS

    if not rows:
        return ""
    words = f"{PAUSED} This dashboard shows them as RUNNING, because Optuna has no state for paused trials."
    lines = [
        "",
        "",
        f"#### Paused: {len(rows):,}",
        "",
        words,
        "",
        "| trial | value there | |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {number} | {value} | {place} |" for number, place, value in rows[:PAUSED_ROWS]]
    lines += ["", f"And {len(rows) - PAUSED_ROWS} more."] if len(rows) > PAUSED_ROWS else []
    return "\n".join(lines)


def text_of_confirmation(found: Confirmation) -> str:
    """A confirmation in Markdown."""
    sentence, head = found.sentence, "| trial | parameters | in the search | confirmed | |"
    rows = []
    for one in found.candidates:
        verdict = "chosen" if one.trial == found.winner else "tied" if one.tied else ""
        verdict = "diverged" if one.diverged else verdict
        searched = number_of(one.search_accuracy, found.objective)
        facts = f"{one.trial} | {one.num_params:,} | {searched} | {one.mean_in_words(found.objective)}"
        rows.append(f"| {facts} | {verdict} |")
    return "\n".join([f"{sentence[0].upper()}{sentence[1:]}.", "", head, "| --- | --- | --- | --- | --- |", *rows])


def show_confirmation(study: optuna.Study, spec: StudySpec) -> None:
    """Put the confirmation as it is now into the note of a study that this process owns."""
    from optuna_dashboard import get_note, save_note

    own, exported = _parts(get_note(study))
    save_note(study, _whole(own, confirmation_of(study, spec, owner=process_name()), exported))


def _parts(note: str) -> tuple[str, str]:
    """The part of a note that the search wrote, and the part that an export wrote."""
    note = note.replace(EXPORTED_BEFORE, EXPORTED)
    exported = note.partition(EXPORTED)[2].partition(CONFIRMED)[0].partition(SEARCHED)[0].rstrip()
    # A note without SEARCHED has only the search's part, or an earlier version wrote it, with that part first.
    before, _, own = note.partition(SEARCHED)
    return own or before.partition(CONFIRMED)[0].partition(EXPORTED)[0].rstrip(), exported


def _whole(own: str, found: Confirmation | None, exported: str) -> str:
    known = [EXPORTED + exported] if exported else []
    known += [CONFIRMED + text_of_confirmation(found)] if found else []
    return "\n\n".join(known) + SEARCHED + own if known else own


def show_export(study: optuna.Study, spec: StudySpec, artifacts: Path, words: str, figures: Iterable[Path]) -> None:
    """Put an export on the study's page: words into its note, figures among its artifacts.

    Args:
        study: the study, owned by this process.
        spec: the study's spec.
        artifacts: the dashboard's folder of artifacts.
        words: plain text; it replaces the text of an earlier export.
        figures: image files, for ``show_figures``.
    """
    from optuna_dashboard import get_note, save_note

    show_figures(study, artifacts, figures)
    own, _ = _parts(get_note(study))
    save_note(study, _whole(own, confirmation_of(study, spec), f"```\n{words}\n```"))


def _axis(axis: Axis) -> str:
    if isinstance(axis, Range):
        high = "the widest that fits" if axis.high is None else f"{axis.high:g}"
        return f"{axis.low:g} to {high}{' (log)' if axis.log else ''}"
    return " | ".join(show(choice) for choice in axis)


def main() -> None:
    """The drawing process. It ends when its input ends, and so when the coordinator ends."""
    os.nice(NICENESS)
    order = json.loads(sys.stdin.readline())

    from search.study.readonly import Database
    from search.study.study import find_study

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = Database(order["storage"]).open()
    study, spec = find_study(storage, order["study"])
    study_id = storage.get_study_id_from_name(order["study"])
    runs = Runs(Path(order["runs"]))
    file = runs.page(spec.name)
    for line in sys.stdin:
        shown = storage.get_study_system_attrs(study_id)
        found = confirmation_of(study, spec)
        drawn = page_attributes(shown, json.loads(line)["note"], found, own_trials(study), spec, runs)
        write_checked(file, {key: drawn[key] for key in drawn if drawn[key] != shown.get(key)}, durable=False)


def page_attributes(
    shown: Mapping[str, Json],
    note: str,
    found: Confirmation | None,
    trials: Sequence[FrozenTrial],
    spec: StudySpec,
    runs: Runs,
) -> dict[str, Json]:
    """The attributes that the dashboard's own functions store when they save a note, figures and artifacts.

    Args:
        shown: the study's current system attributes; the export's part of the note stays.
        note: the search's part of the note, in Markdown.
        found: the confirmation, if it was begun.
        trials: all trials of the study, in any state.
        spec: the study's spec.
        runs: the runs folder, with the artifacts.
    """
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    from search.figures.catalogue import page_figures
    from search.watch.findings import paused_rows, setting_importances

    storage = InMemoryStorage()
    sketch = optuna.create_study(storage=storage)
    study_id = storage.get_study_id_from_name(sketch.study_name)
    for key, value in shown.items():
        storage.set_study_system_attr(study_id, key, value)
    note += text_of_paused(paused_rows(spec, trials))
    save_note(sketch, _whole(note, found, _parts(get_note(sketch))[1]))
    for figure in page_figures(trials, spec, setting_importances(trials, spec)):
        save_plotly_graph_object(sketch, figure.chart, graph_object_id=figure.id)
    with tempfile.TemporaryDirectory() as folder:
        show_figures(sketch, runs.artifacts, draw_best(trials, spec, runs, Path(folder)))
    return storage.get_study_system_attrs(study_id)


def draw_best(trials: Sequence[FrozenTrial], spec: StudySpec, runs: Runs, folder: Path) -> list[Path]:
    """Draw the learning curve of the best trial and, if known, its confusion matrix, as PNG files."""
    from search.figures.confusion import read_confusion
    from search.figures.png import draw_confusion, draw_values

    best = best_of(trials, spec.limit)
    if best is None:
        return []
    title = f"{spec.name}, trial {best.number}: {words_of(best.values[0], spec.search.objective)}"
    curve, confusion = folder / "best-curve.png", folder / "best-confusion.png"
    trainings = build_ladder(spec).trainings_of(best.intermediate_values)
    draw_values(trainings, curve, title=title, step=step_word(spec), objective=spec.search.objective)
    try:
        known = read_confusion(runs.confusion(spec.name))
        if known.trial != best.number:
            return [curve]
        draw_confusion(known.table, known.names, confusion, title=f"{title} on validation")
    except OSError:  # the best trial was trained on another machine, or by an earlier version
        return [curve]
    except Exception as error:  # the file is damaged, or matplotlib raises
        print(f"the confusion matrix is not drawn: {error}", flush=True)  # to the log
        return [curve]
    return [curve, confusion]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
