"""What keeping the dashboard's study page up to date costs a search: ``python -P bench/page.py [--trials 100 1000]``.

Fills a study with trials of 10 epochs, then lets the page follow it as `search launch` does, while trials go on:

    watch    what the page takes between two answers to workers: nothing is due, or attributes are written
    report   of an epoch to the storage, with and without a page that is drawn again without a pause
    update   from its order until its last attribute is written; the process that draws has its niceness of 10
    CPU      of that process: its start with the first drawing, and each further one
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import optuna
import psutil
from dashboard import EPOCHS, SPACE, fill

from search.paths import Runs
from search.study.owned import OwnedStudy
from search.study.storage import open_storage, parse_url
from search.study.study import open_study
from search.watch import page as module
from search.watch.page import StudyPage
from search.watch.status import snapshot_of
from studies import StudySpec

SPEC = {
    "name": "bench",
    "train": {"epochs": EPOCHS},
    "space": {name: {"low": axis.low, "high": axis.high, "log": axis.log} for name, axis in SPACE.items()},
    "search": {"trials": 5000},
}


def measure(trials: int, updates: int) -> dict[str, list[float]]:
    """Times in seconds, by what they are of."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        url = parse_url(f"sqlite:///{runs.database}")
        spec = StudySpec.model_validate(SPEC)
        storage = open_storage(url, create=True)
        study = open_study(spec, storage, "0" * 64)
        fill(study, trials)
        study.sampler = optuna.samplers.RandomSampler(seed=0)
        for name in ("report without a page", "report while it is drawn"):
            page = StudyPage(OwnedStudy(study, spec, lambda: None), [], url, runs)
            done, ordered = 0, 0.0
            while done < updates:
                trial = study.ask(SPACE)
                for epoch in range(1, EPOCHS + 1):
                    time.sleep(0.02)
                    began = time.perf_counter()
                    trial.report(epoch / 20, step=epoch)
                    times[name].append(time.perf_counter() - began)
                    if "without" in name:
                        continue
                    if not page._drawing and not page._waiting:
                        snapshot = snapshot_of(spec, study.get_trials(deepcopy=False))
                        if page._process is not None:
                            cpu = sum(psutil.Process(page._process.pid).cpu_times()[:2])
                            times["update"].append(time.perf_counter() - ordered)
                            times["CPU"].append(cpu - sum(times["CPU"]))
                            done += 1
                        ordered = time.perf_counter()
                    began = time.perf_counter()
                    page.watch(snapshot)
                    times["watch"].append(time.perf_counter() - began)
                study.tell(trial, 0.5)
                done += "without" in name
            page.end(snapshot_of(spec, study.get_trials(deepcopy=False)), "", 20)
        storage.engine.dispose()
    return times


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--updates", type=int, default=8)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    module.FIRST_SECONDS = module.UPDATE_SECONDS = module.NEW_BEST_SECONDS = 0
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| trials | | median ms | 95% ms | maximum ms | n |\n| --- | --- | --- | --- | --- | --- |")
    for trials in options.trials:
        times = measure(trials, options.updates)
        times = dict(times) | {"CPU, with its start": times["CPU"][:1], "CPU": times["CPU"][1:]}
        times |= {"update, the first": times["update"][:1], "update": times["update"][1:]}
        for name, seconds in times.items():
            high = sorted(seconds)[int(0.95 * (len(seconds) - 1))]
            row = f"{1000 * statistics.median(seconds):.1f} | {1000 * high:.1f} | {1000 * max(seconds):.1f}"
            print(f"| {trials:,} | {name} | {row} | {len(seconds)} |")


if __name__ == "__main__":
    main()
