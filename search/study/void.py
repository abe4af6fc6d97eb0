"""Trials of the journal that another program has deleted, changed or, while they were paused, ended in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from search.study.events import Ask, Epoch, Event, Launch, Recipe, Setting, Tell
from search.study.marks import NOT_OWN, is_foreign

DIFFERS = "its value or settings in the database differ from the journal's; the search uses the database"
"""The reason for a trial whose checksum is right: another copy of the database has it otherwise."""

REPEAT_TOLERANCE = 0.05
"""Largest difference between the value of an epoch that is trained again and the reported value; for a loss above 1, a
share of the loss. Other hardware rounds differently, but a trial with other results must not go on under its number."""


@dataclass
class Told:
    """A trial as the journal has it."""

    state: str | None = None
    """None if it has not ended."""
    value: float | None = None
    params: dict[str, Setting] | None = None
    """None if the journal has no line about them."""
    steps: dict[int, float] = field(default_factory=dict)

    def differs(self, trial: FrozenTrial) -> bool:
        """Whether the value or the settings of a finished trial are others in the database."""
        value = self.value if self.state == trial.state.name == TrialState.COMPLETE.name else None
        return value not in (None, trial.value) or self.params not in (None, trial.params)

    def differs_at_all(self, trial: FrozenTrial) -> bool:
        """As ``differs``, for its state and its steps too. A step that a kill has repeated differs a little."""
        if self.differs(trial) or self.state != trial.state.name:
            return True
        if trial.state == TrialState.COMPLETE and trial.value is None:
            return True
        found = trial.intermediate_values
        return any(step not in found or not is_repeated(was, found[step]) for step, was in self.steps.items())


def is_repeated(was: float, value: float) -> bool:
    """Whether two values of a step can be those of one training and its repetition."""
    return not abs(value - was) > REPEAT_TOLERANCE * max(1.0, abs(was))  # also if one is not a number


def told_in(known: Iterable[Event]) -> dict[int, Told]:
    """As ``_all_told_in``, only the trials that have ended."""
    return {number: one for number, one in _all_told_in(known).items() if one.state is not None}


def _all_told_in(known: Iterable[Event]) -> dict[int, Told]:
    """Number -> trial as these lines of a journal have it. Of trials that the search did not end itself, nothing is
    known."""
    told: dict[int, Told] = {}
    for event in known:
        match event:
            case Ask():
                told.setdefault(event.trial, Told()).params = dict(event.params)
            case Epoch():
                told.setdefault(event.trial, Told()).steps[event.step] = event.value
            case Recipe():
                for number in event.anew:
                    told.setdefault(number, Told()).steps.clear()
            case Tell() if event.reason not in NOT_OWN:
                one = told.setdefault(event.trial, Told())
                one.state, one.value = event.state, event.value
            case Tell():
                told.pop(event.trial, None)
            case Launch() if event.history is not None:
                told = {}
                for number, trial in enumerate(event.history):
                    if trial.params:  # a stand-in has none
                        ended = trial.state if TrialState[trial.state].is_finished() else None
                        steps = {int(step): value for step, value in trial.intermediate_values.items()}
                        told[number] = Told(ended, trial.value, dict(trial.params), steps)
    return told


def words_of(void: Mapping[int, str]) -> list[str]:
    """These trials in words, a line for each reason."""
    return [
        f"trial {', '.join(str(number) for number, why in void.items() if why == reason)}: {reason}"
        for reason in dict.fromkeys(void.values())
    ]


def void_trials(known: Iterable[Event], trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Number -> reason why the journal's lines about a trial no longer hold.

    Args:
        known: the lines of the journal since the last launch that wrote all trials down.
        trials: all trials of the study.
    """
    told, found = _all_told_in(known), {}
    for trial in (one for one in trials if one.number in told):
        if is_foreign(trial):
            found[trial.number] = trial.user_attrs["reason"]
        elif trial.state.is_finished() and told[trial.number].state and told[trial.number].differs(trial):
            found[trial.number] = DIFFERS
    return found
