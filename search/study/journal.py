"""The journal: an append-only log of a search. A line is written after the database has acknowledged the step.

Each line is a JSON object; search/study/events.py describes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.errors import ReplayFailed
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS
from search.process import version_of, without_gc
from search.study.events import (
    TAIL_BYTES,
    Ask,
    Enqueue,
    Epoch,
    Event,
    Launch,
    Pause,
    Promote,
    Recipe,
    RecordedTrial,
    Started,
    Tell,
    as_json,
    cut_torn_line,
    last_checksum,
    line_of,
    lines_of,
    read_line,
)
from search.study.marks import is_foreign
from search.study.sampling import QUEUED
from search.study.trial import failure_of
from search.study.void import void_trials, words_of
from studies import StudySpec

logger = logging.getLogger(__name__)

DECIDING = ("optuna", "numpy", "scipy")
"""Packages whose versions decide what a sampler suggests."""

PACKAGES = (*DECIDING, "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "pillow")
"""DECIDING, and the packages whose versions decide the result of a training."""


TrialEvent: TypeAlias = Enqueue | Ask | Started | Epoch | Pause | Promote | Tell
"""The lines that can be rebuilt from a trial in the database."""

Step: TypeAlias = tuple[object, ...]
"""The key of a step, see ``_step``."""


def installed_versions() -> dict[str, str]:
    """The installed versions of PACKAGES."""
    return {name: version_of(name) for name in PACKAGES}


@dataclass(frozen=True)
class Gap:
    """The differences between database and journal. Missing lines of one transaction, which a kill can cause, do not
    count."""

    more: list[int]
    """Numbers of the trials with steps that only the database has."""
    less: list[int]
    """Numbers of the trials with steps that only the journal has: the database is an older copy, or lost these."""
    others: list[int]
    """Numbers of the trials in ``less`` that the database does not have, or has with other settings."""
    void: dict[int, str] = field(default_factory=dict)
    """Number of a trial that has ended in the journal, and is gone or changed in the database -> the reason."""

    def sentences(self) -> list[str]:
        """Sentences for the user, each with its consequence."""
        said = [f"{words}; the journal has it, and a replay does not judge it" for words in words_of(self.void)]
        if self.less:
            said.append(
                f"the journal has more steps of trial {_numbers(self.less)} than the database, which is an older copy, "
                "or from which they were deleted: the search goes on from the database under these numbers, and a "
                "replay does not judge these trials"
            )
        if self.more:
            more = _numbers(self.more)
            said.append(
                f"the database has more steps of trial {more} than the journal: a replay does not judge these trials"
            )
        return said


class Journal:
    """A study's journal, to append lines. A full disk delays the lines, but never the search.

    Only the process that owns the study may create this object, because it removes an incomplete last line, which a
    crash leaves.

    Args:
        path: the file.

    Raises:
        ReplayFailed: the journal is damaged.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.path = path
        cut_torn_line(path)
        self._late: list[Event] = []
        self.is_taken_over = False
        """Whether another process owns the study; then nothing is written."""
        self.asked: dict[int, dict[str, Any]] = {}
        """Trial -> its settings in the journal."""
        self.started: set[int] = set()
        """Trials whose size is in the journal."""
        self.told: set[int] = set()
        """Trials whose end is in the journal."""
        self.decided: dict[tuple[int, int | None], bool] = {}
        """(trial, step) -> whether the trial was pruned or paused there, from the lines of earlier launches."""
        self._known: list[Event] | None = read_journal(path)
        """The lines of the journal, until ``begin`` compares them with the database."""
        for event in self._known:
            self._learn(event)
            if isinstance(event, Epoch) and event.pruned is not None:
                self.decided[event.trial, event.step] = event.pruned

    def append(self, *events: Event) -> None:
        """Add lines. They are durable when this returns, unless the disk is full.

        They go to the current end of the file. So a process that no longer owns the study, and has not noticed
        it yet, does not overwrite lines of the new owner.
        """
        if self.is_taken_over:
            return
        for event in events:
            if logger.isEnabledFor(logging.DEBUG):
                told = event.model_dump(exclude={"at", "event"}, exclude_unset=True)
                logger.debug("%s %.300s", event.event, told)  # a launch has the whole study file
            if self._known is not None:
                self._known.append(event)
            self._learn(event)
        self._late += events
        with contextlib.suppress(OSError), self.path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL_BYTES))
            lines, above = b"", last_checksum(file.read())
            for late in self._late:
                line, above = line_of(late, above)
                lines += line
            try:
                written = file.write(lines)
                os.fsync(file.fileno())
            except OSError:
                written = 0
            if written == len(lines):
                self._late.clear()
            else:
                file.truncate(end)  # removes what was written; the next call writes it again

    def _learn(self, event: Event) -> None:
        match event:
            case Ask():
                self.asked[event.trial] = dict(event.params)
            case Started():
                self.started.add(event.trial)
            case Tell():
                self.told.add(event.trial)
            case Recipe():
                self.decided.clear()
            case Launch():
                rebuilt = set(event.rebuilt or ())  # their earlier lines may be those of another copy of the database
                for trial in rebuilt:
                    self.asked.pop(trial, None)
                self.started -= rebuilt
                self.decided = {at: pruned for at, pruned in self.decided.items() if at[0] not in rebuilt}
                if event.history is not None:
                    ended = (number for number, one in enumerate(event.history) if TrialState[one.state].is_finished())
                    self.told = set(ended)

    def begin(
        self, spec: StudySpec, space: dict[str, BaseDistribution], trials: Sequence[FrozenTrial], uuid: str | None
    ) -> Gap:
        """Write the line of a launch, and the steps that the database has and the journal lacks.

        Missing steps of one transaction get their lines: a single step, or sizes and epochs of several trials, one of
        each trial. If there are more, the line of the launch gets the present state of all trials. If the journal has
        steps that the database lacks, the database is an older copy. The line of the launch gets all trials then too,
        so that the journal goes on from the database.

        Args:
            spec: the study's spec.
            space: Optuna distributions of the sampled settings.
            trials: all trials of the study.
            uuid: the study's UUID.

        Returns:
            The differences between database and journal.
        """
        known, self._known = read_journal(self.path) if self._known is None else self._known, None
        since = known[_since_recipe(known) :]
        # Whether this is the first launch after a change of recipe. The trials that begin anew then have fewer epochs
        # in the database than in the journal. These epochs do not count as lost; the launch writes all trials down.
        begins_anew = len(since) < len(known) and not any(isinstance(line, Launch) for line in since)
        told = _since_history(known if begins_anew else since)
        missing = _missing(told, trials, space)
        lost = [] if begins_anew else _lost(told, trials)
        launch = Launch(
            uuid=uuid,
            spec=spec.model_dump(mode="json", exclude={"notify"}),  # a webhook's address is a secret
            space=as_json(space),
            versions=installed_versions(),
        )
        foreign = {trial.number for trial in trials if is_foreign(trial)}
        more = sorted({event.trial for event in missing if not isinstance(event, Enqueue)} - foreign)
        others = [
            event.trial
            for event in lost
            if isinstance(event, Ask) and (event.trial >= len(trials) or trials[event.trial].params != event.params)
        ]
        void = void_trials(told, trials)
        less = sorted({event.trial for event in lost} - void.keys())
        gap = Gap(more=[], less=less, others=others, void=void)
        own = [event for event in missing if isinstance(event, Enqueue) or event.trial in more]
        together = [event.trial for event in own if isinstance(event, Started | Epoch)]
        several = len(own) > 1 and len(own) != len(set(together))
        if begins_anew or lost or void or several:
            gap = replace(gap, more=[] if begins_anew else [number for number in more if number not in void])
            update: dict[str, object] = {"rebuilt": sorted({*more, *gap.less, *void})}
            update |= {"void": {str(number): why for number, why in void.items()}} if void else {}
            history = [RecordedTrial.of(trial) for trial in trials]
            self.append(launch.model_copy(update={**update, "history": history}))
        else:
            self.append(launch, *missing)
        self.asked |= {trial.number: trial.params for trial in trials if trial.params.keys() == space.keys()}
        return gap


@without_gc()
def read_journal(path: Path) -> list[Event]:
    """The events of a journal. An incomplete last line, which a crash leaves, is left out.

    Raises:
        ReplayFailed: another line is damaged, or what follows the last line break is more than such a line.
    """
    try:
        lines = lines_of(path.read_bytes())
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    events: list[Event] = []
    above: int | None = None
    for number, line in enumerate(lines, 1):
        try:
            event, above = read_line(line, above)
        except ValueError:
            raise ReplayFailed(
                f"line {number} of {path} is not an event, the journal was changed by something else; "
                "the next search launch sets it aside and begins a new one with what the database has"
            ) from None
        events.append(event)
    return events


def study_uuid_of(events: Sequence[Event]) -> str | None:
    """The UUID of the study that a journal belongs to; None if no launch names one.

    Raises:
        ValueError: the launch names something that is not a UUID.
    """
    found = next((event.uuid for event in reversed(events) if isinstance(event, Launch)), None)
    return None if found is None else str(UUID(found))


def digest(path: Path) -> str | None:
    """SHA-256 of a journal as it is now; None if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _steps_of(
    number: int, trial: FrozenTrial, space: dict[str, BaseDistribution]
) -> Iterator[tuple[Step, Callable[[], TrialEvent]]]:
    """The lines that a journal should have for a trial in the database: the key of each as from ``_step``, and a
    function that makes the line. A large study has few lines that must be made."""
    recipe = trial.system_attrs.get(QUEUED)
    if isinstance(recipe, dict):
        queued = partial(Enqueue, params=recipe, repeats=trial.user_attrs.get(REPEATS))
        yield _step(queued()), queued
    if trial.state == TrialState.WAITING:
        return
    if trial.params.keys() == space.keys():
        yield ("ask", number, *sorted(trial.params)), partial(Ask, trial=number, params=trial.params)
    if constraints := trial.constraints:
        yield ("started", number), partial(Started, trial=number, constraints=constraints)
    for step, value in sorted(trial.intermediate_values.items()):
        yield ("epoch", number, step), partial(Epoch, trial=number, step=step, value=value, pruned=None)
    if (paused_at := trial.user_attrs.get(PAUSED_AT)) is not None:
        yield ("pause", number, paused_at), partial(Pause, trial=number, step=paused_at)
        if trial.user_attrs.get(PROMOTED_AT) == paused_at:
            yield ("promote", number, paused_at), partial(Promote, trial=number, step=paused_at, at_least=None)
    if trial.state.is_finished():
        how = {"state": trial.state.name, "reason": trial.user_attrs.get("reason", ""), "failure": failure_of(trial)}
        yield ("tell", number), partial(Tell, trial=number, value=trial.value, **how)


def _missing(
    known: Sequence[Event], trials: Sequence[FrozenTrial], space: dict[str, BaseDistribution]
) -> list[TrialEvent]:
    """The lines that a journal should have for these trials and lacks."""
    there = Counter(map(_step, known))
    for line in known:
        for number, recorded in enumerate(line.history or [] if isinstance(line, Launch) else []):
            there.update(step for step, _ in _steps_of(number, recorded.restored, space))
    missing = []
    for trial in trials:
        for step, line_of_step in _steps_of(trial.number, trial, space):
            if not there[step]:
                missing.append(line_of_step())
            elif step[0] == "enqueue":
                there[step] -= 1  # the same values may be queued twice
    return missing


def _lost(
    known: Sequence[Event], trials: Sequence[FrozenTrial]
) -> list[Ask | Started | Epoch | Pause | Promote | Tell]:
    """The journal's lines whose steps the database lacks. The database stores steps first, so it is an older copy."""
    last = {event.trial: event for event in known if isinstance(event, Ask)}
    lost: list[Ask | Started | Epoch | Pause | Promote | Tell] = []
    for event in known:
        if not isinstance(event, Ask | Started | Epoch | Pause | Promote | Tell):
            continue
        trial = trials[event.trial] if event.trial < len(trials) else None
        if trial is not None and is_foreign(trial):
            continue  # another program has finished the trial, so its lines do not matter
        match event:
            case _ if trial is None:
                lost.append(event)
            case Ask() if event is last[event.trial] and event.params != trial.params:
                lost.append(event)
            case Epoch() if event.step not in trial.intermediate_values:
                lost.append(event)
            case Pause() if event.step > trial.user_attrs.get(PAUSED_AT, 0):
                lost.append(event)
            case Promote() if event.step > trial.user_attrs.get(PROMOTED_AT, 0):
                lost.append(event)
            case Tell() if event.state != trial.state.name:
                lost.append(event)
    return lost


def _numbers(trials: Sequence[int]) -> str:
    return ", ".join(map(str, trials))


def _since_history(events: Sequence[Event]) -> Sequence[Event]:
    """The events since the last launch that wrote all trials down, this launch included."""
    at = [index for index, event in enumerate(events) if isinstance(event, Launch) and event.history is not None]
    return events[at[-1] :] if at else events


def _since_recipe(events: Sequence[Event]) -> int:
    """Index of the first event with the present recipe; before it, unfinished trials had epochs of an older recipe."""
    return max((index + 1 for index, event in enumerate(events) if isinstance(event, Recipe)), default=0)


def _step(event: Event) -> Step:
    """Key that distinguishes the step of a line from all others."""
    match event:
        case Enqueue():
            return event.event, json.dumps(dict(event.params), sort_keys=True), event.repeats
        case Ask():
            # A candidate is asked for a second time if an accepted change has given it another setting.
            return event.event, event.trial, *sorted(event.params)
        case Epoch() | Pause() | Promote():
            return event.event, event.trial, event.step
        case Started() | Tell():
            return event.event, event.trial
        case _:
            return (event.event,)  # not a step of a trial, so the database does not have it
