"""SHA256SUMS, the checksums of an export's files: written, read and compared; checks of a teacher. Without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ConfigError
from trainer.kept import write_whole
from trainer.values import expanded

SUMS = "SHA256SUMS"
"""File with the SHA-256 of every other file of an export, in the format of ``sha256sum --check``."""

TEACHING = ("config.json", "metrics.json", "model.safetensors")
"""Files of an export that are read to load it as a teacher."""


POINTER_START = b"version https://git-lfs"
"""First bytes of a pointer of Git LFS. In a clone without Git LFS, pointers are in the place of large files."""

POINTER = ("it is a pointer of Git LFS in the place of the file", "fetch the file: git lfs pull")
"""The fault of a pointer, and its cure."""

CLONE = "clone its repository again with git clone -c core.autocrlf=false"
"""The cure of line ends that git has changed."""


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """The content of a folder's SHA256SUMS: path in the folder -> SHA-256.

    Raises:
        OSError, ValueError: the file is missing, or is not such a list.
    """
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def write_sums(folder: Path, but: Iterable[str] = ()) -> None:
    """Write SHA256SUMS of all files of a folder except those in ``but``."""
    left_out = {SUMS, *but}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in left_out)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_whole(folder / SUMS, "".join(lines).encode())


@dataclass(frozen=True)
class Altered:
    """A file of an export that is not as it was proven."""

    name: str
    """Its path in the export."""
    why: str
    """The difference, as a clause: "it is missing"."""
    cure: str = "export again"


def first_altered(folder: Path, listed: dict[str, str], names: Iterable[str]) -> Altered | None:
    """The first of these files that is missing, not listed, or differs from its checksum; None if there is none."""
    for name in names:
        file = folder / name
        if not file.is_file():
            return Altered(name, "it is missing")
        if is_pointer(file):
            return Altered(name, *POINTER)
        if name not in listed:
            return Altered(name, f"it is not in {SUMS}")
        if sha256(file) != listed[name]:
            return _difference(name, file, listed[name])
    return None


def is_pointer(file: Path) -> bool:
    """Whether Git LFS has put a pointer in the place of a file."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(POINTER_START)) == POINTER_START
    except OSError:
        return False


def _difference(name: str, file: Path, digest: str) -> Altered:
    """A file with another checksum than ``digest``."""
    content = file.read_bytes()
    if hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == digest:
        return Altered(name, "its line ends are CRLF, as git writes them with core.autocrlf", CLONE)
    return Altered(name, f"its SHA-256 is not that in {SUMS}")


def check_teacher(teacher: str) -> None:
    """Check the files of a teacher by its SHA256SUMS. Does nothing if it is not a folder with a config.json.

    Raises:
        ConfigError: a file is missing or has changed, or the folder or SHA256SUMS cannot be read.
    """
    folder = expanded(teacher)
    try:
        if not (folder / "config.json").exists():
            return
    except OSError as error:
        raise ConfigError(f"distill.teacher {folder} cannot be opened: {error.strerror}") from None
    try:
        altered = first_altered(folder, read_sums(folder), TEACHING)
    except (OSError, ValueError):
        cure = POINTER[1] if is_pointer(folder / SUMS) else "export again"
        raise ConfigError(
            f"distill.teacher {folder} is not an export that can be loaded: no usable {SUMS}; {cure}"
        ) from None
    if altered is not None:
        raise ConfigError(
            f"distill.teacher {folder}: {altered.name} is not the file that was proven ({altered.why}); {altered.cure}"
        )


def background_of_teacher(teacher: str) -> str | None:
    """The ``data.background`` with which an export was trained; None for the name of a timm model."""
    try:
        described = json.loads((expanded(teacher) / "config.json").read_text(encoding="utf-8"))
        return str(described.get("background", "keep"))
    except (OSError, ValueError, AttributeError):  # not an export, or one that ``trainer.distill`` refuses
        return None
