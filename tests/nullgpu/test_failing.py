"""What the product makes of a GPU's errors, in torch's own words, and where it keeps pictures; on the null GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(null_gpu: dict[str, str]) -> dict[str, Any]:
    environment = null_gpu | {"NULLGPU_BYTES": "1000000000", "CUDA_VISIBLE_DEVICES": "0"}
    environment.pop("CUDA_DEVICE_ORDER", None)
    script = Path(__file__).with_name("failing.py")
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ("memory", "memory", "OutOfMemoryError: CUDA out of memory."),
        ("late memory", "memory", "AcceleratorError: CUDA error: out of memory"),
        ("cublas", "memory", "CUBLAS_STATUS_ALLOC_FAILED"),
        ("cudnn", "device", "cuDNN error: "),
        ("illegal access", "device", "AcceleratorError: CUDA error: an illegal memory access was encountered"),
    ],
)
def test_each_error_of_a_gpu_has_its_kind_and_one_line(
    found: dict[str, Any], error: str, kind: str, words: str
) -> None:
    assert found["fine"] is None
    assert found[error][0] == kind
    assert words in found[error][1]
    assert "\n" not in found[error][1]


def test_pictures_stay_in_memory_if_they_fit_into_an_equal_part_for_each_worker(found: dict[str, Any]) -> None:
    assert found["alone"] == ["picture set: in the GPU's memory: 0.2 GB are at most 50% of 1.0 GB", True]
    streamed = "picture set: streamed from the host in pinned copies, one batch ahead"
    part = "0.2 GB are more than 50% of 0.2 GB, the part of one of the GPU's 4 workers"
    assert found["shared"] == [f"{streamed}: {part}", False]
    assert found["given way"] == [f"{streamed}: the GPU's memory ran out with them in it", False]
    assert found["freed"]


def test_pictures_that_find_the_gpu_filled_are_streamed(found: dict[str, Any]) -> None:
    assert found["filled"] == [False, "no room for the pictures in the GPU's memory; they are streamed instead"]


def test_memory_kept_for_reuse_is_returned_between_candidates(found: dict[str, Any]) -> None:
    assert found["reserved"] == 0


def test_read_only_arrays_are_copied_without_a_warning(found: dict[str, Any]) -> None:
    assert found["read-only"] == list(range(8))


def test_cuda_counts_as_nvidia_smi_and_computes_in_full_precision(found: dict[str, Any]) -> None:
    assert found["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert found["tf32"] == [False, False]


def test_an_error_of_the_disk_reaches_the_training_and_no_thread_outlives_its_epoch(found: dict[str, Any]) -> None:
    assert found["gather"][1] == "OSError: the disk is gone"
    assert found["threads"] == []
