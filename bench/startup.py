"""CPU seconds of how a command or a worker starts and ends: ``python bench/startup.py [--n 15]``."""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "search --help": [str(Path(sys.executable).parent / "search"), "--help"],
    "search launch --help": [str(Path(sys.executable).parent / "search"), "launch", "--help"],
    "import trainer.fit": [sys.executable, "-c", "import trainer.fit"],
    "the same without collecting garbage": [sys.executable, "-c", "import gc; gc.disable(); import trainer.fit"],
    "the same, left at once": [sys.executable, "-c", "import gc, os; gc.disable(); import trainer.fit; os._exit(0)"],
}


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Interleave the commands n times and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=15)
    n = parser.parse_args().n
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(n):
        for name, command in COMMANDS.items():
            seconds[name].append(cpu_seconds(command))
    print("| command | median CPU s | min | max | n |\n| --- | --- | --- | --- | --- |")
    for name, values in seconds.items():
        print(f"| `{name}` | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} | {n} |")


if __name__ == "__main__":
    main()
