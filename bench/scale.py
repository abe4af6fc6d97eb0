"""What many workers cost the coordinator: ``python -P bench/scale.py [--workers 8 1000] [--finished 5000]``.

The real coordinator, its display on a terminal that throws all away, and the state file serve workers that play a
script: each epoch takes 30 s of a simulated clock. The clock is the CPU time of this process (with Postgres, also that
of the server's process for it) plus the time in which there is nothing to do. So other work on the machine does not
count, and neither does the wait for the disk. Each case is a process of its own, and begins with a study as a search
leaves it. Before and after it, asks of Optuna's TPE are measured, because the speed of a machine changes with its other
work.

``--opening --finished 20000`` measures how long a launch takes to open a study of so many trials.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import insert, select

sys.path.insert(0, str(Path(__file__).parents[1]))  # measures its own tree, whatever is installed
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for the Postgres server

from bench.simulated import EPOCH_SECONDS, Clock, ScriptedPool, write_checkpoints
from bench.speed import Yardstick
from search.paths import Runs
from search.plan.space import Bounds, distributions
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, Ladder
from search.policy.model import ModelSampler
from search.policy.tpe import RememberingTPE
from search.running.clock import Clock as LaunchClock
from search.running.coordinator import Coordinator
from search.running.launch import launch  # noqa: F401  # all that a launch imports counts for the memory
from search.study.lock import own_study
from search.study.marks import ENDED, MARK, Marks
from search.study.owned import OwnedStudy
from search.study.sampling import build_ladder
from search.study.storage import backend_of, open_storage, parse_url
from search.study.study import UUID, open_study
from search.watch.live import Display
from search.watch.observers import Observers, StateFile
from studies import StudySpec

EPOCHS = 20
WAYS = {"model, promote": ("model", "promote"), "tpe, halving": ("tpe", "successive_halving")}
"""Sampler and pruner; the first are the defaults."""

monotonic = time.monotonic


def spec_of(way: str) -> StudySpec:
    """A study of five settings."""
    sampler, pruner = WAYS[way]
    return StudySpec.model_validate(
        {
            "name": "scale",
            "train": {"epochs": EPOCHS},
            "space": {
                "lr": {"low": 1e-4, "high": 1e-1, "log": True},
                "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
                "label_smoothing": {"low": 0.0, "high": 0.1},
                "dropout": {"low": 0.0, "high": 0.5},
                "batch_size": [32, 64, 128],
            },
            "search": {"trainings": 1_000_000, "sampler": sampler, "pruner": pruner},
        }
    )


@dataclass(frozen=True)
class Filled:
    """A trial as a search leaves it."""

    state: TrialState
    last: int
    """Its last step."""
    attributes: dict[str, Any]


def as_left(number: int, ladder: Ladder, finished: int) -> Filled:
    """One trial: of three that come to a rung, one goes on. The last ones are being trained."""
    steps = ladder.steps if ladder.rungs else (1, 3, 9, EPOCHS)  # those of successive halving
    place = min(len(steps) - 1, _place(number))
    ends = place == len(steps) - 1
    if number >= finished:  # in progress: between two rungs
        place = number % len(steps)
        below = steps[place - 1] if place else 0
        last = random.Random(number).randrange(below, steps[place])
        return Filled(TrialState.RUNNING, last, {PROMOTED_AT: below} if below and ladder.rungs else {})
    attributes: dict[str, Any] = {"seconds": steps[place] * EPOCH_SECONDS}
    if not ladder.rungs:
        return Filled(TrialState.COMPLETE if ends else TrialState.PRUNED, steps[place], attributes)
    if not ends:
        return Filled(TrialState.RUNNING, steps[place], attributes | {PAUSED_AT: steps[place]})
    return Filled(TrialState.COMPLETE, steps[place], attributes | {PROMOTED_AT: steps[place - 1]})


def _place(number: int) -> int:
    """How many times a trial was among the best third."""
    return next(times for times in range(99) if (number + 1) % 3 ** (times + 1))


def fill(study: optuna.Study, spec: StudySpec, running: int, finished: int) -> dict[int, int]:
    """Trials as a search leaves them; through Optuna, one by one, it would take longer than all the rest.

    Returns:
        The trials in progress, with the epochs in their checkpoints.
    """
    space, ladder, marks = distributions(spec, None), build_ladder(spec), Marks(study.user_attrs[UUID], None)
    axes = {name: distribution_to_json(axis) for name, axis in space.items()}
    rows: dict[type[Any], list[dict[str, Any]]] = defaultdict(list)
    left = [as_left(number, ladder, finished) for number in range(finished + running)]
    begun: dict[int, int] = {}
    with backend_of(study).engine.begin() as connection:
        now, trial = datetime.now(), models.TrialModel
        named = [
            {"study_id": study._study_id, "number": number, "state": one.state, "datetime_start": now}
            for number, one in enumerate(left)
        ]
        connection.execute(insert(trial), named)
        ids = connection.execute(select(trial.trial_id).where(trial.study_id == study._study_id).order_by(trial.number))
        for number, (trial_id, one) in enumerate(zip(ids.scalars().all(), left, strict=True)):
            drawn, of = random.Random(number), {"trial_id": trial_id}
            for name, axis in space.items():
                row = of | {"param_name": name, "distribution_json": axes[name]}
                rows[models.TrialParamModel].append(row | {"param_value": _draw(axis, drawn)})
            value = 0.4 + 0.1 * _place(number) + drawn.uniform(0.0, 0.1)
            for step in range(1, one.last + 1):
                row = of | {"step": step, "intermediate_value": value, "intermediate_value_type": "FINITE"}
                rows[models.TrialIntermediateValueModel].append(row)
            mark = marks.mark_of(number) + (ENDED if one.state.is_finished() else "")
            counted = {MARK: mark, "num_params": 900_000 + number, "macs": 10**8}
            for key, attribute in (one.attributes | counted).items():
                rows[models.TrialUserAttributeModel].append(of | {"key": key, "value_json": json.dumps(attribute)})
            for rung, step in enumerate(() if ladder.rungs else (1, 3, 9)):
                if step <= one.last:
                    row = of | {"key": f"completed_rung_{rung}", "value_json": json.dumps(value)}
                    rows[models.TrialSystemAttributeModel].append(row)
            if one.state == TrialState.COMPLETE:
                rows[models.TrialValueModel].append(of | {"objective": 0, "value": value, "value_type": "FINITE"})
            if number >= finished:
                stage = ladder.stage_after(one.attributes.get(PROMOTED_AT, 0)) if ladder.anew else 0
                begun[number] = one.last - ladder.steps_before(stage)
        for table, values in rows.items():
            connection.execute(insert(table), values)
    return begun


def _draw(axis: BaseDistribution, drawn: random.Random) -> float:
    if isinstance(axis, optuna.distributions.CategoricalDistribution):
        return float(drawn.randrange(len(axis.choices)))
    assert isinstance(axis, optuna.distributions.FloatDistribution)
    if axis.log:
        return math.exp(drawn.uniform(math.log(axis.low), math.log(axis.high)))
    return drawn.uniform(axis.low, axis.high)


class Spending:
    """CPU seconds of the sampler's own methods."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for sampler in (ModelSampler, RememberingTPE):
            for name in ("infer_relative_search_space", "sample_relative", "sample_independent"):
                setattr(sampler, name, self._counted(getattr(sampler, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds += time.process_time() - begun

        return counted


class Nowhere(io.StringIO):
    """A terminal that throws all away."""

    def isatty(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Nothing is kept."""
        return len(text)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One case, in this process."""
    way, workers, finished = options.case, options.workers[0], options.finished[0]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spec, clock, spending = spec_of(way), Clock(), Spending()
    os.environ |= {"COLUMNS": "80", "LINES": "40", "TERM": "xterm-256color"}
    sys.stdout = Nowhere()
    time.monotonic = clock
    with ExitStack() as stack:
        runs = Runs(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        url = parse_url(options.storage or f"sqlite:///{runs.root}/search.db")
        check_lock = stack.enter_context(own_study(spec.name, url, runs))
        study = open_study(spec, open_storage(url, create=True), "0" * 64)
        begun = fill(study, spec, 0 if options.opening else workers, finished)
        for number in begun:
            write_checkpoints(runs.trial(spec.name, number))
        space = distributions(spec, None)
        bounds = Bounds(width=None, most_params=0, space=space, known=[], left_out={})

        def coordinator() -> tuple[Coordinator, ScriptedPool]:
            pool = ScriptedPool(workers, clock)
            pool.done = dict(begun)
            display = stack.enter_context(Display())
            observers = Observers(display, [StateFile(runs.state(spec.name), "bench")], at_once=lambda: True)
            owned = OwnedStudy(study, spec, check_lock)
            return Coordinator(owned, bounds, pool, runs, "cache", observers, LaunchClock(None)), pool

        if options.opening:
            coordinator()[0].begin()  # the first writes the journal
            before, cpu = monotonic(), time.process_time()
            study = open_study(spec, open_storage(url), "0" * 64)
            coordinator()[0].begin()
            return {"wall": monotonic() - before, "cpu": time.process_time() - cpu}
        searching, pool = coordinator()
        clock.listen(study)
        searching.begin()
        limit = clock.used + options.most_cpu

        def turns(seconds: float) -> None:
            until = clock() + seconds
            while clock() < until and clock.used < limit:
                assert searching.turn()

        turns(options.warm)
        pool.waits.clear()
        pool.answers.clear()
        sampled, asked = spending.seconds, len(searching.trials.journal.asked)
        used, since = clock.used, clock()
        limit = used + options.most_cpu
        profile = cProfile.Profile(time.process_time) if options.profile else None
        if profile is None:
            turns(options.seconds)
        else:
            profile.runcall(turns, options.seconds)
            profile.dump_stats(options.profile)
        passed = clock() - since
        return {
            "busy": (clock.used - used) / passed,
            "sampler": (spending.seconds - sampled) / passed,
            "asks": len(searching.trials.journal.asked) - asked,
            "epochs": len(pool.answers),
            "next_median": statistics.median(pool.waits) if pool.waits else math.nan,
            "next_95": sorted(pool.waits)[int(0.95 * len(pool.waits))] if pool.waits else math.nan,
            "answer_95": sorted(pool.answers)[int(0.95 * len(pool.answers))] if pool.answers else math.nan,
            "passed": passed,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def run_case(
    way: str, workers: int, finished: int, options: argparse.Namespace, yardstick: Yardstick
) -> dict[str, float]:
    """One case in a process of its own, with a Postgres server of its own if asked for."""
    before = yardstick.milliseconds()
    command = [sys.executable, "-P", __file__, "--case", way, "--workers", str(workers), "--finished", str(finished)]
    command += ["--seconds", str(options.seconds), "--warm", str(options.warm), "--most-cpu", str(options.most_cpu)]
    command += ["--profile", options.profile] if options.profile else []
    command += ["--opening"] if options.opening else []
    with ExitStack() as stack:
        if options.postgres:
            from needed import postgres

            address = stack.enter_context(postgres()).get_uri()
            command += ["--storage", address.replace("postgresql://", "postgresql+psycopg://")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found | {"yardstick": (before + yardstick.milliseconds()) / 2}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 32, 100, 300, 1000])
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--postgres", action="store_true", help="on a Postgres server of its own instead of SQLite")
    parser.add_argument("--seconds", type=float, default=60, help="simulated seconds that are measured")
    parser.add_argument("--warm", type=float, default=35, help="simulated seconds before")
    parser.add_argument("--most-cpu", type=float, default=90, help="CPU seconds after which a case ends")
    parser.add_argument("--opening", action="store_true", help="measure how long a launch takes to open the study")
    parser.add_argument("--profile", help="file for cProfile's statistics of the last case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options)), file=sys.__stdout__)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, {'Postgres' if options.postgres else 'SQLite'}; n = 1 each\n")
    if not options.opening:
        heads = ["sampler, pruner", "workers", "finished", "busy", "of it the sampler", "epochs", "candidates"]
        heads += ["next after, 95 %", "answer after, 95 %", "memory, MB", "Optuna's ask, ms"]
        print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    yardstick = Yardstick()
    for way in options.ways:
        for workers in options.workers:
            for finished in options.finished:
                found = run_case(way, workers, finished, options, yardstick)
                if options.opening:
                    print(f"{way}, {finished:,} trials: {found['wall']:.1f} s, {found['cpu']:.1f} s of CPU", flush=True)
                    continue
                shares = [f"{100 * found[name]:.2g} %" for name in ("busy", "sampler")]
                cells = [way, f"{workers:,}", f"{finished:,}", *shares, f"{found['epochs']:,}", f"{found['asks']:,}"]
                cells += [f"{found['next_95']:.2f} s", f"{found['answer_95']:.2f} s", f"{found['memory']:.0f}"]
                cells.append(f"{found['yardstick']:.0f}")
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
