"""The table of bench/rungs.py: what rungs say of the end, what they cost, and what a search by them finds.

Every value is judged by the end of one training with another seed, so that all kinds meet the same noise. Intervals
are the middle 90 % over resampled configurations, the same ones for every row.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]

TRUNCATED = 1
"""The way of ``ways_of`` that the others are compared with."""

BUDGETS = (5, 8, 15)
"""Full trainings that a simulated search may spend."""

FACTOR = 3
"""Of so many candidates at a rung, one goes on."""

DRAWN = 12
"""Candidates of which a third is kept."""

RUNS, RESAMPLES = 3000, 200
"""Draws of candidates, and simulated searches; resamples of the configurations, each with a thirtieth of both."""


@dataclass(frozen=True)
class Rung:
    """What is known of each configuration at one point. First axis: two trainings, of seed 0 and of seed 1."""

    name: str
    values: Array
    """[2, n] accuracy here."""
    truth: Array
    """[2, n] accuracy at the end, by another seed."""
    cost: float
    """Full trainings spent on one candidate until here, if there is no rung before."""
    rest: float
    """Full trainings that a survivor costs from here to the end."""


@dataclass(frozen=True)
class Way:
    """A search's rungs, one after the other; the last one is the end."""

    name: str
    values: Array
    """[2, rungs, n]."""
    truth: Array
    """[2, n]."""
    costs: tuple[float, ...]
    """Full trainings from one rung to the next."""


@dataclass(frozen=True)
class Curves:
    """All configurations that have every training."""

    epochs: int
    """Of a full training."""
    cosine: Array
    """[2, n, epochs] of the full trainings."""
    others: dict[tuple[str, int], Array]
    """(kind, epochs) -> [2, n] last accuracies. Where there is one seed, it stands twice."""

    def take(self, chosen: NDArray[np.int64]) -> Curves:
        """These configurations alone."""
        others = {key: values[:, chosen] for key, values in self.others.items()}
        return Curves(self.epochs, self.cosine[:, chosen], others)


def read(files: Iterable[Path], kinds: Collection[str]) -> Curves:
    """Read the trainings of these kinds, a line each. What follows a divergence counts as 0."""
    found: dict[tuple[str, int], dict[int, dict[int, Array]]] = defaultdict(lambda: defaultdict(dict))
    for file in files:
        for line in map(json.loads, file.read_text().splitlines()):
            kind = line.get("kind", "cosine")
            if kind not in kinds:
                continue
            reached = line.get("val_accuracy", [])
            epochs = line.get("epochs", len(reached))
            curve = np.array([*reached, *[0.0] * (epochs - len(reached))])
            found[kind, epochs][line["config"]][line["seed"]] = curve
    full = max(epochs for kind, epochs in found if kind == "cosine")
    needed = {key: 2 if key[0] == "late" or key == ("cosine", full) else 1 for key in found}
    chosen = [
        number
        for number in sorted(found["cosine", full])
        if all(len(found[key].get(number, ())) >= count for key, count in needed.items())
    ]
    if len(chosen) < FACTOR:
        raise SystemExit(f"{len(chosen)} configurations have all their trainings; the table needs {FACTOR}")

    def two(curves: dict[int, Array]) -> list[Array]:
        seeds = sorted(curves)
        return [curves[seeds[0]], curves[seeds[min(1, len(seeds) - 1)]]]

    arrays = {key: np.array([two(found[key][number]) for number in chosen]).swapaxes(0, 1) for key in found}
    cosine = arrays.pop(("cosine", full))
    return Curves(full, cosine, {key: values[:, :, -1] for key, values in arrays.items()})


def shorts_of(curves: Curves, kind: str) -> list[int]:
    """Lengths of the short trainings of a kind."""
    return sorted(epochs for of, epochs in curves.others if of == kind and epochs < curves.epochs)


def rungs_of(curves: Curves) -> list[Rung]:
    """Every point that the data has, and the ends."""
    full, ends = curves.epochs, curves.cosine[:, :, -1]
    other = ends[::-1]
    early = sorted({max(round(full / 9), 2), full // 3, 2 * full // 3})
    rungs = [
        Rung(f"epoch {at} of a cosine of {full}", curves.cosine[:, :, at - 1], other, at / full, 1 - at / full)
        for at in early
    ]
    for short in shorts_of(curves, "cosine"):
        rungs.append(Rung(f"a whole cosine of {short}", curves.others["cosine", short], other, short / full, 1))
    if ("late", full) in curves.others:
        late = curves.others["late", full]
        for short in shorts_of(curves, "late"):
            values, cost = curves.others["late", short], short / full
            rungs.append(Rung(f"a late decay at {short}", values, late[::-1], cost, 1 - cost * 2 / 3))
        rungs.append(Rung(f"the end: a late decay at {full}", late, late[::-1], 1, 0))
    third = full // 3 / full
    for kind, cost in (("warm", 1 + third), ("rest", 1.0)):
        for (of, epochs), values in curves.others.items():
            if of == kind:
                rungs.append(Rung(f"the end: {full // 3}, then {epochs} from its weights", values, ends, cost, 0))
    return [*rungs, Rung(f"the end: a cosine of {full}", ends, other, 1, 0)]


def ways_of(curves: Curves) -> list[Way]:
    """Full trainings alone; truncated rungs from max(round(T/9), 2) to T/2, times 3; then all that the data has."""
    full, ends = curves.epochs, curves.cosine[:, :, -1]
    other = ends[::-1]
    ways = [Way("full trainings", ends[:, None], other, (1.0,))]

    def truncated(at: list[int]) -> Way:
        steps = np.diff([0, *at, full]) / full
        values = np.stack([curves.cosine[:, :, epoch - 1] for epoch in (*at, full)], axis=1)
        return Way(f"truncated at {said(at)}", values, other, tuple(steps))

    at, rung = [], max(round(full / 9), 2)
    while rung <= full / 2:
        at.append(rung)
        rung *= FACTOR
    ways += [truncated(at), truncated([full // 3])] if at != [full // 3] else [truncated(at)]
    shorts = shorts_of(curves, "cosine")
    for lengths in (shorts, shorts[-1:]) if len(shorts) > 1 else (shorts,) if shorts else ():
        before = [curves.others["cosine", short] for short in lengths]
        costs = tuple(short / full for short in lengths)
        ways.append(Way(f"whole in {said(lengths)}, anew", np.stack([*before, ends], 1), other, (*costs, 1.0)))
        for kind in ("warm", "rest"):
            for (of, epochs), last in curves.others.items():
                if of == kind:
                    name = f"whole in {said(lengths)}, {epochs} from its weights"
                    ways.append(Way(name, np.stack([*before, last], 1), ends, (*costs, epochs / full)))
    lates = shorts_of(curves, "late")
    for lengths in (lates, lates[-1:]) if len(lates) > 1 else (lates,) if lates else ():
        points = [*lengths, full]
        # The trunk goes on; each decay, a third of its length, is paid beside it.
        costs = tuple((2 / 3 * (b - a) + b / 3) / full for a, b in zip([0, *lengths], points, strict=True))
        values = np.stack([curves.others["late", point] for point in points], 1)
        ways.append(Way(f"late decay at {said(lengths)}", values, curves.others["late", full][::-1], costs))
    return ways


def said(epochs: Sequence[int]) -> str:
    """The numbers in words."""
    return " and ".join(map(str, epochs))


def correlation(values: Array, truth: Array) -> float:
    """Spearman's rank correlation, the mean over the two seeds; 0 where all are equal."""
    ranks = [(rankdata(a), rankdata(b)) for a, b in zip(values, truth, strict=True)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] if a.std() * b.std() > 0 else 0.0 for a, b in ranks]))


def upper(values: Array, truth: Array) -> float:
    """The same among those whose truth is not below its median."""
    halves = [(a[keep], b[keep]) for a, b in zip(values, truth, strict=True) for keep in [b >= np.median(b)]]
    return float(np.mean([correlation(a[None], b[None]) for a, b in halves]))


def kept(values: Array, truth: Array, draws: int) -> float:
    """Share of draws of DRAWN configurations in which a third is kept by value and the truly best is among them."""
    rng = np.random.default_rng(0)
    count = min(DRAWN, values.shape[1])
    drawn = rng.random((draws, values.shape[1])).argsort(axis=1)[:, :count]
    shares = []
    for value, true in zip(values[:, drawn], truth[:, drawn], strict=True):
        best = np.take_along_axis(value, true.argmax(axis=1)[:, None], axis=1)[:, 0]
        shares.append(np.mean((value > best[:, None]).sum(axis=1) < count // FACTOR))
    return float(np.mean(shares))


def search(way: Way, rng: np.random.Generator) -> list[float]:
    """The truth of what a search has found at each budget.

    Successive halving with promotion, one training after the other: the best paused candidate of the deepest rung where
    it is among the best third goes on, else a random one begins (Li et al., 2020, algorithm 2). What the search has
    found is its best complete training, or the best of the deepest rung.
    """
    n = way.truth.shape[1]
    arrivals, seeds = rng.integers(0, n, 1000), rng.integers(0, 2, 1000)
    at: list[list[tuple[float, int]]] = [[] for _ in way.costs]
    promoted: list[set[int]] = [set() for _ in way.costs]
    spent, begun, found = 0.0, 0, []
    for budget in BUDGETS:
        while True:
            rung, candidate = 0, begun
            for below in reversed(range(len(way.costs) - 1)):
                best = sorted(at[below], reverse=True)[: len(at[below]) // FACTOR]
                paused = [number for _, number in best if number not in promoted[below]]
                if paused:
                    rung, candidate = below + 1, paused[0]
                    break
            if spent + way.costs[rung] > budget + 1e-9:
                break
            spent += way.costs[rung]
            if rung == 0:
                begun += 1
            else:
                promoted[rung - 1].add(candidate)
            at[rung].append((way.values[seeds[candidate], rung, arrivals[candidate]], candidate))
        deepest = next(results for results in reversed(at) if results)
        _, chosen = max(deepest)
        found.append(float(way.truth[seeds[chosen], arrivals[chosen]]))
    return found


def regrets(curves: Curves, searches: int) -> Array:
    """Points of accuracy behind the best mean end of a cosine, [ways, budgets]; the same arrivals for all ways."""
    best = curves.cosine[:, :, -1].mean(axis=0).max()
    return (
        np.array(
            [
                best - np.mean([search(way, np.random.default_rng((1, number))) for number in range(searches)], axis=0)
                for way in ways_of(curves)
            ]
        )
        * 100
    )


def best_third(curves: Curves) -> dict[str, float]:
    """Mean end of the best third in per cent: chosen by one seed, judged by another (warm starts: by their own)."""
    ends = curves.cosine[:, :, -1]
    count = max(1, ends.shape[1] // FACTOR)

    def mean(chosen_by: Array, judged: Array) -> float:
        return float(np.mean([b[np.argsort(-a)[:count]].mean() for a, b in zip(chosen_by, judged, strict=True)])) * 100

    found = {f"a cosine of {curves.epochs}": mean(ends, ends[::-1])}
    for (kind, epochs), values in curves.others.items():
        if kind == "late" and epochs == curves.epochs:
            found[f"a late decay at {epochs}"] = mean(values, values[::-1])
        elif kind in ("warm", "rest"):
            found[f"{curves.epochs // 3}, then {epochs} from its weights"] = mean(ends, values)
    return found


def interval(value: float, resampled: Array, digits: int = 2) -> str:
    """A number and the middle 90 % of its resamples."""
    low, high = np.quantile(resampled, [0.05, 0.95])
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def print_table(files: list[Path], kinds: Collection[str], runs: int = RUNS, resamples: int = RESAMPLES) -> None:
    """Print what the trainings of one task say."""
    curves = read(files, kinds)
    n = curves.cosine.shape[1]
    rng = np.random.default_rng(2)
    samples = [curves.take(rng.integers(0, n, n)) for _ in range(resamples)]
    print(f"n = {n} configurations; full training: {curves.epochs} epochs; intervals: 90 %, bootstrap\n")
    print("| rung | rank correlation | in the upper half | best of 12 kept, % | cost of 12, four to the end |")
    print("| --- | --- | --- | --- | --- |")
    again = [rungs_of(sample) for sample in samples]
    columns: list[tuple[Callable[[Rung, int], float], int]] = [
        (lambda rung, _: correlation(rung.values, rung.truth), 2),
        (lambda rung, _: upper(rung.values, rung.truth), 2),
        (lambda rung, draws: 100 * kept(rung.values, rung.truth, draws), 0),
    ]
    for number, rung in enumerate(rungs_of(curves)):
        cells = [
            interval(column(rung, runs), np.array([column(rungs[number], runs // 30) for rungs in again]), digits)
            for column, digits in columns
        ]
        print(f"| {rung.name} | {' | '.join(cells)} | {DRAWN * rung.cost + DRAWN // FACTOR * rung.rest:.1f} |")

    heads = [f"b = {budget}" for budget in BUDGETS]
    heads += [f"minus truncated, {head}" for head in heads]
    print(f"\n| search, regret in points | {' | '.join(heads)} |")
    print("| --- |" + " --- |" * len(heads))
    found, resampled = regrets(curves, runs), np.array([regrets(sample, runs // 30) for sample in samples])
    for number, way in enumerate(ways_of(curves)):
        cells = [interval(found[number, b], resampled[:, number, b]) for b in range(len(BUDGETS))]
        less, less_again = found[number] - found[TRUNCATED], resampled[:, number] - resampled[:, TRUNCATED]
        cells += ["" if number == TRUNCATED else interval(less[b], less_again[:, b]) for b in range(len(BUDGETS))]
        print(f"| {way.name} | {' | '.join(cells)} |")

    print("\n| training | mean end of the best third, % | minus the cosine's, points |\n| --- | --- | --- |")
    means, means_again = best_third(curves), [best_third(sample) for sample in samples]
    whole = next(iter(means))
    for name, mean in means.items():
        less = np.array([sample[name] - sample[whole] for sample in means_again])
        cells = [interval(mean, np.array([sample[name] for sample in means_again]))]
        cells.append("" if name == whole else interval(mean - means[whole], less))
        print(f"| {name} | {' | '.join(cells)} |")
