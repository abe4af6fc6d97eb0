"""The batches of each epoch: gathered from the cache and augmented on the host, in this process or in loader processes.

A batch is determined by (epoch, number, pictures), so every process makes the same batch. Loader processes are those of
torch's DataLoader, started once per training. They save time only if ``augment`` names transforms that take longer than
the step itself.
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

from trainer.data import Dataset
from trainer.device import Device
from trainer.transforms import HostAugmentation, Pictures

Item = tuple[int, int, NDArray[np.int64]]
"""Epoch, batch number, indices of the batch's pictures. Epoch 0 means "not augmented"."""


READ_AHEAD = 2
"""Number of batches that are requested ahead, because a disk is slow if it gets one request at a time."""


class Loader:
    """Yields the host's part of every batch of an epoch, in order.

    Args:
        data: the pictures.
        augmentation: the transforms of ``augment``.
        device: gives the number of loader processes, and holds the pictures if they fit.
        seed: seed of the augmentation.
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
                generator=torch.Generator(),  # otherwise it draws from the generator that dropout uses
            )

    def epoch(self, epoch: int, batches: list[NDArray[np.int64]], *, plain: bool) -> Iterator[Pictures | torch.Tensor]:
        """Yield each batch as [batch, size, size, channels] uint8; with a GPU, it is on the GPU already."""
        self.items[:] = [(0 if plain else epoch, number, indices) for number, indices in enumerate(batches)]
        if self.resident is not None:
            for _, _, indices in self.items:
                yield self.resident[self.device.copy(indices)]
        else:
            yield from self.device.ahead(pictures.numpy() for pictures in self._made())

    def _made(self) -> Iterator[torch.Tensor]:
        """Yield each batch. Meanwhile the system reads the pictures of the next READ_AHEAD batches."""
        made = iter(self.loader if self.loader is not None else (self.batches[item] for item in self.items))
        for number in range(-READ_AHEAD, len(self.items)):
            if number + READ_AHEAD < len(self.items):
                self.batches.will_need(self.items[number + READ_AHEAD])
            if number >= 0:
                yield next(made)


class _Batches(TorchDataset[torch.Tensor]):
    """Batches by item. A loader process maps the file of pictures again instead of copying it."""

    def __init__(self, images: Pictures, augmentation: HostAugmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed

    def __getitem__(self, item: Item) -> torch.Tensor:
        epoch, number, indices = item
        pictures = self.images[indices]
        if epoch:
            pictures = self.augmentation(pictures, self.seed, epoch, number + 1)
        return torch.from_numpy(pictures)

    def will_need(self, item: Item) -> None:
        """Ask the system to read all pictures of a batch that are not in memory, while other batches are trained on."""
        if not isinstance(self.images, np.memmap):
            return
        mapped = self.images.base
        assert isinstance(mapped, mmap.mmap)
        size = self.images.strides[0]
        first = self.images.offset % mmap.ALLOCATIONGRANULARITY  # offset of the pictures in the mapped memory
        for start in (first + item[2] * size).tolist():
            page = start - start % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def __reduce__(self) -> tuple[object, ...]:
        assert isinstance(self.images, np.memmap)
        return _open_batches, (Path(str(self.images.filename)), self.augmentation, self.seed)


def _open_batches(path: Path, augmentation: HostAugmentation, seed: int) -> _Batches:
    cv2.setNumThreads(1)  # there are several loader processes
    return _Batches(np.load(path, mmap_mode="r"), augmentation, seed)
