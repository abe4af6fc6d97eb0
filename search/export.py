"""Write the export folder of a study's best, prove it in a clean process, and only then move it into place."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy import URL

from search.best import confirmed
from search.card import write_card
from search.devices import WorkerDevice
from search.errors import ProofFailed, SearchError, UsageError
from search.journal import digest
from search.launch import hold_devices, prepare, show_progress
from search.page import show_export
from search.paths import Runs
from search.plots import confused_pairs, draw_confusion, draw_curves
from search.pools.local import without_secrets
from search.predict import check_sums, sha256
from search.retrain import Retraining, Stages, check_limit, choose_trial
from search.status import recipe_of
from search.storage import open_storage, storage_errors
from search.study import find_study, open_test_split, own_study, teacher_hash
from search.trainings import Outcome
from studies import StudySpec
from trainer.config import ModelSize
from trainer.data import Dataset

METRICS_VERSION = 2
"""Version of the shape of metrics.json."""

REFERENCE_LOGITS = "reference-logits.npz"
"""What the exporting process computed, for the proof to compare with; not part of an export."""


def export_best(
    study_name: str,
    url: URL,
    runs: Runs,
    devices: list[WorkerDevice],
    *,
    asked: StudySpec | None = None,
    out: Path | None = None,
    number: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Hand over the best model of a study.

    Args:
        study_name: the study.
        url: the storage.
        runs: the runs folder.
        devices: where to train, a worker each.
        asked: the study file as it is now; its [confirm] and [final] are taken. Default: as it was last launched.
        out: folder of the export; by default under the runs folder.
        number: the trial to export instead of the best; nothing is confirmed then.
        quiet: show no progress.

    Returns:
        What metrics.json holds, and "path".

    Raises:
        NothingToExport: no trial is COMPLETE and feasible, or each diverged when it was trained again.
        HeldError: the study is being searched.
        LimitError: the members of an ensemble exceed the limit together.
        TrainingFailed: a training fails again and again.
        ProofFailed: the export differs from its card; it is kept aside for a look.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(quiet=quiet, highlight=False)
    with storage_errors(url):
        study, spec = find_study(open_storage(url), study_name)  # before own_study: until it is found it may be a path
    if asked is not None:
        spec = spec.model_copy(update={"confirm": asked.confirm, "final": asked.final})
    with (
        own_study(study_name, url, runs) as still_owner,
        hold_devices(devices, runs),
        storage_errors(url),
        ExitStack() as stack,
    ):
        choose_trial(study, number, spec.limit)  # there is one, or the pictures need not be read
        if out is not None:
            _check_target(out.resolve())
        data = prepare(spec, runs, console).data
        retraining = stack.enter_context(Retraining(study, spec, runs, data, devices, console, still_owner))
        trial, confirmation = retraining.choose(number)
        target = (out or runs.export(study_name, trial.number)).resolve()
        _check_target(target)
        stages = retraining.plan(trial)
        size = check_limit(stages[0][0].config, spec, data)
        described = _describe(retraining, trial, stages, size, confirmation)
        metrics = _unchanged(target, described["identity"])
        if metrics is not None:
            console.print(f"{study_name}: trial {trial.number} was exported before, and nothing has changed")
        else:
            metrics = _export(target, described, retraining, trial, stages)
        metrics |= {"path": str(target)}
        # For an export of before too: it may have been killed between its last move and these.
        retraining.tidy(trial)
        still_owner()
        show_export(study, spec, runs.artifacts, render(metrics), (target / "plots").glob("*.png"))
    return metrics


def _export(
    target: Path, described: dict[str, Any], retraining: Retraining, trial: FrozenTrial, stages: Stages
) -> dict[str, Any]:
    """Train what is not trained yet, write the export aside, prove it, move it into place; what metrics.json holds."""
    spec, data, console = retraining.spec, retraining.data, retraining.console
    console.print(f"{spec.name}: exporting trial {trial.number}, {trial.values[0]:.2%} on validation in the search")
    outcomes = retraining.train(stages)

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    metrics = described | _write(partial, retraining, trial, stages, outcomes, console)
    _write_metrics(partial, metrics)  # the proof compares with it
    proof = prove(partial, spec, data, console)
    (partial / REFERENCE_LOGITS).unlink()
    proven = proof.pop("sha256")
    metrics["measured_on_this_machine"] |= {name: proof.pop(name) for name in ("hardware", "latency_ms")}
    metrics["proof"] = proof
    (partial / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    _draw(partial / "plots", metrics)
    _write_metrics(partial, metrics)
    write_card(partial / "README.md", metrics)
    if any(sha256(partial / name) != digest for name, digest in proven.items()):
        raise ProofFailed(f"a file in {partial} has changed since it was proven; nothing was put in place")
    from search.formats import write_sums

    write_sums(partial)
    _move_into_place(partial, target)
    return metrics


def _describe(
    retraining: Retraining, trial: FrozenTrial, stages: Stages, size: ModelSize, confirmation: dict[str, Any] | None
) -> dict[str, Any]:
    """The part of metrics.json that is known before anything is trained, and its hash, "identity"."""
    from trainer.models import is_stock, model_args

    spec, data, config = retraining.spec, retraining.data, stages[0][0].config
    trials = retraining.study.get_trials(deepcopy=False)
    final = spec.final
    found = {name: value for name, value in (confirmation or {}).items() if name not in ("seconds", "eta_seconds")}
    described: dict[str, Any] = {
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
        "limit": spec.limit.model_dump() | {"each": final.limit_each},
        "formats": list(final.formats),
        "search": {
            "val_accuracy": trial.values[0],
            "trials": len(trials),
            "states": {state.name: sum(other.state == state for other in trials) for state in TrialState},
            "seconds": round(sum(other.user_attrs.get("seconds", 0.0) for other in trials), 3),
        },
        "confirmation": found or None,
        "fit_on": final.fit_on,
        "sees_validation": final.sees_validation,
        "config": config.model_dump(mode="json"),
        "finetune": final.finetune and final.finetune.model_dump(mode="json"),
        "teacher": teacher_hash(config),
        "seeds": [training.config.seed for training in stages[0]],
        "sampled": recipe_of(trial),
        "data": {
            "source": spec.data.source,
            "config": spec.data.model_dump(mode="json", exclude={"path"}),
            "content_hash": data.content_hash,
            "fingerprint": data.fingerprint,
            "image_size": spec.data.image_size,
            "resize": spec.data.resize,
            "channels": spec.data.channels,
            "class_names": list(data.class_names),
            "pictures": {name: len(indices) for name, indices in data.splits.items()},
        },
        "versions": {
            name: version(name) for name in ("featherweight", "torch", "timm", "optuna", "onnx", "onnxruntime")
        },
        "commit": _commit(),
    }
    described = json.loads(json.dumps(described))
    identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    # Beside it, because a search that goes on and finds nothing better changes its log and not the export.
    return described | {"identity": identity, "event_log": digest(retraining.runs.journal(spec.name))}


def _write(
    folder: Path,
    retraining: Retraining,
    trial: FrozenTrial,
    stages: Stages,
    outcomes: list[list[Outcome]],
    console: Console,
) -> dict[str, Any]:
    """Write the model files, evaluate once; the part of metrics.json that is known then."""
    import numpy as np
    import torch

    from search.formats import build_nets, write_graphs, write_weights
    from trainer.checkpoint import load_checkpoint
    from trainer.device import Device
    from trainer.evaluate import Ensemble, Metrics, measure, predict_logits

    spec, data, config = retraining.spec, retraining.data, stages[0][0].config
    weights = []
    for training in stages[-1]:
        trained = load_checkpoint(training.checkpoint)
        assert trained is not None
        weights.append(trained.weights)
    whole, plain = build_nets(config, weights, spec, len(data.class_names))
    write_weights(folder, plain, config, spec, data)
    with console.status(f"writing {' and '.join(f'model.{name}' for name in spec.final.formats)}"):
        write_graphs(folder, whole, (spec.data.channels, *data.images.shape[1:3]), spec.final.formats)

    # fp32 on the CPU: what whoever gets the export can repeat to the last picture.
    cpu = Device(torch.device("cpu"), torch.get_num_threads())

    split = "test" if len(data.splits["test"]) else "val"
    members = list(whole.members) if isinstance(whole, Ensemble) and len(weights) > 1 else []
    seen = 0
    total = len(data.splits[split]) * (1 + (plain is not whole) + len(members)) + len(data.splits["val"])

    def evaluate(model: Any, split: str) -> tuple[Metrics, torch.Tensor]:
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
        retraining.still_owner()
        who = final_model(folder / "model.safetensors", spec.final.tta)
        openings = open_test_split(retraining.study, who, trial=trial.number)
    with show_progress(console) as progress:
        result, logits = evaluate(whole, split)
        alone, plain_logits = (result, logits) if plain is whole else evaluate(plain, split)
        member_accuracies = [evaluate(member, split)[0].accuracy for member in members]
        validation, _ = evaluate(whole, "val")
    np.savez(folder / REFERENCE_LOGITS, whole=logits.numpy(), plain=plain_logits.numpy())
    n = len(data.splits[split])
    histories = []
    for number in range(len(weights)):
        history = []
        for name, ended in zip(("training", "finetuning"), outcomes, strict=False):
            for epoch in ended[number].results:
                values = asdict(epoch)
                kept = {key: values[key] for key in ("epoch", "train_loss", "val_loss", "val_accuracy")}
                history.append({"stage": name} | kept)
        histories.append(history)
    found = confirmed(retraining.study, spec) if spec.confirm.top else None
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "evaluation": {
            "split": split,
            "n": n,
            "accuracy": result.accuracy,
            "interval": wilson_interval(result.accuracy, n),
            "loss": result.loss,
            "plain_accuracy": alone.accuracy,
            "member_accuracies": member_accuracies,
            "confusion": result.confusion.tolist(),
            "confused": confused_pairs(result.confusion, data.class_names),
            "test_openings": openings,
        },
        "validation": {
            "n": len(data.splits["val"]),
            "accuracy": validation.accuracy,
            "loss": validation.loss,
        },
        "histories": histories,
        "measured_on_this_machine": {
            "confirming_seconds": found and round(found["seconds"], 3),
            "training_seconds": [
                round(sum(ended[number].seconds for ended in outcomes), 3) for number in range(len(weights))
            ],
        },
    }


def prove(folder: Path, spec: StudySpec, data: Dataset, console: Console) -> dict[str, Any]:
    """Load the export again in a clean process and compare it with its metrics.json; see search/proof.py.

    Raises:
        ProofFailed: with the first difference; the folder stays for a look.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "search.proof",
        str(folder),
        str(data.cache_path),
        spec.data.model_dump_json(),
    ]
    environment = without_secrets() | {"CUDA_VISIBLE_DEVICES": ""}
    said: Any = None
    with (
        tempfile.TemporaryFile("w+") as errors,
        show_progress(console) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = json.loads(line)
                if isinstance(said, list):
                    progress(*said)
        except BaseException:  # Ctrl-C, for one
            process.kill()
            raise
        if process.wait() != 0:
            errors.seek(0)
            reason = (errors.read().strip() or f"it ended with code {process.returncode}").splitlines()[-1]
            raise ProofFailed(f"the export failed its proof: {reason}; it was not put in place, look at it in {folder}")
    answer: dict[str, Any] = said
    return answer


def render(metrics: dict[str, Any]) -> str:
    """What ``search export-best`` prints at its end."""
    result, proof = metrics["evaluation"], metrics["proof"]
    libraries = [one["library"] for one in proof["formats"].values()]
    load = (
        f'timm.create_model("local-dir:{metrics["path"]}", pretrained=True)'
        if metrics["model"]["stock_timm"]
        else f"see {metrics['path']}/README.md"
    )
    found = metrics["confirmation"]
    best = next((one for one in (found or {"candidates": []})["candidates"] if one["trial"] == metrics["trial"]), None)
    lines = [f"exported to {metrics['path']}"]
    if best is not None and best["mean"] is not None:
        error = f" +- {best['standard_error']:.2%}" if best["standard_error"] is not None else ""
        seeds = len(best["accuracies"])
        lines.append(f"  confirmed   {best['mean']:.2%}{error} on validation, {seeds} fresh seed{'s' * (seeds > 1)}")
    return "\n".join(
        [
            *lines,
            f"  accuracy    {result['accuracy']:.2%} on the {result['split']} split, n = {result['n']:,} "
            f"(95 % interval {result['interval'][0]:.2%} to {result['interval'][1]:.2%})",
            f"  parameters  {metrics['model']['num_params']:,}, multiply-adds {metrics['model']['macs']:,}",
            f"  proof       {', '.join(libraries)} agree to {proof['max_logit_difference']:.1e}",
            f"  load it     {load}",
        ]
    )


def final_model(weights: Path, views: Sequence[str]) -> str:
    """What tells one final model from another: the hash of its weights and of the views that it averages."""
    return hashlib.sha256(json.dumps([sha256(weights), *views]).encode()).hexdigest()


def wilson_interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion of n (Wilson, 1927): sensible near 1, where accuracies live."""
    z = 1.96
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _draw(folder: Path, metrics: dict[str, Any]) -> None:
    folder.mkdir()
    result = metrics["evaluation"]
    title = f"{metrics['study']}, trial {metrics['trial']}"
    draw_curves(metrics["histories"], folder / "curves.png", title=title, seen=metrics["sees_validation"])
    names: Sequence[str] = metrics["data"]["class_names"]
    title = f"{result['accuracy']:.2%} of {result['n']:,} {result['split']} pictures"
    draw_confusion(result["confusion"], names, folder / "confusion.png", title=title)


def _write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


def _unchanged(target: Path, identity: str) -> dict[str, Any] | None:
    """The metrics of a whole export of the same thing that is there already."""
    try:
        metrics: dict[str, Any] = json.loads((target / "metrics.json").read_text(encoding="utf-8"))
        check_sums(target)
    except (OSError, ValueError, SearchError):
        return None
    return metrics if metrics.get("identity") == identity else None


def _commit() -> str | None:
    """The commit of this program, where it runs from its repository."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        process = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return process.stdout.strip() or None


def _check_target(target: Path) -> None:
    if target.exists() and not (target / "metrics.json").exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--out {target} exists and is no export; choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {target} cannot be made ({error.strerror}); choose another folder") from error


def _move_into_place(partial: Path, target: Path) -> None:
    """The new folder appears whole; an export that was there before is gone only then."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
