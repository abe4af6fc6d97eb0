"""``search report``: one HTML page that tells a search's story, and needs neither a network nor this program."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.io
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs
from sqlalchemy import URL

from search.budget import describe
from search.errors import UsageError
from search.figures import FONT, Picture, position, ranked, sampled_axes, setting_importances, show, study_pictures
from search.status import duration, view_of
from search.storage import open_storage, storage_errors
from search.study import find_study
from studies import Limit, StudySpec

RECIPES = 5
"""Best trials in the table and in the TOML: as many columns as a printed page holds."""

EDGE = 0.05
"""Share of a range, in the logarithm where it is sampled so, that counts as its edge."""

SURE_TRIALS = 30
"""Completed trials below which the importance is called a guess."""


def write_report(study_name: str, url: URL, out: Path | None = None) -> Path:
    """Write the report of a study, running or not; an earlier one is replaced.

    Args:
        study_name: the study.
        url: the storage.
        out: the file; by default STUDY-report.html in the current folder.

    Returns:
        The file.

    Raises:
        StorageError: no database, or it cannot be read.
        UsageError: no such study, or the file cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with storage_errors(url):
        study, spec = find_study(open_storage(url), study_name)
        page = render(spec, study.get_trials(deepcopy=False), setting_importances(study), datetime.now())
    out = out or Path(f"{study_name}-report.html")
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    return out


def render(spec: StudySpec, trials: Sequence[FrozenTrial], importances: dict[str, float], now: datetime) -> str:
    """The page: about 5 MB, nearly all of it plotly.js.

    Args:
        spec: what the study searches.
        trials: all of its trials, in any state.
        importances: share of each setting, or empty with too few trials.
        now: date on the page.
    """
    best = ranked(trials)[:RECIPES]
    sections = [
        _header(spec, trials, now),
        _findings(spec, trials, importances),
        _recipes(spec, trials, best),
        *(_figure(picture) for picture in study_pictures(trials, spec, importances)),
        _failures(trials),
        _settings(spec),
    ]
    title, body = _text(f"{spec.name}: search report"), "\n".join(filter(None, sections))
    # The policy holds the page to its promise: the browser refuses it every address, whatever a figure may ask for.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<noscript><p>The figures need JavaScript; the words and tables do not.</p></noscript>
{body}
</body>
</html>
"""


def story(spec: StudySpec, trials: Sequence[FrozenTrial]) -> str:
    """The search in a few sentences: what was searched, when, what came out, what it cost."""
    views = [view_of(trial) for trial in trials if trial.state.is_finished()]
    by_state = {state: [view for view in views if view.state == state] for state in ("COMPLETE", "PRUNED", "FAIL")}
    place = f" ({Path(spec.data.path).name})" if spec.data.path else ""
    limit = "with no limit on the model" if spec.limit == Limit() else f"for models of at most {describe(spec.limit)}"
    sentences = [
        f"The search looked for the best recipe for {spec.train.model} on {spec.data.source}{place} at "
        f"{spec.data.image_size} px, {limit}, with {_count(spec.train.epochs, 'epoch')} of training for each trial."
    ]
    if not views:
        return f"{sentences[0]} No trial has finished yet."
    begun = [trial.datetime_start for trial in trials if trial.datetime_start]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    when = f" between {min(begun):%-d %B %Y, %H:%M} and {max(ended):%-d %B %Y, %H:%M}" if begun and ended else ""
    sentences.append(
        f"{len(views)} of {_count(spec.search.trials, 'trial')} finished{when}: {len(by_state['COMPLETE'])} completed, "
        f"{len(by_state['PRUNED'])} were pruned, {len(by_state['FAIL'])} failed."
    )
    if best := next(iter(ranked(trials)), None):
        number = list(_known_numbers([best]))
        known = ", one of the known recipes that were tried first" if number else ""
        sentences.append(
            f"The best, trial {best.number}{known}, reached {best.values[0]:.2%} on the validation split. That is one "
            f"training, chosen as the best of {len(by_state['COMPLETE'])}, so partly luck; export-best trains it again."
        )
    spent = {state: sum(view.seconds for view in group) for state, group in by_state.items()}
    if total := sum(spent.values()):
        sentences.append(
            f"Training took {duration(total)} in all, summed over the workers: {spent['COMPLETE'] / total:.0%} on "
            f"trials that completed, {spent['PRUNED'] / total:.0%} on pruned and {spent['FAIL'] / total:.0%} on failed "
            "ones."
        )
    # What a pruned trial would have cost is its own time per epoch, carried on to the last one.
    saved = sum(
        view.seconds / view.epochs * (spec.train.epochs - view.epochs) for view in by_state["PRUNED"] if view.epochs
    )
    if saved:
        sentences.append(f"Pruning saved about {duration(saved)}.")
    return " ".join(sentences)


def findings(spec: StudySpec, trials: Sequence[FrozenTrial], importances: dict[str, float]) -> list[str]:
    """What someone should know before trusting the result or launching the next search, one sentence or two each."""
    complete = ranked(trials)
    finished = [trial for trial in trials if trial.state.is_finished()]
    unfinished = sum(trial.state == TrialState.RUNNING for trial in trials)
    found = []
    if finished and not complete:
        found.append("No trial has completed, so there is no best recipe yet.")
    if len(finished) < spec.search.trials:
        running = f", {unfinished} more {'is' if unfinished == 1 else 'are'} under way" if unfinished else ""
        found.append(
            f"The budget is not spent: {len(finished)} of {_count(spec.search.trials, 'trial')} finished{running}. "
            "The same launch command goes on."
        )
    if complete:
        found += _edges(spec, trials, complete)
    if complete and len(complete) < SURE_TRIALS:
        guess = "the importance of the settings is a guess" if importances else "the importance of settings is left out"
        found.append(f"Only {_count(len(complete), 'trial')} completed: {guess}.")
    found += _first_rung(spec, trials, complete)
    diverged = [trial for trial in trials if _is_diverged(trial)]
    if diverged:
        rates = sorted(trial.params["lr"] for trial in diverged if "lr" in trial.params)
        where = f", at learning rates from {show(rates[0])} to {show(rates[-1])}" if rates else ""
        found.append(f"{_count(len(diverged), 'trial')} diverged{where}.")
    failed = sum(trial.state == TrialState.FAIL for trial in trials)
    if failed:
        found.append(f"{_count(failed, 'trial')} failed; the sampler learns nothing from those. Reasons are below.")
    return found


def as_toml(spec: StudySpec, trials: Sequence[FrozenTrial]) -> str:
    """Trials as the ``[[known]]`` tables of a study file, which make a search begin with them."""
    return "\n\n".join(
        "\n".join(
            [
                f"[[known]]    # trial {trial.number}, {trial.values[0]:.2%}",
                *(f"{key} = {json.dumps(trial.params[key])}" for key in spec.space if key in trial.params),
            ]
        )
        for trial in trials
    )


# -- findings


def _edges(spec: StudySpec, trials: Sequence[FrozenTrial], complete: list[FrozenTrial]) -> Iterator[str]:
    """Numeric settings of the best trial that lie at an end of their range."""
    best = complete[0]
    for key, axis in sampled_axes(trials, spec).items():
        if key not in best.params or isinstance(axis, CategoricalDistribution):
            continue
        assert isinstance(axis, FloatDistribution | IntDistribution)
        at = position(axis, best.params[key])
        end = "lower" if at <= EDGE else "upper" if at >= 1 - EDGE else None
        if end is None or axis.low == axis.high:
            continue
        top = [position(axis, trial.params[key]) for trial in complete[:RECIPES] if key in trial.params]
        near = sum(value <= 0.2 if end == "lower" else value >= 0.8 for value in top)
        sentence = (
            f"The best {key}, {show(best.params[key])}, sits at the {end} edge of its range, {show(axis.low)} to "
            f"{show(axis.high)}; {near} of the top {len(top)} lie in the outermost fifth on that side."
        )
        if key == "width_mult" and end == "upper":
            limited = getattr(spec.space["width_mult"], "high", None) is None
            cure = "The limit binds: a larger one may give better accuracy." if limited else "Raise its upper end."
        elif end == "lower" and axis.low == 0:
            cure = "Perhaps it is not needed at all."
        else:
            cure = f"{'Lower values' if end == 'lower' else 'Higher values'} may be better: widen the range."
        yield f"{sentence} {cure}"


def _first_rung(spec: StudySpec, trials: Sequence[FrozenTrial], complete: list[FrozenTrial]) -> Iterator[str]:
    """How many trials the pruner ended at its first chance, and whether that early accuracy tells anything."""
    rung = spec.search.min_epochs
    pruned = [view_of(trial) for trial in trials if trial.state == TrialState.PRUNED and not _is_diverged(trial)]
    first = sum(view.epochs <= rung for view in pruned)
    if not first:
        return
    sentence = (
        f"{first} of {_count(len(pruned), 'pruned trial')} {'was' if first == 1 else 'were'} pruned at the first rung, "
        f"after {_count(rung, 'epoch')} of {spec.train.epochs}."
    )
    pairs = [
        (trial.intermediate_values[rung], trial.values[0]) for trial in complete if rung in trial.intermediate_values
    ]
    if len(pairs) >= 8:  # fewer, and chance alone makes any correlation
        early, final = (np.argsort(np.argsort([pair[side] for pair in pairs])) for side in (0, 1))
        agreement = float(np.corrcoef(early, final)[0, 1])
        sentence += f" Among the {len(pairs)} that completed, the rank after {_count(rung, 'epoch')} and the final rank"
        sentence += f" correlate by {agreement:.2f}" + (
            ": so early an accuracy says little here; raise search.min_epochs." if agreement < 0.5 else "."
        )
    yield sentence


def _is_diverged(trial: FrozenTrial) -> bool:
    """PRUNED, but by no pruner: the reason is then the trainer's own."""
    reason = trial.user_attrs.get("reason", "")
    return trial.state == TrialState.PRUNED and bool(reason) and not re.fullmatch(r"\w+ after epoch \d+", reason)


def _known_numbers(trials: Sequence[FrozenTrial]) -> Iterator[int]:
    return (trial.user_attrs["known"] for trial in trials if "known" in trial.user_attrs)


# -- the page's parts, in its order; whatever comes from outside goes through _text


def _header(spec: StudySpec, trials: Sequence[FrozenTrial], now: datetime) -> str:
    best = next(iter(ranked(trials)), None)
    finished = sum(trial.state.is_finished() for trial in trials)
    facts = {
        "best accuracy": f"{best.values[0]:.2%}" if best else "none yet",
        "its parameters": f"{best.user_attrs['num_params']:,}" if best and "num_params" in best.user_attrs else "-",
        "trials finished": f"{finished} of {spec.search.trials}",
        "training time": duration(sum(view_of(trial).seconds for trial in trials if trial.state.is_finished())),
    }
    listed = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    return (
        f"<header><p class=quiet>Search report, {now:%-d %B %Y, %H:%M}, Featherweight {_text(version('featherweight'))}"
        f"</p><h1>{_text(spec.name)}</h1><dl class=facts>{listed}</dl></header><p>{_text(story(spec, trials))}</p>"
    )


def _findings(spec: StudySpec, trials: Sequence[FrozenTrial], importances: dict[str, float]) -> str:
    lines = findings(spec, trials, importances)
    return f"<h2>Worth knowing</h2><ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _recipes(spec: StudySpec, trials: Sequence[FrozenTrial], best: list[FrozenTrial]) -> str:
    if not best:
        return ""
    attributes = [trial.user_attrs for trial in best]
    rows = [
        ["accuracy", "", *(f"{trial.values[0]:.2%}" for trial in best)],
        ["parameters", "", *(_number(values.get("num_params")) for values in attributes)],
        ["multiply-adds", "", *(_number(values.get("macs")) for values in attributes)],
        ["training time", "", *(duration(view_of(trial).seconds) for trial in best)],
    ]
    rows += [
        [key, _range(axis), *(show(trial.params.get(key, "-")) for trial in best)]
        for key, axis in sampled_axes(trials, spec).items()
    ]
    return (
        "<h2>Best recipes</h2>"
        + _table(["trial", "searched", *(str(trial.number) for trial in best)], rows, left=2)
        + "<p>The best as TOML: pasted at the end of a study file, it is what the next search begins with.</p>"
        f"<pre>{_text(as_toml(spec, best[:1]))}</pre>"
        f"<details><summary>The others</summary><pre>{_text(as_toml(spec, best[1:]))}</pre></details>"
        "<p>To train the best again, measure it and hand it over: "
        f"<code>search export-best {_text(spec.name)}</code></p>"
    )


def _figure(picture: Picture) -> str:
    drawn = plotly.io.to_html(
        picture.figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{picture.id}",
        config={"displayModeBar": False, "responsive": True},
    )
    return f"<figure><h2>{_text(picture.title)}</h2><figcaption>{_text(picture.caption)}</figcaption>{drawn}</figure>"


def _failures(trials: Sequence[FrozenTrial]) -> str:
    bad = [view_of(trial) for trial in trials if trial.state == TrialState.FAIL or _is_diverged(trial)]
    if not bad:
        return ""
    rows = [
        [
            str(view.number),
            "failed" if view.state == "FAIL" else "diverged",
            str(view.epochs),
            view.reason or "not known",
        ]
        for view in bad
    ]
    table = _table(["trial", "outcome", "epochs", "reason"], rows, left=4)
    return f"<h2>Failed and diverged trials</h2>{table}"


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
        for key, value in spec.data.model_dump(mode="json", exclude_defaults=True).items()
        if key != "path"  # a page that is passed on need not tell where pictures lie
    }
    limit = {f"limit.{key}": value for key, value in spec.limit.model_dump().items() if value is not None}
    rows = [[key, _number(value)] for key, value in (data | limit | fixed | searched | {"seed": spec.seed}).items()]
    return f"<h2>What was fixed</h2>{_table(['setting', 'value'], rows, left=2)}"


def _table(header: list[str], rows: list[list[str]], *, left: int) -> str:
    """A table whose first ``left`` columns hold words and the others numbers."""

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


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else show(value)


def _text(words: str) -> str:
    return html.escape(words)


_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ max-width: 700px; margin: 2.5rem auto; padding: 0 1rem; color: #1f2328; background: white;
  font: 15px/1.55 {FONT}; }}
h1 {{ font-size: 1.9rem; font-weight: 650; margin: 0 0 1rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; font-weight: 650; margin: 2.4rem 0 .4rem; }}
.quiet, figcaption, dt {{ color: #59636e; font-size: 13px; }}
.quiet {{ margin: 0; }}
.facts {{ display: grid; grid-template-columns: repeat(4, auto); gap: .5rem 1.5rem; margin: 0 0 1.4rem;
  padding: .8rem 0; border: solid #d1d9e0; border-width: 1px 0; }}
dd {{ margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }}
ul {{ padding-left: 1.2rem; margin: .4rem 0; }}
li {{ margin: .35rem 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid #e4e7eb;
  overflow-wrap: anywhere; white-space: pre-line; }}
th {{ color: #59636e; font-weight: 500; border-bottom-color: #9aa4af; overflow-wrap: normal; }}
.number {{ text-align: right; padding: .28rem 0 .28rem .8rem; overflow-wrap: normal; }}
pre, code {{ font: 12.5px/1.5 ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace; }}
pre {{ background: #f6f8fa; padding: .8rem 1rem; overflow-x: auto; }}
figure {{ margin: 0; break-inside: avoid; }}
figcaption {{ margin-bottom: .6rem; }}
@page {{ margin: 12mm; }}
@media print {{ body {{ margin: 0 auto; padding: 0; }} h2 {{ break-after: avoid; }} pre {{ white-space: pre-wrap; }} }}
@media (max-width: 560px) {{ .facts {{ grid-template-columns: repeat(2, auto); }} }}
"""
