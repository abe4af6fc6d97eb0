"""The table of model families: what each entry promises, checked on its example, and the lists that follow from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import studies
from trainer.config import SIZE_SETTINGS, Shape, SizeSetting, TrainConfig
from trainer.errors import ConfigError
from trainer.families import FAMILIES, OTHER, Family, families_with, family_of
from trainer.models import build_model, count, count_params, dip, is_stock, model_args
from trainer.padding import Padding

ROOT = Path(__file__).parents[2]
SHAPE = Shape(10, 32)
OTHERS: dict[SizeSetting, float] = {
    "width_mult": 1.3,
    "depth_mult": 1.5,
    "initial_chs": 24,
    "final_chs": 140,
    "growth": 1.5,
}
"""A value for each setting that is not its default."""

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def candidate(family: Family, **settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"model": family.example, **settings})


def test_each_model_is_of_one_family() -> None:
    known = [*timm.list_models(), *(family.example for family in FAMILIES)]
    claimed = {model: [family.name for family in FAMILIES if re.fullmatch(family.pattern, model)] for model in known}
    assert {model: names for model, names in claimed.items() if len(names) > 1} == {}
    assert all(family_of(family.example) is family for family in (*FAMILIES, OTHER))


@each_family
def test_a_family_has_the_settings_of_its_entry_and_no_other(family: Family) -> None:
    stock = count_params(candidate(family), SHAPE)
    for setting in SIZE_SETTINGS:
        other = candidate(family, **{setting: OTHERS[setting]})
        if setting in family.settings:
            assert count_params(other, SHAPE) != stock
        else:
            with pytest.raises(ConfigError, match=f"^{setting} = .*: {family.example} has no .*or leave it out$"):
                count_params(other, SHAPE)


@each_family
def test_a_familys_size_is_that_of_the_net_that_is_built(family: Family) -> None:
    config = candidate(family, **({"width_mult": 0.7} if "width_mult" in family.settings else {}))
    net = build_model(config, SHAPE, "meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, *SHAPE.of_image, device="meta"))
    size = count(config, SHAPE)
    assert size.params == count_params(config, SHAPE) == sum(parameter.numel() for parameter in net.parameters())
    assert size.macs == counter.get_total_flops() // 2


@each_family
@pytest.mark.parametrize("is_scaled", [False, True])
def test_stock_timm_builds_what_the_entry_says(family: Family, is_scaled: bool) -> None:
    scale = {setting: OTHERS[setting] for setting in family.settings} if is_scaled else {}
    config = candidate(family, **scale, require_timm=True)
    expected = {"always": True, "unscaled": not is_scaled, "never": False}[family.stock]
    assert is_stock(config) is expected
    if not expected:
        with pytest.raises(ConfigError, match="require_timm: stock timm cannot build"):
            model_args(config, SHAPE.image_size)
        assert family.build is not None
        return
    with torch.device("meta"):
        net = timm.create_model(config.model, num_classes=10, **model_args(config, SHAPE.image_size))
    ours = build_model(config, SHAPE, "meta").state_dict()
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in ours.items()
    }


@pytest.mark.parametrize("family", families_with("width_mult"), ids=lambda family: family.name)
def test_a_size_rises_with_the_width(family: Family) -> None:
    assert (dip(candidate(family)) is None) == (family.dip is None)
    at = {width: count_params(candidate(family, width_mult=width), SHAPE) for width in (0.1, 0.4, 0.8, 0.95, 1.1, 1.7)}
    assert list(at.values()) == sorted(at.values())


@pytest.mark.parametrize("family", [*FAMILIES, OTHER], ids=lambda family: family.name)
def test_the_channels_of_the_families_that_say_so_are_padded(family: Family) -> None:
    net = build_model(candidate(family), SHAPE)
    before = [parameter.shape for parameter in net.parameters()]
    Padding(net)
    assert ([parameter.shape for parameter in net.parameters()] != before) is family.is_padded


# The three lists


def listed(setting: SizeSetting) -> str:
    return ", ".join(family.name for family in families_with(setting))


@pytest.mark.parametrize("setting", SIZE_SETTINGS)
def test_a_settings_description_lists_its_families(setting: SizeSetting) -> None:
    description = " ".join((TrainConfig.model_fields[setting].description or "").split())
    assert description.partition(" Families: ")[2] == f"{listed(setting)}."


@pytest.mark.parametrize("setting", SIZE_SETTINGS)
def test_the_template_lists_the_families_of_a_setting(setting: SizeSetting) -> None:
    train = studies.template().partition("\n[train]")[2].partition("\n[")[0]
    (line,) = (line for line in train.splitlines() if line.startswith(f"{setting} = "))
    assert line.partition("families: ")[2] == listed(setting)


def test_what_stock_timm_cannot_build_is_in_the_description_of_the_setting_that_refuses_it() -> None:
    never, unscaled = (
        ", ".join(family.name for family in FAMILIES if family.stock == when) for when in ("never", "unscaled")
    )
    description = " ".join((TrainConfig.model_fields["require_timm"].description or "").split())
    assert f"These are all models of {never}; " in description
    assert description.endswith(f" unless width_mult and depth_mult are 1, those of {unscaled}.")


def test_the_documents_list_the_families_with_a_width() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    *names, last = (f"`{family.name}`" for family in families_with("width_mult"))
    sentence = f"{', '.join(names)} and {last} have a `width_mult`"
    assert any(sentence in " ".join(text.split()) for text in texts), sentence
