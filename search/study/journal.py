"""The journal: an append-only log of a search, written as the storage acknowledges each step.

One JSON object a line; what a line says is in search/study/events.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.errors import ReplayFailed
from search.study.events import (
    TAIL_BYTES,
    Ask,
    Enqueue,
    Epoch,
    Event,
    Launch,
    Recipe,
    RecordedTrial,
    Started,
    Tell,
    as_json,
    line_of,
    read_line,
    sum_at_the_end,
)
from studies import StudySpec

logger = logging.getLogger(__name__)

DECIDING = ("optuna", "numpy", "scipy")
"""Packages whose versions decide what a sampler suggests."""

PACKAGES = (*DECIDING, "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "pillow")
"""Those, and the ones whose versions decide what a training comes to."""


def installed() -> dict[str, str]:
    """The versions that a search runs with."""
    return {name: version(name) for name in PACKAGES}


class Journal:
    """Appends to a study's journal. A full disk delays its lines, and never the search.

    Only the study's owner may make one, because a line that a crash has torn is cut off the end of the file.

    Args:
        path: the file.

    Raises:
        ReplayFailed: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.path = path
        cut_torn_line(path)
        self._late: list[Event] = []
        self.lost = False
        """Set once the study is another's: nothing is written any more."""
        known = read_journal(path)
        self.asked = {event.trial: dict(event.params) for event in known if isinstance(event, Ask)}
        """Trial -> its settings, as they are in it."""
        self.started = {event.trial for event in known if isinstance(event, Started)}
        """Trials whose size is in it."""
        valid = known[_since_recipe(known) :]
        epochs = {(event.trial, event.step): event.pruned for event in valid if isinstance(event, Epoch)}
        self.decided: dict[tuple[int, int | None], bool] = {at: yes for at, yes in epochs.items() if yes is not None}
        """(trial, step) -> whether the pruner ended the trial there, as an earlier launch noted."""

    def append(self, event: Event) -> None:
        """Add one line, durable when this returns unless the disk is full.

        It is appended at the current end of the file, so that a process that has lost the study without noticing does
        not overwrite the lines of its successor.
        """
        if self.lost:
            return
        told = event.model_dump(exclude={"at", "event"}, exclude_unset=True)
        logger.debug("%s %.300s", event.event, told)  # a launch has the whole study file
        self._late.append(event)
        if isinstance(event, Ask):
            self.asked[event.trial] = dict(event.params)
        elif isinstance(event, Started):
            self.started.add(event.trial)
        with contextlib.suppress(OSError), self.path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL_BYTES))
            lines, above = b"", sum_at_the_end(file.read())
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
                file.truncate(end)  # a part, for which there was room; all of it comes with the next line

    def begin(
        self, spec: StudySpec, space: dict[str, BaseDistribution], trials: Sequence[FrozenTrial], uuid: str | None
    ) -> list[int]:
        """Note a launch, and whatever the database knows and the journal does not.

        Args:
            spec: what the study searches.
            space: Optuna distributions of the sampled settings.
            trials: all of the study's.
            uuid: the study's.

        Returns:
            Numbers of the trials for which the journal lacked more than one step.
        """
        known = read_journal(self.path)
        since = known[_since_recipe(known) :]
        # Trials that begin anew have fewer epochs now than the journal has told of.
        begins_anew = len(since) < len(known) and not any(isinstance(line, Launch) for line in since)
        known = known if begins_anew else since
        there = {_step(line) for line in known}
        for line in known:
            for number, trial in enumerate(line.history or [] if isinstance(line, Launch) else []):
                there |= {_step(step) for step in _lines_of(number, trial.restored(), space)}
        missing = [
            event for trial in trials for event in _lines_of(trial.number, trial, space) if _step(event) not in there
        ]
        launch = Launch(
            uuid=uuid,
            spec=spec.model_dump(mode="json", exclude={"notify"}),  # a webhook's address is a secret
            space=as_json(space),
            versions=installed(),
        )
        rebuilt: list[int] = []
        if begins_anew or len(missing) > 1:
            rebuilt = sorted({event.trial for event in missing if not isinstance(event, Enqueue)})
            history = [RecordedTrial.of(trial) for trial in trials]
            self.append(launch.model_copy(update={"rebuilt": rebuilt, "history": history}))
        else:
            self.append(launch)
            for event in missing:
                self.append(event)
        self.asked |= {trial.number: trial.params for trial in trials if trial.params.keys() == space.keys()}
        return [] if begins_anew else rebuilt


def cut_torn_line(path: Path) -> bool:
    """Take the torn last line, which a crash leaves, off the end of a journal; whether there was one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return False
    os.truncate(path, whole)
    return True


def read_journal(path: Path) -> list[Event]:
    """The events of a journal; a torn last line, which a crash leaves, is not among them.

    Raises:
        ReplayFailed: another line is damaged.
    """
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
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
                f"line {number} of {path} is no event, the journal was changed by something else; "
                "the next search launch sets it aside and begins a new one with what the database has"
            ) from None
        events.append(event)
    return events


def searched_by(events: Sequence[Event]) -> str | None:
    """The UUID of the study whose search a journal tells of; None where no launch names one.

    Raises:
        ValueError: it names something else.
    """
    found = next((event.uuid for event in reversed(events) if isinstance(event, Launch)), None)
    return None if found is None else str(UUID(found))


def digest(path: Path) -> str | None:
    """SHA-256 of a journal as it is now; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _lines_of(
    number: int, trial: FrozenTrial, space: dict[str, BaseDistribution]
) -> Iterator[Enqueue | Ask | Started | Epoch | Tell]:
    """The lines that a journal should have of a trial that is in the database."""
    recipe = trial.system_attrs.get("fixed_params")
    if recipe is not None:
        yield Enqueue(params=recipe)
    if trial.state == TrialState.WAITING:
        return
    if trial.params.keys() == space.keys():
        yield Ask(trial=number, params=trial.params)
    if trial.constraints:
        yield Started(trial=number, constraints=trial.constraints)
    for step, value in sorted(trial.intermediate_values.items()):
        yield Epoch(trial=number, step=step, value=value, pruned=None)
    if trial.state.is_finished():
        reason = trial.user_attrs.get("reason", "")
        yield Tell(trial=number, state=trial.state.name, value=trial.value, reason=reason)


def _since_recipe(events: Sequence[Event]) -> int:
    """Index of the first event by the recipe of today: before it, unfinished trials had other epochs."""
    return max((index + 1 for index, event in enumerate(events) if isinstance(event, Recipe)), default=0)


def _step(event: Event) -> tuple[object, ...]:
    """What tells the step of one line from that of another."""
    match event:
        case Enqueue():
            return event.event, json.dumps(dict(event.params), sort_keys=True)
        case Ask():
            # A candidate is asked for again where changes that were accepted have given it another setting.
            return event.event, event.trial, *sorted(event.params)
        case Epoch():
            return event.event, event.trial, event.step
        case Started() | Tell():
            return event.event, event.trial
        case _:
            return (event.event,)  # nothing that a database tells of
