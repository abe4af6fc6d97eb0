"""Every setting the winning teams turned, each with a real model and a real step: it does what its name says."""

from __future__ import annotations

import copy
import itertools
import math
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.loss import AsymmetricLossSingleLabel
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import studies
from trainer.checkpoint import load_checkpoint
from trainer.config import DataConfig, ModelSize, TrainConfig
from trainer.data import Dataset, prepare_data
from trainer.device import Device
from trainer.errors import ConfigError, DataError
from trainer.fit import Training, fit, fit_folds, sweep_lr
from trainer.models import build_model, count, count_params, has_width, is_stock, model_args
from trainer.optim import Ascent, WeightAverage, build_loss, build_optimizer, learning_rate, limit_gradient

SMALL: dict[str, Any] = {"model": "resnet10t", "width_mult": 0.125, "epochs": 2, "batch_size": 64, "lr": 5e-3}


def config_of(**settings: Any) -> TrainConfig:
    return TrainConfig.model_validate(SMALL | settings)


def loaded(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(path)
    assert checkpoint is not None
    return checkpoint.weights


@pytest.fixture
def step() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small net with batch norm, pictures and labels."""
    torch.manual_seed(0)
    return build_model(config_of(), 4, 16), torch.randn(8, 3, 16, 16), torch.arange(8) % 4


# Models


@pytest.mark.parametrize("model", ["rexnet_100", "rexnetr_100"])
@pytest.mark.parametrize("settings", [{}, {"depth_mult": 1.3}, {"initial_chs": 24, "final_chs": 140}])
def test_rexnets_closed_form_counts_what_timm_builds(model: str, settings: dict[str, Any]) -> None:
    for width, size in zip((0.2, 0.93, 1.6), (64, 33, 7), strict=True):
        config = TrainConfig.model_validate({"model": model, "width_mult": width, **settings})
        built = build_model(config, 37, size, 1, device="meta").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(torch.empty(1, 1, size, size, device="meta"))
        params = sum(parameter.numel() for parameter in built.parameters())
        assert count(config, 37, size, 1) == ModelSize(params=params, macs=counter.get_total_flops() // 2)
        assert count_params(config, 37, size, 1) == params


def test_a_resnets_filters_grow_by_the_stated_factor() -> None:
    config = TrainConfig(model="resnet18", growth=1.5)
    assert model_args(config, 64)["channels"] == [64, 96, 144, 216]
    assert is_stock(config)


def test_an_efficientnet_of_scale_one_is_timms_and_a_wider_one_is_not() -> None:
    stock, wide = TrainConfig(model="efficientnet_b0"), TrainConfig(model="efficientnet_b0", width_mult=1.05)
    expected = sum(p.numel() for p in timm.create_model("efficientnet_b0", num_classes=100).parameters())
    assert count(stock, 100, 64).params == expected
    assert is_stock(stock)
    assert not is_stock(wide)
    assert count(wide, 100, 64).params > expected
    with pytest.raises(ConfigError, match="stock timm cannot build efficientnet_b0"):
        model_args(wide.model_copy(update={"require_timm": True}), 64)


def test_depth_makes_an_efficientnet_deeper_in_whole_layers() -> None:
    sizes = [count(TrainConfig(model="efficientnet_b0", depth_mult=d), 10, 64).params for d in (1.01, 1.25, 1.4)]
    assert sizes[0] == sizes[1] < sizes[2]


@pytest.mark.parametrize(
    ("model", "params"),
    [("wrn-40-2", 2_243_546), ("wrn-16-4", 2_748_890)],
)
def test_wide_resnets_have_the_papers_size(model: str, params: int) -> None:
    """The paper's table 5 says 2.2M for 40-2 and 2.8M for 16-4, with 10 classes."""
    assert count(TrainConfig(model=model), 10, 32).params == params


def test_a_wide_resnet_of_another_depth_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"6 n \+ 4 layers.*not 41"):
        count(TrainConfig(model="wrn-41-2"), 10, 32)


def test_a_size_setting_that_the_family_does_not_have_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"growth = 1.5: vgg11 has no growth; use resnet18 or another"):
        model_args(TrainConfig(model="vgg11", growth=1.5), 64)


def test_drop_path_reaches_the_blocks() -> None:
    model = build_model(TrainConfig(model="efficientnet_b0", drop_path=0.4), 10, 32, device="meta")
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.4, abs=0.05)


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
    losses = [training.step(batch, 1e-3).item() for epoch in range(1, 5) for batch in training.batches(epoch)]
    assert losses[-1] < losses[0]


# Optimizers, SAM, clipping, averages, losses


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "sgd", "rmsprop"])
def test_each_optimizer_learns_a_batch(optimizer: str, step: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, images, labels = step
    config = config_of(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 3e-3, weight_decay=0.0)
    built = build_optimizer(config, model)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        built.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        built.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_climbs_by_rho_and_comes_back(adaptive: bool, step: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, images, labels = step
    ascent = Ascent(config_of(sam={"rho": 0.1, "adaptive": adaptive}), model)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    ascent.climb()
    moves = [after - before[name] for name, after in model.named_parameters()]
    if adaptive:  # Kwon et al., 2021: the move in units of the weights has norm rho
        sizes = [before[name].abs() for name, _ in model.named_parameters()]
        direction = [size**2 * gradient for size, gradient in zip(sizes, gradients, strict=True)]
        norm = torch.cat([(s * g).flatten() for s, g in zip(sizes, gradients, strict=True)]).norm()
    else:
        direction, norm = gradients, torch.cat([g.flatten() for g in gradients]).norm()
    for move, towards in zip(moves, direction, strict=True):
        assert torch.allclose(move, 0.1 * towards / norm, atol=1e-6)
    with torch.no_grad():
        assert F.cross_entropy(model(images), labels) > loss
    ascent.descend()
    for name, value in model.state_dict().items():  # batch norm's statistics too: the second pass does not count
        if "num_batches" not in name:
            assert torch.allclose(value, before[name], atol=1e-6), name


def test_the_gradients_norm_is_clipped(step: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, images, labels = step
    (100 * F.cross_entropy(model(images), labels)).backward()  # type: ignore[no-untyped-call]
    limit_gradient(config_of(clip=0.5), model)
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)


def test_adaptive_clipping_bounds_each_units_gradient_by_its_weight_but_the_classifiers(
    step: tuple[nn.Module, torch.Tensor, torch.Tensor],
) -> None:
    model, images, labels = step
    (1000 * F.cross_entropy(model(images), labels)).backward()  # type: ignore[no-untyped-call]
    head = [p.grad.clone() for p in model.get_classifier().parameters()]  # type: ignore[operator]
    limit_gradient(config_of(agc=0.01), model)
    weight = model.layer1[0].conv1.weight  # type: ignore[index, union-attr]
    ratios = weight.grad.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)  # type: ignore[union-attr]
    assert ratios.max() <= 0.0101
    after = [p.grad for p in model.get_classifier().parameters()]  # type: ignore[operator]
    assert all(torch.equal(*pair) for pair in zip(head, after, strict=True))


def test_the_average_of_the_weights_follows_its_formula(step: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, *_ = step
    average = WeightAverage(config_of(ema=0.9), model)
    expected = model.state_dict()["conv1.0.weight"].clone()
    for number in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(number)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.state_dict()["conv1.0.weight"]
    assert torch.allclose(average.model.state_dict()["conv1.0.weight"], expected, atol=1e-5)


def test_the_averaged_weights_are_what_is_evaluated_and_kept(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    with_average = list(fit(config_of(ema=0.97), digits, cpu, checkpoint=tmp_path / "a"))
    without = list(fit(config_of(), digits, cpu, checkpoint=tmp_path / "b"))
    assert [r.train_loss for r in with_average] == [r.train_loss for r in without]
    assert with_average[-1].val_loss != without[-1].val_loss
    assert not torch.equal(loaded(tmp_path / "a")["conv1.0.weight"], loaded(tmp_path / "b")["conv1.0.weight"])


def test_the_asymmetric_loss_is_timms_with_our_smoothing() -> None:
    logits, labels = torch.randn(5, 7), torch.arange(5)
    loss = build_loss(config_of(loss="asymmetric", label_smoothing=0.05))(logits, labels)
    assert torch.equal(loss, AsymmetricLossSingleLabel(eps=0.05)(logits, labels))


# Schedules, by their closed forms; 4 steps an epoch


def rates(**settings: Any) -> list[float]:
    config = config_of(**{"lr": 1.0, "epochs": 30, **settings})
    return [learning_rate(config, step, 4) for step in range(config.epochs * 4)]


def test_milestones_multiply_at_their_shares_of_the_epochs() -> None:
    got = rates(schedule="milestones", milestones=[0.3, 0.5, 0.7, 0.9], step_gamma=0.2)
    for epoch, expected in ((0, 1), (8, 1), (9, 0.2), (14, 0.2), (15, 0.04), (21, 0.008), (27, 0.0016)):
        assert got[4 * epoch] == pytest.approx(expected)


def test_step_lr_with_gamma_095_falls_every_epoch() -> None:
    got = rates(schedule="step", step_epochs=1, step_gamma=0.95)
    assert got[::4] == pytest.approx([0.95**epoch for epoch in range(30)])


def test_warm_restarts_have_cycles_of_9_and_18_epochs_with_warm_ups_and_falling_peaks() -> None:
    got = rates(schedule="warm_restarts", step_epochs=9, cycle_mult=2, step_gamma=0.4, warmup_epochs=2)
    assert got[8] == pytest.approx(1.0)  # the first peak, after two epochs of warm-up
    assert got[35] < 0.02
    assert got[36] == pytest.approx(0.4 / 9)  # the second cycle's warm-up begins
    assert got[44] == pytest.approx(0.4)
    assert got[4 * 27 - 1] < 0.01
    assert max(got[4 * 27 :]) == pytest.approx(0.16)
    middle = 0.5 * (1 + math.cos(math.pi * 14 / 28))
    assert got[8 + 14] == pytest.approx(middle)


def test_plateau_steps_after_patience_epochs_without_a_lower_loss() -> None:
    config = config_of(schedule="plateau", plateau_patience=2, step_gamma=0.5, lr=1.0)
    losses = [1.0, 0.9, 0.95, 0.91, 0.92, 0.93, 0.5]
    got = [learning_rate(config, 0, 4, losses[:known]) for known in range(len(losses) + 1)]
    assert got == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


# The loop


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
COVERING: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any], int]] = [
    ("adam", "cosine", EMA, ASAM, NONE, 0),
    ("adam", "plateau", NONE, NONE, MIXUP, 0),
    ("adam", "warm_restarts", EMA, SAM, CUTMIX, 1),
    ("adamw", "cosine", EMA, NONE, CUTMIX, 0),
    ("adamw", "plateau", NONE, SAM, NONE, 1),
    ("adamw", "warm_restarts", NONE, ASAM, MIXUP, 0),
    ("nadam", "cosine", EMA, SAM, MIXUP, 0),
    ("nadam", "plateau", EMA, ASAM, NONE, 0),
    ("nadam", "warm_restarts", NONE, NONE, CUTMIX, 1),
    ("sgd", "cosine", NONE, ASAM, MIXUP, 1),
    ("sgd", "plateau", EMA, NONE, CUTMIX, 0),
    ("sgd", "warm_restarts", NONE, SAM, NONE, 0),
    ("rmsprop", "cosine", EMA, ASAM, CUTMIX, 0),
    ("rmsprop", "plateau", NONE, SAM, MIXUP, 0),
    ("rmsprop", "warm_restarts", EMA, NONE, NONE, 1),
]
"""Each pair of settings from two columns is in some row; the last one is the loader processes after it is resumed."""


def test_the_rows_cover_every_pair() -> None:
    for one, other in itertools.combinations(zip(*COVERING, strict=True), 2):
        pairs = {(str(a), str(b)) for a, b in zip(one, other, strict=True)}
        assert len(pairs) == len({str(a) for a in one}) * len({str(b) for b in other})


@pytest.mark.parametrize(("optimizer", "schedule", "ema", "sam", "mixing", "num_loaders"), COVERING)
def test_an_interruption_changes_no_bit_of_any_recipe(
    optimizer: str,
    schedule: str,
    ema: dict[str, Any],
    sam: dict[str, Any],
    mixing: dict[str, Any],
    num_loaders: int,
    digits: Dataset,
    cpu: Device,
    tmp_path: Path,
) -> None:
    settings = {"optimizer": optimizer, "schedule": schedule, **SCHEDULES[schedule], **ema, **sam, **mixing}
    if num_loaders:
        settings["augment"] = ["AutoAugment"]
    config = config_of(**settings, lr=1e-3, epochs=3, dropout=0.2, rotate=10, hflip=0.5, batch_size=43)
    assert_resumes_bit_for_bit(config, digits, cpu, replace(cpu, num_loaders=num_loaders), tmp_path)


@ON_ONE_CORE
@pytest.mark.slow
def test_an_interruption_changes_no_bit_with_another_number_of_loaders_and_every_clipping(
    digits: Dataset, cpu: Device, tmp_path: Path
) -> None:
    config = config_of(
        optimizer="sgd", augment=["AutoAugment"], drop_path=0.2, clip=1.0, agc=0.02, epochs=3, batch_size=43
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
    checkpoint = load_checkpoint(path)
    assert checkpoint is not None
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


@pytest.fixture(scope="module")
def gray_digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = DataConfig(source="digits", image_size=16, channels=1, val_fraction=0.1, test_fraction=0.8)
    return prepare_data(config, tmp_path_factory.mktemp("gray"))


def test_crop_pct_resizes_and_then_crops_as_timm_does(tmp_path: Path) -> None:
    from PIL import Image

    from trainer.pictures import read_picture

    rng = np.random.default_rng(0)
    for width, height in ((90, 60), (61, 97), (40, 40), (200, 31)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for resize, mode in (("crop", "center"), ("squash", "squash")):
            ours = read_picture(
                picture, DataConfig.model_validate({"image_size": 28, "crop_pct": 0.875, "resize": resize})
            )
            theirs = timm.data.create_transform(
                (3, 28, 28), crop_pct=0.875, crop_mode=mode, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
            )(picture)
            assert np.array_equal(ours, (theirs * 255).round().byte().permute(1, 2, 0).numpy())


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
    with pytest.raises(DataError, match="each fold needs one of it"):
        digits.fold(0, 400, seed=0)


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


# The shipped recipes


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
        offered = set(typing.get_args(TrainConfig.model_fields[setting].annotation))
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
