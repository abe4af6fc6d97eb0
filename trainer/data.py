"""Pictures to train on: a source becomes a memory-mapped array with labels, splits, and a list of problems.

``prepare_data`` is called once, before any worker starts; then each worker calls ``open_data``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import EllipsisType
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.cache import BadFile, Cache, Progress, build_cache, open_cache, shaping
from trainer.config import DataConfig, Shape
from trainer.eight_bits import cure_of_not_finite
from trainer.errors import DataError, as_lines
from trainer.identity import FIRST_SETTINGS
from trainer.kept import recall, write_checked
from trainer.pictures import TURNED, centre_of, read
from trainer.problems import find_problems, refuses_bad_files
from trainer.scan import Listing, Picture, scan
from trainer.spellings import about_one_group
from trainer.splits import UNUSED, draw_folds, draw_splits, group_problems, groups_of
from trainer.tree import NOW, Reading
from trainer.unclear import EXPECTED_LAYOUT

__all__ = ["BadFile", "Dataset", "Duplicate", "Progress", "open_data", "prepare_data"]

TORCHVISION_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel statistics of ImageNet, timm's IMAGENET_DEFAULT_MEAN and _STD; a gray channel has their means."""

STATISTICS_PICTURES = 10_000  # at most so many training pictures, evenly spaced, give mean and deviation


@dataclass(frozen=True)
class Duplicate:
    """A pair of files with the same bytes, in two splits, folds or classes."""

    first: str
    second: str
    kind: str
    """across splits: a model may be tested on a picture that it was trained on. across folds: it may be chosen by such
    a picture. across classes: one label is wrong."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """All readable pictures of one source at one size. All arrays [N] have the order of ``names``."""

    images: NDArray[np.uint8]
    """[N, S, S, C], RGB or gray, memory-mapped and read-only; ``centre`` is the index of the part that is evaluated."""
    made_for: Mapping[str, Any]
    """The settings of DataConfig that decide the pixels: image_size, and others."""
    labels: NDArray[np.int64]
    """[N], an index into class_names."""
    names: tuple[str, ...]
    """[N], path relative to the data folder ("train/robin/1.jpg"), or "digits/17"."""
    class_names: tuple[str, ...]
    """Classes with a training picture, sorted by code point."""
    groups: tuple[str, ...]
    """[N], the group of each picture, which no drawn split or fold divides; "" without a group."""
    splits: Mapping[str, NDArray[np.int64]]
    """train, val, test -> indices of the pictures, in ascending order; only test may be empty."""
    own_splits: frozenset[str] = frozenset()
    """The splits that the source itself has; the others are drawn."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation of each channel, 0 to 1, that normalise the pictures."""
    content_hash: str
    """SHA-256 of the class names, of pictures' names, labels and bytes, and of splits and groups in tables."""
    bad_files: tuple[BadFile, ...]
    """Files, and rows of a label table, that were left out; none with bad_files = "fail"."""
    duplicates: tuple[Duplicate, ...]
    """Pairs of files with the same bytes."""
    misread: Mapping[str, str] = field(default_factory=dict)
    """Name -> reason why a plain convert("RGB") reads other pixels: a key of ``trainer.pictures.READ_RIGHT``."""
    scales: Mapping[str, str] = field(default_factory=dict)
    """Name -> key of ``trainer.pictures.DEEP``, or COLOURS, of pictures of more than 8 bits that are not black."""
    notices: tuple[str, ...] = ()
    """Sentences about what was ignored in the folder, or may have another meaning; none after ``open_data``."""
    cache_path: Path
    """The cache, for ``open_data`` in another process."""

    @property
    def shape(self) -> Shape:
        """The shape for which a model of these images is built."""
        return Shape(len(self.class_names), self.made_for["image_size"], self.images.shape[-1])

    @property
    def centre(self) -> tuple[EllipsisType, slice, slice, slice]:
        """Index of the part of pictures [..., S, S, C] that validation, exports and plain epochs use."""
        return centre_of(self.images.shape[1], self.made_for["image_size"])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of contents, sizes, splits and normalisation. If it is equal, equal candidates give equal results."""
        digest = hashlib.sha256(f"{self.content_hash} {self.images.shape}".encode())
        for name, indices in self.splits.items():
            digest.update(name.encode() + indices.tobytes())
        digest.update(json.dumps([self.mean, self.std]).encode())
        first = FIRST_SETTINGS["DataConfig"].split()
        if later := {name: value for name, value in self.made_for.items() if name not in first}:
            digest.update(json.dumps([self.made_for["image_size"], later], sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def grouped(self) -> bool:
        """Whether any picture has a group."""
        return any(self.groups)

    def trained_on(self, splits: str) -> Dataset:
        """The same pictures with another train split ("train", "val" or "train+val") and the same val split. If the
        train split includes val, the accuracy on val says nothing about the model."""
        chosen = np.sort(np.concatenate([self.splits[name] for name in splits.split("+")]))
        return replace(self, splits={**self.splits, "train": chosen})

    def fold(self, number: int, folds: int, seed: int) -> Dataset:
        """The same pictures with other splits: train and val together are divided into ``folds`` stratified parts. Part
        ``number`` is the val split, and the others are the train split.

        Raises:
            DataError: there are fewer pictures of a class than folds, or fewer groups than folds, or a fold has no
                training picture of a class, because the groups of that class are few.
        """
        pool = np.sort(np.concatenate([self.splits["train"], self.splits["val"]]))
        labels = self.labels[pool]
        counts = np.bincount(labels, minlength=len(self.class_names))
        if counts.min() < folds:
            name = self.class_names[int(counts.argmin())]
            raise DataError(
                f"folds = {folds}: class {name} has {counts.min()} pictures, and each fold needs one; use fewer folds"
            )
        train, val = draw_folds(pool, labels, [self.groups[index] for index in pool], folds, seed)[number]
        if self.grouped and (lost := set(range(len(self.class_names))) - set(labels[train].tolist())):
            raise DataError(
                f"folds = {folds}: fold {number + 1} has no training picture of {self.class_names[min(lost)]}, whose "
                "groups are few; use fewer folds, or another split_seed"
            )
        return replace(self, splits={**self.splits, "train": pool[train], "val": pool[val]})

    def parts(self, folds: int, seed: int) -> dict[str, NDArray[np.int64]]:
        """The splits; with folds, each fold's val split as "fold 1" and so on, and the test split.

        Raises:
            DataError: as for ``fold``.
        """
        if not folds:
            return dict(self.splits)
        validated = {f"fold {at + 1}": self.fold(at, folds, seed).splits["val"] for at in range(folds)}
        return validated | {"test": self.splits["test"]}


def prepare_data(
    config: DataConfig, cache_dir: Path, *, progress: Progress | None = None, download: bool = True, like: Reading = NOW
) -> Dataset:
    """List the pictures of a source, decode them if there is no cache of them, split them, and check them.

    An existing cache is compared with its CRC-32s, and built again with a warning if it is damaged. With ``download``
    off, the network is not used: CIFAR's files or cache must exist. ``like`` is what is ignored and what is
    refused.

    Raises:
        DataError: the pictures cannot be trained on; the message lists all problems.
        DiskError: the cache cannot be written.
    """
    folder = None if config.path is None else Path(os.path.realpath(config.path))
    # Built-in pictures never change, so their name is enough as a stamp; with a cache they need not be read.
    title: str = config.source
    listing = Listing(title, (), (), (), stamp=title)
    list_pictures: Callable[[], Listing]
    match config.source:
        case "digits":
            list_pictures = _list_digits
        case "cifar10" | "cifar100" if folder is None or _is_torchvisions(folder):
            list_pictures = partial(_list_cifar, config.source, folder, cache_dir / "downloads", download)
        case "folder" | "cifar10" | "cifar100":
            if folder is None:
                raise DataError(
                    "this study reads a folder of pictures and none was given; "
                    f"give it with --data DIR, where DIR holds {EXPECTED_LAYOUT}"
                )
            listing = scan(config, like)
            title, list_pictures = folder.name, lambda: listing
        case _:
            assert_never(config.source)
    cache = build_cache(
        config,
        cache_dir,
        title=title,
        stamp=listing.stamp,
        inodes=listing.inodes,
        list_pictures=list_pictures,
        read=partial(read, config=config),
        progress=progress,
    )
    try:
        data = replace(_dataset(config, cache), notices=tuple(listing.notices))
    except DataError as error:
        if listing.doubt:
            raise DataError(f"{error}\n{listing.doubt}") from None
        raise
    if like.groups and (told := about_one_group(config, data.groups, data.splits)) is not None:
        raise DataError(told)
    if data.grouped:  # raises if a fold cannot be drawn
        data.parts(config.folds, config.split_seed)
    return data


def open_data(config: DataConfig, cache_path: Path) -> Dataset:
    """The data set that ``prepare_data`` returned, without notices, from its cache alone; the source is not read.

    Raises:
        DataError: the cache is missing, damaged, or made with other settings.
    """
    return _dataset(config, open_cache(cache_path))


def _dataset(config: DataConfig, cache: Cache) -> Dataset:
    """The data set of a cache. Labels, splits and checks need only its index, so pictures are not decoded again."""
    wanted = shaping(config)
    if cache.made_for != wanted:
        raise DataError(f"the picture cache {cache.path} was made for {cache.made_for}, not for {wanted}")
    in_train = Counter(name for name, split in zip(cache.classes, cache.splits, strict=True) if split == "train")
    class_names = tuple(sorted(in_train))
    groups = groups_of(config, cache)
    if problems := [*find_problems(config, cache, in_train), *group_problems(config, cache, groups)]:
        skippable = cache.bad and refuses_bad_files(config)
        cure = '; bad_files = "skip" goes on without files that cannot be read' if skippable else ""
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        text = as_lines(problems) + cure_of_not_finite(cache.root, cache.bad, cache.misread + cache.scales)
        raise DataError(f"{cache.root}: {count} with the pictures{cure}:{text}")
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name] for name in cache.classes], dtype=np.int64)
    split_of = np.array(draw_splits(config, cache, groups))
    splits = {split: np.flatnonzero(split_of == split) for split in ("train", "val", "test")}
    if not len(splits["val"]):
        raise DataError(f"{cache.root}: the groups leave no validation picture; use smaller groups, or a val split")
    if lost := sorted(set(range(len(class_names))) - set(labels[splits["train"]].tolist())):
        grouped = any(groups)
        why, cure = ("its groups", "smaller fractions") if grouped else ("stratified = false", "stratified = true")
        raise DataError(
            f"{cache.root}: with {why}, no training picture is left of {class_names[lost[0]]}"
            f"{f' and {len(lost) - 1} more' if lost[1:] else ''}; use {cure}, or another split_seed"
        )
    for array in (labels, *splits.values()):
        array.flags.writeable = False
    mean, std = _channel_statistics(config, cache, splits["train"])
    content: list[object] = [class_names, cache.names, labels.tolist(), cache.sha256]
    if config.labels is not None:  # a table has splits and groups that are not in the pictures' names
        content.append([cache.splits, cache.groups])
    data = Dataset(
        images=cache.images,
        made_for=cache.made_for,
        labels=labels,
        names=tuple(cache.names),
        class_names=class_names,
        groups=tuple(groups),
        splits=splits,
        own_splits=frozenset(cache.own_splits),
        mean=mean,
        std=std,
        content_hash=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        bad_files=tuple(BadFile(name, reason) for name, reason in cache.bad),
        duplicates=tuple(_find_duplicates(cache, split_of.tolist(), "across splits")),
        cache_path=cache.path,
        misread=dict(cache.misread),
        scales={name: why for name, why in sorted(cache.misread + cache.scales) if why != TURNED},
    )
    return _with_duplicates_across_folds(data, config, cache)


def _channel_statistics(
    config: DataConfig, cache: Cache, train: NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel. Those of a training split are stored in the cache's folder."""
    match config.normalize:
        case "dataset":
            return _own_statistics(config, cache, train)
        case "imagenet" if config.channels == 3:
            return IMAGENET_MEAN, IMAGENET_STD
        case "imagenet":
            return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
        case _:
            assert_never(config.normalize)


def _own_statistics(
    config: DataConfig, cache: Cache, train: NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    file = cache.path / f"statistics-{hashlib.sha256(train.tobytes()).hexdigest()[:12]}.json"
    match recall(file, "the channels are measured again"):
        case {"mean": [*mean], "std": [*std]}:
            return tuple(mean), tuple(std)
    chosen = train[:: -(-len(train) // STATISTICS_PICTURES)]
    sums = np.zeros((2, config.channels))
    for index in chosen:
        pixels = cache.images[index].reshape(-1, config.channels) / 255
        sums += pixels.mean(axis=0), (pixels**2).mean(axis=0)
    means, squares = (sums / len(chosen)).tolist()
    # At least one level of 255, so that a constant channel is not divided by 0.
    deviations = [max(1 / 255, max(0.0, square - m * m) ** 0.5) for m, square in zip(means, squares, strict=True)]
    with contextlib.suppress(OSError):  # the folder of a finished cache may be read-only
        write_checked(file, {"mean": means, "std": deviations})
    return tuple(means), tuple(deviations)


def _with_duplicates_across_folds(data: Dataset, config: DataConfig, cache: Cache) -> Dataset:
    """The same pictures, with the pairs that folds divide. If a fold cannot be drawn, that is told elsewhere."""
    if not config.folds or len(set(cache.sha256)) == len(cache.sha256):  # scikit-learn's folds take a second
        return data
    part_of = [UNUSED] * len(cache.names)
    with contextlib.suppress(DataError):
        for part, indices in data.parts(config.folds, config.split_seed).items():
            for index in indices.tolist() if part != "test" else ():
                part_of[index] = part
    pairs = [pair for pair in _find_duplicates(cache, part_of, "across folds") if pair.kind == "across folds"]
    return replace(data, duplicates=(*data.duplicates, *pairs))


def _find_duplicates(cache: Cache, parts: list[str], across: str) -> list[Duplicate]:
    """Pair each file with the first file of the same bytes in another part, and with the first in another class."""
    found = []
    first: dict[str, dict[str, dict[str, str]]] = {}
    for name, sha256, part, class_name in zip(cache.names, cache.sha256, parts, cache.classes, strict=True):
        same_bytes = first.setdefault(sha256, {across: {}, "across classes": {}})
        if part == UNUSED:
            continue
        for kind, place in ((across, part), ("across classes", class_name)):
            seen = same_bytes[kind]
            found += [Duplicate(other, name, kind) for where, other in seen.items() if where != place][:1]
            seen.setdefault(place, name)
    return found


def _list_digits() -> Listing:
    from sklearn.datasets import load_digits  # imported here: it takes 1 s

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8] of 0..16
    pictures = [
        Picture(f"digits/{i}", str(label), "train", partial(Image.fromarray, image))
        for i, (image, label) in enumerate(zip(images, digits.target, strict=True))
    ]
    return Listing("scikit-learn's digits", pictures, (), ("train",))


def _is_torchvisions(folder: Path) -> bool:
    """Whether a folder has torchvision's files, or may get them because it has no folders in it."""
    known = set(TORCHVISION_FOLDERS.values())
    if not os.access(folder, os.R_OK | os.X_OK, effective_ids=True) or not folder.is_dir():
        return False
    folders = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return folder.name in known or not folders or bool(folders & known)


def _list_cifar(source: str, folder: Path | None, downloads: Path, may_download: bool) -> Listing:
    from torchvision import datasets  # imported here: with torch, it takes 4 s

    own_name = TORCHVISION_FOLDERS[source]
    root = folder or downloads
    root = root.parent if root.name == own_name else root
    is_there = (root / own_name).is_dir()
    if not is_there and not may_download:
        raise DataError(
            f"{source} is not in {root} yet, and a check never uses the network; search launch downloads it, or give"
            f" --data DIR, where DIR holds torchvision's {own_name}"
        )
    # The user's own files are only read; files that this program downloaded may be downloaded again.
    download = may_download and (folder is None or not is_there)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[source]
    try:
        parts = {split: kind(root, train=split == "train", download=download) for split in ("train", "test")}
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{source} could not be {'downloaded to' if download else 'read from'} {root} ({error}); give"
            f" --data DIR, where DIR holds torchvision's {own_name}, or {EXPECTED_LAYOUT}"
        ) from None
    pictures = [
        Picture(f"{source}/{split}/{i:05}", part.classes[label], split, partial(Image.fromarray, image))
        for split, part in parts.items()
        for i, (image, label) in enumerate(zip(part.data, part.targets, strict=True))
    ]
    return Listing(f"torchvision's {source}", pictures, (), ("train", "test"))
