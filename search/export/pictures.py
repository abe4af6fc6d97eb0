"""The pictures of a study, read again for its export: perhaps from another folder, but with the same content."""

from __future__ import annotations

from pathlib import Path

from search.console import Terminal
from search.errors import StudyChanged
from search.export.retrain import raise_if_stopped
from search.paths import Runs
from search.plan.prepare import prepare
from search.study.owned import OwnedStudy
from search.study.study import SPEC, content_of
from studies import StudySpec
from trainer.config import DataConfig
from trainer.data import Dataset
from trainer.errors import DataError
from trainer.values import validate


def moved_to(spec: StudySpec, folder: Path) -> StudySpec:
    """The study with its pictures, and the tables of labels among them, in another folder.

    Raises:
        ConfigError: its pictures are the digits, which are built in.
    """
    values = spec.data.model_dump(mode="json") | spec.data.tables_inside | {"path": str(folder)}
    return spec.model_copy(update={"data": validate(DataConfig, values, f"study {spec.name}, with --data {folder}")})


def read_again(owned: OwnedStudy, runs: Runs, console: Terminal) -> Dataset:
    """Read the pictures of a study, and compare them with those of its last launch. Later commands of the study read
    them from the same folder.

    Raises:
        DataError, DiskError: the pictures cannot be used. The message has the command for pictures that were moved.
        StudyChanged: these are other pictures, so the results of the search do not count for them.
    """
    study, spec = owned.study, owned.spec
    again = runs.command("export-best", spec.name, "--data DIR")
    try:
        data = prepare(spec, runs, console, lambda: raise_if_stopped(runs, spec.name), begun=content_of(study)).data
    except DataError as error:
        if spec.data.path is None:
            raise
        raise DataError(
            f"{error}\nIf the pictures were moved, give their present folder: {again}. If their disk is not mounted, "
            "mount it and repeat the command."
        ) from None
    if content_of(study) not in (None, data.content_hash):
        where = "its pictures" if spec.data.path is None else f"the pictures in {spec.data.path}"
        other = "" if spec.data.path is None else f" ({again}, if they are elsewhere)"
        raise StudyChanged(
            f"study {spec.name!r}: {where} or their classes are not those of its last launch, because their checksum "
            f"differs; export with those pictures{other}, or accept the change: repeat its search launch with "
            "--accept-changes"
        )
    stored = study.user_attrs[SPEC]
    if stored["data"].get("path") != spec.data.path:
        owned.check()
        study.set_user_attr(
            SPEC, stored | {"data": stored["data"] | spec.data.tables_inside | {"path": spec.data.path}}
        )
    return data
