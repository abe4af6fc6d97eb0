"""How often the best of some random candidates is not trained to its end: the loss of the stopping rule alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from quality import optuna_peers as peers
from quality import ours
from quality.curves import Kind, Params, Task
from quality.optuna_peers import OptunaSubject
from quality.ours import PromoteSubject
from quality.replay import Search, Subject

CANDIDATES = 60
BUDGET = 15
"""Full trainings."""


@dataclass(frozen=True)
class Lost:
    """The losses of a rule on a task."""

    rule: str
    task: str
    kind: Kind
    draws: int
    stopped: int
    """Draws in which the candidate with the best mean accuracy at the end was pruned or is paused."""
    training: int
    """Draws in which it was still being trained."""
    unbegun: int
    """Draws in which it had not begun."""

    @property
    def lost(self) -> int:
        """Draws in which it was not trained to its end."""
        return self.stopped + self.training + self.unbegun

    def line(self) -> str:
        """The result as a line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))


class Listed(BaseSampler):
    """A sampler that suggests given settings one after the other."""

    def __init__(self, settings: Sequence[Params]) -> None:
        self._settings = settings

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: object) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: object) -> Any:
        return self._settings[trial.number][param_name]


RULES: dict[str, Callable[[Listed], Subject]] = {
    "promote": lambda listed: PromoteSubject(lambda seed, ladder: listed, ours.truncated, CANDIDATES),
    "promote_anew": lambda listed: PromoteSubject(lambda seed, ladder: listed, ours.anew, CANDIDATES),
    "halving": lambda listed: OptunaSubject(lambda seed: listed, peers.halving, CANDIDATES),
}
"""The product's rule, with rungs on the way or a training for each rung; Optuna's successive halving from epoch 1."""


def lost_best(rule: str, task: Task, draws: int, workers: int) -> Lost:
    """Draw candidates, run the rule until the budget is spent or nothing is left to train, and count the losses."""
    counts = {"stopped": 0, "training": 0, "unbegun": 0}
    for draw in range(draws):
        drawn = task.sample(np.random.default_rng((draw, CANDIDATES)), CANDIDATES)
        search = Search(RULES[rule](Listed(drawn)), task, draw, workers)
        while search.spent < BUDGET and not search.over:
            search.step()
        best = max(range(CANDIDATES), key=lambda number: task.truth(drawn[number]))
        if best >= len(search.candidates):
            counts["unbegun"] += 1
        elif search.is_training(best):
            counts["training"] += 1
        elif len(search.candidates[best].values) < search.subject.ladder.last_step:
            counts["stopped"] += 1
    return Lost(rule, task.name, task.kind, draws, **counts)


def read(files: Sequence[Path]) -> list[Lost]:
    """The results of this kind in some files."""
    lines = (line for file in files for line in file.read_text().splitlines() if '"rule"' in line)
    return [Lost(**json.loads(line)) for line in lines]
