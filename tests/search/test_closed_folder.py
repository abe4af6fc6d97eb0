"""Pictures, exports and study files in a folder that is closed to this user: one sentence, never a traceback."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import studies
from search.errors import StorageError
from search.export.compare import _study_of
from search.export.inputs import find_pictures
from search.study.storage import sqlite_url
from trainer.config import DataConfig
from trainer.data import prepare_data
from trainer.errors import TrainerError
from trainer.sums import check_teacher


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that others may enter; pytest's own may only its owner."""
    with tempfile.TemporaryDirectory(prefix="featherweight-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user may not enter."""
    folder = tmp_path / "closed"
    (folder / "pets/cat").mkdir(parents=True)
    folder.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may enter all folders
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    folder.chmod(0o755)


@pytest.mark.parametrize("source", ["folder", "cifar10"])
@pytest.mark.parametrize("below", ["", "pets"])
def test_pictures(closed: Path, source: str, below: str) -> None:
    config = DataConfig.model_validate({"source": source, "path": str(closed / below)})
    with pytest.raises(TrainerError, match=r"closed.* cannot be (opened|listed): Permission denied"):
        prepare_data(config, closed / "cache")


def test_a_database_for_a_comparison(closed: Path) -> None:
    """The comparison would be counted there as a use of the test split."""
    with pytest.raises(StorageError, match=f"database {closed}/search.db cannot be read: {closed} belongs to"):
        _study_of("birds", sqlite_url(closed / "search.db"))


def test_pictures_to_classify(closed: Path) -> None:
    for name in ("pets", "a.jpg", "a.csv"):
        assert find_pictures([closed / name]) == [closed / name]  # its reader says why it cannot be opened
    with pytest.raises(TrainerError, match=r"no file matches .*/closed/\*\.jpg"):
        find_pictures([closed / "*.jpg"])


@pytest.mark.parametrize(
    "read", [lambda folder: studies.load(f"{folder}/a.toml"), lambda folder: check_teacher(folder)]
)
def test_a_study_file_and_a_teacher(closed: Path, read: Callable[[str], object]) -> None:
    with pytest.raises(TrainerError, match="Permission denied"):
        read(str(closed))
