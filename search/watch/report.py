"""``search report``: an HTML page about a search. To read it, neither a network nor this program is needed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import optuna
import plotly.io
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from plotly.offline import get_plotlyjs
from sqlalchemy import URL

from search.errors import UsageError
from search.figures.catalogue import Figure, study_figures
from search.figures.timeline import CRASHED, Segment, segments_of_journal
from search.paths import DEFAULT_RUNS, Runs
from search.study.budget import Budget, Spent
from search.study.journal import read_journal
from search.study.marks import own_trials
from search.study.readonly import open_to_read
from search.study.result import NO_RESULT, StudyResult, result_of
from search.study.storage import storage_errors
from search.study.study import find_study
from search.study.trial import (
    DIVERGED,
    OUT_OF_MEMORY,
    TrialView,
    best_of,
    is_paused,
    outcome_of,
    ranked,
    recipe_of,
    sampled_axes,
    states_of,
    view_of,
)
from search.watch.export_section import section
from search.watch.findings import (
    PAUSED,
    PAUSED_ROWS,
    RECIPES,
    as_toml,
    findings,
    paused_rows,
    setting_importances,
    story,
)
from search.watch.report_style import STYLE
from search.words import duration, show
from studies import StudySpec
from studies.objective import NAMES, number_of
from trainer.errors import no_room
from trainer.results import gflops
from trainer.values import Json

REPORT_VERSION = 2
"""Version of the JSON shape of ``search report --json``."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The answer of ``search report``."""

    page: str
    """Path of the written file."""
    bytes: int
    """Size of the file."""
    study: str
    story: str
    """The search in a few sentences."""
    known: StudyResult
    """The result as far as it is known."""
    findings: Sequence[str]
    """Findings, one or two sentences each."""
    budget: Budget
    spent: Spent
    counts: Mapping[str, int]
    """Optuna's state, or PAUSED -> number of trials."""
    seconds: Mapping[str, float]
    """State of finished or paused trials -> seconds of training."""
    best: Sequence[TrialView]
    """The best trials, best first."""
    toml: str
    """The best trials as TOML, for the end of a study file."""
    importances: Mapping[str, float]
    """Share of each setting in the variance of the objective."""
    failures: Sequence[TrialView]
    """Trials that failed, diverged or ran out of memory."""
    crashes: Sequence[Segment]
    """Segments of training that ended in a crash."""

    def to_json(self) -> dict[str, Json]:
        """The documented shape: the fields, and ``version``."""
        return {
            "version": REPORT_VERSION,
            "page": self.page,
            "bytes": self.bytes,
            "study": self.study,
            "story": self.story,
            **self.known.to_json(),
            "findings": list(self.findings),
            "budget": asdict(self.budget),
            "spent": asdict(self.spent),
            "counts": dict(self.counts),
            "seconds": dict(self.seconds),
            "best": [_facts(one) for one in self.best],
            "toml": self.toml,
            "importances": dict(self.importances),
            "failures": [_facts(one) | {"reason": one.reason} for one in self.failures],
            "crashes": [
                {"worker": one.worker, "trial": one.trial, "at": one.ended.isoformat(), "reason": one.reason}
                for one in self.crashes
            ],
        }


def _facts(view: TrialView) -> dict[str, Json]:
    kept = ("state", "value", "num_params", "macs", "seconds", "params")
    return {"trial": view.number} | {name: getattr(view, name) for name in kept}


def write_report(study_name: str, url: URL, runs: Runs, out: Path | None = None) -> Report:
    """Write the report of a study, whether it is searched now or not. The report replaces an earlier one.

    Args:
        study_name: name of the study.
        url: URL of the storage.
        runs: the runs folder with the search's journal. A search on another machine has no journal here.
        out: the file; by default STUDY-report.html in the current folder.

    Raises:
        ReplayFailed: the journal was changed by another program.
        StorageError: the database is missing or cannot be read.
        UsageError: there is no such study, or the file cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with storage_errors(url):
        study, spec = find_study(open_to_read(url), study_name)
        trials = own_trials(study)
    importances = setting_importances(trials, spec)
    segments = segments_of_journal(read_journal(runs.journal(study_name)))
    known = result_of(study, spec)
    page = html_of_report(spec, trials, importances, datetime.now(), segments, known, section(runs, study_name), runs)
    out = out or Path(f"{study_name}-report.html")
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if full := no_room(error, out):
            raise full from error
        raise UsageError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    best, counts = ranked(trials, spec.limit)[:RECIPES], states_of(trials)
    return Report(
        page=str(out),
        bytes=out.stat().st_size,
        study=spec.name,
        story=story(spec, trials, known),
        known=known,
        findings=findings(spec, trials, importances, runs),
        budget=Budget.of(spec),
        spent=Spent.of(trials, spec),
        counts=counts,
        seconds={
            state: round(sum(view_of(trial).seconds for trial in trials if view_of(trial).state == state), 3)
            for state in counts
            if state not in ("RUNNING", "WAITING")
        },
        best=[view_of(trial) for trial in best],
        toml=as_toml(spec, best),
        importances=importances,
        failures=[view_of(trial) for trial in _bad(trials)],
        crashes=[one for one in segments if one.outcome == CRASHED],
    )


def text_of_report(answer: Report) -> str:
    """The output of ``search report``."""
    return f"wrote {answer.page}, {answer.bytes / 1e6:.1f} MB; open it in a browser"


def _bad(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that failed, diverged or ran out of memory."""
    return [trial for trial in trials if outcome_of(trial) in ("failed", DIVERGED, OUT_OF_MEMORY)]


def html_of_report(
    spec: StudySpec,
    trials: Sequence[FrozenTrial],
    importances: Mapping[str, float],
    now: datetime,
    segments: Sequence[Segment] = (),
    known: StudyResult = NO_RESULT,
    exported: str = "",
    runs: Runs = DEFAULT_RUNS,
) -> str:
    """The page in HTML: about 5 MB, nearly all of it plotly.js.

    Many parameters: what is read from database, journal and export.

    Args:
        spec: the study's spec.
        trials: all trials of the study, in any state.
        importances: share of each setting in the variance of the objective; empty if there are too few trials.
        now: the time that the page shows.
        segments: the times at which each worker trained; if empty, the trials' own times are shown.
        known: the result as far as it is known.
        exported: the section about the last export, in HTML.
        runs: the runs folder, for the commands on the page.
    """
    best = ranked(trials, spec.limit)[:RECIPES]
    sections = [
        _header(spec, trials, now, known),
        exported,
        _findings(spec, trials, importances, runs),
        _recipes(spec, trials, best, runs),
        _paused(spec, trials),
        *(_figure(figure) for figure in study_figures(trials, spec, importances, segments)),
        _failures(trials),
        _settings(spec),
    ]
    title, body = _text(f"{spec.name}: search report"), "\n".join(filter(None, sections))
    # The policy enforces that the page needs no network: the browser blocks every address.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<noscript><p>The figures need JavaScript; the words and tables do not.</p></noscript>
{body}
</body>
</html>
"""


# -- the parts of the page, in order; all text from outside goes through _text


def _header(spec: StudySpec, trials: Sequence[FrozenTrial], now: datetime, known: StudyResult) -> str:
    best = best_of(trials, spec.limit)
    done, of_what = Budget.of(spec).progress(Spent.of(trials, spec))
    kind, number, params = known.headline(best, spec.search.objective)
    facts = {
        kind: number,
        "its parameters": _number(params),
        of_what: done,
        "training time": duration(
            sum(view_of(trial).seconds for trial in trials if trial.state.is_finished() or is_paused(trial))
        ),
    }
    listed = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    program = f"Featherweight {_text(version('featherweight'))}"
    return (
        f"<header><p class=quiet>Search report, {now:%-d %B %Y, %H:%M}, {program}</p><h1>{_text(spec.name)}</h1>"
        f"<dl class=facts>{listed}</dl></header><p>{_text(story(spec, trials, known))}</p>"
    )


def _findings(spec: StudySpec, trials: Sequence[FrozenTrial], importances: Mapping[str, float], runs: Runs) -> str:
    lines = findings(spec, trials, importances, runs)
    return f"<h2>Worth knowing</h2><ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _recipes(spec: StudySpec, trials: Sequence[FrozenTrial], best: list[FrozenTrial], runs: Runs) -> str:
    if not best:
        return ""
    attributes, objective = [trial.user_attrs for trial in best], spec.search.objective
    rows = [
        [NAMES[objective], "", *(number_of(trial.values[0], objective) for trial in best)],
        ["parameters", "", *(_number(values.get("num_params")) for values in attributes)],
        ["multiply-adds", "", *(_number(values.get("macs")) for values in attributes)],
        ["", "", *(gflops(values["macs"]) if "macs" in values else "-" for values in attributes)],
        ["training time", "", *(duration(view_of(trial).seconds) for trial in best)],
    ]
    rows += [
        [key, _range(axis), *(show(recipe_of(trial).get(key, "-")) for trial in best)]
        for key, axis in sampled_axes(trials, spec).items()
    ]
    return (
        "<h2>Best recipes</h2>"
        + _table(["trial", "searched", *(str(trial.number) for trial in best)], rows, left=2)
        + "<p>The best as TOML. Paste it at the end of a study file, and the next search begins with it.</p>"
        f"<pre>{_text(as_toml(spec, best[:1]))}</pre>"
        + (
            f"<details><summary>The others</summary><pre>{_text(as_toml(spec, best[1:]))}</pre></details>"
            if best[1:]
            else ""
        )
        + "<p>To confirm the best and export it: "
        f"<code>{_text(runs.command('export-best', spec.name))}</code></p>"
    )


def _paused(spec: StudySpec, trials: Sequence[FrozenTrial]) -> str:
    rows = [[number, value, place] for number, place, value in paused_rows(spec, trials)]
    if not rows:
        return ""
    more = f"<p>And {len(rows) - PAUSED_ROWS} more.</p>" if len(rows) > PAUSED_ROWS else ""
    return (
        f"<h2>Paused trials</h2><p>{PAUSED}</p>"
        f"{_table(['trial', 'value there', 'state'], rows[:PAUSED_ROWS], left=3)}{more}"
    )


def _figure(figure: Figure) -> str:
    drawn = plotly.io.to_html(
        figure.chart,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{figure.id}",
        config={"displayModeBar": False, "responsive": True},
    )
    return f"<figure><h2>{_text(figure.title)}</h2><figcaption>{_text(figure.caption)}</figcaption>{drawn}</figure>"


def _failures(trials: Sequence[FrozenTrial]) -> str:
    rows = [
        [str(view.number), outcome_of(trial), str(view.epochs), view.reason or "not known"]
        for trial in _bad(trials)
        for view in [view_of(trial)]
    ]
    if not rows:
        return ""
    table = _table(["trial", "outcome", "epochs", "reason"], rows, left=4)
    return f"<h2>Trials that failed, diverged or ran out of memory</h2>{table}"


def _settings(spec: StudySpec) -> str:
    fixed = {
        f"train.{key}": value
        for key, value in spec.train.model_dump(mode="json", exclude_defaults=True).items()
        if key not in spec.space
    }
    searched = {
        f"search.{key}": value for key, value in spec.search.model_dump(mode="json").items() if value is not None
    }
    data = {
        f"data.{key}": value
        for key, value in (spec.data.model_dump(mode="json", exclude_defaults=True) | spec.data.named_tables).items()
        if key != "path"  # others may get the page, and it should not show where the pictures and their tables are
    }
    limit = {f"limit.{key}": value for key, value in spec.limit.model_dump().items() if value is not None}
    rows = [[key, _number(value)] for key, value in (data | limit | fixed | searched | {"seed": spec.seed}).items()]
    return f"<h2>Settings of the search</h2>{_table(['setting', 'value'], rows, left=2)}"


def _table(header: list[str], rows: list[list[str]], *, left: int) -> str:
    """A table; its first ``left`` columns hold words, the others numbers."""

    def row(tag: str, cells: list[str]) -> str:
        kinds = ["" if number < left else " class=number" for number in range(len(cells))]
        return "".join(f"<{tag}{kind}>{_text(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f"<div class=wide><table><thead><tr>{row('th', header)}</tr></thead><tbody>{body}</tbody></table></div>"


def _range(axis: BaseDistribution) -> str:
    if isinstance(axis, CategoricalDistribution):
        return ", ".join(show(choice) for choice in axis.choices)
    assert isinstance(axis, FloatDistribution | IntDistribution)
    return f"{show(axis.low)} to {show(axis.high)}{', log' if axis.log else ''}"


def _number(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else show(value)


def _text(words: str) -> str:
    return html.escape(words)
