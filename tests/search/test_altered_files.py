"""Whatever is read back and was altered is noticed: never a traceback, never used in silence.

For each kind of file: single flipped bits, cuts, other JSON shapes, and no bytes at all. An answer is one of

    refused   one sentence with a documented exit code
    said      a warning or a note; the file counts as none and what was in it is found anew
    equal     the same value as before, as for a flipped space between two numbers

The counts are printed; ``pytest -s`` shows them.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from exports import write_whole_export
from fast import slow_after
from lines import events_of
from moments import moment
from PIL import Image
from scripted import Bench, ScriptedPool, spec_of, trains

from search.errors import INTERNAL, SearchError, UsageError, exit_code_of
from search.export.compare import compare
from search.export.export import _unchanged
from search.export.files import read_config
from search.export.record import ExportRecord
from search.figures.timeline import segments_of_journal
from search.paths import Runs
from search.plan.width import Fitter
from search.study.identity import take_folder
from search.study.journal import Journal, read_journal
from search.study.lock import read_holder
from search.study.replay import replay
from search.watch.status import read_state, write_state
from studies import Limit
from trainer.config import DataConfig, Shape, TrainConfig
from trainer.data import open_data, prepare_data
from trainer.errors import TrainerError
from trainer.kept import write_checked
from trainer.sums import check_teacher

SHAPES = (
    b"",
    b"null",
    b"0",
    b'"x"',
    b"[]",
    b"{}",
    b"[1, 2]",
    b'{"event": "launch"}',
    b"[" * 100_000,
    b"\xff",
    b"NaN",
)
QUICK, BULK = 40, 500
"""Flips and cuts of each kind; those of a short file are drawn several times, and tried once."""


@dataclass(frozen=True)
class Kind:
    """A file that is read back."""

    name: str
    file: Path
    read: Callable[[], tuple[object, list[str]]]
    """What it says, and what is told of it besides warnings."""
    may_end_early: bool = False
    """Whether the file grows, so that a missing end is what a kill leaves: a launch adds it from the database."""


def faults(content: bytes, number: int, seed: str) -> dict[bytes, str]:
    """Altered contents, each with what was done."""
    found = {altered: what for what, altered in _faults(content, number, seed)}
    found.pop(content, None)
    return found


def _faults(content: bytes, number: int, seed: str) -> Iterator[tuple[str, bytes]]:
    drawn = random.Random(seed)
    for shape in SHAPES:
        yield "shape", shape
        yield "shape", shape + b"\n"
    for _ in range(number):
        at, bit = drawn.randrange(len(content)), 1 << drawn.randrange(8)
        yield "flip", content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
        yield "cut", content[: drawn.randrange(len(content))]


def answer_of(kind: Kind, right: object) -> str:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found, notes = kind.read()
        except (SearchError, TrainerError) as error:
            return "refused" if exit_code_of(error) != INTERNAL else f"without an exit code: {error}"
        except Exception as error:
            return f"traceback {type(error).__name__}: {error}"
    if warned or notes:
        return "said"
    if kind.may_end_early and isinstance(found, list) and isinstance(right, list) and found == right[: len(found)]:
        return "equal" if len(found) == len(right) else "as a kill leaves it"
    return "equal" if found == right else "silent"


# -- the kinds


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the journal of a search in two launches."""
    bench = Bench(tmp_path_factory.mktemp("searched"))
    for trials in (2, 5):
        bench.coordinator(ScriptedPool(trains, 2), spec_of(trials=trials, pruner="successive_halving")).run()
    return bench.folder


def journal_of_launch(searched: Path, folder: Path) -> Kind:
    """As a launch, a replay and a report read it."""
    runs = Runs(folder / "runs")
    path = runs.journal("scripted")
    path.parent.mkdir(parents=True)
    shutil.copy(Runs(searched).journal("scripted"), path)

    def read() -> tuple[object, list[str]]:
        notes = take_folder(runs, "scripted", uuid)
        journal = Journal(path)
        for aside in path.parent.glob("journal.damaged-*"):
            aside.unlink()
        return [event.model_dump() for event in read_journal(journal.path)], notes

    uuid = str(next(event.uuid for event in read_journal(path) if event.event == "launch"))
    return Kind("journal, by a launch", path, read, may_end_early=True)


def journal_of_replay(searched: Path, folder: Path) -> Kind:
    """As a replay and a report read it."""
    path = folder / "journal.jsonl"
    shutil.copy(Runs(searched).journal("scripted"), path)

    def read() -> tuple[object, list[str]]:
        events = read_journal(path)
        segments_of_journal(events)
        if events:
            replay(events)
        return [event.model_dump() for event in events], []

    return Kind("journal, by a replay", path, read, may_end_early=True)


def statistics(_searched: Path, folder: Path) -> Kind:
    rng = np.random.default_rng(0)
    for label in "ab":
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(9):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{number}.png")
    config = DataConfig(path=str(folder / "pictures"), image_size=8, normalize="dataset")
    data = prepare_data(config, folder / "cache")
    (file,) = data.cache_path.glob("statistics-*.json")

    def read() -> tuple[object, list[str]]:
        found = open_data(config, data.cache_path)
        return (found.mean, found.std), []

    return Kind("statistics", file, read)


def sizes(_searched: Path, folder: Path) -> Kind:
    file = folder / "widths.json"
    fitter = Fitter(Shape(10, 16), Limit(params=300_000), file)

    def read() -> tuple[object, list[str]]:
        config = TrainConfig(model="rexnet_100", width_mult=0.1)
        return (fitter.size(config), fitter.size(config.model_copy(update={"width_mult": 0.2}))), []

    read()
    return Kind("sizes", file, read)


def last_study(_searched: Path, folder: Path) -> Kind:
    runs = Runs(folder)
    write_checked(runs.last_study, {"study": "birds-10"})

    def read() -> tuple[object, list[str]]:
        name = runs.study_last_launched()
        if not name.startswith("bird"):  # as every command does with a name that is no study's
            raise UsageError(f"no study {name!r} in this database")
        return name, []

    return Kind("last study", runs.last_study, read)


def state(_searched: Path, folder: Path) -> Kind:
    file = folder / "state.json"
    write_state(file, moment("birds", 6, (), (), 77.0), "process 7")
    return Kind("state", file, lambda: (read_state(file, "process 7"), []))


def holder(_searched: Path, folder: Path) -> Kind:
    """It only says in words who owns a study; nothing is decided by it."""
    file = folder / "holder"
    file.write_text("process 7 on here since today")

    def read() -> tuple[object, list[str]]:
        return read_holder(file).isprintable(), []

    return Kind("holder", file, read)


def export(name: str, uses: str) -> Callable[[Path, Path], Kind]:
    def made(_searched: Path, folder: Path) -> Kind:
        whole = write_whole_export(folder / "export", identity="this")
        other = write_whole_export(folder / "other")

        def read() -> tuple[object, list[str]]:
            match uses:
                case "export-best":
                    found = _unchanged(whole, "this")
                    return found, [] if found else ["exported anew"]
                case "teacher":
                    check_teacher(str(whole))
                    return [(whole / file).read_bytes() for file in ("config.json", "metrics.json")], []
                case _:
                    answer = compare(whole, other, data=folder / "pictures", runs=Runs(folder))
                    return (read_config(whole), ExportRecord.load(whole), answer.only_first), []

        if uses == "compare":
            for label in "ab":
                (folder / "pictures" / label).mkdir(parents=True)
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "pictures" / label / "0.png")
        return Kind(f"{name} of an export, by {uses}", whole / name, read)

    return made


KINDS: dict[str, Callable[[Path, Path], Kind]] = {
    "journal by launch": journal_of_launch,
    "journal by replay": journal_of_replay,
    "statistics": statistics,
    "sizes": sizes,
    "last study": last_study,
    "state": state,
    "holder": holder,
} | {
    f"{name} by {uses}": export(name, uses)
    for uses, names in {
        "export-best": (
            "config.json", "metrics.json", "model.safetensors", "model.onnx", "README.md", "class_map.txt",
            "plots/curves.png", "SHA256SUMS",
        ),
        "teacher": ("config.json", "metrics.json", "model.safetensors", "SHA256SUMS"),
        "compare": ("config.json", "metrics.json", "model.onnx", "SHA256SUMS"),
    }.items()
    for name in names
}  # fmt: skip


def count_answers(kind: Kind, number: int) -> Counter[str]:
    content = kind.file.read_bytes()
    right, notes = kind.read()
    assert notes == []
    answers: Counter[str] = Counter()
    for altered, what in faults(content, number, kind.name).items():
        kind.file.write_bytes(altered)
        answer = answer_of(kind, right)
        kind.file.write_bytes(content)
        answers[answer] += 1
        assert not answer.startswith(("traceback", "silent", "without")), (
            f"{kind.name}, {what}: {answer}\n{altered[:300]!r}"
        )
    print(f"{kind.name}: {sum(answers.values())} faults: {dict(answers)}")
    return answers


@pytest.mark.parametrize(
    "name",
    slow_after(
        len(KINDS) - 3,
        sorted(KINDS, key=lambda name: name.endswith("by compare") and name != "metrics.json by compare"),
    ),
)
def test_an_altered_file_is_never_a_traceback_and_never_used_in_silence(
    name: str, searched: Path, tmp_path: Path
) -> None:
    assert count_answers(KINDS[name](searched, tmp_path), QUICK)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in KINDS if "compare" not in name])
def test_nor_is_any_of_many_thousands(name: str, searched: Path, tmp_path: Path) -> None:
    assert count_answers(KINDS[name](searched, tmp_path), BULK)


def test_a_line_taken_out_of_a_journal_or_put_into_it_is_noticed(searched: Path, tmp_path: Path) -> None:
    kind = journal_of_replay(searched, tmp_path)
    lines = kind.file.read_bytes().splitlines(keepends=True)
    for number in range(len(lines) - 1):
        for changed in (lines[:number] + lines[number + 1 :], lines[: number + 1] + lines[number:]):
            kind.file.write_bytes(b"".join(changed))
            assert answer_of(kind, None) == "refused", number


def test_an_old_journal_without_sums_whose_steps_make_no_sense_ends_its_replay_in_a_sentence(searched: Path) -> None:
    """Each line may be right by itself."""
    lines = [json.loads(line) for line in Runs(searched).journal("scripted").read_text().splitlines()]
    for line in lines:
        line.pop("crc32")
    answers: Counter[str] = Counter()
    for number in range(1, len(lines)):
        for changed in (lines[:number] + lines[number + 1 :], [*lines[:number], lines[0], *lines[number:][::-1]]):
            try:
                answers["played" if replay(events_of(changed)).identical else "differs"] += 1
            except SearchError as error:
                answers["refused" if exit_code_of(error) == 9 else "another exit code"] += 1
    print(f"steps taken out or turned round: {dict(answers)}")
    assert answers["refused"] > 0
    assert answers["another exit code"] == 0
