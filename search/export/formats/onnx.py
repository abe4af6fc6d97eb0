"""model.onnx. Opened without torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from search.export.formats.format import Format, Opened

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LOADING = """With ONNX Runtime:

```python
import onnxruntime

session = onnxruntime.InferenceSession("PATH/TO/THIS/FOLDER/model.onnx")
logits = session.run(["logits"], {"pictures": pictures.numpy()})[0]
```"""


def _write(program: ExportedProgram, file: Path) -> None:
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        program,
        f=file,
        dynamo=True,
        input_names=["pictures"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )


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
