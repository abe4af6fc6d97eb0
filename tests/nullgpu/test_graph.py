"""Steps as replays of a CUDA graph (``cuda_graph``), on the null GPU: when there is one, and what happens else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(null_gpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, Path(__file__).with_name("graphing.py"), tmp_path_factory.mktemp("graph")]
    run = subprocess.run(command, env=null_gpu, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def test_after_four_steps_every_step_is_a_replay_and_batch_norm_counts_it(found: dict[str, Any]) -> None:
    assert found["plain"] == {"replays": 1 + 4, "lines": [], "batches": [8]}


@pytest.mark.parametrize(
    ("case", "replays", "why"),
    [
        ("differs", 1, "the captured step gives other bits"),
        ("waits", 0, "a step waits for the GPU"),
        ("fails", 0, "a step cannot be captured: CUDA error: operation "),
    ],
)
def test_a_step_that_is_no_good_as_a_graph_is_taken_kernel_by_kernel_and_a_line_says_so(
    found: dict[str, Any], case: str, replays: int, why: str
) -> None:
    (line,) = found[case]["lines"]
    assert line.startswith(f"cuda_graph: {why}")
    assert line.endswith("; this training goes on kernel by kernel")
    assert "\n" not in line
    assert (found[case]["replays"], found[case]["batches"]) == (replays, [8])


def test_a_resumed_training_captures_anew(found: dict[str, Any]) -> None:
    assert found["begun"] == {"replays": 1 + 2, "lines": []}
    assert found["resumed"] == {"replays": 1 + 2, "lines": [], "batches": [12]}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("off", "kernel by kernel: cuda_graph = false"),
        ("fp16", "kernel by kernel: in fp16, the scale of the loss decides whether a step is taken"),
        ("nadam", "kernel by kernel: nadam computes a part of each step on the host"),
        ("divided", "replays of a CUDA graph, after four steps"),
    ],
)
def test_what_is_not_captured_is_said_in_the_log(found: dict[str, Any], case: str, reason: str) -> None:
    assert found[case] == {"replays": 0, "lines": [], "choice": f"steps: {reason}"}
    assert found["chosen"] == "steps: replays of a CUDA graph, after four steps"
