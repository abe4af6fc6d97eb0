"""Whole exports, made in this process: their trainings are done here, so no worker and no second process is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import optuna
import pytest
from marked import add_own
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from rich.console import Console

import search.export.export
from search.console import Terminal
from search.export import proof
from search.export.metrics import Export
from search.export.record import ProofAnswer
from search.export.retrain import Retraining
from search.export.trainings import Training
from search.paths import Runs
from search.plan.prepare import prepare
from search.study.confirmation import begin, missing, record
from search.study.owned import OwnedStudy
from search.study.storage import open_storage, parse_url
from search.study.study import open_study
from search.workers import worker
from search.workers.messages import Answer, Assign
from studies import Limit, StudySpec
from trainer.checkpoint import load_checkpoint
from trainer.config import DataConfig
from trainer.device import open_device
from trainer.fit import fit, fit_folds

NAMES = ("까치", "checks, of 'two'", "plain")
"""Classes of the pictures: a name of another script, one with what JSON and YAML have to escape."""

RECIPE = {"model": "resnet10t", "width_mult": 0.06, "epochs": 8, "batch_size": 8, "optimizer": "sgd", "hflip": 0.5}


def pictures(folder: Path) -> Path:
    """Three kinds of shapes in many sizes; of the 24 test pictures one is upright only by EXIF, one of 16 bits."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for split, number in (("train", 12), ("test", 8)):
        for kind, name in enumerate(NAMES):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                width, height = (int(side) for side in rng.integers(17, 60, 2))
                x, y = np.meshgrid(np.arange(width), np.arange(height))
                on = (x // 4 % 2, (x // 4 + y // 4) % 2, x * 0)[kind]
                pixels = np.where(on[..., None], rng.integers(160, 255, 3), rng.integers(0, 90, 3))
                image = Image.fromarray((pixels + rng.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8))
                turned = {"exif": exif} if (split, index, kind) == ("test", 0, 0) else {}
                if (split, index, kind) == ("test", 1, 0):
                    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
                image.save(folder / split / name / f"{index}.{'jpg' if turned else 'png'}", **turned)
    return folder


def hand_over(
    folder: Path, *, lr: float = 0.1, train: dict[str, Any] | None = None, models: Sequence[str] = (), **tables: Any
) -> Export:
    """Export the only trial of a study of these pictures; ``train`` and ``tables`` change its study file.

    With ``models`` there is a trial of each, and all of them are exported together.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    values: dict[str, Any] = {"name": "shapes", "limit": {"params": 30_000_000}, "confirm": {"top": 1, "seeds": 2}}
    space: dict[str, Any] = {"lr": {"low": 0.001, "high": 0.2, "log": True}} | ({"model": models} if models else {})
    values |= {"train": RECIPE | (train or {}), "space": space} | tables
    values["data"] = {"path": str(pictures(folder / "pictures")), "image_size": 24} | tables.get("data", {})
    spec, runs = StudySpec.model_validate(values), Runs(folder / "runs")
    runs.root.mkdir()
    data = prepare(spec, runs, Console(quiet=True)).data
    url = parse_url(f"sqlite:///{folder}/search.db")
    study = open_study(spec, open_storage(url, create=True), data.content_hash)
    axes: dict[str, Any] = {"lr": FloatDistribution(0.001, 0.2, log=True)}
    axes |= {"model": CategoricalDistribution(models)} if models else {}
    for number, named in enumerate([{"model": name} for name in models] or [{}]):
        attributes = {"num_params": 1, "seconds": 1.0}
        made: dict[str, Any] = {"params": {"lr": lr, **named}, "distributions": axes, "user_attrs": attributes}
        add_own(study, [create_trial(state=TrialState.COMPLETE, value=0.9 - number / 100, **made)])
    _train(study, spec, runs, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.export.export, "prove", _prove)
        patch.setattr(proof, "LATENCY_SECONDS", 0.0)
        return search.export.export.export_best(
            "shapes", url, runs, "cpu", asked=spec, numbers=range(len(models)), to_stderr=True
        )


def _prove(folder: Path, spec: StudySpec, data: Any, *_: object) -> ProofAnswer:
    return ProofAnswer.model_validate(proof.prove(folder, spec.data, data))


def _train(study: optuna.Study, spec: StudySpec, runs: Runs, data: Any) -> None:
    """All trainings of the export; those of a confirmation with folds are invented."""
    device = open_device("cpu", 1)
    retraining = Retraining(OwnedStudy(study, spec, lambda: None), runs, data, [], Terminal(quiet=True))
    if not spec.confirm.is_off:
        begin(study, spec)
        while todo := missing(study, spec):
            for trial, number in todo:
                record(study, trial.number, number, 0.8 + number / 100, 1.0)
    for stage in retraining.plan(study.get_trials()):
        for training in stage:
            before = load_checkpoint(training.start.checkpoint) if training.start else None
            training.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            start = before.weights if before else None
            if training.folds:
                options = {"folds": training.folds, "seed": spec.data.split_seed, "checkpoint": training.checkpoint}
                list(fit_folds(training.config, data, device, **options))
                continue
            if training.rerank is not None:
                train_in_a_worker(training, spec.data, data.cache_path)
                continue
            chosen = data.trained_on(training.fit_on)
            list(fit(training.config, chosen, device, checkpoint=training.checkpoint, start=start))


def train_in_a_worker(training: Training, data_config: DataConfig, cache: Path, *, epochs: int | None = None) -> None:
    """Train by the code of a worker, in this process; with ``epochs``, only as far as that."""
    most = training.config.epochs if epochs is None else epochs
    inbox: SimpleQueue[Any] = SimpleQueue()
    for epoch in range(1, training.config.epochs + 1):
        inbox.put(Answer(go_on=epoch < most))
    assignment = Assign(
        trial=0,
        config=training.config.model_dump(mode="json"),
        data=data_config,
        cache=str(cache),
        checkpoint=str(training.checkpoint),
        limit=Limit(),
        fit_on=training.fit_on,
        start=str(training.start.checkpoint) if training.start else None,
        rerank=training.rerank,
    )
    worker._train(assignment, open_device("cpu", 1), {}, inbox, lambda _: None, worker.Preemption())
