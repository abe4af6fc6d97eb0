"""What the model sampler costs, and how it searches: ``python -P bench/sampler.py cost`` and ``... dev --data FOLDER``.

cost   CPU of an ask with 30, 300, 1,000 and 5,000 finished candidates, with and without new hyperparameters
dev    regret on the tuning tasks of the tables in FOLDER, whose programs (campaign.py, sim.py) are the yardstick
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from search.policy.ladder import PAUSED_AT, PROMOTED_AT, Ladder
from search.policy.model import THETA, ModelSampler

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "momentum": FloatDistribution(0.1, 0.99),
    "dropout": FloatDistribution(0.0, 1.0),
    "smoothing": FloatDistribution(0.0, 0.2),
    "depth": IntDistribution(1, 5),
    "units": IntDistribution(64, 1024, log=True),
}
STEPS = (6, 18, 50)
BUDGETS = (5, 8, 10, 15)


def cost(asks: int) -> None:
    """Print the table of costs."""
    print("| finished | ask | median ms of CPU | maximum | n |\n| --- | --- | --- | --- | --- |")
    for finished in (30, 300, 1000, 5000):
        study = _study(finished)
        times: dict[str, list[float]] = {"random": [], "without a refit": [], "with a refit": []}
        study.ask(SPACE)  # what was finished before is read once
        for _ in range(asks):
            sampler = study.sampler
            assert isinstance(sampler, ModelSampler)
            begin = time.process_time()
            trial = study.ask(SPACE)
            seconds = time.process_time() - begin
            refit = finished <= 300 or THETA in study.get_trials(deepcopy=False)[trial.number].system_attrs
            is_random = trial.number % 3 == 2
            times["random" if is_random else "with a refit" if refit else "without a refit"].append(1000 * seconds)
            study.tell(trial, state=TrialState.FAIL)
        for name, found in times.items():
            if found:
                print(f"| {finished:,} | {name} | {statistics.median(found):.1f} | {max(found):.1f} | {len(found)} |")


def _study(finished: int) -> optuna.Study:
    """A study of finished candidates, of which one in nine came to the end and two more to the second rung."""
    rng = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize", sampler=ModelSampler(seed=0, ladder=Ladder(STEPS)))
    for number in range(finished):
        params = {name: axis.low + rng.random() * (axis.high - axis.low) for name, axis in SPACE.items()}  # type: ignore[attr-defined]
        params["depth"], params["units"] = round(params["depth"]), round(params["units"])
        end = 0.9 - abs(params["momentum"] - 0.7) - params["dropout"] / 5 + rng.normal() / 100
        came = STEPS[: 3 if number % 9 == 0 else 2 if number % 3 == 0 else 1]
        values = {step: end * step / (step + 3) for step in came}
        state = TrialState.COMPLETE if len(came) == 3 else TrialState.PRUNED
        value = values[50] if len(came) == 3 else None
        study.add_trial(
            create_trial(state=state, value=value, params=params, distributions=SPACE, intermediate_values=values)
        )
    return study


def dev(data: Path, runs: int, workers: int) -> None:
    """Print the mean regret on the tuning tasks: 0 the best settings, 100 a median random one."""
    sys.path.insert(0, str(data))
    import campaign  # type: ignore[import-not-found]
    import sim  # type: ignore[import-not-found]

    medians = json.loads((data / "data" / "medians.json").read_text())
    regrets: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for task in campaign.DEV:
        bench = campaign.get(task)
        for run in range(runs):
            for spent, candidates, _ in sim.run(_policy(sim)(), bench, run, workers, max(BUDGETS)):
                if spent in regrets:
                    regrets[spent].append(100 * (bench.best - candidates[0][1]) / (bench.best - medians[task]))
    for budget, found in regrets.items():
        error = np.std(found, ddof=1) / len(found) ** 0.5
        print(f"{budget:3d} full trainings: regret {np.mean(found):5.1f} +- {error:.1f} (n = {len(found)})")


def _policy(sim: Any) -> Callable[[], Any]:
    class Shipped(sim.Promote):  # type: ignore[misc]
        """The yardstick's promotion with the product's sampler."""

        def begin(self, bench: Any, run: int) -> None:
            super().begin(bench, run)
            sampler = ModelSampler(seed=run, ladder=Ladder((*self.rungs, bench.T)))
            self.study = optuna.create_study(direction="maximize", sampler=sampler)

        def next(self, trials: list[Any]) -> Any:
            if (trial := self.promotable(trials)) is not None:
                trial.optuna.set_user_attr(PROMOTED_AT, trial.epoch)
                return trial
            asked = self.study.ask(self.bench.space)
            trial = sim.T(len(trials), asked.params, self.bench, self.rep)
            trial.optuna = asked
            return trial

        def epoch(self, trial: Any, value: float, trials: list[Any]) -> str | None:
            if trial.epoch in (*self.rungs, self.bench.T):
                trial.optuna.report(float(value), trial.epoch)
            verdict: str | None = super().epoch(trial, value, trials)
            if verdict == "paused":
                trial.optuna.set_user_attr(PAUSED_AT, trial.epoch)
            return verdict

        def done(self, trial: Any) -> None:
            if trial.epoch == self.bench.T:
                self.study.tell(trial.optuna, float(trial.curve[-1]))

    return Shipped


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "dev"))
    parser.add_argument("--asks", type=int, default=40, help="asks for each number of candidates")
    parser.add_argument("--data", type=Path, help="folder of the yardstick's programs, with their data")
    parser.add_argument("--runs", type=int, default=10, help="runs for each task")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.what == "cost":
        cost(options.asks)
    else:
        dev(options.data, options.runs, options.workers)


if __name__ == "__main__":
    main()
