"""A teacher: how it is loaded, what it must know, and what its part of the loss is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch.nn import functional as F

from trainer.checkpoint import load_checkpoint
from trainer.config import Distill, Shape, TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.distill import moved, open_teacher
from trainer.errors import ConfigError
from trainer.evaluate import Ensemble, measure, predict_logits
from trainer.fit import Training, fit
from trainer.models import build_model
from trainer.sums import check_teacher, write_sums

BIG = TrainConfig(model="resnet10t", width_mult=0.2, epochs=4, batch_size=32, lr=1e-2)
SMALL = TrainConfig(model="resnet10t", width_mult=0.05, epochs=3, batch_size=32, lr=1e-2)


@pytest.fixture(scope="module")
def teacher(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an export of a trained net holds, as far as a student needs it."""
    from trainer.device import open_device

    checkpoint = tmp_path_factory.mktemp("teacher") / "checkpoint"
    list(fit(BIG, digits, open_device("cpu", 1), checkpoint=checkpoint))
    trained = load_checkpoint(checkpoint)
    assert trained is not None
    model = build_model(BIG, Shape(10, 16))
    model.load_state_dict(trained.weights)
    write_export(checkpoint.parent / "export", model, digits)
    return checkpoint.parent / "export"


def write_export(folder: Path, model: torch.nn.Module, data: Dataset, members: int = 1, **changes: Any) -> None:
    folder.mkdir()
    safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    config = {"label_names": list(data.class_names), "pretrained_cfg": {"mean": data.mean, "std": data.std}}
    config |= {"members": members} if members > 1 else {}
    (folder / "config.json").write_text(json.dumps(config | changes))
    metrics = {"config": BIG.model_dump(mode="json")}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_sums(folder)


def test_the_blend_is_hintons(digits: Dataset, cpu: Device, teacher: Path) -> None:
    settings = Distill(teacher=str(teacher), temperature=3.0, weight=0.4)
    loaded = open_teacher(settings, digits, cpu)
    torch.manual_seed(0)
    images, logits = torch.randn(6, 3, 16, 16), torch.randn(6, 10)
    with torch.no_grad():
        softened = F.softmax(loaded.model(images) / 3, dim=1)
    cross_entropy = -(softened * F.log_softmax(logits / 3, dim=1)).sum(1).mean()
    entropy = -(softened * softened.log()).sum(1).mean()
    expected = 0.6 * 2.0 + 0.4 * 9 * (cross_entropy - entropy)
    torch.testing.assert_close(loaded.blend(torch.tensor(2.0), logits, images), expected)


class Halved(Device):
    """A CPU with the precision of a GPU."""

    def autocast(self, config: TrainConfig) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)


def test_the_teacher_has_the_precision_of_the_training(digits: Dataset, teacher: Path) -> None:
    config = BIG.model_copy(update={"batch_size": 8, "distill": Distill(teacher=str(teacher))})
    training = Training(config, digits, Halved(torch.device("cpu"), 1))
    assert training.teacher is not None
    seen: list[torch.Tensor] = []
    training.teacher.model.register_forward_hook(lambda *hooked: seen.append(hooked[-1]))
    loss = training.step(next(training.batches(1)), 1e-3)[0]
    assert [(logits.dtype, logits.requires_grad) for logits in seen] == [(torch.bfloat16, False)]
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_a_student_learns_from_its_teacher_alone(digits: Dataset, cpu: Device, teacher: Path) -> None:
    """With the labels' share at zero and the labels shuffled, only the teacher says which digit is which."""
    train = digits.splits["train"]
    labels = digits.labels.copy()
    labels[train] = labels[train[::-1]]
    confused = replace(digits, labels=labels)
    distill = Distill(teacher=str(teacher), weight=1.0)
    taught = list(fit(SMALL.model_copy(update={"distill": distill}), confused, cpu))
    alone = list(fit(SMALL, confused, cpu))
    assert taught[-1].val_accuracy > 0.5 > alone[-1].val_accuracy


@pytest.mark.cuda
def test_a_student_on_a_gpu_learns_from_a_teacher(digits: Dataset, cuda: Device, teacher: Path) -> None:
    distill = Distill(teacher=str(teacher), weight=1.0)
    taught = list(fit(SMALL.model_copy(update={"distill": distill}), digits, cuda))
    assert taught[-1].val_accuracy > 0.5


def test_a_taught_training_resumes_bit_for_bit(digits: Dataset, cpu: Device, teacher: Path, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"epochs": 2, "mixup": 0.5, "distill": Distill(teacher=str(teacher))})
    straight = list(fit(config, digits, cpu))
    next(fit(config, digits, cpu, checkpoint=tmp_path / "checkpoint"))
    resumed = list(fit(config, digits, cpu, checkpoint=tmp_path / "checkpoint"))
    assert [result.train_loss for result in resumed] == [result.train_loss for result in straight]


def test_a_taught_training_goes_on_where_its_teacher_has_another_path(
    digits: Dataset, cpu: Device, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher, tmp_path / "here")
    distill = Distill(teacher=str(tmp_path / "here"))
    config = SMALL.model_copy(update={"epochs": 2, "distill": distill})
    straight = list(fit(config, digits, cpu))
    next(fit(config, digits, cpu, checkpoint=tmp_path / "checkpoint"))
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setitem(moved, distill.teacher, tmp_path / "there")
    resumed = list(fit(config, digits, cpu, checkpoint=tmp_path / "checkpoint"))
    assert [result.train_loss for result in resumed] == [result.train_loss for result in straight]


def test_a_teacher_with_another_normalisation_sees_the_same_picture(
    digits: Dataset, cpu: Device, teacher: Path, tmp_path: Path
) -> None:
    model = build_model(BIG, Shape(10, 16)).eval()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    write_export(tmp_path / "other", model, digits, pretrained_cfg={"mean": mean, "std": std})
    loaded = open_teacher(Distill(teacher=str(tmp_path / "other"), temperature=1.0, weight=1.0), digits, cpu)
    picture = torch.rand(2, 3, 16, 16)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (picture - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)

    with torch.no_grad():
        same = model(normalised(mean, std))
    blended = loaded.blend(torch.tensor(0.0), same, normalised(digits.mean, digits.std))
    assert float(blended) == pytest.approx(0.0, abs=1e-5)


def test_an_ensemble_can_teach(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    members = [build_model(BIG, Shape(10, 16)).eval() for _ in range(2)]
    write_export(tmp_path / "two", Ensemble(members), digits, members=2)
    loaded = open_teacher(Distill(teacher=str(tmp_path / "two")), digits, cpu)
    pictures = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(pictures), Ensemble(members)(pictures))


def test_a_timm_model_with_its_weights_can_teach(digits: Dataset, cpu: Device, tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=10).eval()
    timm.models.save_for_hf(model, str(tmp_path / "net"), safe_serialization=True)
    loaded = open_teacher(Distill(teacher=f"local-dir:{tmp_path / 'net'}"), digits, cpu)
    pictures = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(pictures), model(pictures))
    other = timm.create_model("resnet10t", num_classes=7)
    timm.models.save_for_hf(other, str(tmp_path / "seven"), safe_serialization=True)
    with pytest.raises(ConfigError, match="has 7 classes, these pictures have 10"):
        open_teacher(Distill(teacher=f"local-dir:{tmp_path / 'seven'}"), digits, cpu)


def test_a_teacher_that_cannot_teach_these_pictures_is_refused_in_a_sentence(
    digits: Dataset, cpu: Device, teacher: Path, tmp_path: Path
) -> None:
    write_export(tmp_path / "birds", build_model(BIG, Shape(10, 16)), digits, label_names=["a"] * 10)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    for name, sentence in {
        str(tmp_path / "birds"): "has other classes than these pictures",
        str(tmp_path / "half"): "is not an export that can be loaded",
        "~nobody-of-this-name/birds": "is neither an export nor a timm model",
        "resnet18x": "is neither an export nor a timm model; did you mean resnet18?",
    }.items():
        with pytest.raises(ConfigError, match=r"distill\.teacher") as caught:
            open_teacher(Distill(teacher=name), digits, cpu)
        assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "model.safetensors", "SHA256SUMS"])
def test_a_teacher_that_is_not_what_was_proven_is_refused(
    digits: Dataset, cpu: Device, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "export"
    write_export(folder, build_model(BIG, Shape(10, 16)), digits)
    check_teacher(str(folder))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    for refuses in (
        lambda: check_teacher(str(folder)),
        lambda: open_teacher(Distill(teacher=str(folder)), digits, cpu),
    ):
        with pytest.raises(ConfigError, match=r"^distill\.teacher .*; export again$"):
            refuses()


def test_a_training_can_begin_with_weights(digits: Dataset, cpu: Device, teacher: Path) -> None:
    """At a rate of nearly nothing it stays where it began."""
    start = safetensors.torch.load_file(teacher / "model.safetensors")
    model = build_model(BIG, Shape(10, 16)).eval()
    model.load_state_dict(start)
    metrics = measure(predict_logits(model, digits, "val", cpu), digits.labels[digits.splits["val"]])
    still = BIG.model_copy(update={"epochs": 1, "lr": 1e-12, "weight_decay": 0.0, "ema": 0.9999999})
    (result,) = fit(still, digits, cpu, start=start)
    assert metrics.accuracy > 0.6
    assert abs(result.val_accuracy - metrics.accuracy) < 0.15, "batch norm's statistics alone have moved"
    (random,) = fit(still, digits, cpu)
    assert random.val_accuracy < 0.4


def test_what_is_trained_on_can_be_chosen(digits: Dataset) -> None:
    splits = digits.splits
    both = digits.trained_on("train+val").splits
    assert sorted([*splits["train"], *splits["val"]]) == both["train"].tolist()
    assert both["val"].tolist() == splits["val"].tolist()
    assert digits.trained_on("val").splits["train"].tolist() == splits["val"].tolist()
    assert digits.trained_on("train").fingerprint == digits.fingerprint
    assert digits.trained_on("val").fingerprint != digits.fingerprint
