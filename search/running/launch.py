"""Starts a search from a study. Everything that can fail is checked before a worker exists."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from logging import WARNING

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import URL

from search.console import Say, is_quiet
from search.devices import WorkerDevice, share_gpus
from search.errors import Interrupted, NothingToExport
from search.gpu_locks import hold_devices
from search.paths import Runs
from search.plan.data_warnings import never_predicted, warnings_about
from search.plan.extras import check_extras
from search.plan.outlook import outlook
from search.plan.prepare import (
    Prepared,
    check_room,
    data_size_of,
    images_of,
    models_of,
    num_judging_pictures,
    prepare,
    room_needed,
)
from search.plan.schedule import Schedule
from search.plan.transfer import recipes_within
from search.plan.width import Fitter
from search.process import STOP_SIGNALS, allow_grace, log_to
from search.running.clock import Clock
from search.running.coordinator import Coordinator
from search.running.elastic import Elastic
from search.study.begun import as_begun, begin_trials_anew
from search.study.budget import Budget
from search.study.events import Accept, Keep
from search.study.hours import first_launch, is_time_up, note_time_up
from search.study.identity import take_folder
from search.study.journal import Journal
from search.study.lock import own_study, read_holder
from search.study.marks import own_trials
from search.study.mending import mend_trials
from search.study.noise import store_num_pictures
from search.study.owned import OwnedStudy
from search.study.progress import Snapshot
from search.study.storage import STORAGE_FAILURES, open_storage, storage_errors
from search.study.study import check_trials, content_in_database, open_study, other_person, person_of, uuid_of
from search.study.transfer import choose_transfers, keep_transferred, store_data_size, transferred
from search.study.trial import view_of
from search.watch.event_files import EventFiles
from search.watch.heard import heard
from search.watch.live import Display
from search.watch.observers import Observer, Observers, StateFile
from search.watch.page import StudyPage
from search.watch.services import open_services
from search.watch.status import with_results
from search.watch.threaded import ThreadedObserver
from search.watch.webhook import open_webhook
from search.words import count
from search.workers.crew import POLL_SECONDS
from search.workers.places import open_pool
from search.workers.pool import Pool
from studies import StudySpec
from trainer.data import Dataset
from trainer.kept import write_checked

Then = Callable[[OwnedStudy, Schedule, list[WorkerDevice]], object]
"""A function that is called after a search, in the process that owns the study, with the search's last devices."""


def launch(
    spec: StudySpec,
    url: URL,
    runs: Runs,
    devices: list[WorkerDevice],
    *,
    overrides: Sequence[str] | None = None,
    accept_changes: bool = False,
    further: Sequence[Observer] = (),
    then: Then | None = None,
) -> Snapshot:
    """Search a study, or go on with it, until its budget is spent.

    Many parameters: the options of the command.

    Long: the steps of a launch in their order, most of them one line.

    Args:
        spec: the study.
        url: the storage.
        runs: the runs folder.
        devices: the devices to train on. A GPU gets ``search.workers_per_gpu`` workers, any other device gets one.
        overrides: as for ``search.study.begun.as_begun``.
        accept_changes: whether to go on although the fingerprint differs.
        further: observers besides those that the study file names. Each one gets its own thread.
        then: called after the search, before study and devices are released; see ``search.running.clock``.

    Returns:
        The search at its end.

    Raises:
        Interrupted: the search was told to stop; the next launch goes on.
        HeldError, StudyChanged, StorageError, TrainingFailed: as their docstrings say.
        TrainerError: the pictures, the model or the disk cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_extras(spec)
    display = Display(runs, quiet=is_quiet())
    log = log_to(runs.coordinator_log(spec.name), say := display.say)
    with own_study(spec.name, url, runs) as check_lock, log, hold_devices(devices, say) as held, storage_errors(url):
        storage = open_storage(url, create=True)
        begun = as_begun(spec, storage, overrides)
        spec, notes = begun.spec, list(begun.notes)
        workers, known = share_gpus(devices, spec.search.workers_per_gpu), content_in_database(spec.name, storage)
        prepared = prepare(spec, runs, display.console, begun=known)
        check_lock()  # the Postgres server may have been restarted while the pictures were decoded
        moved = take_folder(runs, spec.name, uuid_of(spec.name, storage))
        for line in [*moved, *mend_trials(storage, spec.name, runs).renumbered]:
            say(line, WARNING)  # at once: it is done, even if the study is refused below

        def accepted(changes: list[str]) -> None:
            check_trials(spec, storage, prepared.space)
            Journal(runs.journal(spec.name)).append(Accept(differences=changes))

        def renewed(study: optuna.Study, was: int) -> None:
            notes.append(begin_trials_anew(study, runs, was))

        content = prepared.data.content_hash
        study = open_study(
            spec, storage, content, runs, accept_changes=accept_changes, accepted=accepted, renewed=renewed
        )
        if begun.kept:
            Journal(runs.journal(spec.name)).append(Keep(settings=begun.kept))
        owned = OwnedStudy(study, spec, check_lock)
        check_room(spec, runs, room_needed(spec, prepared, len(workers)))
        write_checked(runs.last_study, {"study": spec.name})
        with display:
            for line in (opening_line(spec, prepared, workers), *transfer_recipes(owned, prepared, storage, runs)):
                display.say(line)
            for line in [*_warnings(prepared, spec), *_whose(study), *notes]:
                display.say(line, WARNING)
            others = [StudyPage(owned, _facts(spec, prepared), url, runs), *_asked_for(spec, runs, display, further)]
            clock = _clock(study, spec, prepared, len(devices), None if then is None else display.say)
            observers = Observers(display, others, at_once=lambda: coordinator.killed)
            pool = _pool_of(workers, spec, runs, prepared)
            coordinator = Coordinator(owned, prepared, pool, runs, str(prepared.data.cache_path), observers, clock)
            coordinator.each_turn = (elastic := Elastic(coordinator, devices, held, prepared)).turn
            told = heard(display, is_stopping=lambda: coordinator.stopping, announce=coordinator.announce)
            with observers, _signals_to(coordinator), told:
                finished = coordinator.run()
            _warn_of_unanswered(display, runs, spec, prepared)
        if finished:
            return _finished(coordinator, runs, elastic.devices, then)
    raise Interrupted(
        f"study {spec.name!r} stopped with {coordinator.trials.budget.describe(coordinator.trials.spent)}; "
        "nothing is lost, the same command goes on from there",
        at_once=coordinator.killed,
    )


def transfer_recipes(owned: OwnedStudy, prepared: Prepared, storage: RDBStorage, runs: Runs) -> list[str]:
    """Choose recipes of earlier studies to try, once for the study. Store the size of its data, for later studies.

    Returns:
        Lines for the user about the chosen recipes.
    """
    study, spec, size = owned.study, owned.spec, data_size_of(prepared.data)
    store_num_pictures(study, num_judging_pictures(prepared.data, spec.data.folds))
    store_data_size(study, size)
    if not spec.search.transfer or transferred(study) is not None:
        return []
    fitter = Fitter(prepared.data.shape, spec.limit, runs.widths)
    chosen = recipes_within(spec, prepared.space, choose_transfers(spec, size, storage), fitter)
    keep_transferred(study, chosen)
    if not chosen:
        of = f"no earlier study of {person_of(study)} has a recipe for this one"
        return [f"search.transfer = {spec.search.transfer}: {of}"]
    listed = ", ".join(f"{one.study}, trial {one.trial}" for one in chosen)
    return [f"recipes of earlier studies, tried {'after the known ones' if spec.known else 'first'}: {listed}"]


def _go_on(coordinator: Coordinator, devices: list[WorkerDevice], then: Then) -> None:
    """Call ``then`` after a search, once the database can be reached.

    If the search ended because of the time, a later launch resumes it only with more hours.
    """
    snapshot, owned, schedule = coordinator.snapshot(), coordinator.owned, coordinator.clock.schedule
    assert schedule is not None
    coordinator.say(f"the search is over: {snapshot.budget.describe(snapshot.spent)}")
    hours = owned.spec.search.hours
    time_is_up = hours is not None and not snapshot.is_spent

    def begin() -> None:
        owned.check()
        own_trials(owned.study)  # the export reads them first
        if hours is not None and time_is_up:
            note_time_up(owned.study, hours)

    while not coordinator.outage.with_database(begin, most_minutes=owned.spec.faults.storage_minutes):
        time.sleep(POLL_SECONDS)
    if hours is not None and time_is_up and not snapshot.spent.complete:
        raise NothingToExport(
            f"study {owned.spec.name!r}: no candidate was trained to its end within {hours:g} hours of the first "
            f"launch; to go on, repeat the command with more, for example --hours {2 * hours:g}"
        )
    then(owned, schedule, devices)


def _finished(coordinator: Coordinator, runs: Runs, devices: list[WorkerDevice], then: Then | None) -> Snapshot:
    """Call ``then``, if it is given; return the search as it is after that."""
    if then is not None:
        _go_on(coordinator, devices, then)
    snapshot = replace(coordinator.snapshot(), ends_at=None)
    with contextlib.suppress(*STORAGE_FAILURES):  # an outage no longer matters: all is written
        snapshot = with_results(snapshot, coordinator.owned.study, coordinator.spec, runs)
    return snapshot


def _pool_of(workers: list[WorkerDevice], spec: StudySpec, runs: Runs, prepared: Prepared) -> Pool:
    logs = [runs.worker_log(spec.name, number) for number in range(len(workers))]
    return open_pool(workers, logs, spec, prepared.data.cache_path)


def _clock(study: optuna.Study, spec: StudySpec, prepared: Prepared, parallel: int, say: Say | None) -> Clock:
    """The time of the launch.

    ``say`` is None if the launch does not go on to an export. Otherwise it gets the plan, for ``parallel`` trainings at
    the same time.
    """
    launched, hours = first_launch(study), spec.search.hours
    if say is None:
        return Clock(hours)
    ends_at = math.inf if hours is None else launched + 3600 * hours
    pictures = sum(len(indices) for split, indices in prepared.data.splits.items() if split != "train")
    schedule = Schedule(spec, ends_at, parallel, pictures)
    clock = Clock(hours, schedule, search_is_over=is_time_up(study, hours))
    clock.adopt([view_of(trial) for trial in own_trials(study) if trial.state.is_finished()])
    say(outlook(schedule, clock.pace, launched))
    return clock


def _asked_for(spec: StudySpec, runs: Runs, display: Display, further: Sequence[Observer]) -> Iterator[Observer]:
    """The state file, and the observers that the study file and the caller name."""
    yield StateFile(runs.state(spec.name), read_holder(runs.holder(spec.name)))
    if spec.notify.webhook is not None:
        yield open_webhook(spec.notify, display.say)
    yield from open_services(spec.notify.urls, display.say)
    if spec.track.tensorboard:
        further = [EventFiles(runs.tensorboard(spec.name)), *further]
    yield from (ThreadedObserver(observer, display.say) for observer in further)


def _warnings(prepared: Prepared, spec: StudySpec) -> Iterator[str]:
    """Warnings about models and pictures before the search, a line each."""
    for name, reason in prepared.left_out.items():
        yield f"left out: {name}: {reason}"
    yield from file_warnings(prepared.data)
    yield from warnings_about(prepared.data, spec.data)
    yield from prepared.notes


def _whose(study: optuna.Study) -> list[str]:
    person = other_person(study)
    return [] if person is None else [f"study {study.study_name!r} is {person}'s; for one of your own: --set name=NEW"]


def _facts(spec: StudySpec, prepared: Prepared) -> list[tuple[str, str]]:
    """Further lines for the study's page, as (name, words)."""
    facts = [("pictures", f"{images_of(prepared)}, {prepared.num_classes} classes, {spec.data.image_size} px")]
    facts += [("model", ", ".join(models_of(spec, prepared)))]
    if prepared.width is not None:
        widest = prepared.width.widest
        facts += [("widest that fits", f"width_mult {widest.width_mult:g}, {widest.params:,} parameters")]
    return facts


def _warn_of_unanswered(display: Display, runs: Runs, spec: StudySpec, prepared: Prepared) -> None:
    if unanswered := never_predicted(runs.confusion(spec.name), prepared.data.class_names):
        display.say(unanswered, WARNING)


def opening_line(spec: StudySpec, prepared: Prepared, devices: list[WorkerDevice]) -> str:
    """The search that is about to begin, in one line."""
    width = f"; width_mult up to {prepared.width.widest.width_mult:g}" if prepared.width else ""
    place = devices[0].place
    on_cluster = f"{count(len(devices), 'worker')} of {place.capitalize()}"
    where = ", ".join(one.label for one in devices) if place == "here" else on_cluster
    return (
        f"{spec.name}: {Budget.of(spec).words} of {', '.join(models_of(spec, prepared))} on {where}; "
        f"{prepared.num_classes} classes, pictures: {images_of(prepared)}{width}"
    )


def file_warnings(data: Dataset) -> Iterator[str]:
    """Warnings about unreadable files and duplicates: a line for each kind; ``search check`` lists up to 50 of each."""
    if data.bad_files:
        name, reason = data.bad_files[0].name, data.bad_files[0].reason
        first = f"{name}: {reason}"
        yield f'left out (bad_files = "skip"): {len(data.bad_files)}, the first: {first}; search check lists them'
    for kind in sorted({pair.kind for pair in data.duplicates}):
        pairs = [pair for pair in data.duplicates if pair.kind == kind]
        first, second = pairs[0].first, pairs[0].second
        yield f"exact duplicates {kind}: {len(pairs)}, the first: {first} = {second}; search check lists them"


@contextlib.contextmanager
def _signals_to(coordinator: Coordinator) -> Iterator[None]:
    """While the block runs, Ctrl-C, SIGTERM and a closed terminal stop the search.

    After Ctrl-C, the epochs in progress may take any time, because the user can press it a second time. The other
    signals are usually followed by a kill, so the epochs may take ``faults.grace_seconds``. A second Ctrl-C or SIGTERM
    stops the search immediately.
    """

    def stop(number: int, _frame: object) -> None:
        # A closed terminal sends SIGHUP twice, from the shell and from the kernel. The second one is ignored.
        if not (number == signal.SIGHUP and coordinator.stopping):
            coordinator.stop(math.inf if number == signal.SIGINT else coordinator.spec.faults.grace_seconds)

    allow_grace(coordinator.spec.faults.grace_seconds)
    # A signal that is ignored stays ignored, as nohup intends.
    chosen = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in chosen}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
