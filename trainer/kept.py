"""Small files that are read back: written beside their place, synced, moved there. A JSON file holds the CRC-32 of its
values.

The CRC finds changes by disks, crashes and other programs. A file with a wrong CRC is not used, and is reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from trainer.values import Json

SUM = "crc32"


class Altered(ValueError):
    """The content of a file is not the content that was written; the message says why."""


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that after a crash at any instant the old or the new one is there.

    Args:
        path: the file.
        content: all of it.
        durable: whether the file survives a power cut too. Off for files that are written again every minute.

    Raises:
        OSError: any step failed; the error has the file's name.
    """
    with written_aside(path, durable=durable) as file:
        file.write(content)


@contextlib.contextmanager
def written_aside(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """As ``write_whole``, for a file that is written in parts. If an exception ends the writing, nothing is changed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def move_into_place(partial: Path, path: Path) -> None:
    """Durably move a finished file to its place. The file that was there is kept as the previous one."""
    if path.exists():
        path.replace(previous_of(path))
    partial.replace(path)
    sync_folder(path.parent)


def previous_of(path: Path) -> Path:
    """The path of the previous file, which ``move_into_place`` keeps."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable, so that a power cut does not undo a move."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def with_sum(values: Mapping[str, Json]) -> bytes:
    """The content of a file with these values and their checksum."""
    return json.dumps({**values, SUM: _sum(values)}).encode()


def write_checked(path: Path, values: Mapping[str, Json], *, durable: bool = True) -> None:
    """Write values and their checksum with ``write_whole``."""
    write_whole(path, with_sum(values), durable=durable)


def read_checked(path: Path) -> dict[str, Json]:
    """The values that ``write_checked`` wrote.

    Raises:
        OSError: the file cannot be read; FileNotFoundError if it is missing.
        Altered: the content is not the content that was written.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Altered(f"{path} is damaged ({error})") from None
    if not isinstance(values, dict) or values.pop(SUM, None) != _sum(values):
        raise Altered(f"{path} is damaged, or of another version (its checksum differs)")
    return values


def recall(path: Path, cure: str) -> dict[str, Json] | None:
    """The values that ``write_checked`` wrote, from a file that can be made again; None if it cannot be used.

    A damaged file causes a warning that ends with the cure: "its pictures are measured again".
    """
    try:
        return read_checked(path)
    except OSError:
        return None
    except Altered as error:
        warnings.warn(f"{error}; {cure}", stacklevel=3)
        return None


def _sum(values: Mapping[str, Json]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
