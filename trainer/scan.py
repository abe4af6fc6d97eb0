"""The content of a data folder: pictures, classes and splits. Pictures are opened only to compare copies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from trainer.config import DataConfig
from trainer.contest import Suggestion, about_test_table, suggest_labels
from trainer.errors import DataError
from trainer.formats import RAW_ENDINGS, about_raw
from trainer.labels import read_labels
from trainer.layout import Layout, read_layout
from trainer.other_labels import classes_elsewhere, labels_elsewhere, records_elsewhere
from trainer.shards import labels_beside
from trainer.tree import NOW, File, Folder, Reading, read_tree
from trainer.unclear import EXPECTED_LABELS, describes_objects, names_of, option_for

__all__ = [
    *("LOOK_ALIKES", "VARIATIONS", "Listing", "Picture", "Source", "folded", "scan", "scan_folder"),
]

Source: TypeAlias = bytes | Image.Image
"""The bytes of a picture's file, or the decoded picture."""


UNSEEN = ("Cf", "Cc", "Zs", "Zl", "Zp")
"""Unicode's categories of characters that are not seen."""

VARIATIONS = {chr(code) for code in range(0xFE00, 0xFE10)}
"""Characters that choose the form of the character before them, such as a coloured emoji."""

LOOK_ALIKES = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455"
    "\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7"
    "\u0643\u064a\u0649\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2018\u2019\u02bc\u2032\u0060\u00b4"
    "\u201c\u201d\u201e",
    "abekmhopctyxijsabezhikmnoptyx\u06a9\u06cc\u06cc-------''''''\"\"\"",
    "\u0640",
)
"""Character -> what replaces it. Cyrillic and Greek letters become the Latin ones that their capitals look like, Arabic
letters the Persian ones, dashes and quotation marks the plain ones."""

BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])[_-]+(?=[^\W\d_])")
"""What people write between two words instead of a space."""


EIGHT_BITS = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".webp")
"""Endings of formats that have 8 bits."""

DEEP_VERSION = 2
"""Version of what is stored about pictures that may have more than 8 bits: which are refused, and their scales. The
content of a file decides both, so such pictures are decoded again when it is raised; CACHE_VERSION would do so with
all."""


@dataclass(frozen=True)
class Picture:
    """A picture that is not read yet; ``load`` raises DataError if it cannot be read."""

    name: str
    class_name: str
    split: str
    load: Callable[[], Source]
    group: str = ""
    """The group that a label table gives the picture; no drawn split divides a group. "" without a group."""


@dataclass(frozen=True)
class Listing:
    """The content of a source."""

    root: str
    """Name or path of the source, for messages."""
    pictures: Sequence[Picture]
    class_folders: Sequence[tuple[str, str, str]]
    """(name, split, class) of every class folder, also of empty ones."""
    own_splits: Sequence[str]
    """The splits that the source itself has; the others are drawn from train."""
    stamp: str = ""
    """Changes when a file is added, removed or written, and with DEEP_VERSION."""
    inodes: str = ""
    """Changes also when a file is replaced by one of the same size and time, or when the folder is mounted anew."""
    notices: Sequence[str] = ()
    """Sentences about pictures and folders that were ignored, or that may have another meaning."""
    left_out: Sequence[tuple[str, str]] = ()
    """``Labels.left_out``."""
    doubt: str = ""
    """That one of ``notices`` which says that the classes may be in a table instead."""


def scan(config: DataConfig, reading: Reading = NOW) -> Listing:
    """List the pictures of ``config.path``, by the tables that ``config`` names, or else by folders.

    ``reading`` is what is ignored.

    Raises:
        DataError: as in ``scan_folder`` and ``read_labels``.
    """
    assert config.path is not None
    root = Path(os.path.realpath(config.path))  # ``resolve`` fails if links lead in a circle
    if config.labels is None:
        return scan_folder(root, reading=reading)
    return _scan_tables(config, root, reading)


def _scan_tables(config: DataConfig, root: Path, reading: Reading) -> Listing:
    labels = read_labels(config, root, reading)
    pictures = [
        Picture(one.file.name, one.label, one.split, partial(read_file, one.file.path), one.group)
        for one in sorted(labels.files, key=lambda one: one.file.name)
    ]
    classes = sorted({(f"class {one.class_name} in {one.split}", one.split, one.class_name) for one in pictures})
    files = [one.file for one in labels.files]
    said = [[stamp_of(one.file), one.label, one.split, one.group] for one in labels.files]
    return Listing(
        str(root),
        pictures,
        classes,
        sorted({one.split for one in pictures}),
        json.dumps([str(root), sorted(said), sorted(labels.left_out), *_deep_version(files)]),
        notices=labels.notices,
        left_out=labels.left_out,
        inodes=inodes_of(files),
    )


def scan_folder(root: Path, *, needs_train: bool = True, reading: Reading = NOW) -> Listing:
    """List the pictures below ``root``. Label tables are read; pictures are opened only to compare copies.

    The folders are train/CLASS/*, with or without val and test, by any of their names (``split_names.split_of``); or
    CLASS/*, which is all train. Class folders are searched to any depth and through symbolic links. Files beside class
    folders are not listed.

    Args:
        root: the data folder.
        needs_train: whether train is required. Off if a model is only tested: test/CLASS/* alone is then enough.
        reading: what is ignored.

    Raises:
        DataError: the folder is missing, cannot be listed, has no class folder, or its folders could mean several
            things. If a table seems to have the classes, the message has the settings that read the table.
    """
    tree = read_tree(root, reading)
    if not tree.holds_pictures and (told := records_elsewhere(tree, root)):
        raise DataError(f"{root}: {told}")
    suggestion = suggest_labels(tree, root)
    try:
        layout = read_layout(tree, str(root), needs_train=needs_train)
    except DataError as error:
        told = _about_labels(suggestion, tree, root)
        raise DataError(f"{error}\n{told}") if told else error from None
    agrees = suggestion is None or not suggestion.divides_folders
    if layout.below is not None and agrees:
        told = f"\n{suggestion.lines}" if suggestion is not None and suggestion.contradicts_folders else ""
        raise DataError(
            f"{root}: all pictures are in {layout.below.name}; if the folders in it ({names_of(layout.below.holding)}) "
            f"are the {'splits' if layout.has_splits else 'classes'}, use {option_for(layout.below, str(root))}{told}"
        )
    notices = [*_about_links(tree), *layout.notices]
    are_classes = layout.is_plain or (len(layout.train_classes) > 1 and agrees)
    if suggestion is not None and suggestion.is_clear and not are_classes:
        raise DataError(f"{root}: labels are in a table, not in the names of folders.\n{suggestion.lines}")
    if needs_train and len(layout.train_classes) == 1:
        one = f"{root}: there is one class, {layout.train_classes[0].base}, to train on, and a classifier needs two"
        told = _about_labels(suggestion, tree, root)
        if told:  # else the files are read first, so that all problems are told at once
            raise DataError(f"{one}; expected is {EXPECTED_LABELS}\n{told}")
    doubt = _doubt(suggestion, layout)
    notices += [doubt] if doubt else _about_tables(suggestion, layout, tree, root)
    raw = _raw_beside_pictures(layout)
    notices += _about_raw(raw)
    beside = [file for _, part in layout.parts for folder in part.folders for file in folder.walk() if file.is_text]
    texts = [file.name for file in beside if reading.texts or not _is_picture(file)]
    no_classes = layout.only_texts if len(texts) == len(beside) else []
    notices += [*_about_texts(texts), *_about_folders_of_texts(no_classes)]
    if texts and (told := labels_beside(tree, root) or describes_objects(tree)) is not None:
        notices.append(told)
    passed = {*raw, *texts}
    pictures: list[Picture] = []
    class_folders: list[tuple[str, str, str]] = []
    files: list[File] = []
    spelled: dict[str, str] = {}
    for split, part in sorted(layout.parts, key=lambda one: one[0] != "train"):
        for folder in part.folders:
            if folder.name in no_classes:
                continue
            # macOS writes an accent as a separate letter. People see the same name; the spelling in train is used.
            name = _readable(folder.base)
            class_name = spelled.setdefault(unicodedata.normalize("NFC", name), name)
            class_folders.append((folder.name, split, class_name))
            for file in folder.walk():
                if file.name not in passed:
                    pictures.append(Picture(file.name, class_name, split, partial(read_file, file.path)))
                    files.append(file)
    if not class_folders:
        raise DataError(_without_class_folders(suggestion, tree, root))
    pictures.sort(key=lambda picture: picture.name)
    stamp = json.dumps([str(root), sorted(class_folders), sorted(map(stamp_of, files)), *_deep_version(files)])
    own_splits = sorted({split for split, _ in layout.parts})
    return Listing(
        *(str(root), pictures, sorted(class_folders), own_splits, stamp),
        inodes=inodes_of(files),
        notices=notices,
        doubt=doubt,
    )


def _without_class_folders(suggestion: Suggestion | None, tree: Folder, root: Path) -> str:
    told = _about_labels(suggestion, tree, root)
    where = f"{root} holds no class folders; expected are CLASS/* or train/CLASS/*, pictures inside"
    if tree.pictures and not told:
        where += (
            f"; nothing says the class of {tree.pictures[0].name} and of the other pictures; put them into such "
            "folders, or write a table of labels (data.labels): a CSV file with the first line file,label and "
            f"lines such as {tree.pictures[0].name},CLASS"
        )
    return f"{where}\n{told}" if told else where


def _is_picture(file: File) -> bool:
    try:
        with Image.open(file.path):
            return True
    except Exception:  # Pillow's readers raise errors of many kinds
        return False


def _doubt(suggestion: Suggestion | None, layout: Layout) -> str:
    """A sentence about tables with other classes than the folders; "" without such tables."""
    if suggestion is None or not suggestion.contradicts_folders:
        return ""
    in_classes = {inner.name for folder in layout.train_classes for inner in folder.tree()}
    if layout.has_splits and in_classes.isdisjoint(suggestion.divided):
        return ""
    return f"the folders are taken for the classes, but {suggestion.lines}"


def _about_tables(suggestion: Suggestion | None, layout: Layout, tree: Folder, root: Path) -> Iterator[str]:
    """A sentence about a table with the classes of test pictures. Those pictures are in no class folder."""
    if not layout.has_splits or "test" in dict(layout.parts):
        return
    if suggestion is not None and suggestion.test_table:
        yield (
            f"{suggestion.test_table} has the classes of the test pictures; to train and test by tables, not by "
            f"folders, add to the study file:{suggestion.settings}"
        )
    elif suggestion is None and (told := about_test_table(tree, root)) is not None:
        yield told


def _about_labels(suggestion: Suggestion | None, tree: Folder, root: Path) -> str | None:
    """A sentence about the place in which the classes seem to be, if they are not in the names of folders."""
    if suggestion is not None:
        return suggestion.lines
    told = labels_beside(tree, root) or labels_elsewhere(tree, root)
    return told or describes_objects(tree) or classes_elsewhere(tree, root)


def folded(name: str) -> str:
    """A class's name in a form that is equal for names that look alike.

    It has no capitals, spaces or invisible characters, no _ or - between letters, and no zeros that a number does not
    need (01, 1.0). Letters that look like Latin ones become Latin. A name of one character may be a symbol, so it keeps
    its alphabet.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(one for one in plain if unicodedata.category(one) not in UNSEEN and one not in VARIATIONS)
    if len(seen) > 1:
        seen = BETWEEN_LETTERS.sub("", seen.translate(LOOK_ALIKES))
    return re.sub(r"0*(\d+)(\.0*)?", r"\1", seen) if re.fullmatch(r"[-+]?\d+(\.0*)?", seen) else seen


def _raw_beside_pictures(layout: Layout) -> list[str]:
    """The names of RAW files that have a picture of the same name beside them: cameras write 1.NEF beside 1.JPG."""
    files = [file for _, part in layout.parts for folder in part.folders for file in folder.walk()]
    pictures = {file.name.rpartition(".")[0] for file in files if file.is_picture}
    return [
        file.name
        for file in files
        if file.name.lower().endswith(RAW_ENDINGS) and file.name.rpartition(".")[0] in pictures
    ]


def _about_raw(names: Sequence[str]) -> list[str]:
    """A sentence about RAW files that are not used, if there are any."""
    if not names:
        return []
    if len(names) == 1:
        return [f"{names[0]} is RAW of a camera, and is not used, because a picture of the same name is beside it"]
    return [
        f"{len(names):,} files are RAW of a camera, and are not used, because pictures of the same names are beside "
        f"them, the first: {names[0]}"
    ]


def _about_texts(names: Sequence[str]) -> Iterator[str]:
    """A sentence for each ending of texts and annotations in class folders; they are not used."""
    endings = Counter(name.rpartition(".")[2].lower() for name in names)
    for ending, count in sorted(endings.items()):
        first = next(name for name in names if name.lower().endswith(f".{ending}"))
        if count == 1:
            yield f"{first} is not used, because no picture ends in .{ending}"
        else:
            yield f"{count:,} files are not used, because no picture ends in .{ending}, the first: {first}"


def _about_folders_of_texts(names: Sequence[str]) -> list[str]:
    """A sentence about folders that are no classes, if there are any."""
    if not names:
        return []
    are, them = ("has", "it is no class") if len(names) == 1 else ("have", "they are no classes")
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    return [f"{some} {are} only texts, code and annotations, so {them}; if pictures are missing, add them"]


def _about_links(tree: Folder) -> list[str]:
    """A sentence about links to folders that contain them, if there are any."""
    links = tree.links_back
    if not links:
        return []
    what = f"{links[0]} links" if len(links) == 1 else f"{len(links):,} links, the first: {links[0]}, lead"
    whom = "it is" if len(links) == 1 else "they are"
    return [f"{what} to a folder that {whom} in; {'it is' if len(links) == 1 else 'they are'} not followed"]


def _readable(name: str) -> str:
    """A folder's name as text for JSON and models, the same in each locale: a byte that is not UTF-8 is written as
    ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def stamp_of(file: File) -> str:
    """A text that changes when a file is written or its mode changes: a new mode may make the file readable."""
    info = file.info
    return f"{file.name}\0{info and (info.st_size, info.st_mtime_ns, info.st_mode)}"


def _deep_version(files: Iterable[File]) -> list[int]:
    """DEEP_VERSION, if a file may have more than 8 bits; else nothing, as in stamps of before."""
    return [] if all(file.base.lower().endswith(EIGHT_BITS) for file in files) else [DEEP_VERSION]


def inodes_of(files: Iterable[File]) -> str:
    """A hash that changes when a file is replaced, even by one of the same size and time."""
    stamps = sorted((file.name, file.info and [file.info.st_ino, file.info.st_ctime_ns]) for file in files)
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def read_file(path: Path) -> bytes:
    """The content of a file. Raises DataError if it cannot be read; the message is a clause to follow its name."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
            raise DataError("is not a regular file")
        content = path.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            target = str(path.readlink())
            annex = "; git annex get fetches its content" if ".git/annex/" in target else ""
            raise DataError(f"is a broken link, to {target}{annex}") from None
        raise DataError(f"cannot be opened ({error.strerror})") from None
    if not content:
        raise DataError("is empty (0 bytes)")
    if told := about_raw(path.name, content):
        raise DataError(told)
    return content
