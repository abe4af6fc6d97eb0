"""Classifies pictures with an export, in ONNX Runtime, with the preprocessing that config.json describes. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.console import Terminal, show_progress
from search.errors import UsageError
from search.export.answers import (
    DEFAULT_COLUMNS,
    AnswerFile,
    Class,
    Classified,
    JsonFile,
    SampleFile,
    TableFile,
    Unreadable,
    likeliest,
)
from search.export.files import ModelConfig, open_model, read_config
from search.export.formats.format import Forward
from search.export.inputs import Sample, find_pictures
from search.words import count
from trainer.cores import in_order, num_cores
from trainer.errors import DataError, as_lines, no_room, printable
from trainer.kept import written_aside
from trainer.pictures import read
from trainer.scan import read_file

if TYPE_CHECKING:
    import rich.table

TOP = 5
"""Default number of classes per picture."""

BATCH_PIXELS = 16 * 224 * 224
"""Pixels of all pictures in one forward pass. More would take more memory."""

MOST_PER_BATCH = 64

MOST_THREADS = 8
"""Largest number of pictures that are decoded in parallel. Decoding one of 24 megapixels takes about 150 MB."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of ``search predict``."""

    export: Path
    """Folder that ``search export-best`` wrote."""
    given: tuple[Path, ...]
    """Pictures, folders, patterns, tables of pictures."""
    top: int | None = None
    """Number of classes per picture; None: TOP."""
    columns: str | None = None
    """Columns of a .csv; None: DEFAULT_COLUMNS."""
    like: Path | None = None
    """Sample file, whose ids, order and columns the .csv gets."""
    probabilities: bool = False
    """Whether the written file has the probability of every class."""
    strict: bool = False
    """Whether a picture that cannot be read ends the command."""


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of a picture."""

    picture: str
    """Path of the picture."""
    classes: tuple[Class, ...]
    """Classes, the most likely first."""


@dataclass(frozen=True)
class Predictions:
    """The answer of ``search predict``."""

    predictions: tuple[Prediction, ...]
    """Predictions, in the order of the pictures."""
    bad: tuple[Unreadable, ...] = ()
    """Pictures that cannot be read."""
    version: int = 1


@dataclass(frozen=True)
class Written:
    """The answer of ``search predict --out``."""

    out: str
    """The file that was written."""
    pictures: int
    """Number of pictures that were classified."""
    bad: tuple[Unreadable, ...]
    """Pictures that cannot be read, and ids of a sample without a picture."""
    version: int = 1


def predict(request: Request) -> Predictions:
    """The most likely classes of each picture.

    Raises:
        UsageError: the folder is not an export, or has no model.onnx; or an option is only for a file.
        ProofFailed: a file of the export has changed since the proof.
        DataError: no picture can be read, or ``strict`` is on and one cannot; the message lists them.
    """
    if request.columns is not None or request.like is not None or request.probabilities:
        raise UsageError("--columns, --like and --probabilities are for a file; name it: --out predictions.csv")
    config = read_config(request.export)
    found: list[Prediction] = []

    def keep(answer: Classified) -> None:
        if answer.probabilities is not None:
            classes = likeliest(config.label_names, answer.probabilities, request.top or TOP)
            found.append(Prediction(str(answer.picture), classes))

    bad = _classify(request, config, find_pictures(request.given), keep)
    return Predictions(tuple(found), tuple(bad))


def predict_into(out: Path, request: Request) -> Written:
    """Write the classes of each picture into a file. If the process is killed, the file is complete, or as it was
    before.

    Raises:
        UsageError, ProofFailed, DataError: as for ``predict``; or the options do not fit the file.
        DiskError: the disk is full.
    """
    _check_options(out, request)
    config = read_config(request.export)
    if out.resolve() in (one.resolve() for one in (*request.given, request.like) if one is not None):
        raise UsageError(f"--out {out} is one of the files to read; choose another name")
    found = find_pictures(request.given)
    # The file of an earlier call may lie in the folder of the pictures.
    pictures: Sequence[Path] = [one for one in found if one.name != out.name or one.resolve() != out.resolve()]
    answers: AnswerFile
    if out.suffix.lower() == ".json":
        answers = JsonFile(config.label_names, len(config.label_names) if request.probabilities else request.top or TOP)
    elif request.like is not None:
        sample = Sample.read(request.like, pictures)
        answers, pictures = SampleFile(config.label_names, sample), sample.pictures
    else:
        answers = TableFile(config.label_names, request.columns or DEFAULT_COLUMNS, each=request.probabilities)
    try:
        with written_aside(out) as file:
            answers.begin(file)
            bad = _classify(request, config, pictures, lambda answer: answers.add(file, answer))
            answers.end(file, bad)
    except OSError as error:
        raise no_room(error, out) or UsageError(f"--out {out} cannot be written: {error.strerror}") from None
    return Written(str(out), len(pictures) - len(bad), tuple(bad))


def _check_options(out: Path, request: Request) -> None:
    table = request.columns is not None or request.like is not None
    if out.suffix.lower() not in (".csv", ".json"):
        raise UsageError(f"--out {out}: the name must end in .csv or .json")
    if out.suffix.lower() == ".json" and table:
        raise UsageError("--columns and --like are for a .csv; name it: --out predictions.csv")
    if out.suffix.lower() == ".csv" and request.top is not None:
        raise UsageError("--top is not for a .csv, which has the most likely class; --probabilities adds all classes")
    if request.top is not None and request.probabilities:
        raise UsageError("--probabilities writes all classes; leave out --top")
    if request.like is not None and (request.columns is not None or request.probabilities):
        raise UsageError("--like has the columns of its file; leave out --columns and --probabilities")
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise UsageError(f"--out {out}: {'is a folder' if out.is_dir() else 'its folder does not exist'}")


def _classify(
    request: Request, config: ModelConfig, pictures: Sequence[Path], take: Callable[[Classified], None]
) -> list[Unreadable]:
    """Classify pictures in their order; ``take`` gets the answer for each, readable or not.

    Args:
        request: the arguments, for the export and ``strict``.
        config: the export's configuration.
        pictures: the files of the pictures.
        take: called with the answer for each picture.

    Returns:
        The pictures that cannot be read.

    Raises:
        DataError: a picture cannot be read and ``strict`` is on, or no picture can be read.
    """
    forward = open_model(request.export)
    bad: list[Unreadable] = []
    total = len(pictures)
    # Warning filters belong to the whole process, so they are set once here, never in a thread.
    with warnings.catch_warnings(), show_progress(Terminal(stderr=True)) as progress:
        warnings.simplefilter("ignore")
        Image.preinit()  # Pillow's formats are loaded now, not in all threads at once
        Image.init()
        with closing(_answers(forward, config, pictures)) as answers:
            for done, answer in enumerate(answers, 1):
                if answer.problem:
                    bad.append(Unreadable(str(answer.picture), answer.problem))
                take(answer)
                progress("classifying pictures", done, total)
    if bad and (request.strict or len(bad) == total):
        raise DataError(f"these pictures cannot be read:{as_lines(_lines(bad))}")
    return bad


def _answers(forward: Forward, config: ModelConfig, pictures: Sequence[Path]) -> Generator[Classified]:
    """The answers in the order of the pictures. At most three batches of pictures are in memory."""
    preprocessing = config.pretrained_cfg
    data = config.data_config
    size = max(1, min(MOST_PER_BATCH, BATCH_PIXELS // data.image_size**2))

    def decode(picture: Path) -> NDArray[np.uint8] | str:
        try:
            return read(read_file(picture), data).pixels
        except DataError as error:
            return str(error)

    pool = ThreadPoolExecutor(min(num_cores(), MOST_THREADS), "decode")
    try:
        decoded = in_order(pool, decode, pictures, 2 * size)
        while batch := [(picture, future.result()) for picture, future in islice(decoded, size)]:
            images = [image for _, image in batch if not isinstance(image, str)]
            rows = iter(_probabilities(forward(preprocessing.normalised(images))) if images else ())
            for picture, image in batch:
                if isinstance(image, str):
                    yield Classified(picture, None, image)
                else:
                    yield Classified(picture, next(rows))
    finally:
        pool.shutdown(cancel_futures=True)


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _lines(bad: Sequence[Unreadable]) -> list[str]:
    return [f"{one.picture}: {one.reason}" for one in bad]


def warning_of(bad: Sequence[Unreadable], like: Path | None) -> str:
    """A warning that lists the pictures that cannot be read; ``like`` is the sample file, if one was given."""
    kept = "" if like is None else f"; {'its row has' if len(bad) == 1 else 'their rows have'} the values of {like}"
    return f"{count(len(bad), 'picture')} cannot be read{kept}:{as_lines(_lines(bad))}"


def text_of_answer(answer: Predictions | Written) -> str | rich.table.Table:
    """The output of ``search predict``: a line about the file that was written, or a table."""
    if isinstance(answer, Written):
        return f"{count(answer.pictures, 'picture')} classified in {answer.out}"
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("picture", "class", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    for prediction in answer.predictions:
        for rank, found in enumerate(prediction.classes):
            first = prediction.picture if rank == 0 else ""
            table.add_row(
                printable(first), printable(found.name), f"{found.probability:.2%}", style="" if rank else "bold"
            )
    table.width = Console(width=10**6).measure(table).maximum  # names of files are not wrapped, not even in a pipe
    return table
