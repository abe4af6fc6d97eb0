"""How good a search is: replays on learning curves, of the product's own policy and of others.

``python bench/quality.py replay --data FOLDER --out FILE.jsonl --policies tpe,model --set held`` replays searches and
adds them to the file; what is there already is not replayed again. ``stops`` adds how often the best candidate is lost.
``table FILE...`` and ``goals FILE...`` print what the files say, without the tables.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import optuna

sys.path.insert(0, str(Path(__file__).parent))

from quality import results
from quality.curves import Task
from quality.folder import judges, tasks_of
from quality.replay import BUDGETS, Search
from quality.results import Key, Run
from quality.subjects import SUBJECTS

tasks = cache(tasks_of)


def replay(key: Key, data: Path, which: str, budget: float) -> Run:
    """One search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # peers' own
    task: Task = tasks(data, which)[key.task]
    begun = time.process_time()
    looks = Search(SUBJECTS[key.policy](), task, key.run, key.workers).run(budget)
    return Run(key, task.best - task.median, time.process_time() - begun, judges(task), tuple(looks))


def replay_all(values: argparse.Namespace) -> None:
    """All that the file does not have yet, a repetition of every task before the next."""
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


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("replay")
    command.set_defaults(do=replay_all)
    command.add_argument("--data", type=Path, required=True, help="folder of tables")
    command.add_argument("--out", type=Path, required=True, help="file that gets a line a search")
    command.add_argument("--policies", type=lambda text: text.split(","), required=True, help=", ".join(SUBJECTS))
    command.add_argument("--set", default="all", help="dev, held, all or names of tasks")
    command.add_argument("--workers", type=int, default=4)
    command.add_argument("--runs", type=int, default=4, help="repetitions of each task")
    command.add_argument("--budget", type=int, default=BUDGETS[-1], help="full trainings of a search")
    command.add_argument("--jobs", type=int, default=1, help="processes")
    values = parser.parse_args(arguments)
    values.do(values)


if __name__ == "__main__":
    main()
