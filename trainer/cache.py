"""Pictures decoded once: what lies in a data folder, and the memory-mapped uint8 copy that all workers share.

    CACHE_DIR/birds-224px-1f2e3d4c5b6a/
        pictures.npy    [N, S, S, C] uint8, one row a readable picture, in the order of the names
        index.json      their names, classes, splits and hashes; the bad files; what made this cache

A cache is built in a ``.partial-`` folder beside it and moved in place when it is whole, and never changed
after. Its name ends in a hash of everything that shapes it, so a changed file means another cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from trainer.config import DataConfig
from trainer.errors import DataError, DiskError

__all__ = [
    "BadFile",
    "Cache",
    "Listing",
    "Picture",
    "Progress",
    "as_lines",
    "build_cache",
    "open_cache",
    "scan_folder",
]

CACHE_VERSION = 2
"""Raised by hand whenever the same files would give other pixels or another index."""

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder name -> split; Kaggle's bird folders say "valid"."""

LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
"""What operating systems leave in folders, in lower case; passed over in silence, as every hidden file is."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (stage, done, total), always from the thread that asked for the data."""

Source: TypeAlias = bytes | Image.Image


@dataclass(frozen=True)
class BadFile:
    """A file in a class folder that cannot be used, and why."""

    name: str
    reason: str


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Cache:
    """A cache that was opened; the lists run parallel to the first axis of ``images``."""

    path: Path
    images: NDArray[np.uint8]
    """[N, S, S, C], read-only, on disk until touched."""
    made_for: dict[str, Any]
    root: str
    names: list[str]
    classes: list[str]
    splits: list[str]
    sha256: list[str]
    class_folders: list[list[str]]
    own_splits: list[str]
    bad: list[list[str]]


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


def build_cache(
    config: DataConfig,
    cache_dir: Path,
    *,
    title: str,
    stamp: str,
    list_pictures: Callable[[], Listing],
    read: Callable[[Source], NDArray[np.uint8]],
    progress: Progress | None = None,
) -> Cache:
    """Open the cache of these pictures; build it first where there is none, or a damaged one.

    Two processes that ask at once build it once. ``list_pictures`` is called only to build, and ``read`` in
    several threads at once: Pillow decodes and resizes without holding the interpreter lock.

    Raises DataError where no picture is readable and DiskError where there is no room.
    """
    size = config.image_size
    made_for = config.model_dump(include={"image_size", "resize", "interpolation", "crop_pct", "channels"})
    key = hashlib.sha256(
        json.dumps([CACHE_VERSION, PIL.__version__, made_for, stamp], sort_keys=True).encode()
    ).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", title).strip("._")[:40] or "pictures"
    final = cache_dir / f"{name}-{size}px-{key[:12]}"
    with suppress(DataError):  # before any lock, so a finished cache can lie where nobody may write
        return open_cache(final)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache_dir / f".{final.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress is not None:
                progress("waiting for another process that decodes the same pictures", 0, 1)
            lock.acquire()
        try:
            with suppress(DataError):
                return open_cache(final)
            # Whoever holds the lock owns both names: what lies there is damaged, or left by a killed process.
            unfinished = cache_dir / f".partial-{final.name}"
            for leftover in (final, unfinished):
                if leftover.exists():
                    shutil.rmtree(leftover)
            try:
                unfinished.mkdir()
                _decode_all(unfinished, made_for, list_pictures, read, progress)
                unfinished.rename(final)
            except BaseException:  # Ctrl-C too
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            _sync(cache_dir)
        finally:
            lock.release()
    except OSError as error:
        raise DiskError(f"the picture cache cannot be written in {cache_dir}: {error.strerror or error}") from None
    return open_cache(final)


def _decode_all(
    folder: Path,
    made_for: dict[str, Any],
    list_pictures: Callable[[], Listing],
    read: Callable[[Source], NDArray[np.uint8]],
    progress: Progress | None,
) -> None:
    """Write pictures.npy and index.json into ``folder``, durably."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, "decode")
    # The filters of warnings belong to the whole process: set once here, never in a thread. What Pillow
    # warns of (palettes, odd TIFF tags) is no news to the user; what makes a picture unfit is an error.
    with warnings.catch_warnings(), (folder / "pictures.npy").open("wb") as file:
        warnings.simplefilter("ignore")
        # Load Pillow's formats now, not in all threads at once; common ones first, or each JPEG is offered
        # to the 20 formats before J in the alphabet (5,900 birds of 64 pixels: 5.4 s, not 3.7 s).
        Image.preinit()
        Image.init()
        listing = list_pictures()
        total, side, channels = len(listing.pictures), made_for["image_size"], made_for["channels"]
        _check_room(folder, total * (side * side * channels + 300))

        # Written one after the other, not into a memory map: a bad file leaves no hole, and a disk that is
        # full after all is an OSError, where storing into a mapped hole is a SIGBUS that nobody can catch.
        _write_header(file, (total, side, side, channels))
        header_size = file.tell()
        good: list[tuple[Picture, str]] = []
        bad: list[BadFile] = []
        try:
            for done, (picture, future) in enumerate(_in_order(pool, listing.pictures, read, 8 * threads), start=1):
                try:
                    sha256, pixels = future.result()
                except DataError as error:
                    bad.append(BadFile(picture.name, str(error)))
                else:
                    file.write(pixels.tobytes())
                    good.append((picture, sha256))
                if progress is not None:
                    progress("decoding pictures", done, total)
        finally:
            pool.shutdown(cancel_futures=True)
        if not good:
            problems = [f"{file.name}: {file.reason}" for file in bad] or ["its class folders are empty"]
            raise DataError(f"{listing.root} holds no readable picture:{as_lines(problems)}")
        file.seek(0)
        _write_header(file, (len(good), side, side, channels))
        assert file.tell() == header_size, "numpy pads the header so that the length of the first axis can change"
        file.flush()
        os.fsync(file.fileno())
    index = {
        "made_for": made_for,
        "root": listing.root,
        "names": [picture.name for picture, _ in good],
        "classes": [picture.class_name for picture, _ in good],
        "splits": [picture.split for picture, _ in good],
        "sha256": [sha256 for _, sha256 in good],
        "class_folders": listing.class_folders,
        "own_splits": listing.own_splits,
        "bad": [[file.name, file.reason] for file in bad],
    }
    with (folder / "index.json").open("w", encoding="ascii") as text:
        json.dump(index, text)
        text.flush()
        os.fsync(text.fileno())
    _sync(folder)


def _in_order(
    pool: ThreadPoolExecutor,
    pictures: Sequence[Picture],
    read: Callable[[Source], NDArray[np.uint8]],
    ahead: int,
) -> Iterator[tuple[Picture, Future[tuple[str, NDArray[np.uint8]]]]]:
    """Decode in the pool and yield in order; at most ``ahead`` decoded pictures are in memory."""

    def decode(picture: Picture) -> tuple[str, NDArray[np.uint8]]:
        source = picture.load()
        content = source if isinstance(source, bytes) else source.tobytes()
        return hashlib.sha256(content).hexdigest(), read(source)

    waiting: deque[tuple[Picture, Future[tuple[str, NDArray[np.uint8]]]]] = deque()
    for picture in pictures:
        waiting.append((picture, pool.submit(decode, picture)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    yield from waiting


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskError(
            f"the picture cache needs {needed / 1e9:.3f} GB in {folder.parent} and {free / 1e9:.3f} GB are"
            " free there; make room, or choose a smaller image_size"
        )


def _sync(folder: Path) -> None:
    """Make a folder's entries durable, so that a power cut does not undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_cache(path: Path) -> Cache:
    """Open a cache that ``build_cache`` made; raises DataError where it is missing, cut short or garbled."""
    try:
        cache = Cache(
            path=path,
            images=np.load(path / "pictures.npy", mmap_mode="r"),
            **json.loads((path / "index.json").read_text("ascii")),
        )
        columns = (cache.names, cache.classes, cache.splits, cache.sha256)
        side, channels = cache.made_for["image_size"], cache.made_for["channels"]
        if any(cache.images.shape != (len(column), side, side, channels) for column in columns):
            raise ValueError("pictures.npy and index.json disagree")
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise DataError(
            f"the picture cache {path} is missing or damaged ({error}); launch again to rebuild it"
        ) from None
    return cache


def as_lines(problems: Sequence[str]) -> str:
    """At most 50 problems, each on a line of its own, then how many more there are."""
    more = [f"... and {len(problems) - 50} more"] * (len(problems) > 50)
    # Names of files may hold anything: a line break, or bytes that no terminal can print.
    shown = [line if line.isprintable() else ascii(line)[1:-1] for line in problems[:50]]
    return "".join(f"\n  {line}" for line in shown + more)
