"""The content of metrics.json as frozen values: what is known before training, the results, the proof.

The proof reads metrics.json without this module, as an outsider would.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_serializer

from search.errors import UsageError
from search.export.machine_load import Load
from search.export.recorded import (
    Recorded,
    RecordedData,
    RecordedLimit,
    RecordedMember,
    RecordedModel,
    RecordedOutOfFold,
    RecordedRerank,
    RecordedSearch,
    RecordedSelection,
)
from search.figures.confusion import table_of
from search.figures.png import Confused, CurvePoint
from search.study.confirmation import Confirmation
from search.study.finalists import Finalist
from studies.objective import words_of
from trainer.sums import POINTER, is_pointer
from trainer.values import Json

METRICS_VERSION = 3
"""Version of the shape of metrics.json."""

DENSE_CLASSES = 500
"""Largest number of classes for which metrics.json has the whole confusion matrix. For 10,000 classes, the matrix has
100 million numbers."""

METRICS = "metrics.json"


class Description(Recorded):
    """The part of an export's record that is known before anything is trained."""

    version: int
    study: str
    trial: int
    """Number of the trial; if there are several, of the first one."""
    model: RecordedModel
    limit: RecordedLimit
    formats: tuple[str, ...]
    search: RecordedSearch
    confirmation: Confirmation | None
    """The confirmation without its times, which do not count in the identity."""
    fit_on: str
    sees_validation: bool
    """Whether the weights were trained on the validation split."""
    config: Mapping[str, Json]
    """The [train] table of all members, which differ only in their seeds. With several trials: that of the first."""
    finetune: Mapping[str, Json] | None
    teacher: str | None
    """SHA-256 of the teacher's weights, or its name in timm; None without distillation."""
    seeds: tuple[int, ...]
    """The seed of each training, of the first stage if there are several. If not all models are exported, ``selection``
    says which are."""
    sampled: Mapping[str, Json]
    data: RecordedData
    versions: Mapping[str, str]
    """Package -> version."""
    commit: str | None
    """Commit of this program; None if it does not run from its repository."""
    members: tuple[RecordedMember, ...] = Field((), exclude_if=lambda members: not members)
    """The members, if they belong to several trials; else empty."""
    rerank_settings: Mapping[str, Json] | None = Field(None, exclude_if=lambda settings: settings is None)
    """The [final.rerank] table; None without it."""
    gallery: bool = Field(False, exclude_if=lambda gallery: not gallery)
    """Whether the card shows the most confident mistakes."""
    license: str | None = Field(None, exclude_if=lambda license: license is None)
    """The licence of the model: ``final.license``; None if the study states none."""
    unconfirmed: Literal["chosen", "measured"] | None = Field(None, exclude_if=lambda unconfirmed: unconfirmed is None)
    """The step for which the hours of the study left no time: "chosen": to choose the trial with fresh seeds;
    "measured": to measure the chosen trial with further seeds. None if there was time for both."""
    identity: str
    """SHA-256 of all fields above and of a later RECIPE_VERSION than the first. ``version`` counts as 2 whatever it is,
    so a new form of this file changes no identity. If an existing export has the same identity, the study is not
    exported again."""
    event_log: str | None
    """SHA-256 of the study's journal. Not in the identity: a launch adds lines even if the budget is spent."""

    @field_serializer("confirmation")
    def _without_times(self, found: Confirmation | None) -> dict[str, Json] | None:
        return None if found is None else without_times(found)

    @property
    def folds(self) -> int:
        """Number of folds whose mean is a candidate's accuracy in the search; 0: there is one validation split."""
        folds = self.data.config.get("folds", 0)
        assert isinstance(folds, int)
        return folds

    @property
    def trials(self) -> tuple[int, ...]:
        """Numbers of the exported trials."""
        return tuple(dict.fromkeys(one.trial for one in self.members)) or (self.trial,)

    @property
    def why_unconfirmed(self) -> str:
        """``unconfirmed`` as the end of a sentence; "" if it is None."""
        match self.unconfirmed:
            case "chosen":
                return "; the hours were over before it was confirmed with fresh seeds"
            case "measured":
                return "; fresh seeds chose it, but the hours were over before further ones measured it"
            case None:
                return ""

    @property
    def confirmed(self) -> Finalist | None:
        """The exported trial among the confirmed candidates; None if it was not confirmed, or there are several."""
        return None if self.confirmation is None or self.members else self.confirmation.candidate(self.trial)

    @property
    def claim(self) -> str:
        """The value of each trial in the search: "97.12%", "macro F1 91.30%", "97.12%, 96.80%"."""
        values = {one.trial: one.value for one in self.members}
        return ", ".join(words_of(value, self.search.objective) for value in values.values()) or self.search.in_words


class Score(Recorded):
    """A score from 0 to 1 with its 95 % interval."""

    value: float
    interval: tuple[float, float] | None
    """None if all resamples of the bootstrap are equal, for example without a mistake."""

    @property
    def in_words(self) -> str:
        """The score and its interval: "97.12% (95 % interval 96.00% to 98.01%)"."""
        if self.interval is None:
            return f"{self.value:.2%}"
        return f"{self.value:.2%} (95 % interval {self.interval[0]:.2%} to {self.interval[1]:.2%})"

    @property
    def in_brief(self) -> str:
        """``in_words`` for a narrow column: "97.12% (96.00 to 98.01)"."""
        if self.interval is None:
            return f"{self.value:.2%}"
        low, high = (f"{100 * end:.2f}" for end in self.interval)
        return f"{self.value:.2%} ({low} to {high})"


class ClassScore(Recorded):
    """The scores of one class."""

    name: str
    n: int
    """Number of pictures of the class."""
    predicted: int
    """Number of pictures that were classified as the class."""
    precision: Score | None
    """Share of the pictures classified as the class that belong to it; None if the class was never predicted."""
    recall: Score | None
    """Share of the class's pictures that were classified as the class; None if it has no pictures."""
    f1: float | None
    """Harmonic mean of precision and recall; None if the class has no picture and was never predicted."""


class Scores(Recorded):
    """Scores besides the accuracy; their definitions and intervals are in search.export.scores."""

    macro_f1: Score
    """Mean F1 over the classes that have a picture or are predicted."""
    balanced_accuracy: Score
    """Mean recall over the classes that have a picture."""
    top5: Score | None
    """Share of the pictures whose class is among the five likeliest; None with five classes or fewer."""
    calibration_error: Score
    """Expected calibration error of the likeliest class."""
    calibration_bins: int
    """Number of bins of the calibration error, of equal width."""
    resamples: int
    """Number of resamples of the bootstrap for the intervals."""
    classes: tuple[ClassScore, ...]
    """Classes, in the order of the logits."""


class Evaluation(Recorded):
    """The final evaluation of the exported model, fp32 on the CPU."""

    split: str
    """Name of the evaluated split: "test", or "val" if there is no test split."""
    n: int
    """Number of pictures."""
    accuracy: float
    """Accuracy from 0 to 1, with all views and members."""
    interval: tuple[float, float]
    """95 % interval of the accuracy (Wilson)."""
    loss: float
    plain_accuracy: float
    """Accuracy of the model in model.safetensors. It differs from ``accuracy`` only if a single model has views."""
    member_accuracies: tuple[float, ...]
    """Accuracy of each member alone; empty without an ensemble."""
    confusion: tuple[tuple[int, ...], ...] | None
    """[c, c]: rows are true classes, columns predicted ones; None for more than DENSE_CLASSES."""
    confusion_table: tuple[tuple[int, int, int], ...] | None = Field(None, exclude_if=lambda table: table is None)
    """With more than DENSE_CLASSES: each (true class, predicted class, pictures) that occurs; else None."""
    confused: tuple[Confused, ...]
    """The most frequent mistakes."""
    scores: Scores | None = Field(None, exclude_if=lambda scores: scores is None)
    """Scores besides the accuracy; None for an export of an earlier version."""
    test_openings: int
    """Number of uses of the test split so far, this one included."""
    near_duplicates: int | None = None
    """Number of test pictures that look like a training picture; None without picture files or a test split."""

    @property
    def table(self) -> NDArray[np.int64]:
        """[k, 3]: the rows of ``confusion_table``. If the record has ``confusion``, they are computed from it."""
        if self.confusion_table is not None:
            return np.array(self.confusion_table, np.int64).reshape(-1, 3)
        return table_of(np.array(self.confusion or (), np.int64))


class Validation(Recorded):
    """The exported model on the validation split."""

    n: int
    accuracy: float
    loss: float


class Measured(Recorded):
    """Measurements that differ between machines."""

    confirming_seconds: float | None
    training_seconds: tuple[float, ...]
    """Training time of each trained model, over all stages."""
    hardware: str = ""
    """Hardware on which the proof ran."""
    latency_ms: Mapping[str, Mapping[str, float]] = {}
    """Library -> batch size -> median milliseconds of a forward pass."""
    load: Load | None = Field(None, exclude_if=lambda load: load is None)
    """The load of the machine during the measurement; None for an export of an earlier version."""


class Results(Recorded):
    """Results of the trainings and of the one evaluation."""

    created: str
    evaluation: Evaluation
    validation: Validation
    histories: tuple[tuple[CurvePoint, ...], ...]
    """The epochs of each trained model, in all stages."""
    measured_on_this_machine: Measured
    selection: RecordedSelection | None = Field(None, exclude_if=lambda selection: selection is None)
    """The choice of the members, if fewer are exported than were trained; else None."""
    out_of_fold: RecordedOutOfFold | None = Field(None, exclude_if=lambda found: found is None)
    """The fold models on the pictures that each was not trained on; None if no fold models are exported."""
    rerank: RecordedRerank | None = Field(None, exclude_if=lambda found: found is None)
    """The gain of the filters that were drawn again; None without [final.rerank]."""
    gain: str | None = None
    """The gain of the search over its first known recipe, in a sentence; None if it is not known."""
    noise: str | None = Field(None, exclude_if=lambda noise: noise is None)
    """The noise of one training, in a sentence; None if it is not known."""


class ProvenFormat(Recorded):
    """A file of the export, loaded by its library."""

    library: str
    accuracy: float
    max_logit_difference: float
    """Largest difference between its logits and those of the exporting process."""


class Proof(Recorded):
    """Results of the proof."""

    num_params: int
    macs: int
    formats: Mapping[str, ProvenFormat]
    """File -> its results."""
    stranger_accuracy: float | None
    """Accuracy on the raw files with timm's own preprocessing; None if the pictures are not files."""
    max_logit_difference: float
    """The largest ``max_logit_difference`` of all formats."""
    stranger_tolerance: float | None = None
    misread: Mapping[str, int] = {}
    """Reason why a plain convert("RGB") misreads pictures -> their number in the evaluated split; see
    trainer.pictures."""
    misread_in_all: Mapping[str, int] = {}
    """``misread``, but for all splits."""


class ProofAnswer(Proof):
    """The whole answer of the proof's process."""

    sha256: Mapping[str, str]
    """File -> SHA-256 at the time of the proof."""
    hardware: str
    latency_ms: Mapping[str, Mapping[str, float]]
    load: Load | None = None


class ExportRecord(Results, Description):
    """The whole content of metrics.json, for a proven export."""

    proof: Proof

    @property
    def measured_on(self) -> str:
        """The split on which the accuracy was measured and, where it matters, the training pictures, in words."""
        split = "test" if self.evaluation.split == "test" else "validation"
        if split == "validation" and self.sees_validation:
            return f"on the {split} split, which it was trained on"
        if split == "validation" and self.selection is not None:
            return f"on the {split} split, which chose its members"
        if self.fit_on == "folds":
            return f"on the {split} split, trained on the {self.folds} folds of train+val"
        return f"on the {split} split{', trained on train+val' if self.fit_on == 'train+val' else ''}"

    @classmethod
    def proven(cls, described: Description, results: Results, answer: ProofAnswer) -> Self:
        """Build the record of an export from its description, its results and the answer of the proof."""
        machine = {"hardware": answer.hardware, "latency_ms": answer.latency_ms, "load": answer.load}
        measured = results.measured_on_this_machine.model_copy(update=machine)
        parts = dict(described) | dict(results) | {"measured_on_this_machine": measured, "proof": dict(answer)}
        return cls.model_validate(parts)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the record of an export.

        Raises:
            UsageError: metrics.json is missing, or does not have the shape of this version.
        """
        file = folder / METRICS
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise UsageError(
                f"{file} cannot be read ({error.strerror}); give a folder that export-best wrote"
            ) from error
        except ValidationError as error:
            if is_pointer(file):
                raise UsageError(f"{file} cannot be read: {'; '.join(POINTER)}") from None
            where = ".".join(map(str, error.errors()[0]["loc"])) or "it"
            raise UsageError(
                f"{file} is not what this version of export-best writes ({where} is missing or has another form); "
                "export again"
            ) from None


def without_times(found: Confirmation) -> dict[str, Json]:
    """A confirmation in the form of metrics.json, without its times."""
    return {name: value for name, value in found.to_json().items() if name not in ("seconds", "eta_seconds")}


def identity_of(described: object) -> str:
    """The identity of a description, given as plain values without ``identity`` and ``event_log``."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def write_metrics(folder: Path, values: Mapping[str, Json]) -> None:
    """Write metrics.json."""
    (folder / METRICS).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
