"""The journal: an append-only log of a search, written as the storage acknowledges each step, and its replay.

One JSON object a line, each with "at" (seconds since 1970) and "event":

    launch    spec, space, versions        a coordinator begins, or goes on
    accept    differences                  what changed since the study was begun, and was accepted
    enqueue   params                       a known recipe waits to be asked for
    ask       trial, params                a candidate has all its settings
    assign    trial, worker, attempt       a worker has it; attempts from 1
    started   trial, constraints           counted, and the limit recorded
    epoch     trial, step, value, pruned   reported and decided; pruned is null where the pruner was not asked
    crash     trial, worker, reason        its worker died, hung or ran out of memory
    tell      trial, state, value, reason  finished
    stop      reason                       the coordinator ends
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, Trial, TrialState

from search.errors import ReplayFailed, UsageError
from search.paths import Runs
from search.study import build_pruner, new_trial, take_up
from studies import Search, StudySpec
from studies.spec import STUDY_NAME
from trainer.config import validate

Event = dict[str, Any]

DECIDING = ("optuna", "numpy", "scipy")
"""Packages whose versions decide what a sampler suggests."""

PACKAGES = (*DECIDING, "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "pillow")
"""Those, and the ones whose versions decide what a training comes to."""


def installed() -> dict[str, str]:
    """The versions that a search runs with."""
    return {name: version(name) for name in PACKAGES}


class Journal:
    """Appends to a study's journal. A full disk delays its lines, and never the search.

    Args:
        path: the file; a line that a crash has torn is cut off its end.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.path = path
        self._end = path.read_bytes().rfind(b"\n") + 1  # where the next line belongs
        self._late: list[bytes] = []
        self.asked: set[int] = set()
        """Trials whose asking is in it."""
        self.decided: dict[tuple[int, int], bool] = {}
        """(trial, step) -> whether the pruner ended the trial there, as an earlier launch noted."""

    def append(self, event: str, **values: Any) -> None:
        """Add one line, durable when this returns unless the disk is full."""
        line = json.dumps({"at": round(time.time(), 3), "event": event} | values)
        self._late.append(line.encode() + b"\n")
        if event == "ask":
            self.asked.add(values["trial"])
        with contextlib.suppress(OSError), self.path.open("ab") as file:
            file.truncate(self._end)  # half a line, from a write that found no room
            file.write(b"".join(self._late))
            file.flush()
            os.fsync(file.fileno())
            self._end += sum(map(len, self._late))
            self._late.clear()

    def begin(self, spec: StudySpec, space: dict[str, BaseDistribution], trials: Iterable[FrozenTrial]) -> None:
        """Note a launch, and whatever the database knows that a kill kept out of the journal: one step at most."""
        known = read_journal(self.path)
        self.append(
            "launch",
            spec=spec.model_dump(mode="json", exclude={"notify"}),  # a webhook's address is a secret
            space={name: json.loads(distribution_to_json(axis)) for name, axis in space.items()},
            versions=installed(),
        )
        enqueued = [event["params"] for event in known if event["event"] == "enqueue"]
        self.asked, told = ({e["trial"] for e in known if e["event"] == kind} for kind in ("ask", "tell"))
        constrained = {event["trial"] for event in known if event["event"] == "started"}
        epochs = {(event["trial"], event["step"]): event["pruned"] for event in known if event["event"] == "epoch"}
        self.decided = {step: pruned for step, pruned in epochs.items() if pruned is not None}
        for trial in trials:
            number, recipe = trial.number, trial.system_attrs.get("fixed_params")
            if recipe is not None and recipe not in enqueued:
                self.append("enqueue", params=recipe)
            if trial.state == TrialState.WAITING:
                continue
            if number not in self.asked and trial.params.keys() == space.keys():
                self.append("ask", trial=number, params=trial.params)
            if number not in constrained and trial.constraints:
                self.append("started", trial=number, constraints=trial.constraints)
            for step, value in sorted(trial.intermediate_values.items()):
                if (number, step) not in epochs:
                    self.append("epoch", trial=number, step=step, value=value, pruned=None)
            if trial.state.is_finished() and number not in told:
                reason = trial.user_attrs.get("reason", "")
                self.append("tell", trial=number, state=trial.state.name, value=trial.value, reason=reason)


def read_journal(path: Path) -> list[Event]:
    """The events of a journal; a torn last line, which a crash leaves, is not among them.

    Raises:
        ReplayFailed: another line is damaged.
    """
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            raise ReplayFailed(f"line {number} of {path} is no event; the journal was changed by something else")
        events.append(event)
    return events


def digest(path: Path) -> str | None:
    """SHA-256 of a journal as it is now; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


@dataclass
class Replay:
    """What came of asking a fresh sampler and a fresh pruner everything again, in the logged order."""

    asks: int = 0
    same_asks: int = 0
    decisions: int = 0
    same_decisions: int = 0
    first_difference: str | None = None
    versions: dict[str, list[str]] = field(default_factory=dict)
    """Package -> [those that launches recorded, ..., the installed one], where any differs."""

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return self.same_asks == self.asks and self.same_decisions == self.decisions


def replay_study(name: str, runs: Runs, other: str | None = None) -> dict[str, Any]:
    """What ``search replay`` answers: whether a study repeats itself, or what another pruner would have done.

    Args:
        name: the study.
        runs: the runs folder that has its journal.
        other: "pruner=NAME".

    Raises:
        UsageError: no such study here, or ``other`` is of another form.
        ReplayFailed: the journal is damaged.
        ConfigError: there is no such pruner.
    """
    events = read_journal(runs.journal(name)) if STUDY_NAME.fullmatch(name) else []
    if not events:
        raise UsageError(f"study {name!r} has no journal in {runs.root}; name the runs folder it was searched in")
    if other is None:
        found = replay(events)
        return asdict(found) | {"study": name, "identical": found.identical}
    key, _, pruner = other.partition("=")
    if key != "pruner" or not pruner:
        raise UsageError(f"--with {other}: write pruner=NAME, for example pruner=median")
    return replay_with(events, pruner) | {"study": name}


def render(answer: dict[str, Any]) -> str:
    """What ``search replay`` prints."""
    if "pruner" in answer:
        best = answer["best_would_be_stopped_at"]
        return (
            f"{answer['study']}: {answer['pruner']} on the same {answer['trials']} candidates, in the same order\n"
            f"  would have stopped earlier   {_numbers(answer['stopped_earlier'])}\n"
            f"  would have kept to the end   {_numbers(answer['kept'])}\n"
            f"  stopped at the same epoch    {_numbers(answer['stopped_at_the_same_epoch'])}\n"
            f"  can't be known               {_numbers(answer['unknown'])} (pruned in the search, kept by it so far)\n"
            f"  epochs known to be saved     {answer['epochs_saved']} of {answer['epochs_trained']}\n"
            f"  the best trial               {_fate(answer['best_trial'], best)}"
        )
    lines = [
        f"{answer['study']}: {answer['same_asks']} of {answer['asks']} suggestions and "
        f"{answer['same_decisions']} of {answer['decisions']} pruning decisions are identical"
    ]
    lines += [f"  first difference: {answer['first_difference']}"] if answer["first_difference"] else []
    for name, (*recorded, here) in answer["versions"].items():
        lines.append(f"  warning: made with {name} {' and '.join(recorded)}, replayed with {here}")
    return "\n".join(lines)


def _numbers(trials: list[int]) -> str:
    return f"{len(trials)} trials" + (f": {', '.join(map(str, trials))}" if trials else "")


def _fate(best: int | None, stopped: int | None) -> str:
    if best is None:
        return "there is none"
    return f"{best} would have been stopped after epoch {stopped}" if stopped else f"{best} would have been kept"


def replay(events: list[Event]) -> Replay:
    """Ask a fresh sampler and a fresh pruner again, each step in the logged order, and compare.

    Raises:
        UsageError: the journal has no launch.
    """
    found = Replay()
    for event, answer in _play(events):
        if event["event"] == "launch":
            for name in DECIDING:
                _note_version(found.versions, name, event["versions"][name])
        elif event["event"] == "ask":
            found.asks += 1
            found.same_asks += answer == event["params"]
            if answer != event["params"] and found.first_difference is None:
                found.first_difference = f"trial {event['trial']} was {event['params']}, and is {answer} now"
        elif event["event"] == "epoch" and answer is not None:
            found.decisions += 1
            found.same_decisions += answer == event["pruned"]
            if answer != event["pruned"] and found.first_difference is None:
                said = {True: "pruned", False: "kept"}
                found.first_difference = (
                    f"trial {event['trial']} was {said[event['pruned']]} after step {event['step']}, "
                    f"and is {said[answer]} now"
                )
    return found


def _note_version(versions: dict[str, list[str]], name: str, recorded: str) -> None:
    *others, here = versions.get(name, [version(name)])
    if recorded not in (*others, here):
        versions[name] = [*others, recorded, here]


def replay_with(events: list[Event], pruner: str) -> dict[str, Any]:
    """What another pruner would have done with the same candidates, reported in the same order.

    A trial that it would have stopped earlier saves the epochs that were trained after that. One that it would not
    have stopped by the end of its curve goes on unseen if it was pruned there: nothing is claimed about it.

    Raises:
        ConfigError: there is no such pruner.
        UsageError: the journal has no launch.
    """
    stopped: dict[int, int] = {}
    for event, answer in _play(events, pruner):
        if event["event"] == "epoch" and answer and event["trial"] not in stopped:
            stopped[event["trial"]] = event["step"]
    lengths: dict[int, int] = {}
    for event in events:
        if event["event"] == "epoch":
            lengths[event["trial"]] = max(event["step"], lengths.get(event["trial"], 0))
    told = {event["trial"]: event for event in events if event["event"] == "tell"}
    complete = {n: event for n, event in told.items() if event["state"] == "COMPLETE"}
    best = max(complete, key=lambda number: complete[number]["value"], default=None)
    return {
        "pruner": pruner,
        "trials": len(told),
        "stopped_earlier": sorted(n for n, step in stopped.items() if step < lengths[n]),
        "stopped_at_the_same_epoch": sorted(n for n, step in stopped.items() if n in told and step == lengths[n]),
        "kept": sorted(n for n in complete if n not in stopped),
        "unknown": sorted(n for n, event in told.items() if event["state"] == "PRUNED" and n not in stopped),
        "epochs_trained": sum(lengths.values()),
        "epochs_saved": sum(lengths[n] - step for n, step in stopped.items()),
        "best_trial": best,
        "best_would_be_stopped_at": stopped.get(best) if best is not None else None,
    }


def _play(events: list[Event], pruner: str | None = None) -> Iterable[tuple[Event, Any]]:
    """Go through the events with a study in memory; yield each, with what sampler or pruner answer this time."""
    if not any(event["event"] == "launch" for event in events):
        raise UsageError("the journal has no launch; it is of a search that never began")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study: optuna.Study | None = None
    spec: StudySpec | None = None
    space: dict[str, BaseDistribution] = {}
    trials: dict[int, Trial] = {}
    reported: set[tuple[int, int]] = set()
    closed: set[int] = set()
    for event in events:
        kind: str = event["event"]
        answer: Any = None
        if kind == "launch":
            spec = StudySpec.model_validate(event["spec"])
            space = {name: json_to_distribution(json.dumps(axis)) for name, axis in event["space"].items()}
            study = study or optuna.create_study(study_name=spec.name, direction="maximize")
            study.pruner = _other_pruner(spec, pruner) if pruner else build_pruner(spec)
        assert study is not None
        assert spec is not None
        if kind == "enqueue":
            study.enqueue_trial(event["params"])
        elif kind == "ask":
            trial = trials[event["trial"]] = take_up(study, spec, new_trial(study), space)
            answer = trial.params
            if answer != event["params"]:  # what follows depends on what was really trained
                _set_params(study, trial, event["params"], space)
        elif kind == "started":
            for name, excess in event["constraints"].items():
                trials[event["trial"]].set_constraint(name, excess)
        elif kind == "epoch" and event["trial"] not in closed:
            trial = trials[event["trial"]]
            if (event["trial"], event["step"]) not in reported:  # else decided once more after an interruption
                trial.report(event["value"], event["step"])
                reported.add((event["trial"], event["step"]))
            if event["pruned"] is not None:
                answer = bool(trial.should_prune())
                if pruner and answer:
                    closed.add(event["trial"])
                    study.tell(trial, state=TrialState.PRUNED)
        elif kind == "tell" and event["trial"] not in closed:
            value = event["value"] if event["state"] == "COMPLETE" else None
            if event["trial"] not in trials:  # a broken connection created it, and nobody ever asked for its settings
                trials[event["trial"]] = Trial(study, new_trial(study)._trial_id)
            study.tell(trials[event["trial"]], value, TrialState[event["state"]])
        yield event, answer


def _set_params(study: optuna.Study, trial: Trial, params: dict[str, Any], space: dict[str, BaseDistribution]) -> None:
    for name, value in params.items():
        internal = space[name].to_internal_repr(value)
        study._storage.set_trial_param(trial._trial_id, name, internal, space[name])


def _other_pruner(spec: StudySpec, pruner: str) -> BasePruner:
    search = validate(Search, spec.search.model_dump() | {"pruner": pruner}, "--with")
    return build_pruner(spec.model_copy(update={"search": search}))
