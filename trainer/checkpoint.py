"""Checkpoints of trainings. A file is written beside its place, synced, then moved there. The previous one is kept, and
a damaged one is set aside.

A file is the output of torch.save, and its CRC-32. The CRC finds damage by disks and crashes. It does not find a forged
file, but such a file cannot run code (weights_only). A cryptographic hash would double the time of saving.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from trainer.config import EpochResult, TrainConfig
from trainer.device import is_out_of_memory
from trainer.errors import NO_ROOM, CheckpointError, DiskError
from trainer.kept import move_into_place, previous_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_CRC_BYTES = 4

_STRETCH_BYTES = 4 << 20
"""Each time that so many more bytes have come, the system is asked to begin writing them to the disk."""


OptimizerState = dict[str, Any]
"""Result of torch's ``Optimizer.state_dict``: "state" by the number of a parameter, and "param_groups"."""


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a training after an epoch, so that the training can go on as if it had never stopped.

    It has no random state: every epoch is seeded from (seed, epoch).
    """

    config: TrainConfig
    data_hash: str
    num_threads: int
    history: tuple[EpochResult, ...]
    model: dict[str, torch.Tensor]
    optimizer: OptimizerState
    ema: dict[str, torch.Tensor] | None = None
    """The averaged weights; None if the candidate keeps no average."""
    scaler: dict[str, Any] | None = None
    """State of the loss scaling, from torch's ``GradScaler.state_dict``; None without fp16."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights to evaluate and export: the average if there is one."""
        return self.model if self.ema is None else self.ema


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Make ``checkpoint`` durable at ``path``. After a crash at any moment, the old or the new one is there.

    Raises:
        DiskError: there is no room, or the folder cannot be written to; the old checkpoint is kept.
    """
    partial = path.with_suffix(".partial")
    values = {
        "config": checkpoint.config.model_dump_json(),
        "data_hash": checkpoint.data_hash,
        "num_threads": checkpoint.num_threads,
        "history": [asdict(result) for result in checkpoint.history],
        "model": checkpoint.model,
        "optimizer": checkpoint.optimizer,
        "ema": checkpoint.ema,
        "scaler": checkpoint.scaler,
    }
    stream = _Stream()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream.file:
            torch.save(values, stream)  # type: ignore[arg-type]  # it only writes
            stream.end()
            os.fsync(stream.file.fileno())
        move_into_place(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if error.errno in NO_ROOM:
            raise DiskError(f"no room for a checkpoint of {stream.size:,} bytes in {path.parent}; make room") from error
        raise DiskError(f"checkpoint {path} cannot be written: {error.strerror}") from error


class _Stream(io.RawIOBase):
    """Target of torch.save. The disk begins to write after the first megabytes, while the CRC-32 is computed.

    ``size`` counts the bytes so far, ``begun`` those that the system was asked to write.
    """

    file: BinaryIO

    def __init__(self) -> None:
        self.size = self.begun = self.crc = 0
        self.error: OSError | None = None

    def write(self, part: ReadableBuffer) -> int:
        num_bytes = memoryview(part).nbytes
        self.size += num_bytes
        if self.error is None:  # stored for ``end``, because torch.save would raise another error, without an errno
            try:
                self.file.write(part)
                self.crc = zlib.crc32(part, self.crc)
                if self.size - self.begun > _STRETCH_BYTES:
                    self._begin()
            except OSError as error:
                self.error = error
        return num_bytes

    def _begin(self) -> None:
        self.file.flush()
        if hasattr(os, "posix_fadvise"):  # makes Linux write the unwritten part in the background
            os.posix_fadvise(self.file.fileno(), self.begun, self.size - self.begun, os.POSIX_FADV_DONTNEED)
        self.begun = self.size

    def end(self) -> None:
        """Write the CRC-32, or raise the error that an earlier ``write`` stored."""
        if self.error is not None:
            raise self.error
        self.file.write(self.crc.to_bytes(_CRC_BYTES, "little"))
        self.file.flush()


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The newest intact checkpoint: the one at ``path``, or else the previous one; None if neither exists or is intact.

    A damaged file is set aside as ``*.damaged`` with a warning. So is a file that the disk cannot read, if the
    previous one is intact.

    Raises:
        DiskError: the disk cannot read a file, and no other one is intact. The unreadable file stays, because it may
            be intact. Or a file cannot be set aside.
        MemoryError, RuntimeError: out of memory, from Python or from torch; the files stay.
    """
    unread: tuple[Path, str | None] | None = None
    for candidate in (path, previous_of(path)):
        try:
            found = _read(candidate)
        except FileNotFoundError:
            continue
        except OSError as error:
            unread = unread or (candidate, error.strerror)
        except CheckpointError as error:
            _set_aside(candidate, str(error))
        else:
            if unread is not None:  # otherwise the next save would replace the intact file by the unreadable one
                _set_aside(path, f"checkpoint {path} cannot be read: {unread[1]}")
            return found
    if unread is not None:
        file, why = unread
        raise DiskError(
            f"checkpoint {file} cannot be read: {why}; repair the disk, or remove the file to train from the start"
        )
    return None


def _set_aside(path: Path, why: str) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except OSError as error:
        raise DiskError(f"{why}; it cannot be set aside: {error.strerror}") from error
    then = "the training goes on from an older one if there is one, or else begins anew"
    warnings.warn(f"{why}; set aside as {aside.name}; {then}", stacklevel=3)


def _read(path: Path) -> Checkpoint:
    content = path.read_bytes()
    payload = memoryview(content)[:-_CRC_BYTES]
    if zlib.crc32(payload).to_bytes(_CRC_BYTES, "little") != content[-_CRC_BYTES:]:
        raise CheckpointError(f"checkpoint {path} is damaged (its checksum differs)")
    try:
        values = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return Checkpoint(
            config=TrainConfig.model_validate_json(values["config"]),
            data_hash=values["data_hash"],
            num_threads=values["num_threads"],
            history=tuple(EpochResult(**result) for result in values["history"]),
            model=values["model"],
            optimizer=values["optimizer"],
            ema=values["ema"],
            scaler=values.get("scaler"),  # not in files of versions before 2026-12
        )
    except Exception as error:  # a forged or foreign file can make the unpickler raise anything
        if is_out_of_memory(error):
            raise  # not a problem of the file
        # The error's message is left out, because it advises loading without weights_only, which would run code.
        raise CheckpointError(f"{path} is not a checkpoint of this version ({type(error).__name__})") from error
