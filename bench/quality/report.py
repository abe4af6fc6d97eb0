"""The tables and goals from the results files of replays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from quality.folder import DEV
from quality.measure import LEVEL, Measured, by_policy, curve_of, difference, gains, ratio, regret_at, worst_task
from quality.results import Run
from quality.stops import BUDGET, CANDIDATES, Lost
from quality.subjects import BASELINE, PEERS

SHOWN = (5, 8, 10, 15, 20, 30, 60)
"""Budgets of the tables, in full trainings."""
AGAINST = (30, 60)
"""Budgets of the baseline with which the compute of others is compared."""
MUCH = 0.5
"""A run counts as worse if its choice is worse by more than this many points."""
EQUAL = (8, 15, 30)
"""Budgets for comparisons with peers at equal compute."""


@dataclass(frozen=True)
class Sheet:
    """A table to print."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def printed(sheets: Sequence[Sheet]) -> str:
    """As Markdown."""
    parts = []
    for sheet in sheets:
        lines = [sheet.head, tuple("---" for _ in sheet.head), *sheet.rows]
        parts.append(sheet.title + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return "\n".join(parts)


def as_json(sheets: Sequence[Sheet]) -> str:
    """A list of tables, each with its title and rows by column."""
    tables = [
        {"title": sheet.title, "rows": [dict(zip(sheet.head, row, strict=True)) for row in sheet.rows]}
        for sheet in sheets
    ]
    return json.dumps(tables, indent=1)


def tables(runs: Sequence[Run]) -> list[Sheet]:
    """Regret by compute, compute to reach a regret, worst runs and worst tasks, separately for each kind of task."""
    kinds = dict.fromkeys((run.kind, run.judges) for run in runs)
    return [sheet for kind in kinds for sheet in _of_kind([run for run in runs if (run.kind, run.judges) == kind])]


def _of_kind(runs: Sequence[Run]) -> list[Sheet]:
    policies = by_policy(runs)
    names = sorted({run.key.task for run in runs})
    workers = ", ".join(map(str, sorted({run.key.workers for run in runs})))
    known = f"Tasks of kind {runs[0].kind}: {', '.join(names)}; {workers} workers. They judge: {runs[0].judges}."
    sheets = [Sheet(known, ("policy", "tasks", "runs", "CPU s a run"), _counts(policies))]
    for raced in (False, True):
        choice = "by a race of the best" if raced else "the best complete candidate"
        title = f"Regret of the choice, {choice}: 0 the best known settings, 100 median random ones. Columns: full "
        title += "trainings of the search. The race adds 5, or 8 from 30 on." if raced else "trainings spent."
        rows = tuple((name, *_regrets(group, raced=raced)) for name, group in policies.items())
        sheets.append(Sheet(title, ("policy", *map(str, SHOWN)), rows))
    return [*sheets, _compute(policies), _worst(policies)] if BASELINE in policies else sheets


def _compute(policies: dict[str, list[Run]]) -> Sheet:
    base = policies[BASELINE]
    budgets = _reached(base, AGAINST)
    cases = [(raced, budget) for raced in (False, True) for budget in budgets]
    rows = tuple(
        (name, *(_share(ratio(group, base, budget, raced=raced)) for raced, budget in cases))
        for name, group in policies.items()
        if name != BASELINE
    )
    title = f"Compute to reach plain TPE's regret at {' and '.join(map(str, budgets))}, as a share of TPE's; "
    title += f"{LEVEL:.0%} interval over tasks. Raced: both pay for their race."
    return Sheet(title, ("policy", *(f"{'raced' if raced else 'raw'}, {budget}" for raced, budget in cases)), rows)


def _counts(policies: dict[str, list[Run]]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            name,
            str(len({run.key.task for run in group})),
            str(len(group)),
            f"{np.mean([run.cpu for run in group]):.1f}",
        )
        for name, group in policies.items()
    )


def _regrets(group: list[Run], *, raced: bool) -> list[str]:
    curve = curve_of(group, raced=raced)
    means = curve.regrets.mean(0)
    return [f"{means[curve.at(budget)]:.1f}" if budget in curve.budgets else "" for budget in SHOWN]


def _reached(group: list[Run], budgets: Sequence[int]) -> list[int]:
    curve = curve_of(group, raced=False)
    return [budget for budget in budgets if budget in curve.budgets]


def _worst(policies: dict[str, list[Run]]) -> Sheet:
    """Comparison with the baseline run by run, at larger and at equal compute of the baseline."""
    rows = []
    base = policies[BASELINE]
    for name, group in policies.items():
        for budget, its in ((15, 30), (20, 30), (30, 30)):
            if name == BASELINE or budget not in _reached(group, (budget,)) or its not in _reached(base, (its,)):
                continue
            gained = gains(group, budget, base, its)
            every = np.concatenate(list(gained.values()))
            task, worst = worst_task(gained)
            worse = f"{np.mean(every < -MUCH):.0%}"
            rows.append(
                (
                    name,
                    f"{budget} : {its}",
                    f"{every.mean():+.2f}",
                    worse,
                    f"{every.min():+.1f}",
                    f"{worst.value:+.2f} ({task})",
                )
            )
    title = (
        "Points of accuracy by which the raw choice is better than plain TPE's. "
        "Budgets: full trainings of the policy : of TPE."
    )
    head = ("policy", "budgets", "mean", f"runs worse by {MUCH}", "worst run", "worst task's mean")
    return Sheet(title, head, tuple(rows))


def goals(runs: Sequence[Run], lost: Sequence[Lost], policy: str, halves: Sequence[tuple[str, Measured]] = ()) -> Sheet:
    """The goals of the search, each with its measurement if the files have one.

    Args:
        runs: the replays.
        lost: how often the best candidate is lost.
        policy: the subject of the goals.
        halves: what plain Optuna gains over half of its compute in real searches, with the goal's text.
    """
    rows: list[tuple[str, ...]] = []
    held = by_policy(run for run in runs if run.kind == "lcbench" and run.key.task not in DEV)
    if policy in held and BASELINE in held:
        ours, base = held[policy], held[BASELINE]
        for raced, aims in ((False, (0.33, 0.25)), (True, (0.42, 0.33))):
            choice = "all counted, both choices confirmed by the race" if raced else "search alone, raw choice"
            for budget, aim in zip(AGAINST, aims, strict=True):
                if _reached(base, (budget,)):
                    found = ratio(ours, base, budget, raced=raced)
                    rows.append(_row(f"compute to reach TPE at {budget}, {choice}", aim, found, _share))
        if _reached(ours, (15,)) and _reached(base, (30,)):
            task, worst = worst_task(gains(ours, 15, base, 30))
            rows.append(_row(f"at 15 against TPE at 30: worst held-out task's mean ({task}), points", -0.3, worst))
    tables = by_policy(run for run in runs if run.kind == "opda")
    if policy in tables and BASELINE in tables and _reached(tables[policy], (20,)):
        task, worst = worst_task(gains(tables[policy], 20, tables[BASELINE], 30))
        rows.append(_row(f"ImageNet tables, at 20 against TPE at 30: worst table's mean ({task}), points", -0.3, worst))
    if policy in held:
        tasks = {run.key.task for run in held[policy]}
        for budget in _reached(held[policy], EQUAL):
            peers = {
                name: regret_at(group, budget, raced=False).value
                for name, group in held.items()
                if name in PEERS and _reached(group, (budget,)) and tasks <= {run.key.task for run in group}
            }
            if peers:
                best = min(peers, key=lambda name: peers[name])
                found = difference(held[policy], held[best], budget)
                rows.append(_row(f"regret against the best peer ({best}, {peers[best]:.1f}) at {budget}", 0.0, found))
    for name, all_lost, stopped in _summed(lost):
        text = f"best of {CANDIDATES} not trained to its end at {BUDGET} trainings, {name}"
        also = f"; stopped or waiting {stopped:.0%}"
        rows.append(_row(text, 0.05, all_lost, lambda found, also=also: _interval(found, "{:.0%}") + also))
    rows += [_row(text, 0.0, found) for text, found in halves if found.n > 1]
    return Sheet(f"Goals, policy {policy}.", ("goal", "aim", "measured", "met", "n"), tuple(rows))


def _row(text: str, aim: float, found: Measured, show: Callable[[Measured], str] | None = None) -> tuple[str, ...]:
    at_least = aim < 0
    met = found.value >= aim if at_least else found.value <= aim
    shown = show(found) if show else _interval(found, "{:+.2f}")
    return (text, f"{'at least' if at_least else 'at most'} {aim:g}", shown, "yes" if met else "no", str(found.n))


def _summed(lost: Sequence[Lost]) -> list[tuple[str, Measured, float]]:
    """Per rule and kind of task: its name, the share of draws lost with Wilson's interval, and the share stopped."""
    found = []
    for rule, kind in dict.fromkeys((one.rule, one.kind) for one in lost):
        group = [one for one in lost if (one.rule, one.kind) == (rule, kind)]
        n, k = sum(one.draws for one in group), sum(one.lost for one in group)
        z = NormalDist().inv_cdf((1 + LEVEL) / 2)
        middle = (k + z * z / 2) / (n + z * z)
        half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
        tasks = f"{len(group)} LCBench tasks" if kind == "lcbench" else ", ".join(sorted(one.task for one in group))
        share = Measured(k / n, max(middle - half, 0), min(middle + half, 1), n)
        found.append((f"{rule} ({tasks})", share, sum(one.stopped for one in group) / n))
    return found


def _interval(found: Measured, form: str) -> str:
    return f"{form.format(found.value)} ({form.format(found.low)} to {form.format(found.high)})"


def _share(found: Measured) -> str:
    value, low, high = ("never" if math.isinf(one) else f"{one:.2f}" for one in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"
