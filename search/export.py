"""Retrain the best trial, write the export folder, prove it in a clean process, and only then move it into place."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy import URL

from search.budget import check_fits
from search.card import write_card
from search.devices import WorkerDevice
from search.errors import NothingToExport, ProofFailed, UsageError
from search.findings import ranked
from search.launch import prepare, show_progress, use_gpu
from search.page import show_export
from search.paths import Runs
from search.pools.local import without_secrets
from search.storage import open_storage, storage_errors
from search.study import find_study, own_study, seed_of
from studies import StudySpec
from trainer.config import ModelSize, TrainConfig
from trainer.data import Dataset

METRICS_VERSION = 1
"""Version of the shape of metrics.json."""

REFERENCE_LOGITS = "reference-logits.npy"
"""What the exporting process computed, for the proof to compare with; not part of an export."""

TEST_OPENINGS = "featherweight:test_openings"
"""Study attribute: which final models have seen the test split."""


def export_best(
    study_name: str,
    url: URL,
    runs: Runs,
    device: WorkerDevice,
    *,
    out: Path | None = None,
    number: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Hand over the best model of a study.

    Args:
        study_name: the study.
        url: the storage.
        runs: the runs folder.
        device: where to retrain.
        out: folder of the export; by default under the runs folder.
        number: the trial to export instead of the best.
        quiet: show no progress.

    Returns:
        What metrics.json holds, and "path".

    Raises:
        NothingToExport: no trial is COMPLETE and feasible.
        HeldError: the study is being searched.
        ProofFailed: the export differs from its card; it is kept aside for a look.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(quiet=quiet, highlight=False)
    with storage_errors(url):
        study, spec = find_study(open_storage(url), study_name)  # before own_study: until it is found it may be a path
    with own_study(study_name, url, runs), storage_errors(url):
        trial = choose_trial(study, number)
        target = (out or runs.export(study_name, trial.number)).resolve()
        _check_target(target)
        console.print(
            f"{study_name}: exporting trial {trial.number}, {trial.values[0]:.2%} on validation in the search"
        )
        data = prepare(spec, runs, console).data
        sampled = trial.params | trial.user_attrs.get("sizes", {})  # a width_share stands for a width
        config = spec.config_for(sampled, seed_of(spec.seed, trial.number, purpose=2))
        # The limit first: a study file may have changed since the trial was trained.
        size = check_fits(config, len(data.class_names), spec.data.image_size, spec.limit, spec.data.channels)
        checkpoint = _final_checkpoint(runs, spec, trial, config, data)
        _retrain(config, data, device, checkpoint, console)

        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        metrics = _write(partial, study, spec, trial, config, size, data, checkpoint, console)
        metrics["proof"] = prove(partial, spec, data, console)
        (partial / REFERENCE_LOGITS).unlink()
        metrics["files"] = {
            name: _sha256(partial / name) for name in ("config.json", "model.safetensors", "model.onnx")
        }
        write_card(partial / "README.md", metrics)
        (partial / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        _move_into_place(partial, target)
        metrics |= {"path": str(target)}
        show_export(study, runs.artifacts, render(metrics), (target / "plots").glob("*.png"))
    return metrics


def choose_trial(study: optuna.Study, number: int | None) -> FrozenTrial:
    """The trial to export.

    Raises:
        NothingToExport: none is COMPLETE and feasible, or not the one asked for.
    """
    trials = study.get_trials(deepcopy=False)
    if number is not None:
        found = next((trial for trial in ranked(trials) if trial.number == number), None)
        if found is None:
            states = {trial.number: trial.state.name.lower() for trial in trials}
            raise NothingToExport(
                f"trial {number} of {study.study_name!r} is {states.get(number, 'not there')}, not complete"
            )
        return found
    best = next(iter(ranked(trials)), None)
    if best is None:
        raise NothingToExport(
            f"study {study.study_name!r} has no completed trial yet ({len(trials)} begun); go on with: "
            f"search launch {study.study_name}"
        )
    return best


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
    with console.status("proving the export in a clean process"):
        process = subprocess.run(
            command, capture_output=True, text=True, env=without_secrets() | {"CUDA_VISIBLE_DEVICES": ""}
        )
    if process.returncode != 0:
        reason = (process.stderr.strip() or f"it ended with code {process.returncode}").splitlines()[-1]
        raise ProofFailed(f"the export failed its proof: {reason}; it was not put in place, look at it in {folder}")
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def render(metrics: dict[str, Any]) -> str:
    """What ``search export-best`` prints at its end."""
    result = metrics["evaluation"]
    return (
        f"exported to {metrics['path']}\n"
        f"  accuracy    {result['accuracy']:.2%} on the {result['split']} split, n = {result['n']:,} "
        f"(95 % interval {result['interval'][0]:.2%} to {result['interval'][1]:.2%})\n"
        f"  parameters  {metrics['model']['num_params']:,}, multiply-adds {metrics['model']['macs']:,}\n"
        f"  proof       timm and ONNX Runtime agree to {metrics['proof']['max_logit_difference']:.1e}\n"
        f'  load it     timm.create_model("local-dir:{metrics["path"]}", pretrained=True)'
    )


def _final_checkpoint(runs: Runs, spec: StudySpec, trial: FrozenTrial, config: TrainConfig, data: Dataset) -> Path:
    """One per final recipe, so that a changed one starts anew and the same one is never trained twice."""
    identity = hashlib.sha256(f"{config.model_dump_json()}{data.fingerprint}".encode()).hexdigest()[:8]
    return runs.final_checkpoint(spec.name, f"{trial.number}-{identity}")


def _retrain(config: TrainConfig, data: Dataset, worker: WorkerDevice, checkpoint: Path, console: Console) -> None:
    """Train from scratch at full length, or go on where an interrupted export stopped."""
    use_gpu(worker)
    from trainer.device import open_device
    from trainer.fit import fit

    device = open_device(worker.kind, worker.num_threads)
    with show_progress(console) as progress:
        for result in fit(config, data, device, checkpoint=checkpoint):
            progress(f"retraining on {device.name}", result.epoch, config.epochs)


def _write(
    folder: Path,
    study: optuna.Study,
    spec: StudySpec,
    trial: FrozenTrial,
    config: TrainConfig,
    size: ModelSize,
    data: Dataset,
    checkpoint: Path,
    console: Console,
) -> dict[str, Any]:
    """Write weights, config.json and ONNX; evaluate once; return the metrics so far."""
    import numpy as np
    import safetensors.torch
    import timm
    import torch

    from trainer.checkpoint import load_checkpoint
    from trainer.device import Device
    from trainer.evaluate import Metrics, measure, predict_logits
    from trainer.models import build_model, is_stock, model_args

    trained = load_checkpoint(checkpoint)
    assert trained is not None
    model = build_model(config, len(data.class_names), spec.data.image_size, spec.data.channels).eval()
    model.load_state_dict(trained.weights)
    preprocessing = {
        "input_size": (spec.data.channels, spec.data.image_size, spec.data.image_size),
        "interpolation": spec.data.interpolation,
        "mean": data.mean,
        "std": data.std,
        "crop_pct": spec.data.crop_pct,
        "crop_mode": "center" if spec.data.resize == "crop" else "squash",
    }
    args = model_args(config, spec.data.image_size)
    if is_stock(config):
        timm.models.save_for_hf(
            model,
            str(folder),
            model_config={"label_names": list(data.class_names)},
            model_args=args,
            safe_serialization=True,
            data_config=preprocessing,
        )
    else:
        safetensors.torch.save_model(model, str(folder / "model.safetensors"))
        described = {"architecture": config.model, "num_classes": len(data.class_names), "model_args": args}
        described |= {"label_names": list(data.class_names), "pretrained_cfg": preprocessing}
        (folder / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    with console.status("writing model.onnx"):
        _write_onnx(model, preprocessing["input_size"], folder / "model.onnx")

    # fp32 on the CPU: what whoever gets the export can repeat to the last picture.
    cpu = Device(torch.device("cpu"), torch.get_num_threads())

    def evaluate(split: str) -> tuple[Metrics, torch.Tensor]:
        logits = predict_logits(model, data, split, cpu)
        return measure(logits, data.labels[data.splits[split]]), logits

    split = "test" if len(data.splits["test"]) else "val"
    weights = _sha256(folder / "model.safetensors")
    openings = _record_opening(study, trial, weights) if split == "test" else 0
    with console.status(f"evaluating on the {split} split"):
        result, logits = evaluate(split)
        validation, _ = evaluate("val")
    np.save(folder / REFERENCE_LOGITS, logits.numpy())

    n = len(data.splits[split])
    trials = study.get_trials(deepcopy=False)
    metrics = {
        "version": METRICS_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": spec.name,
        "trial": trial.number,
        "model": {
            "architecture": config.model,
            "model_args": args,
            "stock_timm": is_stock(config),
            "num_params": size.params,
            "macs": size.macs,
        },
        "limit": spec.limit.model_dump(),
        "evaluation": {
            "split": split,
            "n": n,
            "accuracy": result.accuracy,
            "interval": wilson_interval(result.accuracy, n),
            "loss": result.loss,
            "confusion": result.confusion.tolist(),
            "test_openings": openings,
        },
        "validation": {
            "n": len(data.splits["val"]),
            "accuracy": validation.accuracy,
            "loss": validation.loss,
        },
        "search": {
            "val_accuracy": trial.values[0],
            "trials": len(trials),
            "states": {state.name: sum(other.state == state for other in trials) for state in TrialState},
            "seconds": sum(other.user_attrs.get("seconds", 0.0) for other in trials),
        },
        "config": config.model_dump(mode="json"),
        "sampled": trial.params,
        "history": [asdict(epoch) for epoch in trained.history],
        "data": {
            "source": spec.data.source,
            "content_hash": data.content_hash,
            "image_size": spec.data.image_size,
            "resize": spec.data.resize,
            "channels": spec.data.channels,
            "class_names": list(data.class_names),
            "pictures": {name: len(indices) for name, indices in data.splits.items()},
        },
        "versions": {
            name: version(name) for name in ("featherweight", "torch", "timm", "optuna", "onnx", "onnxruntime")
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")  # the proof compares with it
    return metrics


def _write_onnx(model: Any, shape: Any, path: Path) -> None:
    import logging

    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    pictures = torch.zeros(2, *shape)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of the exporter about its own internals
        torch.onnx.export(
            model,
            (pictures,),
            path,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["pictures"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )


def wilson_interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion of n (Wilson, 1927): sensible near 1, where accuracies live."""
    z = 1.96
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _record_opening(study: optuna.Study, trial: FrozenTrial, weights: str) -> int:
    """Note, before it is read, that a final model sees the test split; returns how many have by now."""
    openings = study.user_attrs.get(TEST_OPENINGS, [])
    if weights not in [opening["weights"] for opening in openings]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        openings = [*openings, {"trial": trial.number, "weights": weights, "at": now}]
        study.set_user_attr(TEST_OPENINGS, openings)
    return len(openings)


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
