"""Every setting the winning teams turned, in a real training: it does what its name says, also when interrupted."""

from __future__ import annotations

import itertools
import math
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fast import slow_after
from PIL import Image
from short import at, config_of

import studies
import trainer.data
from trainer.config import DataConfig, TrainConfig
from trainer.data import Dataset, open_data, prepare_data
from trainer.device import Device
from trainer.errors import DataError
from trainer.fit import Training, fit, fit_folds, sweep_lr
from trainer.models import has_width

# Trainings


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("wrn-16-4", {}),
        ("wrn-28-3", {}),
        ("wrn-10-5", {}),
        ("mobilevit_xxs", {}),
        ("resnet18", {"growth": 1.5, "width_mult": 0.25}),
        ("efficientnet_b0", {"drop_path": 0.4, "width_mult": 0.3}),
        ("nf_regnet_b0", {"agc": 0.05}),
        ("nf_regnet_b1", {"agc": 0.05}),
    ],
)
def test_each_family_learns_a_batch(model: str, settings: dict[str, Any], digits: Dataset, cpu: Device) -> None:
    few = replace(digits, splits={"train": digits.splits["train"][:8], "val": digits.splits["val"]})
    training = Training(TrainConfig.model_validate({"model": model, "optimizer": "adam"} | settings), few, cpu)
    training.model.train()
    losses = [training.step(batch, 1e-3)[0].item() for epoch in range(1, 5) for batch in training.batches(epoch)]
    assert losses[-1] < losses[0]


def test_early_stopping_ends_patience_epochs_after_the_best(digits: Dataset, cpu: Device) -> None:
    results = list(fit(config_of(epochs=30, lr=1e-2, patience=2, model="resnet10t"), digits, cpu))
    accuracies = [result.val_accuracy for result in results]
    assert len(results) < 30
    assert len(results) - 1 - accuracies.index(max(accuracies)) == 2
    assert [result.final for result in results] == [False] * (len(results) - 1) + [True]


def test_the_first_epochs_can_be_plain(digits: Dataset, cpu: Device) -> None:
    heavy: dict[str, Any] = {"rotate": 90, "erase": 1, "augment": ["RandAugment"], "mixup": 1}
    plain = list(fit(config_of(), digits, cpu))
    late = list(fit(config_of(**heavy, augment_from_epoch=2), digits, cpu))
    assert late[0].train_loss == plain[0].train_loss
    assert late[1].train_loss > plain[1].train_loss


def test_augmented_epochs_are_spread_evenly_over_a_training() -> None:
    def augmented(share: float, epochs: int) -> list[int]:
        return [epoch for epoch in range(1, epochs + 1) if config_of(augment_share=share).is_augmented(epoch)]

    assert augmented(1.0, 4) == [1, 2, 3, 4]
    assert augmented(0.5, 8) == [2, 4, 6, 8]
    assert augmented(0.75, 8) == [2, 3, 4, 6, 7, 8]
    assert augmented(0.0, 8) == []
    for percent in range(101):
        assert len(augmented(percent / 100, 100)) == percent, "as many as asked for, whatever floats round to"


def test_the_epochs_between_are_plain_to_the_last_bit(digits: Dataset, cpu: Device) -> None:
    heavy: dict[str, Any] = {"rotate": 90, "erase": 1, "augment": ["RandAugment"], "mixup": 1}

    def first_batches(**settings: Any) -> list[torch.Tensor]:
        training = Training(config_of(**settings), digits, cpu)
        return [next(iter(training.batches(epoch))).images for epoch in (1, 2, 3, 4)]

    plain, all_, half = first_batches(), first_batches(**heavy), first_batches(**heavy, augment_share=0.5)
    assert [torch.equal(one, other) for one, other in zip(half, plain, strict=True)] == [True, False, True, False]
    assert [torch.equal(one, other) for one, other in zip(half, all_, strict=True)] == [False, True, False, True]


def test_the_averaged_weights_are_what_is_evaluated_and_kept(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    with_average = list(fit(config_of(ema=0.97), digits, cpu, checkpoint=tmp_path / "a"))
    without = list(fit(config_of(), digits, cpu, checkpoint=tmp_path / "b"))
    assert [r.train_loss for r in with_average] == [r.train_loss for r in without]
    assert with_average[-1].val_loss != without[-1].val_loss
    assert not torch.equal(at(tmp_path / "a").weights["conv1.0.weight"], at(tmp_path / "b").weights["conv1.0.weight"])


def test_the_learning_rate_rises_evenly_in_the_logarithm(digits: Dataset, cpu: Device) -> None:
    pairs = list(sweep_lr(config_of(), digits, cpu, 1e-5, 10.0, 13))
    assert [lr for lr, _ in pairs] == pytest.approx([10 ** (-5 + number / 2) for number in range(13)])
    losses = [loss for _, loss in pairs]
    assert min(losses[:10]) < losses[0]
    assert losses[-1] > min(losses) or not math.isfinite(losses[-1])


@pytest.mark.parametrize(
    "recipe",
    [
        {"mixup": 0.5, "cutmix": 0.5, "sam": {"rho": 0.5, "adaptive": True}, "dropout": 0.2},
        {"clip": 0.5, "agc": 0.02, "augment": ["RandAugment"], "rotate": 20, "augment_from_epoch": 2},
    ],
)
def test_a_range_test_at_one_rate_is_a_training_step_by_step(
    recipe: dict[str, Any], digits: Dataset, cpu: Device
) -> None:
    config = config_of(**recipe, optimizer="sgd", lr=0.05, schedule="constant")
    results = list(fit(config, digits, cpu))
    losses = [loss for _, loss in sweep_lr(config, digits, cpu, 0.05, 0.05, 12)]
    assert [np.mean(losses[:6]), np.mean(losses[6:])] == pytest.approx([r.train_loss for r in results], rel=1e-6)


# Interrupted


ON_ONE_CORE = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
"""torch warns of more loader processes than cores, which is no matter where they are to change nothing."""


SAM, ASAM, MIXUP, CUTMIX = (
    {"sam": {"rho": 0.05}},
    {"sam": {"rho": 0.5, "adaptive": True}},
    {"mixup": 0.5},
    {"cutmix": 0.5},
)
EMA: dict[str, Any] = {"ema": 0.9}
NONE: dict[str, Any] = {}
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "plateau": {"plateau_patience": 1},  # looks back at the losses
    "warm_restarts": {"step_epochs": 1},
}
COVERING: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("nadam", "cosine", EMA, SAM, MIXUP),
    ("sgd", "plateau", EMA, NONE, CUTMIX),
    ("adamw", "warm_restarts", NONE, ASAM, MIXUP),
    ("adam", "cosine", EMA, ASAM, NONE),
    ("adam", "plateau", NONE, NONE, MIXUP),
    ("adam", "warm_restarts", EMA, SAM, CUTMIX),
    ("adamw", "cosine", EMA, NONE, CUTMIX),
    ("adamw", "plateau", NONE, SAM, NONE),
    ("nadam", "plateau", EMA, ASAM, NONE),
    ("nadam", "warm_restarts", NONE, NONE, CUTMIX),
    ("sgd", "cosine", NONE, ASAM, MIXUP),
    ("sgd", "warm_restarts", NONE, SAM, NONE),
    ("rmsprop", "cosine", EMA, ASAM, CUTMIX),
    ("rmsprop", "plateau", NONE, SAM, MIXUP),
    ("rmsprop", "warm_restarts", EMA, NONE, NONE),
]
"""Each pair of settings from two columns is in some row."""


def test_the_rows_cover_every_pair() -> None:
    for one, other in itertools.combinations(zip(*COVERING, strict=True), 2):
        pairs = {(str(a), str(b)) for a, b in zip(one, other, strict=True)}
        assert len(pairs) == len({str(a) for a in one}) * len({str(b) for b in other})


@pytest.mark.parametrize(("optimizer", "schedule", "ema", "sam", "mixing"), slow_after(3, COVERING))
def test_an_interruption_changes_no_bit_of_any_recipe(
    optimizer: str,
    schedule: str,
    ema: dict[str, Any],
    sam: dict[str, Any],
    mixing: dict[str, Any],
    digits: Dataset,
    cpu: Device,
    tmp_path: Path,
) -> None:
    settings = {"optimizer": optimizer, "schedule": schedule, **SCHEDULES[schedule], **ema, **sam, **mixing}
    config = config_of(**settings, lr=1e-3, epochs=3, dropout=0.2, rotate=10, hflip=0.5, batch_size=43)
    assert_resumes_bit_for_bit(config, digits, cpu, cpu, tmp_path)


@ON_ONE_CORE
@pytest.mark.slow
def test_an_interruption_changes_no_bit_with_another_number_of_loaders_and_every_clipping(
    digits: Dataset, cpu: Device, tmp_path: Path
) -> None:
    config = config_of(
        **{"optimizer": "sgd", "augment": ["AutoAugment"], "mixup": 0.5, "drop_path": 0.2, "clip": 1.0, "agc": 0.02},
        **{"epochs": 3, "batch_size": 43},
    )
    assert_resumes_bit_for_bit(config, digits, cpu, replace(cpu, num_loaders=2), tmp_path)


def assert_resumes_bit_for_bit(config: TrainConfig, data: Dataset, device: Device, other: Device, folder: Path) -> None:
    """Uninterrupted on one device, and cut after the first epoch and resumed on the other; on a few of the pictures."""
    data = replace(data, splits={"train": data.splits["train"][:86], "val": data.splits["val"][:40]})
    straight = list(fit(config, data, device, checkpoint=folder / "straight"))
    first = fit(config, data, device, checkpoint=folder / "cut")
    next(first)
    first.close()  # type: ignore[attr-defined]
    torch.manual_seed(12345)
    resumed = list(fit(config, data, other, checkpoint=folder / "cut"))
    assert [r.train_loss for r in resumed] == [r.train_loss for r in straight]
    assert [r.val_loss for r in resumed] == [r.val_loss for r in straight]
    one, two = tensors(folder / "straight"), tensors(folder / "cut")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All weights, averages and moments of a checkpoint."""
    checkpoint = at(path)
    found = {f"model {name}": tensor for name, tensor in checkpoint.model.items()}
    found |= {f"ema {name}": tensor for name, tensor in (checkpoint.ema or {}).items()}
    for number, entry in checkpoint.optimizer["state"].items():
        found |= {f"optimizer {number} {name}": torch.as_tensor(value) for name, value in entry.items()}
    return found


# Pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_and_colour_with_the_data_sets_own_statistics(channels: int, tmp_path: Path, cpu: Device) -> None:
    config = DataConfig(
        source="digits", image_size=16, channels=channels, normalize="dataset", val_fraction=0.1, test_fraction=0.8
    )
    data = prepare_data(config, tmp_path)
    pixels = data.images[data.splits["train"]].reshape(-1, channels) / 255
    assert data.mean == pytest.approx(pixels.mean(axis=0))
    assert data.std == pytest.approx(pixels.std(axis=0))
    (result,) = fit(config_of(epochs=1), data, cpu)
    assert math.isfinite(result.train_loss)


def test_folds_give_each_picture_one_turn_in_validation_and_the_mean(
    digits: Dataset, cpu: Device, tmp_path: Path
) -> None:
    parts = [digits.fold(number, 3, seed=0) for number in range(3)]
    pool = np.sort(np.concatenate([digits.splits["train"], digits.splits["val"]]))
    assert np.array_equal(np.sort(np.concatenate([part.splits["val"] for part in parts])), pool)
    for part in parts:
        assert not set(part.splits["train"]) & set(part.splits["val"])
        shares = np.bincount(digits.labels[part.splits["val"]], minlength=10)
        assert shares.max() - shares.min() <= 3
    config = config_of(epochs=1)
    results = list(fit_folds(config, digits, cpu, folds=3, seed=0, checkpoint=tmp_path / "checkpoint"))
    alone = [next(fit(config, part, cpu)).val_accuracy for part in parts]
    assert [r.epoch for r in results] == [1, 2, 3]
    assert results[-1].val_accuracy == pytest.approx(np.mean(alone))
    assert [r.final for r in results] == [False, False, True]
    with pytest.raises(DataError, match="each fold needs one; use fewer folds"):
        digits.fold(0, 400, seed=0)


# The shipped recipes


def test_a_channel_that_never_changes_is_divided_by_a_level_and_not_by_nothing(tmp_path: Path, cpu: Device) -> None:
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            pixels[..., 2] = 0
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    config = DataConfig(path=str(root), image_size=16, normalize="dataset", val_fraction=0.3)
    data = prepare_data(config, tmp_path / "cache")
    assert (data.mean[2], data.std[2]) == (0, 1 / 255)
    (result,) = fit(config_of(epochs=1), data, cpu)
    assert math.isfinite(result.train_loss)


def test_statistics_are_found_where_nobody_may_write_them_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="digits", image_size=16, normalize="dataset", val_fraction=0.1, test_fraction=0.8)
    expected = prepare_data(config, tmp_path)
    (written,) = expected.cache_path.glob("statistics-*.json")
    written.unlink()

    def refused(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trainer.data, "write_checked", refused)  # root may write anywhere
    found = open_data(config, expected.cache_path)
    assert (found.mean, found.std) == (expected.mean, expected.std)
    assert not written.exists()


@pytest.fixture(scope="module")
def gray_digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = DataConfig(source="digits", image_size=16, channels=1, val_fraction=0.1, test_fraction=0.8)
    return prepare_data(config, tmp_path_factory.mktemp("gray"))


KNOWN = [(name, number) for name in studies.names() for number in range(len(studies.load(name).known) or 1)]


@pytest.mark.parametrize(("name", "number"), KNOWN)
def test_a_shipped_recipe_trains_a_step_at_its_own_settings(
    name: str, number: int, digits: Dataset, gray_digits: Dataset, cpu: Device
) -> None:
    """The real recipe with its known values, on a narrow net and few pictures, for one epoch."""
    spec = studies.load(name)
    recipe = dict(spec.known[number]) if spec.known else {}
    config = spec.config_for(recipe, 0)
    narrow = {"width_mult": 0.1 if config.model == "resnet18" else 0.3} if has_width(config.model) else {}
    short: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0.0, "batch_size": 32, "augment_from_epoch": 1}
    data = gray_digits if spec.data.channels == 1 else digits
    few = replace(data, splits={**data.splits, "train": data.splits["train"][:64]})
    (result,) = fit(config.model_copy(update=short | narrow), few, cpu)
    assert math.isfinite(result.train_loss)


def test_each_thing_the_teams_did_is_in_a_shipped_recipe() -> None:
    """By what a study fixes, samples or knows."""
    specs = {name: studies.load(name) for name in studies.names()}
    configs = [spec.config_for(recipe, 0) for spec in specs.values() for recipe in (spec.known or ({},))]
    for setting in ("optimizer", "schedule", "loss"):
        offered = set(typing.get_args(TrainConfig.model_fields[setting].annotation)) - {"focal"}  # of no team
        assert {getattr(config, setting) for config in configs} == offered, setting
    names = {config.model for config in configs}
    assert {"rexnet_100", "resnet18", "efficientnet_b0", "wrn-40-2", "nf_regnet_b1"} <= names
    assert {config.sam.adaptive for config in configs if config.sam} == {False, True}
    default = TrainConfig()
    used = {
        key for config in configs for key in TrainConfig.model_fields if getattr(config, key) != getattr(default, key)
    }
    used |= {key for spec in specs.values() for key in spec.space}
    assert used >= {"depth_mult", "initial_chs", "final_chs", "growth", "dropout", "drop_path", "agc", "clip", "ema"}
    assert used >= {"mixup", "cutmix", "augment", "augment_from_epoch", "patience", "rotations", "milestones"}
    (restarts,) = (config for config in configs if config.schedule == "warm_restarts" and config.lr == 0.01)
    assert (restarts.step_epochs, restarts.cycle_mult, restarts.warmup_epochs, restarts.step_gamma) == (9, 2, 2, 0.4)
    (wide,) = (config for config in configs if config.model == "wrn-40-2")
    assert (wide.milestones, wide.step_gamma) == ((0.3, 0.5, 0.7, 0.9), 0.2)
    assert any(spec.limit.macs for spec in specs.values())
    assert any(spec.data.folds and spec.data.channels == 1 for spec in specs.values())


def test_birds_are_never_flipped_upside_down() -> None:
    for name in studies.names():
        if name.startswith(("birds", "contest/")):
            assert studies.load(name).train.vflip == 0
