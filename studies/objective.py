"""The objective of a study: the number by which its candidates are compared. Higher is better, so a loss is negated."""

from __future__ import annotations

from typing import Literal, TypeAlias, assert_never

from trainer.config import EpochResult

Objective: TypeAlias = Literal["accuracy", "macro_f1", "balanced_accuracy", "loss"]

NAMES: dict[Objective, str] = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "loss": "loss",
}
"""Objective -> its name in words."""


def value_of(result: EpochResult, objective: Objective) -> float:
    """The objective after an epoch: a share from 0 to 1, or the validation loss times -1."""
    match objective:
        case "accuracy":
            return result.val_accuracy
        case "macro_f1":
            value = result.val_macro_f1
        case "balanced_accuracy":
            value = result.val_balanced_accuracy
        case "loss":
            return -result.val_loss
        case _:
            assert_never(objective)
    assert value is not None, f"this result is of an earlier version, which did not measure {NAMES[objective]}"
    return value


def as_measured(value: float, objective: Objective) -> float:
    """The number as it was measured: a loss is no longer negated, other objectives are unchanged."""
    return -value if objective == "loss" else value


def number_of(value: float, objective: Objective) -> str:
    """The measured number of a value as text: "97.12%", or "0.1234" for a loss."""
    return spread_of(as_measured(value, objective), objective)


def spread_of(value: float, objective: Objective) -> str:
    """A distance between two values as text, such as a standard error: "0.30%", or "0.0123" for a loss."""
    return f"{value:.4f}" if objective == "loss" else f"{value:.2%}"


def words_of(value: float, objective: Objective) -> str:
    """A value as text, with the name of any objective but accuracy: "97.12%", "macro F1 91.30%", "loss 0.1234"."""
    number = number_of(value, objective)
    return number if objective == "accuracy" else f"{NAMES[objective]} {number}"
