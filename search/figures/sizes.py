"""The charts of a candidate's value against its size: parameters, or GFLOPs."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from search.figures.style import BEST, LABEL, PLAIN, QUIET, ValueAxis, line_of, new_figure, value_range
from search.study.trial import ranked, recipe_of
from studies import StudySpec
from studies.objective import words_of

SIZES = {"num_params": "parameters", "macs": "GFLOPs"}
"""Trial attribute with a model's size -> name of the drawn quantity."""

PER_UNIT = {"num_params": 1, "macs": 2e-9}
"""Factor from the attribute to the drawn quantity: a multiply-add is two floating-point operations."""


def value_against_size(trials: Sequence[FrozenTrial], spec: StudySpec, key: str = "num_params") -> go.Figure:
    """Value of completed trials against their size, with the frontier; ``key`` is the attribute with the size."""
    complete = [trial for trial in ranked(trials, spec.limit) if key in trial.user_attrs]
    floor, _ = value_range(complete)
    axis = ValueAxis(spec.search.objective)
    frontier = [trial for trial in frontier_of(complete, key) if trial.values[0] > floor]
    figure = new_figure(340)
    words = SIZES[key]
    named = "model" in spec.space
    figure.add_scatter(
        x=[_size(trial, key) for trial in complete],
        y=[axis.of(max(floor, trial.values[0])) for trial in complete],
        cliponaxis=False,
        text=[_name(trial) if named else "" for trial in complete],
        customdata=[f"trial {trial.number}: {words_of(trial.values[0], axis.objective)}" for trial in complete],
        mode="markers+text" if named else "markers",
        textposition="bottom center",
        textfont={"size": 9, "color": QUIET},
        marker={"color": PLAIN, "size": 7},
        hovertemplate=f"%{{customdata}}, %{{x:,}} {words}<extra></extra>",
    )
    most = spec.limit.params if key == "num_params" else spec.limit.macs
    limit = None if most is None else most * PER_UNIT[key]
    ends, heights = [_size(trial, key) for trial in frontier], [axis.of(trial.values[0]) for trial in frontier]
    figure.add_scatter(
        x=[*ends, max([*ends, limit or 0])],
        y=[*heights, *heights[-1:]],
        mode="lines",
        line=line_of(BEST, 1.5) | {"shape": "hv"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=ends,
        y=heights,
        text=[f"{trial.number} {_name(trial)}" if named else str(trial.number) for trial in frontier],
        mode="markers+text",
        textposition="top left",
        marker={"color": BEST, "size": 8},
        hovertemplate=f"trial %{{text}}: {axis.hover}, %{{x:,}} {words}<extra></extra>",
        cliponaxis=False,
    )
    if limit is not None:
        figure.add_vline(x=limit, line=line_of(QUIET, 1) | {"dash": "dot"})
        figure.add_annotation(
            x=limit, y=0, yref="paper", yanchor="bottom", xanchor="right", text=f"limit {limit:,.10g}", **LABEL
        )
    figure.update_xaxes(title_text=words, showgrid=False, tickformat="~s" if key == "num_params" else None)
    return figure.update_yaxes(**axis.settings(complete))


def _size(trial: FrozenTrial, key: str) -> float:
    return float(trial.user_attrs[key] * PER_UNIT[key])


def _name(trial: FrozenTrial) -> str:
    """The model of a trial of a study that compares models."""
    return html.escape(str(recipe_of(trial).get("model", "")))


def frontier_of(complete: Sequence[FrozenTrial], key: str) -> list[FrozenTrial]:
    """Trials that are better than every smaller one, the smallest first; ``key`` is the attribute with the size."""
    frontier: list[FrozenTrial] = []
    for trial in sorted(complete, key=lambda trial: (trial.user_attrs[key], -trial.values[0])):
        if not frontier or trial.values[0] > frontier[-1].values[0]:
            frontier.append(trial)
    return frontier


def size_keys(spec: StudySpec) -> list[str]:
    """The attributes of the sizes that are drawn, parameters first: the sizes that the study limits, or both if the
    study compares models."""
    limited = {"num_params": spec.limit.params, "macs": spec.limit.macs}
    return [key for key, limit in limited.items() if limit is not None or "model" in spec.space] or ["num_params"]
