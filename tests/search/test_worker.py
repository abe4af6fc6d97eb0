"""How a worker names what went wrong, from errors that torch really raises."""

from __future__ import annotations

import pytest
import torch

from search.worker import _kind_of
from trainer.errors import DiskError, DivergedError, LimitError


def test_an_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert _kind_of(caught.value) == "memory"
    with pytest.raises(MemoryError) as python:
        bytearray(1 << 62)
    assert _kind_of(python.value) == "memory"
    assert _kind_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) == "memory"


def test_errors_of_the_device_get_a_new_process() -> None:
    assert _kind_of(torch.AcceleratorError("CUDA error: an illegal memory access was encountered")) == "device"


def test_errors_that_a_retry_cannot_mend_are_told_from_those_it_may() -> None:
    kinds = [_kind_of(error) for error in (DivergedError("x"), DiskError("x"), LimitError("x"), ValueError("x"))]
    assert kinds == ["diverged", "disk", "user", "crash"]
