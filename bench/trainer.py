"""The trainer beside its peers: ``python bench/trainer.py --images DIR [--timm-train train.py] [--only NAME ...]``.

DIR holds train/CLASS/* pictures; they are resized once, so that no peer resizes anything. timm's train.py is in its
repository, not in its wheel; it runs against the installed timm. Sections: see SECTIONS; those that are no race are
measured in this process, by parts.py. A race takes turns: every racer is a process, all but one are stopped, and each
turn is timed from one step's end to another's, in wall seconds and in CPU seconds of the process and its loaders.
Ratios are medians of those within a round. A thread has a core of its own: with --threads 1 every racer, loaders
included, is kept to one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `trainer` is the package, and not this file
from bench.parts import RECIPE, Bench, checkpoint, count, ema, large, pictures, print_table, resized, start, validation
from bench.racers import Setup

HERE = Path(__file__).parent
TINY = RECIPE | {"model": "resnet10t", "width_mult": 0.25, "batch_size": 128}
"""A net for CIFAR's pictures of 32 px, small enough that the pictures cost more than the net."""

START_SECONDS = 240
"""Longest that a racer may take to its first step."""


class Racer:
    """A training in a process of its own, stopped unless it is its turn."""

    def __init__(self, command: list[str], threads: int, is_step: Callable[[str], bool], pictures: int) -> None:
        self.is_step, self.pictures = is_step, pictures
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(HERE.parent)},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),  # in the child alone, before it is anything
        )
        self.lines: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said = [*self.said[-20:], line]
            if self.is_step(line):
                self.lines.put(time.perf_counter())
        self.lines.put(None)

    def _step(self, timeout: float) -> float:
        when = self.lines.get(timeout=timeout)
        if when is None:
            raise SystemExit("a racer ended:\n" + "".join(self.said))
        return when

    def turn(self, lines: int, first: bool = False) -> tuple[float, float]:
        """Wall and CPU seconds of a picture over so many lines."""
        while not self.lines.empty():
            self._step(1)
        os.killpg(self.process.pid, signal.SIGCONT)
        start, start_cpu = self._step(START_SECONDS if first else 60), self._cpu()
        for _ in range(lines):
            end = self._step(60)
        cpu = self._cpu() - start_cpu
        os.killpg(self.process.pid, signal.SIGSTOP)
        return (end - start) / lines / self.pictures, cpu / lines / self.pictures

    def _cpu(self) -> float:
        total = 0.0
        main = psutil.Process(self.process.pid)
        for process in (main, *main.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def race(title: str, racers: dict[str, Racer], rounds: int, lines: int) -> dict[str, list[tuple[float, float]]]:
    """Let racers take turns; print the table; the first one is ours."""
    try:
        for racer in racers.values():
            racer.turn(3, first=True)
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in racers}
        for number in range(rounds):
            order = list(racers) if number % 2 == 0 else list(reversed(racers))
            for name in order:
                turns[name].append(racers[name].turn(lines))
    finally:
        for racer in racers.values():
            racer.close()
    print(f"\n{title}; n = {rounds} rounds\n")
    print("| | images/s | CPU ms a picture | ours : this, images/s | ours : this, core-seconds |")
    print("| --- | --- | --- | --- | --- |")
    ours = next(iter(racers))
    for name, values in turns.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        pairs = list(zip(values, turns[ours], strict=True))
        in_wall = statistics.median(theirs[0] / mine[0] for theirs, mine in pairs)
        in_cpu = statistics.median(theirs[1] / mine[1] for theirs, mine in pairs)
        print(f"| {name} | {1 / wall:.1f} | {1000 * cpu:.3f} | {in_wall:.2f} | {in_cpu:.2f} |", flush=True)
    return turns


def setup_of(bench: Bench, size: int, threads: int, train: dict[str, Any], **changes: Any) -> Setup:
    """What all racers of one race share."""
    every = 10 if bench.device == "cuda" else max(1, 64 // size) * max(1, train["batch_size"] // 32)
    return Setup(
        pictures=str(resized(bench.images, bench.folder, size)),
        cache=str(bench.folder / "cache"),
        size=size,
        train=train,
        device=bench.device,
        threads=threads,
        **({"every": every} | changes),
    )


def our_racer(kind: str, setup: Setup) -> Racer:
    """One of racers.py."""
    command = [sys.executable, "-P", str(HERE / "racers.py"), kind, json.dumps(asdict(setup))]
    pictures = setup.train["batch_size"] * setup.every
    return Racer(command, setup.threads, lambda line: line == "step\n", pictures)


def timm_racer(train_py: Path, setup: Setup, *, tuned: bool) -> Racer:
    """timm's train.py, as it is or with its flags set as well as we can.

    Its flags name no rotation, so it does without: a little less work than ours.
    """
    train = setup.train
    command = [sys.executable, str(train_py), "--data-dir", setup.pictures, "--val-split", "train", "--epochs", "1000"]
    command += ["--model", train["model"], "--num-classes", str(len(list(Path(setup.pictures, "train").iterdir())))]
    command += ["--img-size", str(setup.size), "--batch-size", str(train["batch_size"]), "--device", setup.device]
    command += ["--opt", "adamw", "--lr", "1e-4", "--smoothing", str(train["label_smoothing"])]
    command += ["--scale", "1", "1", "--ratio", "1", "1", "--color-jitter", "0", "--hflip", str(train["hflip"])]
    command += ["--reprob", str(train["erase"]), "--remode", "const", "--log-interval", str(setup.every)]
    command += ["--output", str(Path(setup.cache) / "timm")]
    if tuned:
        command += ["--channels-last", "--opt-kwargs", "fused=True", "--workers", str(max(1, setup.loaders))]
        command += ["--train-interpolation", "bilinear"]
        if setup.device == "cuda":
            command += ["--amp", "--amp-dtype", "bfloat16", "--pin-mem"]
    return Racer(command, setup.threads, lambda line: "Train: " in line, train["batch_size"] * setup.every)


def end_to_end(bench: Bench) -> None:
    """rexnet_100: ours, the bare step, a DataLoader loop, timm's train.py as it is and tuned."""
    for size in bench.sizes:
        for threads in bench.threads:
            setup = setup_of(bench, size, threads, RECIPE)
            with_loader = Setup(**asdict(setup) | {"loaders": 1})
            racers = {"ours": our_racer("fit", setup), "bare step": our_racer("bare", setup)}
            racers["bare step, padded as ours"] = our_racer("padded", setup)
            racers["DataLoader, channels last, fused"] = our_racer("folder", with_loader)
            if bench.timm_train:
                racers["timm train.py"] = timm_racer(bench.timm_train, setup, tuned=False)
                racers["timm train.py, tuned"] = timm_racer(bench.timm_train, with_loader, tuned=True)
            where = f"{threads} core{'s' if threads > 1 else ''}" if bench.device == "cpu" else bench.device
            race(f"rexnet_100, {size} px, batch {RECIPE['batch_size']}, {where}", racers, bench.rounds, bench.lines)


def tiny(bench: Bench) -> None:
    """A tiny net on 32 px: ours, the bare step, DataLoaders with 0, 1 and 2 processes over pictures in memory."""
    for threads in bench.threads:
        setup = setup_of(bench, 32, threads, TINY)
        racers = {"ours": our_racer("fit", setup), "bare step": our_racer("bare", setup)}
        for loaders in (0, 1, 2):
            name = f"DataLoader, {loaders} processes"
            racers[name] = our_racer("arrays", Setup(**asdict(setup) | {"loaders": loaders}))
        where = f"{threads} core{'s' if threads > 1 else ''}" if bench.device == "cpu" else bench.device
        race(f"resnet10t x 0.25, 32 px, batch 128, {where}", racers, bench.rounds, bench.lines)


def workers(bench: Bench) -> None:
    """Two 1-thread workers against one 2-thread worker, in turns."""
    rows = []
    for size in bench.sizes:
        setups = {threads: setup_of(bench, size, threads, RECIPE) for threads in (1, 2)}
        pair = [our_racer("fit", setups[1]) for _ in range(2)]
        one = our_racer("fit", setups[2])
        for number, racer in enumerate(pair):  # each has a core of its own
            os.sched_setaffinity(racer.process.pid, {sorted(os.sched_getaffinity(0))[number]})
        try:
            for racer in (*pair, one):
                racer.turn(3, first=True)
            ratios = []
            for _ in range(bench.rounds):
                with_two = sum(1 / seconds for seconds, _ in at_once([racer.turn for racer in pair], bench.lines))
                ratios.append(with_two * one.turn(bench.lines)[0])
            rows.append([f"{size} px", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"])
        finally:
            for racer in (*pair, one):
                racer.close()
    print_table(["two 1-thread workers : one 2-thread worker", "images/s, median", "range"], rows, bench.rounds)


def at_once(turns: Sequence[Callable[[int], tuple[float, float]]], lines: int) -> list[tuple[float, float]]:
    """Turns at the same time."""
    results: list[tuple[float, float]] = []
    threads = [threading.Thread(target=lambda turn=turn: results.append(turn(lines))) for turn in turns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def memory(bench: Bench) -> None:
    """Four workers on one cache: their own memory, and how often the cache is in memory."""
    setup = setup_of(bench, 64, 1, TINY | {"batch_size": 32}, every=1)
    workers = [our_racer("fit", setup) for _ in range(4)]
    try:
        for worker in workers:
            worker.turn(30, first=True)
        cache = sum(file.stat().st_size for file in Path(setup.cache).rglob("pictures.npy") if f"-{64}px" in str(file))
        rows = []
        for number, worker in enumerate(workers):
            anonymous, mapped, shared = 0, 0, 0
            for entry in psutil.Process(worker.process.pid).memory_maps(grouped=False):
                anonymous += entry.anonymous
                if entry.path.endswith("pictures.npy"):
                    mapped, shared = mapped + entry.rss, shared + entry.pss
            rows.append([f"worker {number}", *(f"{value / 1e6:.1f}" for value in (anonymous, mapped, shared))])
    finally:
        for worker in workers:
            worker.close()
    head = ["", "anonymous MB", "of the cache mapped, MB", "its share of it (pss), MB"]
    print_table(head, [*rows, ["the cache itself", "", f"{cache / 1e6:.1f}", ""]], 1)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    section.__name__: section
    for section in (end_to_end, tiny, workers, pictures, count, validation, checkpoint, ema, start, memory, large)
}


@contextlib.contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """The folder given, or one that is deleted afterwards."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
    else:
        with tempfile.TemporaryDirectory(prefix="bench-trainer-") as folder:
            yield Path(folder)


def main() -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with train/CLASS/* pictures")
    parser.add_argument("--timm-train", type=Path, help="timm's train.py, from its repository; left out without it")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, default=10, help="lines of a turn; a line is one or a few steps")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the synthetic cache of `large`")
    parser.add_argument("--work", type=Path, help="keep resized pictures and caches here between runs")
    asked = vars(parser.parse_args())
    chosen, work = asked.pop("only"), asked.pop("work")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no racer outlives its race
    with work_folder(work) as folder:
        for name in chosen:
            SECTIONS[name](Bench(folder=folder, **asked))


if __name__ == "__main__":
    main()
