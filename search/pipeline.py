"""``search launch``: a search and, with ``--export``, then the confirmation, the final training and the proven
export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import URL

from search.console import Terminal, is_quiet
from search.devices import WorkerDevice
from search.paths import Runs
from search.process import log_to
from search.running.launch import launch
from search.study.progress import Snapshot
from search.watch.live import last_words
from search.watch.status import as_json
from studies import StudySpec
from trainer.values import Json, to_json

if TYPE_CHECKING:
    from search.export.metrics import Export
    from search.plan.schedule import Schedule
    from search.study.owned import OwnedStudy
    from search.watch.observers import Observer


@dataclass(frozen=True)
class Launched:
    """The result of a launch."""

    spec: StudySpec
    snapshot: Snapshot
    """The search, with its confirmation and its export."""
    export: Export | None
    """The export; None without ``--export``."""

    def text(self, runs: Runs, gpus: str | None) -> str:
        """The text that is printed at the end. ``gpus`` is the option of the launch, and becomes that of the export."""
        if self.export is None:
            return last_words(self.spec, self.snapshot, runs, *([] if gpus is None else [f"--gpus {gpus}"]))
        from search.export.metrics import text_of_export

        return text_of_export(self.export)

    def to_json(self, runs: Runs) -> dict[str, Json]:
        """The documented shape: the keys of ``search status`` and, in "exported", the answer of ``search
        export-best``."""
        found = as_json(self.snapshot, runs, held_by=None)
        return found if self.export is None else found | {"exported": to_json(self.export)}


def launch_study(
    spec: StudySpec,
    url: URL,
    runs: Runs,
    devices: list[WorkerDevice],
    *,
    overrides: Sequence[str] | None = None,
    accept_changes: bool = False,
    further: Sequence[Observer] = (),
    export: bool = False,
) -> Launched:
    """Search a study and, with ``export``, export its best model. This process keeps the study and the devices in
    between.

    Many parameters: the options of the command.

    Args:
        spec: the study.
        url: the storage.
        runs: the runs folder.
        devices: the devices to train on.
        overrides: as for ``search.running.launch.launch``.
        accept_changes: whether to go on although the fingerprint differs.
        further: further observers of the search.
        export: whether to export after the search.

    Raises:
        SearchError, TrainerError: as ``launch`` and ``search.export.export.export_best`` say.
    """
    made: list[Export] = []

    def then(owned: OwnedStudy, schedule: Schedule, devices: list[WorkerDevice]) -> None:
        from search.export.export import export_owned

        console = Terminal(quiet=is_quiet(), highlight=False)
        with log_to(runs.export_log(owned.spec.name), console.say):
            made.append(export_owned(owned, runs, devices, console, schedule=schedule))

    snapshot = launch(
        spec,
        url,
        runs,
        devices,
        overrides=overrides,
        accept_changes=accept_changes,
        further=further,
        then=then if export else None,
    )
    return Launched(spec, snapshot, made[0] if made else None)
