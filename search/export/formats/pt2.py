"""model.pt2, the archive of torch.export."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from search.export.formats.format import Format, Opened

LOADING = """With torch alone:

```python
import torch

model = torch.export.load("PATH/TO/THIS/FOLDER/model.pt2").module()
logits = model(pictures)
```"""


def _write(program: ExportedProgram, file: Path, about: Mapping[str, str]) -> None:
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names files of this machine
    archive = io.BytesIO()  # in memory: on a full disk, torch's writer ends the process
    torch.export.save(program, archive, extra_files={"about.json": json.dumps(dict(about))})
    file.write_bytes(archive.getvalue())


def _open(file: Path) -> Opened:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loader warns about its own internals
        model = torch.export.load(file).module()

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
        return logits

    return Opened(forward, model)


PT2 = Format(
    file="model.pt2",
    library="torch.export",
    hub_library="pytorch",
    packages=("torch",),
    loading=LOADING,
    write=_write,
    open=_open,
)
