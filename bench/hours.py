"""Does ``search launch --export --hours`` end in time beside other work? Runs it on the digits, with random load.

    python bench/hours.py --runs 20 --minutes 4 10

Each run has its own runs folder and a random number of minutes between the two. Meanwhile, another process keeps
0 to 2 x the cores busy that this process may use, each time for 5 to 40 s; with ``--no-load``, only other work of the
machine disturbs. A line per run tells the minutes, the overshoot, and whether there is an export and whether it was
confirmed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import Process
from pathlib import Path

ALLOWED_SHARE, ALLOWED_SECONDS = 0.05, 30.0
"""Overshoot that counts as in time: the larger one of this share of the hours and of these seconds."""


def burn(seconds: float) -> None:
    """Keep one core busy."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        sum(range(10_000))


def load(seed: int) -> None:
    """Keep a random number of cores busy, until the process is ended."""
    chance = random.Random(seed)
    while True:
        seconds, number = chance.uniform(5, 40), chance.randint(0, 2 * len(os.sched_getaffinity(0)))
        processes = [Process(target=burn, args=(seconds,), daemon=True) for _ in range(number)]
        for process in processes:
            process.start()
        time.sleep(seconds)
        for process in processes:
            process.join()


@contextmanager
def loaded(seed: int) -> Iterator[None]:
    """Load the machine, as ``load`` does, while the context is open."""
    process = Process(target=load, args=(seed,))
    process.start()
    try:
        yield
    finally:
        process.terminate()


def run(minutes: float, folder: Path, extra: list[str]) -> dict[str, object]:
    """One launch: its end, and what it exported."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "search", "launch", "digits", "--export", "--json", "--hours", f"{minutes / 60}"]
    done = subprocess.run([*command, "--runs", str(folder), *extra], capture_output=True, text=True)
    seconds = time.monotonic() - begun
    answer = json.loads(done.stdout) if done.returncode == 0 else {}
    exported = answer.get("exported", {})
    return {
        "minutes": round(minutes, 2),
        "overshoot_s": round(seconds - 60 * minutes, 1),
        "in_time": seconds <= 60 * minutes + max(ALLOWED_SECONDS, ALLOWED_SHARE * 60 * minutes),
        "exit": done.returncode,
        "exported": bool(exported),
        "unconfirmed": exported.get("unconfirmed"),
        "candidates": answer.get("spent", {}).get("begun"),
        "load": round(os.getloadavg()[2], 1),
        "complete": answer.get("spent", {}).get("complete"),
        "error": done.stderr[-300:] if done.returncode else None,
    }


def main() -> None:
    """Run all, and print a line for each and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--minutes", type=float, nargs=2, default=(4.0, 10.0))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-load", action="store_true", help="start no load; the machine has other work")
    parser.add_argument("launch", nargs="*", help="further options of search launch, after --")
    given = parser.parse_args()
    chance, rows = random.Random(given.seed), []
    for number in range(given.runs):
        with tempfile.TemporaryDirectory() as folder, nullcontext() if given.no_load else loaded(given.seed + number):
            rows.append(run(chance.uniform(*given.minutes), Path(folder), ["--trainings", "1000", *given.launch]))
        print(json.dumps(rows[-1]), flush=True)
    worst = max(float(str(row["overshoot_s"])) for row in rows)
    exports, in_time = (sum(bool(row[key]) for row in rows) for key in ("exported", "in_time"))
    print(f"{len(rows)} runs: {exports} exports, {in_time} in time, worst overshoot {worst:.0f} s")


if __name__ == "__main__":
    main()
