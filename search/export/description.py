"""The part of an export's metrics.json that is known before anything is trained, and its identity."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from optuna.trial import FrozenTrial

from search.export.formats.table import format_of
from search.export.record import METRICS_VERSION, Description, identity_of, without_times
from search.export.retrain import Retraining, Stages
from search.export.trainings import Training
from search.study.confirmation import Confirmation
from search.study.journal import digest
from search.study.marks import own_trials
from search.study.study import teacher_hash
from search.study.trial import recipe_of, states_of, view_of
from studies.final import exported_size
from trainer.config import ModelSize, TrainConfig
from trainer.identity import identity, later_recipe
from trainer.values import expanded


def describe(
    retraining: Retraining,
    chosen: Sequence[FrozenTrial],
    stages: Stages,
    sizes: Sequence[ModelSize],
    confirmation: Confirmation | None,
) -> Description:
    """The part of an export's record that is known before anything is trained.

    Args:
        retraining: the export's trainings.
        chosen: the exported trials.
        stages: the final trainings.
        sizes: size of each member for one view of a picture.
        confirmation: the study's confirmation, if there is one.
    """
    from trainer.models import is_stock, model_args

    spec, trial, config = retraining.spec, chosen[0], stages[0][0].config
    trials = own_trials(retraining.study)
    final = spec.final
    whole, _ = exported_size(sizes, final)
    packages = [package for name in final.formats for package in format_of(name).packages]
    described: dict[str, object] = {
        "version": METRICS_VERSION,
        "study": spec.name,
        "trial": trial.number,
        "model": {
            "architecture": config.model,
            "model_args": model_args(config, spec.data.image_size),
            "stock_timm": len(sizes) == 1 and is_stock(config),
            "members": len(sizes),
            "views": list(final.tta),
            "num_params": whole.params,
            "macs": whole.macs,
            **_colour_shift(retraining),
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
                else {"objective": spec.search.objective, "value": view_of(trial).value}
            ),
        },
        "confirmation": without_times(confirmation) if confirmation else None,
        "fit_on": "folds" if final.ensemble == "folds" else final.fit_on,
        "sees_validation": final.sees_validation,
        "config": identity(_recorded_config(config)),
        "finetune": final.finetune and identity(final.finetune),
        "teacher": teacher_hash(config),
        "seeds": [training.config.seed for training in stages[0]],
        "sampled": recipe_of(trial),
        "data": _pictures(retraining),
        "versions": {name: version(name) for name in ("featherweight", "torch", "timm", "optuna", *packages)},
        "commit": _commit(),
    }
    if final.license is not None:  # earlier exports have no such key, and their identities must not change
        described["license"] = final.license
    if retraining.unconfirmed is not None:
        described["unconfirmed"] = retraining.unconfirmed
    if len(chosen) > 1:
        described["members"] = _members(retraining, chosen, stages[0], sizes)
    if final.rerank is not None:
        described["rerank_settings"] = final.rerank.model_dump(mode="json")
    if final.gallery:
        described["gallery"] = True
    described = json.loads(json.dumps(described))
    # The identity is computed as if the version were 2, so that an export of an older version has the same identity.
    unchanged = described | {"version": 2}
    identifying: object = [unchanged, *later_recipe()] if later_recipe() else unchanged
    # The journal's hash is not part of the identity: a launch adds lines even if the budget is spent.
    hashes = {"identity": identity_of(identifying), "event_log": digest(retraining.runs.journal(spec.name))}
    return Description.model_validate(described | hashes)


def _colour_shift(retraining: Retraining) -> dict[str, object]:
    """The colour shift of the view fancy_pca; empty without this view, so that other exports keep their identities."""
    if "fancy_pca" not in retraining.spec.final.tta:
        return {}
    from trainer.fancy_pca import draw_fancy_pca

    return {"fancy_pca": asdict(draw_fancy_pca(retraining.data, retraining.spec.seed))}


def _pictures(retraining: Retraining) -> dict[str, object]:
    spec, data = retraining.spec, retraining.data
    return {
        "source": spec.data.source,
        "config": identity(spec.data, without=("path",)) | spec.data.named_tables,
        "content_hash": data.content_hash,
        "fingerprint": data.fingerprint,
        "image_size": spec.data.image_size,
        "resize": spec.data.resize,
        "channels": spec.data.channels,
        "class_names": list(data.class_names),
        "pictures": {name: len(indices) for name, indices in data.splits.items()},
    }


def _members(
    retraining: Retraining, chosen: Sequence[FrozenTrial], trained: Sequence[Training], sizes: Sequence[ModelSize]
) -> list[dict[str, object]]:
    """The members of several trials, in the order of ``sizes``. Each training makes the same number of members."""
    from trainer.models import model_args

    spec, numbers = retraining.spec, {trial.number: trial for trial in chosen}
    each = len(sizes) // len(trained)
    found: list[dict[str, object]] = []
    for training, one in zip([training for training in trained for _ in range(each)], sizes, strict=True):
        own, _ = exported_size([one], spec.final)
        trial = numbers[training.trial]
        found.append(
            {
                "trial": trial.number,
                "value": view_of(trial).value,
                "seed": training.config.seed,
                "architecture": training.config.model,
                "model_args": model_args(training.config, spec.data.image_size),
                "num_params": own.params,
                "macs": own.macs,
                "config": identity(_recorded_config(training.config)),
                "sampled": recipe_of(trial),
            }
        )
    return found


def _recorded_config(config: TrainConfig) -> TrainConfig:
    """The configuration for the record. If the teacher is an export, its path is replaced by the name of its folder."""
    distill = config.distill
    if distill is None or teacher_hash(config) == distill.teacher:
        return config
    teacher = distill.model_copy(update={"teacher": expanded(distill.teacher).resolve().name})
    return config.model_copy(update={"distill": teacher})


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
