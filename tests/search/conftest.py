"""What tests of the service share: a coordinator's bench, an invented study, and one for the dashboard to show."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from scripted import Bench, without_sync
from shown import Search, begin_search
from sqlalchemy import URL, event
from sqlalchemy.pool import Pool

from search.study.storage import open_storage, parse_url
from search.study.study import open_study
from studies import StudySpec

READ_SCRIPTS = ScriptDirectory.from_config
SCRIPTS: dict[str | None, ScriptDirectory] = {}


def _scripts_of(config: Config) -> ScriptDirectory:
    """Optuna's migrations. Alembic would read them anew whenever a database is opened, most of the time of that."""
    location = config.get_alembic_option("script_location")
    if location not in SCRIPTS:
        SCRIPTS[location] = READ_SCRIPTS(config)
    return SCRIPTS[location]


ScriptDirectory.from_config = _scripts_of  # type: ignore[method-assign]


@event.listens_for(Pool, "connect")
def _no_wait_for_a_new_file(connection: Any, _record: object) -> None:
    """Each table of a new SQLite file would wait for the disk; once it has tables, the service's own settings hold."""
    if isinstance(connection, sqlite3.Connection):
        file = Path(connection.execute("PRAGMA database_list").fetchone()[2])
        if file.is_file() and file.stat().st_size == 0:
            connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Files of this process need not be on the disk when they are written: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Search]:
    """For the dashboard to show."""
    begun = begin_search(tmp_path / "search.db")
    yield begun
    begun.storage.engine.dispose()


@pytest.fixture
def spec() -> StudySpec:
    """What invented trials are trials of."""
    return StudySpec.model_validate(
        {
            "name": "digits",
            "data": {"source": "digits", "image_size": 32},
            "limit": {"params": 300_000},
            "train": {"model": "resnet10t", "epochs": 9},
            "space": {
                "lr": {"low": 1e-3, "high": 2e-2, "log": True},
                "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
                "label_smoothing": {"low": 0.0, "high": 0.1},
                "dropout": {"low": 0.0, "high": 0.5},
                "batch_size": [32, 64, 128],
                "width_mult": {"low": 0.1},
            },
            "search": {"trials": 60, "min_epochs": 1, "pruner": "successive_halving"},
        }
    )


@pytest.fixture
def series(spec: StudySpec) -> StudySpec:
    """The same with trainings of 2, 6 and 18 epochs: the rungs are at steps 2 and 8, the end at 26."""
    train = spec.train.model_copy(update={"epochs": 18, "schedule": "cosine"})
    search = {"pruner": "promote", "trainings": 6, "sampler": "model"}
    return StudySpec.model_validate(spec.model_dump() | {"train": train.model_dump(), "search": search})


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return parse_url(f"sqlite:///{tmp_path}/search.db")


@pytest.fixture
def study(spec: StudySpec, url: URL) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return open_study(spec, without_sync(open_storage(url, create=True)), "0" * 64)
