"""What a folder is to the system and to this process: a mount point, the current folder."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at a path: another disk or, as a container's volume, a folder of the same disk."""
    if os.path.ismount(path):
        return True
    name = os.fsencode(path.resolve())
    for char in b"\\ \t\n":  # the system writes them in octal, the backslash first
        name = name.replace(bytes([char]), b"\\%03o" % char)
    with contextlib.suppress(OSError):
        return any(line.split(b" ")[4] == name for line in Path("/proc/self/mountinfo").read_bytes().splitlines())
    return False


@contextlib.contextmanager
def in_same_folder() -> Iterator[None]:
    """If the block puts another folder in the place of the current one, the other one becomes the current folder. So
    relative paths have the same meaning afterwards. A warning says that the shell is still in the old folder."""
    try:
        here, before = Path.cwd(), Path().stat()
    except OSError:  # deleted meanwhile, or closed to this user
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder was moved, with this process in it, and none is in its place
            if not os.path.samestat(before, here.stat()):
                os.chdir(here)
                warnings.warn(
                    f'the export has replaced the current folder {here}; your shell is still in the old one: cd "$PWD"',
                    stacklevel=4,
                )
