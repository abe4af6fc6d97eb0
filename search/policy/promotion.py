"""Decides which candidates go on from a rung, and which are paused there: asynchronous successive halving with
promotion.

This is the promotion type of ASHA: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020,
algorithm 2. A candidate that has reached a rung goes on once it is in the best 1 / factor of all that have reached it.
No worker waits for other candidates, and no candidate is lost: a paused candidate goes on if later ones turn out to be
worse.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort

from search.policy.ladder import Ladder


class Promotion:
    """Decides by the standings at all rungs, which do not depend on the order in which candidates have reached a rung.

    Args:
        ladder: the rungs.
        factor: at each rung, one of this many candidates goes on.
    """

    def __init__(self, ladder: Ladder, factor: int) -> None:
        self.ladder, self.factor = ladder, factor
        self._arrived: list[dict[int, float]] = [{} for _ in ladder.rungs]
        """For each rung, the candidates that have reached it: number -> -value, infinity if it diverged before it."""
        self._alive: list[list[tuple[float, int]]] = [[] for _ in ladder.rungs]
        """For each rung, the candidates that have reached it and not ended early, as (-value, number), best first."""
        self.paused: dict[int, int] = {}
        """Number of a paused candidate -> its rung, from 0."""
        self._ready: dict[int, list[int]] = {}
        """``at_least`` -> the paused candidates that may go on. Kept until the standings change, because a search asks
        several times in each turn."""

    def arrive(self, number: int, step: int, value: float) -> bool:
        """Record that a candidate has reached a rung. A second call changes nothing.

        Args:
            number: the candidate.
            step: the step of the rung. If ``patience`` ended the training before the rung: the last step.
            value: the value of the candidate there.

        Returns:
            Whether the candidate goes on: it is in the best 1 / factor of those that have reached the rung.
        """
        rung = bisect_left(self.ladder.rungs, step)
        self._note(number, rung, value)
        place = self._place(rung, number)
        return place is not None and place < self._places(rung, at_least=0)

    def complete(self, number: int, value: float) -> None:
        """Record that a candidate has reached its end, and with it all rungs."""
        for rung in range(len(self._arrived)):
            self._note(number, rung, value)

    def end_early(self, number: int, *, diverged: bool = False) -> None:
        """Record that a candidate has ended early. It no longer takes a place among the best.

        Args:
            number: the candidate.
            diverged: whether the candidate diverged; it then counts as the worst at its next rung.
        """
        self._ready.clear()
        self.paused.pop(number, None)
        for rung, (arrived, alive) in enumerate(zip(self._arrived, self._alive, strict=True)):
            if number in arrived:
                if (place := self._place(rung, number)) is not None:
                    del alive[place]
            elif diverged:
                arrived[number] = math.inf
                break

    def pause(self, number: int, step: int) -> None:
        """Record that a candidate is paused at the rung of this step. From now on it may be promoted."""
        self._ready.clear()
        self.paused[number] = bisect_left(self.ladder.rungs, step)

    def promote(self, number: int) -> None:
        """Record that a paused candidate was promoted."""
        self._ready.clear()
        self.paused.pop(number, None)

    def next(self, at_least: int = 0) -> int | None:
        """The candidate to promote: the best that may go on, at the highest rung with such a candidate; None without
        one.

        Args:
            at_least: number of candidates that may go on from each rung, even if few have reached the rung.
        """
        return next(iter(self._may_go_on(at_least)), None)

    def promotable(self, at_least: int = 0) -> int:
        """Number of paused candidates that may go on now; ``at_least`` as for ``next``."""
        return len(self._may_go_on(at_least))

    def order(self) -> list[int]:
        """Numbers of the paused candidates; the one most likely to be promoted comes first."""
        return [
            number
            for rung in reversed(range(len(self._alive)))
            for _, number in self._alive[rung]
            if self.paused.get(number) == rung
        ]

    def _may_go_on(self, at_least: int) -> list[int]:
        if at_least not in self._ready:
            self._ready[at_least] = [
                number
                for rung in reversed(range(len(self._alive)))
                for _, number in self._alive[rung][: self._places(rung, at_least)]
                if self.paused.get(number) == rung
            ]
        return self._ready[at_least]

    def _note(self, number: int, rung: int, value: float) -> None:
        if number not in self._arrived[rung]:
            self._ready.clear()
            self._arrived[rung][number] = -value
            insort(self._alive[rung], (-value, number))

    def _place(self, rung: int, number: int) -> int | None:
        """The place of a candidate at a rung that it has reached, from 0; None if it has ended early."""
        alive, entry = self._alive[rung], (self._arrived[rung][number], number)
        place = bisect_left(alive, entry)
        return place if place < len(alive) and alive[place] == entry else None

    def _places(self, rung: int, at_least: int) -> int:
        """Number of candidates that go on from a rung."""
        return max(at_least, len(self._arrived[rung]) // self.factor)
