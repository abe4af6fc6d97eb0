"""``search predict`` on a folder: memory, and pictures a second beside a plain loop: ``python -P bench/predict.py``.

An untrained rexnet_100 of 224 px with 400 classes, and JPEGs of 224 px: DISTINCT different files, the others are hard
links to them. The plain loop has one thread for Pillow and the defaults of ONNX Runtime, and the same batches. Both
are processes of their own, and take turns. The difference between two numbers of pictures leaves out the start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for PLAIN, as for `search`

SIZE, CLASSES, DISTINCT, BATCH = 224, 400, 200, 16

PLAIN = """
import csv, sys
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image

export, folder, out, size, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5].split(",")
session = onnxruntime.InferenceSession(export / "model.onnx", providers=["CPUExecutionProvider"])
files = sorted(Path(folder).iterdir())
with open(out, "w", newline="") as table:
    rows = csv.writer(table)
    for start in range(0, len(files), size):
        read = [np.asarray(Image.open(file).convert("RGB")) for file in files[start : start + size]]
        batch = (np.stack(read).astype(np.float32) / 255 - 0.5) / np.float32(0.25)
        logits = session.run(["logits"], {"pictures": np.ascontiguousarray(batch.transpose(0, 3, 1, 2))})[0]
        rows.writerows(zip((file.stem for file in files[start:]), (names[one] for one in logits.argmax(1))))
"""


@dataclass(frozen=True)
class Run:
    """A process that has ended."""

    seconds: float
    cpu_seconds: float
    megabytes: float
    """Peak resident memory."""


def make_export(folder: Path) -> None:
    """An export as far as ``search predict`` reads it."""
    from search.export.build import write_graphs  # imports torch, in a process of its own: see ``run``
    from trainer.config import Shape, TrainConfig
    from trainer.models import build_model
    from trainer.sums import write_sums

    folder.mkdir()
    net = build_model(TrainConfig(model="rexnet_100"), Shape(CLASSES, SIZE)).eval()
    write_graphs(folder, net, (3, SIZE, SIZE), ["onnx"], {})
    preprocessing = {"input_size": [3, SIZE, SIZE], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    preprocessing |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    names = [f"class {number}" for number in range(CLASSES)]
    (folder / "config.json").write_text(json.dumps({"label_names": names, "pretrained_cfg": preprocessing}))
    write_sums(folder)


def make_pictures(folder: Path, number: int) -> None:
    """JPEGs with large and small shapes, of about 15 kB each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        file = folder / f"{index:05}.jpg"
        if index < DISTINCT:
            coarse, fine = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (7, 56))
            layers = [Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for one in (coarse, fine)]
            Image.blend(layers[0], layers[1], 0.3).save(file, quality=90)
        else:
            os.link(folder / f"{index % DISTINCT:05}.jpg", file)


def run(command: list[str]) -> Run:
    """Run a command, and take its time and its peak memory, which Linux counts from that of this process on."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Run(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000, help="for the memory")
    parser.add_argument("--paired", type=int, default=400, help="pictures of each process of a pair")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--make", type=Path, help="only write the export, here")
    asked = parser.parse_args()
    if asked.make is not None:
        make_export(asked.make)
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        export, out = root / "export", root / "out.csv"
        subprocess.run([sys.executable, "-P", __file__, "--make", str(export)], check=True, stdout=subprocess.DEVNULL)
        names = ",".join(f"class {number}" for number in range(CLASSES))

        def ours(folder: Path) -> list[str]:
            return [sys.executable, "-m", "search", "predict", *map(str, (export, folder)), "--out", str(out)]

        def plain(folder: Path) -> list[str]:
            return [sys.executable, "-c", PLAIN, *map(str, (export, folder, out, BATCH)), names]

        few, one = root / "few", root / "one"
        make_pictures(few, asked.paired)
        make_pictures(one, 1)
        ways = {"search predict": ours, "a plain loop": plain}
        taken: dict[str, list[tuple[Run, Run]]] = {way: [] for way in ways}
        for number in range(asked.pairs):
            for way in list(ways)[:: 1 if number % 2 else -1]:
                taken[way].append((run(ways[way](one)), run(ways[way](few))))
        print(f"{asked.paired} pictures less 1, {os.cpu_count()} cores, {platform.machine()}")
        print("| | pictures/s, median | least | most | CPU ms a picture | start, s | peak MB | n |")
        print("| --- " * 8 + "|")
        speeds = {}
        for way, runs in taken.items():
            speeds[way] = [(asked.paired - 1) / (two.seconds - start.seconds) for start, two in runs]
            cpu = [1000 * (two.cpu_seconds - start.cpu_seconds) / (asked.paired - 1) for start, two in runs]
            shown = f"{statistics.median(speeds[way]):.1f} | {min(speeds[way]):.1f} | {max(speeds[way]):.1f}"
            begun = statistics.median(start.seconds for start, _ in runs)
            most = max(two.megabytes for _, two in runs)
            print(f"| {way} | {shown} | {statistics.median(cpu):.1f} | {begun:.1f} | {most:.0f} | {len(runs)} |")
        ratios = [mine / other for mine, other in zip(*speeds.values(), strict=True)]
        print(f"as fast as the plain loop, in pairs: {statistics.median(ratios):.2f} times", end="")
        print(f" ({min(ratios):.2f} to {max(ratios):.2f})")
        if asked.pictures:
            make_pictures(root / "many", asked.pictures)
            whole = run(ours(root / "many"))
            lines = len(out.read_text().splitlines()) - 1
            speed = lines / whole.seconds
            print(f"{lines:,} pictures: {whole.seconds:.0f} s, {speed:.1f} a second, peak {whole.megabytes:.0f} MB")


if __name__ == "__main__":
    main()
