"""Every file name under the runs folder, in one class."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from search.errors import UsageError
from trainer.kept import Altered, read_checked


@dataclass(frozen=True)
class Runs:
    """The folder in which searches keep everything (``--runs``, default ``runs``)."""

    root: Path

    @property
    def option(self) -> str:
        """What a command needs beside its other words to look here: " --runs DIR", or nothing."""
        return "" if self == DEFAULT_RUNS else f" --runs {shlex.quote(str(self.root))}"

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
        """Sizes already counted, and widest widths already found."""
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

    def study_last_launched(self) -> str:
        """The name of the study last launched here.

        Raises:
            UsageError: none was, or the file that says which is damaged.
        """
        from studies.spec import STUDY_NAME  # 0.2 s

        try:
            content = self.last_study.read_bytes()
            if STUDY_NAME.fullmatch(name := content.decode("ascii", "replace").strip()):  # of a version before
                return name
            return str(read_checked(self.last_study)["study"])
        except FileNotFoundError:
            raise UsageError(f"no study was launched in {self.root} yet; name one, or start: search launch") from None
        except OSError as error:
            raise UsageError(f"{self.last_study} cannot be read ({error.strerror}); name a study") from error
        except (Altered, KeyError):
            raise UsageError(f"{self.last_study} is damaged; name a study") from None

    @property
    def studies(self) -> Path:
        """A folder for each study."""
        return self.root / "studies"

    def study(self, study: str) -> Path:
        """A study's folder; study names are checked to be no paths before they come here."""
        return self.studies / study

    def holder(self, study: str) -> Path:
        """Says who owns the study now."""
        return self.study(study) / "holder"

    def lock(self, study: str) -> Path:
        """Locked by whoever owns the study: nobody else changes what is in its folder."""
        return self.study(study) / "lock"

    def journal(self, study: str) -> Path:
        """What happened in a study's search, step by step; see search/study/journal.py."""
        return self.study(study) / "journal.jsonl"

    def damaged_journal(self, study: str, at: datetime) -> Path:
        """Where one goes that cannot be read."""
        return self.study(study) / f"journal.damaged-{at:%Y%m%d-%H%M%S}.jsonl"

    def stop_request(self, study: str) -> Path:
        """While it is there, the study's search is asked to stop."""
        return self.study(study) / "stop"

    def stop_requested(self, study: str) -> bool:
        """Whether it is there; a disk that does not answer asks for nothing."""
        try:
            return self.stop_request(study).exists()
        except OSError:
            return False

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

    def confusion(self, study: str) -> Path:
        """What the best trial so far mistook for what: "trial", "table" [k, 3] and the "names" of its classes."""
        return self.study(study) / "confusion.npz"

    def trials(self, study: str) -> Path:
        """A folder for each running trial."""
        return self.study(study) / "trials"

    def trial(self, study: str, trial: int) -> Path:
        """What a running trial keeps; removed when it has finished."""
        return self.trials(study) / str(trial)

    def checkpoint(self, study: str, trial: int) -> Path:
        """State of a running trial after its last finished epoch."""
        return self.trial(study, trial) / "checkpoint"

    def trial_confusion(self, study: str, trial: int) -> Path:
        """The same of a trial that has just finished its last epoch."""
        return self.trial(study, trial) / "confusion.npz"

    def final_checkpoint(self, study: str, recipe: str) -> Path:
        """State of the retraining of a recipe for its export."""
        return self.study(study) / "final" / recipe / "checkpoint"

    def earlier(self, study: str, uuid: str) -> Path:
        """What another study of the same name left: it was deleted since, or is in another database."""
        return self.study(study) / "earlier" / uuid

    def put_aside(self, study: str, uuid: str) -> None:
        """Move to ``earlier`` what belongs to one study and to no other of its name."""
        _move(self.study(study), self.earlier(study, uuid))

    def bring_back(self, study: str, uuid: str) -> bool:
        """Move it back; whether there was anything."""
        return _move(self.earlier(study, uuid), self.study(study))

    def checkpoints(self, study: str) -> dict[Path, int]:
        """Folders with checkpoints of a study -> bytes, oldest first."""
        found = {}
        for stage in ("trials", "final", "earlier/*/trials"):
            for folder in self.study(study).glob(f"{stage}/*"):
                newest, size = 0.0, 0
                for path, _, names in os.walk(folder):
                    for name in names:
                        with contextlib.suppress(FileNotFoundError):  # a worker has just moved it into place
                            stat = Path(path, name).stat()
                            newest, size = max(newest, stat.st_mtime), size + stat.st_size
                found[folder] = (newest, size)
        return {folder: size for folder, (_, size) in sorted(found.items(), key=lambda item: item[1])}

    def still_needed(self, study: str, needed: int, folds: int = 0) -> int:
        """Bytes that must be free for the checkpoints of a study's running trials: what these do not take already.

        Args:
            study: its name.
            needed: by all that are kept, two of each fold, and those that are written next, beside them.
            folds: of the study's data; 0 for one validation split.
        """
        taken = sum(size for folder, size in self.checkpoints(study).items() if folder.parent == self.trials(study))
        # More trials may lie there than are trained at once, and what is written next needs room all the same.
        return max(needed - taken, needed // (2 * max(1, folds) + 1))

    def has_room(self, study: str, needed: int, folds: int = 0) -> bool:
        """Whether as much is free as is ``still_needed``; on a disk that does not answer, nothing is."""
        try:
            return shutil.disk_usage(self.root).free >= self.still_needed(study, needed, folds)
        except OSError:
            return False

    def keep_to_quota(self, study: str, quota: float) -> list[str]:
        """Delete the oldest checkpoints that nobody trains, until the rest takes ``quota`` bytes; their names."""
        removed: list[str] = []
        try:
            sizes = self.checkpoints(study)
        except OSError:  # the disk does not answer; that is told where it matters
            return removed
        for folder in [folder for folder in sizes if folder.parent != self.trials(study)]:
            if sum(sizes.values()) <= quota:
                break
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
            removed.append(str(folder.relative_to(self.study(study))))
        return removed

    def worker_log(self, study: str, worker: int) -> Path:
        """What a worker process prints."""
        return self.study(study) / "logs" / f"worker-{worker}.log"

    def coordinator_log(self, study: str) -> Path:
        """What a search said and decided."""
        return self.study(study) / "logs" / "coordinator.log"

    def export_log(self, study: str) -> Path:
        """What exports of a study said and decided."""
        return self.study(study) / "logs" / "export.log"

    def export(self, study: str, trial: int) -> Path:
        """Where an export goes unless ``--out`` says otherwise."""
        return self.root / "exports" / f"{study}-{trial}"


DEFAULT_RUNS = Runs(Path("runs"))


def _move(source: Path, target: Path) -> bool:
    # The journal last: it says whose the others are.
    found = [name for name in ("trials", "confusion.npz", "journal.jsonl") if (source / name).exists()]
    for name in found:
        target.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target / name, ignore_errors=True)
        (source / name).replace(target / name)
    return bool(found)
