"""What --gpus means on machines whose driver says odd things: asked of the null GPU's NVML, in one process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ASK = """
import json, os, sys
from search.devices import parse_devices
from search.errors import SearchError

for text, settings in json.load(sys.stdin):
    os.environ.update(settings)
    try:
        print(json.dumps([[device.label, device.visible] for device in parse_devices(text)]))
    except SearchError as error:
        print(json.dumps([str(error)]))
    for name in settings:
        del os.environ[name]
os._exit(0 if sys.stdout.flush() is None else 1)
"""

CASES: dict[str, tuple[str | None, dict[str, str]]] = {
    "two": (None, {}),
    "lost": (None, {"NULLGPU_LOST": "0"}),
    "lost by name": ("0", {"NULLGPU_LOST": "0"}),
    "divided": (None, {"NULLGPU_PARTS": "2"}),
    "part by name": ("MIG-00000000-0001", {"NULLGPU_PARTS": "2"}),
    "shown by number": (None, {"CUDA_VISIBLE_DEVICES": "1"}),
    "old driver": (None, {"NULLGPU_DRIVER_CUDA": "12040"}),
    "old driver, but the cpu": ("cpu", {"NULLGPU_DRIVER_CUDA": "12040"}),
    "old GPU": ("1", {"NULLGPU_CAPABILITY": "61"}),
}

GPU = "GPU-0000000{}-aaaa-bbbb-cccc-dddddddddddd"
PART = "MIG-00000000-000{}-bbbb-cccc-dddddddddddd"


@pytest.fixture(scope="module")
def answers(null_gpu: dict[str, str]) -> dict[str, list[object]]:
    asked = json.dumps(list(CASES.values()))
    run = subprocess.run([sys.executable, "-c", ASK], env=null_gpu, input=asked, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.startswith("gpu 0 is left out: the driver cannot open it (GPU is lost); reset it (nvidia-smi ")
    return dict(zip(CASES, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(
    ("case", "devices"),
    [
        ("two", [["gpu 0", GPU.format(0)], ["gpu 1", GPU.format(1)]]),
        ("lost", [["gpu 1", GPU.format(1)]]),
        (
            "divided",
            [
                [f"gpu {PART.format(0)}", PART.format(0)],
                [f"gpu {PART.format(1)}", PART.format(1)],
                ["gpu 1", GPU.format(1)],
            ],
        ),
        ("part by name", [[f"gpu {PART.format(1)}", PART.format(1)]]),
        ("shown by number", [["gpu 1", GPU.format(1)]]),
    ],
)
def test_gpus_go_by_their_uuids_and_keep_their_numbers(
    answers: dict[str, list[object]], case: str, devices: list[list[str | None]]
) -> None:
    assert answers[case] == devices


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        (
            "lost by name",
            ["--gpus 0: gpu 0 cannot be used: the driver cannot open it (GPU is lost)", "--gpu-reset -i 0"],
        ),
        (
            "old driver",
            [
                "no GPU of this machine can be used: its driver is too old: it knows CUDA up to 12.4",
                "update the driver",
            ],
        ),
        ("old GPU", ["--gpus 1: gpu 1 cannot be used: torch ", " has no kernels for its compute capability 6.1"]),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused_before_a_worker_starts(
    answers: dict[str, list[object]], case: str, parts: list[str]
) -> None:
    (sentence,) = answers[case]
    assert [part for part in parts if part not in str(sentence)] == []
    assert answers["old driver, but the cpu"] != answers["old driver"]
