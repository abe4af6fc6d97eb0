"""Checkpoints: written elsewhere, hashed, synced, moved; the one before is kept; a damaged one is refused.

A file is a 32-byte SHA-256 of the rest, then what torch.save wrote. Nothing loaded can run code (weights_only).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import EpochResult, TrainConfig
from trainer.errors import CheckpointError, DiskError

_HASH_BYTES = 32

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a full quota, a limit on a file's size


@dataclass(frozen=True)
class Checkpoint:
    """Everything a training needs to go on after an epoch as if it had never stopped.

    Random states are not in it: every epoch seeds its own from (seed, epoch).
    """

    config: TrainConfig
    data_hash: str
    num_threads: int
    history: tuple[EpochResult, ...]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    ema: dict[str, torch.Tensor] | None = None
    """The averaged weights, where the candidate has them."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """What is evaluated and exported."""
        return self.model if self.ema is None else self.ema


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Make ``checkpoint`` durable at ``path``; after a crash at any instant the old or the new one is there.

    Raises:
        DiskError: no room, or the folder cannot be written to; what was there before is untouched.
    """
    buffer = io.BytesIO()  # torch.save straight to a full disk raises without an errno
    torch.save(
        {
            "config": checkpoint.config.model_dump_json(),
            "data_hash": checkpoint.data_hash,
            "num_threads": checkpoint.num_threads,
            "history": [asdict(result) for result in checkpoint.history],
            "model": checkpoint.model,
            "optimizer": checkpoint.optimizer,
            "ema": checkpoint.ema,
        },
        buffer,
    )
    payload = buffer.getbuffer()
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file, ThreadPoolExecutor(1, "hash") as thread:
            digest = thread.submit(hashlib.sha256, payload)  # while the disk writes
            file.write(bytes(_HASH_BYTES))
            file.write(payload)
            file.flush()
            os.fdatasync(file.fileno())
            file.seek(0)
            file.write(digest.result().digest())
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(_previous(path))
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if error.errno in _NO_ROOM:
            raise DiskError(
                f"no room for a checkpoint of {len(payload):,} bytes in {path.parent}; free some"
            ) from error
        raise DiskError(f"checkpoint {path} cannot be written: {error.strerror}") from error


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The newest whole checkpoint at ``path``: it, else the one before it, else None where there never was one.

    A damaged file is set aside as ``*.damaged`` with a warning.

    Raises:
        CheckpointError: a file that the system does not let this process read; it may be whole, so it stays.
    """
    for candidate in (path, _previous(path)):
        if candidate.exists():
            try:
                return _read(candidate)
            except OSError as error:
                raise CheckpointError(f"checkpoint {candidate} cannot be opened: {error.strerror}") from error
            except CheckpointError as error:
                aside = candidate.with_suffix(".damaged")
                candidate.replace(aside)
                warnings.warn(f"{error}; set aside as {aside.name}, going on from an older one", stacklevel=2)
    return None


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint and the one before it."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _read(path: Path) -> Checkpoint:
    content = path.read_bytes()
    payload = memoryview(content)[_HASH_BYTES:]
    if hashlib.sha256(payload).digest() != content[:_HASH_BYTES]:
        raise CheckpointError(f"checkpoint {path} is damaged (its hash differs)")
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
        )
    except Exception as error:  # whatever a forged or foreign file makes the unpickler raise
        # Not its message: of ten lines, it advises to load without weights_only, which runs what is in the file.
        raise CheckpointError(f"checkpoint {path} is none that this version writes ({type(error).__name__})") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
