"""Every word that a setting may be does something, and a word without code for it is an error at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices import UNKNOWN, choices_of, with_word
from PIL import Image
from torch import nn

from trainer.config import DataConfig, TrainConfig
from trainer.data import prepare_data
from trainer.device import open_device
from trainer.errors import ConfigError, DataError
from trainer.evaluate import view_of
from trainer.losses import build_loss, weights_of
from trainer.models import is_stock
from trainer.optim import build_optimizer, learning_rate
from trainer.order import order_of_epoch
from trainer.pictures import crop_mode_of, mode_of, read_picture
from trainer.views import PLAIN_VIEWS, View, Views

# Training

COUNTS = np.array([6, 2, 1])
LABELS = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2])

TRAIN_USES: dict[str, Callable[[TrainConfig], object]] = {
    "stem": lambda config: [is_stock(config)],
    "optimizer": lambda config: build_optimizer(config, nn.Linear(2, 2)),
    "loss": lambda config: build_loss(config, COUNTS, torch.device("cpu"))(torch.zeros(2, 3), LABELS[[0, 6]]).item(),
    "class_weights": lambda config: [weights_of(config, COUNTS)],
    "class_sampling": lambda config: order_of_epoch(config, np.arange(9), LABELS.numpy(), 1).tolist(),
    "schedule": lambda config: learning_rate(config, 25, 10, [1.0, 1.0]),
    "precision": lambda config: open_device("cpu").choices(config, np.zeros((1, 8, 8, 3), np.uint8)),
}


def test_each_choice_of_a_training_is_used_here() -> None:
    assert TRAIN_USES.keys() == choices_of(TrainConfig).keys()


@pytest.mark.parametrize(
    ("setting", "word"), [(name, word) for name, words in choices_of(TrainConfig).items() for word in words]
)
def test_each_word_of_a_training_has_code(setting: str, word: object) -> None:
    config = with_word(TrainConfig, setting, word, epochs=4, milestones=[0.5])
    assert TRAIN_USES[setting](config)


@pytest.mark.parametrize("setting", TRAIN_USES)
def test_a_word_without_code_ends_a_training(setting: str) -> None:
    with pytest.raises(AssertionError, match=UNKNOWN):
        TRAIN_USES[setting](with_word(TrainConfig, setting, UNKNOWN))


def test_each_optimizer_is_another_one_and_so_are_losses_and_schedules() -> None:
    kinds = {type(TRAIN_USES["optimizer"](with_word(TrainConfig, "optimizer", word))) for word in words("optimizer")}
    assert len(kinds) == len(words("optimizer"))
    values = {TRAIN_USES["loss"](with_word(TrainConfig, "loss", word)) for word in words("loss")}
    assert len(values) == len(words("loss"))
    for setting in ("class_weights", "class_sampling"):
        seen = {str(TRAIN_USES[setting](with_word(TrainConfig, setting, word))) for word in words(setting)}
        assert len(seen) == len(words(setting))
    shared = {"epochs": 12, "milestones": [0.1, 0.3], "step_epochs": 2, "step_gamma": 0.5, "plateau_patience": 1}
    rates = {
        tuple(
            learning_rate(with_word(TrainConfig, "schedule", word, **shared), step, 1, [1.0] * step)
            for step in range(12)
        )
        for word in words("schedule")
    }
    assert len(rates) == len(words("schedule"))


def words(setting: str) -> tuple[Any, ...]:
    return choices_of(TrainConfig)[setting]


def test_each_precision_of_a_forward_pass_is_chosen_or_refused() -> None:
    cpu = open_device("cpu")
    for word in words("precision"):
        config = with_word(TrainConfig, "precision", word)
        if word in ("bf16", "fp16"):
            with pytest.raises(ConfigError, match="needs a GPU that has it"):
                cpu.autocast(config)
        else:
            cpu.autocast(config)
    with pytest.raises(AssertionError, match=UNKNOWN):
        cpu.autocast(with_word(TrainConfig, "precision", UNKNOWN))


# Images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three images, and a file that is none."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("light", "dark")):
        (root / name).mkdir()
        for shade in range(3):
            Image.new("RGB", (12, 16), (200 * number + shade, shade, 7)).save(root / name / f"{shade}.png")
    return root


DATA_SETTINGS = ("source", "resize", "interpolation", "channels", "background", "normalize", "bad_files")


def test_each_choice_of_the_images_is_used_here() -> None:
    assert set(DATA_SETTINGS) == choices_of(DataConfig).keys()


def use(setting: str, word: object, folder: Path, cache: Path) -> object:
    """Decode, split and normalise images with one setting that is a word."""
    path = None if word == "digits" else str(folder)
    config = with_word(DataConfig, setting, word, image_size=8, path=None)
    data = prepare_data(config.model_copy(update={"path": path}), cache)
    return data.images.tobytes(), data.mean, data.names


@pytest.mark.parametrize("setting", DATA_SETTINGS)
def test_each_word_of_the_images_has_code_and_another_one_has_not(setting: str, folder: Path, tmp_path: Path) -> None:
    for word in choices_of(DataConfig)[setting]:
        assert use(setting, word, folder, tmp_path)
    unknown = 2 if setting == "channels" else UNKNOWN
    with pytest.raises((AssertionError, DataError), match=f"(?s)unreachable.*{unknown}"):
        use(setting, unknown, folder, tmp_path)


@pytest.mark.parametrize("setting", ["resize", "interpolation", "channels"])
def test_each_word_of_how_an_image_is_read_reads_it_otherwise(setting: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8))
    allowed = choices_of(DataConfig)[setting]
    read = {read_picture(image, with_word(DataConfig, setting, word, image_size=8)).tobytes() for word in allowed}
    assert len(read) == len(allowed)


def test_each_way_to_become_square_has_timms_name_and_each_number_of_channels_pillows() -> None:
    modes = {crop_mode_of(with_word(DataConfig, "resize", word)) for word in choices_of(DataConfig)["resize"]}
    assert modes == {"center", "squash"}
    names = {mode_of(with_word(DataConfig, "channels", word)) for word in choices_of(DataConfig)["channels"]}
    assert names == {"RGB", "L"}


# Export


def test_each_view_of_an_image_is_another_one() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4)
    image = image.expand(1, 3, 3, 4) * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    names = (*PLAIN_VIEWS, "rotate=10", "shift=1,-1")
    views = Views(names, (0.5,) * 3, (0.2,) * 3, (0.1, 0.0, 0.0))
    seen = {tuple(view_of(image, View.parse(name), views).flatten().tolist()) for name in names}
    assert len(seen | {tuple(image.flatten().tolist())}) == len(names) + 1
    with pytest.raises(AssertionError, match=UNKNOWN):
        view_of(image, View(UNKNOWN), views)
