"""What a stranger reads from the raw files, picture by picture, and what the card says of those read otherwise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import timm
from PIL import Image

from search.export import proof
from search.export.opening import READ, reading
from search.export.proof import Difference, Pictures
from search.export.record import ExportRecord, Proof
from trainer.config import DataConfig
from trainer.data import Dataset, prepare_data
from trainer.pictures import DEPTH, TURNED, read_right

STATED = {"input_size": (3, 16, 16), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
STATED |= {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            image.save(tmp_path / "pets" / name / f"{i}.png")
            if name == "cat":
                image.save(tmp_path / "pets" / name / f"turned{i}.jpg", exif=exif)
    deep = rng.integers(0, 65536, (20, 24), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "pets" / "dog" / "deep.png")
    return tmp_path / "pets"


def read_raw(data: Dataset, config: DataConfig) -> Pictures:
    indices = np.arange(len(data.names))
    mean, std = (np.array(STATED[name], np.float32) for name in ("mean", "std"))

    def cached(start: int) -> Pictures:
        pictures = data.images[indices[start : start + proof.BATCH]].astype(np.float32) / 255
        return np.ascontiguousarray(((pictures - mean) / std).transpose(0, 3, 1, 2))

    return proof._as_a_stranger(STATED, config, data, indices, cached)(0)


def test_pictures_read_otherwise_are_accepted_and_all_others_compared_one_by_one(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(path=str(folder), image_size=16)
    data = prepare_data(config, tmp_path / "cache")
    assert set(data.misread) == {*(f"cat/turned{i}.jpg" for i in range(4)), "dog/deep.png"}
    assert read_raw(data, config).shape == (13, 3, 16, 16)
    Image.new("RGB", (24, 20), "red").save(folder / "dog" / "2.png")
    with pytest.raises(
        Difference, match=r"the raw files, read as timm's own transform reads them, differ: dog/2.png by"
    ):
        read_raw(data, config)


@pytest.mark.parametrize("why", [TURNED, DEPTH])
def test_the_line_reads_right_what_a_plain_convert_reads_otherwise(folder: Path, tmp_path: Path, why: str) -> None:
    from PIL import ImageOps

    config = DataConfig(path=str(folder), image_size=16)
    data = prepare_data(config, tmp_path / "cache")
    transform = timm.data.create_transform(**{**STATED, "mean": (0, 0, 0), "std": (1, 1, 1)})
    for name in [name for name, reason in data.misread.items() if reason == why]:
        scope = {"Image": Image, "ImageOps": ImageOps, "np": np, "file": folder / name}
        pixels = (transform(eval(read_right(why, 3), scope)) * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, data.images[data.names.index(name)])


def test_the_card_states_them_with_the_line_and_says_nothing_where_there_are_none() -> None:
    proven = Proof(
        num_params=1,
        macs=1,
        formats={},
        stranger_accuracy=0.5,
        max_logit_difference=0,
        misread={TURNED: 30},
        misread_in_all={TURNED: 1200, DEPTH: 2},
    )
    evaluation = SimpleNamespace(n=100, split="test")
    data = SimpleNamespace(channels=1)
    assert "trainer" not in READ  # a stranger has stock libraries alone
    text = reading(cast(ExportRecord, SimpleNamespace(data=data, evaluation=evaluation, proof=proven)))
    assert "reads some of the pictures differently from how they were read for training and evaluation" in text
    assert "with it, the accuracy is 50.00%" in text
    assert (
        f"- 1,200 of all pictures, 30 of the 100 in the test split, are {TURNED}; this line reads such a picture"
        in text
    )
    assert '`ImageOps.exif_transpose(Image.open(file)).convert("L")`' in text
    assert f"- 2 of all pictures, 0 of the 100 in the test split, are {DEPTH}" in text
    none = proven.model_copy(update={"misread": {}, "misread_in_all": {}})
    assert reading(cast(ExportRecord, SimpleNamespace(data=data, evaluation=evaluation, proof=none))) == ""
