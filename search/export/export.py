"""Writes the export of a study's best trial, has it proven in a clean process, and only then moves it into place."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from rich.console import Console
from sqlalchemy import URL

from search.console import Terminal, is_quiet, show_progress
from search.devices import WorkerDevice
from search.errors import ProofFailed, UsageError
from search.export.card import write_card
from search.export.choice import check_limit, choose_trials
from search.export.description import describe
from search.export.formats import weights
from search.export.metrics import (
    REFERENCE_LOGITS,
    Export,
    evaluate_once,
    gain_and_noise,
    section_of,
    text_of_export,
)
from search.export.pictures import moved_to, read_again
from search.export.place import (
    CARD,
    CONFUSION,
    CURVES,
    EPOCHS,
    MISTAKES,
    OUT_OF_FOLD,
    RANKS,
    UNFINISHED,
    Place,
    altered,
)
from search.export.record import Description, ExportRecord, ProofAnswer, write_metrics
from search.export.retrain import Retraining, Stages
from search.figures.png import draw_confusion, draw_curves, write_curves
from search.gpu_locks import hold_devices
from search.paths import Runs
from search.plan.schedule import Schedule
from search.process import log_to
from search.study.begun import with_kept_settings
from search.study.confirmation import Confirmation
from search.study.exported import store_export
from search.study.lock import own_study
from search.study.mending import mend_trials
from search.study.owned import OwnedStudy
from search.study.storage import backend_of, open_storage, storage_errors
from search.study.study import find_study
from search.watch.export_section import store_section, stored_section
from search.watch.page import show_export
from search.words import judged_on, trials_in_words
from search.workers.crew import POLL_SECONDS
from search.workers.local import STARVED
from search.workers.piped import oom_kills, without_secrets
from search.workers.places import parse_places
from studies import StudySpec
from trainer.data import Dataset
from trainer.errors import DiskError
from trainer.sums import sha256, write_sums
from trainer.views import Views

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def export_best(
    study_name: str,
    url: URL,
    runs: Runs,
    gpus: str | None,
    *,
    asked: StudySpec | None = None,
    moved: Path | None = None,
    out: Path | None = None,
    numbers: Sequence[int] = (),
    to_stderr: bool = False,
) -> Export:
    """Export the best model of a study.

    Many parameters: the options of ``search export-best``.

    Args:
        study_name: the study.
        url: the storage.
        runs: the runs folder.
        gpus: the devices to train on, one for each worker, as ``--gpus`` names them.
        asked: the study file as it is now; only its [confirm], [final] and [cluster] count. Default: the spec of the
            last launch.
        moved: folder of the pictures; None: that of the last launch.
        out: folder of the export; by default in the runs folder.
        numbers: the trials to export instead of the best one; several become an ensemble. Nothing is confirmed then.
        to_stderr: whether messages and progress go to stderr.

    Raises:
        NothingToExport: no trial is COMPLETE and feasible, or all diverged when they were trained again.
        UsageError: there is no such study, or a device cannot be used.
        StudyChanged: the pictures are not those of the last launch.
        HeldError: the study is being searched.
        LimitError: no candidate fits the limit with the members and views of [final].
        DiskError: there is no room for the export.
        TrainingFailed: a training failed more often than its retries allow.
        ProofFailed: the export differs from its card. Its folder is kept, but not moved into place.
        ConfigError: the pictures cannot be moved, or the layer of [final.rerank] is missing.
        DivergedError: a final training diverged.
        Interrupted: ``search stop`` ended the export.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Terminal(quiet=is_quiet(), stderr=to_stderr, highlight=False)
    with storage_errors(url):
        study, spec = find_study(open_storage(url), study_name)  # before own_study, which makes a folder
    notes: list[str] = []
    if asked is not None:
        begun = with_kept_settings(asked, spec.model_dump(mode="json"), tables=("confirm",))
        notes = begun.notes
        spec = spec.model_copy(update={"confirm": begun.spec.confirm, "final": asked.final, "cluster": asked.cluster})
    if moved is not None:
        spec = moved_to(spec, moved)
    devices = parse_places(gpus, spec.cluster)
    with (
        own_study(study_name, url, runs) as check_lock,
        log_to(runs.export_log(study_name), console.say),
        hold_devices(devices, console.say),
        storage_errors(url),
    ):
        for line in [*notes, *mend_trials(backend_of(study), study_name, runs).sentences]:
            console.say(line)
        return export_owned(OwnedStudy(study, spec, check_lock), runs, devices, console, out=out, numbers=numbers)


def export_owned(
    owned: OwnedStudy,
    runs: Runs,
    devices: list[WorkerDevice],
    console: Terminal,
    *,
    out: Path | None = None,
    numbers: Sequence[int] = (),
    schedule: Schedule | None = None,
) -> Export:
    """Export the best model of a study that this process owns, on devices that it holds.

    Many parameters: as for ``export_best``.

    Args:
        owned: the study.
        runs: the runs folder.
        devices: the devices to train on, one for each worker.
        console: shows progress and messages.
        out: as for ``export_best``.
        numbers: as for ``export_best``.
        schedule: the time of the whole study. The confirmation ends early enough for the final training.
    """
    study, spec, study_name = owned.study, owned.spec, owned.spec.name
    with _disk_errors((out or runs.export(study_name, 0)).parent), ExitStack() as stack:
        choose_trials(study, numbers, spec, runs)  # raises if there is no such trial, before the pictures are read
        if out is not None:
            Place(out.resolve(), is_default=False).check()
        data = read_again(owned, runs, console)
        retraining = stack.enter_context(Retraining(owned, runs, data, devices, console, schedule))
        trials, confirmation = retraining.choose(numbers)
        place = Place(
            (out or runs.export(study_name, *(trial.number for trial in trials))).resolve(), is_default=out is None
        )
        place.check()
        record = _unchanged_or_new(place, retraining, trials, confirmation)
        export = Export(record, place.target)
        # Repeated for an existing export too, because its process may have been killed before these steps.
        retraining.tidy(trials)
        figures = [place.target / name for name in (CURVES, CONFUSION, MISTAKES, RANKS)]

        def store() -> None:
            store_export(study, export.result)
            show_export(study, spec, runs.artifacts, text_of_export(export), figures)

        retraining.with_database(store)
    return export


def _unchanged_or_new(
    place: Place, retraining: Retraining, trials: list[FrozenTrial], confirmation: Confirmation | None
) -> ExportRecord:
    """The record of the existing export if nothing has changed; else make a new export and return its record."""
    spec, stages = retraining.spec, retraining.plan(trials)
    sizes = check_limit(list({one.trial: one.config for one in stages[0]}.values()), spec, retraining.data)
    described = describe(retraining, trials, stages, sizes, confirmation)
    record = _unchanged(place.target, described.identity)
    if record is None:
        return _export(place, described, retraining, stages)
    names = f"{trials_in_words(record.trials)} {'were' if record.members else 'was'}"
    retraining.console.say(f"{spec.name}: {names} exported before, and nothing has changed")
    _report_again(record, place.target / MISTAKES, retraining.runs)
    return record


def _report_again(record: ExportRecord, mistakes: Path, runs: Runs) -> None:
    """Write the report's section about an export that was made before, if the stored one is missing or another. Its
    mistakes are shown only if the export itself has the figure."""
    if record.evaluation.scores is None:  # of an earlier version, which wrote no section
        runs.export_section(record.study).unlink(missing_ok=True)
        return
    content = section_of(record, mistakes.read_bytes() if mistakes.exists() else None)
    before = stored_section(runs, record.study)
    if before is None or before.model_copy(update={"mistakes": content.mistakes}) != content:
        store_section(content, runs, record.study)


def _export(place: Place, described: Description, retraining: Retraining, stages: Stages) -> ExportRecord:
    """Train what is not trained yet, write the export into a temporary folder, prove it, move it into place."""
    place.check_replaceable()
    spec, data, console = retraining.spec, retraining.data, retraining.console
    claim = f"{described.claim} {judged_on(spec.data.folds)} in the search"
    console.say(f"{spec.name}: exporting {trials_in_words(described.trials)}, {claim}")
    outcomes = retraining.train(stages)
    retraining.raise_if_stopped()

    from search.export.out_of_fold import write_out_of_fold  # imports torch
    from search.export.reranked import compare_reranked
    from search.export.selection import select_members

    unfinished, views = place.begin(), described.model.views_of(data.mean, data.std)
    selection = select_members(retraining, stages[-1], views)
    kept = range(len(stages[0])) if selection is None else [number - 1 for number in selection.members]
    exported = [[stage[number] for number in kept] for stage in stages]
    whole, plain = _write_models(unfinished, retraining, views, exported)
    retraining.raise_if_stopped()
    logger.debug("written to %s", unfinished)
    results = evaluate_once(unfinished, whole, plain, retraining, described, outcomes)
    found = write_out_of_fold(unfinished / OUT_OF_FOLD, whole, retraining)
    reranked = compare_reranked(unfinished / RANKS, retraining, stages)
    chosen = {"selection": selection, "out_of_fold": found, "rerank": reranked}
    results = results.model_copy(update=gain_and_noise(retraining) | chosen)
    write_metrics(unfinished, described.to_json() | results.to_json())  # the proof compares the files with it
    proof = prove(unfinished, spec, data, console, retraining.raise_if_stopped)
    logger.debug("proven: %.300s", proof)
    record = ExportRecord.proven(described, results, proof)
    _draw_mistakes(unfinished, record, whole, retraining)
    (unfinished / REFERENCE_LOGITS).unlink()
    (unfinished / weights.FILE).chmod(0o644)  # safetensors makes it readable for its owner only
    _draw(unfinished, record)
    write_metrics(unfinished, record.to_json())
    write_card(unfinished / CARD, record)
    if any(sha256(unfinished / name) != digest for name, digest in proof.sha256.items()):
        raise ProofFailed(f"a file in {unfinished} has changed since it was proven; nothing was put in place")
    write_sums(unfinished, but=[UNFINISHED])
    note = place.finish(unfinished)
    if note is not None:
        console.say(note, WARNING)
    logger.debug("moved to %s", place.target)
    return record


def _draw_mistakes(folder: Path, record: ExportRecord, whole: nn.Module, retraining: Retraining) -> None:
    """Draw the most confident mistakes, and write the report's section about the export. The figure stays in the export
    only if the study asks for it."""
    from search.export.gallery import confident_mistakes
    from search.figures.mistakes import draw_mistakes

    with np.load(folder / REFERENCE_LOGITS) as arrays:
        logits = arrays["whole"]
    found = confident_mistakes(whole, retraining.data, record.evaluation.split, logits)
    file = folder / MISTAKES
    file.parent.mkdir(exist_ok=True)
    if found:
        draw_mistakes(found, record.data.class_names, file)
    store_section(section_of(record, file.read_bytes() if found else None), retraining.runs, record.study)
    if found and not record.gallery:
        file.unlink()


def _write_models(folder: Path, retraining: Retraining, views: Views, stages: Stages) -> tuple[nn.Module, nn.Module]:
    """Write the model files. Returns the exported model, and the model in model.safetensors."""
    from search.export.build import build_models, write_graphs
    from trainer.checkpoint import load_checkpoint

    spec, data = retraining.spec, retraining.data
    states = []
    for file in (file for training in stages[-1] for file in training.files):
        trained = load_checkpoint(file)
        assert trained is not None
        states.append(trained.weights)
    configs = [training.config for training in stages[0] for _ in training.files]
    whole, plain = build_models(configs, states, views, data.shape)
    weights.write_weights(folder, plain, configs, spec, data)
    shape, about = data.shape.of_image, weights.metadata(spec, data)
    with show_progress(retraining.console, retraining.raise_if_stopped) as progress:
        write_graphs(folder, whole, shape, spec.final.formats, about, partial(progress, "writing the model, in steps"))
    return whole, plain


def prove(
    folder: Path, spec: StudySpec, data: Dataset, console: Console, raise_if_stopped: Callable[[], None] = lambda: None
) -> ProofAnswer:
    """Load the export again in a clean process and compare it with its metrics.json; see search/export/proof.py.

    Args:
        folder: the export.
        spec: the spec of its study.
        data: the study's pictures.
        console: shows progress.
        raise_if_stopped: called at least every POLL_SECONDS; its exceptions end the proof.

    Raises:
        ProofFailed: the export differs from its card, or memory ran out; the message says which. The folder stays.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "search.export.proof",
        str(folder),
        str(data.cache_path),
        spec.data.model_dump_json(),
    ]
    environment = without_secrets() | {"CUDA_VISIBLE_DEVICES": ""}
    said: bytes | None = None
    kills = oom_kills()
    with (
        show_progress(console) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process,
    ):
        try:
            while said is None:
                raise_if_stopped()
                try:
                    said, complaint = process.communicate(timeout=POLL_SECONDS)
                except subprocess.TimeoutExpired as waiting:  # the exception has all output so far
                    *lines, _ = (waiting.output or b"").split(b"\n")
                    for told in map(json.loads, lines):
                        if isinstance(told, list):
                            progress(*told)
        except BaseException:  # such as Ctrl-C
            process.kill()
            raise
    if process.returncode != 0:
        said_last = complaint.decode(errors="replace").strip() or f"it ended with code {process.returncode}"
        reason = said_last.splitlines()[-1]
        if (oom_kills() > kills and process.returncode == -signal.SIGKILL) or any(words in reason for words in STARVED):
            how = " and was killed by the system" if process.returncode == -signal.SIGKILL else f": {reason}"
            raise ProofFailed(
                f"the proof ran out of memory{how}; nothing was put in place; free some memory and repeat the command"
            )
        if process.returncode == -signal.SIGKILL:
            reason = "it was killed by signal 9, which the system sends if memory is short"
        raise ProofFailed(f"the export failed its proof: {reason}; it was not put in place, look at it in {folder}")
    return ProofAnswer.model_validate_json(said.splitlines()[-1])


def _draw(folder: Path, record: ExportRecord) -> None:
    (folder / CURVES).parent.mkdir(exist_ok=True)
    write_curves(record.histories, folder / EPOCHS)
    result = record.evaluation
    title = f"{record.study}, {trials_in_words(record.trials)}"
    draw_curves(
        record.histories, folder / CURVES, title=title, seen=record.sees_validation and record.out_of_fold is None
    )
    title = f"{result.accuracy:.2%} of {result.n:,} {result.split} pictures"
    draw_confusion(result.table, record.data.class_names, folder / CONFUSION, title=title)


def _unchanged(target: Path, identity: str) -> ExportRecord | None:
    """The record of an existing, complete export with the same identity; None if there is none."""
    try:
        record = ExportRecord.load(target)
    except UsageError:
        return None
    return record if record.identity == identity and altered(target) is None else None


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error about a full disk, which may be a library's own exception, into a DiskError."""
    try:
        yield
    except Exception as error:
        if not any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise
        file = getattr(error, "filename", None)
        where = f" ({file} cannot be written)" if file else ""
        raise DiskError(f"no room for an export in {folder}{where}; make room, and the same command goes on") from error
