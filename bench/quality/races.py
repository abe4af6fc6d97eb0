"""What a race for the export costs in quality, and whether its report is true: simulated choices.

A search has tried N candidates. The true values of the candidates are the best one's minus an exponential variable of
mean ``spread``, in units of sigma, the standard deviation of one training's noise. The search has seen each once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search.policy.race import FIXED, LONG, REPORT_SEEDS, SHORT, Entrant, Rounds, cost, standing

SPREADS = (0.5, 1.0, 3.0, 10.0)

CASES: dict[str, tuple[Rounds, int]] = {
    "five with three seeds, after 6 complete": ((FIXED,), 6),
    "3 > 2, after 6 complete": (SHORT, 6),
    "five with three seeds, after 12 complete": ((FIXED,), 12),
    "4 > 2, after 12 complete": (LONG, 12),
    "five with three seeds, after 30 complete": ((FIXED,), 30),
    "4 > 2, after 30 complete": (LONG, 30),
}
"""Case -> its rounds, and the number of complete candidates of the search."""


@dataclass(frozen=True)
class Choice:
    """One simulated choice, in units of sigma."""

    regret: float
    """How much the chosen candidate is worse than the best one that was tried."""
    chosen_by: float
    """Mean over the seeds that chose it, minus the truth."""
    reported: float
    """Mean over the seeds that had no part in the choice, minus the truth."""


def choose(rounds: Rounds, candidates: int, spread: float, rng: np.random.Generator) -> Choice:
    """Simulate one search and the race after it."""
    truth = -rng.exponential(spread, candidates)
    seen = truth + rng.normal(size=candidates)
    is_race = len(rounds) > 1
    order = np.argsort(-seen)[: rounds[0].keep]
    entrants = [Entrant(int(one), float(seen[one]) if is_race else None, 0) for one in order]
    results: dict[int, dict[int, float | None]] = {}
    while todo := standing(entrants, rounds, results).todo:
        for number, seed in todo:
            results.setdefault(number, {})[seed] = float(truth[number] + rng.normal())
    winner = standing(entrants, rounds, results).alive[0]
    values = [value for value in results[winner].values() if value is not None]
    report = float(np.mean(truth[winner] + rng.normal(size=REPORT_SEEDS)))
    return Choice(float(truth.max() - truth[winner]), float(np.mean(values)) - truth[winner], report - truth[winner])


def table(draws: int, seed: int = 0) -> str:
    """The table of all cases in Markdown; a number has the half width of its 95 % interval."""
    lines = [
        "| confirmation | spread | trainings | regret | the seeds that chose claim | what is reported claims |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (rounds, candidates) in CASES.items():
        for spread in SPREADS:
            rng = np.random.default_rng((seed, candidates, round(10 * spread), len(rounds)))
            found = [choose(rounds, candidates, spread, rng) for _ in range(draws)]
            cells = [_mean([getattr(one, key) for one in found]) for key in ("regret", "chosen_by", "reported")]
            number = cost(rounds, candidates)
            lines.append(f"| {name} | {spread:g} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):+.3f} +- {1.96 * np.std(values, ddof=1) / len(values) ** 0.5:.3f}"
