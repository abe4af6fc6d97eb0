"""From a study to a running search: everything that can fail is checked before a worker exists."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import URL

from search.budget import Width, check_fits, resolve_sizes, widest
from search.coordinator import Coordinator
from search.devices import WorkerDevice
from search.errors import DeviceHeld, Interrupted, UsageError
from search.folder import take_folder
from search.journal import Journal
from search.onlookers import Onlooker, Onlookers, StateFile
from search.page import StudyPage
from search.paths import Runs
from search.pools.local import LocalPool
from search.process import STOP_SIGNALS
from search.space import as_sampled, distributions, feasible_models, known_recipes
from search.status import Snapshot, completed, megabytes
from search.storage import STORAGE_FAILURES, open_storage, storage_errors
from search.study import SPEC, check_trials, find_study, open_study, own_study, owner_of, uuid_of
from search.terminal import Display
from search.webhook import Webhook
from studies import Range, StudySpec
from trainer.config import SIZE_SETTINGS
from trainer.data import Dataset, prepare_data
from trainer.errors import DiskError

STOP_POLL_SECONDS = 0.5
"""Between two looks whether a search that was asked to stop has stopped."""

CHECKPOINT_BYTES_PER_PARAMETER = 12
"""fp32 weights and AdamW's two moments; an average of the weights comes on top."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """A study's space with exact bounds."""

    width: Width | None
    """The widest width that fits; None where the study does not sample it, or where it depends on the trial."""
    most_params: int
    """Parameters of the largest candidate; where that depends on the trial, the limit, or about as many."""
    space: dict[str, BaseDistribution]
    known: list[dict[str, Any]]
    """The known recipes in terms of what is sampled."""
    left_out: dict[str, str]
    """Models of the space, and known recipes ("known.0"), that do not fit the limit, and why."""


@dataclass(frozen=True, kw_only=True)
class Prepared(Bounds):
    """A study made concrete: its pictures, and its space."""

    data: Dataset

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return len(self.data.class_names)


def prepare(spec: StudySpec, runs: Runs, console: Console, look: Callable[[], None] = lambda: None) -> Prepared:
    """Read the pictures and find the exact bounds of the space; ``look`` as in ``show_progress``.

    Raises:
        DataError, DiskError: the pictures cannot be used.
        LimitError: no candidate fits.
        ConfigError: the model or a recipe cannot be.
    """
    with show_progress(console, look) as progress:
        data = prepare_data(spec.data, runs.cache, progress=progress)
    return Prepared(data=data, **vars(find_bounds(spec, len(data.class_names), runs)))


@contextlib.contextmanager
def show_progress(
    console: Console, look: Callable[[], None] = lambda: None
) -> Iterator[Callable[[str, int, int], None]]:
    """Bars with the time that is left, in a terminal: what is given is called with (stage, done, total).

    It calls ``look`` each time, which raises what is to end the work.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            look()
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield progress


def use_gpu(device: WorkerDevice) -> None:
    """Let this process train on a device: to be called before torch is imported."""
    if device.visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device.visible


def find_bounds(spec: StudySpec, num_classes: int, runs: Runs) -> Bounds:
    """Find the exact bounds of the space for so many classes.

    Raises:
        LimitError: no candidate fits.
        ConfigError: the model or a recipe cannot be.
    """
    pictures = (num_classes, spec.data.image_size, spec.limit)
    if spec.sizes_vary:
        models, left_out = feasible_models(spec, num_classes)
        return Bounds(
            width=None,
            most_params=spec.limit.params or _most_params(spec, models, num_classes),
            space=distributions(spec, None, models if "model" in spec.space else None),
            known=[as_sampled(spec, recipe, num_classes) for recipe in known_recipes(spec, left_out)],
            left_out=left_out,
        )
    known = known_recipes(spec, {})
    if "width_mult" not in spec.space:
        params = check_fits(spec.train, *pictures, spec.data.channels, memory=runs.widths).params
        return Bounds(width=None, most_params=params, space=distributions(spec, None), known=known, left_out={})
    low, _ = spec.width_range
    width = widest(spec.train, *pictures, low=low, channels=spec.data.channels, memory=runs.widths)
    space = distributions(spec, width)
    return Bounds(width=width, most_params=width.size.params, space=space, known=known, left_out={})


def _most_params(spec: StudySpec, models: list[str], num_classes: int) -> int:
    """Parameters of about the largest candidate: the largest of each other setting, and the widest that fits."""
    from trainer.models import count_params  # torch and timm: 5 s, and rarely needed

    pictures = (num_classes, spec.data.image_size)
    others = {
        key: axis.high if isinstance(axis, Range) else max(axis)
        for key, axis in spec.space.items()
        if key in SIZE_SETTINGS and key != "width_mult"
    }
    most = 0
    for model in models:
        config = spec.config_for(others | {"model": model}, 0)
        largest = resolve_sizes(config, 1.0, *spec.width_range, *pictures, spec.limit, spec.data.channels)
        most = max(most, count_params(largest, *pictures, spec.data.channels))
    return most


def checkpoint_bytes(params: int, workers: int, *, averaged: bool = False, folds: int = 0) -> int:
    """Disk that checkpoints need: each running trial keeps two of every fold, and writes the next beside them.

    Args:
        params: parameters of the largest candidate.
        workers: trials that run at once.
        averaged: whether candidates keep an average of their weights.
        folds: of the data; 0 for one validation split.
    """
    return (2 * max(1, folds) + 1) * workers * (CHECKPOINT_BYTES_PER_PARAMETER + 4 * averaged) * params


def room_needed(spec: StudySpec, bounds: Bounds, workers: int) -> int:
    """Bytes of disk for so many workers, what their trials have written already included."""
    averaged = spec.train.ema > 0 or "ema" in spec.space
    return checkpoint_bytes(bounds.most_params, workers, averaged=averaged, folds=spec.data.folds)


def launch(
    spec: StudySpec, url: URL, runs: Runs, devices: list[WorkerDevice], *, accept_changes: bool = False
) -> Snapshot:
    """Search, or go on with a study, until its budget is spent.

    Args:
        spec: the study.
        url: the storage.
        runs: the runs folder.
        devices: one worker each.
        accept_changes: go on although the fingerprint differs.

    Returns:
        The search at its end.

    Raises:
        Interrupted: told to stop; the next launch goes on.
        HeldError, StudyChanged, StorageError, TrainingFailed: as their docstrings say.
        TrainerError: the pictures, the model or the disk.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with own_study(spec.name, url, runs) as still_owner, hold_devices(devices, runs), storage_errors(url):
        storage = open_storage(url, create=True)
        spec = _with_remembered_data(spec, storage)
        display = Display()
        prepared = prepare(spec, runs, display.console)
        still_owner()  # decoding takes its time, and a Postgres server may have been restarted meanwhile
        moved = take_folder(runs, spec.name, uuid_of(spec.name, storage))

        def accepted(changes: list[str]) -> None:
            check_trials(spec, storage, prepared.space)
            Journal(runs.journal(spec.name)).append("accept", differences=changes)

        content = prepared.data.content_hash
        study = open_study(spec, storage, content, accept_changes=accept_changes, accepted=accepted)
        room = room_needed(spec, prepared, len(devices))
        check_room(spec, runs, room)
        runs.last_study.write_text(spec.name)
        with display:
            display.note(opening_line(spec, prepared, devices))
            for name, reason in prepared.left_out.items():
                display.note(f"left out: {name}: {reason}")
            for line in [*doubts(prepared.data), *moved]:
                display.note(line)
            page = StudyPage(spec, _facts(spec, prepared), storage, url, runs, still_owner)
            others: list[Onlooker] = [StateFile(runs.state(spec.name), runs.holder(spec.name).read_text()), page]
            if spec.notify.webhook is not None:
                others.append(Webhook(spec.notify.webhook, display.note))
            onlookers = Onlookers(display, others, at_once=lambda: coordinator.killed)
            coordinator = Coordinator(
                study,
                spec,
                prepared.space,
                prepared.known,
                LocalPool(devices, [runs.worker_log(spec.name, number) for number in range(len(devices))]),
                runs,
                str(prepared.data.cache_path),
                watch=onlookers.watch,
                note=display.note,
                still_owner=still_owner,
                room_needed=room,
            )
            with onlookers, _signals_to(coordinator):
                finished = coordinator.run()
        if finished:
            snapshot = coordinator.snapshot()
            with contextlib.suppress(*STORAGE_FAILURES):  # it may go away now: all is written
                snapshot = completed(snapshot, study, spec, runs)
            return snapshot
    done = len(coordinator.trials.finished)
    raise Interrupted(
        f"study {spec.name!r} stopped with {done} of {spec.search.trials} trials finished; "
        "nothing is lost, the same command goes on from there",
        at_once=coordinator.killed,
    )


def stop_search(name: str, url: URL, runs: Runs, *, tell: Callable[[str], None]) -> bool:
    """Ask whoever searches or exports a study to stop, and wait until it has; False if nobody does.

    The request is a file in the runs folder, so it reaches a search or an export on any machine that shares it.

    Raises:
        StorageError, UsageError: no such database or study, or it is searched in another runs folder.
    """
    with storage_errors(url):
        find_study(open_storage(url), name)  # until it is found the name may be a path
        owner = owner_of(name, url, runs)
        if owner is None:
            return False
        if not runs.holder(name).exists():
            raise UsageError(f"study {name!r} is in use from another runs folder than {runs.root}; name that in --runs")
        runs.stop_request(name).touch()
        tell(f"asked {owner}, which holds {name!r}, to stop")
        while owner_of(name, url, runs) == owner:
            time.sleep(STOP_POLL_SECONDS)
    return True


def render_stop(answer: dict[str, Any]) -> str:
    """What ``search stop`` prints."""
    if answer["stopped"]:
        return f"study {answer['study']!r} has stopped; nothing is lost, the same command goes on from there"
    return f"nobody is searching or exporting study {answer['study']!r}"


def _facts(spec: StudySpec, prepared: Prepared) -> list[tuple[str, str]]:
    """What the study's page says about it besides its settings, name and words each."""
    facts = [("pictures", f"{pictures_of(prepared)}, {prepared.num_classes} classes, {spec.data.image_size} px")]
    facts += [("model", ", ".join(models_of(spec, prepared)))]
    if prepared.width is not None:
        width = prepared.width
        facts += [("widest that fits", f"width_mult {width.width_mult:g}, {width.size.params:,} parameters")]
    return facts


def opening_line(spec: StudySpec, prepared: Prepared, devices: list[WorkerDevice]) -> str:
    """What is about to be searched, in one line."""
    width = f"; width_mult up to {prepared.width.width_mult:g}" if prepared.width else ""
    where = ", ".join(device.label for device in devices)
    return (
        f"{spec.name}: {spec.search.trials} trials of {', '.join(models_of(spec, prepared))} on {where}; "
        f"{prepared.num_classes} classes, pictures: {pictures_of(prepared)}{width}"
    )


def doubts(data: Dataset) -> Iterator[str]:
    """What is wrong with the pictures and stops no search, a line each; ``search check`` lists all of it."""
    if data.bad_files:
        name, reason = data.bad_files[0].name, data.bad_files[0].reason
        yield f"files left out: {len(data.bad_files)}, the first: {name}: {reason}; search check lists them"
    for kind in sorted({pair.kind for pair in data.duplicates}):
        pairs = [pair for pair in data.duplicates if pair.kind == kind]
        first, second = pairs[0].first, pairs[0].second
        yield f"exact duplicates {kind}: {len(pairs)}, the first: {first} = {second}; search check lists them"


@contextlib.contextmanager
def hold_devices(devices: list[WorkerDevice], runs: Runs) -> Iterator[None]:
    """Keep other searches in this runs folder off the GPUs; the CPU is for everybody.

    Raises:
        DeviceHeld: another search trains on one of them.
    """
    with contextlib.ExitStack() as stack:
        gpus = {device.visible: device.label for device in reversed(devices) if device.visible is not None}
        for uuid, label in sorted(gpus.items()):
            lock = FileLock(runs.device(uuid))
            try:
                runs.device(uuid).parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout:
                name = label.partition(":")[0]
                raise DeviceHeld(
                    f"{name} is in use by another search or export in {runs.root}; name others in --gpus"
                ) from None
        yield


def pictures_of(prepared: Prepared) -> str:
    """How many pictures each split has, in words."""
    return ", ".join(f"{len(indices):,} {split}" for split, indices in prepared.data.splits.items() if len(indices))


def models_of(spec: StudySpec, prepared: Prepared) -> list[str]:
    """The models that are searched."""
    return list(getattr(prepared.space.get("model"), "choices", [spec.train.model]))


def _with_remembered_data(spec: StudySpec, storage: optuna.storages.BaseStorage) -> StudySpec:
    """``--data`` is needed once; later launches find it in the study."""
    names = optuna.get_all_study_names(storage)
    if spec.data.path is None and spec.name in names:
        remembered = optuna.load_study(study_name=spec.name, storage=storage).user_attrs.get(SPEC, {})
        path = remembered.get("data", {}).get("path")
        return spec.model_copy(update={"data": spec.data.model_copy(update={"path": path})})
    return spec


def check_room(spec: StudySpec, runs: Runs, needed: int) -> None:
    """See whether there is room for the checkpoints of all workers, which ``room_needed`` counts.

    Raises:
        DiskError: there is not.
    """
    free, needed = shutil.disk_usage(runs.root).free, runs.still_needed(spec.name, needed, spec.data.folds)
    if free < needed:
        raise DiskError(
            f"checkpoints need {megabytes(needed)} in {runs.root}, {megabytes(free)} are free; free some or use --runs"
        )


@contextlib.contextmanager
def _signals_to(coordinator: Coordinator) -> Iterator[None]:
    """While active, Ctrl-C, SIGTERM and a closed terminal stop the search; the first two, when repeated, at once.

    Whoever types Ctrl-C can wait for the epoch, or type it again; whoever sends the others kills soon after.
    """

    def stop(number: int, _frame: object) -> None:
        # A closed terminal says so twice, through the shell and through the kernel, and nobody meant it twice.
        if not (number == signal.SIGHUP and coordinator.stopping):
            coordinator.stop(math.inf if number == signal.SIGINT else coordinator.spec.faults.grace_seconds)

    # A signal that is ignored stays so: nohup has its reasons.
    chosen = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in chosen}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
