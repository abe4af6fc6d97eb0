"""What the coordinator costs a trial: ``python -P bench/overhead.py [--trials 20]``.

Runs a real search on the digits (one worker, no pruning) and takes times where messages pass:

    ask       a worker lets go of a trial -> it gets the next one (ask)
    answer    an epoch's result arrives -> its answer is sent (report, prune decision), summed over the trial
    open      the worker gets a trial -> it has counted the candidate
    trial     the worker gets a trial -> it lets go of it
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import search.running.launch
import search.workers.places
import studies
from search.devices import parse_devices
from search.paths import Runs
from search.study.storage import parse_url
from search.workers.local import LocalPool
from search.workers.messages import Assign, FromWorker, Left, Started, ToWorker
from search.workers.pool import Exit

Times = defaultdict[str, list[float]]


class TimedPool(LocalPool):
    """A pool that notes when messages pass."""

    times: ClassVar[Times] = defaultdict(list)

    def send(self, worker: int, message: ToWorker) -> None:
        super().send(worker, message)
        now = time.perf_counter()
        if isinstance(message, Assign):
            if hasattr(self, "left"):
                self.times["ask"].append(now - self.left)
            self.assigned, self.answers = now, 0.0
        else:
            self.answers += now - self.received

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker | Exit]]:
        for worker, event in super().events(timeout):
            self.received = time.perf_counter()
            if isinstance(event, Started):
                self.times["open"].append(self.received - self.assigned)
            if isinstance(event, Left):
                self.left = self.received
                self.times["answer"].append(self.answers)
                self.times["trial"].append(self.received - self.assigned)
            yield worker, event


def main() -> None:
    """Run the search and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    overrides = [f"search.trainings={options.trials}", "search.pruner=none", *options.set]
    spec = studies.load("digits", overrides)
    search.workers.places.LocalPool = TimedPool
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        search.running.launch.launch(spec, parse_url(f"sqlite:///{runs.database}"), runs, parse_devices("cpu:1"))
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {spec.train.epochs} epochs a trial")
    print("| | median ms | maximum ms | n |\n| --- | --- | --- | --- |")
    for name, seconds in TimedPool.times.items():
        print(f"| {name} | {1000 * statistics.median(seconds):.1f} | {1000 * max(seconds):.1f} | {len(seconds)} |")
    times = TimedPool.times
    share = (statistics.median(times["ask"]) + statistics.median(times["answer"])) / statistics.median(times["trial"])
    print(f"\ncoordinator, ask + answers: {share:.2%} of a trial")


if __name__ == "__main__":
    main()
