"""The child process: it trains one trial at a time on one device, and waits for an answer after each epoch.

The module imports neither Optuna nor the database. Messages (search/workers/messages.py) come in on stdin and go out
on stdout, a line of JSON each.

The end of stdin means that the coordinator is gone: the process exits immediately. At most the epoch in progress is
lost. A stopped or stuck process cannot notice the end of stdin, so the system is asked to kill it when its parent ends.
Signals to the whole session (Ctrl-C, a closed terminal) are ignored here; the coordinator handles them. On Slurm,
SIGTERM announces the end of the job: see ``Preemption``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import queue
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from search.workers.failures import Failure
    from search.workers.messages import Answer, Assign, FromWorker
    from trainer.config import TrainConfig
    from trainer.data import Dataset
    from trainer.device import Device

    Send: TypeAlias = Callable[[FromWorker], None]
    Inbox: TypeAlias = queue.SimpleQueue[Assign | Answer]

EXIT_COORDINATOR_GONE = 75
EXIT_PREEMPTED = 76

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    """Serve assignments until stdin ends."""
    kind, num_threads, sharing, place = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    preemption = Preemption()
    if place == "slurm":
        preemption.watch()
    _die_with_parent()
    # Libraries print to stdout, so messages get a channel of their own.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    gc.disable()  # collections during the import of torch and timm take an eighth of its time
    from search.process import versions
    from search.workers.messages import Assign, Failed, Placed, Ready, to_json, to_worker

    def send(message: FromWorker) -> None:
        try:
            channel.write(to_json(message))
            channel.flush()
        except BrokenPipeError:
            os._exit(EXIT_COORDINATOR_GONE)

    def receive() -> None:
        for line in sys.stdin:
            inbox.put(to_worker(line))
        os._exit(EXIT_COORDINATOR_GONE)

    gpu = _own_gpu(place) if kind == "cuda" else None
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu or ""
    node = os.environ.get("SLURMD_NODENAME") if place == "slurm" else None
    send(Placed(node=node or socket.gethostname(), gpu=gpu, kind="cpu" if gpu is None else "cuda", versions=versions()))
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=receive, daemon=True).start()

    from trainer.device import open_device  # torch and timm: 4 to 8 s, once per process

    gc.freeze()
    gc.enable()
    device = open_device(kind, num_threads, sharing)
    send(Ready(device=device.name))
    datasets: dict[tuple[str, str], Dataset] = {}
    while True:
        with preemption.may_leave():
            assignment = inbox.get()
        assert isinstance(assignment, Assign), "an answer comes while its epoch waits for it"
        try:
            _train(assignment, device, datasets, inbox, send, preemption)
        except Exception as error:
            with contextlib.suppress(OSError):  # the log is on the disk that may just have filled up
                traceback.print_exc()
            send(Failed(trial=assignment.trial, failure=replace(_failure_of(error), with_pictures=bool(device.held))))
        device.forget()


class Preemption:
    """The end of a worker whose cluster takes its device back: after the epoch in progress; without one,
    immediately."""

    def __init__(self) -> None:
        self._asked = self._now = False

    def watch(self) -> None:
        """Wait for SIGTERM in a thread. Processes that load pictures get the signal too; there it stays blocked."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

        def wait() -> None:
            signal.sigwait({signal.SIGTERM})
            self._asked = True
            if self._now:
                os._exit(EXIT_PREEMPTED)

        threading.Thread(target=wait, daemon=True).start()

    @contextlib.contextmanager
    def may_leave(self) -> Iterator[None]:
        """While the block runs, the process may end immediately, because it has nothing to finish."""
        self._now = True
        if self._asked:
            os._exit(EXIT_PREEMPTED)
        yield
        self._now = False

    def leave_if_asked(self) -> None:
        """End the process if the cluster has asked for that. To be called after each epoch."""
        with self.may_leave():
            pass


def _own_gpu(place: str) -> str:
    """UUID of the GPU of this process. On a cluster, CUDA_VISIBLE_DEVICES may hold a number; NVML gives the UUID."""
    if place == "here":
        return os.environ["CUDA_VISIBLE_DEVICES"]
    from search.devices import visible_gpus
    from trainer.errors import ConfigError

    usable = [one for gpu in visible_gpus() if gpu.problem is None for one in gpu.usable]
    if not usable:
        raise ConfigError(f"{socket.gethostname()} shows no GPU that can be used, and its job asked for one")
    return usable[0].uuid


def _train(
    assignment: Assign,
    device: Device,
    datasets: dict[tuple[str, str], Dataset],
    inbox: Inbox,
    send: Send,
    preemption: Preemption,
) -> None:
    import torch

    from search.plan.width import Fitter
    from search.workers.messages import Answer, Epoch, Left, Started
    from studies.final import num_drawn_again
    from trainer.checkpoint import load_checkpoint
    from trainer.config import SIZE_SETTINGS, TrainConfig
    from trainer.data import open_data
    from trainer.distill import moved
    from trainer.fit import fit, fit_folds
    from trainer.hrank import drawn_again, ranks_at, ranks_file
    from trainer.values import validate

    trial, limit = assignment.trial, assignment.limit
    device = replace(device, keeps_pictures=not assignment.streamed)
    config = validate(TrainConfig, assignment.config, "candidate")
    if config.distill is not None and assignment.teacher is not None:
        moved[config.distill.teacher] = Path(assignment.teacher)
    key = (assignment.cache, assignment.data.model_dump_json())
    first_on_these = key not in datasets
    if first_on_these:
        datasets.clear()
        datasets[key] = open_data(assignment.data, Path(assignment.cache))
    data = datasets[key]
    start = None
    if assignment.fit_on is not None:  # a training for an export
        data = data.trained_on(assignment.fit_on)
        if assignment.start:
            before = load_checkpoint(Path(assignment.start))
            assert before is not None, "a last stage begins with the checkpoint of the stage before"
            start = before.weights
            if rerank := assignment.rerank:
                file = ranks_file(Path(assignment.checkpoint))
                ranks = ranks_at(rerank.layer, before.config, start, data, device, file)
                again = ranks.lowest(num_drawn_again(ranks.filters, rerank.share))
                start = drawn_again(config, data.shape, start, rerank.layer, again)
    torch.set_num_threads(device.num_threads)  # a trial that was resumed before may have set another number

    fitter = Fitter(data.shape, limit)
    if width := assignment.width:
        config = fitter.resolve(config, width.share, width.low, width.high)
    size = fitter.check(config)
    if first_on_these:
        print("\n".join(device.choices(config, data.images)), flush=True)  # to the log
    sizes: dict[str, float] = {name: getattr(config, name) for name in SIZE_SETTINGS}
    send(Started(trial=trial, num_params=size.params, macs=size.macs, sizes=sizes))
    checkpoint, folds = Path(assignment.checkpoint), assignment.data.folds
    micro = assignment.micro_batches
    if folds:
        seed = assignment.data.split_seed
        results = fit_folds(config, data, device, folds=folds, seed=seed, checkpoint=checkpoint, micro_batches=micro)
    else:
        results = fit(config, data, device, checkpoint=checkpoint, micro_batches=micro, start=start)
    for result in results:
        if result.final and not folds and assignment.fit_on is None:
            _write_confusion(trial, checkpoint, config, data, device)
        send(Epoch(trial=trial, result=result, memory_bytes=_peak_memory_bytes()))
        answer = inbox.get()
        assert isinstance(answer, Answer), "nothing is assigned while an epoch waits for its answer"
        preemption.leave_if_asked()
        if not answer.go_on:
            break
    send(Left(trial=trial))


def _write_confusion(trial: int, checkpoint: Path, config: TrainConfig, data: Dataset, device: Device) -> None:
    """Write a finished candidate's confusion matrix on validation beside its checkpoint, for the study's page."""
    from search.figures.confusion import write_confusion
    from trainer.checkpoint import load_checkpoint
    from trainer.evaluate import measure, predict_logits
    from trainer.models import build_model

    saved = load_checkpoint(checkpoint)
    if saved is None:
        return
    model = build_model(config, data.shape)
    model.load_state_dict(saved.weights)
    with device.autocast(config):  # as in the trial's own evaluation
        logits = predict_logits(device.place(model).eval(), data, "val", device)
    confusion = measure(logits, data.labels[data.splits["val"]]).confusion
    with contextlib.suppress(OSError):  # a missing confusion matrix must not fail the trial
        write_confusion(checkpoint.with_name("confusion.npz"), trial, confusion, data.class_names)


def _peak_memory_bytes() -> int:
    """Peak memory of this process: reserved on its GPU; without a GPU, resident. Loader processes are not counted."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _failure_of(error: Exception) -> Failure:
    from search.workers.failures import Failure
    from trainer.device import is_of_the_device, is_out_of_memory
    from trainer.errors import DiskError, DivergedError, TrainerError

    if isinstance(error, DivergedError):
        return Failure(kind="diverged", sentence=str(error))
    if isinstance(error, DiskError):
        return Failure(kind="disk", sentence=str(error))
    if isinstance(error, TrainerError):
        return Failure(kind="user", sentence=str(error))
    sentence = f"{type(error).__name__}: {error}"
    first_line = sentence.partition("\n")[0]  # torch adds advice for its developers
    if is_out_of_memory(error):
        return Failure(kind="memory", sentence=first_line)
    if is_of_the_device(error):
        return Failure(kind="device", sentence=first_line)
    return Failure(kind="crash", sentence=sentence)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the request took effect
            os._exit(EXIT_COORDINATOR_GONE)


if __name__ == "__main__":
    main()
