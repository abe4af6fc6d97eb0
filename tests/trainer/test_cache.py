"""The decode-once cache: built once, reused, rebuilt when it must be, and never half there."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.cache import open_cache
from trainer.config import DataConfig
from trainer.data import Dataset, open_data, prepare_data
from trainer.errors import DataError, DiskError
from trainer.scan import scan_folder

ROOT = Path(__file__).parents[2]


def picture_folder(root: Path, per_class: int = 4, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """An unsplit image folder of small noise pictures, all different."""
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def prepare(root: Path, cache_dir: Path, **settings: object) -> Dataset:
    return prepare_data(DataConfig.model_validate({"path": str(root), "image_size": 16, **settings}), cache_dir)


def decoded_by(prepare: Callable[..., object]) -> int:
    """How many pictures a call decodes, as its progress says."""
    seen: list[str] = []
    prepare(progress=lambda stage, done, total: seen.append(stage))
    return seen.count("decoding pictures")


def visible(folder: Path) -> list[str]:
    """What bears a final name."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def nothing_is_left_in(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if not path.name.endswith(".lock")]


def test_pictures_are_decoded_once_and_then_only_opened(tmp_path: Path) -> None:
    config = DataConfig(path=str(picture_folder(tmp_path / "pets")), image_size=16)
    assert decoded_by(lambda **more: prepare_data(config, tmp_path / "caches", **more)) == 8
    first = prepare_data(config, tmp_path / "caches")
    before = (first.cache_path / "pictures.npy").stat()
    assert decoded_by(lambda **more: prepare_data(config, tmp_path / "caches", **more)) == 0
    after = (prepare_data(config, tmp_path / "caches").cache_path / "pictures.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert visible(tmp_path / "caches") == [first.cache_path.name]
    assert first.cache_path.name.startswith("pets-16px-")


def test_progress_counts_every_file_from_the_calling_thread(tmp_path: Path) -> None:
    config = DataConfig(path=str(picture_folder(tmp_path / "pets")), image_size=16)
    calls: list[tuple[str, int, int]] = []
    prepare_data(config, tmp_path / "caches", progress=lambda *call: calls.append(call))
    assert calls == [("decoding pictures", done, 8) for done in range(1, 9)]


def test_the_images_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    images = prepare(picture_folder(tmp_path / "pets"), tmp_path / "caches").images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def change(file: Path) -> None:
    Image.new("RGB", (20, 24), "red").save(file)
    os.utime(file, ns=(1, 1))  # not left to the clock's resolution


@pytest.mark.parametrize(
    ("what", "num_pictures"),
    [
        (lambda root: change(root / "cat/0.png"), 8),
        (lambda root: shutil.copy(root / "cat/0.png", root / "cat/new.png"), 9),
        (lambda root: (root / "cat/0.png").unlink(), 7),
        (lambda root: (root / "cat/0.png").rename(root / "cat/renamed.png"), 8),
        (lambda root: (root / "cat/0.png").rename(root / "dog/4.png"), 8),
        (lambda root: (root / "cat/0.png").chmod(0o600), 8),
    ],
    ids=["changed", "added", "removed", "renamed", "moved to another class", "opened to its owner"],
)
def test_a_file_that_differs_makes_another_cache(
    tmp_path: Path, what: Callable[[Path], object], num_pictures: int
) -> None:
    root = picture_folder(tmp_path / "pets")
    before = prepare(root, tmp_path / "caches")
    what(root)
    after = prepare(root, tmp_path / "caches")
    assert after.cache_path != before.cache_path
    assert len(after.images) == num_pictures


@pytest.mark.parametrize("setting", [{"image_size": 17}, {"resize": "squash"}, {"interpolation": "bilinear"}])
def test_other_pixels_make_another_cache(tmp_path: Path, setting: dict[str, object]) -> None:
    root = picture_folder(tmp_path / "pets")
    before = prepare(root, tmp_path / "caches")
    assert prepare(root, tmp_path / "caches", **setting).cache_path != before.cache_path


@pytest.mark.parametrize("setting", [{"val_fraction": 0.3}, {"test_fraction": 0.3}, {"split_seed": 7}])
def test_other_splits_use_the_same_cache(tmp_path: Path, setting: dict[str, object]) -> None:
    root = picture_folder(tmp_path / "pets")
    before = prepare(root, tmp_path / "caches")
    assert prepare(root, tmp_path / "caches", **setting).cache_path == before.cache_path


def cut_short(cache: Path) -> None:
    with (cache / "pictures.npy").open("r+b") as file:
        file.truncate(1000)


def lose_a_name(cache: Path) -> None:
    index = json.loads((cache / "index.json").read_text())
    index["names"].pop()
    (cache / "index.json").write_text(json.dumps(index))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "pictures cut short": cut_short,
    "pictures gone": lambda cache: (cache / "pictures.npy").unlink(),
    "pictures empty": lambda cache: (cache / "pictures.npy").write_bytes(b""),
    "index cut short": lambda cache: (cache / "index.json").write_text('{"names": ["a'),
    "index of another kind": lambda cache: (cache / "index.json").write_text("{}"),
    "index not text": lambda cache: (cache / "index.json").write_bytes(b"\xff\xfe\x00"),
    "index gone": lambda cache: (cache / "index.json").unlink(),
    "a name lost": lose_a_name,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_an_error_to_a_worker_and_built_anew_by_a_launch(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    config = DataConfig(path=str(picture_folder(tmp_path / "pets")), image_size=16)
    whole = prepare_data(config, tmp_path / "caches")
    pixels = np.array(whole.images)
    damage(whole.cache_path)
    with pytest.raises(DataError, match=r"missing or damaged .* launch again to rebuild it"):
        open_data(config, whole.cache_path)
    with pytest.warns(UserWarning, match=f"{whole.cache_path} is damaged; its pictures are decoded again"):
        again = prepare_data(config, tmp_path / "caches")
    assert again.cache_path == whole.cache_path
    np.testing.assert_array_equal(again.images, pixels)


def test_a_worker_is_told_when_the_cache_was_made_for_another_size(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pets")
    cache_path = prepare(root, tmp_path / "caches").cache_path
    with pytest.raises(DataError, match=r"made for .*16.*, not for .*32"):
        open_data(DataConfig(path=str(root), image_size=32), cache_path)


def test_a_worker_opens_the_cache_without_the_folder(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pets")
    prepared = prepare(root, tmp_path / "caches")
    shutil.rmtree(root)
    opened = open_data(DataConfig(path=str(root), image_size=16), prepared.cache_path)
    assert opened.content_hash == prepared.content_hash
    assert opened.names == prepared.names
    np.testing.assert_array_equal(opened.labels, prepared.labels)
    np.testing.assert_array_equal(opened.images, prepared.images)
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(opened.splits[split], prepared.splits[split])


def test_bad_files_leave_no_hole_between_the_pictures(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pets")
    whole = prepare(root, tmp_path / "caches")
    for name in ("cat/00.png", "cat/2b.png", "dog/9.png"):
        (root / name).write_text("not a picture")
    with_bad = prepare(root, tmp_path / "caches", bad_files="skip")
    assert with_bad.names == whole.names
    np.testing.assert_array_equal(with_bad.images, whole.images)
    assert (with_bad.cache_path / "pictures.npy").stat().st_size == (whole.cache_path / "pictures.npy").stat().st_size


def test_an_interrupt_while_decoding_leaves_nothing_and_the_next_launch_builds_it(tmp_path: Path) -> None:
    config = DataConfig(path=str(picture_folder(tmp_path / "pets")), image_size=16)

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_data(config, tmp_path / "caches", progress=interrupt)
    assert nothing_is_left_in(tmp_path / "caches")
    assert len(prepare_data(config, tmp_path / "caches").images) == 8


PREPARE_IN_A_PROCESS = """
import sys, time
from pathlib import Path
from trainer.config import DataConfig
from trainer.data import prepare_data

def progress(stage, done, total):
    print(stage, done, total, flush=True)
    time.sleep(float(sys.argv[3]))

data = prepare_data(DataConfig(path=sys.argv[1], image_size=16), Path(sys.argv[2]), progress=progress)
print("hash", data.content_hash)
"""


def prepare_in_a_process(root: Path, caches: Path, seconds_a_picture: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE_IN_A_PROCESS, str(root), str(caches), str(seconds_a_picture)]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # even if this runner ignores it
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )


def test_two_processes_at_once_build_one_cache(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pets")
    processes = [prepare_in_a_process(root, tmp_path / "caches", 0.1) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(output.count("decoding pictures") for output in outputs) == 8
    assert len({output.split("hash ")[1] for output in outputs}) == 1
    assert len(visible(tmp_path / "caches")) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_ended_while_decoding_leaves_no_cache_and_blocks_nobody(tmp_path: Path, number: int) -> None:
    root = picture_folder(tmp_path / "pets")
    process = prepare_in_a_process(root, tmp_path / "caches", 0.2)
    assert process.stdout is not None
    assert process.stdout.readline() == "decoding pictures 1 8\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert visible(tmp_path / "caches") == []
    assert number == signal.SIGKILL or nothing_is_left_in(tmp_path / "caches")
    assert len(prepare(root, tmp_path / "caches").images) == 8
    assert not list((tmp_path / "caches").glob(".partial-*"))


def test_too_little_room_is_said_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(path=str(picture_folder(tmp_path / "pets")), image_size=1024)
    full = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(DiskError, match=r"needs 0\.025 GB in .*caches and 0\.005 GB are free there; make room"):
        prepare_data(config, tmp_path / "caches")
    assert nothing_is_left_in(tmp_path / "caches")


def test_a_disk_that_fills_while_decoding_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pets", per_class=8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the kernel refuses the write, as on a full disk
    try:
        with pytest.raises(DiskError, match=r"cannot be written in .*caches: File too large"):
            prepare(root, tmp_path / "caches", image_size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert nothing_is_left_in(tmp_path / "caches")
    assert len(prepare(root, tmp_path / "caches", image_size=64).images) == 16


@pytest.mark.parametrize("what", ["folder", "cache", "unfinished", "link"])
def test_a_file_in_the_place_of_a_folder_is_named_with_the_cure_and_stays(tmp_path: Path, what: str) -> None:
    root, caches = picture_folder(tmp_path / "pets"), tmp_path / "caches"
    made = prepare(root, caches).cache_path
    shutil.rmtree(caches if what == "folder" else made)
    (tmp_path / "far").mkdir()
    path = {"folder": caches, "unfinished": caches / f".partial-{made.name}"}.get(what, made)
    if what == "link":
        path.symlink_to(tmp_path / "far")
    else:
        path.write_text("mine")
    cure = f"in the place of {path}, which is a file or a link; move that away, and the same command goes on"
    with pytest.raises(DiskError, match=re.escape(cure)):
        prepare(root, caches)
    assert path.is_symlink() if what == "link" else path.read_text() == "mine"


def test_a_folder_with_an_odd_name_gets_a_plain_cache_name(tmp_path: Path) -> None:
    data = prepare(picture_folder(tmp_path / "Vögel & Co. (2024)" / ("x" * 60)), tmp_path / "caches")
    assert data.cache_path.name.startswith("x" * 40 + "-16px-")
    data = prepare(picture_folder(tmp_path / ".Vögel & Co."), tmp_path / "caches")
    assert data.cache_path.name.startswith("V_gel_Co-16px-")


def test_more_pictures_than_fit_in_the_queue_stay_in_order(tmp_path: Path) -> None:
    root = tmp_path / "many"
    for i in range(400):
        folder = root / ("dark" if i % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        side = 600 if i % 37 == 0 else 16  # some take longer than those after them
        Image.new("RGB", (side, side), (i % 256, i // 256, 0)).save(folder / f"{i:04}.png")
    data = prepare(root, tmp_path / "caches", image_size=8)
    numbers = data.images[:, 0, 0, :2].astype(int) @ [1, 256]
    assert [int(Path(name).stem) for name in data.names] == numbers.tolist()


def test_a_scan_opens_no_file_and_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pets")
    elsewhere = picture_folder(tmp_path / "elsewhere", classes=("bird",))
    (root / "bird").symlink_to(elsewhere / "bird")
    (root / "dog" / "more").symlink_to(elsewhere)
    links = {"cat/up": root, "cat/far_up": tmp_path, "cat/self": root / "cat"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "cat" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(root / "dog" / "pipe.png")
    listing = scan_folder(root)
    names = [picture.name for picture in listing.pictures]
    assert names == sorted(names)
    assert "bird/0.png" in names
    assert "dog/more/bird/0.png" in names
    assert not any(name.startswith(tuple(links)) for name in names)
    assert listing.notices == [
        "3 links, the first: cat/far_up, lead to a folder that they are in; they are not followed"
    ]
    reasons = {}
    for picture in listing.pictures:
        if picture.name in ("cat/nowhere.png", "dog/pipe.png"):
            with pytest.raises(DataError) as error:
                picture.load()
            reasons[picture.name] = str(error.value)
    assert reasons == {
        "cat/nowhere.png": f"is a broken link, to {tmp_path / 'gone.png'}",
        "dog/pipe.png": "is not a regular file",
    }


def test_a_worker_opens_sixty_thousand_pictures_in_seconds(tmp_path: Path) -> None:
    """The cache is made by hand, since decoding as many pictures takes a minute."""
    count = 60_000
    cache = tmp_path / "many-8px-0123456789ab"
    cache.mkdir()
    np.save(cache / "pictures.npy", np.zeros((count, 8, 8, 3), np.uint8))
    index = {
        "made_for": {"image_size": 8, "resize": "crop", "interpolation": "bicubic", "crop_pct": 1.0, "channels": 3},
        "root": "/birds",
        "names": [f"train/class{i % 400:03}/{i:06}.jpg" for i in range(count)],
        "classes": [f"class{i % 400:03}" for i in range(count)],
        "splits": ["train"] * count,
        "groups": [""] * count,
        "sha256": [f"{i:064x}" for i in range(count)],
        "crc32": [0] * count,
        "class_folders": [],
        "own_splits": ["train"],
        "bad": [],
        "misread": [],
        "index_crc32": 0,
    }
    (cache / "index.json").write_text(json.dumps(index))
    assert len(open_cache(cache).names) == count
    started = time.process_time()
    data = open_data(DataConfig(image_size=8), cache)
    assert time.process_time() - started < 4  # 0.9 s where it was written; the rest is for slower machines
    assert len(data.splits["val"]) == count // 10
