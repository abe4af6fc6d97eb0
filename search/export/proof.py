"""Proves an export, in a process of its own: ``python -m search.export.proof FOLDER CACHE DATA_CONFIG_JSON``.

Each file is loaded by its stock library, which shares no code with the writers.
Other code of this program only reads the pictures, and loads weights that no stock library can load (those of an
ensemble, or of a family that stock timm does not have). The proof checks:

- The model has the parameters and multiply-adds that the card says, and is within the limit.
- Each format gives the card's accuracy on the same split, and the logits of the exporting process.
- ``search predict`` reads pictures as they were read for the training.
- If the pictures are files, a stranger (a user who has only timm and config.json) reads them in the same way. Pictures
  that a plain convert("RGB") reads differently, because of EXIF or depth, are counted.

Stdout has lines of JSON: the progress, [stage, done, total], then the answer. If the export differs from its card, a
sentence on stderr says how, and the exit code is 9.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search.export.files import ModelConfig, read_images
from search.export.formats import weights
from search.export.formats.format import Forward, Opened
from search.export.formats.table import FORMAT_NAMES, format_of
from search.export.machine_load import with_load
from search.process import leave_after
from trainer.background import without_background
from trainer.config import DataConfig
from trainer.cores import num_cores
from trainer.data import Dataset, open_data
from trainer.sums import sha256

MAX_LOGIT_DIFFERENCE = 1e-4
"""Largest difference of a logit between the exporting process and each format, all fp32."""

MAX_RELATIVE_DIFFERENCE = 1e-5
"""Largest difference as a share of the largest logit; the larger of the two bounds counts. An EfficientNet after two
epochs had a logit of 311, and a difference of 1.7e-4 between two libraries."""

MAX_ROUNDING_RATIO = 2.0
"""A difference above both bounds is allowed up to this multiple of the model's own rounding, which is the difference
between its logits in fp32 and in fp64. Each of the two compared libraries may be off by so much. An EfficientNet after
6 steps had a logit of 130; fp32 changed its logits by 4e-2, and two libraries differed by 3e-2."""

STRANGER_TOLERANCE = 0.005
"""Largest allowed difference between a stranger's accuracy on the raw files and the card's. To it is added the share of
pictures that a plain convert("RGB") reads differently (16-bit, EXIF-rotated). All other pictures are read alike, or
nearly alike if their longer edge is more than 64 times the shorter one."""

STRANGER_LEVELS = 2.0
"""Largest mean difference, in levels of 255, between a picture as a stranger reads it and as the cache has it."""

PREDICTED_PICTURES = 32
"""Number of pictures that are read as ``search predict`` reads them, and compared with the cache."""

LATENCY_BATCHES = (1, 64)
LATENCY_SECONDS = 2.0
"""Time given to each measurement of a latency; at least three repetitions."""

BATCH = 64
EXIT_PROOF_FAILED = 9

Pictures = NDArray[np.float32]
Tell = Callable[[str, int, int], None]


class Difference(Exception):
    """The export differs from its card."""


def main() -> None:
    """Prove the export named on the command line."""
    folder, cache, data_config = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        DataConfig.model_validate_json(sys.argv[3]),
    )
    try:
        print(json.dumps(prove(folder, data_config, open_data(data_config, cache), tell=_tell)))
    except Difference as difference:
        print(difference, file=sys.stderr)
        sys.exit(EXIT_PROOF_FAILED)


def _tell(stage: str, done: int, total: int) -> None:
    print(json.dumps([stage, done, total]), flush=True)


def prove(folder: Path, data_config: DataConfig, data: Dataset, *, tell: Tell = lambda *_: None) -> dict[str, Any]:
    """Compare an export with its metrics.json.

    Args:
        folder: the export.
        data_config: the [data] of its study.
        data: the pictures.
        tell: called with (stage, done, total).

    Returns:
        "num_params" and "macs" of the model; "formats": file -> its "library", "accuracy" and "max_logit_difference";
        "max_logit_difference": the largest of these; "sha256" of the model's files; "hardware", "latency_ms" and "load"
        of this machine; "stranger_accuracy" (and its tolerance), None if the pictures are no files; "misread": reason
        -> pictures of the split that a plain convert("RGB") reads differently; "misread_in_all": those of all splits.

    Raises:
        Difference: the export differs from the card; the message has both values.
    """
    card = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    evaluation, preprocessing = card["evaluation"], config["pretrained_cfg"]
    model, is_whole, plain_model, forwards = _open_formats(folder, card, data)
    if card["model"]["stock_timm"]:
        preprocessing = timm.data.resolve_model_data_config(model)
    params, macs = _recount(card, model, preprocessing["input_size"], is_whole=is_whole)
    if card.get("members"):
        _recount_members(card, folder, data, preprocessing["input_size"])
    _check_equal("class names", config["label_names"], list(data.class_names))

    indices = data.splits[evaluation["split"]]
    labels = data.labels[indices]
    mean = np.array(preprocessing["mean"], np.float32) * 255
    std = np.array(preprocessing["std"], np.float32) * 255

    def cached(start: int) -> Pictures:
        pictures = data.images[indices[start : start + BATCH]][data.centre].astype(np.float32)
        return np.ascontiguousarray(((pictures - mean) / std).transpose(0, 3, 1, 2))

    files = [Path(data_config.path or "") / data.names[index] for index in indices]
    are_files = data_config.source == "folder" or (data_config.path is not None and files[0].exists())
    if are_files and (gone := next((file for file in files if not file.exists()), None)):
        raise Difference(f"{gone} is missing; the accuracy of the card was measured on it")
    seen, total = 0, len(indices) * (len(forwards) + are_files)

    def through(forward: Forward, read: Callable[[int], Pictures]) -> Pictures:
        nonlocal seen
        answers = []
        for start in range(0, len(indices), BATCH):
            answers.append(forward(read(start)))
            seen += len(answers[-1])
            tell("proving, in pictures", seen, total)
        return np.concatenate(answers)

    answer: dict[str, Any] = {"num_params": params, "macs": macs, "formats": {}, "stranger_accuracy": None}
    answer |= {"misread": {}, "misread_in_all": {}}
    with np.load(folder / "reference-logits.npz") as arrays:
        reference = dict(arrays)
    for name, (file, forward) in forwards.items():
        plain = file == weights.FILE
        logits, expected = through(forward, cached), reference["plain" if plain and "plain" in reference else "whole"]
        difference = compare_logits(name, logits, expected, partial(_rounding, plain_model, cached, len(indices)))
        accuracy = float((logits.argmax(1) == labels).mean())
        _check_equal(f"accuracy through {name}", accuracy, evaluation["plain_accuracy" if plain else "accuracy"])
        answer["formats"][file] = {"library": name, "accuracy": accuracy, "max_logit_difference": difference}
    answer["max_logit_difference"] = max(one["max_logit_difference"] for one in answer["formats"].values())

    if are_files:
        stated = ModelConfig.model_validate(config | {"pretrained_cfg": preprocessing})
        read = read_images(files[:PREDICTED_PICTURES], stated)
        if not np.allclose(read, cached(0)[: len(read)], atol=1e-5):
            raise Difference("`search predict` reads pictures differently from how they were read for the training")
        file, forward = next(iter(forwards.values()))
        raw = _as_a_stranger(preprocessing, data_config, data, indices, cached)
        accuracy = float((through(forward, raw).argmax(1) == labels).mean())
        answer |= _compared_by_a_stranger(accuracy, answer["formats"][file]["accuracy"], data, indices)

    answer["sha256"] = {name: sha256(folder / name) for name in ("config.json", weights.FILE)}
    answer["sha256"] |= {file: sha256(folder / file) for file, _ in forwards.values()}
    latencies, load = with_load(lambda: _latencies(forwards, cached(0), tell))
    return answer | {"hardware": _hardware(), "latency_ms": latencies, "load": asdict(load)}


def _compared_by_a_stranger(
    accuracy: float, expected: float, data: Dataset, indices: NDArray[np.int64]
) -> dict[str, Any]:
    """The part of the answer about the raw files. Raises Difference if the accuracy on them is not the expected one."""
    misread = Counter(why for index in indices if (why := data.misread.get(data.names[index])))
    if abs(accuracy - expected) > STRANGER_TOLERANCE + misread.total() / len(indices):
        raise Difference(
            f"the raw files, read as timm's own transform reads them, give {accuracy:.2%}, the card says {expected:.2%}"
        )
    in_all = Counter(data.misread.values())
    return {
        "stranger_accuracy": accuracy,
        "stranger_tolerance": STRANGER_TOLERANCE,
        "misread": dict(misread),
        "misread_in_all": dict(in_all),
    }


def _as_a_stranger(
    preprocessing: dict[str, Any],
    data_config: DataConfig,
    data: Dataset,
    indices: NDArray[np.int64],
    cached: Callable[[int], Pictures],
) -> Callable[[int], Pictures]:
    """A function that reads the raw files with timm's own transform, a batch at a time.

    It raises Difference if a picture differs from the cached one, and is none of those that a plain convert misreads
    (``data.misread``).
    """
    transform = timm.data.create_transform(**preprocessing)
    mode = "RGB" if data_config.channels == 3 else "L"
    first = without_background if data_config.background == "grabcut" else Image.Image.copy
    levels = 255 * np.array(preprocessing["std"], np.float32).reshape(-1, 1, 1)

    def raw(start: int) -> Pictures:
        names = [data.names[index] for index in indices[start : start + BATCH]]
        files = [Path(data_config.path or "") / name for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and of palettes
            read = torch.stack([transform(first(Image.open(file)).convert(mode)) for file in files]).numpy()
        for name, found, expected in zip(names, read, cached(start), strict=True):
            difference = float((np.abs(found - expected) * levels).mean())
            if difference > STRANGER_LEVELS and name not in data.misread:
                raise Difference(
                    f"the raw files, read as timm's own transform reads them, differ: {name} by {difference:.1f} of "
                    "255 levels"
                )
        return read

    return raw


def _open_formats(
    folder: Path, card: dict[str, Any], data: Dataset
) -> tuple[Any, bool, Any, dict[str, tuple[str, Forward]]]:
    """The model whose parameters are counted; whether it computes the views; the model of model.safetensors; and for
    each library, the file that it opens and a function for the logits."""
    recorded = [format_of(name) for name in FORMAT_NAMES if name in card["formats"]]
    if gone := next((one.file for one in recorded if not (folder / one.file).exists()), None):
        raise Difference(f"{gone} is not there, although metrics.json lists its format")
    opened = {one: one.open(folder / one.file) for one in recorded}
    forwards = {one.library: (one.file, found.forward) for one, found in opened.items()}
    is_ensemble = card["model"]["members"] > 1
    if card["model"]["stock_timm"]:
        plain = weights.open_weights(folder)
        return plain.model, is_ensemble, plain.model, {weights.LIBRARY: (weights.FILE, plain.forward)} | forwards
    plain = _built_by_this_program(folder, card, data)
    forwards["this program"] = (
        weights.FILE,
        plain.forward,
    )  # last: the first one classifies the raw files, and should be a stock library
    whole = next((found.model for found in opened.values() if found.model is not None), None)
    counted = (plain.model, is_ensemble) if whole is None else (whole, True)
    return *counted, plain.model, forwards


def _built_by_this_program(folder: Path, card: dict[str, Any], data: Dataset) -> Opened:
    """Open model.safetensors with this program's own code, for a model that no stock library builds."""
    from trainer.config import TrainConfig
    from trainer.evaluate import Ensemble
    from trainer.models import build_model
    from trainer.views import Views

    members = card["model"]["members"]
    configs = [one["config"] for one in card.get("members", ())] or [card["config"]] * members
    models = [build_model(TrainConfig.model_validate(config), data.shape) for config in configs]
    shift = (card["model"].get("fancy_pca") or {"shift": ()})["shift"]
    views = Views(tuple(card["model"]["views"]), data.mean, data.std, tuple(shift))
    model = (models[0] if members == 1 else Ensemble(models, views)).eval()
    safetensors.torch.load_model(model, str(folder / weights.FILE))

    def forward(pictures: Pictures) -> Pictures:
        with torch.inference_mode():
            return model(torch.from_numpy(pictures)).numpy()  # type: ignore[no-any-return]

    return Opened(forward, model)


def compare_logits(name: str, found: Pictures, expected: Pictures, rounding: Callable[[], float]) -> float:
    """The largest difference between the logits of a library and the expected logits.

    Args:
        name: the library.
        found: the library's logits.
        expected: the logits of the exporting process.
        rounding: measures how much fp32 changes the model's logits; called only if the fixed bounds are exceeded.

    Raises:
        Difference: the difference is larger than rounding explains.
    """
    difference = float(np.abs(found - expected).max())
    allowed = max(MAX_LOGIT_DIFFERENCE, MAX_RELATIVE_DIFFERENCE * float(np.abs(expected).max()))
    if difference > allowed:
        allowed = max(allowed, MAX_ROUNDING_RATIO * rounding())
    if not difference <= allowed:
        raise Difference(f"{name}'s logits differ by {difference:.1e}, more than {allowed:.0e}")
    return difference


def _rounding(model: torch.nn.Module, read: Callable[[int], Pictures], total: int) -> float:
    """The largest difference between the logits of a model in fp32 and in fp64."""
    exact, largest = deepcopy(model).double(), 0.0
    with torch.inference_mode():
        for start in range(0, total, BATCH):
            images = torch.from_numpy(read(start))
            largest = max(largest, float((model(images) - exact(images.double())).abs().max()))
    return largest


def _recount(card: dict[str, Any], model: Any, shape: list[int], *, is_whole: bool) -> tuple[int, int]:
    """Count the loaded model's parameters and multiply-adds, and compare them with the card and the limit."""
    params, macs = _counted(model, shape)
    recorded, limit = card["model"], card["limit"]
    if not is_whole:
        macs *= 1 + len(recorded["views"])  # model.safetensors computes no views; the other formats do
    _check_equal("parameters", params, recorded["num_params"])
    _check_equal("multiply-adds", macs, recorded["macs"])
    if not (limit["each"] and card.get("members")):  # for several trials, _recount_members compares
        parts = recorded["members"] if limit["each"] else 1
        _check_limit("the model", params // parts, macs // parts, limit)
    return params, macs


def _recount_members(card: dict[str, Any], folder: Path, data: Dataset, shape: list[int]) -> None:
    """Count each member of an ensemble of several trials; compare it with the card, and with a limit for each."""
    ensemble: Any = _built_by_this_program(folder, card, data).model
    for recorded, member in zip(card["members"], ensemble.members, strict=True):
        params, macs = _counted(member, shape)
        macs *= 1 + len(card["model"]["views"])
        _check_equal(f"parameters of trial {recorded['trial']}", params, recorded["num_params"])
        _check_equal(f"multiply-adds of trial {recorded['trial']}", macs, recorded["macs"])
        if card["limit"]["each"]:
            _check_limit(f"trial {recorded['trial']}", params, macs, card["limit"])


def _counted(model: Any, shape: list[int]) -> tuple[int, int]:
    """Parameters of a model, and its multiply-adds for one picture."""
    # torch does not count attention in the CPU's fused kernel; the plain kernel consists of products that it counts.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, *shape))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def _check_limit(name: str, params: int, macs: int, limit: dict[str, Any]) -> None:
    for what, counted, most in (("parameters", params, limit["params"]), ("multiply-adds", macs, limit["macs"])):
        if most is not None and counted > most:
            raise Difference(f"{name} has {counted:,} {what}, over the limit of {most:,}")


def _latencies(forwards: dict[str, tuple[str, Forward]], pictures: Pictures, tell: Tell) -> dict[str, dict[str, float]]:
    """Median milliseconds of a forward pass, for each library and batch size."""
    found: dict[str, dict[str, float]] = {}
    done, total = 0, len(LATENCY_BATCHES) * len(forwards)
    for batch in LATENCY_BATCHES:
        asked = np.ascontiguousarray(np.resize(pictures, (batch, *pictures.shape[1:])))
        for name, (_, forward) in forwards.items():
            forward(asked)  # the first one warms up
            times: list[float] = []
            while len(times) < 3 or (sum(times) < LATENCY_SECONDS and len(times) < 50):
                started = time.perf_counter()
                forward(asked)
                times.append(time.perf_counter() - started)
            found.setdefault(name, {})[str(batch)] = round(1000 * median(times), 3)
            done += 1
            tell("measuring latencies", done, total)
    return found


def _hardware() -> str:
    """The name of the processor and the number of cores in use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    cores = num_cores()
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def _check_equal(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Difference(f"{what}: {found} in the export, {expected} in its card")


if __name__ == "__main__":
    leave_after(main)
