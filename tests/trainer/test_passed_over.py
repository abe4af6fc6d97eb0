"""What lies in a data folder and is no picture to train on: litter, the product's own files, unlabelled pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from folders import make_folder, prepare, problems_of

from trainer.config import DataConfig
from trainer.data import prepare_data

LITTER = [
    "@eaDir",
    "@Recycle",
    "@Recently-Snapshot",
    "#recycle",
    "#snapshot",
    "~snapshot",
    "@__thumb",
    "$RECYCLE.BIN",
    "System Volume Information",
    "FOUND.000",
    "lost+found",
    "__MACOSX",
    "Temporary Items",
    "RECYCLER",
    "LOST.DIR",
    "__results___files",
    "wandb",
    "@SynoResource",
    ".Trash-1000",
    ".ipynb_checkpoints",
    "__pycache__",
    ":2eAppleDouble",
]
LITTER_FILES = ["Thumbs.db", "THUMBS.DB:encryptable", "ehthumbs.db", "Icon\r", "000.png:Zone.Identifier", "._000.png"]
LITTER_FILES += [":2eDS_Store", ":2e_000.png"]


@pytest.mark.parametrize("layout", [{"cat": 3, "dog": 3}, {"train/cat": 3, "train/dog": 3, "test/cat": 1}])
def test_what_a_nas_windows_macos_and_notebooks_leave_is_passed_over_everywhere(
    tmp_path: Path, layout: dict[str, int]
) -> None:
    root = make_folder(tmp_path / "pets", layout)
    clean = prepare(root, tmp_path)
    picture = next(root.rglob("*.png"))
    for folder in [root, *(root / name for name in layout), *{(root / name).parent for name in layout}]:
        for name in LITTER:
            (folder / name / "cat").mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, folder / name / "thumb.jpg")
            shutil.copy(picture, folder / name / "cat" / "x.png")
        for name in LITTER_FILES:
            (folder / name).write_bytes(b"\0")
    littered = prepare(root, tmp_path)
    assert littered.names == clean.names
    assert littered.class_names == clean.class_names
    assert littered.fingerprint == clean.fingerprint
    assert littered.notices == clean.notices == ()


@pytest.mark.parametrize("inside", ["", "train/", "train/cat/"])
@pytest.mark.parametrize(
    ("folder", "marks"),
    [
        ("venv", ["pyvenv.cfg", "bin/activate", "lib/python3.12/site-packages/matplotlib/images/home.png"]),
        ("birds_env", ["pyvenv.cfg", "Lib/x/home.png", "Scripts/python.exe"]),
        ("env", ["conda-meta/history", "share/icons/home.png"]),
        ("node_modules", ["leaflet/home.png", "leaflet/index.js"]),
        ("lib", ["python3/site-packages/home.png", "python3/dist-packages/home.png"]),
    ],
)
def test_virtual_environments_and_packages_are_passed_over(
    tmp_path: Path, inside: str, folder: str, marks: list[str]
) -> None:
    splits = "train/" if inside else ""
    root = make_folder(tmp_path / "birds", {f"{splits}cat": 3, f"{splits}dog": 3})
    clean = prepare(root, tmp_path)
    picture = next(root.rglob("*.png")).read_bytes()
    for mark in marks:
        (root / inside / folder / mark).parent.mkdir(parents=True, exist_ok=True)
        (root / inside / folder / mark).write_bytes(picture if mark.endswith(".png") else b"x")
    littered = prepare(root, tmp_path, bad_files="skip")
    assert littered.class_names == clean.class_names
    assert littered.fingerprint == clean.fingerprint
    if folder != "lib":  # an empty class folder is refused, but it is no class
        assert prepare(root, tmp_path).notices == clean.notices


@pytest.mark.parametrize("mark", ["pyvenv.cfg", "conda-meta"])
def test_an_environment_that_was_made_among_the_pictures_of_a_class_hides_none_of_them(
    tmp_path: Path, mark: str
) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    clean = prepare(root, tmp_path)
    (root / "cat" / mark).mkdir()
    assert prepare(root, tmp_path).names == clean.names


def test_what_is_recycled_is_a_class(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "waste", {"organic": 2, "recycled": 2})
    assert prepare(root, tmp_path).class_names == ("organic", "recycled")


def test_a_folder_of_the_system_that_nobody_may_list_is_passed_over(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    (root / "lost+found").mkdir(mode=0)
    assert prepare(root, tmp_path).class_names == ("cat", "dog")


def after_a_launch(runs: Path) -> None:
    for name in ("studies/birds/logs", "cache/birds-16px-0123456789ab", "devices", "exports/birds-3"):
        (runs / name).mkdir(parents=True)
    for name in ("search.db", "last-study", "cache/birds-16px-0123456789ab/index.json", "exports/birds-3/grid.png"):
        (runs / name).write_text("x")


def after_a_check(runs: Path) -> None:
    (runs / "cache" / "birds-16px-0123456789ab").mkdir(parents=True)
    (runs / "cache" / "widths.json").write_text("{}")


def begun_with_postgres(runs: Path) -> None:
    (runs / "studies" / "birds").mkdir(parents=True)
    (runs / "studies" / "birds" / "lock").write_text("")
    (runs / ":2eDS_Store").write_text("x")  # of an old file server
    (runs / "devices").mkdir()


def an_export(folder: Path) -> None:
    folder.mkdir()
    for name in ("SHA256SUMS", "config.json", "metrics.json", "README.md", "curve.png"):
        (folder / name).write_text("x")


@pytest.mark.parametrize("left", [after_a_launch, after_a_check, begun_with_postgres, an_export])
@pytest.mark.parametrize("name", ["runs", "cat/results"])
def test_what_the_product_writes_beside_the_pictures_is_passed_over(tmp_path: Path, left: object, name: str) -> None:
    root = make_folder(tmp_path / "birds", {"cat": 3, "dog": 3})
    clean = prepare(root, tmp_path)
    assert callable(left)
    left(root / name)
    assert prepare(root, tmp_path).fingerprint == clean.fingerprint
    assert prepare(root, tmp_path).class_names == ("cat", "dog")


def test_the_cache_may_lie_among_the_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"cat": 3, "dog": 3})
    config = DataConfig(path=str(root), image_size=16)
    first = prepare_data(config, root / "runs" / "cache")
    assert prepare_data(config, root / "runs" / "cache").cache_path == first.cache_path
    beside = make_folder(tmp_path / "fish", {"cod": 3, "eel": 3})
    (beside / "last-study").write_text("fish")  # --runs and --data name one folder
    after_a_check(beside)
    (beside / "studies").mkdir()
    assert prepare(beside, tmp_path).class_names == ("cod", "eel")


def test_classes_that_are_called_as_parts_of_a_runs_folder_stay_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "rooms", {"cache": 2, "studies": 2, "devices/cache": 2})
    assert prepare(root, tmp_path).class_names == ("cache", "devices", "studies")


@pytest.mark.parametrize(
    "test", ["test", "Test", "seg_test/seg_test", "test/images", "test/unknown/deep", "test/all_classes", "test/pics"]
)
def test_an_unlabelled_test_folder_is_passed_over_with_a_sentence(tmp_path: Path, test: str) -> None:
    labelled = make_folder(tmp_path / "pets", {"train/cat": 3, "train/dog": 3})
    plain = prepare(labelled, tmp_path, test_fraction=0.3)
    data = prepare(make_folder(labelled, {test: 4}), tmp_path, test_fraction=0.3)
    assert data.fingerprint == plain.fingerprint
    assert len(data.splits["test"]) > 0  # drawn from train, as without the folder
    (notice,) = data.notices
    assert "4 pictures in no class folder, so unlabelled and not used" in notice
    assert f"search predict EXPORT {labelled}/{test.split('/')[0]}" in notice


def test_pictures_to_predict_lie_beside_splits(tmp_path: Path) -> None:
    counts = {
        "seg_train/seg_train/a": 3,
        "seg_train/seg_train/b": 3,
        "seg_test/seg_test/a": 1,
        "seg_test/seg_test/b": 1,
    }
    data = prepare(make_folder(tmp_path / "land", counts | {"seg_pred/seg_pred": 1}), tmp_path)
    assert data.class_names == ("a", "b")
    assert data.notices == (
        "seg_pred: 1 picture in no class folder, so unlabelled and not used; an exported model classifies "
        f"them: search predict EXPORT {tmp_path}/land/seg_pred/seg_pred",
    )


def test_a_test_folder_with_classes_is_not_unlabelled(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 3, "train/dog": 3, "test/cat": 2})
    assert len(prepare(root, tmp_path).splits["test"]) == 2
    make_folder(root, {"test/emu": 1})
    assert "test/emu: this class has no training picture" in problems_of(root, tmp_path)


def test_val_pictures_without_classes_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 3, "train/dog": 3, "val": 2})
    assert "val holds pictures (val/000.png) and no class folder" in problems_of(root, tmp_path)


def test_a_stamp_knows_nothing_of_litter(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    before = prepare(root, tmp_path).cache_path
    (root / "cat" / "@eaDir").mkdir()
    (root / "cat" / "@eaDir" / "t.jpg").write_text("x")
    after = prepare(root, tmp_path).cache_path
    assert after == before
    assert json.loads((after / "index.json").read_text())["bad"] == []
