"""A stranger's look at an export: ``python tests/judge.py EXPORT PICTURES``, with timm, ONNX Runtime, Pillow and
scikit-learn alone. PICTURES has a folder of test pictures for each class.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import math
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from sklearn.metrics import accuracy_score

ORIGINS = {"tag", "license", "url", "hf_hub_id", "hf_hub_filename", "origin_url", "paper_ids", "paper_name", "notes"}
"""What timm's configurations say of the weights that timm publishes."""


def judge(folder: Path, pictures: Path, private: Sequence[str] = ()) -> dict[str, float]:
    """Check an export; AssertionError says what is wrong.

    Args:
        folder: the export.
        pictures: the pictures of its test split, in a folder for each class.
        private: words of the maker's machine that no file may contain.

    Returns:
        The accuracies found: "onnx", and "timm" where stock timm loads the export.
    """
    found = dict(_contents(folder))
    leaks = [f"{name}: {word}" for name, content in found.items() for word in private if _holds(content, word)]
    assert not leaks, leaks
    _sums(folder, found)
    config, card = json.loads(found["config.json"]), found["README.md"].decode()
    assert not ORIGINS & config["pretrained_cfg"].keys(), "it tells of weights that timm publishes"
    files = sorted(file for file in pictures.glob("*/*") if file.is_file())
    names = config["label_names"]
    true = [names.index(file.parent.name) for file in files]
    stated = json.loads(found["metrics.json"])["evaluation"]
    assert stated["n"] == len(files)
    (headline,) = re.findall(r"\*\*([\d.]+%)\*\* top-1 on the test split", card)

    logits = _by_the_cards_reader(folder, card, config, files)
    accuracies = {"onnx": float(accuracy_score(true, logits.argmax(1)))}
    assert accuracies["onnx"] == stated["accuracy"]
    assert f"{accuracies['onnx']:.2%}" == headline
    _size(found)
    if "local-dir:" in card:
        accuracies["timm"] = float(accuracy_score(true, _by_timm(folder, files).argmax(1)))
        assert accuracies["timm"] == stated["plain_accuracy"]
    for block, accuracy in _blocks(card):
        whole = accuracies["timm" if "local-dir:" in block else "onnx"]
        assert accuracy in (None, f"{whole:.2%}"), f"the card says {accuracy} of what gives {whole:.2%}:\n{block}"
    return accuracies


def _holds(content: bytes, word: str) -> bool:
    """Whether a file has a word; a short one may be in random bytes by chance, and as a part of another word."""
    if len(word) >= 6:
        return word.encode() in content
    try:
        return re.search(rf"\b{re.escape(word)}\b", content.decode()) is not None
    except UnicodeDecodeError:
        return False


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each file, and each file in it where it is an archive."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            yield file.relative_to(folder).as_posix(), content
            yield from _members(file.name, content)


def _members(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.namelist():
            part = archive.read(member)
            yield f"{name}/{member}", part
            yield from _members(f"{name}/{member}", part)


def _sums(folder: Path, found: dict[str, bytes]) -> None:
    listed = dict(line.split("  ")[::-1] for line in found["SHA256SUMS"].decode().splitlines())
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {"SHA256SUMS"}
    assert listed == {name: hashlib.sha256(found[name]).hexdigest() for name in there}


def _by_the_cards_reader(folder: Path, card: str, config: dict[str, Any], files: list[Path]) -> np.ndarray:
    """The logits by the lines of the card that need neither torch nor timm."""
    (code,) = (block for block, _ in _blocks(card) if "import onnxruntime" in block)
    modules = {name.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for name in node.names}
    modules |= {str(node.module) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)}
    assert modules == {"json", "numpy", "onnxruntime", "PIL"}
    assert len([line for line in code.splitlines() if line]) <= (19 if "uint8" in code else 16)
    scope: dict[str, Any] = {}
    exec(code.replace("PATH/TO/THIS/FOLDER", str(folder)).replace("PICTURE.png", str(files[0])), scope)
    session, about = scope["session"], scope["about"]
    assert about["class_names"] == config["label_names"]
    stated = config["pretrained_cfg"]
    assert [about["channels"], about["size"], about["size"]] == stated["input_size"]
    assert all(about[name] == stated[name] for name in ("mean", "std", "crop_pct", "crop_mode", "interpolation"))
    assert about["study"]
    assert re.match(r"Featherweight \d", about["made_by"])
    assert [node.shape[0] for node in (*session.get_inputs(), *session.get_outputs())] == ["batch", "batch"]
    (logits,) = session.run(["logits"], {"pictures": np.stack([scope["read"](file) for file in files])})
    assert np.allclose(scope["logits"], logits[:1], atol=1e-4)
    return np.asarray(logits)


def _by_timm(folder: Path, files: list[Path]) -> np.ndarray:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert isinstance(model, torch.nn.Module)
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data)
    mode = {1: "L", 3: "RGB"}[data["input_size"][0]]
    read = [transform(_upright(file).convert(mode)) for file in files]
    with torch.inference_mode():
        logits: np.ndarray = model(torch.stack(read)).numpy()
    return logits


def _upright(file: Path) -> Image.Image:
    """A picture as its file means it: turned by EXIF, 16 bits scaled to 8."""
    image = Image.open(file)
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) / 257).round().astype("uint8"))
    return ImageOps.exif_transpose(image)


def _size(found: dict[str, bytes]) -> None:
    """ONNX needs 4 bytes for each value of the weights, and little more: the nodes of the graph, once for each view."""
    views = json.loads(found["metrics.json"])["model"]["views"]
    (length,) = struct.unpack("<Q", found["model.safetensors"][:8])
    tensors = json.loads(found["model.safetensors"][8 : 8 + length])
    values = sum(math.prod(one["shape"]) for name, one in tensors.items() if name != "__metadata__")
    size = len(found["model.onnx"])
    assert size <= 4 * values * 1.03 + 64_000 + 15_000 * len(views), (
        f"model.onnx has {size:,} bytes for {values:,} values"
    )


def _blocks(card: str) -> list[tuple[str, str | None]]:
    """The card's lines of Python, each with the accuracy that the sentence above it claims for them, if any."""
    found = re.findall(r"([^\n]*)\n\n```python\n(.*?)```", card, re.DOTALL)
    claims = [(code, re.search(r"gives ([\d.]+%)", above)) for above, code in found]
    return [(code, claim and claim.group(1)) for code, claim in claims]


if __name__ == "__main__":
    print(json.dumps(judge(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
