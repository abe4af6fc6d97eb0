"""Files with the class of each picture beside it, and the numbered folders in which WebDataset and img2dataset write
them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainer.classes import may_be_classes
from trainer.errors import DataError
from trainer.labels import LABEL_COLUMNS
from trainer.tree import File, Folder
from trainer.unclear import names_of

__all__ = ["labels_beside", "refuse_shards"]

ENDINGS = ("cls", "txt", "json")
"""Endings of the files that may be beside a picture, with its class or its caption."""

READ = 100
"""Largest number of such files that are read; they are evenly spaced."""

LONGEST = 10_000
"""Largest size in bytes of a file with a class or a caption."""


def refuse_shards(place: str, folders: Sequence[Folder]) -> None:
    """Raise if folders are shards, not classes. Their names are numbers of one length, the first of which begins
    with 0. And files with captions or classes are beside at least half of their pictures; or the numbers have four
    digits or more and no gap, and a picture is named by its folder's number with at least two more digits."""
    names = sorted(folder.base for folder in folders)
    are_numbers = all(map(str.isdecimal, names)) and len({len(name) for name in names}) == 1
    if len(names) < 2 or not are_numbers or len(names[0]) < 2 or names[0][0] != "0":
        return
    texts = _beside(file for folder in folders for file in folder.walk())
    if texts:
        cure = f"if they are classes, move the {' and '.join(f'.{one}' for one in texts)} files elsewhere"
    elif [int(name) for name in names] == [*range(int(names[0]), int(names[0]) + len(names))] and all(
        len(folder.base) > 3 and stem.isdecimal() and stem.startswith(folder.base) and len(stem) > len(folder.base) + 1
        for folder in folders
        for stem in (_stem(file) for file in folder.walk() if file.is_picture)
    ):
        cure = "if they are classes, put a letter before each name"
    else:
        return
    raise DataError(
        f"{place}: {names_of(sorted(folders, key=lambda one: one.base))} are shards, as img2dataset and WebDataset "
        f"write them: they divide the pictures by number, not by class; a table of labels (data.labels) gives the "
        f"classes; {cure}"
    )


def labels_beside(tree: Folder, root: Path) -> str | None:
    """A sentence about files beside at least half of the pictures, of the same name, that have their classes or
    captions; None without them."""
    found = _beside(tree.walk())
    endings = tuple(sorted({file.path.suffix for file in tree.walk() if file.is_picture}))
    for ending, files in found.items():
        texts = [text for file in _some(files) if (text := _text(file))]
        lines = [" ".join(text.split()) for text in texts]
        about = f"{len(files):,} pictures have a .{ending} file beside them, such as {files[0].name}"
        read = "file.read_text().strip()"
        makes = "this line of Python makes a table of labels of them (data.labels)"
        if ending == "json":
            if (key := _label_key(texts)) is None:
                continue
            about += f", and {key!r} in it seems to be the class"
            read = f"json.loads(file.read_text())[{key!r}]"
        elif lines and (ending == "cls" or (all(map(_is_name, texts)) and may_be_classes(lines))):
            about += f", with its class ({lines[0][:40]!r})"
        elif 2 * sum(map(_has_words, lines)) > len(lines):
            about += f", with its caption ({lines[0][:40]!r})"
            makes = (
                "this line of Python makes a table of them; write the class of each picture into its column label, "
                "and name it (data.labels)"
            )
        else:
            continue
        return (
            f"{about}; {makes}: import csv, json, pathlib; "
            f"csv.writer(open({str(root / 'labels.csv')!r}, 'w', newline='', encoding='utf-8'))"
            f".writerows([['file', 'label']] + [[file.relative_to({str(root)!r}).with_suffix(''), {read}] for file "
            f"in sorted(pathlib.Path({str(root)!r}).rglob('*{files[0].path.suffix}')) if any("
            f"file.with_suffix(one).exists() for one in {endings!r})])"
        )
    return None


def _beside(files: Iterable[File]) -> Mapping[str, Sequence[File]]:
    """Ending -> the files with it that are beside pictures of the same name, if half of the pictures have one."""
    files = list(files)
    pictures = {_path_stem(file) for file in files if file.is_picture}
    found: dict[str, list[File]] = {ending: [] for ending in ENDINGS}
    for file in files:
        ending = file.base.lower().rpartition(".")[2]
        if ending in found and _path_stem(file) in pictures:
            found[ending].append(file)
    return {ending: ones for ending, ones in found.items() if ones and 2 * len(ones) >= len(pictures)}


def _path_stem(file: File) -> str:
    return file.name.rpartition(".")[0]


def _stem(file: File) -> str:
    return file.base.rpartition(".")[0]


def _some(files: Sequence[File]) -> Sequence[File]:
    return files[:: -(-len(files) // READ)]


def _text(file: File) -> str:
    """The text of a small file; "" if it is empty or large, or not text."""
    try:
        if file.info is None or file.info.st_size > LONGEST:
            return ""
        return file.path.read_text("utf-8-sig").strip()
    except (OSError, ValueError):
        return ""


def _is_name(text: str) -> bool:
    """Whether a text may be a class: one word or number, or one line of several words without a number."""
    return len(text.split()) == 1 or not ("\n" in text or any(map(str.isdecimal, text)))


def _has_words(text: str) -> bool:
    return sum(map(str.isalpha, text)) > len(text) / 2


def _label_key(texts: Sequence[str]) -> str | None:
    """The key of texts in JSON under which each has a class; None if there is none."""
    try:
        records = [json.loads(text) for text in texts]
    except (ValueError, RecursionError):
        return None
    if not records or not all(isinstance(one, dict) for one in records):
        return None
    for key in LABEL_COLUMNS:
        values = [one.get(key) for one in records]
        if all(isinstance(one, str | int) for one in values) and may_be_classes([str(one) for one in values]):
            return key
    return None
