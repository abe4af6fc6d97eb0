"""The file that ``search predict --out`` writes: a .csv with chosen columns, a .csv like a sample, or a .json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from search.errors import UsageError
from search.export.inputs import Sample
from trainer.values import nearest

FIELDS = {
    "picture": "path of the picture",
    "file": "name of the file",
    "id": "name of the file without its ending",
    "label": "the most likely class",
    "probability": "probability of that class, from 0 to 1",
}
"""Field of a row -> what it holds."""

DEFAULT_COLUMNS = "picture,label,probability"


@dataclass(frozen=True)
class Class:
    """A possible class of a picture."""

    name: str
    probability: float
    """Probability from 0 to 1."""


@dataclass(frozen=True)
class Unreadable:
    """A picture that cannot be classified."""

    picture: str
    """Path of the picture, or its id in a sample file."""
    reason: str


@dataclass(frozen=True, eq=False)
class Classified:
    """A given picture, with the answer of the model."""

    picture: Path
    """Path of the picture; for a row of a sample without a picture, the id."""
    probabilities: NDArray[np.float32] | None
    """[classes]; None if the picture cannot be read."""
    problem: str = ""
    """The reason why the picture cannot be read; empty if it can."""


class AnswerFile(Protocol):
    """A file of answers. It is written in parts, so that memory does not grow with the number of pictures."""

    def begin(self, file: BinaryIO) -> None:
        """Write the beginning of the file, before the first answer."""

    def add(self, file: BinaryIO, answer: Classified) -> None:
        """Write the answer for the next picture, readable or not."""

    def end(self, file: BinaryIO, bad: Sequence[Unreadable]) -> None:
        """Write the end of the file, after the last answer."""


def likeliest(names: Sequence[str], probabilities: NDArray[np.float32], top: int) -> tuple[Class, ...]:
    """The most likely classes, the likeliest first."""
    return tuple(
        Class(names[index], round(float(probabilities[index]), 6)) for index in np.argsort(-probabilities)[:top]
    )


class JsonFile:
    """A .json: {"version": 1, "predictions": [{"picture", "classes"}], "bad": [{"picture", "reason"}]}"""

    def __init__(self, names: Sequence[str], top: int) -> None:
        self.names, self.top, self.separator = names, top, "\n"

    def begin(self, file: BinaryIO) -> None:
        """Write the beginning of the file, before the first answer."""
        file.write(b'{"version": 1, "predictions": [')

    def add(self, file: BinaryIO, answer: Classified) -> None:
        """Write the answer for a picture, if it could be read."""
        if answer.probabilities is not None:
            classes = likeliest(self.names, answer.probabilities, self.top)
            said = {"picture": str(answer.picture), "classes": [asdict(one) for one in classes]}
            file.write(_encoded(f"{self.separator}{json.dumps(said, ensure_ascii=False)}"))
            self.separator = ",\n"

    def end(self, file: BinaryIO, bad: Sequence[Unreadable]) -> None:
        """Write the end of the file, after the last answer."""
        file.write(_encoded(f'], "bad": {json.dumps([asdict(one) for one in bad], ensure_ascii=False)}}}\n'))


class TableFile:
    """A .csv with a row for each picture that could be read.

    Args:
        names: the classes, in the order of the model's outputs.
        columns: "FIELD,NAME=FIELD,...", see FIELDS.
        each: whether to add, for each class, a column with its probability.

    Raises:
        UsageError: a field does not exist, or two columns have the same name.
    """

    def __init__(self, names: Sequence[str], columns: str, *, each: bool) -> None:
        self.names, self.each = names, each
        chosen = [part.strip().partition("=") for part in columns.split(",")]
        self.fields = [(field if equals else name).strip() for name, equals, field in chosen]
        self.header = [name.strip() for name, _, _ in chosen] + (list(names) if each else [])
        for field in self.fields:
            if field not in FIELDS:
                raise UsageError(
                    f"--columns {columns}: no field {field!r}; {nearest(field, FIELDS)}; NAME=FIELD gives the column "
                    "another name, for example image=file"
                )
        if twice := sorted({name for name in self.header if self.header.count(name) > 1}):
            raise UsageError(f"two columns are called {twice[0]!r}; give one another name: --columns NAME=FIELD")

    def begin(self, file: BinaryIO) -> None:
        """Write the names of the columns."""
        file.write(_row(self.header))

    def add(self, file: BinaryIO, answer: Classified) -> None:
        """Write the row of a picture, if it could be read."""
        if answer.probabilities is not None:
            best = int(answer.probabilities.argmax())
            values = {
                "picture": str(answer.picture),
                "file": answer.picture.name,
                "id": answer.picture.stem,
                "label": self.names[best],
                "probability": _number(answer.probabilities[best]),
            }
            each = map(_number, answer.probabilities) if self.each else ()
            file.write(_row([*(values[field] for field in self.fields), *each]))

    def end(self, file: BinaryIO, bad: Sequence[Unreadable]) -> None:
        """Nothing stands after the last row."""


class SampleFile:
    """A .csv with the ids, the order and the columns of a sample. The row of an unreadable picture is not changed.

    Raises:
        UsageError: after the ids, the sample has neither a single column (for the label) nor columns that are all named
            after classes of the model.
    """

    def __init__(self, names: Sequence[str], sample: Sample) -> None:
        self.names, self.sample, self.rows = names, sample, iter(sample.rows)
        columns = sample.header[1:]
        self.places = [names.index(name) for name in columns if name in names]
        if (len(columns) != 1 and len(self.places) != len(columns)) or not columns:
            unknown = [name for name in columns if name not in names]
            which = f"{unknown[0]!r} is not a class of this model" if columns else "it has none beside that of the ids"
            raise UsageError(
                f"--like {sample.path}: after the ids, its columns must be one for the label, or classes for their "
                f"probabilities; {which}"
            )

    def begin(self, file: BinaryIO) -> None:
        """Write the names of the columns."""
        file.write(_row(self.sample.header))

    def add(self, file: BinaryIO, answer: Classified) -> None:
        """Write a row of the sample."""
        own = next(self.rows)
        if answer.probabilities is None:
            file.write(_row(own))
        elif self.places:
            file.write(_row([own[0], *(_number(answer.probabilities[place]) for place in self.places)]))
        else:
            file.write(_row([own[0], self.names[int(answer.probabilities.argmax())]]))

    def end(self, file: BinaryIO, bad: Sequence[Unreadable]) -> None:
        """Nothing stands after the last row."""


def _number(probability: np.float32) -> str:
    return f"{float(probability):.6g}"


def _row(values: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return _encoded(line.getvalue())


def _encoded(text: str) -> bytes:
    """UTF-8; bytes of a file's name that are not UTF-8 are written as ``\\xe9``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode("utf-8")
