"""Whether a cache still has the pictures of its folder, if files were replaced by others of the same size and time.

The name of a cache depends on names, sizes and times of files, which ``cp -p`` and ``mv`` keep. Such a replacement
changes the inode or the time of the inode's last change (ctime), as git compares them. Harmless things change them,
too: another mount, a copy that was put back. Therefore the pictures are then read, and compared with the hashes in the
cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from trainer.cores import in_order, num_cores
from trainer.errors import DataError
from trainer.kept import Altered, read_checked, write_checked
from trainer.pictures import Reading
from trainer.scan import Listing, Picture, Source

__all__ = ["compared", "content_of", "key_of", "remember"]

COMPARED = "compared.json"
"""File in a cache: the files with which it was last compared, and the name of the cache that has their content."""


def compared(folder: Path, inodes: str) -> str | None:
    """Name of the cache that has the content of files with these inodes; None if they are not compared yet."""
    with suppress(OSError, Altered):
        known = read_checked(folder / COMPARED)
        name = known.get("cache")
        if known.get("inodes") == inodes and isinstance(name, str) and Path(name).name == name:
            return name
    return None


def remember(folder: Path, inodes: str, name: str) -> None:
    """Store that the cache ``name`` has the content of files with these inodes. Does nothing if the
    folder cannot be written to."""
    with suppress(OSError):  # without this file, the pictures are compared at each launch
        write_checked(folder / COMPARED, {"inodes": inodes, "cache": name})


def content_of(
    listing: Listing, bad: Collection[str], read: Callable[[Source], Reading], progress: Callable[[int, int], None]
) -> dict[str, str]:
    """Name of each file -> SHA-256 of its content, or the reason why it cannot be used.

    ``bad`` has the files that could not be used before. They are decoded, because a cache has no hashes of them.
    """

    def hashed(picture: Picture) -> str:
        source = picture.load()
        if picture.name in bad:
            read(source)
        return hashlib.sha256(source if isinstance(source, bytes) else source.tobytes()).hexdigest()

    found = dict(listing.left_out)
    threads = num_cores()
    pool = ThreadPoolExecutor(threads, "compare")
    try:
        for done, (picture, future) in enumerate(in_order(pool, hashed, listing.pictures, 8 * threads), start=1):
            try:
                found[picture.name] = future.result()
            except DataError as error:
                found[picture.name] = str(error)
            progress(done, len(listing.pictures))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def key_of(first: str, content: dict[str, str]) -> str:
    """A hash for the name of the cache of replaced files: of the first cache's name, which depends on the settings, and
    of the content of all files."""
    return hashlib.sha256(json.dumps([first, content], sort_keys=True).encode()).hexdigest()[:12]
