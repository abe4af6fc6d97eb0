"""What an export decides by itself; that its files are what they say is tested end to end."""

from __future__ import annotations

from pathlib import Path

import optuna

from search.export import final_model
from search.study import open_test_split


def test_each_final_model_is_an_opening_and_a_resumed_export_is_the_same_one(tmp_path: Path) -> None:
    study = optuna.create_study()
    weights, others = tmp_path / "model.safetensors", tmp_path / "others.safetensors"
    weights.write_bytes(b"weights")
    others.write_bytes(b"other weights")
    models = [(weights, ()), (weights, ()), (weights, ("flip",)), (weights, ("flip",)), (others, ("flip",))]
    assert [open_test_split(study, final_model(*model)) for model in models] == [1, 1, 2, 2, 3]
