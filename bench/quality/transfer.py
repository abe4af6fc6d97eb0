"""Whether recipes of earlier studies help a new one: searches of LCBench's held-out tasks with and without them.

Each task but the new one has an earlier study: a search of the product, with its own best candidate as the recipe. The
nearest studies give the recipes, by the product's own distance; a table has a number of columns, not of pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from quality import ours
from quality.curves import Params, Task
from quality.folder import DEV, HELD
from quality.ours import PromoteSubject
from quality.replay import Look, Search
from quality.subjects import model
from search.study.transfer import DataSize

DATA_SIZE = {
    "7593": DataSize(classes=7, image_size=54, pictures=581_012),
    "34539": DataSize(classes=2, image_size=9, pictures=32_769),
    "126029": DataSize(classes=2, image_size=16, pictures=45_211),
    "146212": DataSize(classes=7, image_size=9, pictures=58_000),
    "167161": DataSize(classes=2, image_size=20, pictures=1_000),
    "167168": DataSize(classes=4, image_size=18, pictures=846),
    "167201": DataSize(classes=3, image_size=42, pictures=67_557),
    "168330": DataSize(classes=4, image_size=54, pictures=83_733),
    "168331": DataSize(classes=10, image_size=180, pictures=58_310),
    "168910": DataSize(classes=7, image_size=800, pictures=8_237),
    "189862": DataSize(classes=2, image_size=144, pictures=2_984),
    "189905": DataSize(classes=4, image_size=6, pictures=1_728),
    "189906": DataSize(classes=7, image_size=19, pictures=2_310),
    "189908": DataSize(classes=10, image_size=784, pictures=70_000),
}
"""Task -> classes, columns and rows of its data set. OpenML's names: covertype, Amazon_employee_access,
bank-marketing, Shuttle, credit-g, vehicle, connect-4, jannis, volkert, fabert, jasmine, car, segment, Fashion-MNIST.
"""

TRANSFER = 3
"""Number of recipes that are taken over."""

EARLIER = 30
"""Full trainings of an earlier study."""

BUDGETS = (3, 5, 8, 15)
"""Full trainings after which the new search is looked at."""

WORKERS = 4


class Warm(PromoteSubject):
    """The product's search with recipes that are tried first."""

    def __init__(self, recipes: Sequence[Params]) -> None:
        super().__init__(model, ours.truncated)
        self.recipes = recipes

    def begin(self, task: Task, seed: int) -> None:
        super().begin(task, seed)
        for recipe in self.recipes:
            self._study.enqueue_trial(dict(recipe))


@dataclass(frozen=True)
class Compared:
    """A new search of one task, once without and once with recipes of earlier studies."""

    task: str
    scale: float
    """Points of accuracy between median random settings and the best ones; they are a regret of 100."""
    cold: tuple[float, ...]
    """At each of BUDGETS: points between the best complete candidate and the best settings."""
    warm: tuple[float, ...]


def seed_of(task: str, run: int, what: str) -> int:
    """A seed of 31 bits."""
    return zlib.crc32(f"{task} {run} {what}".encode()) // 2


def recipe_of(task: Task, run: int) -> Params:
    """The best candidate of an earlier study."""
    search = Search(PromoteSubject(model, ours.truncated), task, seed_of(task.name, run, "earlier"), WORKERS)
    search.run(EARLIER)
    return search.finalists()[0].params


def compare(tasks: Mapping[str, Task], run: int, *, nearest: bool = True) -> list[Compared]:
    """Search each held-out task twice. ``nearest``: recipes of the nearest studies, else of the farthest."""
    recipes = {name: recipe_of(task, run) for name, task in tasks.items()}
    found = []
    for name in HELD:
        task, own = tasks[name], DATA_SIZE[name]
        others = sorted((one for one in tasks if one != name), key=lambda one: own.distance(DATA_SIZE[one]))
        chosen = others[:TRANSFER] if nearest else others[-TRANSFER:]
        subjects = {"cold": PromoteSubject(model, ours.truncated), "warm": Warm([recipes[one] for one in chosen])}
        raw = {
            how: _at(Search(subject, task, seed_of(name, run, "new"), WORKERS).run(BUDGETS[-1]))
            for how, subject in subjects.items()
        }
        found.append(Compared(name, task.best - task.median, raw["cold"], raw["warm"]))
    return found


def _at(looks: Sequence[Look]) -> tuple[float, ...]:
    return tuple(look.raw for look in looks if look.budget in BUDGETS)


def table(found: Sequence[Compared]) -> str:
    """The regret of both searches, and the points gained on each task, in Markdown."""
    lines = [f"| full trainings | {' | '.join(map(str, BUDGETS))} |", "| --- |" + " --- |" * len(BUDGETS)]
    means = {how: [_regret(found, how, at) for at in range(len(BUDGETS))] for how in ("cold", "warm")}
    for how, words in (("cold", "regret without earlier studies"), ("warm", f"with {TRANSFER} recipes of them")):
        lines.append(f"| {words} | {' | '.join(f'{one:.1f}' for one in means[how])} |")
    ratios = [warm / cold for cold, warm in zip(means["cold"], means["warm"], strict=True)]
    lines.append(f"| with : without | {' | '.join(f'{one:.2f}' for one in ratios)} |")
    for task in dict.fromkeys(one.task for one in found):
        own = [one for one in found if one.task == task]
        gained = [fmean([one.cold[at] - one.warm[at] for one in own]) for at in range(len(BUDGETS))]
        lines.append(f"| points gained, task {task} | {' | '.join(f'{one:+.2f}' for one in gained)} |")
    return "\n".join(lines)


def _regret(found: Sequence[Compared], how: str, at: int) -> float:
    return fmean([100 * getattr(one, how)[at] / one.scale for one in found])


TASKS = ",".join((*DEV, *HELD))
"""The tasks with earlier studies."""
