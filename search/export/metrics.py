"""Computes the content of metrics.json: what is known before training, and the results of the one evaluation."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from optuna.trial import FrozenTrial

from search.console import show_progress
from search.export.formats import weights
from search.export.formats.table import format_of
from search.export.opening import ways
from search.export.record import (
    DENSE_CLASSES,
    METRICS_VERSION,
    Description,
    Evaluation,
    ExportRecord,
    Measured,
    Results,
    Score,
    Validation,
    identity_of,
    without_times,
)
from search.export.retrain import Retraining, Stages
from search.export.scores import (
    CLASS_COLUMNS,
    Answers,
    class_rows,
    never_predicted,
    score_rows,
    scores_of,
    which_classes,
)
from search.export.trainings import Outcome
from search.figures.mistakes import caption
from search.figures.png import Epoch, confused_pairs, dense
from search.study.confirmation import Confirmation, confirmed
from search.study.exported import Exported
from search.study.gain import gain_of, wilson_interval
from search.study.journal import digest
from search.study.marks import own_trials
from search.study.study import open_test_split, teacher_hash
from search.study.trial import recipe_of, states_of, view_of
from search.watch.handed_over import HandedOver
from search.words import count, judged_on
from studies.objective import words_of
from trainer.config import ModelSize, TrainConfig
from trainer.errors import printable
from trainer.identity import identity, later_recipe
from trainer.near import find_near_duplicates
from trainer.sums import sha256
from trainer.values import Json

if TYPE_CHECKING:
    import torch
    from torch import nn

REFERENCE_LOGITS = "reference-logits.npz"
"""File of the logits that the exporting process computed, for the proof to compare with; not part of an export."""


def describe(
    retraining: Retraining, trial: FrozenTrial, stages: Stages, size: ModelSize, confirmation: Confirmation | None
) -> Description:
    """The part of an export's record that is known before anything is trained."""
    from trainer.models import is_stock, model_args

    spec, data, config = retraining.spec, retraining.data, stages[0][0].config
    trials = own_trials(retraining.study)
    final = spec.final
    packages = [package for name in final.formats for package in format_of(name).packages]
    described: dict[str, object] = {
        "version": METRICS_VERSION,
        "study": spec.name,
        "trial": trial.number,
        "model": {
            "architecture": config.model,
            "model_args": model_args(config, spec.data.image_size),
            "stock_timm": final.ensemble == 1 and is_stock(config),
            "members": final.ensemble,
            "views": list(final.tta),
            "num_params": size.params,
            "macs": size.macs,
        },
        "limit": identity(spec.limit) | {"each": final.limit_each},
        "formats": list(final.formats),
        "search": {
            "val_accuracy": view_of(trial).value if spec.search.objective == "accuracy" else None,
            "trials": len(trials),
            "states": states_of(trials),
            "seconds": round(sum(other.user_attrs.get("seconds", 0.0) for other in trials), 3),
            **(
                {}
                if spec.search.objective == "accuracy"
                else {"objective": spec.search.objective, "value": trial.values[0]}
            ),
        },
        "confirmation": without_times(confirmation) if confirmation else None,
        "fit_on": final.fit_on,
        "sees_validation": final.sees_validation,
        "config": identity(_told(config)),
        "finetune": final.finetune and identity(final.finetune),
        "teacher": teacher_hash(config),
        "seeds": [training.config.seed for training in stages[0]],
        "sampled": recipe_of(trial),
        "data": {
            "source": spec.data.source,
            "config": identity(spec.data, without=("path",)),
            "content_hash": data.content_hash,
            "fingerprint": data.fingerprint,
            "image_size": spec.data.image_size,
            "resize": spec.data.resize,
            "channels": spec.data.channels,
            "class_names": list(data.class_names),
            "pictures": {name: len(indices) for name, indices in data.splits.items()},
        },
        "versions": {name: version(name) for name in ("featherweight", "torch", "timm", "optuna", *packages)},
        "commit": _commit(),
    }
    if final.license is not None:  # not among the values of before, whose identities stay
        described["license"] = final.license
    if final.gallery:
        described["gallery"] = True
    described = json.loads(json.dumps(described))
    # The identity is computed as if the version were 2, so that an export of an older version has the same identity.
    unchanged = described | {"version": 2}
    known_by: object = [unchanged, *later_recipe()] if later_recipe() else unchanged
    # The journal's hash is not part of the identity: a launch adds lines even if the budget is spent.
    beside = {"identity": identity_of(known_by), "event_log": digest(retraining.runs.journal(spec.name))}
    return Description.model_validate(described | beside)


def _told(config: TrainConfig) -> TrainConfig:
    """The candidate as others are told of it: of a teacher that is an export only the folder's name, not its place."""
    distill = config.distill
    if distill is None or teacher_hash(config) == distill.teacher:
        return config
    teacher = distill.model_copy(update={"teacher": Path(distill.teacher).expanduser().resolve().name})
    return config.model_copy(update={"distill": teacher})


def evaluate_once(
    folder: Path,
    whole: nn.Module,
    plain: nn.Module,
    retraining: Retraining,
    trial: FrozenTrial,
    outcomes: list[list[Outcome]],
) -> Results:
    """Evaluate the exported model, once; its logits are kept for the proof.

    Args:
        folder: the folder of the model's files.
        whole: the exported model, views and members included.
        plain: the net in model.safetensors.
        retraining: the export's trainings.
        trial: the chosen trial.
        outcomes: the outcome of each training, by stage.
    """
    import torch

    from trainer.device import Device
    from trainer.evaluate import Ensemble, Metrics, measure, predict_logits

    spec, data, num_members = retraining.spec, retraining.data, retraining.spec.final.ensemble
    # fp32 on the CPU, so that anyone with the export can repeat the result to the last picture.
    cpu = Device(torch.device("cpu"), torch.get_num_threads())

    split = "test" if len(data.splits["test"]) else "val"
    members = list(whole.members) if isinstance(whole, Ensemble) and num_members > 1 else []
    seen, total = 0, len(data.splits[split]) * (1 + (plain is not whole) + len(members))
    total += len(data.splits["val"]) if split != "val" else 0

    def evaluate(model: nn.Module, split: str) -> tuple[Metrics, torch.Tensor]:
        def counted(pictures: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += len(pictures)
            progress("evaluating", seen, total)
            answer: torch.Tensor = model(pictures)
            return answer

        logits = predict_logits(counted, data, split, cpu)
        return measure(logits, data.labels[data.splits[split]]), logits

    openings = 0
    if split == "test":
        who = final_model(folder / weights.FILE, spec.final.tta)
        openings = retraining.with_database(lambda: open_test_split(retraining.study, who, trial=trial.number))
    with show_progress(retraining.console, retraining.raise_if_stopped) as progress:
        result, logits = evaluate(whole, split)
        alone, plain_logits = (result, logits) if plain is whole else evaluate(plain, split)
        member_accuracies = [evaluate(member, split)[0].accuracy for member in members]
        validation = result if split == "val" else evaluate(whole, "val")[0]
    _keep_logits(folder, logits, None if plain is whole else plain_logits)
    labels, many = data.labels[data.splits[split]], len(data.class_names) > DENSE_CLASSES
    n = len(labels)
    found = None if spec.confirm.is_off else retraining.with_database(lambda: confirmed(retraining.study, spec))
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
            near_duplicates=_look_alikes(retraining, split),
        ),
        validation=Validation(n=len(data.splits["val"]), accuracy=validation.accuracy, loss=validation.loss),
        histories=tuple(_history(outcomes, number) for number in range(num_members)),
        measured_on_this_machine=_measured(outcomes, found, num_members),
    )


def _measured(outcomes: Sequence[Sequence[Outcome]], found: Confirmation | None, num_members: int) -> Measured:
    return Measured(
        confirming_seconds=found and round(found.seconds, 3),
        training_seconds=tuple(
            round(sum(ended[number].seconds for ended in outcomes), 3) for number in range(num_members)
        ),
    )


def gain_in_words(retraining: Retraining) -> str | None:
    """The gain of the search over its first known recipe, in a sentence; None if it is not known."""
    study, spec = retraining.study, retraining.spec
    gain = retraining.with_database(
        lambda: gain_of(study, spec, None if spec.confirm.is_off else confirmed(study, spec))
    )
    return None if gain is None else gain.sentence


def _look_alikes(retraining: Retraining, split: str) -> int | None:
    """Number of test pictures that look like a training picture; None without picture files or a test split."""
    if split != "test" or retraining.spec.data.source != "folder":
        return None
    with show_progress(retraining.console, retraining.raise_if_stopped) as progress:
        return len(find_near_duplicates(retraining.data, ("train", "test"), progress))


def _keep_logits(folder: Path, whole: torch.Tensor, plain: torch.Tensor | None) -> None:
    """Write the logits to a file for the proof; ``plain`` is None if it equals ``whole``.

    Logits of 10,000 images and 10,000 classes take 400 MB, so equal ones are written once.
    """
    import numpy as np

    if plain is None:
        np.savez(folder / REFERENCE_LOGITS, whole=whole.numpy())
    else:
        np.savez(folder / REFERENCE_LOGITS, whole=whole.numpy(), plain=plain.numpy())


def _history(outcomes: Sequence[Sequence[Outcome]], member: int) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(
            stage=stage,
            epoch=one.epoch,
            train_loss=one.train_loss,
            val_loss=one.val_loss,
            val_accuracy=one.val_accuracy,
            train_accuracy=one.train_accuracy,
            val_macro_f1=one.val_macro_f1,
            val_balanced_accuracy=one.val_balanced_accuracy,
        )
        for stage, ended in zip(("training", "finetuning"), outcomes, strict=False)
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
    def kept(self) -> Exported:
        """The result as the study keeps it."""
        record, result = self.record, self.record.evaluation
        return Exported(
            trial=record.trial,
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
    """The value of the study's objective in the final evaluation, a loss negated; None for accuracy."""
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
    """The output of ``search export-best`` at its end."""
    record, path = export.record, export.path
    result, model, best = record.evaluation, record.model, record.confirmed
    libraries = [one.library for one in record.proof.formats.values()]
    judged = judged_on(record.folds)
    claims = [f"  claimed     {record.search.in_words} {judged} by the search, of one training"]
    if best is not None and best.best_mean is not None:
        seeds = count(best.seeds, "fresh seed") + (" that had no part in the choice" if best.reported else "")
        claims.insert(0, f"  confirmed   {best.mean_in_words(record.search.objective)} {judged}, {seeds}")
    scores = [] if result.scores is None else [f"  macro F1    {result.scores.macro_f1.in_words}"]
    if record.search.objective != "macro_f1" and (value := _value(record)) is not None:
        scores.insert(0, f"  chosen by   {words_of(value, record.search.objective)}")
    gain = [] if record.gain is None else [f"  gain        {record.gain}"]
    return "\n".join(
        [
            f"exported to {path}",
            f"  accuracy    {result.accuracy:.2%} {record.measured_on}, n = {result.n:,} "
            f"(95 % interval {result.interval[0]:.2%} to {result.interval[1]:.2%})",
            *scores,
            *claims,
            *gain,
            f"  parameters  {model.num_params:,}, multiply-adds {model.macs:,}",
            f"  proof       {', '.join(libraries)} agree to {record.proof.max_logit_difference:.1e}",
            "  load it     " + "\n              ".join(ways(record, path)),
        ]
    )


def report_of(record: ExportRecord, mistakes: bytes | None) -> HandedOver:
    """What the report shows of an export; ``mistakes`` is a PNG, or None if there was none."""
    result, scores = record.evaluation, record.evaluation.scores
    assert scores is not None
    accuracy = Score(value=result.accuracy, interval=result.interval)
    return HandedOver(
        trial=record.trial,
        measured=f"{accuracy.in_words} {record.measured_on}, n = {result.n:,}",
        rows=score_rows(scores),
        columns=CLASS_COLUMNS,
        classes=tuple(map(tuple, class_rows(scores, printable))),
        which=which_classes(scores),
        never=never_predicted(scores, printable),
        mistakes=None if mistakes is None else base64.b64encode(mistakes).decode(),
        caption=caption(record.data.class_names),
    )


def final_model(weights: Path, views: Sequence[str]) -> str:
    """Identity of a final model: the hash of its weights and of the views that it averages."""
    return hashlib.sha256(json.dumps([sha256(weights), *views]).encode()).hexdigest()


def _commit() -> str | None:
    """The commit of this program; None if it does not run from its repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        process = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return process.stdout.strip() or None
