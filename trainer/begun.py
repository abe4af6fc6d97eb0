"""Pictures of a study that an earlier version began: those that it used, even if this version ignores some of them."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from trainer.config import DataConfig
from trainer.data import Dataset, Progress, prepare_data
from trainer.errors import DataError
from trainer.scan import scan
from trainer.tree import BEFORE, NOW, Reading

__all__ = ["prepare_as_begun"]


def prepare_as_begun(
    config: DataConfig, cache_dir: Path, begun: str | None, *, progress: Progress | None = None, download: bool = True
) -> Dataset:
    """As ``prepare_data``. If the pictures differ from those of the study, it looks whether an earlier version had
    read the folder as the study has it.

    Args:
        config: the pictures.
        cache_dir: the folder of caches.
        begun: the ``content_hash`` of the study's pictures; None for a new study.
        progress: as for ``prepare_data``.
        download: as for ``prepare_data``.
    """
    prepared = partial(prepare_data, config, cache_dir, progress=progress, download=download)
    now, problem = None, None
    try:
        now = prepared()
    except DataError as error:
        problem = error
    if begun is not None and config.source == "folder" and (now is None or now.content_hash != begun):
        tried = {_stamp(config, NOW)}
        for reading in BEFORE:
            if (stamp := _stamp(config, reading)) not in tried:
                tried.add(stamp)
                with contextlib.suppress(DataError):
                    before = prepared(like=reading)
                    if before.content_hash == begun:
                        return replace(before, notices=(*before.notices, _notice(before, now)))
    if now is None:
        assert problem is not None
        raise problem
    return now


def _stamp(config: DataConfig, reading: Reading) -> str | None:
    """What ``prepare_data`` would read; None if it cannot be listed."""
    try:
        return scan(config, reading).stamp
    except DataError:
        return None


def _notice(before: Dataset, now: Dataset | None) -> str:
    found = set(() if now is None else now.names)
    more, less = sorted(set(before.names) - found), sorted(found - set(before.names))
    named = [f"{verb} {names[0]}" for verb, names in (("uses", more), ("leaves out", less)) if names]
    return f"this study {' and '.join(named)}, as the version that began it did; a new study would not"
