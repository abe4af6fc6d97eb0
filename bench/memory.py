"""What a trial costs the coordinator, by the trials there are: ``python -P bench/memory.py [--n 7] [--storage URL]``.

CPU of this process for one trial as `search launch` takes its steps: asked for, 20 epochs reported to successive
halving, told. Two studies with the same trials take turns: one kept in memory, one read from the database at each look.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import Trial, TrialState
from sqlalchemy import insert, select

from search.paths import Runs
from search.running.records import Ending, Progress
from search.running.trials import Trials
from search.study.marks import ENDED, MARK, Marks, with_marks
from search.study.owned import OwnedStudy
from search.study.storage import backend_of, open_storage, parse_url
from search.study.study import UUID, open_study
from studies import StudySpec
from trainer.config import EpochResult

EPOCHS = 20
SPACE = {"lr": FloatDistribution(1e-4, 1e-1, log=True), "dropout": FloatDistribution(0.0, 0.5)}
CASES = [(8, 0), (300, 0), (8, 5000), (300, 5000)]


def fill(study: optuna.Study, running: int, finished: int, marks: Marks) -> None:
    """Trials as a search leaves them; through Optuna, one by one, it would take longer than all the rest."""
    axes = {name: distribution_to_json(axis) for name, axis in SPACE.items()}
    trial, rows = models.TrialModel, defaultdict(list)
    states = [TrialState.COMPLETE] * finished + [TrialState.RUNNING] * running
    with backend_of(study).engine.begin() as connection:
        named = [{"study_id": study._study_id, "number": number, "state": state} for number, state in enumerate(states)]
        connection.execute(insert(trial), named)
        ids = connection.execute(select(trial.trial_id).where(trial.study_id == study._study_id).order_by(trial.number))
        for number, of in enumerate({"trial_id": trial_id} for trial_id in ids.scalars().all()):
            ends = number < finished
            for name, axis in axes.items():
                row = of | {"param_name": name, "param_value": 0.01, "distribution_json": axis}
                rows[models.TrialParamModel].append(row)
            for step in range(1, EPOCHS + 1 if ends else EPOCHS):
                row = of | {"step": step, "intermediate_value": step / 40, "intermediate_value_type": "FINITE"}
                rows[models.TrialIntermediateValueModel].append(row)
            for key, value in {MARK: marks.mark_of(number) + (ENDED if ends else ""), "num_params": 900}.items():
                rows[models.TrialUserAttributeModel].append(of | {"key": key, "value_json": json.dumps(value)})
            if ends:
                rows[models.TrialValueModel].append(of | {"objective": 0, "value": 0.5, "value_type": "FINITE"})
        for table, values in rows.items():
            connection.execute(insert(table), values)


def begin(name: str, url: str, folder: Path, running: int, finished: int, *, in_memory: bool) -> Trials:
    """A search in progress."""
    spec = StudySpec.model_validate(
        {
            "name": name,
            "train": {"epochs": EPOCHS},
            "space": {axis: {"low": one.low, "high": one.high, "log": one.log} for axis, one in SPACE.items()},
            "search": {"trials": 99_999, "sampler": "random", "min_epochs": 1},
        }
    )
    study = open_study(spec, open_storage(parse_url(url), create=True), "0" * 64)
    uuid = study.user_attrs[UUID]
    fill(study, running, finished, Marks(uuid, None))
    if not in_memory:
        study = with_marks(study, uuid)
    trials = Trials(OwnedStudy(study, spec, lambda: None), dict(SPACE), Runs(folder))
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trials.progress[frozen.number] = Progress(Trial(study, frozen._trial_id), reported={})
    return trials


def one_trial(trials: Trials) -> float:
    """CPU seconds from asking to telling."""
    began = time.process_time()
    number = trials.next()
    assert number is not None
    for epoch in range(1, EPOCHS + 1):
        value = 0.5 + epoch / 100
        result = EpochResult(
            epoch=epoch,
            train_loss=1.0,
            val_loss=1.0,
            val_accuracy=value,
            seconds=30.0,
            images_per_second=100.0,
            final=epoch == EPOCHS,
        )
        trials.results.report(number, result)
    trials.finish(number, "cpu", Ending(state=TrialState.COMPLETE, value=value))
    return time.process_time() - began


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=7)
    parser.add_argument("--storage", help="an empty database; else a SQLite file")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; CPU ms a trial of {EPOCHS} epochs, medians, n = {options.n}\n"
    )
    print("| running | finished | read at each look | in memory |\n| --- | --- | --- | --- |", flush=True)
    for case, (running, finished) in enumerate(CASES):
        with tempfile.TemporaryDirectory() as folder:
            url = options.storage or f"sqlite:///{folder}/search.db"
            both = {
                name: begin(f"{name}{case}", url, Path(folder), running, finished, in_memory=name == "memory")
                for name in ("database", "memory")
            }
            taken = [[one_trial(trials) for trials in both.values()] for _ in range(options.n)]
            before, after = (1000 * statistics.median(times) for times in zip(*taken, strict=True))
            print(f"| {running} | {finished:,} | {before:,.0f} | {after:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
