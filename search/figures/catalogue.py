"""The figures of a study, with titles and captions: for the page of ``search report`` and for the dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from search.figures.charts import (
    TOP,
    importance_bars,
    learning_curves,
    optimization_history,
    parallel_coordinates,
    slices,
    time_by_outcome,
    timeline,
)
from search.figures.sizes import SIZES, frontier_of, size_keys, value_against_size
from search.figures.style import ValueAxis, value_range
from search.figures.timeline import CRASHED, PAUSED, STOPPED, WENT_ON, Segment, segments_of_trials
from search.policy.ladder import PAUSED_AT
from search.study.sampling import build_ladder
from search.study.trial import is_paused, ranked, step_word, view_of
from studies import StudySpec
from studies.objective import NAMES


@dataclass(frozen=True)
class Figure:
    """A figure with its title and caption."""

    id: str
    """Key under which the dashboard replaces the figure: letters and hyphens."""
    title: str
    caption: str
    """Explanation of the figure, in one or two sentences."""
    chart: go.Figure


def study_figures(
    trials: Sequence[FrozenTrial],
    spec: StudySpec,
    importances: Mapping[str, float] | None = None,
    segments: Sequence[Segment] = (),
) -> list[Figure]:
    """Every figure for which these trials have enough data.

    Args:
        trials: all trials of the study, in any state.
        spec: the study's spec.
        importances: shares from ``setting_importances``.
        segments: the times at which each worker trained; if empty, the trials' own times are shown.
    """
    without_journal = not segments
    segments = segments or segments_of_trials(trials)
    complete = ranked(trials, spec.limit)
    paused = list(filter(is_paused, trials))
    views = [view_of(trial) for trial in trials if trial.state.is_finished() or is_paused(trial)]
    figures, name, capital = [], NAMES[spec.search.objective], ValueAxis(spec.search.objective).name
    floor, _ = value_range(complete)
    below = " Dots on the axis have values below it." if any(trial.values[0] < floor for trial in complete) else ""
    if complete:
        caption = (
            f"Validation {name} of the trials in the order in which they were begun. The line is the best so far; "
            f"crosses on the axis are pruned trials{', circles paused ones' if paused else ''}.{below}"
        )
        figures.append(Figure("history", "How the search went", caption, optimization_history(trials, spec)))
    if any(view.epochs for view in views):
        caption = (
            f"Validation {name} after each {step_word(spec)}: the best trial, the rest of the top {TOP} and, faint, "
            f"the trials that were pruned{' or are paused' if paused else ''}.{_rungs_of(spec)}"
        )
        figures.append(Figure("curves", "Learning curves", caption, learning_curves(trials, spec)))
    if len(complete) > 1:
        caption = (
            "Each line is a completed trial; the best is dark, the next four are blue. Where these five lines are "
            "close together, the best trials agree on a value."
        )
        figures.append(Figure("parallel", "Recipes side by side", caption, parallel_coordinates(trials, spec)))
        caption = (
            f"{capital} of the completed trials against each setting; the best is dark. All settings vary at once, so "
            f"a cloud without a slope does not prove that a setting has no effect.{below}"
        )
        figures.append(Figure("slices", "One setting at a time", caption, slices(trials, spec)))
    if importances:
        caption = (
            f"Share of the variance of the {name} over the searched space that each setting explains by itself "
            f"(fANOVA, {len(complete)} completed trials)."
        )
        figures.append(Figure("importance", "Which settings mattered", caption, importance_bars(importances)))
    for number, key in enumerate(size_keys(spec)):
        if len({trial.user_attrs.get(key) for trial in complete} - {None}) > 1:
            named = ", and each point has its model's name" if "model" in spec.space else ""
            caption = (
                f"Completed trials. The line is the frontier, the best {name} found with a model of at most that "
                f"size; its trials are numbered{named}.{below}"
            )
            title = f"{capital} against {SIZES[key]}"
            figure_id = "size" if number == 0 else f"size-{key}"
            figures.append(Figure(figure_id, title, caption, value_against_size(trials, spec, key)))
    if any(view.seconds for view in views):
        caption = "Training time of all trials but those in progress, by their outcome, summed over the workers."
        figures.append(Figure("time", "Where the time went", caption, time_by_outcome(trials)))
    if segments:
        outcomes = {segment.outcome for segment in segments}
        caption = "Each bar is a trial with a worker. Blue: completed, grey: pruned, red: failed"
        caption += ", pale blue: paused at a rung, or went on elsewhere" if outcomes & {PAUSED, WENT_ON} else ""
        caption += ", light grey: the search was stopped" if STOPPED in outcomes else ""
        crashes = CRASHED in outcomes
        caption += (
            "; a cross: the training crashed, and, where it could, went on from its last epoch." if crashes else "."
        )
        unknown = without_journal and any(PAUSED_AT in trial.user_attrs for trial in trials)
        caption += (
            " Trials that have waited at a rung are left out: only the journal knows their times." if unknown else ""
        )
        figures.append(Figure("timeline", "When each worker trained", caption, timeline(segments)))
    return figures


def _rungs_of(spec: StudySpec) -> str:
    """A sentence about the dotted lines among the learning curves; empty without rungs."""
    ladder = build_ladder(spec)
    if not ladder.rungs:
        return ""
    anew = ", and a candidate that goes on begins a longer training after it" if ladder.anew else ""
    return f" Dotted: a rung, where candidates are compared{anew}."


PAGE_TRIALS = 200
"""Largest number of trials that are points on the dashboard's study page, besides those of the frontier. The page
reloads its figures every ten seconds."""

PAGE_PRUNED = 30
"""Largest number of pruned trials, and of paused ones, among the learning curves of the page; the latest are shown."""


def page_figures(
    trials: Sequence[FrozenTrial], spec: StudySpec, importances: Mapping[str, float] | None = None
) -> list[Figure]:
    """The figures of the dashboard's study page, with their titles inside.

    The figures show the best trials. The learning curves also show the latest pruned and paused ones; the figure of the
    time is of all trials.

    Args:
        trials: all trials of the study, in any state.
        spec: the study's spec.
        importances: shares from ``setting_importances``.
    """
    complete, key = ranked(trials, spec.limit), size_keys(spec)[0]
    sized = [trial for trial in complete if key in trial.user_attrs]
    points = {trial.number: trial for trial in [*sized[:PAGE_TRIALS], *frontier_of(sized, key)]}
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED][-PAGE_PRUNED:]
    pruned += list(filter(is_paused, trials))[-PAGE_PRUNED:]
    figures = []
    if points:
        figure = value_against_size(list(points.values()), spec, key)
        figures.append(
            Figure("size", f"{ValueAxis(spec.search.objective).name} against size, with the frontier", "", figure)
        )
    if complete or pruned:
        figure = learning_curves([*complete[:TOP], *pruned], spec)
        figures.append(Figure("curves", f"Learning curves of the top {TOP}, the others faint", "", figure))
    if any(view_of(trial).seconds for trial in trials if trial.state.is_finished() or is_paused(trial)):
        figures.append(Figure("time", "Training time of trials by their outcome", "", time_by_outcome(trials)))
    if importances:
        title = f"Which settings mattered (fANOVA, {len(complete)} trials)"
        figures.append(Figure("importance", title, "", importance_bars(importances)))
    for figure in figures:
        at = {"x": 0.02, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 16}}
        figure.chart.update_layout(title={"text": figure.title, "font": {"size": 15}, **at}, margin_t=76)
        figure.chart.update_layout(height=figure.chart.layout.height + 64)
    return figures
