"""What an export's metrics.json says, as frozen values: known before training, measured once, proven.

The proof reads metrics.json without this module, as a stranger does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from search.errors import UsageError
from search.figures.png import Confused, Epoch, table_of
from search.study.confirmation import Candidate, Confirmation
from trainer.values import Json

METRICS_VERSION = 3
"""Version of the shape of metrics.json."""

DENSE_CLASSES = 500
"""Classes up to which metrics.json has the whole confusion matrix; one of 10,000 has a hundred million numbers."""

METRICS = "metrics.json"


class Recorded(BaseModel):
    """A part of metrics.json. Keys of a later program are ignored; infinite losses are kept."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    def to_json(self) -> dict[str, Json]:
        """As metrics.json has it."""
        return self.model_dump(mode="json")


class RecordedModel(Recorded):
    """The exported model."""

    architecture: str
    """As in timm, or a family of the product."""
    model_args: Mapping[str, Json]
    stock_timm: bool
    """Whether stock timm builds it by name."""
    members: int
    """Of the ensemble; 1: no ensemble."""
    views: tuple[str, ...]
    """Views that are averaged with the picture itself."""
    num_params: int
    """Of all members."""
    macs: int
    """Of all members and views, for one picture."""


class RecordedLimit(Recorded):
    """The limit of the study."""

    params: int | None
    macs: int | None
    each: bool
    """Whether it holds for each member alone."""


class RecordedSearch(Recorded):
    """The search that found the trial."""

    val_accuracy: float
    """Of the trial, in the search."""
    trials: int
    states: Mapping[str, int]
    """Optuna's state -> its trials."""
    seconds: float
    """Of training, over all workers."""


class RecordedData(Recorded):
    """The pictures."""

    source: str
    config: Mapping[str, Json]
    """The [data] of the study, without the path."""
    content_hash: str
    fingerprint: str
    """Of the contents and their splits."""
    image_size: int
    resize: str
    channels: int
    class_names: tuple[str, ...]
    """In the order of the logits."""
    pictures: Mapping[str, int]
    """Split -> its pictures."""


class Description(Recorded):
    """What is known of an export before anything is trained."""

    version: int
    study: str
    trial: int
    model: RecordedModel
    limit: RecordedLimit
    formats: tuple[str, ...]
    search: RecordedSearch
    confirmation: Confirmation | None
    """Without its times: an export that confirms nothing anew is the same export."""
    fit_on: str
    sees_validation: bool
    """Whether the weights were trained on the validation split."""
    config: Mapping[str, Json]
    """The [train] of every member; each has a seed of its own."""
    finetune: Mapping[str, Json] | None
    teacher: str | None
    """What tells the teacher from others."""
    seeds: tuple[int, ...]
    sampled: Mapping[str, Json]
    data: RecordedData
    versions: Mapping[str, str]
    """Package -> its version."""
    commit: str | None
    """Of this program, where it runs from its repository."""
    identity: str
    """SHA-256 of all of the above: equal where nothing has changed, so that nothing is exported anew."""
    event_log: str | None
    """SHA-256 of the study's journal. Not in the identity: a launch adds lines where it finds the budget spent."""

    @field_serializer("confirmation")
    def _without_times(self, found: Confirmation | None) -> dict[str, Json] | None:
        return None if found is None else without_times(found)

    @property
    def confirmed(self) -> Candidate | None:
        """The exported trial among the confirmed ones."""
        return None if self.confirmation is None else self.confirmation.candidate(self.trial)


class Evaluation(Recorded):
    """The exported model on the split that it is judged by, fp32 on the CPU."""

    split: str
    """The test split; the validation split where there is none."""
    n: int
    """Pictures."""
    accuracy: float
    """0 to 1, views and members included."""
    interval: tuple[float, float]
    """95 % interval of the accuracy (Wilson)."""
    loss: float
    plain_accuracy: float
    """Of the net that model.safetensors holds."""
    member_accuracies: tuple[float, ...]
    """Of each member alone; empty for a single net."""
    confusion: tuple[tuple[int, ...], ...] | None
    """[c, c]: rows are true classes, columns predicted ones; None for more than DENSE_CLASSES."""
    confusion_table: tuple[tuple[int, int, int], ...] | None = Field(None, exclude_if=lambda table: table is None)
    """Of so many classes, each (true class, predicted class, pictures) that occurs; None for fewer."""
    confused: tuple[Confused, ...]
    """The mistakes made most often."""
    test_openings: int
    """How often the test split was looked at by then, this time included."""
    near_duplicates: int | None = None
    """Test pictures that look like a training picture; None where they were not looked for: no files, no test split."""

    @property
    def table(self) -> NDArray[np.int64]:
        """[k, 3]: the confusion, whichever form it has."""
        if self.confusion_table is not None:
            return np.array(self.confusion_table, np.int64).reshape(-1, 3)
        return table_of(np.array(self.confusion or (), np.int64))


class Validation(Recorded):
    """The exported model on the validation split."""

    n: int
    accuracy: float
    loss: float


class Measured(Recorded):
    """What another machine would measure otherwise."""

    confirming_seconds: float | None
    training_seconds: tuple[float, ...]
    """Of each member, all stages."""
    hardware: str = ""
    """Of the proof."""
    latency_ms: Mapping[str, Mapping[str, float]] = {}
    """Library -> batch size -> median milliseconds of a forward pass."""


class Results(Recorded):
    """What the trainings and the one evaluation came to."""

    created: str
    evaluation: Evaluation
    validation: Validation
    histories: tuple[tuple[Epoch, ...], ...]
    """Of each member, its epochs in all stages."""
    measured_on_this_machine: Measured


class ProvenFormat(Recorded):
    """A file of the export, loaded by its library."""

    library: str
    accuracy: float
    max_logit_difference: float
    """To the exporting process."""


class Proof(Recorded):
    """What the proof recounted and measured anew."""

    num_params: int
    macs: int
    formats: Mapping[str, ProvenFormat]
    """File -> what it gives."""
    stranger_accuracy: float | None
    """From the raw files, with timm's own preprocessing; None where the pictures are no files."""
    max_logit_difference: float
    """The largest of all formats."""
    stranger_tolerance: float | None = None
    misread: Mapping[str, int] = {}
    """Why a plain convert("RGB") reads pictures of the evaluated split otherwise -> how many; see trainer.pictures."""
    misread_in_all: Mapping[str, int] = {}
    """The same of all splits."""


class ProofAnswer(Proof):
    """All that the process of the proof says at its end."""

    sha256: Mapping[str, str]
    """File -> its hash, as it was when it was proven."""
    hardware: str
    latency_ms: Mapping[str, Mapping[str, float]]


class ExportRecord(Results, Description):
    """All that metrics.json says of a proven export."""

    proof: Proof

    @classmethod
    def proven(cls, described: Description, results: Results, answer: ProofAnswer) -> Self:
        """The record of an export whose proof has answered."""
        times = {"hardware": answer.hardware, "latency_ms": answer.latency_ms}
        measured = results.measured_on_this_machine.model_copy(update=times)
        parts = dict(described) | dict(results) | {"measured_on_this_machine": measured, "proof": dict(answer)}
        return cls.model_validate(parts)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The record of an export.

        Raises:
            UsageError: there is none, or one of another shape.
        """
        file = folder / METRICS
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise UsageError(
                f"{file} cannot be read ({error.strerror}); give a folder that export-best wrote"
            ) from error
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "it"
            raise UsageError(
                f"{file} is not what this version of export-best writes ({where} is missing or has another form); "
                "export again"
            ) from None


def without_times(found: Confirmation) -> dict[str, Json]:
    """A confirmation as metrics.json has it."""
    return {name: value for name, value in found.to_json().items() if name not in ("seconds", "eta_seconds")}


def identity_of(described: object) -> str:
    """The identity of a description, which is in plain values and without ``identity`` and ``event_log``."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def write_metrics(folder: Path, values: Mapping[str, Json]) -> None:
    """Write metrics.json."""
    (folder / METRICS).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
