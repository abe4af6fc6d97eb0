"""A race: the best candidates are trained again with fresh seeds; the worse ones leave, the others get more seeds.

A race is sequential halving on few candidates: Karnin, Koren and Somekh, "Almost Optimal Exploration in Multi-Armed
Bandits", ICML 2013, with rounds that were chosen by simulation (bench/commands.md, "The race").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from studies import Confirm


@dataclass(frozen=True)
class Round:
    """A round of a race."""

    keep: int
    """Number of candidates that take part: the best so far."""
    seeds: int
    """Number of fresh seeds that each of them has after this round."""


Rounds = tuple[Round, ...]

SHORT: Rounds = (Round(3, 1), Round(2, 2))
"""The race after a search of less than ``LONG_FROM`` full trainings; it takes 5 trainings."""

LONG: Rounds = (Round(4, 1), Round(2, 3))
"""The race after a longer search; it takes 8 trainings."""

REPORT_SEEDS = 2
"""Number of further seeds that measure the winner of a race."""

FIXED = Round(5, 3)
"""If a study file names ``top`` or ``seeds``, there is one round. It has these values for what is not named: 5
candidates, 3 seeds."""

LONG_FROM = 30
"""Searches of at least this many full trainings have the longer race."""


@dataclass(frozen=True)
class Entrant:
    """A candidate of a race."""

    number: int
    claim: float | None
    """The candidate's value in the search, which counts in the mean like the value of a seed; None if the candidate was
    not completed."""
    size: int
    """Number of parameters. If two candidates have the same score, the smaller one ranks higher."""


@dataclass(frozen=True)
class Standing:
    """A race as it is now."""

    alive: tuple[int, ...]
    """Numbers of the candidates that are left. After the race they are ranked, the best first."""
    todo: tuple[tuple[int, int], ...]
    """The trainings of the present round that have no result yet, as (candidate, number of the seed from 0). Empty
    after the race."""


def rounds_for(confirm: Confirm, trainings: float) -> Rounds:
    """The rounds in which a study's best trials are trained again; none if the confirmation is off.

    Args:
        confirm: the [confirm] of the study file.
        trainings: full trainings that the search has spent, or may spend.
    """
    if confirm.is_off:
        return ()
    if confirm.is_race:
        return LONG if trainings >= LONG_FROM else SHORT
    return (Round(confirm.top or FIXED.keep, confirm.seeds or FIXED.seeds),)


def report_seeds_of(confirm: Confirm) -> int:
    """Number of further seeds that measure the winner."""
    if confirm.is_off:
        return 0
    if confirm.report_seeds is None:
        return REPORT_SEEDS if confirm.is_race else 0
    return confirm.report_seeds


def costs(rounds: Rounds, entrants: int) -> list[int]:
    """Number of trainings of each round of a race with this many entrants, if none diverges."""
    before = (0, *(one.seeds for one in rounds))
    return [min(one.keep, entrants) * (one.seeds - known) for one, known in zip(rounds, before, strict=False)]


def cost(rounds: Rounds, entrants: int) -> int:
    """Number of trainings of a race with this many entrants, if none diverges."""
    return sum(costs(rounds, entrants))


def standing(
    entrants: Sequence[Entrant], rounds: Rounds, results: Mapping[int, Mapping[int, float | None]]
) -> Standing:
    """The candidates that are left in a race, and the trainings to do next.

    Args:
        entrants: the candidates, the one with the best prospects first.
        rounds: the rounds of the race.
        results: candidate -> number of the seed -> value; None if that training diverged. A candidate with a training
            that diverged leaves the race.
    """
    known = {one.number: results.get(one.number, {}) for one in entrants}
    claims, sizes = {one.number: one.claim for one in entrants}, {one.number: one.size for one in entrants}
    alive = [one.number for one in entrants]
    for one in rounds:
        alive = alive[: one.keep]
        sound = [number for number in alive if all(value is not None for value in known[number].values())]
        todo = [(number, seed) for seed in range(one.seeds) for number in sound if seed not in known[number]]
        if todo:
            return Standing(tuple(alive), tuple(todo))
        scores = {number: _score(known[number], one.seeds, claims[number]) for number in sound}
        alive = sorted(sound, key=lambda number: (-scores[number], sizes[number]))
    return Standing(tuple(alive), ())


def _score(results: Mapping[int, float | None], seeds: int, claim: float | None) -> float:
    fresh = [value for seed, value in sorted(results.items()) if seed < seeds and value is not None]
    if not fresh:
        return -math.inf
    return round(fmean(fresh if claim is None else [*fresh, claim]), 9)  # equal results could differ in the last bit
