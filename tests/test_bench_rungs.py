"""bench/rungs.py: its table on trainings whose truth is known, and its trainings on a few digits."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from pathlib import Path

import pytest

from bench import rungs
from bench.rungtable import print_table, read

CONFIGS = 24
EPOCHS = 9


def line(config: int, seed: int, kind: str | None, values: list[float]) -> str:
    named = {} if kind is None else {"kind": kind}
    return json.dumps({"config": config, "seed": seed, "epochs": len(values), "val_accuracy": values} | named)


def recorded(config: int) -> list[str]:
    """The higher its number, the better a configuration ends, and the worse it looks in the first seven epochs."""
    end, early = config / 100, (CONFIGS - config) / 200
    return [
        *(line(config, seed, None, [early] * 7 + [end] * 2) for seed in (0, 1)),
        line(config, 2, "cosine", [early, early, end]),
        *(line(config, seed, "late", [early] * 8 + [end - 0.01]) for seed in (0, 1)),
        *(line(config, seed, "late", [early, early, early]) for seed in (0, 1)),
        line(config, 3, "warm", [early] * 8 + [end + 0.02]),
    ]


def write(folder: Path, lines: list[str]) -> list[Path]:
    """Two files: full trainings and short ones."""
    (folder / "full.jsonl").write_text("".join(f"{each}\n" for each in lines if '"epochs": 9' in each))
    (folder / "short.jsonl").write_text("".join(f"{each}\n" for each in lines if '"epochs": 3' in each))
    return [folder / "full.jsonl", folder / "short.jsonl"]


LINES = [each for config in range(CONFIGS) for each in recorded(config)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The numbers of each row without their intervals. One configuration lacks its short training."""
    files = write(tmp_path_factory.mktemp("table"), [*LINES, line(CONFIGS, 0, None, [1.0] * EPOCHS)])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_table(files, rungs.KINDS, runs=300, resamples=3)
    said = printed.getvalue()
    assert f"n = {CONFIGS} configurations" in said
    cells = [text.strip("| ").split(" | ") for text in said.splitlines() if text.startswith("| ")]
    return {row[0]: [float(cell.split()[0]) for cell in row[1:] if re.match(r"-?\d", cell)] for row in cells}


def test_the_table_tells_what_each_rung_says_and_what_it_costs(rows: dict[str, list[float]]) -> None:
    assert rows["epoch 3 of a cosine of 9"] == [-1, -1, 0, 6.7]
    assert rows["a whole cosine of 3"] == [1, 1, 100, 8]
    assert rows["a late decay at 3"] == [-1, -1, 0, 7.1]
    assert rows["the end: a cosine of 9"] == [1, 1, 100, 12]
    assert rows["the end: 3, then 9 from its weights"] == [1, 1, 100, 16]


def test_a_search_finds_less_by_rungs_that_lie(rows: dict[str, list[float]]) -> None:
    whole, lying = rows["whole in 3, anew"], rows["truncated at 2"]
    assert whole[1] < rows["full trainings"][1] < lying[1]
    assert whole[4] == pytest.approx(whole[1] - lying[1], abs=0.011)
    assert rows["late decay at 3"][1] == pytest.approx(rows["truncated at 3"][1] + 1, abs=0.7)


def test_the_ends_of_other_schedules_are_set_beside_the_cosines(rows: dict[str, list[float]]) -> None:
    assert rows["a late decay at 9"][1] == -1
    assert rows["3, then 9 from its weights"][1] == 2


def test_a_diverged_training_is_the_worst_from_there_on(tmp_path: Path) -> None:
    cut = json.loads(line(0, 0, "cosine", [0.9] * EPOCHS)) | {"val_accuracy": [0.9], "diverged": "epoch 2"}
    curves = read(write(tmp_path, [json.dumps(cut), *LINES[1:]]), ["cosine"])
    assert curves.cosine[0, 0].tolist() == [0.9] + [0.0] * 8
    assert set(curves.others) == {("cosine", 3)}


@pytest.mark.slow
def test_measuring_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"source": "digits", "image_size": 8, "val_fraction": 0.5, "test_fraction": 0.85}
    monkeypatch.setitem(rungs.TASKS, "digits500", rungs.Task(epochs=6, data=data, recipe={}))
    monkeypatch.setattr(rungs, "CONFIGS", 1)
    file = tmp_path / "out.jsonl"

    def measured() -> list[dict[str, object]]:
        rungs.measure("digits500", file, 5, None, list(rungs.KINDS))
        lines = map(json.loads, file.read_text().splitlines())
        return [{name: value for name, value in each.items() if name != "cpu_seconds"} for each in lines]

    whole = measured()
    assert [(each["kind"], each["epochs"], each["seed"]) for each in whole] == [
        *(("cosine", 6, 0), ("cosine", 6, 1), ("cosine", 2, 2)),
        *(("late", 6, 0), ("late", 2, 0), ("late", 6, 1), ("late", 2, 1)),
        *(("warm", 6, 3), ("rest", 4, 3)),
    ]
    trunk, branch = whole[3]["val_accuracy"], whole[4]["val_accuracy"]
    assert isinstance(trunk, list)
    assert isinstance(branch, list)
    assert trunk[0] == branch[0]
    assert trunk[1] != branch[1]
    file.write_text("".join(f"{text}\n" for text in file.read_text().splitlines()[:7]))  # before the warm starts
    assert measured() == whole


def test_an_archive_gives_its_first_pictures_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for number in (5, 3, 1, 4, 2):
            archive.writestr(f"some/train/cat/{number}.jpg", str(number))
        archive.writestr("some/test/cat/9.jpg", "9")
    rungs.unpack(tmp_path / "some.zip", tmp_path / "few", 2)
    rungs.unpack(tmp_path / "some.zip", tmp_path / "all", None)

    def laid_out(folder: str) -> list[str]:
        return sorted(str(file.relative_to(tmp_path / folder)) for file in (tmp_path / folder).rglob("*.jpg"))

    assert laid_out("few") == ["train/cat/1.jpg", "train/cat/2.jpg", "val/cat/3.jpg", "val/cat/4.jpg"]
    assert laid_out("all") == [*(f"train/cat/{number}.jpg" for number in range(1, 6)), "val/cat/9.jpg"]
