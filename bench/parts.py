"""The parts of the trainer that trainer.py measures in its own process, one way after the other, by the same clock."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from bench.racers import torchvision_transform

RECIPE: dict[str, Any] = {
    "model": "rexnet_100",
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 1e-4,
    "schedule": "constant",
    "label_smoothing": 0.1,
    "hflip": 0.5,
    "rotate": 15.0,
    "rotations": 2,
    "erase": 0.25,
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What was asked for, and where to work."""

    images: Path
    folder: Path
    timm_train: Path | None
    sizes: list[int]
    threads: list[int]
    device: str
    rounds: int
    lines: int
    gigabytes: float

    @property
    def clock(self) -> str:
        return "wall" if self.device == "cuda" else "CPU"


def pictures(bench: Bench) -> None:
    """Milliseconds a picture to be read, augmented and normalised, on one core."""
    import albumentations
    import cv2
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode

    from trainer.augment import Augmentation
    from trainer.config import TrainConfig

    for size in (64, 224):
        data, device = opened(bench, size)
        resized_pictures = resized(bench.images, bench.folder, size) / "train"
        folder = ImageFolder(resized_pictures, torchvision_transform(RECIPE))
        smooth = ImageFolder(resized_pictures, torchvision_transform(RECIPE, InterpolationMode.BILINEAR))
        augment = Augmentation(TrainConfig.model_validate(RECIPE), device, data.mean, data.std, size)
        compose = albumentations.Compose(
            [
                albumentations.HorizontalFlip(p=RECIPE["hflip"]),
                *(albumentations.Rotate(RECIPE["rotate"], p=1) for _ in range(RECIPE["rotations"])),
                albumentations.Erasing(p=RECIPE["erase"]),
                albumentations.Normalize(),
            ]
        )
        rng = np.random.default_rng(0)

        def ours(chosen: Any, augment: Any = augment, data: Any = data) -> object:
            return augment(data.images[chosen], torch.zeros(len(chosen)), 0, 1, int(chosen[0]))

        def torchvision(chosen: Any, folder: Any = folder) -> object:
            return torch.stack([folder[int(index) % len(folder)][0] for index in chosen])

        def torchvision_bilinear(chosen: Any, folder: Any = smooth) -> object:
            return torchvision(chosen, folder)

        def albumented(chosen: Any, folder: Any = folder, compose: Any = compose) -> object:
            paths = [folder.samples[int(index) % len(folder)][0] for index in chosen]
            read = [cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB) for path in paths]
            return np.stack([compose(image=picture)["image"] for picture in read])

        chosen = [rng.integers(0, len(data.images), 32) for _ in range(5)]
        ways = {
            "ours": ours,
            "torchvision, its rotations bilinear as ours": torchvision_bilinear,
            "torchvision as it comes (nearest)": torchvision,
            "albumentations": albumented,
        }

        def one_after_the_other(way: Callable[[Any], object], chosen: Any = chosen) -> None:
            for batch in chosen:  # as in training, where no batch outlives its step
                way(batch)

        turns = in_turns({name: lambda way=way: one_after_the_other(way) for name, way in ways.items()}, bench)
        print_ratios(
            f"{size} px, {bench.clock} ms a picture, one thread", turns, 1000 / (32 * len(chosen)), bench.rounds
        )


def count(bench: Bench) -> None:
    """A candidate counted against building it."""
    from trainer import models
    from trainer.config import Shape, TrainConfig

    widths = iter(np.linspace(0.8, 1.12, 10_000))

    def candidate() -> TrainConfig:
        return TrainConfig(model="rexnet_100", width_mult=float(next(widths)))

    turns = in_turns(
        {
            "counted": lambda: [models.count(candidate(), Shape(400, 224)) for _ in range(50)],
            "built": lambda: [models.build_model(candidate(), Shape(400, 224)) for _ in range(2)],
        },
        bench,
    )
    turns = {"counted": [value / 50 for value in turns["counted"]], "built": [value / 2 for value in turns["built"]]}
    print_ratios("rexnet_100 of a new width, 400 classes, ms", turns, 1000, bench.rounds)


def validation(bench: Bench) -> None:
    """Pictures a second in validation against training, end to end, ours."""
    from dataclasses import replace

    from trainer.config import TrainConfig
    from trainer.fit import fit

    rows = []
    for size in bench.sizes:
        data, device = opened(bench, size)
        some = {"train": data.splits["train"][:160], "val": data.splits["train"][:512], "test": data.splits["test"]}
        config = TrainConfig.model_validate(RECIPE | {"epochs": bench.rounds + 1})
        ratios = []
        for result in fit(config, replace(data, splits=some), device):
            train_seconds = 160 / result.images_per_second
            ratios.append(512 / (result.seconds - train_seconds) / result.images_per_second)
        rows.append([f"{size} px", f"{statistics.median(ratios[1:]):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"])
    print_table(["validation : training, images/s", "median", "range"], rows, bench.rounds)


def checkpoint(bench: Bench) -> None:
    """Saving and loading the state of the widest rexnet_100 under 5,000,000 parameters with AdamW, durably."""
    import torch

    from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from trainer.config import EpochResult, Shape, TrainConfig
    from trainer.device import open_device
    from trainer.models import build_model
    from trainer.optim import WeightAverage, build_optimizer

    device = open_device(bench.device, 1)
    config = TrainConfig(model="rexnet_100", width_mult=1.12451, ema=0.999)
    model = device.place(build_model(config, Shape(400, 64)))
    optimizer = build_optimizer(config, model)
    model(torch.randn(2, 3, 32, 32, device=device.torch_device)).sum().backward()
    optimizer.step()
    result = EpochResult(epoch=1, train_loss=1, val_loss=1, val_accuracy=0, seconds=1, images_per_second=1)
    average = WeightAverage(config, model).model.state_dict()
    path = bench.folder / "checkpoints" / "trial.ckpt"
    rows = []
    for name, ema in (("weights and two moments", None), ("with averaged weights", average)):
        state = Checkpoint(
            config=config,
            data_hash="",
            num_threads=1,
            history=(result,),
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            ema=ema,
        )
        turns = in_turns(
            {
                "save": lambda state=state: save_checkpoint(path, state),
                "load": lambda: load_checkpoint(path),
                "write and fsync alone": lambda: plain_write(path.with_name("plain"), path.stat().st_size),
            },
            bench,
            wall=True,
        )
        for what, values in turns.items():
            size = f"{path.stat().st_size / 1e6:.0f} MB"
            low, high = (f"{1000 * bound:.0f}" for bound in (min(values), max(values)))
            rows.append([f"{name}, {size}: {what}", f"{1000 * statistics.median(values):.0f}", f"{low} to {high}"])
    print_table(["checkpoint", "wall ms, median", "range"], rows, bench.rounds)


def plain_write(path: Path, size: int) -> None:
    """What the disk itself takes for so many bytes."""
    content = bytes(size)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def ema(bench: Bench) -> None:
    """A weight average's part of a step, ours and timm's."""
    import torch
    from timm.utils import ModelEmaV3

    from trainer.config import TrainConfig
    from trainer.losses import build_loss, count_classes
    from trainer.models import build_model
    from trainer.optim import WeightAverage, build_optimizer

    data, device = opened(bench, 64)
    config = TrainConfig.model_validate(RECIPE | {"ema": 0.999})
    model = device.place(build_model(config, data.shape)).train()
    optimizer, loss_of = build_optimizer(config, model), build_loss(config, count_classes(data), device.torch_device)
    average, theirs = WeightAverage(config, model), ModelEmaV3(model)
    images = torch.randn(32, 3, 64, 64).to(device.torch_device, memory_format=torch.channels_last)
    labels = torch.randint(len(data.class_names), (32,)).to(device.torch_device)

    def step() -> None:
        optimizer.zero_grad()
        with device.autocast(config):
            logits = model(images)
        loss_of(logits.float(), labels).backward()
        optimizer.step()

    ways = {"ours": lambda: average.update(10_000), "timm ModelEmaV3": lambda: theirs.update(model), "step": step}
    turns = in_turns({name: lambda way=way: [way() for _ in range(4)] for name, way in ways.items()}, bench)
    print_ratios(f"rexnet_100, 64 px, batch 32, one thread: {bench.clock} ms", turns, 1000 / 4, bench.rounds)


def start(bench: Bench) -> None:
    """From an assignment to the first step in a warm worker: sizes found, candidate counted, net built, first batch."""
    import torch

    from search.plan.width import Fitter
    from studies import Limit
    from trainer.config import TrainConfig
    from trainer.fit import fit

    data, device = opened(bench, 64)

    class FirstStep(Exception):
        """The first batch reached the model."""

    def stop(module: torch.nn.Module, *_: object) -> None:
        if module.training:
            raise FirstStep

    seconds = []
    for number in range(bench.rounds + 1):
        begun = time.perf_counter()
        config = TrainConfig.model_validate(RECIPE | {"width_mult": 0.9 + 0.01 * number, "ema": 0.999})
        Fitter(data.shape, Limit(params=5_000_000)).check(config)
        handle = torch.nn.modules.module.register_module_forward_pre_hook(stop)
        try:
            next(fit(config, data, device))
        except FirstStep:
            seconds.append(time.perf_counter() - begun)
        finally:
            handle.remove()
    values = [1000 * value for value in seconds[1:]]
    low, high = min(values), max(values)
    print_table(
        ["assignment to first step, a warm worker", "wall ms, median", "range"],
        [["rexnet_100, 64 px, with a weight average", f"{statistics.median(values):.0f}", f"{low:.0f} to {high:.0f}"]],
        bench.rounds,
    )


def large(bench: Bench) -> None:
    """A synthetic cache of --gigabytes at 224 px, random pixels, read in shuffled batches as training reads it."""
    from trainer.augment import HostAugmentation
    from trainer.config import TrainConfig
    from trainer.device import open_device
    from trainer.loader import Loader

    record = 224 * 224 * 3
    total = int(bench.gigabytes * 1e9 / record)
    path = bench.folder / "large.npy"
    if shutil.disk_usage(bench.folder).free < 1.2 * total * record:
        raise SystemExit(f"{bench.gigabytes:g} GB do not fit in {bench.folder}; choose fewer --gigabytes")
    noise = np.random.default_rng(0).integers(0, 256, 64 * record, dtype=np.uint8).tobytes()
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (total, 224, 224, 3)}
        )
        for first in range(0, total, 64):
            file.write(noise[: min(64, total - first) * record])
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        images = np.load(path, mmap_mode="r")

        class Pictures:
            """As much of a Dataset as a loader reads."""

            def __init__(self) -> None:
                self.images = images

        loader = Loader(Pictures(), HostAugmentation(TrainConfig()), open_device("cpu", 1), 0)  # type: ignore[arg-type]
        order = np.random.default_rng(1).permutation(total)
        batches = [order[start : start + 64] for start in range(0, total - 64, 64)]
        began, seen, rows = time.perf_counter(), 0, []
        for pictures in loader.epoch(1, batches, plain=True):
            seen += len(pictures)
            if time.perf_counter() - began > 30:
                break
        seconds = time.perf_counter() - began
        rate = f"{seen / seconds:.0f} pictures/s, {seen * record / seconds / 1e6:.0f} MB/s"
        whole = f"{total:,} pictures of 224 px, {total * record / 1e9:.1f} GB"
        rows.append([whole, f"{psutil.virtual_memory().total / 1e9:.1f} GB", rate, f"{seen:,}"])
        print_table(
            ["cache, none of it in memory at first", "memory", "shuffled, one worker", "pictures read"], rows, 1
        )
    finally:
        path.unlink()


def opened(bench: Bench, size: int) -> tuple[Any, Any]:
    """The pictures at a size, and the device with one thread."""
    from trainer.config import DataConfig
    from trainer.data import prepare_data
    from trainer.device import open_device

    source = DataConfig(path=str(resized(bench.images, bench.folder, size)), image_size=size, val_fraction=0.05)
    return prepare_data(source, bench.folder / "cache"), open_device(bench.device, 1)


def in_turns(ways: dict[str, Callable[[], object]], bench: Bench, *, wall: bool = False) -> dict[str, list[float]]:
    """CPU (or wall) seconds of each way, one after the other, ``rounds`` times, after one that warms up.

    On a GPU they are wall seconds until it has done what it was given: the CPU only hands out the work.
    """
    import torch

    clock = time.perf_counter if wall or bench.device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(bench.rounds + 1):
        for name, way in ways.items():
            begun = clock()
            way()
            if bench.device == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(clock() - begun)
    return seconds


def print_ratios(title: str, turns: dict[str, list[float]], factor: float, rounds: int) -> None:
    """Each way's median, and how many times the first one's it is."""
    first = next(iter(turns.values()))
    rows = []
    for name, values in turns.items():
        ratio = statistics.median(value / mine for value, mine in zip(values, first, strict=True))
        rows.append([name, f"{factor * statistics.median(values):.3f}", f"{ratio:.3g}"])
    print_table([title, "median", "times the first"], rows, rounds)


def print_table(head: list[str], rows: list[list[str]], rounds: int) -> None:
    """A table of Markdown."""
    text = io.StringIO()
    for row in (head, ["---"] * len(head), *rows):
        text.write("| " + " | ".join(row) + " |\n")
    print(f"\nn = {rounds}\n\n{text.getvalue()}", end="", flush=True)


def resized(images: Path, folder: Path, size: int) -> Path:
    """A folder of the same pictures as JPEG of ``size`` pixels, made once."""
    final = folder / f"{images.name}-{size}"
    if final.exists():
        return final
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(final.with_suffix(".partial"))
    for source in sorted((images / "train").glob("*/*")):
        with Image.open(source) as picture:
            target = final.with_suffix(".partial") / "train" / source.parent.name / f"{source.stem}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC).save(target, quality=92)
    final.with_suffix(".partial").rename(final)
    return final
