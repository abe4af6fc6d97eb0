"""Every file name under the runs folder, in one class."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from search.errors import UsageError
from trainer.errors import DiskError
from trainer.kept import Altered, read_checked, write_whole


@dataclass(frozen=True)
class Runs:
    """The folder for everything that searches write (``--runs``, default ``runs``)."""

    root: Path
    storage_option: str = field(default="", compare=False)
    """The option with which a command uses the database, if that is not ``database``: " --storage URL"."""

    @property
    def option(self) -> str:
        """The options with which a command uses this folder and its database: " --runs DIR --storage URL", each only
        if it is not the default."""
        folder = "" if self == DEFAULT_RUNS else f" --runs {shlex.quote(str(self.root))}"
        return folder + self.storage_option

    def command(self, verb: str, study: str, *options: str) -> str:
        """A command about a study with this folder, as it is typed: "search stop birds --finish --runs DIR".

        The command has the option ``--storage``.
        """
        return " ".join(["search", verb, study, *options]) + self.option

    @property
    def database(self) -> Path:
        """The default SQLite database."""
        return self.root / "search.db"

    @property
    def cache(self) -> Path:
        """Decoded pictures, shared by all studies; may be deleted while no command runs."""
        return self.root / "cache"

    @property
    def widths(self) -> Path:
        """Counted sizes and widest widths, kept for later commands."""
        return self.root / "cache" / "widths.json"

    @property
    def artifacts(self) -> Path:
        """Files of studies that the dashboard shows, named by Optuna."""
        return self.root / "artifacts"

    @property
    def dashboard_log(self) -> Path:
        """Output of a launch's dashboard."""
        return self.root / "dashboard.log"

    @property
    def last_study(self) -> Path:
        """File with the name of the study launched last."""
        return self.root / "last-study"

    def study_last_launched(self) -> str:
        """The name of the study launched last.

        Raises:
            UsageError: no study was launched yet, or the file with its name is damaged.
        """
        from studies.spec import STUDY_NAME  # 0.2 s

        try:
            content = self.last_study.read_bytes()
            if STUDY_NAME.fullmatch(name := content.decode("ascii", "replace").strip()):  # as an older version wrote it
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
        """Folder with a folder for each study."""
        return self.root / "studies"

    def study(self, study: str) -> Path:
        """A study's folder. ``study`` must have been checked not to be a path."""
        return self.studies / study

    def holder(self, study: str) -> Path:
        """File with the name of the process that owns the study."""
        return self.study(study) / "holder"

    def lock(self, study: str) -> Path:
        """Lock file of the process that owns the study: no other process changes the study's folder."""
        return self.study(study) / "lock"

    def journal(self, study: str) -> Path:
        """The study's journal, see search/study/journal.py."""
        return self.study(study) / "journal.jsonl"

    def damaged_journal(self, study: str, at: datetime) -> Path:
        """New name of a journal that cannot be read."""
        return self.study(study) / f"journal.damaged-{at:%Y%m%d-%H%M%S}.jsonl"

    def stop_request(self, study: str) -> Path:
        """While this file exists, the study's search is asked to stop."""
        return self.study(study) / "stop"

    def stop_requested(self, study: str) -> bool:
        """Whether the stop request exists; False if the disk does not answer."""
        try:
            return self.stop_request(study).exists()
        except OSError:
            return False

    def gpu_requests(self, study: str) -> Path:
        """Folder with requests of ``search gpus`` to a running search, and their answers."""
        return self.study(study) / "gpus"

    def state(self, study: str) -> Path:
        """Current state of a search's workers, for ``search status``; valid only while a process owns the study."""
        return self.study(study) / "state.json"

    def tensorboard(self, study: str) -> Path:
        """TensorBoard's event files of a study, a folder for each trial."""
        return self.study(study) / "tensorboard"

    def page(self, study: str) -> Path:
        """Attributes drawn for the dashboard's study page, until the coordinator has stored them."""
        return self.study(study) / "page.json"

    def page_log(self, study: str) -> Path:
        """Output of the process that draws the page."""
        return self.study(study) / "logs" / "page.log"

    def confusion(self, study: str) -> Path:
        """Confusion matrix of the best trial so far, see search/figures/confusion.py."""
        return self.study(study) / "confusion.npz"

    def export_section(self, study: str) -> Path:
        """Content of the report's section about a study's last export, see search/watch/export_section.py.

        The file keeps the name that earlier versions gave it.
        """
        return self.study(study) / "handed-over.json"

    def trials(self, study: str) -> Path:
        """Folder with a folder for each unfinished trial."""
        return self.study(study) / "trials"

    def trial(self, study: str, trial: int) -> Path:
        """Folder of an unfinished trial; removed when the trial has finished."""
        return self.trials(study) / str(trial)

    def attempt(self, study: str, trial: int) -> Path:
        """Folder for the files of an unfinished trial's present attempt."""
        return attempt_in(self.trial(study, trial))

    def checkpoint(self, study: str, trial: int, stage: int = 0) -> Path:
        """State of an unfinished trial after its last finished epoch; ``stage`` is the number of the trial's training,
        from 0."""
        return self.attempt(study, trial) / (f"checkpoint-{stage}" if stage else "checkpoint")

    def keep_confusion(self, study: str, trial: int) -> None:
        """Keep the confusion matrix of a new best trial for its figure. A missing file is no error."""
        with contextlib.suppress(OSError):
            self.trial_confusion(study, trial).replace(self.confusion(study))

    def trial_confusion(self, study: str, trial: int) -> Path:
        """Confusion matrix of a trial that has just finished its last epoch."""
        return self.attempt(study, trial) / "confusion.npz"

    def final_training(self, study: str, recipe: str) -> Path:
        """Folder of a recipe's training for an export."""
        return self.study(study) / "final" / recipe

    def earlier(self, study: str, uuid: str) -> Path:
        """Files of another study of the same name, which was deleted or is in another database."""
        return self.study(study) / "earlier" / uuid

    def put_aside(self, study: str, uuid: str) -> None:
        """Move the files of the study with this UUID to ``earlier``."""
        _move(self.study(study), self.earlier(study, uuid))

    def bring_back(self, study: str, uuid: str) -> bool:
        """Move the files in ``earlier`` back. Returns whether there were any."""
        return _move(self.earlier(study, uuid), self.study(study))

    def checkpoints(self, study: str) -> dict[Path, int]:
        """Folders with checkpoints of a study -> their bytes, oldest first."""
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

    def still_needed(self, study: str, needed: int, folds: int = 0, waiting: Sequence[int] = ()) -> int:
        """Bytes that must be free for the checkpoints of a study's running trials, besides the bytes that they take
        already.

        Args:
            study: name of the study.
            needed: bytes for all checkpoints: a trial has two for each fold, and the next is written beside them.
            folds: number of folds of the study's data; 0 for one validation split.
            waiting: numbers of the trials that no worker trains now.
        """
        idle = {self.trial(study, number) for number in waiting}
        sizes = self.checkpoints(study).items()
        taken = sum(size for folder, size in sizes if folder.parent == self.trials(study) and folder not in idle)
        # More trials may have checkpoints than are trained at once. In any case, each worker needs room for its
        # next checkpoint, which is one of the 3 (with folds 2 * folds + 1) that ``needed`` counts for the worker.
        return max(needed - taken, needed // (2 * max(1, folds) + 1))

    def has_room(self, study: str, needed: int, folds: int = 0, waiting: Sequence[int] = ()) -> bool:
        """Whether ``still_needed`` bytes are free; False if the disk does not answer."""
        try:
            return shutil.disk_usage(self.root).free >= self.still_needed(study, needed, folds, waiting)
        except OSError:
            return False

    def keep_to_quota(self, study: str, quota: float, waiting: Sequence[int] = ()) -> list[str]:
        """Delete the oldest unused checkpoints until the rest takes at most ``quota`` bytes. Returns their names.

        Checkpoints of earlier exports, and of earlier studies of this name, are unused.

        Args:
            study: name of the study.
            quota: largest number of bytes.
            waiting: numbers of the trials that no worker trains now. Their checkpoints are deleted after all unused
                ones, in this order.
        """
        removed: list[str] = []
        try:
            sizes = self.checkpoints(study)
        except OSError:  # the disk does not answer; the error is reported where it matters
            return removed
        unused = [folder for folder in sizes if folder.parent != self.trials(study)]
        waits = [folder for number in waiting if (folder := self.trial(study, number)) in sizes]
        for folder in unused + waits:
            if sum(sizes.values()) <= quota:
                break
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
            removed.append(str(folder.relative_to(self.study(study))))
        return removed

    def worker_log(self, study: str, worker: int) -> Path:
        """Output of a worker process."""
        return self.study(study) / "logs" / f"worker-{worker}.log"

    def coordinator_log(self, study: str) -> Path:
        """Log of a search: messages and decisions."""
        return self.study(study) / "logs" / "coordinator.log"

    def export_log(self, study: str) -> Path:
        """Log of a study's exports: messages and decisions."""
        return self.study(study) / "logs" / "export.log"

    def export(self, study: str, *trials: int) -> Path:
        """Default folder of an export of these trials, without ``--out``."""
        return self.root / "exports" / "-".join([study, *map(str, trials)])


DEFAULT_RUNS = Runs(Path("runs"))


def attempt_in(folder: Path) -> Path:
    """Folder for the files of a training's present attempt: the training's own or, after the loss of a worker, a new
    one in it."""
    return folder / str(last) if (last := _last_attempt(folder)) else folder


def begin_attempt_in(folder: Path) -> None:
    """Give a training a new folder, with links to the checkpoints (and ranks) of its last attempt.

    A lost worker may still train on a node that nobody reaches, and write an older checkpoint into the old folder.
    That replaces the file there and does not change it, so the links still lead to the newer checkpoints. If the
    disk refuses the links, the training keeps its folder; then at most the epochs since the older checkpoint are
    trained again.
    """
    before = attempt_in(folder)
    with contextlib.suppress(OSError):
        aside = folder / f".{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for file in (*before.glob("checkpoint*"), *before.glob("ranks.json")):
            if file.suffix != ".partial":
                os.link(file, aside / file.name)
        aside.rename(folder / str(_last_attempt(folder) + 1))


def _last_attempt(folder: Path) -> int:
    """Number of the last attempt that has a folder of its own in a training's folder; 0 if there is none."""
    with contextlib.suppress(OSError):
        return max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
    return 0


def _move(source: Path, target: Path) -> bool:
    # The journal is moved last, because it shows which study the other files belong to.
    names = ("trials", "confusion.npz", "tensorboard", "handed-over.json", "journal.jsonl")
    found = [name for name in names if (source / name).exists()]
    for name in found:
        target.mkdir(parents=True, exist_ok=True)
        try:
            _move_one(source / name, target / name)
        except shutil.Error as error:  # of a folder: it has a list of (from, to, reason)
            reason = error.args[0][0][2] if isinstance(error.args[0], list) else error
            raise DiskError(f"{source / name} cannot be copied to {target / name}: {reason}") from error
    return bool(found)


def _move_one(source: Path, target: Path) -> None:
    """Move a file or folder. What the system cannot rename, as in a container's layer, is copied, then deleted. A kill
    at any step loses nothing once the same move is begun again."""
    mark = _mark_of(source)
    if not (target.exists() and mark.exists() and mark.read_text() == target.parent.name):
        _delete(target)
        _mark_of(target).unlink(missing_ok=True)
        try:
            source.rename(target)
        except OSError:
            partial = target.with_name(f".{target.name}.partial")
            _delete(partial)
            if source.is_dir():
                shutil.copytree(source, partial, symlinks=True)
            else:
                shutil.copy2(source, partial)
            partial.rename(target)
            write_whole(mark, target.parent.name.encode(), durable=False)
    _delete(source)
    mark.unlink(missing_ok=True)


def _mark_of(source: Path) -> Path:
    """While this file exists, the folder that it names has a complete copy of ``source``, which is being deleted."""
    return source.with_name(f".{source.name}.moved")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
