"""config.json, model.safetensors and class_map.txt in timm's layout. Every export has them.

Stock timm opens them, unless they are of an ensemble, or of a model that stock timm does not have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from search.export.formats.format import Opened

if TYPE_CHECKING:
    from torch import nn

    from studies import StudySpec
    from trainer.config import TrainConfig
    from trainer.data import Dataset
    from trainer.values import Json

FILE = "model.safetensors"
CLASS_MAP = "class_map.txt"
"""File with the classes in the order of the logits, one in each line, for timm's option ``--class-map``."""

ESCAPED = re.compile(r"\\x[0-9a-f]{2}")
"""A byte of a folder's name that is not UTF-8, as it stands in the name of a class."""

LIBRARY = "timm"
"""Name of the stock library that opens the files, for users and for model hubs."""

TIMM_NEEDS = {
    *("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes"),
    *("pool_size", "first_conv", "classifier", "custom_load"),
}
"""The keys of timm's own ``pretrained_cfg`` that are kept: those for loading the model and for its input. The others
(tag, license, origin_url, paper_ids) are about the weights that timm publishes."""

LOADING = """With timm alone:

```python
import timm

model = timm.create_model("local-dir:PATH/TO/THIS/FOLDER", pretrained=True).eval()
logits = model(pictures)
```"""


def write_weights(
    folder: Path, model: nn.Module, configs: Sequence[TrainConfig], spec: StudySpec, data: Dataset
) -> None:
    """Write all three files; an ensemble's tensors are named members.0..., members.1..., ...

    config.json has the architecture of the first member, and those of all members if they differ.
    """
    import safetensors.torch
    import timm

    from trainer.evaluate import Ensemble
    from trainer.models import is_stock, model_args

    names, preprocessing, file = list(data.class_names), _preprocessing(spec, data), folder / "config.json"
    read_by = {"label_names": names, **_background(spec)}
    (folder / CLASS_MAP).write_bytes(class_map(names))
    config, (args, *others) = configs[0], [model_args(one, spec.data.image_size) for one in configs]
    if is_stock(config) and not isinstance(model, Ensemble):
        timm.models.save_for_hf(
            model,
            str(folder),
            model_config=read_by,
            model_args=args,
            safe_serialization=True,
            data_config=preprocessing,
        )
        described = json.loads(file.read_text(encoding="utf-8"))
        stated = described["pretrained_cfg"]
        described["pretrained_cfg"] = {name: stated[name] for name in stated if name in TIMM_NEEDS}
        file.write_text(json.dumps(described, indent=2), encoding="utf-8")
        return
    safetensors.torch.save_model(model, str(folder / FILE))
    described = {"architecture": config.model, "num_classes": len(names), "model_args": args} | read_by
    if isinstance(model, Ensemble):
        described |= {"members": len(model.members), "views": list(model.views.names)}
        members = [(one.model, own) for one, own in zip(configs, [args, *others], strict=True)]
        if any(one != members[0] for one in members):
            described["member_models"] = [{"architecture": name, "model_args": own} for name, own in members]
    described["pretrained_cfg"] = preprocessing
    file.write_text(json.dumps(described, indent=2), encoding="utf-8")


def _background(spec: StudySpec) -> dict[str, Json]:
    """The step before timm's transform, if there is one.

    It is not in pretrained_cfg, because timm accepts only its own keys there.
    """
    return {} if spec.data.background == "keep" else {"background": spec.data.background}


def _preprocessing(spec: StudySpec, data: Dataset) -> dict[str, Json]:
    """How a picture becomes the input of the model, in timm's names."""
    from trainer.pictures import crop_mode_of

    size, channels = spec.data.image_size, spec.data.channels
    return {
        "input_size": [channels, size, size],
        "interpolation": spec.data.interpolation,
        "mean": list(data.mean),
        "std": list(data.std),
        "crop_pct": spec.data.evaluated_crop_pct,
        "crop_mode": crop_mode_of(spec.data),
    }


def metadata(spec: StudySpec, data: Dataset) -> dict[str, str]:
    """The metadata of a model file, name -> JSON: all that a reader needs besides the file."""
    values = {"class_names": list(data.class_names), "size": spec.data.image_size, "channels": spec.data.channels}
    values |= {name: value for name, value in _preprocessing(spec, data).items() if name != "input_size"}
    values |= _background(spec)
    values |= {"study": spec.name, "made_by": f"Featherweight {version('featherweight')}"}
    return {name: json.dumps(value) for name, value in values.items()}


def class_map(names: Sequence[str]) -> bytes:
    """The content of CLASS_MAP. A line break in a name is written as a space, because each line is a class."""
    lines = [" ".join(name.splitlines()) for name in names]
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")  # the bytes of the folder's name


def not_named_by_line(names: Sequence[str]) -> list[str]:
    """The classes whose line in CLASS_MAP may not be the name of their folder: the name has a line break, or bytes that
    are not UTF-8, which are escaped."""
    return [name for name in names if len(name.splitlines()) > 1 or ESCAPED.search(name)]


def has_timms_order(names: Sequence[str]) -> bool:
    """Whether timm's folder reader gives these classes the same numbers; it ignores case, and sorts digits by value."""
    from timm.utils.misc import natural_key

    return not not_sorted_by_timm(names) and sorted(names, key=natural_key) == list(names)


def not_sorted_by_timm(names: Sequence[str]) -> list[str]:
    """The names for which timm's folder reader ends with a ValueError, for example "²": a digit, but not a number."""
    from timm.utils.misc import natural_key

    refused = list[str]()
    for name in names:
        try:
            natural_key(name)
        except ValueError:
            refused.append(name)
    return refused


def open_weights(folder: Path) -> Opened:
    """Open config.json and model.safetensors with timm alone; only for models that stock timm builds."""
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
        return logits

    return Opened(forward, model)
