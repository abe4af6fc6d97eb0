"""``[track] tensorboard``: the curves and results of trials as TensorBoard's event files, a folder for each trial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from search.study.progress import Snapshot, WorkerView, step_reached
from search.study.trial import TrialView
from studies.objective import Objective, as_measured

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FLUSH_SECONDS = 10
"""Longest time until a value is written to its file."""


class EventFiles:
    """An observer that writes event files. It may raise or wait for a disk, so only a ``ThreadedObserver`` may call it.

    Args:
        folder: the folder in which the folders "trial-0", "trial-1", ... are made.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # 0.2 s, and torch

        self._folder, self._open = folder, SummaryWriter
        self._writers: dict[int, SummaryWriter] = {}
        """Number of a trial in training -> the writer of the trial's file."""
        self._steps: dict[int, int] = {}
        """Number of a trial -> the last step that was written."""
        self._finished: set[int] | None = None

    def watch(self, snapshot: Snapshot) -> None:
        """Write the epochs and trials that have ended since the last snapshot."""
        for worker in snapshot.workers:
            if worker.trial is not None and worker.value is not None:
                self._write_epoch(worker.trial, worker, step_reached(worker, snapshot.ladder), snapshot.objective)
        if self._finished is None:  # trials of earlier launches have been written if they have a folder
            self._finished = {trial.number for trial in snapshot.finished if self._of(trial.number).exists()}
        for trial in snapshot.finished:
            if trial.number not in self._finished:
                self._write_result(trial, snapshot.objective)
                self._finished.add(trial.number)
        trained = {worker.trial for worker in snapshot.workers}
        for number in self._writers.keys() - trained:
            self._writers.pop(number).close()

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """Write the last trials, and close the files."""
        self.watch(snapshot)
        for writer in self._writers.values():
            writer.close()

    def _of(self, trial: int) -> Path:
        return self._folder / f"trial-{trial}"

    def _writer(self, trial: int) -> SummaryWriter:
        if trial not in self._writers:
            self._writers[trial] = self._open(str(self._of(trial)), flush_secs=FLUSH_SECONDS)
        return self._writers[trial]

    def _write_epoch(self, trial: int, worker: WorkerView, step: int, objective: Objective) -> None:
        if step <= self._steps.get(trial, 0):
            return
        values = {
            f"{objective}/val": None if worker.value is None else as_measured(worker.value, objective),
            "speed/images_per_second": worker.images_per_second,
            "speed/epoch_seconds": worker.epoch_seconds,
        }
        for tag, value in values.items():
            if value is not None:
                self._writer(trial).add_scalar(tag, value, step)
        self._steps[trial] = step

    def _write_result(self, trial: TrialView, objective: Objective) -> None:
        if trial.value is None:
            return
        writer, value = self._writer(trial.number), as_measured(trial.value, objective)
        if trial.epochs > self._steps.get(trial.number, 0):
            writer.add_scalar(f"{objective}/val", value, trial.epochs)
        results = {f"result/{objective}": value, "result/parameters": float(trial.num_params or 0)}
        writer.add_hparams(dict(trial.params), results, run_name=".", global_step=trial.epochs)
