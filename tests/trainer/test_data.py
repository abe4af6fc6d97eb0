"""What becomes of a source of pictures: every layout, the splits, the content's hash, and the built-in sets."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import make_folder, names_in, noise, prepare, problems_of

from trainer.config import DataConfig
from trainer.data import Duplicate, prepare_data
from trainer.errors import DataError

ROOT = Path(__file__).parents[2]


# Layouts


def test_train_val_and_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    counts = {f"{split}/{name}": n for split, n in (("train", 3), ("val", 2), ("test", 1)) for name in ("cat", "dog")}
    data = prepare(make_folder(tmp_path / "pets", counts), tmp_path, val_fraction=0.5, test_fraction=0.5)
    assert data.class_names == ("cat", "dog")
    assert {split: len(indices) for split, indices in data.splits.items()} == {
        "train": 6,
        "val": 4,
        "test": 2,
    }
    for split in ("train", "val", "test"):
        assert all(name.startswith(f"{split}/") for name in names_in(data, split))
    assert [data.class_names[label] for label in data.labels] == [name.split("/")[1] for name in data.names]
    assert data.images.shape == (12, 16, 16, 3)
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64
    assert all(np.all(np.diff(indices) > 0) for indices in data.splits.values())


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_a_valid_folder_is_the_val_split(tmp_path: Path, name: str) -> None:
    root = make_folder(tmp_path / "birds", {"train/a": 2, "train/b": 2, f"{name}/a": 1, f"{name}/b": 1})
    assert names_in(prepare(root, tmp_path), "val") == {f"{name}/a/000.png", f"{name}/b/000.png"}


def test_two_val_folders_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"train/a": 2, "val/a": 1, "valid/a": 1})
    assert "holds val and valid, which mean the same split" in problems_of(root, tmp_path)


def test_class_folders_alone_are_split_by_the_fractions(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 20, "dog": 40})
    data = prepare(root, tmp_path, val_fraction=0.25, test_fraction=0.5)
    counted = {split: np.bincount(data.labels[indices]).tolist() for split, indices in data.splits.items()}
    assert counted == {"test": [10, 20], "val": [3, 5], "train": [7, 15]}  # a quarter of what test leaves


def test_without_val_and_test_folders_val_is_drawn_from_train_and_test_is_empty(tmp_path: Path) -> None:
    data = prepare(make_folder(tmp_path / "pets", {"train/cat": 10, "train/dog": 10}), tmp_path)
    assert {split: len(indices) for split, indices in data.splits.items()} == {
        "train": 18,
        "val": 2,
        "test": 0,
    }


def test_with_a_test_folder_the_test_fraction_draws_nothing(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 10, "train/dog": 10, "test/cat": 1})
    assert names_in(prepare(root, tmp_path, test_fraction=0.5), "test") == {"test/cat/000.png"}


def test_a_train_folder_that_holds_pictures_is_a_class_of_that_name(tmp_path: Path) -> None:
    data = prepare(make_folder(tmp_path / "vehicles", {"car": 2, "train": 2, "test": 2}), tmp_path)
    assert data.class_names == ("car", "test", "train")


def test_pictures_in_subfolders_belong_to_the_class_above(tmp_path: Path) -> None:
    data = prepare(make_folder(tmp_path / "pets", {"cat": 2, "cat/old/older": 2, "dog": 2}), tmp_path)
    assert np.bincount(data.labels).tolist() == [4, 2]
    assert "cat/old/older/001.png" in data.names


def test_what_systems_leave_in_folders_is_passed_over_in_silence(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2})
    for litter in (
        ".DS_Store",
        "train/.DS_Store",
        "train/cat/Thumbs.db",
        "train/cat/desktop.ini",
        "train/dog/._1.png",
    ):
        (root / litter).write_bytes(b"\0" * 10)
    for litter in ("__MACOSX/train", "train/__MACOSX", "train/.ipynb_checkpoints"):
        (root / litter).mkdir(parents=True)
        (root / litter / "x").write_bytes(b"x")
    (root / "README.txt").write_text("pets")
    (root / "train" / "labels.csv").write_text("a,b")
    data = prepare(root, tmp_path)
    assert (len(data.names), data.class_names, data.bad_files) == (4, ("cat", "dog"), ())


# Splits


def test_splits_are_stratified_and_keep_a_picture_of_each_class_on_each_side(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"a": 2, "b": 3, "c": 10, "d": 100})
    data = prepare(root, tmp_path, val_fraction=0.1, test_fraction=0.1)
    counted = {split: np.bincount(data.labels[i], minlength=4).tolist() for split, i in data.splits.items()}
    assert counted == {"test": [0, 1, 1, 10], "val": [1, 1, 1, 9], "train": [1, 1, 8, 81]}
    together = np.concatenate(list(data.splits.values()))
    assert sorted(together) == list(range(115))


def test_a_split_that_is_not_stratified_is_drawn_from_all_pictures_at_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"a": 5, "b": 3, "c": 10, "d": 100})
    data = prepare(root, tmp_path, val_fraction=0.1, test_fraction=0.1, stratified=False)
    # Of 118: 12, of the other 106: 11; by class it would be 1 + 1 + 1 + 10 and 1 + 1 + 1 + 9.
    assert {split: len(indices) for split, indices in data.splits.items()} == {"train": 95, "val": 11, "test": 12}
    assert sorted(np.concatenate(list(data.splits.values()))) == list(range(118))
    again = prepare(root, tmp_path, val_fraction=0.1, test_fraction=0.1, stratified=False)
    assert all(np.array_equal(indices, again.splits[split]) for split, indices in data.splits.items())


def test_a_split_that_leaves_a_class_without_a_training_picture_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"a": 2, "b": 20, "c": 20})
    settings = {"val_fraction": 0.5, "stratified": False}
    data = prepare(root, tmp_path, split_seed=0, **settings)
    assert set(data.labels[data.splits["train"]].tolist()) == {0, 1, 2}
    problems = problems_of(root, tmp_path, split_seed=11, **settings)
    assert "no training picture is left of a; use stratified = true, or another split_seed" in problems


def test_a_class_of_one_picture_can_be_trained_on_where_the_split_is_not_stratified(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"a": 1, "b": 30, "c": 30})
    data = prepare(root, tmp_path, val_fraction=0.05, stratified=False)
    assert 0 in data.labels[data.splits["train"]]
    with pytest.raises(DataError, match="a: one training picture, so none is left for validation"):
        prepare(root, tmp_path, val_fraction=0.05)


def test_a_fraction_is_drawn_class_by_class_and_leaves_validation_and_test_whole(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 40, "dog": 12, "eel": 3})
    shares = {"val_fraction": 0.25, "test_fraction": 0.25}
    whole, half = (prepare(root, tmp_path, **shares, fraction=share) for share in (1.0, 0.5))
    of_class = [np.bincount(data.labels[data.splits["train"]]) for data in (whole, half)]
    assert of_class[1].tolist() == [max(1, int(count / 2 + 0.5)) for count in of_class[0]]
    assert names_in(half, "train") < names_in(whole, "train")
    assert all(names_in(half, split) == names_in(whole, split) for split in ("val", "test"))
    assert half.content_hash == whole.content_hash
    assert half.fingerprint != whole.fingerprint, "else a checkpoint of other pictures would be gone on with"
    again, other = (prepare(root, tmp_path, **shares, fraction=0.5, split_seed=seed) for seed in (0, 1))
    assert names_in(again, "train") == names_in(half, "train")
    assert names_in(other, "train") != names_in(half, "train")
    smaller = prepare(root, tmp_path, **shares, fraction=0.2)
    assert names_in(smaller, "train") < names_in(half, "train"), "a smaller part is a part of a larger one"


def test_a_picture_that_is_not_used_is_no_duplicate(tmp_path: Path) -> None:
    counts = {f"{split}/{name}": 4 for split in ("train", "val") for name in ("cat", "dog")}
    root = make_folder(tmp_path / "pets", counts)
    used = prepare(root, tmp_path, fraction=0.25)
    left_out = next(name for name in used.names if name.startswith("train/cat") and name not in names_in(used, "train"))
    shutil.copy(root / left_out, root / "val" / "cat" / "copy.png")
    assert [one.first for one in prepare(root, tmp_path).duplicates] == [left_out]
    data = prepare(root, tmp_path, fraction=0.25)
    assert left_out not in names_in(data, "train")
    assert data.duplicates == ()


def test_a_split_seed_gives_the_same_split_each_time_and_another_seed_another(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 30, "dog": 30})
    splits = [names_in(prepare(root, tmp_path, split_seed=seed, val_fraction=0.3), "val") for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_the_split_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Golden: a change here changes every study's validation split, so RECIPE_VERSION would have to rise."""
    root = tmp_path / "pets"
    for name, shade in (("cat", 0), ("dog", 100)):
        (root / name).mkdir(parents=True)
        for i in range(10):
            content = f"P2 1 1 255 {shade + i}\n".encode()  # a picture whose bytes no library decides
            (root / name / f"{i}.pgm").write_bytes(content)
    val = names_in(prepare(root, tmp_path, val_fraction=0.2), "val")
    assert val == {"cat/1.pgm", "cat/7.pgm", "dog/3.pgm", "dog/4.pgm"}


def test_a_new_picture_does_not_reshuffle_the_others(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 30, "dog": 30})
    before = names_in(prepare(root, tmp_path, val_fraction=0.2), "val")
    noise(seed=999).save(root / "cat" / "zzz.png")
    after = names_in(prepare(root, tmp_path, val_fraction=0.2), "val")
    assert len(before ^ after) <= 2


def test_copies_of_a_picture_in_one_class_are_drawn_to_one_side(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 20, "dog": 20})
    for i in range(0, 20, 2):
        shutil.copy(root / "cat" / f"{i:03}.png", root / "cat" / f"{i:03} copy.png")
    sides = [prepare(root, tmp_path, val_fraction=0.3, split_seed=seed).duplicates for seed in range(10)]
    # Only the pair at the border of the share can be parted, where a draw file by file parts four of ten.
    assert max(len(pairs) for pairs in sides) <= 1


# The content hash


def test_the_content_hash_is_the_same_elsewhere_and_later_and_at_another_size(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    before = prepare(root, tmp_path).content_hash
    shutil.copytree(root, tmp_path / "elsewhere" / "animals", copy_function=shutil.copyfile)
    assert prepare(tmp_path / "elsewhere" / "animals", tmp_path, image_size=8).content_hash == before


def test_the_content_hash_knows_bytes_names_and_labels(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    hashes = [prepare(root, tmp_path).content_hash]
    noise(seed=99).save(root / "cat" / "000.png")
    hashes.append(prepare(root, tmp_path).content_hash)
    (root / "cat" / "000.png").rename(root / "cat" / "zero.png")
    hashes.append(prepare(root, tmp_path).content_hash)
    (root / "cat" / "zero.png").rename(root / "dog" / "zero.png")
    hashes.append(prepare(root, tmp_path).content_hash)
    (root / "cat").rename(root / "lynx")
    hashes.append(prepare(root, tmp_path).content_hash)
    assert len(set(hashes)) == 5


# Duplicates


def test_duplicates_across_splits_and_across_classes_are_reported(tmp_path: Path) -> None:
    root = make_folder(
        tmp_path / "pets",
        {"train/cat": 4, "train/dog": 4, "val/cat": 1, "val/dog": 1, "test/cat": 2, "test/dog": 1},
    )
    shutil.copy(root / "train/cat/000.png", root / "test/cat/leak.png")
    shutil.copy(root / "train/cat/001.png", root / "train/dog/two_labels.png")
    shutil.copy(root / "train/cat/002.png", root / "train/cat/harmless.png")
    assert set(prepare(root, tmp_path).duplicates) == {
        Duplicate("test/cat/leak.png", "train/cat/000.png", "across splits"),
        Duplicate("train/cat/001.png", "train/dog/two_labels.png", "across classes"),
    }


# Arrays instead of files


def test_digits_are_split_and_brightened(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    config = DataConfig(source="digits", image_size=8, test_fraction=0.2)
    data = prepare_data(config, tmp_path / "caches")
    digits = load_digits()
    assert data.class_names == tuple("0123456789")
    assert data.names == tuple(f"digits/{i}" for i in range(1797))
    row = 17
    np.testing.assert_array_equal(data.images[row, :, :, 1], np.rint(digits.images[17] * 255 / 16))
    assert data.labels[row] == digits.target[17]
    assert {split: len(i) for split, i in data.splits.items()} == {"train": 1293, "val": 145, "test": 359}
    assert prepare_data(config, tmp_path / "caches").content_hash == data.content_hash
    assert data.cache_path.name.startswith("digits-8px-")


@pytest.fixture
def miniature_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's own files with 20 pictures each, and the published checksums swapped for theirs."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "downloads" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(seed: int) -> dict[str, object]:
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [i % 10 for i in range(20)]}

    train = [[f"data_batch_{i}", write(f"data_batch_{i}", batch(i))] for i in range(1, 6)]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", batch(6))]])
    meta = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": write("batches.meta", {"label_names": names}),
    }
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return folder


@pytest.mark.parametrize("inside", [False, True], ids=["the folder above", "the folder itself"])
def test_cifar_is_read_from_torchvisions_folder(tmp_path: Path, miniature_cifar: Path, inside: bool) -> None:
    path = miniature_cifar if inside else miniature_cifar.parent
    data = prepare_data(DataConfig(source="cifar10", path=str(path), image_size=32), tmp_path / "caches")
    assert {split: len(i) for split, i in data.splits.items()} == {"train": 90, "val": 10, "test": 20}
    assert data.class_names[3] == "cat"
    assert data.labels[data.names.index("cifar10/test/00013")] == 3
    with (miniature_cifar / "test_batch").open("rb") as file:
        expected = pickle.load(file)["data"][13].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(data.images[data.names.index("cifar10/test/00013")], expected)


def test_a_damaged_torchvision_folder_is_named_and_left_as_it_is(tmp_path: Path, miniature_cifar: Path) -> None:
    (miniature_cifar / "test_batch").write_bytes(b"damaged")
    config = DataConfig(source="cifar10", path=str(miniature_cifar.parent), image_size=32)
    with pytest.raises(DataError, match=r"cifar10 could not be read from .*downloads \(.*corrupted"):
        prepare_data(config, tmp_path / "caches")
    assert (miniature_cifar / "test_batch").read_bytes() == b"damaged"


def test_a_failed_download_says_what_to_do_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/nobody-listens-here.tar.gz")
    with pytest.raises(DataError, match=r"cifar100 could not be downloaded to .* --data DIR, where DIR holds") as error:
        prepare_data(DataConfig(source="cifar100", image_size=32), tmp_path / "caches")
    assert "torchvision's cifar-100-python, or CLASS/*" in str(error.value)


def test_cifar_may_be_an_image_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "cifar", {"train/cat": 3, "train/dog": 3, "test/cat": 1})
    data = prepare(root, tmp_path, source="cifar10")
    assert data.class_names == ("cat", "dog")
    assert "does not exist" in problems_of(tmp_path / "nowhere", tmp_path, source="cifar10")


def test_a_folder_is_read_without_torch(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    program = f"""
import sys, json
from pathlib import Path
from trainer.config import DataConfig
from trainer.data import prepare_data
prepare_data(DataConfig(path={str(root)!r}, image_size=16), Path({str(tmp_path / "caches")!r}))
print(json.dumps([name for name in ("torch", "torchvision", "timm", "sklearn") if name in sys.modules]))
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == []


def test_a_home_of_nobody_and_a_circle_of_links_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for path in ("~nobody-of-this-name/birds", str(tmp_path / "circle")):
        problem = f"the data folder {Path(path).absolute()} does not exist; check --data DIR"
        assert problems_of(Path(path), tmp_path) == problem
        assert problems_of(Path(path), tmp_path, labels="labels.csv") == problem
    root = make_folder(tmp_path / "birds", {"robin": 2})
    problem = f"the table {root}/~nobody-of-this-name/x.csv cannot be read: No such file"
    assert problems_of(root, tmp_path, labels="~nobody-of-this-name/x.csv").startswith(problem)
