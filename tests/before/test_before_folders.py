"""Studies of before whose pictures lie in folders or files that this version passes over.

The content hashes are those of the commits 24340d5 (2026-11-28), cb62d20, 589ce0c, 89d7449, 7dab1ef (2026-11-30) and
6ca794e (2026-12-01).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inside import run_inside
from PIL import Image

from search.console import Terminal
from search.export.pictures import read_again
from search.paths import Runs
from search.study.owned import OwnedStudy
from search.study.storage import open_storage, parse_url
from search.study.study import find_study, open_study
from studies import load
from trainer.begun import prepare_as_begun
from trainer.config import DataConfig
from trainer.data import Dataset
from trainer.errors import DataError

TRACKERS = "a886f3bc54952818c5f84b1c669362fc3b7bc12cd337d418ea890e7d51f7a275"

BEGUN = {
    "trackers": (("cat", "dog", "mlruns", "wandb"), TRACKERS),
    "systems": (("LOST.DIR", "cat", "recycler"), "e530f3c05f67b9cc48e2279b31096d1278eb7417c098e3ff09cef0449f82d7f8"),
    "systems, of cb62d20": (("LOST.DIR", "cat"), "8fac819a992ce0d7d46f4f74b4fb57273c3dbb897685f033cc1e005d4a879508"),
    "one": (("cat", "lightning_logs"), "a2914ff0915eee7d2942b415e940e6dedc6f224297fd9638c7aa2bca8252174a"),
    "texts": (("cat", "dog"), "a8e53cbc06873a30b1f9af4628b65a2d5916e670b5c34b0eff0a254bda093db8"),
    "recycled, of cb62d20": (("cat", "dog"), "9981582fcb09c6c8b161cc3f1e5da9f68739bbb9e29b43349507ed1665b96b73"),
    "nas": (("@eaDir", "cat", "dog"), "ee35231a83226323a2149613c82c77c6aadd58ba66bd9debb0edc30361141fd3"),
    "environments": (
        ("cat", "conda", "dog", "node_modules", "venv"),
        "0ee12b8ccd673b145e32c0427cd9608e88e14bce28a76cbd7b68849c09a6b088",
    ),
    "servers": ((":2eTrashes", "cat", "dog"), "b20dace548f5ce88ec92296ee383b7f57c177253b74e650367ecf338b64bc8f2"),
    "servers, of 7dab1ef": (
        (":2eTrashes", "cat", "dog", "node_modules"),
        "52ee9d23dda4ba628de35ddc3166df41245246f5f089d7f8a83b2e7b081c5d95",
    ),
}
"""What lies in the folder -> the classes and the content hash of a study that was begun with it."""

SAID = {
    "trackers": "uses mlruns, wandb (8 pictures)",
    "systems": "uses LOST.DIR, recycler (8 pictures)",
    "systems, of cb62d20": "uses LOST.DIR (4 pictures)",
    "one": "uses lightning_logs (4 pictures)",
    "texts": "uses dog/picture.txt (1 picture)",
    "recycled, of cb62d20": "leaves out recycled (4 pictures)",
    "nas": "uses @eaDir (4 pictures)",
    "environments": "uses conda, node_modules, venv (12 pictures)",
    "servers": "uses :2eTrashes (4 pictures)",
    "servers, of 7dab1ef": "uses :2eTrashes, node_modules (8 pictures)",
}

FOLDERS = {
    "trackers": ("cat", "dog", "wandb", "mlruns"),
    "systems": ("cat", "recycler", "LOST.DIR"),
    "one": ("cat", "lightning_logs"),
    "texts": ("cat", "dog"),
    "recycled": ("cat", "dog", "recycled"),
    "nas": ("cat", "dog", "@eaDir"),
    "environments": ("cat", "dog", "venv/share", "conda/share", "node_modules"),
    "servers": ("cat", "dog", ":2eTrashes", "node_modules"),
}


def made(folder: Path, case: str) -> Path:
    seed = 0
    for name in FOLDERS[case]:
        (folder / name).mkdir(parents=True)
        for number in range(4):
            seed += 1
            noise(seed).save(folder / name / f"{number}.ppm")
    if case == "texts":
        (folder / "cat" / "notes.txt").write_text("not a picture")
        noise(99).save(folder / "dog" / "picture.txt", "PPM")
    if case == "environments":
        (folder / "venv" / "pyvenv.cfg").write_text("home = /usr/bin")
        (folder / "conda" / "conda-meta").mkdir()
    return folder


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8))


def read(folder: Path, begun: str | None) -> Dataset:
    config = DataConfig.model_validate({"path": str(folder), "image_size": 16, "bad_files": "skip"})
    return prepare_as_begun(config, folder.parent / "cache", begun)


@pytest.mark.parametrize("case", BEGUN)
def test_the_pictures_of_a_study_of_before_stay_and_that_is_said(tmp_path: Path, case: str) -> None:
    (classes, begun), folder = BEGUN[case], made(tmp_path / "pets", case.partition(",")[0])
    data = read(folder, begun)
    assert data.content_hash == begun
    assert data.class_names == classes
    told = f"this study {SAID[case]}, as the version that began it did; a new study would not"
    assert data.notices[-1] == told


def test_a_new_study_and_one_whose_pictures_have_changed_pass_over_what_this_version_does(tmp_path: Path) -> None:
    folder = made(tmp_path / "pets", "trackers")
    for begun in (None, "0" * 64):
        data = read(folder, begun)
        assert data.class_names == ("cat", "dog")
        assert not any("as the version that began it" in notice for notice in data.notices)
    with pytest.raises(DataError, match="one class, cat"):
        read(made(tmp_path / "few", "one"), "0" * 64)


GROUPS = "d0ee371535d3eda9756993e0b8261458fcc3f65a9a7355ce8ed095333ee8e175"


def test_a_study_whose_groups_are_written_in_two_ways_goes_on_and_says_so(tmp_path: Path) -> None:
    folder = made(tmp_path / "pets", "nas")
    for table, folder_name, end in (("train.csv", "cat", ".0"), ("test.csv", "dog", "")):
        rows = (f"{folder_name}/{number}.ppm,{'ab'[number % 2]},{number}{end}" for number in range(4))
        (folder / table).write_text("\n".join(["path,label,group", *rows]))
    settings = {"path": str(folder), "image_size": 16, "labels": "train.csv", "test_labels": "test.csv"}
    config = DataConfig.model_validate(settings)
    data = prepare_as_begun(config, tmp_path / "cache", GROUPS)
    assert data.content_hash == GROUPS
    assert data.notices[-1].startswith("this study goes on as it was begun; a new study would be refused: ")
    assert "'0' (test) and '0.0' (train)" in data.notices[-1]
    for begun in (None, "0" * 64):
        with pytest.raises(DataError, match="4 groups are in several splits"):
            prepare_as_begun(config, tmp_path / "cache", begun)


PETS = """
name = "pets"

[data]
path = "pets"
image_size = 16
val_fraction = 0.25

[train]
model = "wrn-10-1"
epochs = 1
batch_size = 8

[space]
lr = { low = 0.001, high = 0.02, log = true }

[search]
trials = 1
pruner = "none"
"""


def test_a_study_of_before_with_such_folders_goes_on_and_is_read_again_for_its_export(tmp_path: Path) -> None:
    made(tmp_path / "pets", "trackers")
    (tmp_path / "pets.toml").write_text(PETS)
    runs = Runs(tmp_path / "runs")
    url = parse_url(f"sqlite:///{runs.database}")
    open_study(load(str(tmp_path / "pets.toml")), open_storage(url, create=True), TRACKERS)
    code, out, err = run_inside(tmp_path, "launch", "pets.toml", "--gpus", "cpu")
    assert code == 0, err
    assert "4 classes" in out
    assert "this study uses mlruns, wandb (8 pictures), as the version that began it did" in out + err
    study, spec = find_study(open_storage(url), "pets")
    data = read_again(OwnedStudy(study, spec, lambda: None), runs, Terminal(quiet=True))
    assert data.class_names == BEGUN["trackers"][0]

    (tmp_path / "pets/cat/0.ppm").unlink()
    code, _, err = run_inside(tmp_path, "launch", "pets.toml", "--gpus", "cpu")
    assert code == 8
    assert "data.content" in err
