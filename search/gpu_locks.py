"""Locks on GPUs against other searches on this machine, and warnings about GPUs that other programs use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path

from search.console import Say
from search.devices import WorkerDevice
from search.errors import DeviceHeld
from search.words import megabytes

LOCK_FOLDERS = (Path("/run/lock"), Path("/tmp"))
"""Folders for GPU locks. The first in which all users may write, but not remove each other's files, is used.

/run/lock is made for locks, but not all distributions let all users write there. $TMPDIR is not in the list, because
each user may have another one.
"""

FILLED_SHARE = 0.5
"""Share of a GPU's memory that other programs may use before the user is warned. A desktop uses some 100 MB."""


class HeldDevices:
    """The locks of GPUs against other searches and exports on this machine, of any user. The CPU is never locked.

    Args:
        say: called with a warning about each GPU that another program fills, or that cannot be locked. Such a GPU is
            used nevertheless.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._locks: dict[str, contextlib.ExitStack] = {}

    def hold(self, devices: list[WorkerDevice]) -> None:
        """Lock the GPUs of these devices.

        Raises:
            DeviceHeld: another search or export trains on one of them; then none of them is locked.
        """
        # The order is reversed, so that a GPU that several devices share has the label of the first device.
        gpus = {device.uuid: device.label for device in reversed(devices) if device.uuid is not None}
        for uuid, label in sorted(gpus.items()):
            name, lock = label.partition(":")[0], contextlib.ExitStack()
            try:
                lock.enter_context(_gpu_lock(uuid))
            except BlockingIOError:
                for device in devices:
                    self.release(device)
                raise DeviceHeld(
                    f"{name} is in use by another search or export on this machine; name others in --gpus"
                ) from None
            except OSError as error:  # another user has put something else in the place of the lock
                reason = f"{error.filename}: {error.strerror}"
                self._say(f"{name} cannot be locked ({reason}); make sure that no other search trains on it", WARNING)
            if (use := _use_of(uuid)) is not None and use.used_bytes > FILLED_SHARE * use.total_bytes:
                self._say(_filled(name, use), WARNING)
            self._locks[uuid] = lock

    def release(self, device: WorkerDevice | None = None) -> None:
        """Unlock the GPU of a device, or all of them."""
        for uuid in [uuid for uuid in self._locks if device is None or uuid == device.uuid]:
            self._locks.pop(uuid).close()


@contextlib.contextmanager
def hold_devices(devices: list[WorkerDevice], say: Say) -> Iterator[HeldDevices]:
    """Lock GPUs while the block runs, see ``HeldDevices``.

    Raises:
        DeviceHeld: another search or export trains on one of them.
    """
    held = HeldDevices(say)
    held.hold(devices)
    try:
        yield held
    finally:
        held.release()


@contextlib.contextmanager
def _gpu_lock(uuid: str) -> Iterator[None]:
    """Hold the lock of a GPU. Raises BlockingIOError if another process has the lock; another OSError if locking
    fails."""
    shared = stat.S_ISVTX | stat.S_IWOTH
    folder = next((one for one in LOCK_FOLDERS if one.is_dir() and one.stat().st_mode & shared == shared), None)
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, "no folder that all users share", " or ".join(map(str, LOCK_FOLDERS)))
    file = folder / f"featherweight-{uuid.replace('/', '-')}.lock"
    descriptor = _open_lock(file)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileExistsError(errno.EEXIST, "not a plain file", str(file))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)  # the file stays; otherwise two processes could lock two files of the same name


def _open_lock(file: Path) -> int:
    """Open a lock file in a folder where other users may write: never through a link, and without waiting.

    The file is opened for reading, which is enough for a lock. In such a folder, O_CREAT fails for another user's file,
    so it is used only for a new file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(FileNotFoundError):
        return os.open(file, flags)
    try:
        descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:  # another process was faster
        return os.open(file, flags)
    os.fchmod(descriptor, 0o644)  # so that other users can lock it, whatever the umask
    return descriptor


@dataclass(frozen=True)
class GpuUse:
    """The use of a GPU's memory by programs."""

    used_bytes: int
    total_bytes: int
    processes: tuple[int, ...]
    """Process ids; empty if the driver does not show them, as in a container."""


def _filled(name: str, use: GpuUse) -> str:
    """The sentence about a GPU that other programs fill."""
    kind = "process" if len(use.processes) == 1 else "processes"
    who = f" ({kind} {', '.join(map(str, use.processes))})" if use.processes else ""
    return (
        f"{name}: another program{who} has {megabytes(use.used_bytes)} of its {megabytes(use.total_bytes)}, "
        "and trials may run out of memory; end that, or leave this GPU out of --gpus"
    )


def _use_of(uuid: str) -> GpuUse | None:
    """The use of a GPU, or of a part of one; None if the driver does not report it."""
    import pynvml  # nvidia-ml-py

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        processes: tuple[int, ...] = ()
        with contextlib.suppress(pynvml.NVMLError):
            processes = tuple(one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
        return GpuUse(memory.used, memory.total, processes)
    except pynvml.NVMLError:  # for example, memory that is shared with the CPU
        return None
    finally:
        pynvml.nvmlShutdown()
