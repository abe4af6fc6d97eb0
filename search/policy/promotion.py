"""Which candidates go on from a rung, and which wait there: asynchronous successive halving that pauses.

The promotion type of ASHA: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, algorithm 2.
A candidate that came to a rung goes on once it is in the best 1 / factor of all that came there. Nobody waits for
others to arrive, and nobody is lost: a candidate that waits goes on when later ones turn out to be worse.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from search.policy.ladder import Ladder


class Promotion:
    """The standings at all rungs. What it answers depends on who has arrived, and not on their order.

    Args:
        ladder: the rungs.
        factor: at each rung one of so many goes on.
    """

    def __init__(self, ladder: Ladder, factor: int) -> None:
        self.ladder, self.factor = ladder, factor
        self._arrived: list[set[int]] = [set() for _ in ladder.rungs]
        self._alive: list[list[tuple[float, int]]] = [[] for _ in ladder.rungs]
        """Those that have not left, as (-value, number), best first."""
        self.waiting: dict[int, int] = {}
        """Number of a candidate that waits -> its rung, from 0."""

    def arrive(self, number: int, step: int, value: float) -> bool:
        """A candidate comes to a rung. A second call changes nothing.

        Args:
            number: the candidate.
            step: a step of the training that leads to the rung.
            value: with which it comes.

        Returns:
            Whether it goes on: it is in the best 1 / factor of those that came there.
        """
        rung = bisect_left(self.ladder.rungs, step)
        self._note(number, rung, value)
        return any(number == one for _, one in self._best(rung, at_least=0))

    def complete(self, number: int, value: float) -> None:
        """A candidate has come to its end, and so past all rungs."""
        for rung in range(len(self._arrived)):
            self._note(number, rung, value)

    def leave(self, number: int, *, diverged: bool = False) -> None:
        """A candidate has ended before its time. It holds nobody's place any more.

        Args:
            number: the candidate.
            diverged: it counts as the last at the next rung, since its settings brought it there.
        """
        self.waiting.pop(number, None)
        for arrived, alive in zip(self._arrived, self._alive, strict=True):
            if number in arrived:
                alive[:] = [entry for entry in alive if entry[1] != number]
            elif diverged:
                arrived.add(number)
                break

    def wait(self, number: int, step: int) -> None:
        """A candidate waits at the rung of this step, and may be promoted from now on."""
        self.waiting[number] = bisect_left(self.ladder.rungs, step)

    def go(self, number: int) -> None:
        """A candidate no longer waits."""
        self.waiting.pop(number, None)

    def next(self, at_least: int = 0) -> int | None:
        """The candidate to promote: of the deepest rung that has one, the best. None where nobody may go on.

        Args:
            at_least: so many may go on at each rung, however few have come there.
        """
        return next(self._may_go_on(at_least), None)

    def promotable(self, at_least: int = 0) -> int:
        """Number of candidates that may go on now; ``at_least`` as for ``next``."""
        return sum(1 for _ in self._may_go_on(at_least))

    def order(self) -> list[int]:
        """Those that wait, the likeliest to be promoted first."""
        return [
            number
            for rung in reversed(range(len(self._alive)))
            for _, number in self._alive[rung]
            if self.waiting.get(number) == rung
        ]

    def _may_go_on(self, at_least: int) -> Iterator[int]:
        for rung in reversed(range(len(self._alive))):
            for _, number in self._best(rung, at_least):
                if self.waiting.get(number) == rung:
                    yield number

    def _note(self, number: int, rung: int, value: float) -> None:
        if number not in self._arrived[rung]:
            self._arrived[rung].add(number)
            insort(self._alive[rung], (-value, number))

    def _best(self, rung: int, at_least: int) -> list[tuple[float, int]]:
        return self._alive[rung][: max(at_least, len(self._arrived[rung]) // self.factor)]
