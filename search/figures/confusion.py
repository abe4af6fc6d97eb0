"""The file with the confusion matrix of the best trial so far: a worker writes it; the study's page and ``search
check`` read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class TrialConfusion:
    """The confusion matrix of a trial on the validation split."""

    trial: int
    table: NDArray[np.int64]
    """[k, 3]: true class, predicted class, number of pictures; a row for each pair that occurs."""
    names: list[str]
    """Class names."""


def write_confusion(file: Path, trial: int, table: ArrayLike, names: Sequence[str]) -> None:
    """Write a confusion table [k, 3]. Raises: OSError."""
    np.savez(file, trial=trial, table=table, names=names)


def read_confusion(file: Path) -> TrialConfusion:
    """Read a confusion table; files of earlier versions hold the matrix.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the file is damaged.
    """
    try:
        with file.open("rb") as archive, np.load(archive) as known:  # opened here: numpy leaves a damaged file open
            table = known["table"] if "table" in known else table_of(known["confusion"])
            return TrialConfusion(int(known["trial"]), table, known["names"].tolist())
    except OSError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds of exceptions for a damaged archive
        raise ValueError(f"{file} is damaged: {error}") from error


def table_of(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """The table [k, 3] of a confusion matrix [c, c]: true class, predicted class, number; a row for each pair."""
    rows, columns = np.nonzero(confusion)
    return np.stack([rows, columns, confusion[rows, columns]], axis=1).astype(np.int64)
