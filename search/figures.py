"""Figures of a study, from its trials: the same on the page of ``search report`` and in the dashboard.

Only scatters and bars: plotly draws those as SVG, which prints, and which needs no WebGL (its own parallel coordinates
do). Only lists go in: the dashboard's plotly.js is older than the Python package and reads no encoded arrays.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from search.status import duration, view_of
from studies import StudySpec

INK, QUIET, GRID, BEST, GOOD, PLAIN, FAILED = (
    "#1f2328",
    "#6e7781",
    "#e4e7eb",
    "#0b4f9e",
    "#5b93cf",
    "#c3c9d1",
    "#b3261e",
)
"""Colours of text, axes, grid lines, the best trial, the other good ones, all others, and failures."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"

TOP = 10
"""Trials whose learning curves are drawn."""

FEW_TRIALS = 10
"""Completed trials below which importance is not computed: it compares the best tenth with the rest."""

SLICES_PER_ROW = 3

ACCURACY = ".4~%"
"""Ticks and hovers: as many digits as are needed, at most four."""


@dataclass(frozen=True)
class Picture:
    """A figure with its words."""

    id: str
    """Letters and hyphens; the key under which the dashboard replaces it."""
    title: str
    caption: str
    """How to read it, in one or two sentences."""
    figure: go.Figure


def study_pictures(
    trials: Sequence[FrozenTrial], spec: StudySpec, importances: Mapping[str, float] | None = None
) -> list[Picture]:
    """Every figure that these trials have enough data for.

    Args:
        trials: all trials of the study, in any state.
        spec: what the study searches.
        importances: as ``setting_importances`` gives them.
    """
    complete = ranked(trials)
    views = [view_of(trial) for trial in trials if trial.state.is_finished()]
    pictures = []
    if complete:
        caption = (
            "Validation accuracy of the trials in the order in which they were begun. The line is the best so far; "
            "crosses at the foot are pruned trials."
        )
        pictures.append(Picture("history", "How the search went", caption, optimization_history(trials)))
    if any(view.epochs for view in views):
        caption = (
            f"Validation accuracy after each epoch: the best trial, the rest of the top {TOP} and, faint, the trials "
            "that were pruned."
        )
        pictures.append(Picture("curves", "Learning curves", caption, learning_curves(trials, spec)))
    if len(complete) > 1:
        caption = (
            "Each line is a completed trial; the best is dark, the next four are blue. Where these five run close "
            "together, the search has settled on a value."
        )
        pictures.append(Picture("parallel", "Recipes side by side", caption, parallel_coordinates(trials, spec)))
        caption = (
            "Accuracy of the completed trials against each setting; the best is dark. All settings vary at once, so "
            "a cloud without a slope does not prove that a setting is idle."
        )
        pictures.append(Picture("slices", "One setting at a time", caption, slices(trials, spec)))
    if importances:
        caption = (
            "How much of what sets the best tenth of the trials apart from the others each setting accounts for "
            f"(PED-ANOVA, {len(complete)} completed trials)."
        )
        pictures.append(Picture("importance", "Which settings mattered", caption, importance_bars(importances)))
    if len({trial.user_attrs.get(_size_key(spec)) for trial in complete} - {None}) > 1:
        caption = (
            "Completed trials. The line is the frontier, the best accuracy found with a model of at most that size; "
            "its trials are numbered."
        )
        pictures.append(Picture("size", "Accuracy against size", caption, accuracy_against_size(trials, spec)))
    if any(view.seconds for view in views):
        caption = "Training time of all finished trials by their outcome, summed over the workers."
        pictures.append(Picture("time", "Where the time went", caption, time_by_outcome(trials)))
        caption = (
            "Each bar is a trial from its beginning to its end; one that a stop interrupted spans the pause. Blue: "
            "completed, grey: pruned, red: failed."
        )
        pictures.append(Picture("timeline", "When each device worked", caption, timeline(trials)))
    return pictures


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Feasible COMPLETE trials, best first; the smaller model, then the older trial on a tie."""
    return sorted(
        (
            trial
            for trial in trials
            if trial.state == TrialState.COMPLETE and all(excess <= 0 for excess in trial.constraints.values())
        ),
        key=lambda trial: (-trial.values[0], trial.user_attrs.get("num_params", 0), trial.number),
    )


def setting_importances(study: optuna.Study) -> dict[str, float]:
    """How much each sampled setting mattered, largest first, summing to 1; empty with too few completed trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEW_TRIALS or len({trial.value for trial in complete}) == 1:
        return {}
    return {key: float(value) for key, value in optuna.importance.get_param_importances(study).items()}


def position(axis: BaseDistribution, value: Any) -> float:
    """Where a value lies between the ends of its range, 0 to 1, in the logarithm where it is sampled so."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices.index(value) / max(1, len(axis.choices) - 1)
    assert isinstance(axis, FloatDistribution | IntDistribution)
    low, high, at = float(axis.low), float(axis.high), float(value)
    if low == high:
        return 0.5
    if axis.log:
        return math.log(at / low) / math.log(high / low)
    return (at - low) / (high - low)


def sampled_axes(trials: Sequence[FrozenTrial], spec: StudySpec) -> dict[str, BaseDistribution]:
    """The space as the latest trial had it, in the study file's order; empty before the first trial."""
    latest = max((trial for trial in trials if trial.distributions), key=lambda trial: trial.number, default=None)
    if latest is None:
        return {}
    return {key: latest.distributions[key] for key in spec.space if key in latest.distributions}


def accuracy_range(complete: Sequence[FrozenTrial]) -> tuple[float, float]:
    """Lowest and highest accuracy to draw: a few hopeless trials far below the others must not press them flat."""
    values = [trial.values[0] for trial in complete] or [0.0, 1.0]
    lower, upper = (float(quartile) for quartile in np.quantile(values, (0.25, 0.75)))
    low = min(value for value in values if value >= lower - 3 * (upper - lower))
    return (low, max(values)) if low < max(values) else (low - 0.01, low + 0.01)


def show(value: Any) -> str:
    """A setting's value, for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- the figures; each takes all trials of a study and picks its own


def optimization_history(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Accuracy of each trial over their numbers, and the best so far."""
    complete = sorted(ranked(trials), key=lambda trial: trial.number)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    low, high = accuracy_range(complete)
    best_so_far: list[float] = []
    for trial in complete:
        best_so_far.append(max(trial.values[0], *best_so_far[-1:]) if best_so_far else trial.values[0])
    figure = _figure(300)
    cross = {"symbol": "x-thin", "size": 5, "line": _line(QUIET)}
    # A pruned trial's accuracy is that of an early epoch: drawn to scale, it would press the others flat.
    figure.add_scatter(**_points(pruned) | {"y": [low] * len(pruned)}, mode="markers", name="pruned", marker=cross)
    figure.add_scatter(**_points(complete), mode="markers", name="completed", marker={"color": GOOD, "size": 7})
    figure.add_scatter(
        x=[trial.number for trial in complete],
        y=best_so_far,
        mode="lines",
        name="best so far",
        line=_line(BEST, 2) | {"shape": "hv"},
        hoverinfo="skip",
    )
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="trial", showgrid=False)
    return figure.update_yaxes(tickformat=ACCURACY, range=_with_margin(low, high))


def learning_curves(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Accuracy after each epoch: the best trial, the top ten, and the pruned ones."""
    top = [trial for trial in ranked(trials)[:TOP] if trial.intermediate_values]
    figure = _figure(340)
    # One trace with gaps for all of them: thousands of traces would take the page seconds to draw.
    gaps: tuple[list[int | None], list[float | None]] = ([], [])
    for trial in trials:
        if trial.state == TrialState.PRUNED:
            epochs = sorted(trial.intermediate_values)
            gaps[0].extend([*epochs, None])
            gaps[1].extend([*(trial.intermediate_values[epoch] for epoch in epochs), None])
    figure.add_scatter(
        x=gaps[0],
        y=gaps[1],
        mode="lines+markers",
        line=_line(GRID, 1),
        marker={"color": GRID, "size": 3},
        hoverinfo="skip",
        name="pruned",
    )
    for rank, trial in reversed(list(enumerate(top))):
        epochs = sorted(trial.intermediate_values)
        figure.add_scatter(
            x=epochs,
            y=[trial.intermediate_values[epoch] for epoch in epochs],
            mode="lines+markers" if len(epochs) == 1 else "lines",
            line=_line(GOOD, 1.2) if rank else _line(BEST, 2.5),
            hovertemplate=f"trial {trial.number}, epoch %{{x}}: %{{y:.2%}}<extra></extra>",
            name=f"best: trial {trial.number}" if rank == 0 else f"the next {len(top) - 1}",
            legendgroup="best" if rank == 0 else "top",
            showlegend=rank < 2,
            legendrank=rank + 1,
        )
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="epoch", range=[0.8, spec.train.epochs + 0.2], showgrid=False, tickformat="d")
    return figure.update_yaxes(tickformat=ACCURACY)


def parallel_coordinates(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Completed trials as lines over the sampled settings and the accuracy, each on its own axis."""
    axes = sampled_axes(trials, spec)
    # After --accept-changes older trials may lack a setting, or have values outside the space of today.
    complete = [
        trial for trial in ranked(trials) if all(_fits(axis, trial.params.get(key)) for key, axis in axes.items())
    ]
    low, high = accuracy_range(complete)
    figure = _figure(340)
    groups = [("others", complete[5:], _line(PLAIN, 1)), ("next four", complete[1:5], _line(GOOD, 1.6))]
    for name, group, line in [*groups, ("best", complete[:1], _line(BEST, 3))]:
        x: list[float | None] = []
        y: list[float | None] = []
        words: list[str | None] = []
        for trial in group:
            x += [*range(len(axes) + 1), None]
            y += [position(axis, trial.params[key]) for key, axis in axes.items()]
            y += [max(0.0, trial.values[0] - low) / (high - low), None]
            words += [*(html.escape(f"trial {trial.number}, {key} {show(trial.params[key])}") for key in axes)]
            words += [f"trial {trial.number}, {trial.values[0]:.2%}", None]
        figure.add_scatter(x=x, y=y, text=words, mode="lines", line=line, name=name, hoverinfo="text")
    for number, (key, axis) in enumerate([*axes.items(), ("accuracy", None)]):
        figure.add_shape(type="line", x0=number, x1=number, y0=0, y1=1, line=_line(QUIET, 1), layer="below")
        figure.add_annotation(x=number, y=1.13, text=f"<b>{html.escape(key)}</b>", **_LABEL)
        if isinstance(axis, CategoricalDistribution):
            for choice in axis.choices:
                figure.add_annotation(
                    x=number, y=position(axis, choice), text=html.escape(show(choice)), xanchor="left", **_LABEL
                )
        else:
            ends = (f"{low:.1%}", f"{high:.1%}") if axis is None else (show(axis.low), show(axis.high))  # type: ignore[attr-defined]
            figure.add_annotation(x=number, y=1.06, text=ends[1], **_LABEL)
            figure.add_annotation(x=number, y=-0.06, text=ends[0], **_LABEL)
    figure.update_layout(margin={"l": 40, "r": 40, "t": 10, "b": 10})
    figure.update_xaxes(visible=False, range=[-0.15, len(axes) + 0.15])
    return figure.update_yaxes(visible=False, range=[-0.12, 1.2])


def slices(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Accuracy of completed trials against each sampled setting, one small panel each."""
    axes, complete = sampled_axes(trials, spec), ranked(trials)
    low, high = accuracy_range(complete)
    columns = min(SLICES_PER_ROW, max(1, len(axes)))
    rows = math.ceil(len(axes) / columns) or 1
    figure = make_subplots(
        rows, columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.3 / rows if rows > 1 else 0
    )
    _style(figure, 60 + 190 * rows)
    for number, (key, axis) in enumerate(axes.items()):
        place: dict[str, Any] = {"row": number // columns + 1, "col": number % columns + 1}
        having = [trial for trial in complete if key in trial.params]
        for group, color, size in ((having[1:], GOOD, 5), (having[:1], BEST, 9)):
            words = [
                html.escape(f"trial {trial.number}, {key} {show(trial.params[key])}: {trial.values[0]:.2%}")
                for trial in group
            ]
            choice = isinstance(axis, CategoricalDistribution)
            figure.add_scatter(
                x=[html.escape(str(trial.params[key])) if choice else trial.params[key] for trial in group],
                y=[max(low, trial.values[0]) for trial in group],
                text=words,
                mode="markers",
                marker={"color": color, "size": size},
                hovertemplate="%{text}<extra></extra>",
                **place,
            )
        figure.update_xaxes(title=html.escape(key), title_standoff=4, showgrid=False, nticks=5, **place)
        if isinstance(axis, CategoricalDistribution):
            order = [html.escape(str(choice)) for choice in axis.choices]
            figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, **place)
            figure.update_xaxes(range=[-0.5, len(order) - 0.5], **place)
        elif getattr(axis, "log", False):
            figure.update_xaxes(type="log", dtick="D2" if _decades(axis) < 1.5 else 1, **place)
    return figure.update_yaxes(tickformat=ACCURACY, range=_with_margin(low, high))


def importance_bars(importances: Mapping[str, float]) -> go.Figure:
    """Shares of the settings, the largest on top."""
    figure = _figure(50 + 26 * len(importances))
    figure.add_bar(
        y=[html.escape(key) for key in importances],
        x=list(importances.values()),
        text=[f"{value:.0%}" for value in importances.values()],
        **_BARS,
        marker={"color": GOOD},
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return figure.update_xaxes(visible=False, range=[0, 1.12 * max(importances.values(), default=1)])


def accuracy_against_size(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Completed trials over their parameters (multiply-adds where only those are limited), with the frontier."""
    key = _size_key(spec)
    complete = [trial for trial in ranked(trials) if key in trial.user_attrs]
    frontier: list[FrozenTrial] = []
    for trial in sorted(complete, key=lambda trial: (trial.user_attrs[key], -trial.values[0])):
        if not frontier or trial.values[0] > frontier[-1].values[0]:
            frontier.append(trial)
    low, high = accuracy_range(complete)
    figure = _figure(340)
    words = {"num_params": "parameters", "macs": "multiply-adds"}[key]
    figure.add_scatter(
        x=[trial.user_attrs[key] for trial in complete],
        y=[max(low, trial.values[0]) for trial in complete],
        text=[f"trial {trial.number}: {trial.values[0]:.2%}" for trial in complete],
        mode="markers",
        marker={"color": PLAIN, "size": 7},
        hovertemplate=f"%{{text}}, %{{x:,}} {words}<extra></extra>",
    )
    limit = spec.limit.params if key == "num_params" else spec.limit.macs
    ends = [trial.user_attrs[key] for trial in frontier]
    figure.add_scatter(
        x=[*ends, max([*ends, limit or 0])],
        y=[*(trial.values[0] for trial in frontier), frontier[-1].values[0]] if frontier else [],
        mode="lines",
        line=_line(BEST, 1.5) | {"shape": "hv"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=ends,
        y=[trial.values[0] for trial in frontier],
        text=[str(trial.number) for trial in frontier],
        mode="markers+text",
        textposition="top left",
        marker={"color": BEST, "size": 8},
        hovertemplate=f"trial %{{text}}: %{{y:.2%}}, %{{x:,}} {words}<extra></extra>",
        cliponaxis=False,
    )
    if limit is not None:
        figure.add_vline(x=limit, line=_line(QUIET, 1) | {"dash": "dot"})
        figure.add_annotation(
            x=limit, y=0, yref="paper", yanchor="bottom", xanchor="right", text=f"limit {limit:,}", **_LABEL
        )
    figure.update_xaxes(title=words, showgrid=False, tickformat="~s")
    return figure.update_yaxes(tickformat=ACCURACY, range=_with_margin(low, high))


def time_by_outcome(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Hours of training that went into completed, pruned and failed trials."""
    outcomes = [
        ("completed", TrialState.COMPLETE, GOOD),
        ("pruned", TrialState.PRUNED, PLAIN),
        ("failed", TrialState.FAIL, FAILED),
    ]
    figure = _figure(140)
    longest = 0.0
    for name, state, color in outcomes:
        chosen = [view_of(trial).seconds for trial in trials if trial.state == state]
        longest = max(longest, sum(chosen))
        label = f"{duration(sum(chosen))}, {len(chosen)} trial{'' if len(chosen) == 1 else 's'}"
        figure.add_bar(y=[name], x=[sum(chosen) / 3600], text=[label], **_BARS, marker={"color": color})
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return figure.update_xaxes(visible=False, range=[0, 1.4 * longest / 3600 or 1])


def timeline(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Finished trials as bars over the hours, a row for each worker."""
    colors = {TrialState.COMPLETE: GOOD, TrialState.PRUNED: PLAIN, TrialState.FAIL: FAILED}
    begun = sorted(
        (trial for trial in trials if trial.state in colors and trial.datetime_start and trial.datetime_complete),
        key=_beginning,
    )
    # Equal GPUs share a name, and no attribute says which of them it was: trials that overlap were on different ones.
    ends: dict[str, list[datetime]] = {}
    rows: dict[int, tuple[str, int]] = {}
    for trial in begun:
        device = str(trial.user_attrs.get("device", "unknown device"))
        lanes = ends.setdefault(device, [])
        lane = next((lane for lane, end in enumerate(lanes) if end <= _beginning(trial)), len(lanes))
        lanes[lane : lane + 1] = [_end(trial)]
        rows[trial.number] = (device, lane)

    def label(device: str, lane: int) -> str:
        short = device if len(device) <= 24 else f"{device[:21]}..."
        return html.escape(f"{short} {lane + 1}" if len(ends[device]) > 1 else short)

    figure = _figure(80 + 26 * sum(map(len, ends.values())))
    lasted = [(_end(trial) - _beginning(trial)).total_seconds() for trial in begun]
    figure.add_bar(
        y=[label(*rows[trial.number]) for trial in begun],
        x=[seconds * 1000 for seconds in lasted],
        base=[_beginning(trial).isoformat() for trial in begun],
        text=[
            f"trial {trial.number} {trial.state.name.lower()}, {duration(seconds)}"
            for trial, seconds in zip(begun, lasted, strict=True)
        ],
        orientation="h",
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
        marker={"color": [colors[trial.state] for trial in begun], "line": _line("white", 1)},
    )
    order = [label(device, lane) for device in sorted(ends) for lane in range(len(ends[device]))]
    figure.update_layout(bargap=0.3, margin_l=8)
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], showgrid=False, automargin=True)
    return figure.update_xaxes(type="date", showgrid=True)


# -- their common look

_LABEL: dict[str, Any] = {"showarrow": False, "font": {"size": 11, "color": QUIET}}

_BARS: dict[str, Any] = {
    "orientation": "h",
    "textposition": "outside",
    "cliponaxis": False,
    "hoverinfo": "skip",
    "width": 0.6,
}


def _figure(height: int) -> go.Figure:
    return _style(go.Figure(), height)


def _style(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template=None,
        height=height,  # pixels; the width is the page's
        margin={"l": 56, "r": 16, "t": 12, "b": 44},
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        showlegend=False,
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        hoverlabel={"bgcolor": "white", "font": {"family": FONT, "size": 12}},
    )
    axis = {"linecolor": PLAIN, "gridcolor": GRID, "zeroline": False, "tickfont": {"color": QUIET}, "fixedrange": True}
    figure.update_xaxes(**axis, showline=True, ticks="outside", tickcolor=PLAIN)
    return figure.update_yaxes(**axis)


def _line(color: str, width: float = 1) -> dict[str, Any]:
    return {"color": color, "width": width}


def _points(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    views = [view_of(trial) for trial in trials]
    return {
        "x": [view.number for view in views],
        "y": [view.value for view in views],
        "text": [f"trial {view.number}, epoch {view.epochs}" for view in views],
        "hovertemplate": "%{text}: %{y:.2%}<extra></extra>",
    }


def _size_key(spec: StudySpec) -> str:
    return "macs" if spec.limit.macs is not None and spec.limit.params is None else "num_params"


def _fits(axis: BaseDistribution, value: Any) -> bool:
    if isinstance(axis, CategoricalDistribution):
        return value in axis.choices
    assert isinstance(axis, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and axis.low <= value <= axis.high


def _with_margin(low: float, high: float) -> list[float]:
    return [low - 0.05 * (high - low), high + 0.08 * (high - low)]


def _decades(axis: Any) -> float:
    return math.log10(axis.high / axis.low)


def _beginning(trial: FrozenTrial) -> datetime:
    assert trial.datetime_start is not None
    return trial.datetime_start


def _end(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None
    return trial.datetime_complete
