"""The replay of a journal: a fresh sampler and pruner are asked everything again, in the logged order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import cast

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import Trial, TrialState

from search.errors import UsageError
from search.paths import Runs
from search.study.journal import DECIDING, Event, read_journal, restored
from search.study.sampling import build_pruner, new_trial, resume_trial
from search.study.study import stored_spec
from studies import Search, StudySpec
from studies.axes import Value
from studies.spec import STUDY_NAME
from trainer.values import Json, validate


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Result of asking a fresh sampler and a fresh pruner everything again, in the logged order."""

    study: str = ""
    asks: int
    same_asks: int
    decisions: int
    same_decisions: int
    rebuilt: int
    """Number of trials searched at least partly without this journal; the parts that are not logged are not judged."""
    first_difference: str | None
    versions: dict[str, list[str]]
    """Package -> [versions that launches recorded, ..., installed version], for packages whose versions differ."""

    @property
    def identical(self) -> bool:
        """Whether all suggestions and pruning decisions are the same."""
        return self.same_asks == self.asks and self.same_decisions == self.decisions

    def to_json(self) -> dict[str, Json]:
        """All fields, and ``identical``."""
        return asdict(self) | {"identical": self.identical}


@dataclass(frozen=True, kw_only=True)
class OtherPruner:
    """The decisions of another pruner on the candidates of a search, in the same order."""

    study: str = ""
    pruner: str
    trials: int
    rebuilt: int
    """See ``Replay.rebuilt``."""
    stopped_earlier: tuple[int, ...]
    """Numbers of the trials that this pruner would have stopped earlier than the search did."""
    stopped_at_the_same_epoch: tuple[int, ...]
    kept: tuple[int, ...]
    """Numbers of the completed trials that this pruner would have kept, too."""
    unknown: tuple[int, ...]
    """Numbers of the trials that the search pruned and that this pruner would not have stopped by then."""
    epochs_trained: int
    epochs_saved: int
    best_trial: int | None
    best_would_be_stopped_at: int | None
    """Epoch after which the best trial would have been stopped; None if it would have been kept."""


def replay_study(name: str, runs: Runs, other: str | None = None) -> Replay | OtherPruner:
    """The answer of ``search replay``: a check that the study repeats itself, or the decisions of another pruner.

    Args:
        name: name of the study.
        runs: the runs folder that has its journal.
        other: another pruner, as "pruner=NAME"; None to check the study's own.

    Raises:
        UsageError: the study has no journal in this runs folder, or ``other`` is malformed.
        ReplayFailed: the journal is damaged.
        StudyChanged: the journal was written by another version of this program, which this one cannot read.
        ConfigError: there is no such pruner.
    """
    events = read_journal(runs.journal(name)) if STUDY_NAME.fullmatch(name) else []
    if not events:
        raise UsageError(f"study {name!r} has no journal in {runs.root}; name the runs folder it was searched in")
    if other is None:
        return replace(replay(events), study=name)
    key, _, pruner = other.partition("=")
    if key != "pruner" or not pruner:
        raise UsageError(f"--with {other}: write pruner=NAME, for example pruner=median")
    return replace(replay_with(events, pruner), study=name)


def text_of_replay(answer: Replay | OtherPruner) -> str:
    """The output of ``search replay``."""
    if isinstance(answer, OtherPruner):
        fate = _fate(answer.best_trial, answer.best_would_be_stopped_at)
        return (
            f"{answer.study}: {answer.pruner} on the same {answer.trials} candidates, in the same order\n"
            f"  would have stopped earlier   {_numbers(answer.stopped_earlier)}\n"
            f"  would have kept to the end   {_numbers(answer.kept)}\n"
            f"  stopped at the same epoch    {_numbers(answer.stopped_at_the_same_epoch)}\n"
            f"  can't be known               {_numbers(answer.unknown)} (pruned in the search, kept by it so far)\n"
            f"  epochs known to be saved     {answer.epochs_saved} of {answer.epochs_trained}\n"
            f"  the best trial               {fate}{_not_judged(answer.rebuilt)}"
        )
    lines = [
        f"{answer.study}: {answer.same_asks} of {answer.asks} suggestions and {answer.same_decisions} of "
        f"{answer.decisions} pruning decisions are identical{_not_judged(answer.rebuilt)}"
    ]
    lines += [f"  first difference: {answer.first_difference}"] if answer.first_difference else []
    for name, (*recorded, here) in answer.versions.items():
        lines.append(f"  warning: made with {name} {' and '.join(recorded)}, replayed with {here}")
    return "\n".join(lines)


def _not_judged(rebuilt: int) -> str:
    return f"\n  not judged: what this journal did not witness of {rebuilt} trials" if rebuilt else ""


def _numbers(trials: Sequence[int]) -> str:
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
    asks, decisions, first_difference = [], [], None
    versions: dict[str, list[str]] = {}
    for event, answer in _play(events):
        if event["event"] == "launch":
            for name in DECIDING:
                _note_version(versions, name, event["versions"][name])
        elif event["event"] == "ask":
            asks.append(answer == event["params"])
            if not asks[-1] and first_difference is None:
                first_difference = f"trial {event['trial']} was {event['params']}, and is {answer} now"
        elif event["event"] == "epoch" and answer is not None:
            decisions.append(answer == event["pruned"])
            if not decisions[-1] and first_difference is None:
                was, now = ("pruned" if pruned else "kept" for pruned in (event["pruned"], answer))
                first_difference = f"trial {event['trial']} was {was} after step {event['step']}, and is {now} now"
    return Replay(
        asks=len(asks),
        same_asks=sum(asks),
        decisions=len(decisions),
        same_decisions=sum(decisions),
        rebuilt=len(_rebuilt(events)),
        first_difference=first_difference,
        versions=versions,
    )


def _rebuilt(events: list[Event]) -> set[int]:
    """Numbers of the trials with steps that a launch found in the database and that no journal had."""
    return {number for event in events for number in event.get("rebuilt", [])}


def _note_version(versions: dict[str, list[str]], name: str, recorded: str) -> None:
    *others, here = versions.get(name, [version(name)])
    if recorded not in (*others, here):
        versions[name] = [*others, recorded, here]


def replay_with(events: list[Event], pruner: str) -> OtherPruner:
    """The decisions of another pruner on the same candidates, reported in the same order.

    A trial that this pruner would have stopped earlier saves the epochs trained after that. If the search pruned a
    trial that this pruner would have kept so far, its further course is unknown, and nothing is claimed about it.
    Neither is anything claimed about trials that were searched without this journal.

    Raises:
        ConfigError: there is no such pruner.
        UsageError: the journal has no launch.
    """
    stopped: dict[int, int] = {}
    rebuilt = _rebuilt(events)
    for event, answer in _play(events, pruner):
        if event["event"] == "epoch" and answer and event["trial"] not in stopped.keys() | rebuilt:
            stopped[event["trial"]] = event["step"]
    lengths: dict[int, int] = {}
    witnessed = [event for event in events if event.get("trial") not in rebuilt]
    for event in witnessed:
        if event["event"] == "epoch":
            lengths[event["trial"]] = max(event["step"], lengths.get(event["trial"], 0))
    told = {event["trial"]: event for event in witnessed if event["event"] == "tell"}
    complete = {n: event for n, event in told.items() if event["state"] == "COMPLETE"}
    best = max(complete, key=lambda number: complete[number]["value"] or 0.0, default=None)
    return OtherPruner(
        pruner=pruner,
        trials=len(told),
        rebuilt=len(rebuilt),
        stopped_earlier=tuple(sorted(n for n, step in stopped.items() if step < lengths[n])),
        stopped_at_the_same_epoch=tuple(sorted(n for n, step in stopped.items() if n in told and step == lengths[n])),
        kept=tuple(sorted(n for n in complete if n not in stopped)),
        unknown=tuple(sorted(n for n, event in told.items() if event["state"] == "PRUNED" and n not in stopped)),
        epochs_trained=sum(lengths.values()),
        epochs_saved=sum(lengths[n] - step for n, step in stopped.items()),
        best_trial=best,
        best_would_be_stopped_at=stopped.get(best) if best is not None else None,
    )


def _play(events: list[Event], pruner: str | None = None) -> Iterable[tuple[Event, dict[str, Value] | bool | None]]:
    """Repeat the events on a study in memory; yield each event with this time's answer of the sampler or pruner."""
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
        answer: dict[str, Value] | bool | None = None
        if kind == "launch":
            what = f"study {event['spec'].get('name')!r} was searched"
            spec = stored_spec(event["spec"], what, "replay it with the version that searched it")
            space = {name: json_to_distribution(json.dumps(axis)) for name, axis in event["space"].items()}
            if study is None or "history" in event:
                study = optuna.create_study(study_name=spec.name, direction="maximize", sampler=RandomSampler())
                study.add_trials([restored(values) for values in event.get("history", [])])
                there = study.get_trials(deepcopy=False)
                trials = {one.number: Trial(study, one._trial_id) for one in there if one.state == TrialState.RUNNING}
                reported = {(one.number, step) for one in there for step in one.intermediate_values}
            study.pruner = _other_pruner(spec, pruner) if pruner else build_pruner(spec)
        if study is None or spec is None:
            continue  # accepted changes to a search that was begun in another runs folder
        if kind == "enqueue":
            study.enqueue_trial(event["params"])
        elif kind == "ask":
            before = trials.get(event["trial"])  # half asked for, or asked again for a setting added since
            frozen = study.get_trials(deepcopy=False)[before.number] if before else new_trial(study)
            trial = trials[event["trial"]] = resume_trial(study, spec, frozen, space)
            answer = trial.params
            if answer != event["params"]:  # later answers depend on the settings that were really trained
                _set_params(study, trial, event["params"], space)
        elif kind == "started":
            stored = study.get_trials(deepcopy=False)[event["trial"]].constraints
            for name, excess in event["constraints"].items():
                if name not in stored:  # some may be stored: a kill between two of them left those, and they were noted
                    trials[event["trial"]].set_constraint(name, excess)
        elif kind == "epoch" and event["trial"] not in closed:
            trial = trials[event["trial"]]
            if (event["trial"], event["step"]) not in reported:  # already reported: only decided again after a kill
                trial.report(cast(float, event["value"]), event["step"])  # every epoch has one
                reported.add((event["trial"], event["step"]))
            if event["pruned"] is not None:
                answer = bool(trial.should_prune())
                if pruner and answer:
                    closed.add(event["trial"])
                    study.tell(trial, state=TrialState.PRUNED)
        elif kind == "tell" and event["trial"] not in closed:
            value = event["value"] if event["state"] == "COMPLETE" else None
            if event["trial"] not in trials:  # created as a connection broke, before any of its settings was drawn
                trials[event["trial"]] = Trial(study, new_trial(study)._trial_id)
            study.tell(trials[event["trial"]], value, TrialState[event["state"]])
        yield event, answer


def _set_params(
    study: optuna.Study, trial: Trial, params: dict[str, Value], space: dict[str, BaseDistribution]
) -> None:
    for name, value in params.items():
        internal = space[name].to_internal_repr(value)
        study._storage.set_trial_param(trial._trial_id, name, internal, space[name])


def _other_pruner(spec: StudySpec, pruner: str) -> BasePruner:
    search = validate(Search, spec.search.model_dump() | {"pruner": pruner}, "--with")
    return build_pruner(spec.model_copy(update={"search": search}))
