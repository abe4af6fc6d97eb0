"""Proves an export, in a process of its own: ``python -m search.proof FOLDER CACHE DATA_CONFIG_JSON``.

Nothing of the product is used but to read the pictures. The weights come back through stock timm and through ONNX
Runtime; parameters are recounted against the limit; both give the card's accuracy on the same split; and, where
the pictures are files, so does a stranger's preprocessing, timm's own for the export's config.json, within
STRANGER_TOLERANCE. The answer is JSON on stdout; a difference is one sentence on stderr and exit code 9.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from trainer.config import DataConfig, TrainConfig
from trainer.data import Dataset, open_data
from trainer.models import build_model

MAX_LOGIT_DIFFERENCE = 1e-4
"""Largest absolute difference of a logit between the exporting process, timm and ONNX Runtime, all fp32."""

STRANGER_TOLERANCE = 0.005
"""How far a stranger's accuracy on the raw files may lie from the card's. Plain RGB files give exactly the same
pictures; only files whose meaning a plain convert("RGB") loses (16-bit, EXIF-rotated) can differ."""

BATCH = 64
EXIT_PROOF_FAILED = 9

Pictures = NDArray[np.float32]


class Difference(Exception):
    """The export is not what its card says."""


def main() -> None:
    """Prove the export named on the command line."""
    folder, cache, data_config = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        DataConfig.model_validate_json(sys.argv[3]),
    )
    try:
        print(json.dumps(prove(folder, data_config, open_data(data_config, cache))))
    except Difference as difference:
        print(difference, file=sys.stderr)
        sys.exit(EXIT_PROOF_FAILED)


def prove(folder: Path, data_config: DataConfig, data: Dataset) -> dict[str, Any]:
    """Compare an export with its metrics.json.

    Raises:
        Difference: the first thing that differs, with both values.
    """
    card = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    evaluation = card["evaluation"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if card["model"]["stock_timm"]:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        preprocessing = timm.data.resolve_model_data_config(model)
    else:  # nobody but the product builds this one
        size, channels = data.images.shape[2:]
        model = build_model(TrainConfig.model_validate(card["config"]), len(data.class_names), size, channels).eval()
        safetensors.torch.load_model(model, str(folder / "model.safetensors"))
        preprocessing = config["pretrained_cfg"]
    params = sum(parameter.numel() for parameter in model.parameters())
    _same("parameters", params, card["model"]["num_params"])
    if card["limit"]["params"] is not None and params > card["limit"]["params"]:
        raise Difference(f"the model has {params:,} parameters, over the limit of {card['limit']['params']:,}")
    _same("class names", config["label_names"], list(data.class_names))

    indices = data.splits[evaluation["split"]]
    labels = data.labels[indices]
    mean = np.array(preprocessing["mean"], np.float32) * 255
    std = np.array(preprocessing["std"], np.float32) * 255

    def cached(start: int) -> Pictures:
        pictures = data.images[indices[start : start + BATCH]].astype(np.float32)
        return np.ascontiguousarray(((pictures - mean) / std).transpose(0, 3, 1, 2))

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    reference = np.load(folder / "reference-logits.npy")
    worst = 0.0
    for name, forward in (("timm", _torch_forward(model)), ("ONNX Runtime", _onnx_forward(session))):
        logits = np.concatenate([forward(cached(start)) for start in range(0, len(indices), BATCH)])
        difference = float(np.abs(logits - reference).max())
        worst = max(worst, difference)
        if not difference <= MAX_LOGIT_DIFFERENCE:
            raise Difference(f"{name}'s logits differ by {difference:.1e}, more than {MAX_LOGIT_DIFFERENCE:.0e}")
        _same(f"accuracy through {name}", float((logits.argmax(1) == labels).mean()), evaluation["accuracy"])
    answer: dict[str, Any] = {"num_params": params, "max_logit_difference": worst, "stranger_accuracy": None}

    if data_config.path and (Path(data_config.path) / data.names[indices[0]]).exists():
        transform = timm.data.create_transform(**preprocessing)
        mode = "RGB" if data_config.channels == 3 else "L"

        def raw(start: int) -> Pictures:
            files = [Path(data_config.path or "") / data.names[index] for index in indices[start : start + BATCH]]
            return torch.stack([transform(Image.open(file).convert(mode)) for file in files]).numpy()

        forward = _torch_forward(model)
        logits = np.concatenate([forward(raw(start)) for start in range(0, len(indices), BATCH)])
        accuracy = float((logits.argmax(1) == labels).mean())
        if abs(accuracy - evaluation["accuracy"]) > STRANGER_TOLERANCE:
            raise Difference(
                f"the raw files, read as timm's own transform reads them, give {accuracy:.2%}, the card says "
                f"{evaluation['accuracy']:.2%}"
            )
        answer |= {"stranger_accuracy": accuracy, "stranger_tolerance": STRANGER_TOLERANCE}
    return answer


def _torch_forward(model: Any) -> Callable[[Pictures], Pictures]:
    def forward(pictures: Pictures) -> Pictures:
        with torch.inference_mode():
            return model(torch.from_numpy(pictures)).numpy()  # type: ignore[no-any-return]

    return forward


def _onnx_forward(session: Any) -> Callable[[Pictures], Pictures]:
    def forward(pictures: Pictures) -> Pictures:
        return session.run(["logits"], {"pictures": pictures})[0]  # type: ignore[no-any-return]

    return forward


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Difference(f"{what}: {found} in the export, {expected} in its card")


if __name__ == "__main__":
    main()
