"""What lies in a data folder: its pictures, classes and splits, found without opening a file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from trainer.errors import DataError

__all__ = ["Listing", "Picture", "Source", "scan_folder"]

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder name -> split; Kaggle's bird folders say "valid"."""

LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
"""What operating systems leave in folders, in lower case; passed over in silence, as every hidden file is."""

Source: TypeAlias = bytes | Image.Image
"""A picture's file, or itself."""


@dataclass(frozen=True)
class Picture:
    """One picture that is there but not yet read; ``load`` raises DataError where it cannot be."""

    name: str
    class_name: str
    split: str
    load: Callable[[], Source]


@dataclass(frozen=True)
class Listing:
    """Everything that a source holds."""

    root: str
    """Where it lies, for messages."""
    pictures: Sequence[Picture]
    class_folders: Sequence[tuple[str, str, str]]
    """(name, split, class) of every class folder, those without a file too."""
    own_splits: Sequence[str]
    """The splits that the source itself has; the others are drawn from train."""
    stamp: str = ""
    """Changes when a file is added, removed or written."""


def scan_folder(root: Path) -> Listing:
    """List what lies under ``root`` without opening a file.

    ROOT/train/CLASS/* with or without ROOT/val (or valid, validation) and ROOT/test, else ROOT/CLASS/*, which
    is all train. Class folders are searched to any depth and through symbolic links; files and folders that
    lie beside them are not looked at. A train/ that holds files and no folder is a class of that name.

    Raises DataError where the folder is missing, cannot be listed, or holds no class folder.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"the data folder {root} {what}; check --data DIR")
    folders = {entry.name: entry.path for entry, info in _visible(str(root)) if _is_folder(info)}
    inside_train = [info for _, info in _visible(folders["train"])] if "train" in folders else []
    parts = {name: SPLIT_FOLDERS[name] for name in folders if name in SPLIT_FOLDERS}
    if "train" not in folders or (inside_train and not any(map(_is_folder, inside_train))):
        parts = {"": "train"}
    if twice := sorted(name for name in parts if list(parts.values()).count(parts[name]) > 1):
        raise DataError(f"{root} holds {' and '.join(twice)}, which mean the same split; keep one of them")

    pictures: list[Picture] = []
    class_folders: list[tuple[str, str, str]] = []
    stamps: list[str] = []
    for part, split in parts.items():
        for entry, info in _visible(str(root / part)):
            if info is None or not _is_folder(info):
                continue
            folder = f"{part}/{entry.name}" if part else entry.name
            class_folders.append((folder, split, entry.name))
            for name, path, file in _files(entry.path, folder, ((info.st_dev, info.st_ino),)):
                pictures.append(Picture(name, entry.name, split, partial(_read_file, Path(path))))
                # With the mode in the stamp, a file that could not be opened is tried again after chmod.
                stamps.append(f"{name}\0{file and (file.st_size, file.st_mtime_ns, file.st_mode)}")
    if not class_folders:
        raise DataError(f"{root} holds no class folders; expected are CLASS/* or train/CLASS/*, pictures inside")
    pictures.sort(key=lambda picture: picture.name)
    stamp = json.dumps([str(root), sorted(class_folders), sorted(stamps)])
    return Listing(str(root), pictures, sorted(class_folders), sorted(set(parts.values())), stamp)


def _visible(folder: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result | None]]:
    """What lies in a folder, litter left out, with its stat through links; None for a link to nowhere."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be listed: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in LITTER:
            continue
        try:
            yield entry, entry.stat()
        except OSError:
            yield entry, None


def _is_folder(info: os.stat_result | None) -> bool:
    return info is not None and stat.S_ISDIR(info.st_mode)


def _files(
    folder: str, name: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, str, os.stat_result | None]]:
    """(name, path, stat) of every file below a class folder; ``above``: the folders walked through, so that a
    link back to one of them is not followed for ever."""
    for entry, info in _visible(folder):
        if info is None or not stat.S_ISDIR(info.st_mode):
            yield f"{name}/{entry.name}", entry.path, info
        elif (info.st_dev, info.st_ino) not in above:
            yield from _files(entry.path, f"{name}/{entry.name}", (*above, (info.st_dev, info.st_ino)))


def _read_file(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
            raise DataError("is not a regular file")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror})") from None
    if not content:
        raise DataError("is empty (0 bytes)")
    return content
