"""What a rung of successive halving says of a training's end, by the schedule: measure it, and print the table.

    python bench/rungs.py measure TASK --out FILE.jsonl --minutes M [--data ZIP] [--kinds KIND ...]
    python bench/rungs.py table FILE.jsonl ... [--kinds KIND ...]

The first goes on where it stopped, with one thread. The second prints the table of one task, from one file or several,
for the configurations that have every training of these kinds.

A line of FILE.jsonl is one training. Its kind and its number of epochs tell what it is for:

    cosine, T epochs      the full training. Its own early epochs are the truncated rungs
    cosine, fewer         a whole short schedule, by a fresh seed
    warm, T epochs        the full schedule again, from the weights of the short one of T/3 epochs
    rest, T - T/3 epochs  the same, so that both together take T epochs
    late, T epochs        flat for two thirds, then a decay
    late, fewer           the decay of a rung, branched from the trunk of the longer one with the same seed: what they
                          have in common is bit for bit alike, so the trunk is paid once

Lines without a kind are cosines (those of programs of before).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # where `trainer` is the package, and not bench/trainer.py
from bench.rungtable import print_table

KINDS = ("cosine", "late", "warm", "rest")
CONFIGS = 40
LOW = {"label_smoothing": 0.0, "weight_decay": 1e-3, "lr": 3e-4, "dropout": 0.0, "width_mult": 0.1}
HIGH = {"label_smoothing": 0.2, "weight_decay": 0.5, "lr": 3e-2, "dropout": 0.5, "width_mult": 0.25}
LOGARITHMIC = ("weight_decay", "lr")
LATE = {"schedule": "milestones", "milestones": (6 / 9, 7 / 9, 8 / 9), "step_gamma": 0.3, "warmup_epochs": 0.5}
"""Flat, then 0.3, 0.09 and 0.027 of the rate, each for a ninth of the epochs."""


@dataclass(frozen=True)
class Task:
    """Pictures, and the part of the recipe that is the same for all configurations."""

    epochs: int
    data: dict[str, Any]
    recipe: dict[str, Any]
    per_class: int | None = None
    """Training pictures of each class taken from an archive, and as many after them to validate on; None: all of
    train/ to train on and all of test/ to validate on."""


SYMMETRIC = {"hflip": 0.5, "crop_padding": 2}
ARCHIVE = {"source": "folder", "image_size": 32, "normalize": "dataset"}
TASKS = {
    "digits500": Task(
        epochs=9,
        data={
            "source": "digits",
            "image_size": 32,
            "val_fraction": 897 / 1397,
            "test_fraction": 400 / 1797,
            "stratified": False,  # exactly 500, 897 and 400 pictures
        },
        recipe={"crop_padding": 2},
    ),
    "cifar1000": Task(epochs=18, data=ARCHIVE, recipe=SYMMETRIC, per_class=100),
    "cub100": Task(epochs=9, data=ARCHIVE, recipe=SYMMETRIC),
}


# ---------------------------------------------------------------- measure
@dataclass(frozen=True)
class Run:
    """One training of a configuration."""

    kind: str
    epochs: int
    seed: int


def plan(epochs: int) -> list[Run]:
    """The trainings of one configuration. A warm start follows the short training that it starts from."""
    shorts = [short for short in (epochs // 3, epochs // 9) if short >= 2]
    return [
        *(Run("cosine", epochs, seed) for seed in (0, 1)),
        *(Run("cosine", short, 2) for short in shorts),
        *(Run("late", length, seed) for seed in (0, 1) for length in (epochs, *shorts)),
        Run("warm", epochs, 3),
        Run("rest", epochs - epochs // 3, 3),
    ]


def configs() -> Iterator[dict[str, float]]:
    """Scrambled Sobol points of the five settings."""
    from scipy.stats import qmc

    for point in qmc.Sobol(len(LOW), scramble=True, rng=11).random(64)[:CONFIGS]:
        values = {}
        for name, share in zip(LOW, point.tolist(), strict=True):
            low, high = LOW[name], HIGH[name]
            log = name in LOGARITHMIC
            value = low * (high / low) ** share if log else low + share * (high - low)
            values[name] = round(value, 8)
        yield values


def unpack(archive: Path, folder: Path, per_class: int | None) -> None:
    """Lay an archive NAME/{train,test}/CLASS/* out as ``folder``/{train,val}/CLASS/*, by name: see Task.per_class."""
    with zipfile.ZipFile(archive) as pictures:
        seen: dict[tuple[str, str], int] = {}
        for name in sorted(name for name in pictures.namelist() if not name.endswith("/")):
            split, label, file = Path(name).parts[-3:]
            if per_class is None:
                target = {"train": "train", "test": "val"}[split]
            else:
                number = seen[split, label] = seen.get((split, label), 0) + 1
                if split != "train" or number > 2 * per_class:
                    continue
                target = "train" if number <= per_class else "val"
            (folder / target / label).mkdir(parents=True, exist_ok=True)
            (folder / target / label / file).write_bytes(pictures.read(name))


def measure(name: str, out: Path, minutes: float, archive: Path | None, kinds: list[str]) -> None:
    """Train what ``out`` lacks, configuration by configuration, until the time is up; append a line for each."""
    import torch

    from trainer.checkpoint import load_checkpoint
    from trainer.config import DataConfig, TrainConfig
    from trainer.data import prepare_data
    from trainer.device import open_device
    from trainer.errors import DivergedError
    from trainer.fit import fit

    task, begun = TASKS[name], time.monotonic()
    lines = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    done = {(line["config"], Run(line["kind"], line["epochs"], line["seed"])) for line in lines}
    torch.set_num_threads(1)
    device = open_device("cpu", 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if archive is not None:
            unpack(archive, folder / "pictures", task.per_class)
        where = {} if archive is None else {"path": str(folder / "pictures")}
        data = prepare_data(DataConfig(**task.data, **where), folder / "cache")
        print({split: len(indices) for split, indices in data.splits.items()}, flush=True)

        def config_of(number: int, params: dict[str, float], run: Run) -> TrainConfig:
            schedule = LATE if run.kind == "late" else {"schedule": "cosine", "warmup_epochs": run.epochs / task.epochs}
            settings = {"model": "resnet10t", "batch_size": 32, "optimizer": "adamw"} | task.recipe | schedule | params
            return TrainConfig(**settings, epochs=run.epochs, seed=1000 * run.seed + number + 1)

        for number, params in enumerate(configs()):
            short = next(run for run in plan(task.epochs) if run.kind == "cosine" and run.epochs < task.epochs)
            short_file = folder / f"short-{number}"
            for run in plan(task.epochs):
                if (number, run) in done or run.kind not in kinds:
                    continue
                if time.monotonic() - begun > 60 * minutes:
                    return
                start, values, diverged = None, [], None
                keep = short_file if run == short else None
                cpu = time.process_time()
                try:
                    if run.kind in ("warm", "rest"):
                        list(fit(config_of(number, params, short), data, device, checkpoint=short_file))
                        state = load_checkpoint(short_file)
                        assert state is not None
                        start, cpu = state.model, time.process_time()
                    for result in fit(config_of(number, params, run), data, device, checkpoint=keep, start=start):
                        values.append(round(result.val_accuracy, 5))
                except DivergedError as error:
                    diverged = str(error)
                line = {"config": number, "seed": run.seed, "kind": run.kind, "epochs": run.epochs, "params": params}
                line |= {"val_accuracy": values, "cpu_seconds": round(time.process_time() - cpu, 2)}
                line |= {} if diverged is None else {"diverged": diverged}
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("task", choices=TASKS)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--minutes", type=float, required=True)
    one.add_argument("--data", type=Path, help="archive NAME/{train,test}/CLASS/*; none for the digits")
    two = commands.add_parser("table")
    two.add_argument("files", type=Path, nargs="+")
    for command in (one, two):
        command.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="these alone; default: all")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments.task, arguments.out, arguments.minutes, arguments.data, arguments.kinds)
    else:
        print_table(arguments.files, arguments.kinds)


if __name__ == "__main__":
    main()
