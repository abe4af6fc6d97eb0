"""What a format of an export is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

Forward: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images [n, channels, size, size], normalised -> logits [n, classes]."""


@dataclass(frozen=True)
class Opened:
    """A file of an export, opened by its library on the CPU."""

    forward: Forward
    net: nn.Module | None = None
    """The net itself, for the proof to count; None where the library shows none."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file beside config.json and model.safetensors that holds all of an exported model."""

    file: str
    """Its name in the folder."""
    library: str
    """The stock library that opens it, as users are told."""
    hub_library: str
    """The ``library_name`` of a model card that says so to model hubs."""
    packages: tuple[str, ...]
    """Packages whose versions metrics.json records."""
    loading: str
    """The part of the model card that says how to use it; logits from ``pictures``."""
    write: Callable[[ExportedProgram, Path], None]
    """Write the captured model, whose batch size is free, to this file."""
    open: Callable[[Path], Opened]
    """Open this file by its library and nothing else: the proof and ``search predict`` read as a stranger does.
    Raises whatever the library does."""
