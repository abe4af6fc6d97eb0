"""What a dashboard costs a search: ``python -P bench/dashboard.py [--trials 2000] [--rounds 5]``.

Fills a study with trials of 10 epochs, then measures, with `search launch --dashboard`'s own process and its niceness:

    first page   a browser's first requests, one after the other: page, script, list of studies; the server is new
    detail       what the page of the study is drawn from: once by a server that knows no trial, then again, then only
                 what is new, as an open page asks every ten seconds
    report, tell of the search that goes on in the same study: with no dashboard, with an open page, and with two
                 clients that ask for everything without a pause (nobody does; it shows that nothing locks)

The three conditions take turns in each round, so that a busy machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import statistics
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from search.paths import Runs
from search.study.storage import open_storage, parse_url
from search.watch.dashboard import dashboard_beside

EPOCHS = 10
SPACE = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "label_smoothing": FloatDistribution(0.0, 0.2),
    "dropout": FloatDistribution(0.0, 0.5),
    "width_mult": FloatDistribution(0.8, 1.12),
}
PAUSE_SECONDS = 0.02  # between two reports; a search has far longer ones
PAGE_SECONDS = 10  # how often an open page asks


def fill(study: optuna.Study, trials: int) -> None:
    """Finished trials as a search leaves them."""
    rng = np.random.default_rng(0)
    for number in range(trials):
        values = np.sort(rng.uniform(0.1, 0.9, EPOCHS))
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=float(values[-1]),
                params={name: float(rng.uniform(axis.low, axis.high)) for name, axis in SPACE.items()},
                distributions=dict(SPACE),
                intermediate_values={epoch + 1: float(value) for epoch, value in enumerate(values)},
                user_attrs={"num_params": 4_967_719 + number, "macs": 400_000_000, "device": "cuda:0"},
            )
        )


def fetch(address: str) -> tuple[float, bytes]:
    """Seconds and body of one request."""
    began = time.perf_counter()
    with urllib.request.urlopen(address, timeout=120) as answer:
        body = answer.read()
    return time.perf_counter() - began, body


@contextlib.contextmanager
def polled(address: str, path: str, clients: int, pause_seconds: float) -> Iterator[None]:
    """Clients that ask again and again while the block runs."""
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            fetch(address + path)
            stop.wait(pause_seconds)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


def search(study: optuna.Study, trials: int) -> Iterator[tuple[str, float]]:
    """Trials as the coordinator runs them; gives what was done and its seconds."""
    for _ in range(trials):
        trial = study.ask(SPACE)
        for epoch in range(1, EPOCHS + 1):
            time.sleep(PAUSE_SECONDS)
            began = time.perf_counter()
            trial.report(epoch / 20, step=epoch)
            yield "report", time.perf_counter() - began
        began = time.perf_counter()
        study.tell(trial, 0.5)
        yield "tell", time.perf_counter() - began


def main() -> None:
    """Measure and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    waits: defaultdict[str, list[float]] = defaultdict(list)
    costs: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        url = f"sqlite:///{runs.database}"
        storage = open_storage(parse_url(url), create=True)
        sampler = optuna.samplers.RandomSampler(seed=0)
        study = optuna.create_study(storage=storage, study_name="bench", direction="maximize", sampler=sampler)
        fill(study, options.trials)
        for _ in range(options.rounds):
            for what, seconds in search(study, trials=6):
                costs["no dashboard", what].append(seconds)
            with dashboard_beside(url, runs) as address:
                fetch(f"{address}api/meta")  # answers once it has started
                began = time.perf_counter()
                _, page = fetch(address)
                for script in re.findall(rb'src="/(static/[^"]+)"', page):
                    fetch(address + script.decode())
                fetch(f"{address}api/studies")
                waits["first page"].append(time.perf_counter() - began)
                seconds, body = fetch(f"{address}api/studies/1")
                waits["detail, first time"].append(seconds)
                waits["detail, again"].append(fetch(f"{address}api/studies/1")[0])
                new = f"api/studies/1?after={options.trials}"
                waits["detail, what is new"].append(fetch(address + new)[0])
                with polled(address, new, clients=1, pause_seconds=PAGE_SECONDS):
                    for what, seconds in search(study, trials=6):
                        costs["an open page", what].append(seconds)
                with polled(address, "api/studies/1", clients=2, pause_seconds=0):
                    for what, seconds in search(study, trials=6):
                        costs["two clients without a pause", what].append(seconds)
        storage.engine.dispose()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"
    print(f"\n{machine}; {options.trials} trials of {EPOCHS} epochs: {len(body) / 1e6:.1f} MB")
    print("\n| | median s | maximum s | n |\n| --- | --- | --- | --- |")
    for name, times in waits.items():
        print(f"| {name} | {statistics.median(times):.2f} | {max(times):.2f} | {len(times)} |")
    print("\n| | | median ms | 95% ms | maximum ms | n |\n| --- | --- | --- | --- | --- | --- |")
    for (condition, what), times in sorted(costs.items(), key=lambda item: item[0][1]):
        high = statistics.quantiles(times, n=20)[-1]
        row = f"{1000 * statistics.median(times):.1f} | {1000 * high:.1f} | {1000 * max(times):.1f} | {len(times)}"
        print(f"| {what} | {condition} | {row} |")


if __name__ == "__main__":
    main()
