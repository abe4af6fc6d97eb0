"""The charts of a study. A function that takes trials selects those that it draws.

The charts use only scatters and bars: plotly draws these as SVG, which prints well and needs no WebGL (plotly's own
parallel coordinates need it). Data are passed as lists, because the dashboard's plotly.js is older than the Python
package and cannot read encoded arrays.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from search.figures.style import (
    BARS,
    BEST,
    CRASH,
    FAILED,
    GOOD,
    GRID,
    LABEL,
    PLAIN,
    QUIET,
    WAITED,
    ValueAxis,
    apply_style,
    line_of,
    new_figure,
    points_of,
    value_range,
    whole_steps,
)
from search.figures.timeline import CRASHED, PAUSED, STOPPED, WENT_ON, Segment
from search.policy.ladder import Ladder
from search.study.sampling import build_ladder
from search.study.trial import is_paused, position, ranked, recipe_of, sampled_axes, step_word, view_of
from search.words import duration, show
from studies import StudySpec
from studies.objective import NAMES, number_of, words_of

TOP = 10
"""Number of best trials whose learning curves are drawn."""

SLICES_PER_ROW = 3

MOST_TICKS = 14
"""Approximate number of ticks on the axis below a series of trainings."""


def optimization_history(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Value of each trial by its number, and the best so far."""
    complete = sorted(ranked(trials, spec.limit), key=lambda trial: trial.number)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    ladder, paused = build_ladder(spec), list(filter(is_paused, trials))
    floor, _ = value_range(complete)
    axis = ValueAxis(spec.search.objective)
    best_so_far: list[float] = []
    for trial in complete:
        best_so_far.append(max(floor, trial.values[0], *best_so_far[-1:]))
    line = [axis.of(value) for value in best_so_far]
    figure = new_figure(300)
    cross = {"symbol": "x-thin", "size": 5, "line": line_of(QUIET)}
    circle = cross | {"symbol": "circle-open", "color": QUIET}
    # Pruned and paused trials are on the axis: the low accuracy of an early epoch would flatten the other points.
    for name, group, marker in (("pruned", pruned, cross), ("paused", paused, circle)):
        if group or name == "pruned":
            points = points_of(group, ladder, axis.objective) | {"y": [axis.of(floor)] * len(group)}
            figure.add_scatter(**points, mode="markers", name=name, marker=marker)
    dots = points_of(complete, ladder, axis.objective)
    dots |= {"y": [axis.of(max(floor, trial.values[0])) for trial in complete]}
    figure.add_scatter(**dots, mode="markers", name="completed", marker={"color": GOOD, "size": 7})
    figure.add_scatter(
        x=[*(trial.number for trial in complete), max((trial.number for trial in trials), default=0)],
        y=[*line, *line[-1:]],
        mode="lines",
        name="best so far",
        line=line_of(BEST, 2) | {"shape": "hv"},
        hoverinfo="skip",
    )
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text="trial", showgrid=False, dtick=whole_steps(len(trials)))
    return figure.update_yaxes(**axis.settings(complete))


def learning_curves(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Value after each epoch: the best trial, the top ten, and the pruned and the paused ones.

    Dotted lines are rungs. If each rung has its own training, the trainings stand side by side, and a curve begins anew
    after each line.
    """
    ladder, step, axis = build_ladder(spec), step_word(spec), ValueAxis(spec.search.objective)
    top = [trial for trial in ranked(trials, spec.limit)[:TOP] if trial.intermediate_values]
    figure = new_figure(340)
    # All trials of one kind share one trace with gaps, because the page would take seconds to draw thousands of traces.
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    for name, faint in (("pruned", pruned), ("paused", list(filter(is_paused, trials)))):
        if faint or name == "pruned":
            x, y = _curve([part for trial in faint for part in ladder.trainings_of(trial.intermediate_values)], axis)
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines+markers",
                line=line_of(PLAIN, 0.8),
                marker={"color": PLAIN, "size": 3},
                hoverinfo="skip",
                name=name,
            )
    for rank, trial in reversed(list(enumerate(top))):
        parts = ladder.trainings_of(trial.intermediate_values)
        x, y = _curve(parts, axis)
        places = [None if one is None else ladder.place_of(one) for one in x]
        words = [None if one is None else f"trial {trial.number}, {step} {one[0]} of {one[1]}" for one in places]
        figure.add_scatter(
            x=x,
            y=y,
            text=words,
            mode="lines+markers" if min(map(len, parts)) == 1 else "lines",
            marker={"size": 4},
            line=line_of(GOOD, 1.2) if rank else line_of(BEST, 2.5),
            hovertemplate=f"%{{text}}: {axis.hover}<extra></extra>",
            name=f"best: trial {trial.number}" if rank == 0 else f"the next {len(top) - 1}",
            legendgroup="best" if rank == 0 else "top",
            showlegend=rank < 2,
            legendrank=rank + 1,
        )
    figure.update_layout(showlegend=True)
    for rung in ladder.rungs:
        figure.add_vline(x=rung + 0.5 if ladder.anew else rung, line=line_of(QUIET, 1) | {"dash": "dot"})
    figure.update_xaxes(title_text=step, range=[0.8, ladder.last_step + 0.2], showgrid=False)
    figure.update_xaxes(dtick=whole_steps(ladder.last_step))
    if ladder.anew and ladder.rungs:
        ticks = _ticks(ladder)
        figure.update_xaxes(tickvals=ticks, ticktext=[str(ladder.place_of(one)[0]) for one in ticks])
        figure.update_xaxes(title_text=f"{step} of each training")
    return figure.update_yaxes(**axis.settings())


def _curve(parts: Sequence[Mapping[int, float]], axis: ValueAxis) -> tuple[list[int | None], list[float | None]]:
    """Steps and values of some trainings, with a gap after each."""
    steps = [step for part in parts for step in (*part, None)]
    return steps, [value for part in parts for value in (*map(axis.of, part.values()), None)]


def _ticks(ladder: Ladder) -> list[int]:
    """The steps with a tick: the last step of each training, and some before it."""
    every = max(1, round(ladder.last_step / MOST_TICKS))
    found = []
    for stage, end in enumerate(ladder.steps):
        found += [*range(end, ladder.steps_before(stage), -every)]
    return sorted(found)


def parallel_coordinates(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Completed trials as lines over the sampled settings and the objective, each on its own axis."""
    axes = sampled_axes(trials, spec)
    # After --accept-changes, older trials may lack a setting, or have values outside the present space.
    complete = [
        trial
        for trial in ranked(trials, spec.limit)
        if all(_fits(axis, recipe_of(trial).get(key)) for key, axis in axes.items())
    ]
    low, high = value_range(complete)
    objective = spec.search.objective
    figure = new_figure(340)
    # Seven or more names overlap unless they are slanted.
    slant = {"yanchor": "bottom"} | ({"textangle": -30, "xanchor": "left"} if len(axes) > 6 else {})
    groups = [("others", complete[5:], line_of(PLAIN, 1)), ("next four", complete[1:5], line_of(GOOD, 1.6))]
    for name, group, line in [*groups, ("best", complete[:1], line_of(BEST, 3))]:
        x: list[float | None] = []
        y: list[float | None] = []
        words: list[str | None] = []
        for trial in group:
            recipe = recipe_of(trial)
            x += [*range(len(axes) + 1), None]
            y += [position(axis, recipe[key]) for key, axis in axes.items()]
            y += [max(0.0, trial.values[0] - low) / (high - low), None]
            words += [*(html.escape(f"trial {trial.number}, {key} {show(recipe[key])}") for key in axes)]
            words += [f"trial {trial.number}, {words_of(trial.values[0], objective)}", None]
        figure.add_scatter(x=x, y=y, text=words, mode="lines", line=line, name=name, hoverinfo="text")
    for number, (key, axis) in enumerate([*axes.items(), (NAMES[objective], None)]):
        figure.add_shape(type="line", x0=number, x1=number, y0=0, y1=1, line=line_of(QUIET, 1), layer="below")
        figure.add_annotation(x=number, y=1.1, text=f"<b>{html.escape(key)}</b>", **LABEL | slant)
        if isinstance(axis, CategoricalDistribution):
            for choice in axis.choices:
                figure.add_annotation(
                    x=number,
                    y=position(axis, choice),
                    text=html.escape(show(choice)),
                    xanchor="left",
                    bgcolor="rgba(255,255,255,.75)",
                    **LABEL,
                )
        else:
            ends = [number_of(end, objective) for end in (low, high)]
            ends = ends if axis is None else [show(axis.low), show(axis.high)]  # type: ignore[attr-defined]
            figure.add_annotation(x=number, y=1.06, text=ends[1], **LABEL)
            figure.add_annotation(x=number, y=-0.06, text=ends[0], **LABEL)
    figure.update_layout(margin={"l": 40, "r": 56, "t": 10, "b": 10})
    figure.update_xaxes(visible=False, range=[-0.15, len(axes) + 0.15])
    return figure.update_yaxes(visible=False, range=[-0.12, 1.35 if len(axes) > 6 else 1.2])


def slices(trials: Sequence[FrozenTrial], spec: StudySpec) -> go.Figure:
    """Value of completed trials against each sampled setting, one small panel each."""
    axes, complete = sampled_axes(trials, spec), ranked(trials, spec.limit)
    values = ValueAxis(spec.search.objective)
    floor, _ = value_range(complete)
    columns = min(SLICES_PER_ROW, max(1, len(axes)))
    rows = math.ceil(len(axes) / columns) or 1
    figure = make_subplots(
        rows, columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.3 / rows if rows > 1 else 0
    )
    apply_style(figure, 60 + 190 * rows)
    for number, (key, axis) in enumerate(axes.items()):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        having = [(trial, recipe_of(trial)[key]) for trial in complete if key in recipe_of(trial)]
        for group, color, size in ((having[1:], GOOD, 5), (having[:1], BEST, 9)):
            words = [
                html.escape(f"trial {trial.number}, {key} {show(value)}: {words_of(trial.values[0], values.objective)}")
                for trial, value in group
            ]
            choice = isinstance(axis, CategoricalDistribution)
            figure.add_scatter(
                x=[html.escape(str(value)) if choice else value for _, value in group],
                y=[values.of(max(floor, trial.values[0])) for trial, _ in group],
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
            # The whole range is shown, used or not, so that good trials near its ends stand out.
            figure.update_xaxes(range=[ends[0] - margin, ends[1] + margin], **place)
            if axis.log:
                figure.update_xaxes(type="log", dtick="D2" if ends[1] - ends[0] < 1.5 else 1, **place)
    return figure.update_yaxes(**values.settings(complete))


def importance_bars(importances: Mapping[str, float]) -> go.Figure:
    """Importance of each setting, the largest on top."""
    figure = new_figure(20 + 26 * len(importances), foot=8)
    figure.add_bar(
        y=[html.escape(key) for key in importances],
        x=list(importances.values()),
        text=[f"{value:.0%}" for value in importances.values()],
        **BARS,
        marker={"color": GOOD},
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return figure.update_xaxes(visible=False, range=[0, 1.12 * max(importances.values(), default=1)])


def time_by_outcome(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Hours of training of completed, paused, pruned and failed trials."""
    outcomes = [
        ("completed", TrialState.COMPLETE, GOOD),
        ("pruned", TrialState.PRUNED, PLAIN),
        ("failed", TrialState.FAIL, FAILED),
    ]
    groups = [(name, [trial for trial in trials if trial.state == state], color) for name, state, color in outcomes]
    if paused := list(filter(is_paused, trials)):
        groups.insert(1, ("paused", paused, WAITED))
    figure = new_figure(32 + 24 * len(groups), foot=8)
    longest = 0.0
    for name, group, color in groups:
        chosen = [view_of(trial).seconds for trial in group]
        longest = max(longest, sum(chosen))
        label = f"{duration(sum(chosen))}, {len(chosen)} trial{'' if len(chosen) == 1 else 's'}"
        figure.add_bar(y=[name], x=[sum(chosen) / 3600], text=[label], **BARS, marker={"color": color})
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return figure.update_xaxes(visible=False, range=[0, 1.4 * longest / 3600 or 1])


def timeline(segments: Sequence[Segment]) -> go.Figure:
    """Segments as bars over the hours, a row for each worker; crosses where workers crashed."""
    colors = {"complete": GOOD, "pruned": PLAIN, "fail": FAILED, CRASHED: CRASH, STOPPED: GRID}
    colors |= {PAUSED: WAITED, WENT_ON: WAITED}
    workers = sorted({segment.worker for segment in segments})
    figure = new_figure(80 + 26 * len(workers))
    words = [
        f"trial {one.trial} {one.outcome}, {duration(one.seconds)}{f': {one.reason}' if one.reason else ''}"
        for one in segments
    ]
    figure.add_bar(
        y=[_short_name(segment.worker) for segment in segments],
        x=[segment.seconds * 1000 for segment in segments],
        base=[segment.begun.isoformat() for segment in segments],
        text=[html.escape(line) for line in words],
        orientation="h",
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
        marker={"color": [colors[segment.outcome] for segment in segments], "line": line_of("white", 1)},
    )
    crashes = [segment for segment in segments if segment.outcome == CRASHED]
    figure.add_scatter(
        y=[_short_name(segment.worker) for segment in crashes],
        x=[segment.ended.isoformat() for segment in crashes],
        mode="markers",
        marker={"symbol": "x-thin", "size": 9, "line": line_of(FAILED, 2)},
        hoverinfo="skip",
    )
    figure.update_layout(bargap=0.3, margin_l=8)
    order = [_short_name(worker) for worker in workers]
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], showgrid=False, automargin=True)
    return figure.update_xaxes(type="date", showgrid=True)


def _short_name(worker: str) -> str:
    return html.escape(worker if len(worker) <= 26 else f"{worker[:21]}...{worker[-2:]}")


def _fits(axis: BaseDistribution, value: object) -> bool:
    if isinstance(axis, CategoricalDistribution):
        return value in axis.choices
    assert isinstance(axis, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and axis.low <= value <= axis.high
