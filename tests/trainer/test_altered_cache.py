"""A cache whose bytes are not those that were written: found by the next launch, and built anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folders import make_folder

import trainer.cache
from trainer.config import DataConfig
from trainer.data import prepare_data


def config_of(folder: Path) -> DataConfig:
    return DataConfig(path=str(make_folder(folder / "pets", {"cat": 4, "dog": 4})), image_size=16)


def flip_a_bit_of_the_pictures(cache: Path) -> None:
    content = bytearray((cache / "pictures.npy").read_bytes())
    content[-100] ^= 1
    (cache / "pictures.npy").write_bytes(content)


def lose_a_page(cache: Path) -> None:
    with (cache / "pictures.npy").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(500))


def mistake_a_class(cache: Path) -> None:
    text = (cache / "index.json").read_text()
    (cache / "index.json").write_text(text.replace('"classes": ["cat"', '"classes": ["dog"'))


def make_signed(cache: Path) -> None:
    content = (cache / "pictures.npy").read_bytes()
    (cache / "pictures.npy").write_bytes(content.replace(b"|u1", b"|i1", 1))


def open_a_bracket(cache: Path) -> None:
    content = (cache / "pictures.npy").read_bytes()
    (cache / "pictures.npy").write_bytes(content.replace(b"}", b"{", 1))


def shorten_the_header(cache: Path) -> None:
    """All pixels are there, but numpy would read each of them two bytes early."""
    content = bytearray((cache / "pictures.npy").read_bytes())
    content[8] -= 2
    (cache / "pictures.npy").write_bytes(content)


ALTERATIONS = (
    *(flip_a_bit_of_the_pictures, lose_a_page, mistake_a_class, make_signed, open_a_bracket, shorten_the_header),
)


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_a_cache_that_is_not_what_was_written_is_built_anew_by_a_launch(
    tmp_path: Path, alter: Callable[[Path], object]
) -> None:
    config = config_of(tmp_path)
    whole = prepare_data(config, tmp_path / "caches")
    pixels, labels = np.array(whole.images), whole.labels
    alter(whole.cache_path)
    with pytest.warns(UserWarning, match=f"{whole.cache_path} is damaged; its pictures are decoded again"):
        again = prepare_data(config, tmp_path / "caches")
    np.testing.assert_array_equal(again.images, pixels)
    np.testing.assert_array_equal(again.labels, labels)
    assert again.images.dtype == np.uint8
    before = (again.cache_path / "pictures.npy").stat()
    after = (prepare_data(config, tmp_path / "caches").cache_path / "pictures.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns), "it was not built once more"


def test_a_cache_of_more_pictures_than_are_read_at_once_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    prepare_data(config, tmp_path / "caches")
    monkeypatch.setattr(trainer.cache, "CHECKED_BYTES", 3 * 16 * 16 * 3)
    checked: list[tuple[str, int, int]] = []
    prepare_data(config, tmp_path / "caches", progress=lambda *call: checked.append(call))
    assert checked == [("checking the decoded pictures", done, 8) for done in (3, 6, 8)]
