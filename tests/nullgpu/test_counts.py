"""What a training asks of a GPU, counted on the null GPU: launches, waits, layouts, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MOST_LAUNCHES = {
    "rexnet_100": 945,
    "rexnetr_100": 935,
    "resnet18": 310,
    "efficientnet_b0": 915,
    "mobilenetv3_large_100": 730,
    "wrn-16-4": 270,
    "convnext_atto": 690,
    "nf_regnet_b0": 1680,
    "agc": 1185,
}
"""Launches of a step by case, with batch and augmentation, counted with torch 2.14.1 and timm 1.0.31, rounded up."""

CASES: dict[str, dict[str, Any]] = {case: {"model": case} for case in MOST_LAUNCHES}
CASES |= {
    "fp32": {"model": "resnet18", "precision": "fp32"},
    "sam": {"model": "resnet18", "optimizer": "sgd", "sam": {"rho": 0.05}},
    "nadam": {"model": "resnet18", "optimizer": "nadam", "mixup": 0.5, "cutmix": 0.5, "brightness": 0.1},
    "agc": {"model": "rexnet_100", "agc": 0.05, "ema": 0.99},
    "streamed": {"model": "resnet18", "streamed": True},
    "focal": {"model": "resnet18", "loss": "focal", "class_weights": "effective", "mixup": 1.0},
    "adjusted": {"model": "resnet18", "logit_adjustment": 1.0},
    "fp16": {"model": "resnet18", "precision": "fp16", "clip": 1.0},
    "replayed": {"model": "rexnet_100", "cuda_graph": True},
    "replayed, mixed": {"model": "resnet18", "cuda_graph": True, "mixup": 0.5, "drop_path": 0.1, "streamed": True},
    "replayed, sam": {"model": "resnet18", "cuda_graph": True, "optimizer": "sgd", "sam": {"rho": 0.05}, "clip": 1.0},
}


@pytest.fixture(scope="module")
def counted(null_gpu: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What each case asks of the GPU, in one process: importing torch and timm takes longer than all of them."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("counting.py"), json.dumps(list(CASES.values()))],
        env=null_gpu,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(CASES, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", MOST_LAUNCHES)
def test_a_step_launches_no_more_kernels_than_it_did(counted: dict[str, dict[str, Any]], case: str) -> None:
    assert 200 < counted[case]["launches"] <= MOST_LAUNCHES[case]


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("replayed")])
def test_a_replayed_step_launches_a_graph_and_what_makes_its_batch(
    counted: dict[str, dict[str, Any]], case: str
) -> None:
    assert counted[case]["graph_launches"] == 1
    assert 10 < counted[case]["launches"] <= 40


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_is_channels_last(counted: dict[str, dict[str, Any]], case: str) -> None:
    assert counted[case]["nchw_gradients"] == 0


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_never_waits_for_the_gpu(counted: dict[str, dict[str, Any]], case: str) -> None:
    assert (counted[case]["syncs"], counted[case]["from_device"]) == (0, 0)


@pytest.mark.parametrize("case", CASES)
def test_memory_does_not_grow_from_epoch_to_epoch(counted: dict[str, dict[str, Any]], case: str) -> None:
    assert counted[case]["growth"] == 0


@pytest.mark.parametrize("case", CASES)
def test_no_operation_of_a_step_is_without_a_deterministic_kernel(
    counted: dict[str, dict[str, Any]], case: str
) -> None:
    assert (counted[case]["nondeterministic"], counted[case]["other_kernels"]) == ([], [])


def test_batches_from_the_host_are_gathered_and_pinned_beside_the_step(counted: dict[str, dict[str, Any]]) -> None:
    assert counted["streamed"]["threads"] == ["pictures_0"]
    assert counted["resnet18"]["threads"] == []
