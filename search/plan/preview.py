"""A grid of training pictures as the model sees them: ``search check --pictures OUT.png``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from search.errors import UsageError
from studies import Range, StudySpec
from studies.axes import annotation_of
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.errors import no_room

ROWS, COLUMNS = 6, 9
"""Size of the grid. The first picture of each row is plain; the others are random augmentations of the first."""

SHOWN = (
    *("hflip", "vflip", "rotate", "rotations", "shift", "scale", "crop_padding", "random_crop", "random_resized_crop"),
    *("erase", "brightness", "mixup", "cutmix", "mix_alpha"),
)
"""The settings that alter pictures. If the study samples one of them, its value changes from column to column."""

CELL_PIXELS = 112
GAP_PIXELS = 4


def check_figure(option: str, file: Path) -> None:
    """Check that a PNG can be written, before the long computation of what it shows.

    Args:
        option: the option that named the file, for the message.
        file: the PNG.

    Raises:
        UsageError: the file cannot be written.
    """
    if file.suffix.lower() != ".png":
        raise UsageError(f"{option} {file}: the picture is a PNG; give it a name that ends in .png")
    if not file.parent.is_dir():
        raise UsageError(f"{option} {file}: there is no folder {file.parent}; create it first")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"{option} {file} cannot be written; choose another file")


def save_figure(option: str, file: Path, save: Callable[[Path], object]) -> None:
    """Write a figure.

    Args:
        option: the option that named the file, for the message.
        file: the PNG.
        save: writes the figure into a file.

    Raises:
        DiskError: the disk is full.
        UsageError: the file cannot be written.
    """
    try:
        save(file)
    except OSError as error:
        if full := no_room(error, file):
            raise full from error
        raise UsageError(f"{option} {file} cannot be written ({error.strerror}); choose another file") from error


def draw_images(spec: StudySpec, data: Dataset, out: Path) -> str:
    """Draw the grid with the same code that training uses. Returns a sentence about the figure.

    Raises:
        ConfigError: the augmentation cannot be built.
        DiskError, UsageError: the file cannot be written.
    """
    import torch

    from trainer.augment import Augmentation
    from trainer.device import open_device

    device = open_device("cpu")
    recipes = [_recipe_at(spec, number / (COLUMNS - 2)) for number in range(COLUMNS - 1)]
    augmentations = [Augmentation(one, device, data.mean, data.std, data.shape.image_size) for one in recipes]
    train = data.splits["train"]
    chosen = train[np.linspace(0, len(train) - 1, ROWS).astype(int)]
    images, labels = data.images[chosen], torch.from_numpy(data.labels[chosen])
    columns = [augmentations[0](images, labels, plain=True).images]
    for number, augment in enumerate(augmentations, 1):
        seed = (spec.seed, spec.train.augment_from_epoch, number)
        columns.append(augment(augment.on_host(images, *seed), labels, *seed).images)
    mean = torch.tensor(data.mean).view(1, -1, 1, 1)
    std = torch.tensor(data.std).view(1, -1, 1, 1)
    step = CELL_PIXELS + GAP_PIXELS
    sheet = Image.new("RGB", (COLUMNS * step - GAP_PIXELS, ROWS * step - GAP_PIXELS), "white")
    for column, drawn in enumerate(columns):
        shown = ((drawn * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
        for row, image in enumerate(shown):
            cell = Image.fromarray(image.squeeze()).convert("RGB")
            small = cell.width < CELL_PIXELS  # small pictures are enlarged without smoothing
            filter = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
            sheet.paste(cell.resize((CELL_PIXELS, CELL_PIXELS), filter), (column * step, row * step))
    save_figure("--pictures", out, sheet.save)
    sampled = ", ".join(key for key in SHOWN if key in spec.space)
    told = f"; from left to right, {sampled} from the first value of the space to the last" if sampled else ""
    return f"wrote {out}: plain pictures on the left, then {device.executor(recipes[-1])}{told}"


def _recipe_at(spec: StudySpec, share: float) -> TrainConfig:
    """The fixed recipe, with each sampled setting of ``SHOWN`` at this share of its range, or of its choices."""
    sampled: dict[str, object] = {}
    for key in SHOWN:
        axis = spec.space.get(key)
        if isinstance(axis, Range):
            assert axis.high is not None, "only width_mult may have no upper end"
            value = axis.low + share * (axis.high - axis.low)
            sampled[key] = round(value) if annotation_of(key) is int else value
        elif axis is not None:
            sampled[key] = axis[round(share * (len(axis) - 1))]
    return TrainConfig.model_validate(spec.train.model_dump() | sampled)
