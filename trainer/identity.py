"""The identity of settings, which does not change when this program gets new settings.

Fingerprints of studies, the identity of an export and the names of checkpoints and caches are made from settings. A
setting of a later version is left out if it has its default.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from trainer.config import RECIPE_VERSION

FIRST_SETTINGS = {
    "DataConfig": "source path image_size resize interpolation crop_pct channels normalize val_fraction test_fraction "
    "stratified folds split_seed bad_files",
    "Distill": "teacher temperature weight",
    "Finetune": "optimizer lr epochs dropout hflip",
    "Limit": "params macs",
    "Range": "low high log step",
    "Sam": "rho adaptive",
    "TrainConfig": "model model_args width_mult depth_mult initial_chs final_chs growth require_timm dropout drop_path "
    "epochs batch_size optimizer sam lr momentum weight_decay label_smoothing loss distill clip agc ema patience "
    "schedule warmup_epochs lr_min_ratio step_epochs step_gamma milestones cycle_mult plateau_patience hflip vflip "
    "rotate rotations shift scale crop_padding erase brightness augment mixup cutmix mix_alpha augment_from_epoch "
    "precision seed",
}
"""The settings that always count: those of November 2026. This list must never change (tests/before), because existing
studies depend on it."""

FIRST_RECIPE = 2
"""RECIPE_VERSION of November 2026; hashes made then do not contain it."""


def identity(settings: BaseModel, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that count, as plain values for JSON.

    Args:
        settings: a value such as TrainConfig.
        without: settings that do not count here.
    """
    return settings.model_dump(mode="json", exclude=_uncounted(settings) | dict.fromkeys(without, True))


def identity_json(settings: BaseModel) -> str:
    """``identity`` as one line of JSON, always in the same order."""
    return settings.model_dump_json(exclude=_uncounted(settings))


def later_recipe() -> list[int]:
    """RECIPE_VERSION as part of the hash of a training: [] for FIRST_RECIPE, else a list of the version."""
    return [] if RECIPE_VERSION == FIRST_RECIPE else [RECIPE_VERSION]


def _uncounted(value: object) -> dict[Any, Any]:
    """Later settings at their defaults, in the form of pydantic's ``exclude``: name -> True, or for a table -> the
    settings in it."""
    if isinstance(value, dict):
        parts = value
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    elif isinstance(value, BaseModel):
        parts = dict(value)
    else:
        return {}
    found = {name: _is_uncounted(value, name, part) or _uncounted(part) for name, part in parts.items()}
    return {name: left_out for name, left_out in found.items() if left_out}


def _is_uncounted(settings: object, name: str, value: object) -> bool:
    if not isinstance(settings, BaseModel):
        return False
    kind = type(settings)
    first = next((FIRST_SETTINGS[one.__name__] for one in kind.__mro__ if one.__name__ in FIRST_SETTINGS), "")
    return name not in first.split() and value == kind.model_fields[name].get_default(call_default_factory=True)
