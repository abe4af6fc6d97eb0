"""The child process: one device, one trial at a time, every epoch's result sent and answered.

It knows nothing of Optuna or of the database. In come JSON lines on stdin, out go JSON lines on stdout:

    -> {"type": "ready", "device"}
    <- {"type": "assign", "trial", "config", "width", "data", "cache", "checkpoint", "limit", "micro_batches"}
                          of a training for an export also "fit_on", "start"
    -> {"type": "started", "trial", "num_params", "macs", "sizes"}
    -> {"type": "epoch", "trial", "result", "memory_bytes"}   durable in the checkpoint by then
    <- {"type": "answer", "go_on": true | false}
    -> {"type": "left", "trial"}                     after an answer that says no, or after the last epoch
    -> {"type": "failed", "trial", "kind", "error"}  kind: diverged | disk | memory | device | user | crash

The end of stdin means that the coordinator is gone: the process exits at once. At most the epoch in progress is lost.
A process that is stopped or stuck cannot see it, so the system is asked to kill it when its parent ends. Signals that
were meant for the whole session (Ctrl-C, Slurm's SIGTERM, a closed terminal) are the coordinator's to answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

EXIT_COORDINATOR_GONE = 75

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    """Serve assignments until stdin ends."""
    kind, num_threads = sys.argv[1], int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    # Libraries print to stdout; the real one is for messages alone.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        try:
            channel.write(json.dumps(message) + "\n")
            channel.flush()
        except BrokenPipeError:
            os._exit(EXIT_COORDINATOR_GONE)

    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(inbox,), daemon=True).start()

    gc.disable()  # looking again and again through all that torch and timm leave takes an eighth of their import
    from trainer.device import open_device  # torch and timm: 4 to 8 s, once per process

    gc.freeze()
    gc.enable()
    device = open_device(kind, num_threads)
    send({"type": "ready", "device": device.name})
    datasets: dict[tuple[str, str], Any] = {}
    while True:
        assignment = inbox.get()
        try:
            _train(assignment, device, datasets, inbox, send)
        except Exception as error:
            with contextlib.suppress(OSError):  # the log lies on the disk that may just have filled up
                traceback.print_exc()
            failure = {"kind": _kind_of(error), "error": f"{type(error).__name__}: {error}"}
            send({"type": "failed", "trial": assignment["trial"], **failure})


def _train(assignment: dict[str, Any], device: Any, datasets: dict[Any, Any], inbox: Any, send: Any) -> None:
    import torch

    from search.plan.width import check_fits, resolve_sizes
    from studies import Limit
    from trainer.checkpoint import load_checkpoint
    from trainer.config import SIZE_SETTINGS, DataConfig, TrainConfig
    from trainer.data import open_data
    from trainer.fit import fit, fit_folds
    from trainer.values import validate

    trial, limit = assignment["trial"], Limit.model_validate(assignment["limit"])
    config = validate(TrainConfig, assignment["config"], "candidate")
    key = (assignment["cache"], json.dumps(assignment["data"]))
    first_on_these = key not in datasets
    if first_on_these:
        datasets.clear()
        datasets[key] = open_data(DataConfig.model_validate(assignment["data"]), Path(assignment["cache"]))
    data = datasets[key]
    start = None
    if "fit_on" in assignment:  # a training for an export
        data = data.trained_on(assignment["fit_on"])
        if assignment["start"]:
            before = load_checkpoint(Path(assignment["start"]))
            assert before is not None, "a last stage begins with what the stage before left"
            start = before.weights
    torch.set_num_threads(device.num_threads)  # a resumed trial may have set its own

    num_classes, image_size, channels = len(data.class_names), data.images.shape[1], data.images.shape[3]
    if assignment["width"] is not None:
        config = resolve_sizes(
            config,
            **assignment["width"],
            num_classes=num_classes,
            image_size=image_size,
            limit=limit,
            channels=channels,
        )
    size = check_fits(config, num_classes, image_size, limit, channels)
    if first_on_these:
        print("\n".join(device.choices(config, data.images)), flush=True)  # to the log
    sizes = {name: getattr(config, name) for name in SIZE_SETTINGS}
    send({"type": "started", "trial": trial, "num_params": size.params, "macs": size.macs, "sizes": sizes})
    checkpoint, folds = Path(assignment["checkpoint"]), assignment["data"]["folds"]
    micro = assignment["micro_batches"]
    if folds:
        seed = assignment["data"]["split_seed"]
        results = fit_folds(config, data, device, folds=folds, seed=seed, checkpoint=checkpoint, micro_batches=micro)
    else:
        results = fit(config, data, device, checkpoint=checkpoint, micro_batches=micro, start=start)
    for result in results:
        if result.final and not folds and "fit_on" not in assignment:
            _leave_confusion(trial, checkpoint, config, data, device)
        send({"type": "epoch", "trial": trial, "result": asdict(result), "memory_bytes": _peak_memory_bytes()})
        if not inbox.get()["go_on"]:
            break
    send({"type": "left", "trial": trial})


def _leave_confusion(trial: int, checkpoint: Path, config: Any, data: Any, device: Any) -> None:
    """Leave what a finished candidate mistakes for what, on validation, beside its checkpoint: for the study's page."""
    import numpy as np

    from trainer.checkpoint import load_checkpoint
    from trainer.evaluate import measure, predict_logits
    from trainer.models import build_model

    saved = load_checkpoint(checkpoint)
    if saved is None:
        return
    net = build_model(config, len(data.class_names), *data.images.shape[2:])
    net.load_state_dict(saved.weights)
    with device.autocast(config):  # as the trial's own value was found
        logits = predict_logits(device.place(net).eval(), data, "val", device)
    confusion = measure(logits, data.labels[data.splits["val"]]).confusion
    with contextlib.suppress(OSError):  # a picture is not worth a trial
        np.savez(checkpoint.with_name("confusion.npz"), trial=trial, confusion=confusion, names=data.class_names)


def _peak_memory_bytes() -> int:
    """The most this process has had: reserved on its GPU, else resident; without its loader processes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _kind_of(error: Exception) -> str:
    import torch

    from trainer.device import is_out_of_memory
    from trainer.errors import DiskError, DivergedError, TrainerError

    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, DiskError):
        return "disk"
    if isinstance(error, TrainerError):
        return "user"
    if is_out_of_memory(error):
        return "memory"
    return "device" if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error) else "crash"


def _die_with_parent() -> None:
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before
            os._exit(EXIT_COORDINATOR_GONE)


def _receive(inbox: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    os._exit(EXIT_COORDINATOR_GONE)


if __name__ == "__main__":
    main()
