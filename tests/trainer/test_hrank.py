"""Ranks of feature maps, and filters that are drawn again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import ConfigError
from trainer.fit import _derive
from trainer.hrank import Ranks, check_layer, convolutions, drawn_again, feature_maps, ranks_at
from trainer.models import build_model

CONFIG = TrainConfig(model="resnet10t", width_mult=0.1, seed=7)
LAYER = "layer2.0.conv1"


def weights_of(data: Dataset) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(CONFIG, data.shape).state_dict()


def test_the_maps_are_taken_after_what_follows_the_convolution_and_before_what_is_added_to_it(digits: Dataset) -> None:
    model = build_model(CONFIG, digits.shape).eval()
    kept: dict[str, torch.Tensor] = {}
    for name in ("layer2.0.act1", "layer2.0.bn2"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: kept.update({name: output.clone()})
        )
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(feature_maps(model, LAYER, images), kept["layer2.0.act1"])
    assert kept["layer2.0.act1"].min() == 0
    assert torch.equal(feature_maps(model, "layer2.0.conv2", images), kept["layer2.0.bn2"])
    assert not any(module._forward_pre_hooks for module in model.modules()), "no hook is left"


def test_the_maps_of_a_net_whose_normalisation_and_activation_are_one_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Hardtanh()), nn.AvgPool2d(2)).eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(feature_maps(net, "0", images), net[1](net[0](images)))


def test_only_convolutions_with_maps_of_more_than_a_pixel_are_layers(digits: Dataset) -> None:
    known = convolutions(CONFIG, digits.shape)
    assert known[LAYER] == build_model(CONFIG, digits.shape).get_submodule(LAYER).out_channels
    assert "layer4.0.conv1" not in known, "its maps are of one pixel at 16 px"
    check_layer(CONFIG, digits.shape, LAYER)
    with pytest.raises(
        ConfigError, match=r"'layer2.0.act1': resnet10t has no such convolution, or .*did you mean layer2"
    ):
        check_layer(CONFIG, digits.shape, "layer2.0.act1")


def test_ranks_are_those_of_numpy_and_a_filter_without_output_has_the_lowest(
    digits: Dataset, cpu: Device, tmp_path: Path
) -> None:
    weights, file = weights_of(digits), tmp_path / "ranks.json"
    weights["layer2.0.bn1.bias"][3] = -1e3  # its activation is zero everywhere
    found = ranks_at(LAYER, CONFIG, weights, digits, cpu, file)
    train = digits.splits["train"]
    chosen = train[:: -(-len(train) // 500)]
    assert found.values.shape == (len(chosen), found.filters)
    model = build_model(CONFIG, digits.shape).eval()
    model.load_state_dict(weights)
    images = torch.from_numpy(digits.images[chosen[[0, -1]]] / np.float32(255)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (digits.mean, digits.std))
    maps = feature_maps(model, LAYER, (images - mean) / std)
    assert found.values[[0, -1]].tolist() == np.linalg.matrix_rank(maps.numpy()).tolist()
    assert found.most == min(maps.shape[2:])
    assert not found.values[:, 3].any()
    assert found.lowest(1) == [3]

    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    again = ranks_at(LAYER, CONFIG, other, digits, cpu, file)
    assert np.array_equal(again.values, found.values), "a training that goes on has the ranks that it began with"
    file.write_bytes(file.read_bytes().replace(b"[", b"{", 1))
    with pytest.warns(UserWarning, match="the ranks are measured again"):
        assert not ranks_at(LAYER, CONFIG, other, digits, cpu, file).values.any()


def test_of_equal_ranks_the_first_filters_are_the_lowest() -> None:
    assert Ranks(np.array([[3, 1, 2, 1, 1]]), 3).lowest(2) == [1, 3]


def test_only_the_chosen_filters_are_drawn_again_and_not_as_the_training_began(digits: Dataset) -> None:
    weights, name = weights_of(digits), f"{LAYER}.weight"
    before = {key: tensor.clone() for key, tensor in weights.items()}
    found = drawn_again(CONFIG, digits.shape, weights, LAYER, [1, 4])
    assert all(torch.equal(weights[key], tensor) for key, tensor in before.items()), "the old weights are untouched"
    assert {key for key in found if not torch.equal(found[key], before[key])} == {name}
    changed = (found[name] != before[name]).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [1, 4]
    torch.manual_seed(_derive(CONFIG.seed, 0))
    assert not torch.equal(found[name][1], build_model(CONFIG, digits.shape).state_dict()[name][1])
    assert torch.equal(drawn_again(CONFIG, digits.shape, weights, LAYER, [1])[name][1], found[name][1])
