"""Regret, compute to reach a regret, and differences between policies, with intervals over tasks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from quality.curves import Floats
from quality.results import Run

RESAMPLES = 1_000
LEVEL = 0.90
"""Level of all intervals, from a bootstrap over tasks, each with all of its runs."""


@dataclass(frozen=True)
class Measured:
    """A number and its interval; infinite if a regret is never reached."""

    value: float
    low: float
    high: float
    n: int
    """Number of runs."""


@dataclass(frozen=True)
class Curve:
    """The regret of a policy by compute: means over the runs of each task."""

    budgets: tuple[int, ...]
    costs: Floats
    """[tasks, budgets]: compute in full trainings, the race included."""
    regrets: Floats
    """[tasks, budgets]: regret, 0 for the best settings, 100 for median random ones."""

    def at(self, budget: int) -> int:
        """The column of a budget.

        Raises:
            ValueError: the replays did not reach this budget.
        """
        return self.budgets.index(budget)


def by_policy(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each policy, in the order of the file."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.key.policy].append(run)
    return dict(found)


def paired(ours: Iterable[Run], theirs: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs with the same task and the same seed, sorted by task."""
    known = {(run.key.task, run.key.run): run for run in theirs}
    pairs = [(run, known[run.key.task, run.key.run]) for run in ours if (run.key.task, run.key.run) in known]
    return sorted(pairs, key=lambda pair: (pair[0].key.task, pair[0].key.run))


def curve_of(runs: Iterable[Run], *, raced: bool) -> Curve:
    """The curve of a policy, for the budgets that all of its runs have."""
    tasks: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        tasks[run.key.task].append(run)
    shared = set.intersection(*({look.budget for look in run.looks} for group in tasks.values() for run in group))
    budgets = tuple(sorted(shared))
    costs, regrets = [], []
    for _, group in sorted(tasks.items()):
        looks = [[look for look in run.looks if look.budget in shared] for run in group]
        costs.append(np.mean([[look.budget + raced * look.race for look in row] for row in looks], axis=0))
        behind = [[look.raced if raced else look.raw for look in row] for row in looks]
        regrets.append(100 * np.mean(behind, axis=0) / group[0].scale)
    return Curve(budgets, np.array(costs), np.array(regrets))


def compute_to_reach(costs: Floats, regrets: Floats, target: float) -> float:
    """Compute at which the regret is first at most ``target``, linear between two looks; infinite if it never is.

    Args:
        costs: [budgets], in rising order.
        regrets: [budgets]; a lower regret at an earlier budget counts for all later ones.
        target: a regret.
    """
    kept = np.minimum.accumulate(regrets)
    there = np.flatnonzero(kept <= target)
    if not len(there):
        return math.inf
    after = there[0]
    if after == 0:
        return float(costs[0])
    share = (kept[after - 1] - target) / (kept[after - 1] - kept[after])
    return float(costs[after - 1] + share * (costs[after] - costs[after - 1]))


def ratio(ours: list[Run], baseline: list[Run], budget: int, *, raced: bool) -> Measured:
    """Compute to reach the baseline's regret at a budget, as a share of the baseline's compute. Both include races."""
    pairs = paired(ours, baseline)
    mine = curve_of([one for one, _ in pairs], raced=raced)
    base = curve_of([other for _, other in pairs], raced=raced)
    column = base.at(budget)

    def of(tasks: Floats) -> float:
        target, spent = base.regrets[tasks, column].mean(), base.costs[tasks, column].mean()
        return compute_to_reach(mine.costs[tasks].mean(0), mine.regrets[tasks].mean(0), target) / spent

    return over_tasks(of, len(mine.regrets), len(pairs))


def regret_at(runs: list[Run], budget: int, *, raced: bool) -> Measured:
    """Mean regret over tasks."""
    curve = curve_of(runs, raced=raced)
    column = curve.regrets[:, curve.at(budget)]
    return over_tasks(lambda tasks: float(column[tasks].mean()), len(column), len(runs))


def difference(ours: list[Run], theirs: list[Run], budget: int) -> Measured:
    """Regret of the raw choice at equal compute, ours minus theirs; below 0, ours is better."""
    pairs = paired(ours, theirs)
    mine, base = (curve_of(side, raced=False) for side in zip(*pairs, strict=True))
    gap = mine.regrets[:, mine.at(budget)] - base.regrets[:, base.at(budget)]
    return over_tasks(lambda tasks: float(gap[tasks].mean()), len(gap), len(pairs))


def over_tasks(of: Callable[[Floats], float], tasks: int, n: int) -> Measured:
    """A statistic over tasks, and its bootstrap interval; ``of`` computes it from the numbers of tasks."""
    rng = np.random.default_rng(0)
    drawn = [of(rng.integers(0, tasks, tasks)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return Measured(of(np.arange(tasks)), float(low), float(high), n)


def gains(ours: list[Run], budget: int, baseline: list[Run], its_budget: int) -> Mapping[str, Floats]:
    """Points of mean accuracy by which our raw choice is better than the baseline's, for each run of each task."""
    found: dict[str, list[float]] = defaultdict(list)
    for one, other in paired(ours, baseline):
        found[one.key.task].append(_raw(other, its_budget) - _raw(one, budget))
    return {task: np.array(values) for task, values in found.items()}


def worst_task(gained: Mapping[str, Floats]) -> tuple[str, Measured]:
    """The task with the lowest mean gain, and that mean with its bootstrap interval over runs."""
    task = min(gained, key=lambda one: gained[one].mean())
    values = gained[task]
    return task, over_tasks(lambda runs: float(values[runs].mean()), len(values), len(values))


def _raw(run: Run, budget: int) -> float:
    return next(look.raw for look in run.looks if look.budget == budget)
