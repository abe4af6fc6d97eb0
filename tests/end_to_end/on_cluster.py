"""What a search on a cluster keeps, whatever ended its workers, nodes and coordinator: the same for every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from desk import STEADY, Answer, Desk, Running
from optuna.trial import FrozenTrial

STUDY = f"""
{STEADY}
[confirm]
top = 2
seeds = 1
report_seeds = 1

[final]
formats = ["pt2"]

[cluster]
threads = 1
"""
"""Three trainings and the one format that costs little to write."""


@dataclass
class Disturbed:
    """A search on a cluster that was disturbed, and its export, in which a worker was killed."""

    desk: Desk
    gpus: str
    trials: int
    environment: dict[str, str]
    """What a command needs to use the cluster."""
    left_behind: list[Any] = field(default_factory=list)
    """Workers, or their jobs, that were there some seconds after the coordinator was killed."""
    first: Answer | None = None
    last: Answer | None = None
    exported: Answer | None = None
    here: Answer | None = None
    """The export of a copy of the search, on this machine and undisturbed."""

    @property
    def copy(self) -> Desk:
        """Where the copy is exported."""
        return Desk(self.desk.folder.with_name(f"{self.desk.folder.name}-copy"))

    def launch(self) -> Running:
        """Begin the search, or go on with it."""
        words = ("launch", self.desk.write("steady.toml", STUDY), "--gpus", self.gpus, "--trials", self.trials)
        return self.desk.start(*words, **self.environment)

    def export(self, workers: Callable[[], list[psutil.Process]]) -> None:
        """Export on the cluster, and kill the worker of the first training; meanwhile, export a copy here."""
        copy = self.desk.copy(self.copy.folder)
        here = copy.start("export-best", "steady", "--gpus", "cpu")
        there = self.desk.start("export-best", "steady", "--gpus", self.gpus, **self.environment)
        try:
            finals = self.desk.runs / "studies/steady/final"
            there.until(lambda: any(finals.glob("*/checkpoint")))
            for worker in workers():
                worker.kill()
            self.exported, self.here = there.wait(), here.wait()
        finally:
            copy.clear()


class EndsInEveryWay:
    """Tests of a module that has a fixture ``disturbed``."""

    def compare(self, disturbed: Disturbed, uninterrupted: list[FrozenTrial]) -> None:
        """Every trial is what it would have been on one machine, if nothing had ended."""
        assert disturbed.last is not None
        assert disturbed.last.code == 0, disturbed.last
        trials, alone = disturbed.desk.trials("steady"), uninterrupted[: disturbed.trials]
        assert [trial.params for trial in trials] == [trial.params for trial in alone]
        assert [trial.intermediate_values for trial in trials] == [one.intermediate_values for one in alone]

    def test_a_killed_coordinator_leaves_no_worker(self, disturbed: Disturbed) -> None:
        assert disturbed.left_behind == []

    def test_the_search_can_be_replayed(self, disturbed: Disturbed) -> None:
        assert disturbed.desk.inside("replay", "steady", "--json").json()["identical"]

    def test_an_export_on_the_cluster_is_that_of_one_machine(self, disturbed: Disturbed) -> None:
        assert disturbed.exported is not None
        assert disturbed.here is not None
        assert disturbed.exported.code == 0, disturbed.exported
        assert disturbed.here.code == 0, disturbed.here
        assert "ended with signal 9; trial " in disturbed.exported.out
        assert "3 trainings" in disturbed.exported.out
        there, here = (_export_in(desk.runs) for desk in (disturbed.desk, disturbed.copy))
        assert (there / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()
        metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (there, here)]
        own = {"created", "measured_on_this_machine"}
        assert {name for name in metrics[0] if metrics[0][name] != metrics[1].get(name)} <= own


def _export_in(runs: Path) -> Path:
    (folder,) = (runs / "exports").glob("steady-*")
    return folder
