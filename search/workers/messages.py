"""What coordinator and workers say to each other: frozen values with one JSON form, a line each.

    coordinator -> worker   Assign   train this
    worker -> coordinator   Ready    the process has imported everything and opened its device
                            Started  the candidate is counted, and training begins
                            Epoch    an epoch is finished, and durable in the checkpoint
    coordinator -> worker   Answer   whether to go on after that epoch
    worker -> coordinator   Left     it has let go, after an answer that says no or after the last epoch
                            Failed   it cannot go on; it waits for the next assignment

A message that is not one of these, or lacks a field, is refused by the reader.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter

from search.workers.failures import Failure
from studies import Limit
from trainer.config import DataConfig, EpochResult


@dataclass(frozen=True, kw_only=True)
class WidthShare:
    """A width as a share of those that fit, which the worker finds: it depends on the candidate's other settings."""

    share: float
    """0 the narrowest, 1 the widest that fits."""
    low: float
    """The narrowest width."""
    high: float | None
    """The widest of interest; None for no other bound than the limit."""


@dataclass(frozen=True, kw_only=True)
class Assign:
    """Train this, from its last epoch if there is a checkpoint."""

    trial: int
    """The trial's number; in an export, the training's."""
    config: dict[str, object]
    """Values of a TrainConfig. The worker validates them: a mistake ends the trial and not the search."""
    data: DataConfig
    cache: str
    """Where the pictures are decoded."""
    checkpoint: str
    limit: Limit
    width: WidthShare | None = None
    micro_batches: int = 1
    """Parts that each batch is divided into."""
    fit_on: str | None = None
    """Of an export: the splits that are trained on, see ``Dataset.trained_on``. None: a training of the search."""
    start: str | None = None
    """Of an export: the checkpoint whose weights it begins with."""
    type: Literal["assign"] = "assign"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether to go on after an epoch."""

    go_on: bool
    type: Literal["answer"] = "answer"


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The process can be given work."""

    device: str
    """What it found, for people: "NVIDIA H100"."""
    type: Literal["ready"] = "ready"


@dataclass(frozen=True, kw_only=True)
class Started:
    """A candidate is counted and within the limit."""

    trial: int
    num_params: int
    macs: int
    sizes: dict[str, float] = field(default_factory=dict)
    """The settings that change its size, as they came out."""
    type: Literal["started"] = "started"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch is finished, or a fold. A resumed training sends its old ones first."""

    trial: int
    result: EpochResult
    memory_bytes: int
    """The process's peak: reserved on the GPU, or resident on the CPU."""
    type: Literal["epoch"] = "epoch"


@dataclass(frozen=True, kw_only=True)
class Left:
    """The worker has let go of what it trained."""

    trial: int
    type: Literal["left"] = "left"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The worker cannot go on with what it trains."""

    trial: int
    failure: Failure
    type: Literal["failed"] = "failed"


ToWorker: TypeAlias = Assign | Answer
FromWorker: TypeAlias = Ready | Started | Epoch | Left | Failed

# A loss may be infinite, and must stay so.
_CONFIG = ConfigDict(ser_json_inf_nan="constants", extra="forbid")
_TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="type")], config=_CONFIG)
_FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="type")], config=_CONFIG)


def to_json(message: ToWorker | FromWorker) -> bytes:
    """A message as a line of JSON, its end included."""
    adapter = _TO_WORKER if isinstance(message, ToWorker) else _FROM_WORKER
    return adapter.dump_json(message) + b"\n"  # type: ignore[arg-type]  # mypy does not narrow by an alias


def to_worker(line: bytes | str) -> ToWorker:
    """The message that a line holds for a worker.

    Raises:
        pydantic.ValidationError: it holds none.
    """
    return _TO_WORKER.validate_json(line)


def from_worker(line: bytes | str) -> FromWorker:
    """The message that a line holds from a worker.

    Raises:
        pydantic.ValidationError: it holds none.
    """
    return _FROM_WORKER.validate_json(line)
