"""The interface of an export's format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    model: nn.Module | None = None
    """The model itself, whose parameters the proof counts; None if the library does not give access to it."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file beside config.json and model.safetensors that holds all of an exported model."""

    file: str
    """Name of the file in the export's folder."""
    library: str
    """Name of the stock library that opens the file, for users."""
    hub_library: str
    """Name of that library for model hubs: ``library_name`` of the model card."""
    packages: tuple[str, ...]
    """Packages whose versions metrics.json records."""
    loading: str
    """The model card's instructions for loading the file and computing ``logits`` from ``pictures``."""
    write: Callable[[ExportedProgram, Path, Mapping[str, str]], None]
    """Writes the captured model, for any batch size, to this path, with the metadata from ``weights.metadata``. The
    file must not contain any path or name of this machine."""
    open: Callable[[Path], Opened]
    """Opens this path with the library alone, as an outsider would; for the proof and ``search predict``. The
    library's exceptions pass through."""
