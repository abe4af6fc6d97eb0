"""A worker without torch, for the contract of pools: what it plays is in its assignment. Also run as a process.

trains  two epochs, then lets go          crashes   says an epoch, prints why, and exits with code 3
fails   says so, and waits for more       sleeps    says nothing
keeps   as trains, and appends the number of each epoch to its checkpoint; its first epoch has another file
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from search.process import versions
from search.workers.failures import Failure
from search.workers.messages import Assign, Epoch, Failed, FromWorker, Left, Placed, Ready, Started, to_json, to_worker
from search.workers.pool import Exit
from studies import Limit
from trainer.config import DataConfig, EpochResult
from trainer.kept import move_into_place

COMPLAINT = "ValueError: it was not meant to be"


def assignment(play: str, trial: int = 0) -> Assign:
    config: dict[str, object] = {"play": play}
    data = DataConfig(source="digits")
    return Assign(trial=trial, config=config, data=data, cache="", checkpoint="no/checkpoint", limit=Limit())


def epoch(trial: int, number: int) -> Epoch:
    result = EpochResult(
        epoch=number,
        train_loss=float("inf"),
        val_loss=0.1,
        val_accuracy=number / 3,
        seconds=0.1,
        images_per_second=1.0,
        final=number == 2,
    )
    return Epoch(trial=trial, result=result, memory_bytes=1)


def play(given: Assign, _times: int = 0) -> Iterator[FromWorker | Exit | None]:
    """What the worker says; an Epoch is answered before the next message. None is a silent moment."""
    match given.config["play"]:
        case "trains":
            yield Started(trial=given.trial, num_params=1, macs=2, sizes={"width_mult": 0.1 + 0.2})
            yield epoch(given.trial, 1)
            yield epoch(given.trial, 2)
        case "keeps":
            file = Path(given.checkpoint)
            file.parent.mkdir(parents=True, exist_ok=True)
            if given.teacher is not None:
                print(Path(given.teacher, "config.json").read_text(), file=sys.stderr)
            for number in (1, 2):
                before = file if file.exists() or given.start is None else Path(given.start)
                partial = file.with_name("checkpoint.partial")
                partial.write_text(f"{before.read_text() if before.exists() else ''}{number}")
                move_into_place(partial, file)
                if not (confusion := file.with_name("confusion.npz")).exists():
                    confusion.write_text("c")
                yield epoch(given.trial, number)
        case "fails":
            yield Failed(trial=given.trial, failure=Failure(kind="crash", sentence=COMPLAINT))
        case "crashes":
            yield Started(trial=given.trial, num_params=1, macs=2)
            yield Exit(3, COMPLAINT)
        case "sleeps":
            while True:
                yield None


def main() -> None:
    """Be a worker's process: messages on stdin and stdout."""

    def say(message: FromWorker) -> None:
        sys.stdout.buffer.write(to_json(message))
        sys.stdout.buffer.flush()

    say(Placed(node="here", gpu=None, kind="cpu", versions=versions()))
    say(Ready(device="a play"))
    for line in sys.stdin:
        given = to_worker(line)
        if not isinstance(given, Assign):
            continue  # an answer to an epoch before which the play let go
        for message in play(given):
            if message is None:
                time.sleep(0.05)
            elif isinstance(message, Exit):
                print(message.log_tail, file=sys.stderr)
                sys.exit(message.returncode)
            else:
                say(message)
            if isinstance(message, Failed):
                break
            if isinstance(message, Epoch):
                answer = to_worker(sys.stdin.readline())
                if isinstance(answer, Assign) or not answer.go_on:
                    say(Left(trial=given.trial))
                    break
        else:
            say(Left(trial=given.trial))


if __name__ == "__main__":
    main()
