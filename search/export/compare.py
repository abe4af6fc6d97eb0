"""``search compare``: compares two exports on the same pictures, with ONNX Runtime and without torch.

There is one exception: if CIFAR's pictures are not in the cache yet, torchvision reads them, and imports torch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.special import bdtr
from sqlalchemy import URL

from search.errors import UsageError
from search.export.files import ModelConfig, check_sums, open_model, read_config, read_images
from search.export.formats.format import Forward
from search.export.formats.table import format_of
from search.export.record import METRICS, ExportRecord, Scores
from search.export.scores import Answers, scores_of
from search.paths import Runs
from search.study.file import is_missing
from search.study.gain import wilson_interval
from search.study.lock import own_study
from search.study.storage import open_storage, sqlite_file, storage_errors
from search.study.study import find_study, record_test_use
from studies import StudySpec
from studies.objective import Objective
from trainer.begun import prepare_as_begun
from trainer.config import DataConfig
from trainer.data import Dataset, prepare_data
from trainer.errors import DataError, as_lines
from trainer.scan import Listing, scan, scan_folder
from trainer.values import Json

COMPARE_VERSION = 1
"""Version of the JSON shape of ``search compare``."""

BATCH = 64
LATENCY_BATCHES = (1, 64)
LATENCY_ROUNDS = 11
"""Number of forward passes for each export and batch size; the exports take turns, and the median counts."""

TEST = "the test split"
"""Beginning of ``Comparison.source`` if the pictures are a test split; such a comparison is a use of that split."""

Reader = Callable[[int], NDArray[np.float32]]


@dataclass(frozen=True)
class Compared:
    """The results of one of the two exports."""

    path: str
    study: str
    trial: int
    """Number of the trial; if there are several, of the first one."""
    name: str
    """The study and its trials: "birds-7"."""
    accuracy: float
    """Accuracy on the pictures of the comparison."""
    interval: tuple[float, float]
    """95 % interval of the accuracy (Wilson)."""
    loss: float
    """Mean cross-entropy on the same pictures."""
    objective: Objective
    """The objective of the export's study."""
    scores: Scores
    """Scores besides the accuracy, on the same pictures."""
    num_params: int
    macs: int
    bytes: int
    """Size of model.onnx."""
    latency_ms: dict[str, float]
    """Batch size -> median milliseconds of a forward pass."""

    def to_json(self) -> dict[str, Json]:
        """All fields; in ``scores``, only those over all classes."""
        return vars(self) | {"scores": self.scores.model_dump(mode="json", exclude={"classes"})}


@dataclass(frozen=True)
class ClassDifference:
    """The accuracies of the two exports on one class."""

    name: str
    n: int
    """Number of pictures of this class."""
    first: float
    """Accuracy of the first export on this class."""
    second: float

    @property
    def difference(self) -> float:
        """Accuracy of the second export minus that of the first."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """The answer of ``search compare``."""

    exports: tuple[Compared, Compared]
    source: str
    """The pictures, in words: "the test split of digits"."""
    n: int
    """Number of pictures."""
    only_first: int
    """Pictures that only the first export got right."""
    only_second: int
    p: float
    """The p-value of McNemar's test, exact and two-sided."""
    classes: tuple[ClassDifference, ...]
    """Classes, the largest difference first."""
    counted_in: tuple[str, ...]
    """Studies that count this comparison as a use of their test split."""

    def to_json(self) -> dict[str, Json]:
        """``version``; ``exports``; ``pictures`` {``from``, ``n``}; ``mcnemar`` {``only_first``, ``only_second``,
        ``p``}; ``classes``, each {``name``, ``n``, ``first``, ``second``, ``difference``}; ``counted_in``."""
        return {
            "version": COMPARE_VERSION,
            "exports": [one.to_json() for one in self.exports],
            "pictures": {"from": self.source, "n": self.n},
            "mcnemar": {"only_first": self.only_first, "only_second": self.only_second, "p": self.p},
            "classes": [asdict(one) | {"difference": one.difference} for one in self.classes],
            "counted_in": list(self.counted_in),
        }


@dataclass(frozen=True)
class Side:
    """One of the compared exports: its folder and the content of its files."""

    folder: Path
    record: ExportRecord
    config: ModelConfig
    forward: Forward


@dataclass(frozen=True)
class ComparedPictures:
    """The pictures that both exports classify."""

    source: str
    """Description of the pictures in words."""
    labels: NDArray[np.str_]
    """Class name of each picture [n]."""
    read: tuple[Reader, Reader]
    """For each export, a function that reads the batch at a start index, preprocessed for that export."""


def compare(first: Path, second: Path, *, data: Path | None, runs: Runs, url: URL | None = None) -> Comparison:
    """Compare two exports on the same pictures.

    Args:
        first: folder that ``search export-best`` wrote.
        second: another such folder, with the same classes.
        data: folder of pictures, test/CLASS/* or CLASS/*. If the exports were trained on this folder, only their test
            pictures are used. None: the test split of built-in pictures.
        runs: the runs folder, with the decoded pictures.
        url: the storage of the exports' studies, which count each use of their test split.

    Raises:
        UsageError: a folder is not an export, the classes differ, or there are no pictures to compare on.
        ProofFailed: the files of an export have changed since its proof.
        DataError: pictures cannot be read.
        HeldError, StorageError: the use cannot be recorded: the study is in use, or its database is unavailable.
    """
    configs = [read_config(export) for export in (first, second)]
    for export in (first, second):
        check_sums(export, [METRICS])
    records = [ExportRecord.load(export) for export in (first, second)]
    if sorted(configs[0].label_names) != sorted(configs[1].label_names):
        raise UsageError(f"{first} and {second} have different classes; compare exports of the same pictures")
    sides = [
        Side(export, record, config, open_model(export))
        for export, record, config in zip((first, second), records, configs, strict=True)
    ]
    pictures = _from_folder(data, sides, runs.cache, url) if data is not None else _built_in(sides, runs.cache)
    is_test = pictures.source.startswith(TEST)
    counted_in = _record_use(records, data, url, runs) if url is not None and is_test else []
    right, scores, losses = [], [], []
    for side, read in zip(sides, pictures.read, strict=True):
        names = side.config.label_names
        number_of = {name: number for number, name in enumerate(names)}
        labels = np.array([number_of[name] for name in pictures.labels])
        found = Answers.joined(
            [
                Answers.of(side.forward(read(start)), labels[start : start + BATCH])
                for start in range(0, len(labels), BATCH)
            ]
        )
        right.append(found.predicted == labels)
        scores.append(scores_of(found, labels, names))
        losses.append(float(found.losses.mean()))
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    latencies = _latencies([side.forward for side in sides], [read(0) for read in pictures.read])
    one, other = (
        Compared(
            path=str(side.folder),
            study=side.record.study,
            trial=side.record.trial,
            name="-".join([side.record.study, *map(str, side.record.trials)]),
            accuracy=float(hits.mean()),
            interval=wilson_interval(int(hits.sum()), len(hits)),
            loss=loss,
            objective=side.record.search.objective,
            scores=score,
            num_params=side.record.model.num_params,
            macs=side.record.model.macs,
            bytes=(side.folder / format_of("onnx").file).stat().st_size,
            latency_ms=latency,
        )
        for side, hits, score, loss, latency in zip(sides, right, scores, losses, latencies, strict=True)
    )
    return Comparison(
        exports=(one, other),
        source=pictures.source,
        n=len(pictures.labels),
        only_first=only_first,
        only_second=only_second,
        p=mcnemar(only_first, only_second),
        classes=tuple(_classes(configs[0].label_names, pictures.labels, right)),
        counted_in=tuple(counted_in),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's test (1947), exact and two-sided.

    It is the probability that the two numbers differ at least this much if both exports are equally good.

    Args:
        only_first: number of pictures that only the first classified correctly.
        only_second: number of pictures that only the second classified correctly.
    """
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def _from_folder(data: Path, sides: Sequence[Side], cache: Path, url: URL | None) -> ComparedPictures:
    """The pictures of a folder on which two exports are compared.

    If there is a test folder, its pictures. Else, if an export was trained on this folder, the pictures of the test
    split that was drawn from it (without a test split, of the validation split). Else those of the val folder, if there
    is one. Else all pictures.
    """
    configs = [_pictures_of(side.record, data, url) for side in sides]
    images = _listing(data, configs).pictures
    splits = {one.split for one in images}
    pairs = zip(configs, sides, strict=True)
    known = [] if "test" in splits else [_held_out(config, side.record, cache) for config, side in pairs]
    drawn = [one for one in known if one is not None]
    if drawn:
        split = "test" if any(name == "test" for name, _ in drawn) else "val"
        chosen = [one for one in sorted(drawn[0][1].items()) if all(one[0] in found for _, found in drawn)]
    else:
        split = next((name for name in ("test", "val") if name in splits), "")
        chosen = [(one.name, one.class_name) for one in images if one.split == split or not split]
    if unknown := sorted({label for _, label in chosen} - set(sides[0].config.label_names)):
        raise DataError(f"{data}: the exports do not have {len(unknown)} of its classes:{as_lines(unknown)}")
    if not chosen:
        raise DataError(f"{data} holds no picture that both exports were tested on")
    files = [data / name for name, _ in chosen]

    def reader(side: Side) -> Reader:
        return lambda start: read_images(files[start : start + BATCH], side.config)

    where = f"the {split} split of {data}" if split else f"{data} (all of it: some may have been trained on)"
    return ComparedPictures(where, np.array([label for _, label in chosen]), (reader(sides[0]), reader(sides[1])))


def _pictures_of(record: ExportRecord, data: Path, url: URL | None) -> DataConfig | None:
    """The settings by which an export's study reads the pictures of this folder; None if it read no folder. If its
    table of labels is outside the folder, the record lacks the path. It is taken from the study, if the database has
    it."""
    if record.data.source == "digits":
        return None
    config = DataConfig.model_validate({**record.data.config, "path": str(data.resolve())})
    if config.labels is not None and not (data / config.labels).is_file() and url is not None:
        found = _study_of(record.study, url)
        if found is not None and found[1].data.named_tables == config.named_tables:
            tables = found[1].data
            config = config.model_copy(update={"labels": tables.labels, "test_labels": tables.test_labels})
    return config


def _listing(data: Path, configs: Sequence[DataConfig | None]) -> Listing:
    """List the pictures of a folder: by an export's label table if that is there too, else by subfolders."""
    for config in configs:
        if config is not None and config.labels is not None and (data / Path(config.labels).expanduser()).is_file():
            return scan(config)
    return scan_folder(data, needs_train=False)


def _held_out(config: DataConfig | None, record: ExportRecord, cache: Path) -> tuple[str, dict[str, str]] | None:
    """The split that tested an export, and the classes of its pictures; None if it was not trained on this folder."""
    if config is None:
        return None
    try:
        found = prepare_as_begun(config, cache, record.data.content_hash)
    except DataError:  # for example a single class: no export was trained on such a folder
        return None
    if found.content_hash != record.data.content_hash:
        return None
    split = "test" if len(found.splits["test"]) else "val"
    return split, {found.names[index]: found.class_names[found.labels[index]] for index in found.splits[split]}


def _built_in(sides: Sequence[Side], cache: Path) -> ComparedPictures:
    """The test split, or else the validation split, of built-in pictures."""
    if any(side.record.data.source == "folder" for side in sides):
        raise UsageError("these exports were trained on a folder of pictures; say which to compare on with --data DIR")
    sets = [prepare_data(DataConfig.model_validate(side.record.data.config), cache) for side in sides]
    splits = ["test" if len(data.splits["test"]) else "val" for data in sets]
    named = [
        [(data.names[index], data.class_names[data.labels[index]]) for index in data.splits[split]]
        for data, split in zip(sets, splits, strict=True)
    ]
    if named[0] != named[1]:
        raise UsageError("these exports were tested on different pictures; say which to compare on with --data DIR")

    def reader(side: Side, data: Dataset, split: str) -> Reader:
        mean = np.array(side.config.pretrained_cfg.mean, np.float32)
        std = np.array(side.config.pretrained_cfg.std, np.float32)

        def read(start: int) -> NDArray[np.float32]:
            chosen = data.splits[split][start : start + BATCH]
            images = data.images[chosen][data.centre].astype(np.float32) / 255
            return np.ascontiguousarray(((images - mean) / std).transpose(0, 3, 1, 2))

        return read

    first, second = (reader(*one) for one in zip(sides, sets, splits, strict=True))
    source = f"the {splits[0]} split of {sides[0].record.data.source}"
    return ComparedPictures(source, np.array([name for _, name in named[0]]), (first, second))


def _record_use(records: Sequence[ExportRecord], data: Path | None, url: URL, runs: Runs) -> list[str]:
    """Record a use of the test split in each export's study, before it begins. Returns the names of the studies."""
    both = hashlib.sha256(json.dumps(sorted(record.identity for record in records)).encode()).hexdigest()
    found = []
    for name in sorted({record.study for record in records}):
        known = _study_of(name, url)
        path = None if known is None else known[1].data.path
        if known is not None and (data is None or (path is not None and Path(path).resolve() == data.resolve())):
            with storage_errors(url), own_study(name, url, runs):
                record_test_use(known[0], both, compared=[record.trial for record in records])
            found.append(name)
    return found


def _study_of(name: str, url: URL) -> tuple[optuna.Study, StudySpec] | None:
    """An export's study, and its spec; None if the study is not in this database."""
    if (file := sqlite_file(url)) is not None and is_missing(file):
        return None
    with storage_errors(url):
        try:
            return find_study(open_storage(url), name)
        except UsageError:
            return None


def _latencies(forwards: Sequence[Forward], images: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
    """Median milliseconds for each export and batch size. The exports take turns, so both have the same conditions."""
    found: list[dict[str, float]] = [{} for _ in forwards]
    for batch in LATENCY_BATCHES:
        asked = [np.ascontiguousarray(np.resize(one, (batch, *one.shape[1:]))) for one in images]
        times: list[list[float]] = [[] for _ in forwards]
        for _ in range(LATENCY_ROUNDS):
            for forward, input_, taken in zip(forwards, asked, times, strict=True):
                started = time.perf_counter()
                forward(input_)
                taken.append(time.perf_counter() - started)
        for one, taken in zip(found, times, strict=True):
            one[str(batch)] = round(1000 * median(taken), 3)
    return found


def _classes(
    names: Sequence[str], labels: NDArray[np.str_], right: Sequence[NDArray[np.bool_]]
) -> list[ClassDifference]:
    first, second = right
    present, place = np.unique(labels, return_inverse=True)
    sizes = np.bincount(place)
    hits = [np.bincount(place, weights=one) / sizes for one in (first, second)]
    at = {str(name): index for index, name in enumerate(present)}
    rows = [
        ClassDifference(name, int(sizes[at[name]]), *(float(one[at[name]]) for one in hits))
        for name in names
        if name in at
    ]
    return sorted(rows, key=lambda row: -abs(row.difference))
