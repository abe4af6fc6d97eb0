"""The hours of a study that is launched with --export: when they began, and whether the part for the search is over."""

from __future__ import annotations

import time

import optuna

LAUNCHED = "featherweight:launched"
"""Study attribute: the time of the first launch, in seconds since 1970."""

TIME_UP = "featherweight:time_up"
"""Study attribute: the ``search.hours`` of the launch in which the search's part of the time was over. If a later
launch has more hours, the search goes on."""


def first_launch(study: optuna.Study) -> float:
    """The time of a study's first launch, in seconds since 1970; stored if it is not known yet.

    If an earlier version began the study, it is the start of the first trial.
    """
    found = study.user_attrs.get(LAUNCHED)
    if isinstance(found, int | float):
        return float(found)
    begun = [trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start]
    at = min(begun).timestamp() if begun else time.time()
    study.set_user_attr(LAUNCHED, at)
    return at


def note_time_up(study: optuna.Study, hours: float) -> None:
    """Store that the search's part of these hours is over, so that a later launch goes straight to the export."""
    if study.user_attrs.get(TIME_UP) != hours:
        study.set_user_attr(TIME_UP, hours)


def is_time_up(study: optuna.Study, hours: float | None) -> bool:
    """Whether an earlier launch has noted that the search's part of these hours is over."""
    found = study.user_attrs.get(TIME_UP)
    return hours is not None and isinstance(found, int | float) and hours <= found
