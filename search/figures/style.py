"""The common style of the figures: colours, axes, and ranges that a few very low values do not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from search.policy.ladder import Ladder
from search.study.trial import view_of
from studies.objective import NAMES, Objective, as_measured

INK, QUIET, GRID, BEST, GOOD, WAITED, PLAIN, FAILED, CRASH = (
    "#1f2328",  # INK
    "#6e7781",  # QUIET
    "#e4e7eb",  # GRID
    "#0b4f9e",  # BEST
    "#5b93cf",  # GOOD
    "#b5cfea",  # WAITED
    "#c3c9d1",  # PLAIN
    "#b3261e",  # FAILED
    "#f2b8b5",  # CRASH
)
"""Colours of text, axes, grid lines, the best trial, other good trials, paused ones, all others, failures, crashes."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


@dataclass(frozen=True)
class ValueAxis:
    """The axis of an objective's values. Better values are drawn higher: a loss is drawn as it was measured, on an
    axis that points downwards."""

    objective: Objective

    @property
    def name(self) -> str:
        """The objective in words, with a capital: "Accuracy", "Macro F1"."""
        return NAMES[self.objective][0].upper() + NAMES[self.objective][1:]

    def of(self, value: float) -> float:
        """A trial's value as it is drawn."""
        return as_measured(value, self.objective)

    @property
    def hover(self) -> str:
        """A value in plotly's hover texts."""
        return "%{y:.4f}" if self.objective == "loss" else "%{y:.2%}"

    def settings(self, complete: Sequence[FrozenTrial] | None = None) -> dict[str, Any]:
        """Plotly's settings of the axis; without trials, plotly finds its ends."""
        is_loss = self.objective == "loss"
        if complete is None:
            return {"tickformat": TICKS[is_loss], "autorange": "reversed" if is_loss else True}
        return {"tickformat": TICKS[is_loss], "range": [self.of(end) for end in value_range(complete)]}


TICKS = (".4~%", ".4~g")
"""Number formats of ticks, for shares (index False) and for losses (True): shares have at most four decimals
of a percentage, losses at most four significant digits."""


def value_range(complete: Sequence[FrozenTrial]) -> tuple[float, float]:
    """The lowest and the highest value of an axis. A few very low values may be below it; they are drawn at its end."""
    values = [trial.values[0] for trial in complete] or [0.0, 1.0]
    lower, upper = (float(quartile) for quartile in np.quantile(values, (0.25, 0.75)))
    low, high = min(value for value in values if value >= lower - 3 * (upper - lower)), max(values)
    margin = 0.07 * (high - low) or 0.01
    return low - margin, high + margin


LABEL: dict[str, Any] = {"showarrow": False, "font": {"size": 11, "color": QUIET}}

BARS: dict[str, Any] = {
    "orientation": "h",
    "textposition": "outside",
    "cliponaxis": False,
    "hoverinfo": "skip",
    "width": 0.6,
}


def new_figure(height: int, foot: int = 44) -> go.Figure:
    """An empty figure. ``height`` is in pixels and includes ``foot``, the room below the axis."""
    return apply_style(go.Figure(), height, foot)


def apply_style(figure: go.Figure, height: int, foot: int = 44) -> go.Figure:
    """Apply the common style to a figure; its width is the page's."""
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


def line_of(color: str, width: float = 1) -> dict[str, Any]:
    """A line's colour and width."""
    return {"color": color, "width": width}


def points_of(trials: Sequence[FrozenTrial], ladder: Ladder, objective: Objective) -> dict[str, Any]:
    """Trials by their numbers, each with a sentence about it as hover text."""
    views = [view_of(trial) for trial in trials]
    return {
        "x": [view.number for view in views],
        "text": [view.sentence(ladder, objective) for view in views],
        "hovertemplate": "%{text}<extra></extra>",
        "cliponaxis": False,
    }


def whole_steps(count: int) -> int | None:
    """Distance of the ticks of an axis of trials or epochs, of which there are ``count``: 1, so that no tick is at a
    fraction. None for more than ten, because plotly itself then puts no tick at a fraction."""
    return 1 if count <= 10 else None
