"""Files of MATLAB that may have the labels of pictures. They are recognised, but not read."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np

from trainer.file_index import files_around
from trainer.tree import File, Folder

__all__ = ["about_matlab"]

FLOWERS = ("imagelabels.mat", "setid.mat")
"""The files of Oxford's 102 Flowers: the class of each picture, and the numbers of the pictures of each split."""

SETS = {"trnid": "train", "valid": "val", "tstid": "test"}


def about_matlab(tree: Folder, root: Path) -> str | None:
    """A sentence about files of MATLAB beside folders of pictures, with a line of Python if it is sure to work."""
    stems = {file.base.rpartition(".")[0] for file in tree.walk() if file.is_picture}
    around = [file for file in files_around(tree) if file.name.lower().endswith(".mat")]
    found = [file for file in around if not _describes_one(file.base.rpartition(".")[0], stems)]
    if not found or not stems:
        return None
    names = ", ".join(file.name for file in found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
    told = f"{names} may have the labels, and only CSV and TSV tables are read"
    table = root / "labels.csv"
    flowers = [file for name in FLOWERS for file in found if file.base.lower() == name]
    pictures = sorted((file for file in tree.walk() if file.is_picture), key=lambda file: file.base)
    if len(flowers) != 2 or table.exists() or not _are_in_order(flowers, pictures):
        return (
            f"{told}; scipy.io.loadmat reads most of them in Python: write a table of labels (data.labels), a CSV file "
            f"with the first line file,label and lines such as {pictures[0].name},CLASS"
        )
    before, after = pictures[0].name[:-9], pictures[0].name[-4:]
    return (
        f'{told}; this line of Python makes a table of labels of them, data.labels = "{table.name}": '
        f"import csv, scipy.io; labels = scipy.io.loadmat({str(flowers[0].path)!r})['labels'].ravel(); "
        f"sets = scipy.io.loadmat({str(flowers[1].path)!r}); "
        f"csv.writer(open({str(table)!r}, 'w', newline='', encoding='utf-8')).writerows([['file', 'label', 'split']] + "
        f"[[f'{before}{{n:05}}{after}', labels[n - 1], split] for key, split in {list(SETS.items())!r} "
        "for n in sets[key].ravel()])"
    )


def _describes_one(stem: str, stems: Set[str]) -> bool:
    """Whether the name begins with that of a picture: 000_good.mat beside 000.png."""
    words = stem.split("_")
    return any("_".join(words[:count]) in stems for count in range(1, len(words) + 1))


def _are_in_order(flowers: Sequence[File], pictures: Sequence[File]) -> bool:
    """Whether FLOWERS have a label and a split for each picture, by the numbers in the names of the pictures."""
    from scipy.io import loadmat  # imported here: it takes 0.2 s

    try:
        labels, sets = (loadmat(file.path) for file in flowers)
        numbers = np.sort(np.concatenate([sets[key].ravel() for key in SETS]))
        count = labels["labels"].size
    except Exception:  # scipy raises errors of many kinds for files of other versions
        return False
    first = pictures[0].name
    expected = [f"{first[:-9]}{n:05}{first[-4:]}" for n in range(1, count + 1)]
    return [file.name for file in pictures] == expected and numbers.tolist() == list(range(1, count + 1))
