"""How many cores and threads a process takes, where a container or its user grants fewer than the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer import cores
from trainer.cores import most_threads, num_cores
from trainer.device import open_device


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system says what the container may use."""
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


def test_a_containers_quota_is_rounded_up_and_never_more_than_the_machine_has(quota: Path) -> None:
    there = num_cores()
    for text, expected in (
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("99900000 100000", there),
        ("max 100000", there),
    ):
        quota.write_text(text + "\n")
        assert num_cores() == expected, text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no affinity")
@pytest.mark.usefixtures("quota")
def test_cores_that_a_process_may_not_use_are_not_counted() -> None:
    assert num_cores() == len(os.sched_getaffinity(0))
    program = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    program += "from trainer.cores import num_cores; print(num_cores())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("said", "expected"), [("2", 2), ("16", 8), (" 4,2 ", 4), ("", 8), ("0", 8), ("-1", 8), ("many", 8)]
)
def test_as_few_threads_as_the_user_says(said: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert most_threads(8) == expected


def test_a_training_on_the_cpu_heeds_the_user_unless_it_is_told_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.device.num_cores", lambda: 3)
    for said, expected in (("2", 2), ("9", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert open_device("cpu").num_threads == torch.get_num_threads() == expected
    assert open_device("cpu", 1).num_threads == torch.get_num_threads() == 1
