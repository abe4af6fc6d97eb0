"""Copies that have related names: thumbs/1.jpg of photos/1.jpg, 1.tif of 1.jpg, 1-150x150.jpg of 1.jpg.

Related names alone mean little: the classes cat and dog may both have a 001.jpg. So the pixels are compared too.
Pictures of unrelated names are also compared, because in some data sets (X-rays, digits) all pictures look alike.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

from trainer.data import Dataset
from trainer.near import are_alike

__all__ = ["NamedCopies", "find_named_copies"]

NAMES = 20_000
"""Largest number of pictures whose names are looked up; they are evenly spaced."""

COMPARED = 100
"""Largest number of pictures, for each kind, that are compared with others of related names; evenly spaced."""

PARTNERS = 4
"""Largest number of pictures of related names with which a picture is compared."""

FEWEST = 2
"""Smallest number of copies that is reported."""

BY_CHANCE = 5
"""Copies are reported only if their number is at least this many times that of chance matches: pictures of unrelated
names that look the same."""


@dataclass(frozen=True)
class NamedCopies:
    """Pictures that look the same and have related names, in two classes or in two splits of a class."""

    kind: str
    """classes: a picture has two classes. splits: a picture of one class is in two splits."""
    count: int
    compared: int
    """Number of pictures that were compared with others of related names; at most COMPARED."""
    first: str
    second: str


def find_named_copies(data: Dataset) -> list[NamedCopies]:
    """Copies with related names, except exact duplicates, which ``data.duplicates`` has."""
    split_of = {int(index): split for split, indices in data.splits.items() for index in indices}
    exact = {frozenset((pair.first, pair.second)) for pair in data.duplicates}
    names = _Names(data)
    peers: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, split in sorted(split_of.items()):
        peers[int(data.labels[index]), split].append(index)
    related: dict[str, list[tuple[int, list[int]]]] = {"classes": [], "splits": []}
    for index in sorted(split_of)[:: -(-len(split_of) // NAMES)]:
        partners: dict[str, list[int]] = {"classes": [], "splits": []}
        for other in names.related(index):
            if other not in split_of or frozenset((data.names[index], data.names[other])) in exact:
                continue
            if data.labels[other] != data.labels[index]:
                partners["classes"].append(other)
            elif split_of[other] != split_of[index]:
                partners["splits"].append(other)
        for kind, others in partners.items():
            if others:
                related[kind].append((index, others[:PARTNERS]))
    found = []
    for kind, pairs in related.items():
        chosen = pairs[:: -(-len(pairs) // COMPARED) or 1]
        alike: list[tuple[int, int]] = []
        by_chance = 0
        for index, others in chosen:
            alike += [(index, one) for one in others if are_alike(data.images[index], data.images[one])][:1]
            beside = peers[int(data.labels[others[0]]), split_of[others[0]]]
            unrelated = beside[(bisect_left(beside, others[0]) + len(beside) // 2) % len(beside)]
            if unrelated not in (index, *names.related(index)) and index not in names.related(unrelated):
                by_chance += are_alike(data.images[index], data.images[unrelated])
        if len(alike) >= max(FEWEST, BY_CHANCE * by_chance):
            first, second = alike[0]
            found.append(NamedCopies(kind, len(alike), len(chosen), data.names[first], data.names[second]))
    return found


class _Names:
    """The pictures by the last parts of their names, without endings."""

    def __init__(self, data: Dataset) -> None:
        self._labels = data.labels.tolist()
        self._parts = [_folder_and_stem(name) for name in data.names]
        self._in_folder: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._in_class: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._anywhere: dict[str, list[int]] = defaultdict(list)
        for index, (folder, stem) in enumerate(self._parts):
            self._in_folder[folder, stem].append(index)
            self._in_class[self._labels[index], stem].append(index)
            self._anywhere[stem].append(index)

    def related(self, index: int) -> list[int]:
        """Pictures in the same folder whose name is a part of this one's (1 is a part of 1-150x150 and of thumb_1), and
        some pictures in any folder that have the same name."""
        folder, stem = self._parts[index]
        after = re.match(r"[^-_. ()]+[-_. ](.+)", stem)
        found = list(self._in_folder.get((folder, after[1]), [])) if after is not None else []
        same = self._in_class[self._labels[index], stem][: 2 * PARTNERS] + self._anywhere[stem][: 2 * PARTNERS]
        while (before := re.match(r"(.+)[-_. (]", stem)) is not None:
            stem = before[1]
            found += self._in_folder.get((folder, stem), [])
        return found + [other for other in same if other != index]


def _folder_and_stem(name: str) -> tuple[str, str]:
    folder, _, base = name.lower().rpartition("/")
    stem, _, _ = base.rpartition(".")
    return folder, re.sub(r"\.rf\.[0-9a-f]+$", "", stem or base)  # Roboflow adds a hash to each augmented copy
