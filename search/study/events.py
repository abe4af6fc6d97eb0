"""The lines of a journal as frozen, checked values. Each has a time ("at", seconds since 1970) and a kind ("event"):

    launch    uuid, spec, space, versions  a coordinator begins, or goes on; uuid is the UUID of the study
    accept    differences                  changes since the study was begun, which the user accepted
    keep      settings                     settings that the study file does not name -> the kept values
    recipe    was, now, anew               the versions of the trainer's recipe; trials that begin anew
    enqueue   params, repeats              a recipe is queued; repeats: the trial that the recipe repeats with another
                                           seed, or null
    ask       trial, params                a candidate has all its settings
    assign    trial, worker, attempt, node a worker has the trial; attempts from 1. node: name of the worker's machine
    started   trial, constraints           the model's parameters are counted; its size relative to the limit
    epoch     trial, step, value, pruned,  a result was stored, with the decision; pruned is null if none was made. At a
              too_late                     rung of the pruner "promote", pruned is true if the trial is paused there;
                                           too_late: if it is paused only because the compute or the time is spent
    pause     trial, step                  the trial is paused at a rung, and its worker is free
    promote   trial, step, at_least        the trial goes on from its rung; at_least as in Promotion.next, or null
                                           if it is unknown
    crash     trial, worker, kind, reason  the training failed; kinds in search/errors.py
    tell      trial, state, value, reason, failure  the trial has finished; failure: its kind, see search/errors.py
    stop      reason                       the coordinator ends

A kill can leave one step in the database that is missing from the journal. If a launch finds more than one missing
step, their order is unknown; and the database may lack steps that the journal has. In both cases, the "launch" line
then has two more keys: "rebuilt", the numbers of the trials with such steps, and "history", all trials at that moment,
where a replay begins. The first "launch" line after a "recipe" line has them too.

The last key of a line is its checksum: the CRC-32 of the rest of the line, chained to the checksum of the line above. A
line that was altered, removed or inserted breaks the chain. Lines of earlier versions have no checksum.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from search.errors import FailureKind
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS
from search.study.trial import FAILURE, axis_of
from trainer.values import Json

StateName = Annotated[str, Field(pattern=f"^({'|'.join(state.name for state in TrialState)})$")]

Words = Annotated[
    str,
    BeforeValidator(lambda text: text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text),
]
"""A text that may contain the name of a file; bytes of the name that are not UTF-8 are escaped."""

REMEMBERED = (PAUSED_AT, PROMOTED_AT, REPEATS, FAILURE)
"""Trial attributes that decisions about other trials depend on."""

Setting: TypeAlias = bool | int | float | str | None
"""A value of a sampled setting. None occurs only if another program has chosen it."""

_SUM = re.compile(rb'(?P<said>.*), "crc32": "(?P<crc32>[0-9a-f]{8})"\}', re.DOTALL)

_SUM_KEY = re.compile(rb', "crc32": "[0-9a-f]{8}"\}')

TAIL_BYTES = len(b', "crc32": "12345678"}\n')
"""Number of bytes at the end of a line that hold its checksum."""


class _Recorded(BaseModel):
    # Strict: a text is not read as a number. NaN is accepted, because a database may hold it.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class RecordedTrial(_Recorded):
    """A trial in a launch's history."""

    state: StateName
    value: float | None
    params: Mapping[str, Setting]
    distributions: Mapping[str, Mapping[str, Any]]
    intermediate_values: Mapping[str, float]
    """Step -> value of the objective."""
    system_attrs: Mapping[str, Any]
    """Optuna's attributes: queued recipes, constraints, the rungs of successive halving."""
    user_attrs: Mapping[str, Any] = Field(default_factory=dict)
    """The rungs at which the trial was paused and promoted, and the kind of its failure."""

    @classmethod
    def of(cls, trial: FrozenTrial) -> RecordedTrial:
        """A trial as it is now."""
        return cls.model_construct(  # not checked: another program may have stored it, which must not end the search
            state=trial.state.name,
            value=trial.value,
            params=trial.params,
            distributions=as_json(trial.distributions),
            intermediate_values={str(step): value for step, value in trial.intermediate_values.items()},
            system_attrs=trial.system_attrs,
            user_attrs={name: trial.user_attrs[name] for name in REMEMBERED if name in trial.user_attrs},
        )

    @cached_property
    def restored(self) -> FrozenTrial:
        """The trial as Optuna knows it."""
        return create_trial(
            state=TrialState[self.state],
            value=self.value,
            params=dict(self.params),
            distributions=axes_of(self.distributions),
            intermediate_values={int(step): value for step, value in self.intermediate_values.items()},
            system_attrs=dict(self.system_attrs),
            user_attrs=dict(self.user_attrs),
        )

    @model_validator(mode="after")
    def _can_be_restored(self) -> RecordedTrial:
        _ = self.restored  # raises ValueError if it cannot be restored
        return self


class _Line(_Recorded):
    at: float = Field(default_factory=lambda: round(time.time(), 3))


class Launch(_Line):
    """A coordinator begins, or goes on."""

    event: Literal["launch"] = "launch"
    uuid: str | None = None
    spec: Mapping[str, Any]
    space: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    rebuilt: Sequence[int] | None = None
    void: Mapping[str, Words] | None = None
    """Number of a trial that has ended in the journal, and that the database lacks or has otherwise -> the reason."""
    history: Sequence[RecordedTrial] | None = None

    @property
    def axes(self) -> dict[str, BaseDistribution]:
        """The space as Optuna knows it."""
        return axes_of(self.space)

    @model_validator(mode="after")
    def _space_is_known(self) -> Launch:
        axes_of(self.space)
        return self


class Accept(_Line):
    """The user accepted changes of the study."""

    event: Literal["accept"] = "accept"
    differences: Sequence[Words]


class Keep(_Line):
    """A study keeps settings that its file does not name."""

    event: Literal["keep"] = "keep"
    settings: Mapping[str, Any]


class Recipe(_Line):
    """The trainer's recipe has another version than at the last launch."""

    event: Literal["recipe"] = "recipe"
    was: int
    now: int
    anew: Sequence[int]


class Enqueue(_Line):
    """A recipe is queued."""

    event: Literal["enqueue"] = "enqueue"
    params: Mapping[str, Any]
    repeats: int | None = None
    """Number of the trial that the recipe repeats with another seed; None if the recipe is a candidate."""


class Ask(_Line):
    """A candidate has all its settings."""

    event: Literal["ask"] = "ask"
    trial: int
    params: Mapping[str, Setting]


class Assign(_Line):
    """A worker has a trial."""

    event: Literal["assign"] = "assign"
    trial: int
    worker: str
    attempt: int
    node: str = ""
    """Name of the worker's machine; "" in lines of earlier versions."""


class Started(_Line):
    """The parameters of a trial's model are counted."""

    event: Literal["started"] = "started"
    trial: int
    constraints: Mapping[str, float]


class Epoch(_Line):
    """The result of an epoch is stored, with the decision whether the trial goes on."""

    event: Literal["epoch"] = "epoch"
    trial: int
    step: int
    value: float
    pruned: bool | None
    too_late: bool = False


class Pause(_Line):
    """A trial is paused at a rung."""

    event: Literal["pause"] = "pause"
    trial: int
    step: int


class Promote(_Line):
    """A paused trial is promoted."""

    event: Literal["promote"] = "promote"
    trial: int
    step: int
    at_least: int | None
    """The argument of ``search.policy.promotion.Promotion.next``."""


class Crash(_Line):
    """A training failed."""

    event: Literal["crash"] = "crash"
    trial: int
    worker: str
    kind: FailureKind | None = None
    reason: Words


class Tell(_Line):
    """A trial has finished."""

    event: Literal["tell"] = "tell"
    trial: int
    state: StateName
    value: float | None
    reason: Words
    failure: FailureKind | None = None


class Stop(_Line):
    """The coordinator ends."""

    event: Literal["stop"] = "stop"
    reason: Words


class OfLaterVersion(_Line):
    """A line of a kind that this version does not know; a later version has written it."""

    event: str


Event: TypeAlias = (
    Launch
    | Accept
    | Keep
    | Recipe
    | Enqueue
    | Ask
    | Assign
    | Started
    | Epoch
    | Pause
    | Promote
    | Crash
    | Tell
    | Stop
    | OfLaterVersion
)

_Known = Annotated[
    Launch | Accept | Keep | Recipe | Enqueue | Ask | Assign | Started | Epoch | Pause | Promote | Crash | Tell | Stop,
    Field(discriminator="event"),
]
_KNOWN: TypeAdapter[Event] = TypeAdapter(_Known)


def axes_of(space: Mapping[str, Mapping[str, Json]]) -> dict[str, BaseDistribution]:
    """Axes as Optuna knows them.

    Raises:
        ValueError: a value is not an axis.
    """
    try:
        return {name: axis_of(json.dumps(axis)) for name, axis in space.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an axis: {error}") from None


def as_json(axes: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Axes in the form of a journal's line."""
    return {name: json.loads(distribution_to_json(axis)) for name, axis in axes.items()}


def line_of(event: Event, above: int) -> tuple[bytes, int]:
    """The line of an event, and its checksum; ``above`` is the checksum of the line above, 0 if there is none."""
    values = event.model_dump()
    if isinstance(event, Launch):
        values = {key: value for key, value in values.items() if value is not None or key == "uuid"}
    said = json.dumps(values, default=dict).encode()[:-1]
    crc32 = zlib.crc32(said, above)
    return said + f', "crc32": "{crc32:08x}"}}\n'.encode(), crc32


def last_checksum(content: bytes) -> int:
    """The checksum of a journal's last line, given the last TAIL_BYTES of the journal; 0 if the line has none."""
    found = _SUM.fullmatch(content[:-1])
    return int(found["crc32"], 16) if found else 0


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a journal. What follows the last line break is left out if it may be the last line, cut by a crash.
    If it is not, it is one of the lines, and ``read_line`` refuses it."""
    *lines, end = content.split(b"\n")
    # After a power cut, some file systems have zeros in the place of the bytes that were not written yet.
    begun = end.rstrip(b"\0") if lines else end
    is_one_line = b"\0" not in begun and begun[:1] in (b"", b"{") and len(_SUM_KEY.findall(begun)) <= 1
    return lines if is_one_line else [*lines, end]


def cut_torn_line(path: Path) -> bool:
    """Remove an incomplete last line, which a crash leaves, from a journal. Returns whether there was one."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    is_torn = whole < len(content) and len(lines_of(content)) == content.count(b"\n")
    if is_torn:
        os.truncate(path, whole)
    return is_torn


def read_line(line: bytes, above: int | None) -> tuple[Event, int | None]:
    """The event of a line, and its checksum.

    Args:
        line: the line, without its line break.
        above: the checksum of the line above; None if no line so far had one.

    Raises:
        ValueError: the line was altered.
    """
    found = _SUM.fullmatch(line)
    if found is None:
        if above is not None:
            raise ValueError("it has no checksum")
        return _read(line, {"extra": "forbid"}), None
    crc32 = int(found["crc32"], 16)
    if zlib.crc32(found["said"], above or 0) != crc32:
        raise ValueError("its checksum differs")
    said = found["said"] + b"}"
    try:
        return _read(said, {"extra": "ignore"}), crc32
    except ValidationError as error:
        if error.errors()[0]["type"] != "union_tag_invalid":
            raise
    return OfLaterVersion.model_validate_json(said, extra="ignore"), crc32


def _read(line: bytes, how: dict[str, Any]) -> Event:
    try:
        values = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _KNOWN.validate_python(values, **how)
