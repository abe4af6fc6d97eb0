"""Trials that other programs have queued or finished in the database of a running search."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.policy.ladder import REPEATS
from search.study import events
from search.study.journal import Journal
from search.study.marks import Marks, foreign_trials, is_foreign
from search.study.memory import trial_of
from search.study.noise import KNOWN
from search.study.sampling import QUEUED, set_attributes
from search.study.transfer import TRANSFERRED
from search.study.trial import FAILURE


class Others:
    """Writes trials of other programs to the journal, and keeps those that the user must be told about.

    Args:
        study: the study, owned.
        marks: the marks of the study.
        journal: the journal of the study.
    """

    def __init__(self, study: optuna.Study, marks: Marks, journal: Journal) -> None:
        self.study, self.marks, self.journal = study, marks, journal
        self.refused: deque[int] = deque()
        """Numbers of trials that were queued with impossible values and have failed. The user has not been told yet."""
        self.foreign: deque[int] = deque()
        """Numbers of trials that another program has finished or deleted. The user has not been told yet."""
        self._noted: set[int] = set()
        """Numbers of trials for which the journal has a line."""

    def adopt(self, trials: Collection[FrozenTrial], told: Collection[int]) -> None:
        """Note the trials that exist at this launch, and which of them another program has finished. The user is told
        of those in ``told`` without this object."""
        self.foreign += [one.number for one in trials if is_foreign(one) and one.number not in told]
        self._noted |= {frozen.number for frozen in trials}

    def log_finished(self, below: int, unfinished: Collection[int]) -> list[int]:
        """Write trials that another program has finished to the journal, once. A replay counts them as failed.

        Args:
            below: the number of the next candidate; the journal needs a line for each trial before it.
            unfinished: numbers of the trials that are unfinished for the search.

        Returns:
            The numbers of the trials that were written.
        """
        found = []
        for frozen in foreign_trials(self.study):
            number = frozen.number
            if number in unfinished or (number < below and number not in self._noted):
                reason = frozen.user_attrs["reason"]
                self.journal.append(events.Tell(trial=number, state="FAIL", value=None, reason=reason))
                self._noted.add(number)
                self.foreign.append(number)
                found.append(number)
        return found

    def words_of_foreign(self) -> list[str]:
        """The trials in ``foreign`` in words, a line for each reason. The user is told of each once."""
        reasons: dict[str, list[str]] = {}
        while self.foreign:
            frozen = trial_of(self.study, self.foreign.popleft())
            reasons.setdefault(frozen.user_attrs["reason"], []).append(str(frozen.number))
        return [f"trial {', '.join(numbers)}: {reason}" for reason, numbers in reasons.items()]

    def note_queued(self, frozen: FrozenTrial) -> None:
        """Write a trial that another program has queued to the journal."""
        recipe = frozen.system_attrs.get(QUEUED)
        own = {KNOWN, TRANSFERRED, REPEATS} & frozen.user_attrs.keys()
        if frozen.number not in self._noted and not own and isinstance(recipe, dict):
            self.journal.append(events.Enqueue(params=recipe))
        self._noted.add(frozen.number)

    def refuse(self, frozen: FrozenTrial, error: str) -> FrozenTrial:
        """Fail a trial that was queued with impossible values, which ``error`` describes. Returns the failed trial."""
        by = "" if {KNOWN, TRANSFERRED} & frozen.user_attrs.keys() else " by another program"
        number, reason = frozen.number, f"queued{by} with impossible values: {error}"
        self.note_queued(frozen)
        set_attributes(self.study, frozen, {"reason": reason, FAILURE: "user"})
        self.marks.mark_ended(self.study, frozen, TrialState.FAIL)
        self.study.tell(number, state=TrialState.FAIL)
        self.journal.append(events.Tell(trial=number, state="FAIL", value=None, reason=reason))
        self.refused.append(number)
        return trial_of(self.study, number)
