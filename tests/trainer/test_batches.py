"""Batches: read before they are due, changed on the host by name, divided where memory is short."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer import loader
from trainer.augment import Augmentation, Batch
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import ConfigError
from trainer.loader import Loader
from trainer.transforms import HostAugmentation


def on_the_disk(file: Path, pictures: int) -> NDArray[np.uint8]:
    """Pictures of 64 px in a file, none of them in memory."""
    np.save(file, np.random.default_rng(0).integers(0, 256, (pictures, 64, 64, 3), dtype=np.uint8))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]


class Holder:
    """As much of a Dataset as a loader reads."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images


def loader_of(images: NDArray[np.uint8], device: Device) -> Loader:
    return Loader(Holder(images), HostAugmentation(TrainConfig()), device, 0)  # type: ignore[arg-type]


def in_memory(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pages of the file are in memory, as the system says (mincore)."""
    start = images.ctypes.data - images.offset  # type: ignore[attr-defined]
    pages = -(-(images.nbytes + images.offset) // mmap.PAGESIZE)  # type: ignore[attr-defined]
    found = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(pages * mmap.PAGESIZE), found) == 0
    return (np.frombuffer(found, dtype=np.uint8) & 1).astype(bool)


def test_the_pictures_of_the_next_batches_are_read_while_one_is_trained_on(tmp_path: Path, cpu: Device) -> None:
    images = on_the_disk(tmp_path / "pictures.npy", 4000)  # 49 MB: farther apart than any system reads on by itself
    if in_memory(images).mean() > 0.5:
        pytest.skip("this file system keeps files in memory")
    batches = loader_of(images, cpu).epoch(1, [np.array([index]) for index in (0, 2000, 3999)], plain=True)
    next(batches)
    size = images[0].nbytes
    pages = np.arange(2000 * size // mmap.PAGESIZE + 1, 2001 * size // mmap.PAGESIZE)
    deadline = time.monotonic() + 10
    while not in_memory(images)[pages].all() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert in_memory(images)[pages].all()


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_however_few_batches_there_are_each_comes_once_and_in_order(number: int, tmp_path: Path, cpu: Device) -> None:
    images = on_the_disk(tmp_path / "pictures.npy", 50)
    chosen = np.array_split(np.random.default_rng(1).permutation(50), number)
    made = list(loader_of(images, cpu).epoch(1, chosen, plain=True))
    assert len(made) == number
    for indices, pictures in zip(chosen, made, strict=True):
        assert np.array_equal(pictures, images[indices])
    assert loader.READ_AHEAD > 1, "fewer batches than are asked for ahead are among the cases"


def test_pictures_in_memory_need_no_reading(digits: Dataset, cpu: Device) -> None:
    images = np.array(digits.images)
    (batch,) = loader_of(images, cpu).epoch(1, [np.arange(5)], plain=True)
    assert np.array_equal(batch, images[:5])


@pytest.mark.parametrize("policy", ["AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix"])
def test_what_a_policy_has_changed_can_be_warped(policy: str, cpu: Device) -> None:
    """Torch's pictures have their channels first, whatever view is taken of them."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    config = TrainConfig.model_validate({"augment": [policy], "rotate": 20})
    augment = Augmentation(config, cpu, (0.5,) * 3, (0.2,) * 3, 16)
    for seed in range(8):
        changed = augment.on_host(pictures, seed)
        assert changed.flags.c_contiguous
        images = augment(changed, torch.zeros(3).long(), seed, 1, 1).images
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_transform_that_wants_colours_refuses_gray_pictures_in_a_sentence() -> None:
    gray = np.zeros((2, 16, 16, 1), dtype=np.uint8)
    with pytest.raises(ConfigError, match=r"^augment: ISONoise refuses these pictures: "):
        HostAugmentation(TrainConfig.model_validate({"augment": [{"name": "ISONoise", "p": 1}]}))(gray, 0)


@pytest.mark.cuda
@pytest.mark.parametrize("transform", ["AutoAugment", "ColorJitter"])
def test_a_transform_on_the_host_leaves_the_random_state_of_the_gpu_alone(transform: str, cuda: Device) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3, device=cuda.torch_device)
    torch.manual_seed(1)
    HostAugmentation(TrainConfig.model_validate({"augment": [transform]}))(np.zeros((2, 16, 16, 3), np.uint8), 7)
    assert torch.equal(torch.rand(3, device=cuda.torch_device), expected)


@pytest.mark.parametrize(
    ("pictures", "asked", "lengths"), [(7, 4, [3, 2, 2]), (8, 4, [2] * 4), (1, 2, [1]), (3, 2, [3])]
)
def test_no_part_of_a_batch_is_a_single_picture(pictures: int, asked: int, lengths: list[int]) -> None:
    """Batch norm after a pooling to 1x1 refuses to train on one."""
    batch = Batch(torch.arange(pictures)[:, None], torch.arange(pictures), torch.arange(pictures), 0.5)
    parts = batch.parts(asked)
    assert [len(part.labels) for part in parts] == lengths
    assert torch.cat([part.labels for part in parts]).tolist() == list(range(pictures))
    others: list[Any] = [part.other_labels for part in parts]
    assert torch.cat(others).tolist() == list(range(pictures))
