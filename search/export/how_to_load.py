"""How to load an export, and the accuracy that each way gives: for the model card and for the terminal."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path

from search.export.formats import weights
from search.export.formats.format import Format
from search.export.formats.table import FORMAT_NAMES, format_of
from search.export.record import ExportRecord
from trainer.background import without_background
from trainer.pictures import DEEP, DEPTH, read_right

READ = """How to read a picture, for every format:

```python
import json
import timm
from pathlib import Path

from PIL import Image

settings = json.loads(Path("PATH/TO/THIS/FOLDER/config.json").read_text())["pretrained_cfg"]
transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=settings))
pictures = transform(Image.open("PICTURE.png").convert("MODE")).unsqueeze(0)
```"""


SIXTEEN_BITS = """    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode[0] in "FI":  # of more than 8 bits
        image = Image.fromarray(np.rint(np.asarray(image, float) * (255 / 65535)).astype("uint8"))
    image = image.convert("""
"""Lines of Python that also read pictures of 16 bits. They replace one line of the reader for ONNX Runtime."""

SCALED = """    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode == "F" or image.mode.startswith("I"):  # of more than 8 bits
        values = np.asarray(image, float)
        low, high = values.min(), values.max()
        tops = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        low, high = next(((0, top) for top in tops if low >= 0 and high <= top), (low, high))
        image = Image.fromarray(np.rint((values - low) * (255 / ((high - low) or 1))).astype("uint8"))
    image = image.convert("""
"""Lines of Python that are used instead of SIXTEEN_BITS if pictures of more than 8 bits have other ranges of values."""


STEP = """The model was trained on pictures without their background. This function removes it with OpenCV (`pip install
opencv-python-headless`). The code further below calls it on each opened picture, before anything else:

```python
import cv2
import numpy as np
from PIL import Image


{function}```"""
"""The card's paragraph about GrabCut."""


def whole_formats(record: ExportRecord) -> list[Format]:
    """The formats whose files hold the whole exported model, views and members included."""
    return [format_of(name) for name in FORMAT_NAMES if name in record.formats]


def loading_paragraphs(record: ExportRecord) -> list[str]:
    """The card's paragraphs and lines of Python that load the export.

    For a model with views or members, the file that gives the card's accuracy comes first, and the text says which
    accuracy each file gives.
    """
    model, data, result = record.model, record.data, record.evaluation
    read = READ.replace("MODE", "RGB" if data.channels == 3 else "L")
    whole, plain = [one.loading for one in whole_formats(record)], weights.LOADING
    if ranges := DEEP.keys() & record.proof.misread_in_all:
        lines = SIXTEEN_BITS if ranges == {DEPTH} else SCALED
        whole = [one.replace("    image = ImageOps.exif_transpose(Image.open(file)).convert(", lines) for one in whole]
    removes = _removes_background(record)
    if removes:
        read, *whole = (_without_background(lines) for lines in (read, *whole))
    if model.members > 1 or model.views:
        whole = [f"This gives {result.accuracy:.2%}, the accuracy above. {one}" for one in whole]
        plain = f"This gives {result.plain_accuracy:.2%}, because it is the model without the views. {plain}"
        alone = int("onnx" in record.formats)  # its lines come first, and read the picture themselves
        parts = [*whole[:alone], read, *whole[alone:], *([plain] if model.stock_timm else [])]
    else:
        parts = [read, *([plain] if model.stock_timm else []), *whole]
    if not model.stock_timm:
        what = "an ensemble" if model.members > 1 else "this model"
        holds = "; members.0..., members.1... in it are its members" if model.members > 1 else ""
        parts.insert(0, f"Stock timm cannot build {what} by name. {weights.FILE} holds the plain weights{holds}.")
    if removes:
        parts.insert(0, STEP.format(function=inspect.getsource(without_background)))
    size = data.image_size
    inputs = (
        f"`pictures` are float32 [batch, {data.channels}, {size}, {size}], any batch size. "
        f"Class names, in the order of the logits, are `label_names` in `config.json` and the lines of "
        f"`{weights.CLASS_MAP}`."
    )
    inputs += _order_in_timm(data.class_names)
    if model.members > 1 or model.views:
        voters = " and ".join([*(["members"] if model.members > 1 else []), *(["views"] if model.views else [])])
        inputs += (
            f" The logits are the logarithm of the mean probability over all {voters}: their softmax is that mean, "
            "their argmax the predicted class."
        )
    return [*parts, inputs, "`sha256sum --check SHA256SUMS` tells whether a file has changed since it was proven."]


def _order_in_timm(names: Sequence[str]) -> str:
    """A sentence about timm's folder reader if it gives these classes other numbers, or none; else ""."""
    if refused := weights.not_sorted_by_timm(names):
        return (
            f" timm's own folder reader cannot sort {len(refused):,} of these classes and ends with a ValueError: in "
            "their names a digit stands alone that is no decimal number (such as \u00b2 or \u2460). Rename the folders "
            "of such classes before you use timm's scripts."
        )
    if weights.has_timms_order(names):
        return ""
    if any(name != name.strip() for name in names):
        return (
            " timm's own folder reader sorts these classes in another order, and from a file it reads class names "
            "without the spaces around them. Rename the folders of such classes before you use timm's scripts."
        )
    if unnamed := weights.not_named_by_line(names):
        return (
            f" timm's own folder reader sorts these classes in another order, and `{weights.CLASS_MAP}` does not have "
            f"the folder names of {len(unnamed):,} of them (bytes that are not UTF-8, or line breaks), whose pictures "
            "timm would leave out. Rename these folders before you use timm's scripts."
        )
    return (
        " timm's own folder reader sorts these classes in another order (numbers by value, without case), so its "
        f"scripts need `--class-map PATH/TO/THIS/FOLDER/{weights.CLASS_MAP}` to give them the same numbers."
    )


def _removes_background(record: ExportRecord) -> bool:
    return record.data.config.get("background", "keep") == "grabcut"


def _without_background(lines: str) -> str:
    """The same lines of Python, with the removal of the background before each conversion of a picture."""
    return re.sub(r"(?<== )((?:transform\()?)(\S.*?)\.convert\(", r"\1without_background(\2).convert(", lines)


def _right(why: str, record: ExportRecord) -> str:
    """A line of Python for pictures that a plain convert("RGB") misreads for the reason ``why``."""
    line = read_right(why, record.data.channels)
    return _without_background(f"= {line}").removeprefix("= ") if _removes_background(record) else line


def reading_paragraph(record: ExportRecord) -> str:
    """The paragraph about pictures that a plain convert("RGB") misreads; "" if there are none."""
    evaluation, proof = record.evaluation, record.proof
    lines = [
        f"- {count:,} of all pictures, {proof.misread.get(why, 0):,} of the {evaluation.n:,} in the {evaluation.split} "
        f"split, {'is' if count == 1 else 'are'} {why}; this line reads such a picture as it was read here: "
        f"`{_right(why, record)}`"
        for why, count in sorted(proof.misread_in_all.items())
    ]
    if not lines:
        return ""
    said = (
        'A plain `Image.open(file).convert("RGB")` reads some of the pictures differently from how they were read for '
        f"training and evaluation; with it, the accuracy is {proof.stranger_accuracy:.2%}."
    )
    return "\n".join([said, "", *lines])


def loading_lines(record: ExportRecord, folder: Path) -> list[str]:
    """Lines for the terminal on how to load an export. If the export has views or members, each line gives
    the accuracy of what it loads."""
    model, result, card = record.model, record.evaluation, f"see {folder}/README.md"
    timm = f'timm.create_model("local-dir:{folder}", pretrained=True)'
    if model.members == 1 and not model.views:
        return [timm if model.stock_timm else card]
    lines = [f"{folder / whole_formats(record)[0].file}, {card}: {result.accuracy:.2%}"]
    return [*lines, f"{timm}: {result.plain_accuracy:.2%}, without the views"] if model.stock_timm else lines
