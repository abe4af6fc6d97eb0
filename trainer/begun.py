"""Pictures of a study that an earlier version began: those that it used, even if this version ignores some of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Set
from dataclasses import replace
from functools import partial
from pathlib import Path

from trainer.config import DataConfig
from trainer.data import Dataset, Progress, prepare_data
from trainer.errors import DataError, printable
from trainer.scan import scan
from trainer.tree import BEFORE, NOW, Reading, read_tree

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
        # If this version reads the same files without a problem, one that refuses less would read them as it does.
        tried = set() if now is None else {(_stamp(config, NOW), groups) for groups in (True, False)}
        for reading in BEFORE:
            if (pictures := (_stamp(config, reading), reading.groups)) not in tried:
                tried.add(pictures)
                with contextlib.suppress(DataError):
                    before = prepared(like=reading)
                    if before.content_hash == begun:
                        return replace(
                            before, notices=(*before.notices, _notice(config, reading, before, now, problem))
                        )
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


def _notice(
    config: DataConfig, reading: Reading, before: Dataset, now: Dataset | None, problem: DataError | None
) -> str:
    """A sentence with the topmost folders and files that only one of the two versions reads, or else with the problem
    for which this version refuses a new study."""
    then, today = _files(config, reading), _files(config, NOW)
    more, less = (then - today) & set(before.names), today - then
    less = less if now is None else less & set(now.names)
    named = [
        f"{verb} {_tops(names, other)}"
        for verb, names, other in (("uses", more, today), ("leaves out", less, then))
        if names
    ]
    if problem is not None and not named:
        return f"this study goes on as it was begun; a new study would be refused: {str(problem).splitlines()[0]}"
    what = " and ".join(named) or "reads its folder"
    return f"this study {what}, as the version that began it did; a new study would not"


def _files(config: DataConfig, reading: Reading) -> Set[str]:
    """The names of the files that are not passed over."""
    assert config.path is not None
    tree = read_tree(Path(os.path.realpath(config.path)), reading)
    return {file.name for file in tree.walk() if not (reading.texts and file.is_text)}


def _tops(names: Set[str], other: Set[str]) -> str:
    """The topmost folders that hold none of the files ``other``, or else the files themselves, and their number."""
    known = {"/".join(one.split("/")[:depth]) for one in other for depth in range(1, one.count("/") + 1)}
    found = set()
    for name in names:
        parts = name.split("/")
        paths = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        found.add(next((path for path in paths if path not in known), name))
    tops = sorted(found)
    some = ", ".join(map(printable, tops[:3])) + (f" and {len(tops) - 3:,} more" if tops[3:] else "")
    return f"{some} ({len(names):,} {'picture' if len(names) == 1 else 'pictures'})"
