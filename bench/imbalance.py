"""What corrects uneven classes: ``python -P bench/imbalance.py CIFAR10.zip [--seeds 5] [--epochs 10] [--most 500]``.

The zip holds cifar10/{train,test}/CLASS/*. The training split is cut to a long tail, in which class i of 10 has
MOST * 100 ** (-i / 9) pictures, and, for the second table, to as many pictures in even classes. Each way trains the
same net with the same seeds and the same number of steps. Judged on even test pictures that chose nothing. One thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainer.checkpoint import load_checkpoint
from trainer.config import DataConfig, TrainConfig
from trainer.data import Dataset, prepare_data
from trainer.device import Device, open_device
from trainer.evaluate import predict_logits
from trainer.fit import fit
from trainer.models import build_model

RATIO = 100
"""Pictures of the largest class to those of the smallest."""

VALIDATION, TEST = 20, 300
"""Pictures of each class in the two other splits."""

RECIPE: dict[str, Any] = {
    "model": "resnet10t",
    "width_mult": 0.25,
    "batch_size": 64,
    "lr": 3e-3,
    "warmup_epochs": 1,
    "weight_decay": 0.05,
    "hflip": 0.5,
    "crop_padding": 4,
}

WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    'class_weights = "inverse"': {"class_weights": "inverse"},
    'class_weights = "effective"': {"class_weights": "effective"},
    'class_sampling = "balanced"': {"class_sampling": "balanced"},
    "logit_adjustment = 1.0": {"logit_adjustment": 1.0},
    'loss = "focal"': {"loss": "focal"},
}

AS_NONE_IF_EVEN = ('class_weights = "inverse"', 'class_weights = "effective"', 'class_sampling = "balanced"')
"""Ways that even classes need not be measured with: all weights are 1 then, and the order is the same."""


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zip", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--most", type=int, default=500, help="training pictures of the largest class")
    parser.add_argument("--only", default="", help="only the ways whose name has this, and none")
    asked = parser.parse_args()
    device, begun = open_device("cpu", 1), time.monotonic()
    tail = [round(asked.most * RATIO ** (-label / 9)) for label in range(10)]
    for title, counts in ((f"{RATIO}:1", tail), ("even", [sum(tail) // 10] * 10)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = cut(asked.zip, counts, folder)
            found = {
                way: np.array(
                    [train(settings, seed, asked.epochs, data, device, folder) for seed in range(asked.seeds)]
                )
                for way, settings in WAYS.items()
                if asked.only in way or way == "none"
                if title != "even" or way not in AS_NONE_IF_EVEN
            }
        print(f"\n{title}: {', '.join(map(str, counts))} training pictures; {asked.epochs} epochs\n")
        print("\n".join(table(found)), flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s")


def cut(archive: Path, counts: Sequence[int], folder: Path) -> Dataset:
    """The first ``counts`` training pictures of each class, and the two even splits."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
        for label, class_name in enumerate(sorted({name.split("/")[2] for name in names})):
            of_class = {split: [n for n in names if f"/{split}/{class_name}/" in n] for split in ("train", "test")}
            parts = {
                "train": of_class["train"][: counts[label]],
                "val": of_class["test"][:VALIDATION],
                "test": of_class["test"][VALIDATION : VALIDATION + TEST],
            }
            for split, chosen in parts.items():
                (folder / "pictures" / split / class_name).mkdir(parents=True)
                for name in chosen:
                    target = folder / "pictures" / split / class_name / Path(name).name
                    target.write_bytes(opened.read(name))
    config = DataConfig(path=str(folder / "pictures"), image_size=32)
    return prepare_data(config, folder / "cache")


def train(
    settings: dict[str, Any], seed: int, epochs: int, data: Dataset, device: Device, folder: Path
) -> tuple[float, float]:
    """Train one net. Returns its accuracy and macro F1 on the test split, in points."""
    config = TrainConfig.model_validate(RECIPE | settings | {"seed": seed, "epochs": epochs})
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for _ in fit(config, data, device, checkpoint=Path(name, "checkpoint")):
            pass
        state = load_checkpoint(Path(name, "checkpoint"))
    assert state is not None
    model = build_model(config, data.shape)
    model.load_state_dict(state.weights)
    labels = data.labels[data.splits["test"]]
    predicted = predict_logits(device.place(model).eval(), data, "test", device).argmax(dim=1).numpy()
    return 100 * float((predicted == labels).mean()), 100 * float(f1_score(labels, predicted, average="macro"))


def table(found: dict[str, np.ndarray]) -> Iterator[str]:
    """Lines of Markdown: each way's means, and its gain over none with a 95% interval over the seeds."""
    yield "| correction | accuracy | macro F1 | gain in accuracy | gain in macro F1 |"
    yield "| --- | --- | --- | --- | --- |"
    for way, scores in found.items():
        cells = [f"{mean:.1f}" for mean in scores.mean(axis=0)]
        cells += [""] * 2 if way == "none" else [interval(gains) for gains in (scores - found["none"]).T]
        yield f"| {way} | {' | '.join(cells)} |"


def interval(gains: np.ndarray) -> str:
    """The mean of paired differences with Student's 95% interval."""
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
    return f"{gains.mean():+.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
