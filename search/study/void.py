"""Trials that have ended in the journal, and that another program has deleted or changed in the database since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from search.study.events import Ask, Event, Launch, Setting, Tell
from search.study.marks import NOT_OWN, is_foreign

DIFFERS = "its value or settings in the database differ from the journal's; the search uses the database"
"""The reason for a trial that an earlier version has ended, without a checksum."""


def words_of(void: Mapping[int, str]) -> list[str]:
    """These trials in words, a line for each reason."""
    return [
        f"trial {', '.join(str(number) for number, why in void.items() if why == reason)}: {reason}"
        for reason in dict.fromkeys(void.values())
    ]


def void_trials(known: Iterable[Event], trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Number -> reason why the journal's lines about the end of a trial no longer hold.

    Args:
        known: the lines of the journal since the last launch that wrote all trials down.
        trials: all trials of the study.
    """
    ended: dict[int, float | None] = {}
    """Number of a trial that the search has ended -> its value; None if it is not complete."""
    asked: dict[int, dict[str, Setting]] = {}
    for event in known:
        match event:
            case Ask():
                asked[event.trial] = dict(event.params)
            case Tell() if event.reason not in NOT_OWN:
                ended[event.trial] = event.value if event.state == "COMPLETE" else None
            case Launch():
                for number, one in enumerate(event.history or ()):
                    if TrialState[one.state].is_finished() and one.params:  # a stand-in has none
                        ended[number] = one.value if one.state == "COMPLETE" else None
                        asked[number] = dict(one.params)
    found = {}
    for trial in (one for one in trials if one.number in ended):
        if is_foreign(trial):
            found[trial.number] = trial.user_attrs["reason"]
        elif trial.state.is_finished():
            value = ended[trial.number] if trial.state == TrialState.COMPLETE else None
            if value not in (None, trial.value) or asked.get(trial.number, trial.params) != trial.params:
                found[trial.number] = DIFFERS
    return found
