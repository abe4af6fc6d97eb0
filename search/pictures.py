"""A grid of training pictures as the model will see them: ``search check --pictures OUT.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from search.launch import prepare
from search.paths import Runs
from studies import StudySpec

ROWS, COLUMNS = 6, 9
"""Pictures in the grid: the first of each row is plain, the others are draws of its augmentation."""

CELL_PIXELS = 112
GAP_PIXELS = 4


def draw_pictures(spec: StudySpec, runs: Runs, out: Path) -> str:
    """Draw the grid, through the very code that training runs; returns a sentence about it.

    Raises:
        TrainerError: the pictures cannot be read, or the augmentation cannot be built.
    """
    data = prepare(spec, runs, Console(stderr=True)).data

    import torch

    from trainer.augment import Augmentation
    from trainer.device import open_device

    device = open_device("cpu")
    augment = Augmentation(spec.train, device, data.mean, data.std)
    train = data.splits["train"]
    chosen = train[np.linspace(0, len(train) - 1, ROWS).astype(int)]
    pictures, labels = data.images[chosen], torch.from_numpy(data.labels[chosen])
    columns = [augment(pictures, labels, plain=True).images]
    for number in range(1, COLUMNS):
        seed = (spec.seed, spec.train.augment_from_epoch, number)
        columns.append(augment(augment.on_host(pictures, *seed), labels, *seed).images)
    mean = torch.tensor(data.mean).view(1, -1, 1, 1)
    std = torch.tensor(data.std).view(1, -1, 1, 1)
    step = CELL_PIXELS + GAP_PIXELS
    sheet = Image.new("RGB", (COLUMNS * step - GAP_PIXELS, ROWS * step - GAP_PIXELS), "white")
    for column, images in enumerate(columns):
        shown = ((images * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
        for row, picture in enumerate(shown):
            cell = Image.fromarray(picture.squeeze()).convert("RGB")
            small = cell.width < CELL_PIXELS  # enlarged pixels stay pixels
            filter = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
            sheet.paste(cell.resize((CELL_PIXELS, CELL_PIXELS), filter), (column * step, row * step))
    sheet.save(out)
    return f"wrote {out}: plain pictures on the left, then {device.executor(spec.train)}"
