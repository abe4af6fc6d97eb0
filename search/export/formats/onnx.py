"""model.onnx, written by torch.onnx and opened by ONNX Runtime, without torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from search.export.formats.format import Format, Opened

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LOADING = """With ONNX Runtime, NumPy and Pillow alone, from a picture file (`pip install onnxruntime numpy pillow`):

```python
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("PATH/TO/THIS/FOLDER/model.onnx")
about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
def read(file):
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB" if about["channels"] == 3 else "L")
    size, scaled, squash = about["size"], int(about["size"] / about["crop_pct"]), about["crop_mode"] == "squash"
    width, height = (int(scaled * side / (side if squash else min(image.size))) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling[about["interpolation"].upper()])
    pixels = np.asarray(image.crop((left, top, left + size, top + size))).reshape(size, size, -1) / 255
    return ((pixels - about["mean"]) / about["std"]).transpose(2, 0, 1).astype(np.float32)
logits = session.run(["logits"], {"pictures": np.stack([read("PICTURE.png")])})[0]
print(about["class_names"][logits[0].argmax()])
```"""


def _write(program: ExportedProgram, file: Path, about: Mapping[str, str]) -> None:
    import onnx
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    made = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["pictures"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert made is not None
    model = made.model_proto
    _clear_debugging(model)
    onnx.helper.set_model_props(model, dict(about))
    file.write_bytes(model.SerializeToString())


def _clear_debugging(message: Any) -> None:
    """Remove the exporter's notes for debugging, which name source files, from all parts of a protobuf message."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                _clear_debugging(part)


def _open(file: Path) -> Opened:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"pictures": images})[0]
        return logits

    return Opened(forward)


ONNX = Format(
    file="model.onnx",
    library="ONNX Runtime",
    hub_library="onnx",
    packages=("onnx", "onnxruntime"),
    loading=LOADING,
    write=_write,
    open=_open,
)
