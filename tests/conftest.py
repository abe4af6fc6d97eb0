"""What all tests share: a few hundred digits of 16 px, built once, and the devices to train on."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray_nodes
from filelock import FileLock
from needed import missing
from nullgpu.machine import NotBuildable, build
from slurm import Cluster, slurm_cluster

from search.workers.ray_cluster import SETTINGS
from trainer.config import DataConfig

# Several tests run at a time: threads that wait for each other at every step would take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Looking again and again through all that the libraries leave would take a tenth of the time.
gc.set_threshold(100_000)

# Ray reads its settings when it is imported, and any test may be the first to import it.
os.environ.update(SETTINGS)

if TYPE_CHECKING:  # torch takes seconds to import, and many tests need none
    from trainer.data import Dataset
    from trainer.device import Device


@pytest.fixture(scope="session")
def digits_config() -> DataConfig:
    """430 pictures to train on and 109 to validate on; the others are the test split."""
    return DataConfig(source="digits", image_size=16, val_fraction=0.2, test_fraction=0.7)


@pytest.fixture(scope="session")
def digits(digits_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    from trainer.data import prepare_data

    return prepare_data(digits_config, tmp_path_factory.mktemp("caches"))


@pytest.fixture
def cpu() -> Device:
    """Opened for each test: the thread count belongs to the process, and a test may have changed it."""
    from trainer.device import open_device

    return open_device("cpu", 1)


@pytest.fixture
def cuda() -> Device:
    from trainer.device import best_kind, open_device

    if best_kind() == "cpu":
        pytest.skip("needs an NVIDIA GPU, and torch sees none")
    return open_device("cuda", 1)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A Slurm cluster of two nodes on 127.0.0.1."""
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ray() -> Iterator[ray_nodes.Cluster]:
    """A Ray cluster of one node, besides its head."""
    with ray_nodes.ray_cluster("n1") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def null_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment under which a process sees the null GPU (tests/nullgpu/README.md), and imports this checkout."""
    cache = tmp_path_factory.getbasetemp().parent / "nullgpu"
    cache.mkdir(exist_ok=True)
    try:
        with FileLock(cache / "lock"):  # of several test processes, one builds it
            own = build(cache)
    except NotBuildable as error:
        missing(f"the null GPU cannot be built: {error}")
    return dict(os.environ) | own | {"PYTHONPATH": str(Path(__file__).parents[1])}
