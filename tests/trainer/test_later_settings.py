"""Settings that count: what was made from them is found again, whatever settings came later."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field

import studies
from studies import Range
from studies.final import Finetune
from trainer.config import DataConfig, Distill, Sam, TrainConfig
from trainer.identity import FIRST_SETTINGS, identity, identity_json
from trainer.values import FrozenModel

MODELS: dict[str, type[BaseModel]] = {
    kind.__name__: kind for kind in (DataConfig, Distill, Finetune, studies.Limit, Range, Sam, TrainConfig)
}

LATER: dict[str, Any] = {
    "DataConfig.labels": None,
    "DataConfig.test_labels": None,
    "DataConfig.columns": None,
    "DataConfig.group_by": None,
    "DataConfig.fraction": 1.0,
    "DataConfig.cache_size": None,
    "DataConfig.background": "keep",
    "TrainConfig.augment_share": 1.0,
    "TrainConfig.random_crop": 0.0,
    "TrainConfig.random_resized_crop": 0.0,
    "TrainConfig.cuda_graph": False,
    "TrainConfig.stem": "timm",
    "TrainConfig.focal_gamma": 2.0,
    "TrainConfig.class_weights": "none",
    "TrainConfig.class_sampling": "natural",
    "TrainConfig.logit_adjustment": 0.0,
}
"""Setting that came after November 2026 ("TrainConfig.warmth") -> its default."""


def test_no_setting_of_the_first_ones_was_removed_or_renamed() -> None:
    assert MODELS.keys() == FIRST_SETTINGS.keys()
    gone = {
        f"{name}.{setting}"
        for name, settings in FIRST_SETTINGS.items()
        for setting in settings.split()
        if setting not in MODELS[name].model_fields
    }
    assert not gone, "studies of before have it, and could not be read"


def test_the_default_of_a_later_setting_never_changes() -> None:
    """Studies of before have it and do not say so: with another default they would go on as other ones."""
    found = {
        f"{name}.{setting}": field.get_default(call_default_factory=True)
        for name, kind in MODELS.items()
        for setting, field in kind.model_fields.items()
        if setting not in FIRST_SETTINGS[name].split()
    }
    assert found == LATER, "add a new setting to LATER; give one that is there its default back"


def test_the_settings_of_before_count_in_the_order_they_had() -> None:
    for name in studies.names():
        config = studies.load(name).train
        first = FIRST_SETTINGS["TrainConfig"].split()
        assert [setting for setting in identity(config) if setting in first] == first
        assert list(json.loads(identity_json(config))) == list(identity(config))


class Twist(FrozenModel):
    """A table that came later."""

    angle: float = 1.0
    """Degrees."""


class LaterSam(Sam):
    """A table with a setting that came later."""

    steps: int = Field(1, ge=1)
    """Of ascent."""


class LaterConfig(TrainConfig):
    """With all that can come later."""

    sam: LaterSam | None = None
    twist: Twist | None = None
    """None by default."""
    wind: Twist = Twist()
    """A table by default."""
    tags: tuple[Twist, ...] = ()
    """Several."""


def test_what_came_later_counts_where_it_is_not_its_default() -> None:
    before = TrainConfig(sam=Sam(rho=0.1), augment=({"name": "FancyPCA", "alpha": 0.1},))
    first = set(FIRST_SETTINGS["TrainConfig"].split())
    same = LaterConfig.model_validate(before.model_dump())
    assert identity_json(same) == before.model_dump_json(include=first)
    assert identity(same) == before.model_dump(mode="json", include=first)

    def found(**settings: Any) -> dict[str, Any]:
        later = identity(LaterConfig.model_validate(before.model_dump() | settings))
        return {name: value for name, value in later.items() if value != before.model_dump(mode="json").get(name)}

    assert found(sam={"rho": 0.1, "steps": 1}) == {}
    assert found(sam={"rho": 0.1, "steps": 2}) == {"sam": {"rho": 0.1, "adaptive": False, "steps": 2}}
    assert found(wind={"angle": 2.0}) == {"wind": {"angle": 2.0}}
    assert found(twist={}) == {"twist": {}}
    assert found(tags=[{"angle": 2.0}, {}]) == {"tags": [{"angle": 2.0}, {}]}


def test_settings_that_do_not_count_here_are_left_out() -> None:
    assert "path" not in identity(DataConfig(source="digits"), without=("path",))
    assert "path" in identity(DataConfig(source="digits"))
