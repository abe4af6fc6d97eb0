"""The batches of each epoch: gathered from the cache and augmented on the host, here or in loader processes.

A batch is known by (epoch, number, which pictures), so it is the same whoever makes it. Loader processes are torch's
own DataLoader, started once per training; they pay only where ``augment`` names transforms that cost more than the
step itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from trainer.augment import HostAugmentation, Pictures
from trainer.data import Dataset
from trainer.device import Device

Item = tuple[int, int, NDArray[np.int64]]
"""Epoch, batch number, indices of its pictures; epoch 0 stands for "not augmented"."""


READ_AHEAD = 2
"""Batches that are asked for before they are due: a disk that is asked for one picture at a time is mostly idle."""


class Loader:
    """Yields the host's part of every batch of an epoch, in order.

    Args:
        data: the pictures.
        augmentation: what ``augment`` names.
        device: says how many loader processes there are, and keeps the pictures if they fit on it.
        seed: of the augmentation.
    """

    def __init__(self, data: Dataset, augmentation: HostAugmentation, device: Device, seed: int) -> None:
        self.device = device
        self.batches = _Batches(data.images, augmentation, seed)
        self.resident = device.hold(data.images, augmentation.config)
        self.items: list[Item] = []
        self.loader = None
        if device.num_loaders and augmentation.steps:
            self.loader = DataLoader(
                self.batches,
                batch_size=None,  # an item is a batch already
                sampler=self.items,
                num_workers=device.num_loaders,
                multiprocessing_context="spawn",  # never fork a process that has begun to use CUDA
                persistent_workers=True,
                generator=torch.Generator(),  # else it draws from the one that dropout depends on
            )

    def epoch(self, epoch: int, batches: list[NDArray[np.int64]], *, plain: bool) -> Iterator[Pictures | torch.Tensor]:
        """[batch, size, size, channels] uint8 for each batch; on a GPU already there."""
        self.items[:] = [(0 if plain else epoch, number, indices) for number, indices in enumerate(batches)]
        if self.resident is not None:
            for _, _, indices in self.items:
                yield self.resident[self.device.copy(indices)]
        else:
            yield from self.device.ahead(pictures.numpy() for pictures in self._made())

    def _made(self) -> Iterator[torch.Tensor]:
        made = iter(self.loader if self.loader is not None else (self.batches[item] for item in self.items))
        for number in range(-READ_AHEAD, len(self.items)):
            if number + READ_AHEAD < len(self.items):
                self.batches.will_need(self.items[number + READ_AHEAD])
            if number >= 0:
                yield next(made)


class _Batches(TorchDataset[torch.Tensor]):
    """Batches by item; in a loader process the pictures are mapped again, not copied."""

    def __init__(self, images: Pictures, augmentation: HostAugmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed

    def __getitem__(self, item: Item) -> torch.Tensor:
        epoch, number, indices = item
        pictures = self.images[indices]
        if epoch:
            pictures = self.augmentation(pictures, self.seed, epoch, number + 1)
        return torch.from_numpy(pictures)

    def will_need(self, item: Item) -> None:
        """Let the system read what a batch lacks in memory, all of it at once, while others are trained on."""
        if not isinstance(self.images, np.memmap):
            return
        mapped = self.images.base
        assert isinstance(mapped, mmap.mmap)
        size = self.images.strides[0]
        first = self.images.offset % mmap.ALLOCATIONGRANULARITY  # of the pictures, in what is mapped
        for start in (first + item[2] * size).tolist():
            page = start - start % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def __reduce__(self) -> tuple[object, ...]:
        assert isinstance(self.images, np.memmap)
        return _open_batches, (Path(str(self.images.filename)), self.augmentation, self.seed)


def _open_batches(path: Path, augmentation: HostAugmentation, seed: int) -> _Batches:
    cv2.setNumThreads(1)  # a loader process is one of several
    return _Batches(np.load(path, mmap_mode="r"), augmentation, seed)
