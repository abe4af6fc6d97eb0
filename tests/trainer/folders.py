"""Folders of pictures, made for a test or unzipped, and what becomes of them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.config import DataConfig
from trainer.data import Dataset, prepare_data
from trainer.errors import DataError


def noise(width: int = 24, height: int = 20, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """Folders with so many pictures each, all different: {"train/cat": 3, "val/cat": 1}."""
    seed = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            seed += 1
            noise(seed=seed).save(root / folder / f"{i:03}.png")
    return root


def prepare(root: Path, tmp_path: Path, **settings: object) -> Dataset:
    values = {"path": str(root), "image_size": 16, **settings}
    return prepare_data(DataConfig.model_validate(values), tmp_path / "caches")


def problems_of(root: Path, tmp_path: Path, **settings: object) -> str:
    with pytest.raises(DataError) as error:
        prepare(root, tmp_path, **settings)
    return str(error.value)


def unzipped(name: str, tmp_path: Path) -> Path:
    archive = Path(__file__).parents[3] / "shared" / "data" / f"{name}.zip"
    if not archive.exists():
        pytest.skip(f"the real pictures of {archive.name} are not beside the repository")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    return tmp_path / name


def names_in(data: Dataset, split: str) -> set[str]:
    return {data.names[i] for i in data.splits[split]}
