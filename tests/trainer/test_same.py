"""Pictures that were replaced by others of the same size and time, and pictures that only seem to have changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.config import DataConfig
from trainer.data import Dataset, prepare_data

COMPARING = "comparing the pictures with their cache"


def pets(root: Path) -> Path:
    """A folder of BMPs, all of one size and time."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / name / f"{i}.bmp")
            os.utime(root / name / f"{i}.bmp", ns=(10**18, 10**18))
    return root


def prepare(root: Path, cache_dir: Path, **settings: object) -> tuple[Dataset, list[str]]:
    """The data set, and what was done to get it."""
    stages: list[str] = []
    config = DataConfig.model_validate({"path": str(root), "image_size": 16, **settings})
    data = prepare_data(config, cache_dir, progress=lambda stage, done, total: stages.append(stage))
    return data, stages


def copy_over(root: Path) -> None:
    shutil.copy2(root / "dog/0.bmp", root / "cat/0.bmp")


def swap(root: Path) -> None:
    (root / "dog/0.bmp").rename(root / "kept")
    (root / "cat/0.bmp").rename(root / "dog/0.bmp")
    (root / "kept").rename(root / "cat/0.bmp")


def link_over(root: Path) -> None:
    (root / "cat/0.bmp").unlink()
    (root / "cat/0.bmp").symlink_to(root / "dog/0.bmp")


@pytest.mark.parametrize("replace", [copy_over, swap, link_over])
@pytest.mark.parametrize("table", [False, True], ids=["folders", "a table"])
def test_a_picture_of_the_same_size_and_time_is_read(
    tmp_path: Path, replace: Callable[[Path], None], table: bool
) -> None:
    root, settings = pets(tmp_path / "pets"), {}
    if table:
        rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.bmp"))]
        (root / "all.csv").write_text("\n".join(["file,label", *rows, ""]))
        settings["labels"] = "all.csv"
    before, _ = prepare(root, tmp_path / "caches", **settings)
    replace(root)
    after, _ = prepare(root, tmp_path / "caches", **settings)
    fresh, _ = prepare(root, tmp_path / "other", **settings)
    assert after.content_hash == fresh.content_hash != before.content_hash
    assert np.array_equal(after.images, fresh.images)
    assert after.cache_path != before.cache_path
    assert before.cache_path.exists()
    again, stages = prepare(root, tmp_path / "caches", **settings)
    assert again.cache_path == after.cache_path
    assert COMPARING not in stages
    assert "decoding pictures" not in stages


def touch_nothing(root: Path, cache: Path) -> None:
    """Each file gets another inode and ctime, as in a copy that was put back or on another mount."""
    shutil.copytree(root, root.with_name("copy"))
    shutil.rmtree(root)
    root.with_name("copy").rename(root)


def cache_of_before(root: Path, cache: Path) -> None:
    (cache / "compared.json").unlink()


def damaged_file(root: Path, cache: Path) -> None:
    (cache / "compared.json").write_text((cache / "compared.json").read_text().replace('"inodes": "', '"inodes": "0'))


@pytest.mark.parametrize("change", [touch_nothing, cache_of_before, damaged_file])
def test_the_same_pictures_are_compared_once_and_keep_their_cache(
    tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    root = pets(tmp_path / "pets")
    (root / "cat/bad.bmp").write_bytes(b"BM nothing")
    before, stages = prepare(root, tmp_path / "caches", bad_files="skip")
    assert COMPARING not in stages
    change(root, before.cache_path)
    after, stages = prepare(root, tmp_path / "caches", bad_files="skip")
    assert (after.cache_path, after.content_hash) == (before.cache_path, before.content_hash)
    assert stages.count(COMPARING) == 9
    assert "decoding pictures" not in stages
    assert COMPARING not in prepare(root, tmp_path / "caches", bad_files="skip")[1]


def test_pictures_that_come_back_get_their_first_cache(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets")
    before, _ = prepare(root, tmp_path / "caches")
    swap(root)
    swapped, _ = prepare(root, tmp_path / "caches")
    swap(root)
    back, stages = prepare(root, tmp_path / "caches")
    assert back.cache_path == before.cache_path
    assert "decoding pictures" not in stages
    swap(root)
    assert prepare(root, tmp_path / "caches")[0].cache_path == swapped.cache_path
    assert len(list((tmp_path / "caches").glob("pets-*"))) == 2


def test_a_bad_file_that_was_mended_in_its_place_is_read(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets")
    good = (root / "cat/0.bmp").read_bytes()
    (root / "cat/0.bmp").write_bytes(bytes(len(good)))
    os.utime(root / "cat/0.bmp", ns=(10**18, 10**18))
    before, _ = prepare(root, tmp_path / "caches", bad_files="skip")
    (root / "cat/0.bmp").write_bytes(good)
    os.utime(root / "cat/0.bmp", ns=(10**18, 10**18))
    after, _ = prepare(root, tmp_path / "caches", bad_files="skip")
    assert (len(before.names), len(after.names)) == (7, 8)


def test_a_cache_folder_of_others_is_compared_each_time(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets")
    before, _ = prepare(root, tmp_path / "caches")
    known = json.loads((before.cache_path / "compared.json").read_text())
    assert known["cache"] == before.cache_path.name
    (before.cache_path / "compared.json").unlink()
    (before.cache_path / "compared.json").mkdir()  # as root, a mode forbids nothing
    for _ in range(2):
        after, stages = prepare(root, tmp_path / "caches")
        assert after.cache_path == before.cache_path
        assert COMPARING in stages


@pytest.mark.parametrize("other", [{"resize": "squash"}, {"labels": "other.csv"}], ids=["resize", "table"])
def test_replaced_pictures_have_a_cache_for_each_study(tmp_path: Path, other: dict[str, str]) -> None:
    root = pets(tmp_path / "pets")
    rows = [f"{folder}/{i}.bmp,{'even' if i % 2 == 0 else 'odd'}" for folder in ("cat", "dog") for i in range(4)]
    (root / "other.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    for settings in ({}, other):
        prepare(root, tmp_path / "caches", **settings)
    copy_over(root)
    plain, _ = prepare(root, tmp_path / "caches")
    second, _ = prepare(root, tmp_path / "caches", **other)
    assert plain.cache_path != second.cache_path
    assert plain.class_names == ("cat", "dog")
    assert second.class_names == (("even", "odd") if "labels" in other else ("cat", "dog"))


KILLED = '''
import os, shutil, signal, sys
from pathlib import Path

from trainer.config import DataConfig
from trainer.data import prepare_data

folder, config = Path.cwd(), DataConfig(path=os.path.abspath("pets"), image_size=16)


def prepare():
    stages = []
    data = prepare_data(config, folder / "caches", progress=lambda stage, done, total: stages.append(stage))
    return data, COMPARING in stages


def run_until(moment):
    """Prepare the pictures in a process that is killed before its step with this number. Returns whether it was."""
    if (child := os.fork()) == 0:
        steps = 0

        def look(event, arguments):
            nonlocal steps
            if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(folder) in str(arguments[0]):
                steps += 1
                if steps == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        prepare()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def begin():
    for name in ("pets", "caches"):  # copies have other inodes
        shutil.rmtree(name, ignore_errors=True)
        shutil.copytree(f"{name}.before", name)


begin()
expected = prepare_data(config, folder / "others")
whole, compared = prepare()
assert compared
caches, moment = sorted(os.listdir("caches")), 0
while True:
    begin()
    moment += 1
    if not run_until(moment):
        break
    data, _ = prepare()
    assert data.content_hash == expected.content_hash, moment
    assert data.cache_path == whole.cache_path, moment
    assert (data.images == expected.images).all(), moment
    assert not prepare()[1], moment  # it is compared no more
    assert sorted(os.listdir("caches")) == caches, moment
print(moment, len([name for name in caches if not name.startswith(".")]))
'''


@pytest.mark.slow
@pytest.mark.parametrize(("change", "caches"), [(None, 1), (swap, 2)], ids=["the same pictures", "others"])
def test_a_comparison_that_is_killed_at_any_step_is_done_again(
    tmp_path: Path, change: Callable[[Path], None] | None, caches: int
) -> None:
    root = pets(tmp_path / "pets")
    prepare(root, tmp_path / "caches")
    if change is not None:
        change(root)
    for name in ("pets", "caches"):
        (tmp_path / name).rename(tmp_path / f"{name}.before")
    script = KILLED.replace("COMPARING", repr(COMPARING))
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    kills, found = map(int, run.stdout.split())
    assert kills > 20
    assert found == caches
