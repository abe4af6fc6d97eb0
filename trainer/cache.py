"""The cache: all pictures decoded once into a memory-mapped uint8 array, which all workers share.

    CACHE_DIR/birds-224px-1f2e3d4c5b6a/
        pictures.npy        [N, S, S, C] uint8, one row for each readable picture, in the order of the index
        index.json          names, classes, splits and hashes of the pictures; bad files; the settings; CRC-32s
        statistics-*.json   channel statistics of a training split, written by trainer.data when they are needed
        compared.json       the files that its pictures were last compared with (``trainer.same``)

A cache is built in a ``.partial-`` folder beside its place, and moved into place when it is complete. Its pictures and
its index never change after that. Its name ends in a hash of all that decides its content, so a changed picture leads
to another cache. Each launch compares the cache with its CRC-32s; a damaged cache is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from trainer.config import DataConfig
from trainer.cores import in_order, num_cores
from trainer.eight_bits import cure_of_not_finite
from trainer.errors import DataError, DiskError, as_lines
from trainer.identity import identity
from trainer.kept import sync_folder
from trainer.pictures import Reading
from trainer.same import compared, content_of, key_of, remember
from trainer.scan import Listing, Picture, Source

__all__ = ["BadFile", "Cache", "Progress", "as_lines", "build_cache", "open_cache", "open_whole"]

logger = logging.getLogger(__name__)

CACHE_VERSION = 4
"""Version of the decoding. Raised by hand whenever the same files would give other pixels or another index."""

SHAPING = ("image_size", "cache_size", "resize", "interpolation", "crop_pct", "background", "channels")
"""Settings of DataConfig that decide the pixels."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""A function that is called with (stage, done, total), in the thread that asked for the data."""

CHECKED_BYTES = 1 << 24
"""About how many bytes of pictures each thread reads at once, to compute the CRC-32 of each."""


@dataclass(frozen=True)
class BadFile:
    """A file, or a row of a label table, that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Cache:
    """An open cache. The lists from ``names`` to ``crc32`` have one entry for each of ``images``, in the same order."""

    path: Path
    images: NDArray[np.uint8]
    """[N, S, S, C], memory-mapped and read-only."""
    made_for: dict[str, Any]
    root: str
    names: list[str]
    classes: list[str]
    splits: list[str]
    groups: list[str]
    """The group that a label table gives each picture; no drawn split divides a group. "" without a group."""
    sha256: list[str]
    crc32: list[int]
    """CRC-32 of each picture's pixels."""
    class_folders: list[list[str]]
    own_splits: list[str]
    bad: list[list[str]]
    misread: list[list[str]]
    """[name, reason] of the pictures that a plain convert("RGB") reads differently."""
    index_crc32: int
    """CRC-32 of the other values of the index."""
    scales: list[list[str]] = field(default_factory=list)
    """[name, scale] of the pictures of more than 8 bits whose scale ``misread`` does not tell. If there are none, the
    index leaves it out, as the first versions of this program did."""


def build_cache(
    config: DataConfig,
    cache_dir: Path,
    *,
    title: str,
    stamp: str,
    inodes: str,
    list_pictures: Callable[[], Listing],
    read: Callable[[Source], Reading],
    progress: Progress | None = None,
) -> Cache:
    """Open the cache of these pictures. If it is missing or damaged, build it first.

    Many parameters: the source's name, stamps, list and reader, which the cache gets from its caller.

    If files of the same size and time have replaced others (``inodes`` has changed), the pictures are compared with the
    cache. If their content differs, they get a cache of their own, because a search may still read the old one.

    If two processes call this at the same time, only one of them builds the cache. ``list_pictures`` is called only to
    build it, or to compare the pictures with it. ``read`` is called in several threads at once: Pillow decodes and
    resizes without the interpreter lock.

    Raises:
        DataError: no picture is readable.
        DiskError: the cache cannot be written, for example because the disk is full.
    """
    made_for = shaping(config)
    by = [PIL.__version__, *([version("opencv-python-headless")] if config.background == "grabcut" else [])]
    key = hashlib.sha256(json.dumps([CACHE_VERSION, *by, made_for, stamp], sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", title).strip("._")[:40] or "pictures"
    first = cache_dir / f"{name}-{config.cached_side}px-{key[:12]}"
    final = first
    if inodes and (known := compared(first, inodes)) is not None:
        final = cache_dir / known
    elif inodes:
        with suppress(DataError):  # there is no whole cache yet
            final = _with_same_pictures(open_whole(first, progress), list_pictures(), read, progress)
    cache = _open_or_build(final, made_for, list_pictures, read, progress)
    if inodes and compared(first, inodes) != final.name:
        remember(first, inodes, final.name)
    return cache


def _with_same_pictures(
    cache: Cache, listing: Listing, read: Callable[[Source], Reading], progress: Progress | None
) -> Path:
    """The place of the cache of these pictures: ``cache`` if their content is the same."""

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("comparing the pictures with their cache", done, total)

    bad = dict(cache.bad)
    content = content_of(listing, bad, read, report)
    if content == bad | dict(zip(cache.names, cache.sha256, strict=True)):
        return cache.path
    first = cache.path.name
    return cache.path.with_name(f"{first.rpartition('-')[0]}-{key_of(first, content)}")


def _open_or_build(
    final: Path,
    made_for: dict[str, Any],
    list_pictures: Callable[[], Listing],
    read: Callable[[Source], Reading],
    progress: Progress | None,
) -> Cache:
    """Open the cache in this place. If it is missing or damaged, build it first."""
    cache_dir = final.parent
    unfinished = cache_dir / f".partial-{final.name}"
    logger.debug("decoded pictures: %s", final)
    with suppress(DataError):  # without a lock, because the folder of a finished cache may be read-only
        return open_whole(final, progress)
    for path in (final, unfinished, cache_dir, *cache_dir.parents):
        if _is_in_the_way(path, cache_dir):
            raise DiskError(
                f"the picture cache needs a folder in the place of {path}, which is a file or a link; move that away, "
                "and the same command goes on"
            )
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
                return open_whole(final, progress)
            if final.exists():
                warnings.warn(f"the picture cache {final} is damaged; its pictures are decoded again", stacklevel=4)
            # The holder of the lock owns both folders: their files are damaged, or were left by a killed process.
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


def _is_in_the_way(path: Path, cache_dir: Path) -> bool:
    """Whether a file, or a link in place of a cache, is where a folder is needed."""
    with suppress(OSError):
        mode = path.lstat().st_mode
        return not stat.S_ISDIR(mode) and (path.parent == cache_dir or not (stat.S_ISLNK(mode) and path.is_dir()))
    return False


def shaping(config: DataConfig) -> dict[str, Any]:
    """The settings that decide the pixels. A setting that a later version added is left out at its default
    (``trainer.identity``)."""
    return {name: value for name, value in identity(config).items() if name in SHAPING}


def side_of(made_for: dict[str, Any]) -> int:
    """Height and width in pixels of the pictures of a cache with these settings."""
    side: int = made_for.get("cache_size", made_for["image_size"])
    return side


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

    def decode(picture: Picture) -> tuple[str, Reading]:
        source = picture.load()
        content = source if isinstance(source, bytes) else source.tobytes()
        return hashlib.sha256(content).hexdigest(), read(source)

    # Filters of warnings belong to the whole process, so they are set once here and never in a thread. The user need
    # not see Pillow's warnings (of palettes, of odd TIFF tags): a picture that cannot be used causes an error.
    with warnings.catch_warnings(), (folder / "pictures.npy").open("wb") as file:
        warnings.simplefilter("ignore")
        # Load Pillow's formats now, not in all threads at once. ``preinit`` puts the common formats first. Otherwise
        # Pillow tries 20 other formats on each JPEG (5,900 birds of 64 pixels take 5.4 s instead of 3.7 s).
        Image.preinit()
        Image.init()
        listing = list_pictures()
        total, side, channels = len(listing.pictures), side_of(made_for), made_for["channels"]
        _check_room(folder, total * (side * side * channels + 300))

        # Written one after the other, not into a memory map: then a bad file leaves no gap, and a full disk raises an
        # OSError. In a memory map, a full disk would cause a SIGBUS, which cannot be caught.
        _write_header(file, (total, side, side, channels))
        header_size = file.tell()
        good: list[tuple[Picture, str, int]] = []
        bad = [BadFile(*one) for one in listing.left_out]
        misread, scales = list[list[str]](), list[list[str]]()
        try:
            decoded = in_order(pool, decode, listing.pictures, 8 * threads)
            for done, (picture, future) in enumerate(decoded, start=1):
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
                    if reading.scale not in ("", reading.misread):
                        scales.append([picture.name, reading.scale])
                if progress is not None:
                    progress("decoding pictures", done, total)
        finally:
            pool.shutdown(cancel_futures=True)
        if not good:
            problems = [f"{file.name}: {file.reason}" for file in bad] or ["its class folders are empty"]
            finite = cure_of_not_finite(listing.root, [(file.name, file.reason) for file in bad])
            raise DataError(f"{listing.root} holds no readable picture:{as_lines(problems)}{finite}")
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
        **({"scales": scales} if scales else {}),
    }
    _write_index(folder, index)


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    with (folder / "index.json").open("w", encoding="ascii") as text:
        json.dump(index | {"index_crc32": _index_crc32(index)}, text)
        text.flush()
        os.fsync(text.fileno())
    sync_folder(folder)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskError(
            f"the picture cache needs {needed / 1e9:.3f} GB in {folder.parent} and {free / 1e9:.3f} GB are"
            " free there; make room, or choose a smaller image_size (or cache_size)"
        )


def _index_crc32(index: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode("ascii"))


def open_whole(path: Path, progress: Progress | None = None) -> Cache:
    """Open a cache and compare it with its CRC-32s, which takes about a second per GB.

    A CRC is enough to find damage by disks and crashes. A SHA-256 would take several seconds per GB on CPUs without
    instructions for it.

    Raises:
        DataError: as in ``open_cache``, or the cache was altered.
    """
    cache = open_cache(path)
    index = {name: value for name, value in vars(cache).items() if name not in ("path", "images", "index_crc32")}
    altered = DataError(f"the picture cache {path} was altered or cannot be read; launch again to rebuild it")
    if not cache.scales:
        del index["scales"]
    if _index_crc32(index) != cache.index_crc32:
        raise altered
    size, total = cache.images[0].nbytes, len(cache.images)
    at_once = max(1, CHECKED_BYTES // size)
    starts = range(0, total, at_once)
    try:
        # Read, not memory-mapped: if the disk fails, that is an error and not a SIGBUS.
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
    """Open a cache that ``build_cache`` made. Raises DataError if it is missing, cut short or unreadable."""
    try:
        cache = Cache(
            path=path,
            images=np.load(path / "pictures.npy", mmap_mode="r"),
            **json.loads((path / "index.json").read_text("ascii")),
        )
        columns = (cache.names, cache.classes, cache.splits, cache.groups, cache.sha256, cache.crc32)
        side, channels = side_of(cache.made_for), cache.made_for["channels"]
        shapes = {(len(column), side, side, channels) for column in columns}
        if cache.images.dtype != np.uint8 or shapes != {cache.images.shape}:
            raise ValueError("pictures.npy and index.json disagree")
        if (path / "pictures.npy").stat().st_size - cache.images.nbytes != getattr(cache.images, "offset", None):
            raise ValueError("the header of pictures.npy is damaged")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, TokenError) as error:
        raise DataError(
            f"the picture cache {path} is missing or damaged ({error}); launch again to rebuild it"
        ) from None
    return cache
