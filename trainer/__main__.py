"""Train one candidate from a study file and print its epochs: ``python -m trainer STUDY.toml --set train.lr=0.01``."""

from __future__ import annotations

import argparse
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

from trainer.config import DataConfig, EpochResult, TrainConfig
from trainer.errors import ConfigError, TrainerError
from trainer.results import macs_in_words
from trainer.values import override, text_of, validate

EXIT_USER_ERROR = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, or 2 after an error message on stderr."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("study", type=Path, metavar="STUDY.toml", help="its [data] and [train] tables are used")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example train.epochs=3")
    parser.add_argument("--data", metavar="DIR", help="folder of pictures; overrides data.path")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads; default: one per core; to train on a CPU, at most OMP_NUM_THREADS",
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), metavar="DIR", help="decoded pictures")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="keeps the state; if it exists, training goes on from it"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per epoch")
    options = parser.parse_args(arguments)
    try:
        train(options)
    except TrainerError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def train(options: argparse.Namespace) -> None:
    """Prepare the pictures, train, print."""
    for assignment in options.set:
        if not assignment.strip().startswith(("data.", "train.")):
            raise ConfigError(f"--set {assignment!r}: only data.* and train.* are used here, as in train.epochs=3")
    data_config, config = read_study(options.study, options.set)
    if options.data:
        data_config = validate(DataConfig, data_config.model_dump() | {"path": options.data}, f"--data {options.data}")
    if problem := data_config.crop_problem(config.random_crop):
        raise ConfigError(problem)
    if data_config.folds:
        raise ConfigError(
            f"data.folds = {data_config.folds}: python -m trainer trains once, on one validation split; use"
            " --set data.folds=0, or the command search launch"
        )

    from trainer.data import prepare_data
    from trainer.device import best_kind, open_device  # torch takes 3 s, and the study file may be invalid
    from trainer.fit import fit
    from trainer.models import count

    data = prepare_data(data_config, options.cache)
    kind = options.device or best_kind()
    device = open_device(kind, options.threads)
    size = count(config, data.shape)
    if not options.json:
        counts = ", ".join(f"{len(indices):,} {split}" for split, indices in data.splits.items())
        print(f"{config.model}, {size.params:,} parameters, {macs_in_words(size.macs)}, on {device.name}")
        print(f"{len(data.class_names)} classes, pictures: {counts}")
        print("\n".join(device.choices(config, data.images)))
        print("epoch  train loss  train acc.  val loss  val acc.  seconds  pictures/s")
    for result in fit(config, data, device, checkpoint=options.checkpoint):
        print_epoch(result, as_json=options.json)


def print_epoch(result: EpochResult, *, as_json: bool) -> None:
    """Print one line for an epoch."""
    if as_json:
        import json

        print(json.dumps(asdict(result)), flush=True)
        return
    trained = "-" if result.train_accuracy is None else f"{result.train_accuracy:.2%}"  # an older result has none
    print(
        f"{result.epoch:5d}  {result.train_loss:10.4f}  {trained:>10}  {result.val_loss:8.4f}"
        f"  {result.val_accuracy:8.2%}  {result.seconds:7.1f}  {result.images_per_second:10.0f}",
        flush=True,
    )


def read_study(path: Path, assignments: list[str]) -> tuple[DataConfig, TrainConfig]:
    """The [data] and [train] tables of a study file, with ``KEY=VALUE`` assignments applied."""
    try:
        values = override(tomllib.loads(text_of(path)), assignments)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    data = validate(DataConfig, values.get("data", {}), f"{path} [data]")
    return data, validate(TrainConfig, values.get("train", {}), f"{path} [train]")


if __name__ == "__main__":
    sys.exit(main())
