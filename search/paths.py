"""Every file name under the runs folder, in one class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Runs:
    """The folder in which searches keep everything (``--runs``, default ``runs``)."""

    root: Path

    @property
    def database(self) -> Path:
        """The default SQLite database."""
        return self.root / "search.db"

    @property
    def cache(self) -> Path:
        """Decoded pictures, shared by all studies; may be deleted while nothing runs."""
        return self.root / "cache"

    @property
    def widths(self) -> Path:
        """Widest widths already found."""
        return self.root / "cache" / "widths.json"

    @property
    def artifacts(self) -> Path:
        """Files that belong to studies and show in the dashboard, named by Optuna."""
        return self.root / "artifacts"

    @property
    def dashboard_log(self) -> Path:
        """What a dashboard beside a search has to say."""
        return self.root / "dashboard.log"

    @property
    def last_study(self) -> Path:
        """Holds the name of the study last launched."""
        return self.root / "last-study"

    def study(self, study: str) -> Path:
        """A study's folder; study names are checked to be no paths before they come here."""
        return self.root / "studies" / study

    def holder(self, study: str) -> Path:
        """Says who owns the study now."""
        return self.study(study) / "holder"

    def trial(self, study: str, trial: int) -> Path:
        """What a running trial keeps; removed when it has finished."""
        return self.study(study) / "trials" / str(trial)

    def checkpoint(self, study: str, trial: int) -> Path:
        """State of a running trial after its last finished epoch."""
        return self.trial(study, trial) / "checkpoint"

    def final_checkpoint(self, study: str, recipe: str) -> Path:
        """State of the retraining of a recipe for its export."""
        return self.study(study) / "final" / recipe / "checkpoint"

    def worker_log(self, study: str, worker: int) -> Path:
        """What a worker process prints."""
        return self.study(study) / "logs" / f"worker-{worker}.log"

    def export(self, study: str, trial: int) -> Path:
        """Where an export goes unless ``--out`` says otherwise."""
        return self.root / "exports" / f"{study}-{trial}"
