"""Reads the files of an export (checksums, configuration, model) and pictures for its model. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from search.errors import ProofFailed, UsageError
from search.export.formats.format import Forward
from search.export.formats.table import format_of
from trainer.config import DataConfig
from trainer.errors import DataError, as_lines
from trainer.pictures import read_picture
from trainer.scan import read_file
from trainer.sums import POINTER, SUMS, first_altered, is_pointer, read_sums


def check_sums(export: Path, names: Sequence[str] | None = None) -> None:
    """Compare files of an export with its SHA256SUMS: ``names``, or all files listed there.

    Raises:
        UsageError: SHA256SUMS is missing or unusable.
        ProofFailed: a file differs, is missing, or is not listed.
    """
    try:
        listed = read_sums(export)
    except (OSError, ValueError) as error:
        cure = POINTER[1] if is_pointer(export / SUMS) else "give a folder that export-best wrote"
        raise UsageError(f"{export} has no usable {SUMS}; {cure}") from error
    altered = first_altered(export, listed, listed if names is None else names)
    if altered is not None:
        raise ProofFailed(f"{export / altered.name} is not the file that was proven ({altered.why}); {altered.cure}")


class Preprocessing(BaseModel):
    """How a picture becomes the input of the model: ``pretrained_cfg`` of config.json, in timm's names."""

    model_config = ConfigDict(frozen=True)

    input_size: tuple[Literal[1, 3], int, int]
    """(channels, size, size)"""
    interpolation: Literal["bilinear", "bicubic"]
    crop_pct: float
    crop_mode: str
    """"squash": the picture is not cropped. Anything else: it is cropped."""
    mean: tuple[float, ...]
    """Mean of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...]

    def normalised(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Pictures [size, size, channels] as one batch [n, channels, size, size] for the model."""
        scaled = np.stack(images).astype(np.float32) / 255
        normalised = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


class ModelConfig(BaseModel):
    """The parts of config.json that are needed to classify pictures with the export."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    pretrained_cfg: Preprocessing
    label_names: tuple[str, ...]
    """Classes, in the order of the logits."""
    background: Literal["keep", "grabcut"] = "keep"
    """grabcut: the background is made black before anything else. timm's ``pretrained_cfg`` has no key for it."""

    @property
    def data_config(self) -> DataConfig:
        """The settings with which the training pictures were read."""
        stated = self.pretrained_cfg
        return DataConfig(
            image_size=stated.input_size[-1],
            resize="squash" if stated.crop_mode == "squash" else "crop",
            interpolation=stated.interpolation,
            crop_pct=stated.crop_pct,
            background=self.background,
            channels=stated.input_size[0],
        )


def read_config(export: Path) -> ModelConfig:
    """The classes and the preprocessing of an export, from its config.json.

    Raises:
        UsageError: the folder is not an export.
        ProofFailed: config.json has changed since the proof.
    """
    try:
        config = ModelConfig.model_validate_json((export / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        cure = POINTER[1] if is_pointer(export / "config.json") else "give a folder that export-best wrote"
        raise UsageError(f"{export} is not an export (no usable config.json); {cure}") from error
    check_sums(export, ["config.json"])
    return config


def open_model(export: Path) -> Forward:
    """An export's model in ONNX Runtime, on the CPU.

    Raises:
        UsageError: the export has no model.onnx, or the file is no ONNX model.
        ProofFailed: model.onnx has changed since the proof.
    """
    onnx = format_of("onnx")
    file = export / onnx.file
    if not file.exists():
        raise UsageError(f'{file} is missing; export with final.formats = ["onnx"] for this command')
    check_sums(export, [onnx.file])
    try:
        return onnx.open(file).forward
    except Exception as error:  # onnxruntime's own exceptions have no other common base
        raise UsageError(
            f"{file} is no ONNX model ({str(error).splitlines()[0]}); give a folder that export-best wrote"
        ) from error


def read_images(files: Sequence[Path], config: ModelConfig) -> NDArray[np.float32]:
    """Pictures as [n, channels, size, size], normalised, read by the same function as the training pictures.

    Raises:
        DataError: pictures cannot be read; the message lists them.
    """
    data = config.data_config
    images, problems = [], []
    for file in files:
        try:
            images.append(read_picture(read_file(file), data))
        except DataError as error:
            problems.append(f"{file}: {error}")
    if problems:
        raise DataError(f"these pictures cannot be read:{as_lines(problems)}")
    return config.pretrained_cfg.normalised(images)
