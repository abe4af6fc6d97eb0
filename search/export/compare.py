"""Two exports on the same pictures: ``search compare``. ONNX Runtime, no torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr
from sqlalchemy import URL

from search.errors import UsageError
from search.export.files import check_sums, open_model, read_config, read_pictures
from search.paths import Runs
from search.study.lock import own_study
from search.study.storage import open_storage, sqlite_file, storage_errors
from search.study.study import find_study, open_test_split
from trainer.config import DataConfig
from trainer.data import prepare_data
from trainer.errors import DataError, as_lines
from trainer.scan import scan_folder

BATCH = 64
LATENCY_BATCHES = (1, 64)
LATENCY_ROUNDS = 11
"""Forward passes of each export and batch size, turn by turn; their median is told."""

CLASSES_SHOWN = 10

TEST = "the test split"


def compare(first: Path, second: Path, *, data: Path | None, runs: Runs, url: URL | None = None) -> dict[str, Any]:
    """What two exports do on the same pictures.

    Args:
        first: folder that ``search export-best`` wrote.
        second: another one, of the same classes.
        data: folder of pictures, test/CLASS/* or CLASS/*: of one that they were trained on, what they were tested on.
            By default the test split of built-in pictures.
        runs: the runs folder, with the decoded pictures.
        url: the storage of the exports' studies, which count each look at their test split.

    Returns:
        ``exports``, each {``path``, ``study``, ``trial``, ``accuracy``, ``num_params``, ``macs``, ``bytes`` of
        model.onnx, ``latency_ms`` {batch: median}}; ``pictures`` {``from``, ``n``}; ``mcnemar`` {``only_first`` and
        ``only_second``, pictures that only one of them got right, ``p``, exact and two-sided}; ``classes``, each
        {``name``, ``n``, ``first``, ``second``, ``difference``}, the largest difference first; ``counted_in``, the
        studies in which this was counted as a further look at the test split.

    Raises:
        UsageError: no export, other classes, or no pictures to compare on.
        ProofFailed: an export's files are not those that were proven.
        DataError: pictures that cannot be read.
        HeldError, StorageError: the look cannot be counted, for the study is searched now, or its database is away.
    """
    configs = [read_config(export) for export in (first, second)]
    for export in (first, second):
        check_sums(export, ["metrics.json"])
    metrics = [json.loads((export / "metrics.json").read_text(encoding="utf-8")) for export in (first, second)]
    names = configs[0]["label_names"]
    if sorted(names) != sorted(configs[1]["label_names"]):
        raise UsageError(f"{first} and {second} know different classes; compare exports of the same pictures")
    sessions = [open_model(export) for export in (first, second)]
    if data is not None:
        source, labels, batches = _from_folder(data, metrics, configs, runs.cache)
    else:
        source, labels, batches = _built_in(metrics, configs, runs.cache)
    counted_in = _count_look(metrics, data, url, runs) if url is not None and source.startswith(TEST) else []
    right = []
    for session, config, read in zip(sessions, configs, batches, strict=True):
        found = np.concatenate([_ask(session, read(start)).argmax(1) for start in range(0, len(labels), BATCH)])
        right.append(np.array([config["label_names"][index] for index in found]) == labels)
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    latencies = _latencies(sessions, [read(0) for read in batches])
    return {
        "exports": [
            {
                "path": str(export),
                "study": card["study"],
                "trial": card["trial"],
                "accuracy": float(hits.mean()),
                "num_params": card["model"]["num_params"],
                "macs": card["model"]["macs"],
                "bytes": (export / "model.onnx").stat().st_size,
                "latency_ms": latency,
            }
            for export, card, hits, latency in zip((first, second), metrics, right, latencies, strict=True)
        ],
        "pictures": {"from": source, "n": len(labels)},
        "mcnemar": {"only_first": only_first, "only_second": only_second, "p": mcnemar(only_first, only_second)},
        "classes": _classes(names, labels, right),
        "counted_in": counted_in,
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """Probability of so uneven a split, or a more uneven one, if both were equally good: McNemar, 1947, exact.

    Args:
        only_first: pictures that only the first got right.
        only_second: pictures that only the second got right.
    """
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def render(answer: dict[str, Any]) -> Any:
    """Tables for people; fits 80 columns unless paths are longer."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    first, second = answer["exports"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for one in (first, second):
        table.add_column(f"{one['study']}-{one['trial']}", justify="right", overflow="fold")
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "accuracy": lambda one: f"{one['accuracy']:.2%}",
        "parameters": lambda one: f"{one['num_params']:,}",
        "multiply-adds": lambda one: f"{one['macs']:,}",
        "model.onnx": lambda one: f"{one['bytes'] / 1e6:.2f} MB",
    }
    for name, show in rows.items():
        table.add_row(name, show(first), show(second))
    for batch in LATENCY_BATCHES:
        table.add_row(f"batch of {batch}", *(f"{one['latency_ms'][str(batch)]:,.1f} ms" for one in (first, second)))
    test = answer["mcnemar"]
    verdict = "a difference that chance alone seldom makes" if test["p"] < 0.05 else "chance alone may well make it"
    lines = (
        f"{answer['pictures']['n']:,} pictures of {answer['pictures']['from']}; only the first was right on "
        f"{test['only_first']}, only the second on {test['only_second']}\n"
        f"McNemar's test, exact: p = {test['p']:.3g}, {verdict}"
    )
    if answer["pictures"]["from"].startswith(TEST):
        where = ", ".join(map(repr, answer["counted_in"]))
        counted = f"counted in {where}" if where else "counted nowhere: no study here has these pictures"
        lines += f"\nA further look at a test split, {counted}; what is chosen by it is not tested by it any more"
    classes = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("class", "pictures", "first", "second", "difference"):
        classes.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    for one in [one for one in answer["classes"] if one["difference"]][:CLASSES_SHOWN]:
        name = one["name"] if one["name"].isprintable() else ascii(one["name"])[1:-1]
        values = (f"{one['first']:.1%}", f"{one['second']:.1%}", f"{one['difference']:+.1%}")
        classes.add_row(Text(name), str(one["n"]), *values)
    parts: list[Any] = [table, Text(f"\n{lines}")]
    if classes.rows:
        parts += [Text("\nclasses that differ most", style="bold"), classes]
    return Group(*parts)


def _from_folder(data: Path, metrics: list[dict[str, Any]], configs: list[dict[str, Any]], cache: Path) -> Any:
    """The pictures of a folder that neither export was trained on, as far as that is known: its test folder, else what
    was drawn from it to test the exports, else its val folder, else all of it.
    """
    pictures = scan_folder(data).pictures
    splits = {one.split for one in pictures}
    drawn = [] if "test" in splits else [one for card in metrics if (one := _held_out(data, card, cache)) is not None]
    if drawn:
        split = "test" if any(name == "test" for name, _ in drawn) else "val"
        chosen = [one for one in pictures if all(one.name in names for _, names in drawn)]
    else:
        split = next((name for name in ("test", "val") if name in splits), "")
        chosen = [one for one in pictures if one.split == split or not split]
    if unknown := sorted({one.class_name for one in chosen} - set(configs[0]["label_names"])):
        raise DataError(f"{data}: the exports do not know {len(unknown)} of its classes:{as_lines(unknown)}")
    if not chosen:
        raise DataError(f"{data} holds no picture that both exports were tested on")
    files = [data / one.name for one in chosen]

    def reader(preprocessing: dict[str, Any]) -> Any:
        return lambda start: read_pictures(files[start : start + BATCH], preprocessing)

    where = f"the {split} split of {data}" if split else f"{data} (all of it: some may have been trained on)"
    labels = np.array([one.class_name for one in chosen])
    return where, labels, [reader(config["pretrained_cfg"]) for config in configs]


def _held_out(data: Path, card: dict[str, Any], cache: Path) -> tuple[str, set[str]] | None:
    """The split that an export was tested on and its pictures, where the folder is what it was trained on."""
    if card["data"]["source"] == "digits":
        return None
    config = DataConfig.model_validate(card["data"]["config"] | {"path": str(data.resolve())})
    try:
        found = prepare_data(config, cache)
    except DataError:  # such as one class: nobody was trained on that
        return None
    if found.content_hash != card["data"]["content_hash"]:
        return None
    split = "test" if len(found.splits["test"]) else "val"
    return split, {found.names[index] for index in found.splits[split]}


def _built_in(metrics: list[dict[str, Any]], configs: list[dict[str, Any]], cache: Path) -> Any:
    """The test split, else the validation split, of pictures that need no folder."""
    if any(card["data"]["source"] == "folder" for card in metrics):
        raise UsageError("these exports were trained on a folder of pictures; say which to compare on with --data DIR")
    readers, named = [], []
    for card, config in zip(metrics, configs, strict=True):
        data = prepare_data(DataConfig.model_validate(card["data"]["config"]), cache)
        split = "test" if len(data.splits["test"]) else "val"
        indices = data.splits[split]
        preprocessing = config["pretrained_cfg"]
        mean = np.array(preprocessing["mean"], np.float32)
        std = np.array(preprocessing["std"], np.float32)

        def read(start: int, data: Any = data, indices: Any = indices, mean: Any = mean, std: Any = std) -> Any:
            pictures = data.images[indices[start : start + BATCH]].astype(np.float32) / 255
            return np.ascontiguousarray(((pictures - mean) / std).transpose(0, 3, 1, 2))

        readers.append(read)
        named.append([(data.names[index], data.class_names[data.labels[index]]) for index in indices])
    if named[0] != named[1]:
        raise UsageError("these exports were tested on different pictures; say which to compare on with --data DIR")
    return f"the {split} split of {metrics[0]['data']['source']}", np.array([name for _, name in named[0]]), readers


def _count_look(metrics: list[dict[str, Any]], data: Path | None, url: URL, runs: Runs) -> list[str]:
    """Note in each export's study, before it is taken, that its test split is looked at; the names of those studies."""
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return []
    who = hashlib.sha256(json.dumps(sorted(card["identity"] for card in metrics)).encode()).hexdigest()
    found = []
    for name in sorted({card["study"] for card in metrics}):
        with storage_errors(url):
            try:
                study, spec = find_study(open_storage(url), name)
            except UsageError:  # it is somebody else's export
                continue
            if data is None or (spec.data.path is not None and Path(spec.data.path).resolve() == data.resolve()):
                with own_study(name, url, runs):
                    open_test_split(study, who, compared=[card["trial"] for card in metrics])
                found.append(name)
    return found


def _ask(session: Any, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    return session.run(["logits"], {"pictures": pictures})[0]  # type: ignore[no-any-return]


def _latencies(sessions: list[Any], pictures: list[NDArray[np.float32]]) -> list[dict[str, float]]:
    """Median milliseconds for each session and batch size, taken turn by turn so that both meet the same machine."""
    found: list[dict[str, float]] = [{} for _ in sessions]
    for batch in LATENCY_BATCHES:
        asked = [np.ascontiguousarray(np.resize(one, (batch, *one.shape[1:]))) for one in pictures]
        times: list[list[float]] = [[] for _ in sessions]
        for _ in range(LATENCY_ROUNDS):
            for session, input_, taken in zip(sessions, asked, times, strict=True):
                started = time.perf_counter()
                _ask(session, input_)
                taken.append(time.perf_counter() - started)
        for one, taken in zip(found, times, strict=True):
            one[str(batch)] = round(1000 * median(taken), 3)
    return found


def _classes(names: list[str], labels: NDArray[np.str_], right: list[NDArray[np.bool_]]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        own = labels == name
        if own.any():
            first, second = (float(hits[own].mean()) for hits in right)
            row = {"name": name, "n": int(own.sum()), "first": first, "second": second, "difference": second - first}
            rows.append(row)
    return sorted(rows, key=lambda row: -abs(row["difference"]))
