"""What someone finds in an export who has nothing but its folder and stock timm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from desk import SHAPES, Answer, Desk, Watched
from numpy.typing import NDArray
from PIL import Image

from studies import load
from trainer.data import Dataset, prepare_data

STRANGER = """
import json, os, sys
from pathlib import Path
import numpy, timm, torch
from PIL import Image

folder, pictures, out = map(Path, sys.argv[1:])
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = json.loads((folder / "config.json").read_text())["label_names"]
files = sorted(pictures.glob("*/*"))
batch = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
with torch.inference_mode():
    logits = model(batch)
right = [names[index] == file.parent.name for index, file in zip(logits.argmax(1), files, strict=True)]
numpy.savez(out, batch=batch.numpy(), logits=logits.numpy())
answer = json.dumps({
    "files": [str(file) for file in files],
    "accuracy": sum(right) / len(right),
    "params": sum(parameter.numel() for parameter in model.parameters()),
    "ours": sorted({name.partition(".")[0] for name in sys.modules} & {"search", "studies", "trainer"}),
})
print(answer, flush=True)
os._exit(0)  # torch takes seconds to go
"""


@dataclass(frozen=True)
class Export:
    """An export, and what a stranger found in it."""

    folder: Path
    answer: Answer
    metrics: dict[str, Any]
    test_pictures: list[Path]
    accuracy: float
    params: int
    ours: list[str]
    batch: NDArray[np.float32]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Exported:
    desk: Desk
    status: Answer
    """``search status --json`` after the export."""
    digits: Export
    shapes: Export


def both_exports(folder: Path, finished: Watched, pictures: Callable[[Path], Path]) -> Exported:
    """The finished search's best, confirmed, and the best of a search on an image folder."""
    desk, shapes_desk = finished.desk.copy(folder / "desk"), Desk(folder / "shapes")
    shapes_desk.folder.mkdir()
    try:
        with ThreadPoolExecutor(1) as pool:
            shapes = pool.submit(_shapes, shapes_desk, pictures)
            answer = desk.search("export-best", "--gpus", "cpu")
            status = desk.search("status", "small", "--json")
            data = prepare_data(load(str(desk.folder / "small.toml")).data, desk.runs / "cache")
            test = _as_files(data, desk.folder / "test")
            digits = _seen_by_a_stranger(next((desk.runs / "exports").glob("small-*")), answer, test)
            return Exported(desk, status, digits, shapes.result())
    finally:
        desk.clear()
        shapes_desk.clear()


def _shapes(desk: Desk, pictures: Callable[[Path], Path]) -> Export:
    folder = pictures(desk.folder / "shapes")
    study = desk.write("shapes.toml", SHAPES)
    launched = desk.search("launch", study, "--gpus", "cpu", "--data", folder)
    assert launched.code == 0, launched.err
    answer = desk.search("export-best", "--gpus", "cpu", "--out", "shapes-export")
    return _seen_by_a_stranger(desk.folder / "shapes-export", answer, folder / "test")


def _as_files(data: Dataset, folder: Path) -> Path:
    """The test split as the pictures that they are: PNG files in class folders."""
    for index in data.splits["test"]:
        name = data.class_names[data.labels[index]]
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[index]).save(folder / name / f"{index}.png")
    return folder


def _seen_by_a_stranger(folder: Path, answer: Answer, pictures: Path) -> Export:
    """Load the export in a process that has never heard of us."""
    assert answer.code == 0, answer.err
    found = folder.parent / f"{folder.name}-stranger.npz"
    command = [sys.executable, "-c", STRANGER, folder, pictures, found]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)
    assert process.returncode == 0, process.stderr
    facts = json.loads(process.stdout)
    files = [Path(file) for file in facts.pop("files")]
    metrics = json.loads((folder / "metrics.json").read_text())
    with np.load(found) as arrays:
        return Export(folder, answer, metrics, files, **facts, batch=arrays["batch"], logits=arrays["logits"])


def onnx_logits(folder: Path, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"pictures": batch})[0]
    return logits
