"""A study of tiny digits: one class of models, an epoch of a second or two."""

from __future__ import annotations


def tiny_study(name: str, *, trials: int, epochs: int = 1) -> str:
    """The text of its file."""
    return f"""
name = "{name}"

[data]
source = "digits"
image_size = 16
val_fraction = 0.4
test_fraction = 0.5

[train]
model = "resnet10t"
width_mult = 0.1
epochs = {epochs}
batch_size = 64

[space]
lr = {{ low = 0.001, high = 0.02, log = true }}

[search]
trials = {trials}
pruner = "none"
"""
