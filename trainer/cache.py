"""Pictures decoded once: the memory-mapped uint8 copy that all workers share.

    CACHE_DIR/birds-224px-1f2e3d4c5b6a/
        pictures.npy    [N, S, S, C] uint8, one row a readable picture, in the order of the names
        index.json      their names, classes, splits and hashes; the bad files; what made this cache; CRC-32 of all

A cache is built in a ``.partial-`` folder beside it and moved in place when it is whole, and never changed
after. Its name ends in a hash of everything that shapes it, so a changed file means another cache. A bit that
a disk has changed is found where data are prepared, once for each launch, and the cache built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from trainer.config import DataConfig
from trainer.cores import num_cores
from trainer.errors import DataError, DiskError, as_lines
from trainer.identity import identity
from trainer.kept import sync_folder
from trainer.pictures import Reading
from trainer.scan import Listing, Picture, Source

__all__ = ["BadFile", "Cache", "Progress", "as_lines", "build_cache", "open_cache"]

logger = logging.getLogger(__name__)

CACHE_VERSION = 4
"""Raised by hand whenever the same files would give other pixels or another index."""

SHAPING = ("image_size", "resize", "interpolation", "crop_pct", "channels")
"""Settings of DataConfig that decide what the pixels are."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (stage, done, total), always from the thread that asked for the data."""

CHECKED_BYTES = 1 << 24
"""Read at once, by each thread, where a cache is compared with its CRC-32."""


@dataclass(frozen=True)
class BadFile:
    """A file in a class folder that cannot be used, and why."""

    name: str
    reason: str


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
    groups: list[str]
    """What a table says must not stand on both sides of a split; "" where it says nothing."""
    sha256: list[str]
    crc32: list[int]
    """Of each picture's pixels."""
    class_folders: list[list[str]]
    own_splits: list[str]
    bad: list[list[str]]
    misread: list[list[str]]
    """[name, why] of pictures that a plain convert("RGB") reads otherwise."""
    index_crc32: int
    """Of all the rest of the index."""


def build_cache(
    config: DataConfig,
    cache_dir: Path,
    *,
    title: str,
    stamp: str,
    list_pictures: Callable[[], Listing],
    read: Callable[[Source], Reading],
    progress: Progress | None = None,
) -> Cache:
    """Open the cache of these pictures; build it first where there is none, or a damaged one.

    Many parameters: the source's name, stamp, list and reader, none of which the cache knows by itself.

    Two processes that ask at once build it once. ``list_pictures`` is called only to build, and ``read`` in
    several threads at once: Pillow decodes and resizes without holding the interpreter lock.

    Raises DataError where no picture is readable and DiskError where there is no room.
    """
    size = config.image_size
    made_for = shaping(config)
    key = hashlib.sha256(
        json.dumps([CACHE_VERSION, PIL.__version__, made_for, stamp], sort_keys=True).encode()
    ).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", title).strip("._")[:40] or "pictures"
    final = cache_dir / f"{name}-{size}px-{key[:12]}"
    logger.debug("decoded pictures of %s: %s", title, final)
    with suppress(DataError):  # before any lock, so a finished cache can lie where nobody may write
        return _open_whole(final, progress)
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
                return _open_whole(final, progress)
            if final.exists():
                warnings.warn(f"the picture cache {final} is damaged; its pictures are decoded again", stacklevel=3)
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
            sync_folder(cache_dir)
        finally:
            lock.release()
    except OSError as error:
        raise DiskError(f"the picture cache cannot be written in {cache_dir}: {error.strerror or error}") from None
    return open_cache(final)


def shaping(config: DataConfig) -> dict[str, Any]:
    """The settings that shape the decoded pictures; a later one counts where it is not its default."""
    return {name: value for name, value in identity(config).items() if name in SHAPING}


def _decode_all(
    folder: Path,
    made_for: dict[str, Any],
    list_pictures: Callable[[], Listing],
    read: Callable[[Source], Reading],
    progress: Progress | None,
) -> None:
    """Write pictures.npy and index.json into ``folder``, durably."""
    threads = num_cores()
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
        good: list[tuple[Picture, str, int]] = []
        bad = [BadFile(*one) for one in listing.left_out]
        misread: list[list[str]] = []
        try:
            for done, (picture, future) in enumerate(_in_order(pool, listing.pictures, read, 8 * threads), start=1):
                try:
                    sha256, reading = future.result()
                except DataError as error:
                    bad.append(BadFile(picture.name, str(error)))
                else:
                    content = reading.pixels.tobytes()
                    file.write(content)
                    good.append((picture, sha256, zlib.crc32(content)))
                    if reading.misread:
                        misread.append([picture.name, reading.misread])
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
        "names": [picture.name for picture, _, _ in good],
        "classes": [picture.class_name for picture, _, _ in good],
        "splits": [picture.split for picture, _, _ in good],
        "groups": [picture.group for picture, _, _ in good],
        "sha256": [sha256 for _, sha256, _ in good],
        "crc32": [crc32 for _, _, crc32 in good],
        "class_folders": listing.class_folders,
        "own_splits": listing.own_splits,
        "bad": [[file.name, file.reason] for file in bad],
        "misread": misread,
    }
    with (folder / "index.json").open("w", encoding="ascii") as text:
        json.dump(index | {"index_crc32": _index_crc32(index)}, text)
        text.flush()
        os.fsync(text.fileno())
    sync_folder(folder)


def _in_order(
    pool: ThreadPoolExecutor,
    pictures: Sequence[Picture],
    read: Callable[[Source], Reading],
    ahead: int,
) -> Iterator[tuple[Picture, Future[tuple[str, Reading]]]]:
    """Decode in the pool and yield in order; at most ``ahead`` decoded pictures are in memory."""

    def decode(picture: Picture) -> tuple[str, Reading]:
        source = picture.load()
        content = source if isinstance(source, bytes) else source.tobytes()
        return hashlib.sha256(content).hexdigest(), read(source)

    waiting: deque[tuple[Picture, Future[tuple[str, Reading]]]] = deque()
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


def _index_crc32(index: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode("ascii"))


def _open_whole(path: Path, progress: Progress | None) -> Cache:
    """``open_cache``, and read all of it: about a second per GB; raises DataError also where a byte was altered.

    A CRC finds what disks and crashes do; SHA-256 takes several seconds where the processor does not help.
    """
    cache = open_cache(path)
    index = {name: value for name, value in vars(cache).items() if name not in ("path", "images", "index_crc32")}
    altered = DataError(f"the picture cache {path} is not what was written; launch again to rebuild it")
    if _index_crc32(index) != cache.index_crc32:
        raise altered
    size, total = cache.images[0].nbytes, len(cache.images)
    at_once = max(1, CHECKED_BYTES // size)
    starts = range(0, total, at_once)
    try:
        # Read, not mapped: what the disk does not give is an error then, and no SIGBUS.
        with (path / "pictures.npy").open("rb") as file, ThreadPoolExecutor(num_cores(), "check") as pool:
            pixels = os.fstat(file.fileno()).st_size - total * size

            def is_whole(first: int) -> bool:
                expected = cache.crc32[first : first + at_once]
                content = memoryview(os.pread(file.fileno(), len(expected) * size, pixels + first * size))
                return expected == [zlib.crc32(content[i * size : (i + 1) * size]) for i in range(len(expected))]

            for first, whole in zip(starts, pool.map(is_whole, starts), strict=True):
                if not whole:
                    raise altered
                if progress is not None:
                    progress("checking the decoded pictures", min(first + at_once, total), total)
    except OSError:
        raise altered from None
    return cache


def open_cache(path: Path) -> Cache:
    """Open a cache that ``build_cache`` made; raises DataError where it is missing, cut short or garbled."""
    try:
        cache = Cache(
            path=path,
            images=np.load(path / "pictures.npy", mmap_mode="r"),
            **json.loads((path / "index.json").read_text("ascii")),
        )
        columns = (cache.names, cache.classes, cache.splits, cache.groups, cache.sha256, cache.crc32)
        side, channels = cache.made_for["image_size"], cache.made_for["channels"]
        shapes = {(len(column), side, side, channels) for column in columns}
        if cache.images.dtype != np.uint8 or shapes != {cache.images.shape}:
            raise ValueError("pictures.npy and index.json disagree")
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise DataError(
            f"the picture cache {path} is missing or damaged ({error}); launch again to rebuild it"
        ) from None
    return cache
