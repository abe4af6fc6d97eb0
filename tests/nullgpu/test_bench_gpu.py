"""bench/gpu.py runs from end to end where there is a GPU; here on the null GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_every_section_ends_well_and_a_replayed_step_costs_the_host_little(
    null_gpu: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, BENCH, "--quick", "--work", tmp_path]
    run = subprocess.run(command, env=null_gpu, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    said = run.stdout.partition("### sections")[2]
    assert re.findall(r"\| (\w+) \| (\w+), ", said) == [
        (name, "done") for name in ("tests", "step", "bits", "pack", "search", "timm")
    ]
    host = {name: float(ms) for name, ms in re.findall(r"\| 64 \| ([\w ]+) \| .* \| ([\d.]+) \| [\d.]+ \|", run.stdout)}
    assert host["as a CUDA graph"] < 4 < host["as it is"]
    assert "left out: timm's train.py was not given" in run.stdout


def test_without_a_gpu_it_says_so() -> None:
    hidden = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, BENCH, "--quick"], env=hidden, capture_output=True, text=True)
    assert run.returncode == 1
    assert "torch sees no GPU here" in run.stderr
    assert "Traceback" not in run.stderr
