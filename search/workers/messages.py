"""Messages between coordinator and workers: frozen values with one JSON form, a line each.

    coordinator -> worker   Assign   train this candidate
    worker -> coordinator   Placed   the process has begun on a node; its first message
                            Ready    the process has imported everything and opened its device
                            Started  the candidate's size is counted, and training begins
                            Epoch    an epoch is finished, and the checkpoint with it is durable
    coordinator -> worker   Answer   whether to go on after that epoch
    worker -> coordinator   Left     the worker is free again, after the answer "stop" or after the last epoch
                            Failed   the training cannot go on; the worker waits for the next assignment

The reader refuses any other message, and messages that lack a field without a default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter

from search.workers.failures import Failure
from studies import Limit
from studies.final import Rerank
from trainer.config import DataConfig, EpochResult


@dataclass(frozen=True, kw_only=True)
class WidthShare:
    """A share of the widths that fit. The worker finds the width, which depends on the other settings."""

    share: float
    """From 0 for the narrowest width to 1 for the widest that fits."""
    low: float
    """The narrowest width."""
    high: float | None
    """The widest width allowed by the study file; None if only the limit bounds it."""


@dataclass(frozen=True, kw_only=True)
class Assign:
    """Train this candidate, from its last epoch if there is a checkpoint."""

    trial: int
    """Number of the trial; in an export, number of the training."""
    config: dict[str, object]
    """Values of a TrainConfig. The worker validates them: a mistake ends the trial and not the search."""
    data: DataConfig
    cache: str
    """Path of the decoded pictures."""
    checkpoint: str
    limit: Limit
    width: WidthShare | None = None
    micro_batches: int = 1
    """Number of parts that each batch is divided into."""
    streamed: bool = False
    """Whether the pictures stay on the host, because the GPU's memory ran out with them in it."""
    fit_on: str | None = None
    """In an export: the splits to train on, see ``Dataset.trained_on``. None in a search."""
    start: str | None = None
    """In an export: path of the checkpoint whose weights the training begins with."""
    teacher: str | None = None
    """On a Ray cluster: path of the teacher, if it is an export. None in other pools, where ``config`` has the path."""
    rerank: Rerank | None = None
    """In an export: filters that are drawn again in the weights of ``start``."""
    type: Literal["assign"] = "assign"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether to go on after an epoch."""

    go_on: bool
    type: Literal["answer"] = "answer"


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The process has begun. Until then, the worker may wait in a queue of a cluster."""

    node: str
    """Name of the machine."""
    gpu: str | None
    """UUID of the process's GPU, or of a part of a GPU; None on the CPU. It is not a number, because two nodes may
    number their GPUs alike."""
    kind: Literal["cpu", "cuda"]
    """The kind of the process's device, in torch's words."""
    versions: str
    """Versions of this program and its packages on the node, see ``search.process.versions``."""
    type: Literal["placed"] = "placed"


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The worker's process is ready for work."""

    device: str
    """Name of the device that the worker found, such as "NVIDIA H100"."""
    type: Literal["ready"] = "ready"


@dataclass(frozen=True, kw_only=True)
class Started:
    """The size of a candidate is counted, and within the limit."""

    trial: int
    num_params: int
    macs: int
    sizes: dict[str, float] = field(default_factory=dict)
    """Final values of the settings that change the model's size."""
    type: Literal["started"] = "started"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch (or a fold) is finished. A resumed training sends its old epochs first."""

    trial: int
    result: EpochResult
    memory_bytes: int
    """Peak memory of the process: reserved on a GPU, or resident on the CPU."""
    type: Literal["epoch"] = "epoch"


@dataclass(frozen=True, kw_only=True)
class Left:
    """The worker has ended its training, and is free again."""

    trial: int
    type: Literal["left"] = "left"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The worker cannot go on with its training."""

    trial: int
    failure: Failure
    type: Literal["failed"] = "failed"


ToWorker: TypeAlias = Assign | Answer
FromWorker: TypeAlias = Placed | Ready | Started | Epoch | Left | Failed

# A loss may be infinite, and must survive JSON.
_CONFIG = ConfigDict(ser_json_inf_nan="constants", extra="forbid")
_TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="type")], config=_CONFIG)
_FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="type")], config=_CONFIG)


def to_json(message: ToWorker | FromWorker) -> bytes:
    """A message as a line of JSON, with the line break."""
    adapter = _TO_WORKER if isinstance(message, ToWorker) else _FROM_WORKER
    return adapter.dump_json(message) + b"\n"  # type: ignore[arg-type]  # mypy does not narrow by an alias


def to_worker(line: bytes | str) -> ToWorker:
    """Parse a line that the coordinator sent to a worker.

    Raises:
        pydantic.ValidationError: the line is not such a message.
    """
    return _TO_WORKER.validate_json(line)


def from_worker(line: bytes | str) -> FromWorker:
    """Parse a line that a worker sent.

    Raises:
        pydantic.ValidationError: the line is not such a message.
    """
    return _FROM_WORKER.validate_json(line)
