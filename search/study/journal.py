"""The journal: an append-only log of a search, written as the storage acknowledges each step.

One JSON object a line, each with "at" (seconds since 1970) and "event":

    launch    uuid, spec, space, versions  a coordinator begins, or goes on; uuid is the study's
    accept    differences                  what changed since the study was begun, and was accepted
    keep      settings                     settings that its file does not name -> what the study keeps
    recipe    was, now, anew               a later version of the trainer's recipe; trials that it begins anew
    enqueue   params                       a known recipe waits to be asked for
    ask       trial, params                a candidate has all its settings
    assign    trial, worker, attempt       a worker has it; attempts from 1
    started   trial, constraints           counted, and the limit recorded
    epoch     trial, step, value, pruned   reported and decided; pruned is null where the pruner was not asked
    crash     trial, worker, kind, reason  its training failed; kinds in search/errors.py
    tell      trial, state, value, reason  finished
    stop      reason                       the coordinator ends

A launch that finds more in the database than one step, which is what a kill keeps out, cannot know in which order it
happened. It has two keys more: "rebuilt", the numbers of the trials that it happened to, and "history", all trials as
they were then. What follows goes on from there. So has the first launch after a "recipe".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Required, TypedDict, Unpack, cast
from uuid import UUID

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.errors import FailureKind, ReplayFailed
from studies import StudySpec
from studies.axes import Value
from trainer.values import Json


class RecordedTrial(TypedDict):
    """A trial in a launch's history."""

    state: str
    value: float | None
    params: dict[str, Value]
    distributions: dict[str, Json]
    intermediate_values: dict[str, float]
    """Step -> accuracy."""
    system_attrs: dict[str, Json]
    """Recipes that wait, constraints, the rungs of successive halving."""


class Values(TypedDict, total=False):
    """What an event has beside its time and its name; the table above says which event has which."""

    uuid: str | None
    spec: dict[str, Json]
    space: dict[str, Json]
    versions: dict[str, str]
    rebuilt: list[int]
    history: list[RecordedTrial]
    differences: list[str]
    trial: int
    params: dict[str, Value]
    worker: str
    attempt: int
    constraints: Mapping[str, float]
    step: int
    value: float | None
    pruned: bool | None
    state: str
    reason: str
    kind: FailureKind
    settings: Mapping[str, object]
    was: int
    now: int
    anew: list[int]


class Event(Values, total=False):
    """A line of the journal."""

    at: float
    event: Required[str]


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
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        self._late: list[bytes] = []
        self.lost = False
        """Set once the study is another's: nothing is written any more."""
        known = read_journal(path)
        self.asked = {event["trial"]: event["params"] for event in known if event["event"] == "ask"}
        """Trial -> its settings, as they are in it."""
        self.started = {event["trial"] for event in known if event["event"] == "started"}
        """Trials whose size is in it."""
        valid = known[_since_recipe(known) :]
        epochs = {(event["trial"], event["step"]): event["pruned"] for event in valid if event["event"] == "epoch"}
        self.decided: dict[tuple[int, int | None], bool] = {at: yes for at, yes in epochs.items() if yes is not None}
        """(trial, step) -> whether the pruner ended the trial there, as an earlier launch noted."""

    def append(self, event: str, **values: Unpack[Values]) -> None:
        """Add one line, durable when this returns unless the disk is full.

        It goes to wherever the file ends by then: one who lost the study unawares must not overwrite the next owner.
        """
        if self.lost:
            return
        logger.debug("%s %.300s", event, values)  # a launch has the whole study file
        line = json.dumps({"at": round(time.time(), 3), "event": event, **values})
        self._late.append(line.encode() + b"\n")
        if event == "ask":
            self.asked[values["trial"]] = values["params"]
        elif event == "started":
            self.started.add(values["trial"])
        with contextlib.suppress(OSError), self.path.open("ab", buffering=0) as file:
            end, lines = file.seek(0, os.SEEK_END), b"".join(self._late)
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
    ) -> None:
        """Note a launch, and whatever the database knows and the journal does not.

        Args:
            spec: what the study searches.
            space: Optuna distributions of the sampled settings.
            trials: all of the study's.
            uuid: the study's.
        """
        known = read_journal(self.path)
        since = known[_since_recipe(known) :]
        # Trials that begin anew have fewer epochs now than the journal has told of.
        begins_anew = len(since) < len(known) and not any(line["event"] == "launch" for line in since)
        known = known if begins_anew else since
        there = {_step(line["event"], line) for line in known}
        for line in known:
            for number, trial in enumerate(line.get("history", [])):
                there |= {_step(*step) for step in _lines_of(number, restored(trial), space)}
        missing = [
            (trial.number, event, values)
            for trial in trials
            for event, values in _lines_of(trial.number, trial, space)
            if _step(event, values) not in there
        ]
        launch: Values = {
            "uuid": uuid,
            "spec": spec.model_dump(mode="json", exclude={"notify"}),  # a webhook's address is a secret
            "space": {name: json.loads(distribution_to_json(axis)) for name, axis in space.items()},
            "versions": installed(),
        }
        if begins_anew or len(missing) > 1:
            launch["rebuilt"] = sorted({number for number, event, _ in missing if event != "enqueue"})
            launch["history"] = [_recorded(trial) for trial in trials]
            self.append("launch", **launch)
        else:
            self.append("launch", **launch)
            for _, event, values in missing:
                self.append(event, **values)
        self.asked |= {trial.number: trial.params for trial in trials if trial.params.keys() == space.keys()}


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
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            raise ReplayFailed(
                f"line {number} of {path} is no event, the journal was changed by something else; "
                "take that line out, or let the next search launch set the journal aside"
            )
        events.append(cast(Event, event))
    return events


def searched_by(events: Sequence[Event]) -> str | None:
    """The UUID of the study whose search a journal tells of; None where no launch names one.

    Raises:
        ValueError: it names something else.
    """
    found = next((event.get("uuid") for event in reversed(events) if event["event"] == "launch"), None)
    return None if found is None else str(UUID(str(found)))


def digest(path: Path) -> str | None:
    """SHA-256 of a journal as it is now; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def restored(values: RecordedTrial) -> FrozenTrial:
    """A trial of a launch's history, as Optuna knows it."""
    axes = {name: json_to_distribution(json.dumps(axis)) for name, axis in values["distributions"].items()}
    return create_trial(
        state=TrialState[values["state"]],
        value=values["value"],
        params=values["params"],
        distributions=axes,
        intermediate_values={int(step): value for step, value in values["intermediate_values"].items()},
        system_attrs=values["system_attrs"],
    )


def _recorded(trial: FrozenTrial) -> RecordedTrial:
    return {
        "state": trial.state.name,
        "value": trial.value,
        "params": trial.params,
        "distributions": {name: json.loads(distribution_to_json(axis)) for name, axis in trial.distributions.items()},
        "intermediate_values": {str(step): value for step, value in trial.intermediate_values.items()},
        "system_attrs": trial.system_attrs,
    }


def _lines_of(number: int, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> Iterator[tuple[str, Values]]:
    """The lines that a journal should have of a trial that is in the database, the event's name first."""
    recipe = trial.system_attrs.get("fixed_params")
    if recipe is not None:
        yield "enqueue", {"params": recipe}
    if trial.state == TrialState.WAITING:
        return
    if trial.params.keys() == space.keys():
        yield "ask", {"trial": number, "params": trial.params}
    if trial.constraints:
        yield "started", {"trial": number, "constraints": trial.constraints}
    for step, value in sorted(trial.intermediate_values.items()):
        yield "epoch", {"trial": number, "step": step, "value": value, "pruned": None}
    if trial.state.is_finished():
        reason = trial.user_attrs.get("reason", "")
        yield "tell", {"trial": number, "state": trial.state.name, "value": trial.value, "reason": reason}


def _since_recipe(events: Sequence[Event]) -> int:
    """Index of the first event by the recipe of today: before it, unfinished trials had other epochs."""
    return max((index + 1 for index, event in enumerate(events) if event["event"] == "recipe"), default=0)


def _step(event: str, values: Values) -> tuple[str, int | None, int | None, str]:
    """What tells the step of one line from that of another."""
    params = values.get("params", {})
    # A candidate is asked for again where changes that were accepted have given it another setting.
    of = {"enqueue": params, "ask": sorted(params)}.get(event)
    return event, values.get("trial"), values.get("step"), json.dumps(of, sort_keys=True)
