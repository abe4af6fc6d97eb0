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
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from search.findings import position, ranked, sampled_axes, show
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
    floor, _ = accuracy_range(complete)
    below = " Dots on the axis lie below it." if any(trial.values[0] < floor for trial in complete) else ""
    if complete:
        caption = (
            "Validation accuracy of the trials in the order in which they were begun. The line is the best so far; "
            f"crosses on the axis are pruned trials.{below}"
        )
        pictures.append(Picture("history", "How the search went", caption, optimization_history(trials, spec)))
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
            f"a cloud without a slope does not prove that a setting is idle.{below}"
        )
        pictures.append(Picture("slices", "One setting at a time", caption, slices(trials, spec)))
    if importances:
        caption = (
            "Share of each setting, by itself, in how much the accuracy of the completed trials varies over the space "
            f"that was searched (fANOVA, {len(complete)} trials)."
        )
        pictures.append(Picture("importance", "Which settings mattered", caption, importance_bars(importances)))
    if len({trial.user_attrs.get(_size_key(spec)) for trial in complete} - {None}) > 1:
        caption = (
            "Completed trials. The line is the frontier, the best accuracy found with a model of at most that size; "
            f"its trials are numbered.{below}"
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


def accuracy_range(complete: Sequence[FrozenTrial]) -> tuple[float, float]:
    """Ends of an accuracy axis: a few hopeless trials, drawn on its foot, must not press all the others flat."""
    values = [trial.values[0] for trial in complete] or [0.0, 1.0]
    lower, upper = (float(quartile) for quartile in np.quantile(values, (0.25, 0.75)))
    low, high = min(value for value in values if value >= lower - 3 * (upper - lower)), max(values)
    margin = 0.07 * (high - low) or 0.01
    return low - margin, high + margin


# -- the figures; each takes all trials of a study and picks its own


def optimization_history(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Accuracy of each trial over their numbers, and the best so far."""
    complete = sorted(ranked(trials), key=lambda trial: trial.number)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    floor, _ = accuracy_range(complete)
    best_so_far: list[float] = []
    for trial in complete:
        best_so_far.append(max(floor, trial.values[0], *best_so_far[-1:]))
    figure = _figure(300)
    cross = {"symbol": "x-thin", "size": 5, "line": _line(QUIET)}
    # A pruned trial's accuracy is that of an early epoch: drawn to scale, it would press the others flat.
    figure.add_scatter(
        **_points(pruned, spec.train.epochs) | {"y": [floor] * len(pruned)}, mode="markers", name="pruned", marker=cross
    )
    heights = [max(floor, trial.values[0]) for trial in complete]
    dot = {"color": GOOD, "size": 7}
    figure.add_scatter(
        **_points(complete, spec.train.epochs) | {"y": heights}, mode="markers", name="completed", marker=dot
    )
    figure.add_scatter(
        x=[*(trial.number for trial in complete), max((trial.number for trial in trials), default=0)],
        y=[*best_so_far, *best_so_far[-1:]],
        mode="lines",
        name="best so far",
        line=_line(BEST, 2) | {"shape": "hv"},
        hoverinfo="skip",
    )
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text="trial", showgrid=False, dtick=_whole_steps(len(trials)))
    return figure.update_yaxes(tickformat=ACCURACY, range=accuracy_range(complete))


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
        line=_line(PLAIN, 0.8),
        marker={"color": PLAIN, "size": 3},
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
    figure.update_xaxes(title_text="epoch", range=[0.8, spec.train.epochs + 0.2], showgrid=False)
    figure.update_xaxes(dtick=_whole_steps(spec.train.epochs))
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
    # Seven names and more run into each other unless they climb.
    slant = {"yanchor": "bottom"} | ({"textangle": -30, "xanchor": "left"} if len(axes) > 6 else {})
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
        figure.add_annotation(x=number, y=1.1, text=f"<b>{html.escape(key)}</b>", **_LABEL | slant)
        if isinstance(axis, CategoricalDistribution):
            for choice in axis.choices:
                figure.add_annotation(
                    x=number,
                    y=position(axis, choice),
                    text=html.escape(show(choice)),
                    xanchor="left",
                    bgcolor="rgba(255,255,255,.75)",
                    **_LABEL,
                )
        else:
            ends = (f"{low:.1%}", f"{high:.1%}") if axis is None else (show(axis.low), show(axis.high))  # type: ignore[attr-defined]
            figure.add_annotation(x=number, y=1.06, text=ends[1], **_LABEL)
            figure.add_annotation(x=number, y=-0.06, text=ends[0], **_LABEL)
    figure.update_layout(margin={"l": 40, "r": 56, "t": 10, "b": 10})
    figure.update_xaxes(visible=False, range=[-0.15, len(axes) + 0.15])
    return figure.update_yaxes(visible=False, range=[-0.12, 1.35 if len(axes) > 6 else 1.2])


def slices(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Accuracy of completed trials against each sampled setting, one small panel each."""
    axes, complete = sampled_axes(trials, spec), ranked(trials)
    floor, _ = accuracy_range(complete)
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
                y=[max(floor, trial.values[0]) for trial in group],
                cliponaxis=False,
                text=words,
                mode="markers",
                marker={"color": color, "size": size},
                hovertemplate="%{text}<extra></extra>",
                **place,
            )
        figure.update_xaxes(title_text=html.escape(key), title_standoff=4, showgrid=False, nticks=5, **place)
        if isinstance(axis, CategoricalDistribution):
            order = [html.escape(str(choice)) for choice in axis.choices]
            figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, **place)
            figure.update_xaxes(range=[-0.5, len(order) - 0.5], **place)
        else:
            assert isinstance(axis, FloatDistribution | IntDistribution)
            ends = [math.log10(axis.low), math.log10(axis.high)] if axis.log else [axis.low, axis.high]
            margin = 0.05 * (ends[1] - ends[0]) or 1
            # The whole range, used or not: how close to its ends the good trials lie is what one looks for.
            figure.update_xaxes(range=[ends[0] - margin, ends[1] + margin], **place)
            if axis.log:
                figure.update_xaxes(type="log", dtick="D2" if ends[1] - ends[0] < 1.5 else 1, **place)
    return figure.update_yaxes(tickformat=ACCURACY, range=accuracy_range(complete))


def importance_bars(importances: Mapping[str, float]) -> go.Figure:
    """Shares of the settings, the largest on top."""
    figure = _figure(20 + 26 * len(importances), foot=8)
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
    floor, _ = accuracy_range(complete)
    frontier: list[FrozenTrial] = []
    for trial in sorted(complete, key=lambda trial: (trial.user_attrs[key], -trial.values[0])):
        if trial.values[0] > (frontier[-1].values[0] if frontier else floor):
            frontier.append(trial)
    figure = _figure(340)
    words = {"num_params": "parameters", "macs": "multiply-adds"}[key]
    figure.add_scatter(
        x=[trial.user_attrs[key] for trial in complete],
        y=[max(floor, trial.values[0]) for trial in complete],
        cliponaxis=False,
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
    figure.update_xaxes(title_text=words, showgrid=False, tickformat="~s")
    return figure.update_yaxes(tickformat=ACCURACY, range=accuracy_range(complete))


def time_by_outcome(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Hours of training that went into completed, pruned and failed trials."""
    outcomes = [
        ("completed", TrialState.COMPLETE, GOOD),
        ("pruned", TrialState.PRUNED, PLAIN),
        ("failed", TrialState.FAIL, FAILED),
    ]
    figure = _figure(104, foot=8)
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


def _figure(height: int, foot: int = 44) -> go.Figure:
    return _style(go.Figure(), height, foot)


def _style(figure: go.Figure, height: int, foot: int = 44) -> go.Figure:
    figure.update_layout(
        template=None,
        height=height,  # pixels; the width is the page's
        margin={"l": 56, "r": 16, "t": 12, "b": foot},
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        showlegend=False,
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        hoverlabel={"bgcolor": "white", "font": {"family": FONT, "size": 12}},
    )
    axis = {
        "linecolor": PLAIN,
        "gridcolor": GRID,
        "zeroline": False,
        "tickfont": {"color": QUIET},
        "title_font": {"size": 12, "color": QUIET},
        "fixedrange": True,
    }
    figure.update_xaxes(**axis, showline=True, ticks="outside", tickcolor=PLAIN)
    return figure.update_yaxes(**axis)


def _line(color: str, width: float = 1) -> dict[str, Any]:
    return {"color": color, "width": width}


def _points(trials: Sequence[FrozenTrial], of_epochs: int) -> dict[str, Any]:
    views = [view_of(trial) for trial in trials]
    return {
        "x": [view.number for view in views],
        "text": [view.sentence(of_epochs) for view in views],
        "hovertemplate": "%{text}<extra></extra>",
        "cliponaxis": False,
    }


def _whole_steps(count: int) -> int | None:
    """Ticks at every trial or epoch where plotly would put some between them."""
    return 1 if count <= 10 else None


def _size_key(spec: StudySpec) -> str:
    return "macs" if spec.limit.macs is not None and spec.limit.params is None else "num_params"


def _fits(axis: BaseDistribution, value: Any) -> bool:
    if isinstance(axis, CategoricalDistribution):
        return value in axis.choices
    assert isinstance(axis, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and axis.low <= value <= axis.high


def _beginning(trial: FrozenTrial) -> datetime:
    assert trial.datetime_start is not None
    return trial.datetime_start


def _end(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None
    return trial.datetime_complete
