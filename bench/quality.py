"""The quality of a search: replays on recorded learning curves, with the product's own policy and with others.

``python bench/quality.py replay --data FOLDER --out FILE.jsonl --policies tpe,model --set held`` replays searches and
adds the results to the file; results that are in the file already are skipped. ``stops`` adds how often the best
candidate is lost. ``table FILE...`` and ``goals FILE...`` print the results of such files; they need no FOLDER.
``races`` simulates the race before an export; ``noise`` judges estimates of the noise of a training,
``transfer`` the recipes of earlier studies.

``python bench/quality.py real TASK --out FILE.jsonl --budgets 8,15 --runs 8`` searches with real training, ours and
plain Optuna's; ``table`` prints such files too.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import optuna

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `trainer` is the package, and not bench/trainer.py
sys.path.append(str(Path(__file__).parent))

from quality import noise, races, real, report, results, stops, transfer
from quality.curves import Task
from quality.folder import judges, tasks_of
from quality.replay import BUDGETS, Search
from quality.results import Key, Run
from quality.subjects import SUBJECTS

from bench.rungs import unpack

tasks = cache(tasks_of)


def replay(key: Key, data: Path, which: str, budget: float) -> Run:
    """Replay one search. Each task and repetition has its own random numbers, the same for all policies."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # peers' own
    task: Task = tasks(data, which)[key.task]
    begun = time.process_time()
    seed = zlib.crc32(f"{key.task} {key.run}".encode()) // 2  # 31 bits, as SMAC wants it
    looks = Search(SUBJECTS[key.policy](), task, seed, key.workers).run(budget)
    return Run(key, task.best - task.median, time.process_time() - begun, task.kind, judges(task), tuple(looks))


def replay_all(values: argparse.Namespace) -> None:
    """Replay all searches that the file does not have yet: one repetition of all tasks, then the next."""
    which = tasks(values.data, values.set)
    done = {run.key for run in results.read([values.out])} if values.out.exists() else set()
    keys = [
        Key(policy, task, run, values.workers)
        for run in range(values.runs)
        for policy in values.policies
        for task in which
    ]
    left = [key for key in keys if key not in done]
    with values.out.open("a") as file:
        if values.jobs == 1:
            for key in left:
                print(replay(key, values.data, values.set, values.budget).line(), file=file, flush=True)
            return
        with ProcessPoolExecutor(values.jobs, get_context("spawn")) as pool:
            waits = [pool.submit(replay, key, values.data, values.set, values.budget) for key in left]
            for wait in waits:
                print(wait.result().line(), file=file, flush=True)


def stops_all(values: argparse.Namespace) -> None:
    """Measure how often each rule loses the best candidate, on the tasks with enough candidates."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with values.out.open("a") as file:
        for task in tasks(values.data, values.set).values():
            for rule in values.rules:
                if task.size >= stops.CANDIDATES and (task.short or rule != "promote_anew"):
                    print(stops.lost_best(rule, task, values.draws, values.workers).line(), file=file, flush=True)


def search_all(values: argparse.Namespace) -> None:
    """Search with real training, until all is done or the time is up."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ends = time.monotonic() + 60 * values.minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder, pictures = Path(temporary), None
        if values.data is not None:
            pictures = folder / "pictures"
            unpack(values.data, pictures, real.TASKS[values.task].per_class)
        place = real.Place(values.task, pictures, folder)
        real.search_all(place, values.budgets, range(values.runs), values.out, lambda: time.monotonic() < ends)


def transfer_all(values: argparse.Namespace) -> None:
    """Compare searches with and without recipes of earlier studies, and print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    which, nearest = tasks(values.data, transfer.TASKS), not values.farthest
    found = [one for run in range(values.runs) for one in transfer.compare(which, run, nearest=nearest)]
    print(f"{len(found)} pairs of searches, {time.process_time():.0f} s of CPU")
    print(transfer.table(found))


def say(values: argparse.Namespace) -> None:
    """Print the tables, or the goals."""
    runs = [run for run in results.read(values.files) if run.key.workers == values.workers]
    policy, lost = values.policy, stops.read(values.files)
    searches = real.read(values.files)
    if policy:
        sheets = [report.goals(runs, lost, policy, real.halves(searches))]
    else:
        sheets = [*report.tables(runs), *real.tables(searches)]
    print(report.as_json(sheets) if values.json else report.printed(sheets))


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    replays = commands.add_parser("replay", help="replay searches and add them to a file")
    replays.set_defaults(do=replay_all)
    replays.add_argument("--policies", type=names, required=True, help=", ".join(SUBJECTS))
    replays.add_argument("--runs", type=int, default=4, help="repetitions of each task")
    replays.add_argument("--budget", type=int, default=BUDGETS[-1], help="full trainings of a search")
    replays.add_argument("--jobs", type=int, default=1, help="processes")
    losses = commands.add_parser("stops", help="add to a file how often the best candidate is not trained to its end")
    losses.set_defaults(do=stops_all)
    losses.add_argument("--rules", type=names, default=list(stops.RULES), help=", ".join(stops.RULES))
    losses.add_argument("--draws", type=int, default=40, help="draws of each task")
    for command in (replays, losses):
        command.add_argument("--data", type=Path, required=True, help="folder of tables")
        command.add_argument("--out", type=Path, required=True, help="file that gets a line a result")
        command.add_argument("--set", default="all", help="dev, held, all or names of tasks")
    confirmations = commands.add_parser("races", help="simulate the race before an export, and print its table")
    confirmations.set_defaults(do=lambda values: print(races.table(values.draws)))
    confirmations.add_argument("--draws", type=int, default=4000, help="simulated choices of each case")
    seeds = commands.add_parser("noise", help="print how well the noise of a training is known from two seeds")
    seeds.set_defaults(do=lambda values: print(noise.table(values.data)))
    seeds.add_argument("--data", type=Path, required=True, help="folder of tables")
    memories = commands.add_parser("transfer", help="search with and without recipes of earlier studies, and print it")
    memories.set_defaults(do=transfer_all)
    memories.add_argument("--data", type=Path, required=True, help="folder of tables")
    memories.add_argument("--runs", type=int, default=8, help="repetitions")
    memories.add_argument("--farthest", action="store_true", help="recipes of the farthest studies, not the nearest")
    reals = commands.add_parser("real", help="search with real training, ours and plain Optuna, and add it to a file")
    reals.set_defaults(do=search_all)
    reals.add_argument("task", choices=real.TASKS)
    reals.add_argument("--out", type=Path, required=True, help="file that gets a line a search")
    reals.add_argument("--budgets", type=numbers, default=[8, 15, 30], help="full trainings")
    reals.add_argument("--runs", type=int, default=8, help="repetitions")
    reals.add_argument("--minutes", type=float, default=math.inf, help="begins no search after them")
    reals.add_argument("--data", type=Path, help="archive NAME/{train,test}/CLASS/*; none for the digits")
    shown = commands.add_parser("table", help="print the tables of files")
    shown.set_defaults(do=say, policy=None)
    aims = commands.add_parser("goals", help="print the goals, and what files say of them")
    aims.set_defaults(do=say)
    aims.add_argument("--policy", default="model", choices=SUBJECTS)
    for command in (shown, aims):
        command.add_argument("files", type=Path, nargs="+")
        command.add_argument("--json", action="store_true")
    for command in (replays, losses, shown, aims):
        command.add_argument("--workers", type=int, default=4)
    values = parser.parse_args(arguments)
    values.do(values)


def numbers(text: str) -> list[int]:
    """Whole numbers separated by commas."""
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return text.split(",")


if __name__ == "__main__":
    main()
