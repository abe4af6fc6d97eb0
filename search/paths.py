"""Every file name under the runs folder, in one class."""

from __future__ import annotations

import shutil
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

    def journal(self, study: str) -> Path:
        """What happened in a study's search, step by step; see search/journal.py."""
        return self.study(study) / "journal.jsonl"

    def stop_request(self, study: str) -> Path:
        """While it is there, the study's search is asked to stop."""
        return self.study(study) / "stop"

    def device(self, name: str) -> Path:
        """Locked by whoever trains on a GPU."""
        return self.root / "devices" / f"{name}.lock"

    def state(self, study: str) -> Path:
        """What a search's workers do now, for ``search status``; true only while somebody owns the study."""
        return self.study(study) / "state.json"

    def page(self, study: str) -> Path:
        """Drawn for the dashboard's study page, until the coordinator has put it there."""
        return self.study(study) / "page.json"

    def page_log(self, study: str) -> Path:
        """What the process that draws the page has to say."""
        return self.study(study) / "logs" / "page.log"

    def trial(self, study: str, trial: int) -> Path:
        """What a running trial keeps; removed when it has finished."""
        return self.study(study) / "trials" / str(trial)

    def checkpoint(self, study: str, trial: int) -> Path:
        """State of a running trial after its last finished epoch."""
        return self.trial(study, trial) / "checkpoint"

    def final_checkpoint(self, study: str, recipe: str) -> Path:
        """State of the retraining of a recipe for its export."""
        return self.study(study) / "final" / recipe / "checkpoint"

    def checkpoints(self, study: str) -> dict[Path, int]:
        """Folders with checkpoints of a study -> bytes, oldest first."""
        found = {}
        for stage in ("trials", "confirm", "final"):
            for folder in self.study(study).glob(f"{stage}/*"):
                files = [file.stat() for file in folder.rglob("*") if file.is_file()]
                found[folder] = (max((stat.st_mtime for stat in files), default=0.0), sum(s.st_size for s in files))
        return {folder: size for folder, (_, size) in sorted(found.items(), key=lambda item: item[1])}

    def keep_to_quota(self, study: str, quota: float) -> list[str]:
        """Delete the oldest checkpoints that nobody trains, until the rest takes ``quota`` bytes; their names."""
        sizes, removed = self.checkpoints(study), []
        for folder in [folder for folder in sizes if folder.parent.name != "trials"]:
            if sum(sizes.values()) <= quota:
                break
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
            removed.append(f"{folder.parent.name}/{folder.name}")
        return removed

    def worker_log(self, study: str, worker: int) -> Path:
        """What a worker process prints."""
        return self.study(study) / "logs" / f"worker-{worker}.log"

    def export(self, study: str, trial: int) -> Path:
        """Where an export goes unless ``--out`` says otherwise."""
        return self.root / "exports" / f"{study}-{trial}"
