"""Evaluates the exported model once, computes the results in metrics.json, and puts them into words."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from search.console import show_progress
from search.export.formats import weights
from search.export.how_to_load import loading_lines
from search.export.record import (
    DENSE_CLASSES,
    Description,
    Evaluation,
    ExportRecord,
    Measured,
    Results,
    Score,
    Validation,
)
from search.export.retrain import Retraining
from search.export.scores import (
    CLASS_COLUMNS,
    Answers,
    class_rows,
    never_predicted,
    score_rows,
    scores_of,
    which_classes,
    without_pictures,
)
from search.export.trainings import Outcome
from search.figures.mistakes import caption
from search.figures.png import CurvePoint, confused_pairs, dense
from search.study.confirmation import Confirmation, confirmation_of
from search.study.exported import Exported
from search.study.gain import Gain, gain_of, wilson_interval
from search.study.noise import Noise, noise_of
from search.study.study import record_test_use
from search.watch.export_section import ExportSection
from search.words import count, judged_on, trials_in_words
from studies.objective import words_of
from trainer.errors import printable
from trainer.near import find_near_duplicates
from trainer.results import gflops
from trainer.sums import sha256
from trainer.values import Json
from trainer.views import Views

if TYPE_CHECKING:
    import torch
    from torch import nn

REFERENCE_LOGITS = "reference-logits.npz"
"""File of the logits that the exporting process computed, for the proof to compare with; not part of an export."""


def evaluate_once(
    folder: Path,
    whole: nn.Module,
    plain: nn.Module,
    retraining: Retraining,
    described: Description,
    outcomes: list[list[Outcome]],
) -> Results:
    """Evaluate the exported model, once; write its logits to a file for the proof.

    Args:
        folder: the folder of the model's files.
        whole: the exported model, views and members included.
        plain: the model in model.safetensors; see ``build_models``.
        retraining: the export's trainings.
        described: the part of the record that is known before training.
        outcomes: the outcome of each model's training, by stage.
    """
    import torch

    from trainer.device import Device
    from trainer.evaluate import Ensemble, Metrics, measure, predict_logits

    spec, data = retraining.spec, retraining.data
    # fp32 on the CPU, so that anyone with the export can repeat the result to the last picture.
    cpu = Device(torch.device("cpu"), torch.get_num_threads())

    split = "test" if len(data.splits["test"]) else "val"
    members = list(whole.members) if isinstance(whole, Ensemble) and described.model.members > 1 else []
    done, total = 0, len(data.splits[split]) * (1 + (plain is not whole) + len(members))
    total += len(data.splits["val"]) if split != "val" else 0

    def evaluate(model: nn.Module, split: str) -> tuple[Metrics, torch.Tensor]:
        def counted(pictures: torch.Tensor) -> torch.Tensor:
            nonlocal done
            done += len(pictures)
            progress("evaluating, in pictures", done, total)
            logits: torch.Tensor = model(pictures)
            return logits

        logits = predict_logits(counted, data, split, cpu)
        return measure(logits, data.labels[data.splits[split]]), logits

    openings = 0
    if split == "test":
        model = hash_of_model(folder / weights.FILE, described.model.views_of(data.mean, data.std))
        openings = retraining.with_database(lambda: record_test_use(retraining.study, model, trial=described.trial))
    with show_progress(retraining.console, retraining.raise_if_stopped) as progress:
        result, logits = evaluate(whole, split)
        alone, plain_logits = (result, logits) if plain is whole else evaluate(plain, split)
        member_accuracies = [evaluate(member, split)[0].accuracy for member in members]
        validation = result if split == "val" else evaluate(whole, "val")[0]
    _write_logits(folder, logits, None if plain is whole else plain_logits)
    labels, many = data.labels[data.splits[split]], len(data.class_names) > DENSE_CLASSES
    n = len(labels)
    found = None if spec.confirm.is_off else retraining.with_database(lambda: confirmation_of(retraining.study, spec))
    return Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        evaluation=Evaluation(
            split=split,
            n=n,
            accuracy=result.accuracy,
            interval=wilson_interval(round(result.accuracy * n), n),
            loss=result.loss,
            plain_accuracy=alone.accuracy,
            member_accuracies=tuple(member_accuracies),
            confusion=None if many else dense(result.confusion, len(data.class_names)).tolist(),
            confusion_table=result.confusion.tolist() if many else None,
            confused=tuple(confused_pairs(result.confusion, data.class_names)),
            scores=scores_of(Answers.of(logits.numpy(), labels), labels, data.class_names),
            test_openings=openings,
            near_duplicates=_near_duplicates(retraining, split),
        ),
        validation=Validation(n=len(data.splits["val"]), accuracy=validation.accuracy, loss=validation.loss),
        histories=tuple(_history(outcomes, number, spec.final.last_stage) for number in range(len(outcomes[0]))),
        measured_on_this_machine=_measured(outcomes, found),
    )


def _measured(outcomes: Sequence[Sequence[Outcome]], found: Confirmation | None) -> Measured:
    return Measured(
        confirming_seconds=found and round(found.seconds, 3),
        training_seconds=tuple(
            round(sum(ended[number].seconds for ended in outcomes), 3) for number in range(len(outcomes[0]))
        ),
    )


def gain_and_noise(retraining: Retraining) -> dict[str, str | None]:
    """The gain of the search over its first known recipe, and the noise of one training, each in a sentence; None if
    it is not known."""
    study, spec = retraining.study, retraining.spec

    def found() -> tuple[Gain | None, Noise | None]:
        confirmation = None if spec.confirm.is_off else confirmation_of(study, spec)
        return gain_of(study, spec, confirmation), noise_of(study, spec, confirmation)

    return {
        name: None if one is None else one.sentence
        for name, one in zip(("gain", "noise"), retraining.with_database(found), strict=True)
    }


def _near_duplicates(retraining: Retraining, split: str) -> int | None:
    """Number of test pictures that look like a training picture; None without picture files or a test split."""
    if split != "test" or retraining.spec.data.source != "folder":
        return None
    with show_progress(retraining.console, retraining.raise_if_stopped) as progress:
        splits = {name: retraining.data.splits[name] for name in ("train", "test")}
        return len(find_near_duplicates(retraining.data, splits, progress))


def _write_logits(folder: Path, whole: torch.Tensor, plain: torch.Tensor | None) -> None:
    """Write the logits to a file for the proof; ``plain`` is None if the plain model is the whole one.

    Logits of 10,000 images and 10,000 classes take 400 MB, so equal ones are written once.
    """
    import numpy as np

    if plain is None:
        np.savez(folder / REFERENCE_LOGITS, whole=whole.numpy())
    else:
        np.savez(folder / REFERENCE_LOGITS, whole=whole.numpy(), plain=plain.numpy())


def _history(outcomes: Sequence[Sequence[Outcome]], member: int, last_stage: str) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(
            stage=stage,
            epoch=one.epoch,
            train_loss=one.train_loss,
            val_loss=one.val_loss,
            val_accuracy=one.val_accuracy,
            train_accuracy=one.train_accuracy,
            val_macro_f1=one.val_macro_f1,
            val_balanced_accuracy=one.val_balanced_accuracy,
        )
        for stage, ended in zip(("training", last_stage), outcomes, strict=False)
        for one in ended[member].results
    )


@dataclass(frozen=True)
class Export:
    """The answer of ``search export-best``."""

    record: ExportRecord
    path: Path
    """Folder of the export."""

    def to_json(self) -> dict[str, Json]:
        """The content of metrics.json, and ``path``."""
        return self.record.to_json() | {"path": str(self.path)}

    @property
    def result(self) -> Exported:
        """The result that the study stores."""
        record, result = self.record, self.record.evaluation
        return Exported(
            trial=record.trial,
            trials=record.trials if record.members else (),
            folder=str(self.path),
            split=result.split,
            n=result.n,
            accuracy=result.accuracy,
            interval=result.interval,
            num_params=record.model.num_params,
            fit_on=record.fit_on,
            objective=record.search.objective,
            value=_value(record),
        )


def _value(record: ExportRecord) -> float | None:
    """The value of the study's objective in the final evaluation; a loss is negated. None if that is the accuracy, or
    if the export of an earlier version has no scores."""
    result, scores = record.evaluation, record.evaluation.scores
    match record.search.objective:
        case "accuracy":
            return None
        case "loss":
            return -result.loss
        case "macro_f1":
            return None if scores is None else scores.macro_f1.value
        case "balanced_accuracy":
            return None if scores is None else scores.balanced_accuracy.value
        case _:
            assert_never(record.search.objective)


def text_of_export(export: Export) -> str:
    """The text that ``search export-best`` writes at its end."""
    record, path = export.record, export.path
    result, model, best = record.evaluation, record.model, record.confirmed
    libraries = [one.library for one in record.proof.formats.values()]
    judged = judged_on(record.folds)
    each = " each" if record.members else ""
    claims = [f"  claimed     {record.claim} {judged} by the search, of one training{each}{record.why_unconfirmed}"]
    if best is not None and best.best_mean is not None:
        seeds = count(best.seeds, "fresh seed") + (" that had no part in the choice" if best.reported else "")
        claims.insert(0, f"  confirmed   {best.mean_in_words(record.search.objective)} {judged}, {seeds}")
    scores = [] if result.scores is None else [f"  macro F1    {result.scores.macro_f1.in_words}"]
    if result.scores and (missing := without_pictures(result.scores, f"in the {result.split} split", printable)):
        scores.append(f"  no picture  {missing}")
    if record.search.objective != "macro_f1" and (value := _value(record)) is not None:
        scores.insert(0, f"  chosen by   {words_of(value, record.search.objective)}")
    gain = [] if record.gain is None else [f"  gain        {record.gain}"]
    gain += [] if record.noise is None else [f"  noise       {record.noise}"]
    gain += [] if record.rerank is None else [f"  rerank      {record.rerank.in_words}"]
    return "\n".join(
        [
            f"exported to {path}",
            f"  accuracy    {result.accuracy:.2%} {record.measured_on}, n = {result.n:,} "
            f"(95 % interval {result.interval[0]:.2%} to {result.interval[1]:.2%})",
            *scores,
            *claims,
            *gain,
            f"  parameters  {model.num_params:,}, multiply-adds {model.macs:,} ({gflops(model.macs)})",
            f"  proof       {', '.join(libraries)} agree to {record.proof.max_logit_difference:.1e}",
            "  load it     " + "\n              ".join(loading_lines(record, path)),
        ]
    )


def section_of(record: ExportRecord, mistakes: bytes | None) -> ExportSection:
    """The report's section about an export; ``mistakes`` is a PNG, or None if there was no mistake, or the
    figure was not kept."""
    result, scores = record.evaluation, record.evaluation.scores
    assert scores is not None
    accuracy = Score(value=result.accuracy, interval=result.interval)
    missing = without_pictures(scores, f"in the {result.split} split", printable)
    never = never_predicted(scores, printable)
    return ExportSection(
        trial=record.trial,
        which_trials=trials_in_words(record.trials),
        measured=f"{accuracy.in_words} {record.measured_on}, n = {result.n:,}",
        rows=score_rows(scores),
        columns=CLASS_COLUMNS,
        classes=tuple(map(tuple, class_rows(scores, printable))),
        which=which_classes(scores),
        never=" ".join(filter(None, [missing, never])),
        mistakes=None if mistakes is None else base64.b64encode(mistakes).decode(),
        caption=caption(record.data.class_names),
    )


def hash_of_model(weights: Path, views: Views) -> str:
    """The hash of a final model's weights and of the views that it averages."""
    return hashlib.sha256(json.dumps([sha256(weights), *views.names, *views.colour_shift]).encode()).hexdigest()
