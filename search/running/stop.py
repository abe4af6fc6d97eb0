"""``search stop``: asks a search or an export to end, and ends paused trials for good."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.trial import TrialState
from sqlalchemy import URL

from search.console import tell_aside
from search.errors import UsageError
from search.paths import Runs
from search.policy.ladder import PAUSED_AT
from search.study import events
from search.study.identity import take_folder
from search.study.journal import Journal
from search.study.lock import own_study, owner_of
from search.study.marks import Marks
from search.study.mending import mend_trials
from search.study.sampling import set_attributes
from search.study.storage import open_storage, storage_errors
from search.study.study import UUID, find_study, uuid_of
from search.study.trial import is_paused, latest_axes, step_word
from search.study.void import words_of
from search.words import count

STOP_POLL_SECONDS = 0.5
"""Seconds between two checks of whether the search has stopped."""


@dataclass(frozen=True)
class Stopped:
    """The answer of ``search stop``."""

    study: str
    stopped: bool
    """Whether a search or an export was stopped; False if there was none."""
    finished: int = 0
    """Number of paused trials that were ended."""


def stop_search(name: str, url: URL, runs: Runs, *, finish: bool, tell: Callable[[str], None]) -> Stopped:
    """Ask the process that searches or exports a study to stop, and wait until it has.

    The request is a file in the runs folder, so it reaches a process on any machine that shares the folder.

    Args:
        name: name of the study.
        url: URL of the storage.
        runs: the runs folder.
        finish: whether to end the study's paused trials once the process has stopped.
        tell: called with a line that names the process to wait for.

    Raises:
        StorageError: there is no such database.
        UsageError: there is no such study, or the study is searched in another runs folder.
        HeldError: ``finish`` is on, and another process has taken the study meanwhile.
    """
    with storage_errors(url):
        owner = owner_here(name, url, runs)
        if owner is not None:
            runs.stop_request(name).touch()
            tell(f"asked {owner}, which holds {name!r}, to stop")
            while owner_of(name, url, runs) == owner:
                time.sleep(STOP_POLL_SECONDS)
        return Stopped(name, owner is not None, _finish_paused(name, url, runs) if finish else 0)


def owner_here(name: str, url: URL, runs: Runs) -> str | None:
    """The process that searches or exports a study in this runs folder, in words; None if there is none.

    Raises:
        StorageError: there is no such database.
        UsageError: there is no such study, or it is searched in another runs folder.
    """
    with storage_errors(url):
        find_study(open_storage(url), name)  # before the name is used for a file, because an unknown name may be a path
        owner = owner_of(name, url, runs)
    if owner is not None and not runs.holder(name).exists():
        raise UsageError(f"study {name!r} is in use from another runs folder than {runs.root}; name that in --runs")
    return owner


def _warn(lines: Sequence[str]) -> None:
    """Print lines about files and trials that were found missing or changed."""
    for line in lines:
        tell_aside(line)


def _finish_paused(name: str, url: URL, runs: Runs) -> int:
    """End the paused trials of a study as PRUNED, with the value of their last step. Returns their number."""
    with own_study(name, url, runs) as check_lock:
        storage = open_storage(url)
        mended = mend_trials(storage, name, runs)
        study, spec = find_study(storage, name)
        paused = [trial for trial in study.get_trials(deepcopy=False) if is_paused(trial)]
        if not paused:
            _warn(mended.sentences)
            return 0
        notes = take_folder(runs, name, uuid_of(name, storage))
        uuid, journal = study.user_attrs.get(UUID), Journal(runs.journal(name))
        marks, trials = Marks.of(study, uuid), study.get_trials(deepcopy=False)
        gap = journal.begin(spec, latest_axes(trials), trials, uuid)
        others = {number: why for number, why in mended.void.items() if number not in gap.void}
        _warn([*notes, *mended.renumbered, *words_of(others), *gap.sentences()])
        for trial in paused:
            check_lock()
            reason = f"ended while it was paused after {step_word(spec)} {trial.user_attrs[PAUSED_AT]}"
            set_attributes(study, trial, {"reason": reason})
            marks.mark_ended(study, trial, TrialState.PRUNED)
            study.tell(trial.number, state=TrialState.PRUNED)
            value = trial.intermediate_values[max(trial.intermediate_values)]
            journal.append(events.Tell(trial=trial.number, state="PRUNED", value=value, reason=reason))
            shutil.rmtree(runs.trial(name, trial.number), ignore_errors=True)
        journal.append(events.Stop(reason=f"{count(len(paused), 'paused trial')} ended"))
        return len(paused)


def text_of_stop(answer: Stopped) -> str:
    """The output of ``search stop``."""
    if answer.stopped:
        text = f"study {answer.study!r} has stopped; nothing is lost, the same command goes on from there"
    else:
        text = f"no process is searching or exporting study {answer.study!r}"
    return f"{text}; {count(answer.finished, 'paused trial')} ended as pruned" if answer.finished else text
