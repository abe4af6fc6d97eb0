"""Whole searches with real training: ``search launch`` beside plain Optuna, with our trainer as its objective.

Recipe and space are those of bench/rungs.py. The searchers get the same space (of ``search.plan.space``), trainer,
pictures, seed and number of threads, and no known recipes:

- ``launch``: the command, with its default sampler and pruner. Each budget is a search of its own.
- ``optuna``: TPESampler and MedianPruner with their defaults, in this process, a value after each epoch. Optuna knows
  no budget of compute, so a search of a larger budget is also one of each smaller budget: it is looked at when the
  budget is spent and the candidate in progress has ended, so it may spend a little more.

The choice of a search is its best complete candidate by its own value. It is judged by the mean accuracy at the end of
five further trainings with fresh seeds. In a repetition these seeds are the same for all choices.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from scipy.stats import t as student

from bench import rungs
from quality.measure import LEVEL, Measured
from quality.report import Sheet

DIGITS = rungs.TASKS["digits500"]
TASKS = {
    "digits": replace(DIGITS, data=DIGITS.data | {"image_size": 16}),
    "cifar1000": rungs.TASKS["cifar1000"],
}
"""The digits are 500 to train on and 897 to validate; CIFAR-10 is 1,000 and 1,000. At 16 px a training of the digits
takes half as long as at 32."""

ROOT = Path(__file__).parents[2]
FRESH_SEEDS = 5
"""Further trainings of each choice."""
FRESH = 1_000_000
"""Added to the study's seed for them, so that no search has trained with their seeds."""
HALF = {8: 15, 15: 30}
"""Our budget -> Optuna's, about twice as large."""

LAUNCH, OPTUNA = "launch", "optuna"


@dataclass(frozen=True)
class Key:
    """Identity of a search."""

    searcher: str
    task: str
    budget: int
    """Full trainings."""
    run: int
    """Number of the repetition, which is the study's seed."""


@dataclass(frozen=True)
class Chosen:
    """A search at its end, with its choice."""

    spent: float
    """Full trainings really spent."""
    cpu: float
    """CPU seconds of the search, with start and bookkeeping."""
    candidates: int
    complete: int
    params: dict[str, float]
    claimed: float
    """The choice's accuracy in the search."""


@dataclass(frozen=True)
class Judged:
    """A search whose choice was trained again."""

    key: Key
    chosen: Chosen
    truth: tuple[float, ...]
    """Accuracy at the end of each further training."""

    @property
    def mean(self) -> float:
        """The choice's mean accuracy in per cent."""
        return 100 * float(np.mean(self.truth))

    def line(self) -> str:
        """The search as a line of JSON."""
        return json.dumps(asdict(self.key) | asdict(self.chosen) | {"truth": self.truth})


def judged_of(line: str) -> Judged:
    """The inverse of ``Judged.line``."""
    values = json.loads(line)
    key, chosen = ({name: values[name] for name in kind.__annotations__} for kind in (Key, Chosen))
    return Judged(Key(**key), Chosen(**chosen), tuple(values["truth"]))


def read(files: Iterable[Path]) -> list[Judged]:
    """The searches in some files."""
    return [judged_of(line) for file in files for line in file.read_text().splitlines() if '"searcher"' in line]


# ---------------------------------------------------------------- the searches
@dataclass(frozen=True)
class Place:
    """The task and the folders of some searches.

    Args:
        task: name of one of TASKS.
        pictures: folder with train/ and val/; None for the digits.
        folder: gets study files, caches and the runs folder.
    """

    task: str
    pictures: Path | None
    folder: Path

    def study(self, run: int) -> Path:
        """Write the study file of a repetition."""
        task = TASKS[self.task]
        where = {} if self.pictures is None else {"path": str(self.pictures)}
        train = {"model": "resnet10t", "batch_size": 32, "optimizer": "adamw", "schedule": "cosine"}
        train |= {"warmup_epochs": 1, "epochs": task.epochs} | task.recipe
        lines = [f"seed = {run}"]
        for name, table in (("data", task.data | where), ("train", train)):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        lines.append("[space]")
        for key, low in rungs.LOW.items():
            log = ", log = true" if key in rungs.LOGARITHMIC else ""
            lines.append(f"{key} = {{ low = {low}, high = {rungs.HIGH[key]}{log} }}")
        file = self.folder / f"{self.task}-{run}.toml"
        file.write_text("\n".join(lines) + "\n")
        return file


def by_launch(place: Place, run: int, budget: int) -> Chosen:
    """Search with ``search launch``.

    Raises:
        RuntimeError: the command failed.
    """
    name, study = f"{place.task}-{run}-{budget}", place.study(run)
    command = [sys.executable, "-m", "search", "launch", str(study), "--set", f"name={name}", "--gpus", "cpu"]
    command += ["--trainings", str(budget), "--runs", str(place.folder / "runs"), "--json", "-q"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("SEARCH_STORAGE", None)
    before = _children()
    done = subprocess.run(command, capture_output=True, text=True, cwd=place.folder, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr[-500:]}")
    answer = json.loads(done.stdout)
    best, spent = answer["best"], answer["spent"]
    return Chosen(
        spent=round(spent["trainings"], 3),
        cpu=round(_children() - before, 1),
        candidates=spent["begun"],
        complete=spent["complete"],
        params=best["params"],
        claimed=round(best["value"], 5),
    )


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Training:
    """Our trainer for a task, in this process.

    Args:
        place: the task and its folders.
        run: number of the repetition.
    """

    def __init__(self, place: Place, run: int) -> None:
        import torch

        from search.paths import Runs
        from search.plan.space import find_bounds
        from studies import load
        from trainer.data import prepare_data
        from trainer.device import open_device

        torch.set_num_threads(1)
        self.spec = load(str(place.study(run)))
        self.data = prepare_data(self.spec.data, place.folder / "cache")
        self.device = open_device("cpu", 1)
        self.space = find_bounds(self.spec, self.data.shape.num_classes, Runs(place.folder / "runs")).space
        self._known: dict[str, tuple[float, ...]] = {}

    @property
    def epochs(self) -> int:
        """Length of a full training."""
        return self.spec.train.epochs

    def accuracies(self, params: dict[str, Any], seed: int) -> Iterator[float]:
        """Train; yield the validation accuracy after each epoch, of which there are none once it has diverged."""
        from trainer.errors import DivergedError
        from trainer.fit import fit

        try:
            for result in fit(self.spec.config_for(params, seed), self.data, self.device):
                yield result.val_accuracy
        except DivergedError:
            return

    def truth(self, params: dict[str, Any]) -> tuple[float, ...]:
        """Accuracy at the end of each further training; 0 if it diverged. Remembered, as two searches may agree."""
        from search.study.sampling import seed_of

        name = json.dumps(params, sort_keys=True)
        if name not in self._known:
            seeds = [seed_of(self.spec.seed + FRESH, number) for number in range(FRESH_SEEDS)]
            curves = [list(self.accuracies(params, seed)) for seed in seeds]
            self._known[name] = tuple(round(curve[-1], 5) if len(curve) == self.epochs else 0.0 for curve in curves)
        return self._known[name]


def by_optuna(training: Training, budgets: Sequence[int]) -> dict[int, Chosen]:
    """Search with plain Optuna until the largest budget is spent; look at it at each of them."""
    from search.study.sampling import seed_of

    begun, epochs, looks = time.process_time(), 0, dict[int, Chosen]()
    study = optuna.create_study(
        direction="maximize", sampler=TPESampler(seed=training.spec.seed), pruner=MedianPruner()
    )
    while len(looks) < len(budgets):
        trial = study.ask(training.space)
        curve: list[float] = []
        for value in training.accuracies(trial.params, seed_of(training.spec.seed, trial.number)):
            curve.append(value)
            trial.report(value, len(curve))
            if len(curve) < training.epochs and trial.should_prune():
                break
        epochs += len(curve)
        if len(curve) == training.epochs:
            study.tell(trial, curve[-1])
        else:  # pruned or diverged
            study.tell(trial, state=TrialState.PRUNED)
        spent = epochs / training.epochs
        complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        for budget in budgets:
            if budget not in looks and spent >= budget and complete:
                best = study.best_trial
                looks[budget] = Chosen(
                    spent=round(spent, 3),
                    cpu=round(time.process_time() - begun, 1),
                    candidates=len(study.trials),
                    complete=len(complete),
                    params=best.params,
                    claimed=round(best.values[0], 5),
                )
    return looks


def search_all(place: Place, budgets: Sequence[int], runs: range, out: Path, may_begin: Callable[[], bool]) -> None:
    """Do all searches that the file does not have yet, repetition by repetition; append a line for each.

    Args:
        place: the task and the folders.
        budgets: full trainings.
        runs: numbers of the repetitions.
        out: the file.
        may_begin: whether there is time for another search.
    """
    done = {one.key for one in read([out])} if out.exists() else set()
    for run in runs:
        training: Training | None = None
        left = {
            searcher: [one for one in budgets if Key(searcher, place.task, one, run) not in done]
            for searcher in (LAUNCH, OPTUNA)
        }
        searches: list[tuple[str, list[int]]] = [(LAUNCH, [one]) for one in left[LAUNCH]]
        searches += [(OPTUNA, left[OPTUNA])] if left[OPTUNA] else []
        for searcher, these in searches:
            if not may_begin():
                return
            training = training or Training(place, run)
            found = (
                by_optuna(training, these) if searcher == OPTUNA else {one: by_launch(place, run, one) for one in these}
            )
            for budget, chosen in found.items():
                judged = Judged(Key(searcher, place.task, budget, run), chosen, training.truth(chosen.params))
                with out.open("a") as file:
                    print(judged.line(), file=file)


# ---------------------------------------------------------------- the table
Pairs = Sequence[tuple[Judged, Judged]]
"""Searches of one repetition: ours, and Optuna's."""


def by_task(searches: Sequence[Judged]) -> Iterator[tuple[str, dict[tuple[int, int], Pairs]]]:
    """Each task with its pairs, by both budgets: equal ones, then ours with half of the compute."""
    for task in sorted({one.key.task for one in searches}):
        here = {(one.key.searcher, one.key.budget, one.key.run): one for one in searches if one.key.task == task}
        runs = sorted({run for _, _, run in here})
        budgets = sorted({budget for _, budget, _ in here})
        found = {}
        for mine, its in [*((one, one) for one in budgets), *HALF.items()]:
            sides = [(here.get((LAUNCH, mine, run)), here.get((OPTUNA, its, run))) for run in runs]
            if pairs := [(ours, theirs) for ours, theirs in sides if ours and theirs]:
                found[mine, its] = pairs
        yield task, found


def gap_of(pairs: Pairs) -> Measured:
    """Points of accuracy by which our choices are better: mean of the differences and its interval by Student's t.

    The interval of a single difference is not a number.
    """
    differences = [ours.mean - theirs.mean for ours, theirs in pairs]
    n, mean = len(differences), float(np.mean(differences))
    if n == 1:
        return Measured(mean, float("nan"), float("nan"), n)
    half = float(student.ppf((1 + LEVEL) / 2, n - 1) * np.std(differences, ddof=1) / np.sqrt(n))
    return Measured(mean, mean - half, mean + half, n)


def halves(searches: Sequence[Judged]) -> list[tuple[str, Measured]]:
    """For the goals: points by which plain Optuna's choices are better than ours at half of its compute."""
    found = []
    for task, cases in by_task(searches):
        for (mine, its), pairs in cases.items():
            if mine != its:
                gap = gap_of(pairs)
                text = f"plain Optuna at {its} better than ours at {mine}, real trainings ({task}), points"
                found.append((text, Measured(-gap.value, -gap.high, -gap.low, gap.n)))
    return found


def tables(searches: Sequence[Judged]) -> list[Sheet]:
    """What both searchers chose, by task and budget."""
    head = ("ours : Optuna", "n", "ours, %", "Optuna, %", "ours better by, points", "trainings really spent")
    head += ("candidates (complete)", "CPU s a search")
    found = []
    for task, cases in by_task(searches):
        title = f"{task}: real searches. The accuracy of a choice is the mean of {FRESH_SEEDS} further trainings "
        title += f"with fresh seeds; {LEVEL:.0%} intervals by paired differences (Student's t) over n repetitions."
        if cases:
            found.append(Sheet(title, head, tuple(_row(mine, its, pairs) for (mine, its), pairs in cases.items())))
    return found


def _row(mine: int, its: int, pairs: Pairs) -> tuple[str, ...]:
    def means(of: Callable[[Judged], float]) -> tuple[float, float]:
        ours, theirs = (float(np.mean([of(one) for one in side])) for side in zip(*pairs, strict=True))
        return ours, theirs

    gap, accuracy = gap_of(pairs), means(lambda one: one.mean)
    spent, cpu = means(lambda one: one.chosen.spent), means(lambda one: one.chosen.cpu)
    begun, complete = means(lambda one: one.chosen.candidates), means(lambda one: one.chosen.complete)
    return (
        f"{mine} : {its}",
        str(gap.n),
        f"{accuracy[0]:.2f}",
        f"{accuracy[1]:.2f}",
        f"{gap.value:+.2f}" + (f" ({gap.low:+.2f} to {gap.high:+.2f})" if gap.n > 1 else ""),
        f"{spent[0]:.1f} : {spent[1]:.1f}",
        f"{begun[0]:.1f} ({complete[0]:.1f}) : {begun[1]:.1f} ({complete[1]:.1f})",
        f"{cpu[0]:.0f} : {cpu[1]:.0f}",
    )
