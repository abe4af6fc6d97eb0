"""The tasks of a folder of tables.

Three kinds of files are known:

- ``*.onnx`` with ``lcbench_encoding.json``: YAHPO Gym's surrogate of LCBench, a task for each code; beside it, where
  they are known, ``best_TASK.json`` (first number: mean accuracy of the best settings at the end) and
  ``medians.json`` (task -> that of median settings);
- ``NAME_tuning.jsonl``: random searches of OPDA (Lourie et al. 2024), a line for each training;
- ``NAME.jsonl``: trainings of our own trainer, a line each with ``config, seed, params, val_accuracy`` and usually
  ``epochs``. The longest are full trainings, the others short ones. ``NAMEe3.jsonl`` has further short trainings.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import kstest

from quality.curves import Floats, Recorded, Space, SurrogateTask, TableTask, Task

DEV = ("189908", "167168", "168910", "189906", "146212", "7593")
"""Tasks of LCBench for tuning a policy."""
HELD = ("168331", "189905", "167161", "34539", "189862", "168330", "167201", "126029")
"""Tasks of LCBench for judging a policy, held out from tuning."""

NO_TASK = {"#na#", "167083"}
"""Codes of the encoding that are no task: a placeholder, and one that YAHPO Gym leaves out."""

OPDA_SPACE: Space = {
    "epochs": FloatDistribution(20, 100),
    "batch_size": FloatDistribution(128, 1024, log=True),
    "lr": FloatDistribution(5e-3, 50, log=True),
    "peak": FloatDistribution(0, 0.8),
    "momentum": FloatDistribution(0.7, 1.0),
    "weight_decay": FloatDistribution(1e-6, 1e-3, log=True),
    "label_smoothing": FloatDistribution(0, 0.5),
}
"""Search space of OPDA. ``peak`` is the share of the training after which the learning rate is highest."""

OPDA_POINTS = 27
"""Number of points on an OPDA curve, at equal shares of its epochs, because the number of epochs is a setting."""

OPDA_DIVERGED = 0.1
"""Accuracy of a diverged training, in points: that of a guess among 1,000 classes."""

JUDGES_RUNGS = "sampler, truncated rungs"
JUDGES_SHORT = "sampler, truncated rungs, whole short trainings"
"""The parts of a policy that a task can judge."""


def tasks_of(folder: Path, which: str) -> dict[str, Task]:
    """The tasks of a folder by their names.

    Args:
        folder: the tables.
        which: ``dev``, ``held``, ``all``, or names separated by commas.

    Raises:
        ValueError: a named task is not there, or the folder has none.
    """
    wanted = {"dev": DEV, "held": HELD, "all": None}.get(which, tuple(which.split(",")))
    found: dict[str, Task] = {}
    for model in sorted(folder.glob("*.onnx")):
        found |= _surrogate(folder, model, wanted)
    files = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    for name, file in files.items():
        task = name.removesuffix("_tuning")
        base = re.sub(r"e\d+$", "", name)
        if (base != name and base in files) or (wanted is not None and task not in wanted):
            continue
        shorter = [other for stem, other in files.items() if re.fullmatch(re.escape(name) + r"e\d+", stem)]
        found[task] = _opda(task, file) if task != name else _trainings(task, [file, *shorter])
    if missing := set(wanted or ()) - set(found):
        raise ValueError(f"{folder} has no {', '.join(sorted(missing))}")
    if not found:
        raise ValueError(f"{folder} has no tables")
    return found


def judges(task: Task) -> str:
    """The parts of a policy that a task can judge, in words."""
    return JUDGES_SHORT if task.short else JUDGES_RUNGS


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]


def _surrogate(folder: Path, model: Path, wanted: tuple[str, ...] | None) -> dict[str, Task]:
    (codes,) = json.loads((folder / "lcbench_encoding.json").read_text()).values()
    names = [name for name in codes if name not in NO_TASK and (wanted is None or name in wanted)]
    if not names:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kept = folder / "medians.json"
    medians = json.loads(kept.read_text()) if kept.exists() else {}
    found: dict[str, Task] = {}
    for name in names:
        best = folder / f"best_{name}.json"
        known = float(json.loads(best.read_text())[0]) if best.exists() else None
        found[name] = SurrogateTask(name, codes[name], session, known, medians.get(name))
    return found


def _opda(name: str, file: Path) -> Task:
    rows = []
    for line in _lines(file):
        accuracies = [100 * point["top_1"] for point in line["learning_curve"]]
        if line["nan_train_loss"]:
            accuracies = accuracies[:-1]
        ends = [math.ceil((look + 1) / OPDA_POINTS * line["epochs"]) for look in range(OPDA_POINTS)]
        curve = np.array([accuracies[end - 1] if end <= len(accuracies) else OPDA_DIVERGED for end in ends])
        params = {setting: line[setting] for setting in OPDA_SPACE if setting != "peak"}
        params["peak"] = line["lr_peak_epoch"] / line["epochs"]
        rows.append(Recorded(params, curve, {}))
    return TableTask(name, "opda", OPDA_SPACE, rows)


def _trainings(name: str, files: list[Path]) -> Task:
    """Trainings of our own trainer.

    Settings of which a training diverged have accuracy 0. Settings without a training of each length are left out. If
    some settings have several full trainings, settings with only one are left out.
    """
    curves: dict[str, dict[int, list[Floats]]] = defaultdict(lambda: defaultdict(list))
    params: dict[str, dict[str, Any]] = {}
    diverged = set()
    for line in (line for file in files for line in _lines(file)):
        config = str(line["config"])
        params[config] = line["params"]
        if "val_accuracy" in line:
            curve = 100 * np.array(line["val_accuracy"], float)
            curves[config][line.get("epochs", len(curve))].append(curve[: line.get("epochs", len(curve))])
        else:
            diverged.add(config)
    lengths = sorted({length for known in curves.values() for length in known})
    epochs, shorter = lengths[-1], lengths[:-1]
    seeds = min(2, max(len(known[epochs]) for known in curves.values()))
    rows = []
    for config, known in curves.items():
        if config in diverged:
            zeros = {length: np.zeros(length) for length in lengths}
            rows.append(Recorded(params[config], zeros.pop(epochs), zeros))
        elif len(known[epochs]) >= seeds and all(known[length] for length in shorter):
            full = np.array(known[epochs])
            single = (full[0] - full.mean(0)) * math.sqrt(len(full) / (len(full) - 1)) if len(full) > 1 else None
            rows.append(Recorded(params[config], full.mean(0), {n: np.mean(known[n], 0) for n in shorter}, single))
    return TableTask(name, "trainings", _space([row.params for row in rows]), rows)


def _space(points: list[Any]) -> Space:
    axes = {name: _axis([point[name] for point in points]) for name in points[0]}
    return {name: axis for name, axis in axes.items() if axis is not None}


def _axis(values: list[Any]) -> BaseDistribution | None:
    """The axis that values were drawn from, logarithmic if they are more even on it; None if all are equal."""
    if len(set(values)) == 1:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return CategoricalDistribution(sorted(set(values), key=repr))
    low, high = min(values), max(values)
    log = low > 0 and _unevenness(np.log(values)) < _unevenness(np.array(values, float))
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _unevenness(values: Floats) -> float:
    return float(kstest((values - values.min()) / np.ptp(values), "uniform").statistic)
