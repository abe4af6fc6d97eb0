"""Checkpoints: every fault a file can have, and what is left after it."""

from __future__ import annotations

import errno
import io
import resource
import shutil
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trainer.config import EpochResult, TrainConfig
from trainer.data import Dataset
from trainer.device import open_device
from trainer.errors import DiskError
from trainer.fit import fit

ROOT = Path(__file__).parents[2]

CONFIG = TrainConfig(model="resnet10t", width_mult=0.1, epochs=2, batch_size=200)


@pytest.fixture(scope="module")
def trained(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of epoch 2 and the one before it."""
    folder = tmp_path_factory.mktemp("trained")
    list(fit(CONFIG, digits, open_device("cpu", 1), checkpoint=folder / "checkpoint"))
    return folder


@pytest.fixture
def path(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy" / "checkpoint"


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def epochs_at(path: Path) -> int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_checkpoint(path)
    return None if loaded is None else len(loaded.history)


def fat(megabytes: int) -> Checkpoint:
    """One with so much in it."""
    weights = {"weight": torch.zeros(megabytes * 2**18)}
    return Checkpoint(config=CONFIG, data_hash="", num_threads=1, history=(), model=weights, optimizer={})


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    channels_last = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    result = EpochResult(
        epoch=1, train_loss=0.1 + 0.2, val_loss=1e-300, val_accuracy=1 / 3, seconds=1.0, images_per_second=2.0
    )
    saved = Checkpoint(
        config=CONFIG,
        data_hash="abc",
        num_threads=3,
        history=(result,),
        model={"weight": channels_last, "count": torch.tensor(2**60)},
        optimizer={"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
    )
    save_checkpoint(tmp_path / "new folder" / "checkpoint", saved)
    loaded = load_checkpoint(tmp_path / "new folder" / "checkpoint")
    assert loaded is not None
    assert (loaded.config, loaded.data_hash, loaded.num_threads, loaded.history) == (CONFIG, "abc", 3, (result,))
    assert torch.equal(loaded.model["weight"], channels_last)
    assert loaded.model["weight"].stride() == channels_last.stride()
    assert loaded.model["count"].item() == 2**60
    assert loaded.optimizer == saved.optimizer


def test_where_there_never_was_one_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint") is None


def test_the_one_before_is_kept_and_nothing_else(path: Path) -> None:
    assert names(path) == {"checkpoint", "checkpoint.previous"}
    assert epochs_at(path) == 2
    assert epochs_at(path.with_name("checkpoint.previous")) == 1


# Damage. Each changes a file; the one before it takes over.


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0b0000_1000
    path.write_bytes(content)


def flip_a_bit_of_the_hash(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def truncate_to_half_a_hash(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2])


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def put_a_foreign_file_there(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def hashed(content: bytes) -> bytes:
    return content + zlib.crc32(content).to_bytes(4, "little")


def hash_something_else(path: Path) -> None:
    path.write_bytes(hashed(b"not what torch.save writes"))


def forget_the_history(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"config": CONFIG.model_dump_json()}, buffer)
    path.write_bytes(hashed(buffer.getvalue()))


DAMAGES = [
    flip_one_bit,
    flip_a_bit_of_the_hash,
    truncate,
    truncate_to_half_a_hash,
    make_empty,
    put_a_foreign_file_there,
    hash_something_else,
    forget_the_history,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(damage: object, path: Path) -> None:
    assert callable(damage)
    damage(path)
    damaged = path.read_bytes()
    with pytest.warns(UserWarning, match=r"checkpoint .*set aside as checkpoint\.damaged; the training goes on"):
        loaded = load_checkpoint(path)
    assert loaded is not None
    assert len(loaded.history) == 1
    assert path.with_name("checkpoint.damaged").read_bytes() == damaged
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:checkpoint .* is damaged:UserWarning")  # both are
def test_where_both_are_damaged_there_is_none_and_both_are_kept_aside(path: Path) -> None:
    flip_one_bit(path)
    truncate(path.with_name("checkpoint.previous"))
    assert load_checkpoint(path) is None
    assert names(path) == {"checkpoint.damaged", "checkpoint.previous.damaged"}


class Malice:
    """A pickle that makes a folder when it is loaded by whoever trusts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_code_in_a_forged_one_does_not_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # defeats the default, and must not defeat us
    trap = tmp_path / "the code ran"
    buffer = io.BytesIO()
    torch.save({"config": Malice(trap)}, buffer)
    path.write_bytes(hashed(buffer.getvalue()))
    with pytest.warns(UserWarning, match=r"is not a checkpoint of this version \(UnpicklingError\); set aside"):
        loaded = load_checkpoint(path)
    assert not trap.exists()
    assert loaded is not None
    assert len(loaded.history) == 1
    # It would have run:
    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert trap.exists()


# Too little memory


LOAD_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from trainer.checkpoint import load_checkpoint
from trainer.device import is_out_of_memory

now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[2]), -1))
try:
    load_checkpoint(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, is_out_of_memory(error))
"""


@pytest.mark.parametrize(
    ("megabytes", "error"), [(300, "MemoryError"), pytest.param(500, "RuntimeError", marks=pytest.mark.slow)]
)
def test_too_little_memory_to_load_one_leaves_both_where_they_are(path: Path, megabytes: int, error: str) -> None:
    """There is memory to read the file and not to unpack it; then not for its tensors, as torch says it."""
    save_checkpoint(path, fat(200))
    command = [sys.executable, "-c", LOAD_WITH_LITTLE_MEMORY, str(path), str(megabytes << 20)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{error} True\n"
    assert names(path) == {"checkpoint", "checkpoint.previous"}


# A crash at any instant of saving


def test_a_crash_while_writing_leaves_the_old_one(path: Path) -> None:
    path.with_suffix(".partial").write_bytes(path.read_bytes()[:1000])
    assert epochs_at(path) == 2
    save_checkpoint(path, fat(1))
    assert epochs_at(path) == 0
    assert names(path) == {"checkpoint", "checkpoint.previous"}


def test_a_crash_between_the_two_renames_leaves_the_old_one(path: Path) -> None:
    path.replace(path.with_name("checkpoint.previous"))
    assert epochs_at(path) == 2


# No room


def test_on_a_full_disk_the_old_one_stays_whole(path: Path) -> None:
    before = path.read_bytes()
    path.with_suffix(".partial").symlink_to("/dev/full")  # every write to it finds no space left
    with pytest.raises(DiskError, match=r"no room for a checkpoint of 1,\d\d\d,\d\d\d bytes in .*; make room") as error:
        save_checkpoint(path, fat(1))
    assert isinstance(error.value.__cause__, OSError)
    assert error.value.__cause__.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert names(path) == {"checkpoint", "checkpoint.previous"}
    assert epochs_at(path.with_name("checkpoint.previous")) == 1


def test_a_file_cut_off_half_way_leaves_the_old_one_whole(path: Path) -> None:
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
    try:
        with pytest.raises(DiskError, match="no room for a checkpoint"):
            save_checkpoint(path, fat(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert names(path) == {"checkpoint", "checkpoint.previous"}
    save_checkpoint(path, fat(1))  # once there is room again
    assert epochs_at(path) == 0


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"checkpoint .*file/checkpoint cannot be written: "):
        save_checkpoint(tmp_path / "file" / "checkpoint", fat(1))


# A disk that does not give what is on it


UNREADABLE = Path("/proc/self/mem")
"""Reading it is an input/output error, as of a bad sector."""


def test_one_that_the_disk_does_not_give_is_set_aside_where_the_one_before_is_whole(path: Path) -> None:
    path.unlink()
    path.symlink_to(UNREADABLE)
    with pytest.warns(UserWarning, match=r"cannot be read: Input/output error; set aside as checkpoint\.damaged"):
        loaded = load_checkpoint(path)
    assert loaded is not None
    assert len(loaded.history) == 1
    assert names(path) == {"checkpoint.damaged", "checkpoint.previous"}


def test_where_the_disk_gives_none_that_is_said_and_what_may_be_whole_stays(path: Path) -> None:
    path.unlink()
    path.symlink_to(UNREADABLE)
    flip_one_bit(path.with_name("checkpoint.previous"))
    cure = "repair the disk, or remove the file to train from the start"
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(DiskError, match=rf"checkpoint .*/copy/checkpoint cannot be read: Input/output error; {cure}$"),
    ):
        load_checkpoint(path)
    assert names(path) == {"checkpoint", "checkpoint.previous.damaged"}
    path.replace(path.with_name("checkpoint.previous"))
    with pytest.raises(DiskError, match="previous cannot be read: Input/output error"):
        load_checkpoint(path)
    assert names(path) == {"checkpoint.previous", "checkpoint.previous.damaged"}


def test_a_path_that_is_no_file_is_a_sentence_and_is_left_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)
    assert tmp_path.is_dir()
