"""The replay of a journal: a fresh sampler and pruner repeat its decisions, in the logged order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import Trial, TrialState

from search.errors import ReplayFailed, UsageError
from search.paths import Runs
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS
from search.process import version_of
from search.study.events import Ask, Enqueue, Epoch, Event, Launch, Pause, Promote, Started, Tell
from search.study.journal import DECIDING, read_journal
from search.study.memory import trial_of
from search.study.sampling import build_pruner, new_trial, resume_trial
from search.study.standings import standings_of
from search.study.study import stored_spec
from search.study.trial import FAILURE
from studies import Search, StudySpec
from studies.axes import Value
from studies.spec import STUDY_NAME
from trainer.values import Json, validate


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The result of a replay with the study's own sampler and pruner."""

    study: str = ""
    asks: int
    """Number of candidates whose settings the sampler suggested."""
    same_asks: int
    decisions: int
    """Number of decisions whether a trial goes on."""
    same_decisions: int
    rebuilt: int
    """Number of trials with steps that only the database or only the journal had at a launch; judged only in part."""
    void: dict[str, str]
    """Number of a trial that was deleted or changed in the database -> the reason; it is among those of ``rebuilt``."""
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
    """The decisions that another pruner would have made on the candidates of a search, in the same order."""

    study: str = ""
    pruner: str
    trials: int
    rebuilt: int
    """Number of trials as in ``Replay.rebuilt``; they are not judged."""
    stopped_earlier: tuple[int, ...]
    """Numbers of the trials that this pruner would have stopped earlier than the search did."""
    stopped_at_the_same_epoch: tuple[int, ...]
    kept: tuple[int, ...]
    """Numbers of the completed trials that this pruner would have kept to their end too."""
    unknown: tuple[int, ...]
    """Numbers of the trials that the search pruned or paused before this pruner would have stopped them."""
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
    if not (STUDY_NAME.fullmatch(name) and runs.journal(name).exists()):
        raise UsageError(f"study {name!r} has no journal in {runs.root}; name the runs folder it was searched in")
    events = read_journal(runs.journal(name))
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
            f"  unknown                      {_numbers(answer.unknown)} (stopped by the search; {answer.pruner} would "
            "have kept them until then)\n"
            f"  epochs known to be saved     {answer.epochs_saved} of {answer.epochs_trained}\n"
            f"  the best trial               {fate}{_not_judged(answer.rebuilt)}"
        )
    lines = [
        f"{answer.study}: {answer.same_asks} of {answer.asks} suggestions and {answer.same_decisions} of "
        f"{answer.decisions} pruning decisions are identical{_not_judged(answer.rebuilt)}"
    ]
    lines += [f"  trial {trial}: {why}" for trial, why in answer.void.items()]
    lines += [f"  first difference: {answer.first_difference}"] if answer.first_difference else []
    for name, (*recorded, here) in answer.versions.items():
        lines.append(f"  warning: made with {name} {' and '.join(recorded)}, replayed with {here}")
    return "\n".join(lines)


def _not_judged(rebuilt: int) -> str:
    return f"\n  not judged: steps of {rebuilt} trials that the database or the journal lacked" if rebuilt else ""


def _numbers(trials: Sequence[int]) -> str:
    return f"{len(trials)} trials" + (f": {', '.join(map(str, trials))}" if trials else "")


def _fate(best: int | None, stopped: int | None) -> str:
    if best is None:
        return "there is none"
    return f"{best} would have been stopped after epoch {stopped}" if stopped else f"{best} would have been kept"


def replay(events: list[Event]) -> Replay:
    """Ask a fresh sampler and a fresh pruner in the order of the journal, and compare their answers with it.

    Raises:
        UsageError: the journal has no launch.
    """
    asks, decisions, first_difference = [], [], None
    versions: dict[str, list[str]] = {}
    for event, answer in _play(events):
        if isinstance(event, Launch):
            for name in filter(event.versions.__contains__, DECIDING):
                _note_version(versions, name, event.versions[name])
        elif isinstance(event, Ask):
            asks.append(answer == event.params)
            if not asks[-1] and first_difference is None:
                first_difference = f"trial {event.trial} was {event.params}, and is {answer} now"
        elif isinstance(event, Epoch) and answer is not None:
            decisions.append(answer == event.pruned)
            if not decisions[-1] and first_difference is None:
                was, now = ("pruned" if pruned else "kept" for pruned in (event.pruned, answer))
                first_difference = f"trial {event.trial} was {was} after step {event.step}, and is {now} now"
        elif isinstance(event, Promote) and answer is not None:
            decisions.append(answer is True)
            if not decisions[-1] and first_difference is None:
                first_difference = f"trial {event.trial} was promoted from step {event.step}, and is not now"
    return Replay(
        asks=len(asks),
        same_asks=sum(asks),
        decisions=len(decisions),
        same_decisions=sum(decisions),
        rebuilt=len(_rebuilt(events)),
        void={trial: why for event in events if isinstance(event, Launch) for trial, why in (event.void or {}).items()},
        first_difference=first_difference,
        versions=versions,
    )


def _rebuilt(events: list[Event]) -> set[int]:
    """Numbers of the trials with steps that a launch found only in the database, or only in the journal."""
    return {number for event in events if isinstance(event, Launch) for number in event.rebuilt or ()}


def _note_version(versions: dict[str, list[str]], name: str, recorded: str) -> None:
    *others, here = versions.get(name, [version_of(name)])
    if recorded not in (*others, here):
        versions[name] = [*others, recorded, here]


def replay_with(events: list[Event], pruner: str) -> OtherPruner:
    """The decisions of another pruner on the same candidates, reported in the same order.

    If this pruner would have stopped a trial earlier, it would have saved the epochs after that. Two kinds of trials
    are not judged: trials with steps that only the database or only the journal had at a launch; and trials that the
    search pruned or paused before this pruner would have stopped them, because their later values are unknown.

    Raises:
        ConfigError: there is no such pruner.
        UsageError: the journal has no launch, or nothing can be known about this pruner.
    """
    if pruner == "promote":
        raise UsageError(
            "--with pruner=promote: it goes on with trials that the search stopped, and their later values are unknown"
        )
    stopped: dict[int, int] = {}
    rebuilt, repeats = _rebuilt(events), set()
    for event, answer in _play(events, pruner):
        if isinstance(event, Epoch) and answer and event.trial not in stopped.keys() | rebuilt:
            stopped[event.trial] = event.step
        elif isinstance(event, Tell) and answer:
            repeats.add(event.trial)
    lengths: dict[int, int] = {}
    for event in events:
        if isinstance(event, Epoch) and event.trial not in rebuilt:
            lengths[event.trial] = max(event.step, lengths.get(event.trial, 0))
    told = {event.trial: event for event in events if isinstance(event, Tell) and event.trial not in rebuilt}
    complete = {n: event for n, event in told.items() if event.state == "COMPLETE"}
    cut = {n for n, event in told.items() if event.state == "PRUNED"} | (lengths.keys() - told.keys())
    best = max(complete.keys() - repeats, key=lambda number: complete[number].value or 0.0, default=None)
    return OtherPruner(
        pruner=pruner,
        trials=len(told.keys() | cut),
        rebuilt=len(rebuilt),
        stopped_earlier=tuple(sorted(n for n, step in stopped.items() if step < lengths[n])),
        stopped_at_the_same_epoch=tuple(sorted(n for n, step in stopped.items() if step == lengths[n])),
        kept=tuple(sorted(n for n in complete if n not in stopped)),
        unknown=tuple(sorted(cut - stopped.keys())),
        epochs_trained=sum(lengths.values()),
        epochs_saved=sum(lengths[n] - step for n, step in stopped.items()),
        best_trial=best,
        best_would_be_stopped_at=stopped.get(best) if best is not None else None,
    )


def _play(events: list[Event], pruner: str | None = None) -> Iterable[tuple[Event, dict[str, Value] | bool | None]]:
    """Repeat the events with a study in memory. Yield each event with the answer of the fresh sampler or pruner.

    Raises:
        UsageError: the journal has no launch.
        ReplayFailed: an event does not follow from those before it.
    """
    if not any(isinstance(event, Launch) for event in events):
        raise UsageError("the journal has no launch: its search never began, or its lines were lost")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    played: _Played | None = None
    for number, event in enumerate(events, 1):
        answer: dict[str, Value] | bool | None = None
        if isinstance(event, Launch):
            played = _Played.begun(event, played, pruner)
        elif played is not None:  # lines before the first launch line (accepted changes, a new recipe) are not replayed
            try:
                answer = played.take(event)
            except (LookupError, TypeError, ValueError, RuntimeError, optuna.exceptions.OptunaError) as error:
                raise ReplayFailed(
                    f"event {number} of the journal ({event.event}) does not follow from those before it "
                    f"({type(error).__name__}: {error}): the journal was changed by something else"
                ) from error
        yield event, answer


class _Played:
    """A search that is replayed in memory."""

    def __init__(self, spec: StudySpec, pruner: str | None) -> None:
        self.spec, self.pruner = spec, pruner
        self.study = optuna.create_study(study_name=spec.name, direction="maximize", sampler=RandomSampler())
        self.space: dict[str, BaseDistribution] = {}
        self.trials: dict[int, Trial] = {}
        self.reported: set[tuple[int, int]] = set()
        self.closed: set[int] = set()
        """Numbers of the trials that the other pruner has stopped."""
        self.standings = standings_of(spec, [])

    @classmethod
    def begun(cls, launch: Launch, before: _Played | None, pruner: str | None) -> _Played:
        """The search after a launch has begun it, or gone on with it."""
        what = f"study {launch.spec.get('name')!r} was searched"
        spec = stored_spec(launch.spec, what, "replay it with the version that searched it")
        played = before
        if played is None or launch.history is not None:
            played = cls(spec, pruner)
            played.closed = before.closed if before else set()
            played.study.add_trials([trial.restored for trial in launch.history or ()])
            trials = played.study.get_trials(deepcopy=False)
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
            played.trials = {trial.number: Trial(played.study, trial._trial_id) for trial in running}
            played.reported = {(one.number, step) for one in trials for step in one.intermediate_values}
        played.spec, played.space = spec, launch.axes
        judge = validate(Search, spec.search.model_dump() | {"pruner": pruner}, "--with") if pruner else spec.search
        played.study.pruner = build_pruner(spec.model_copy(update={"search": judge}))
        played.standings = standings_of(spec, played.study.get_trials(deepcopy=False))
        if pruner and played.standings.ladder.anew:
            raise UsageError(
                "candidates of this search have a training for each rung; other pruners compare epochs of one training"
            )
        return played

    @property
    def pauses(self) -> bool:
        """Whether the decisions of ``search.policy.promotion`` at rungs are replayed."""
        return self.pruner is None and self.spec.search.pruner == "promote"

    def take(self, event: Event) -> dict[str, Value] | bool | None:
        """Replay one event. Returns the answer of the sampler or pruner if it was asked. For a Tell, returns whether
        the trial is a repeat."""
        match event:
            case Enqueue():
                again = {} if event.repeats is None else {REPEATS: event.repeats}
                self.study.enqueue_trial(dict(event.params), user_attrs=again)
            case Ask():
                return self._ask(event)
            case Started():
                stored = trial_of(self.study, event.trial).constraints
                for name, excess in event.constraints.items():
                    if name not in stored:  # if a kill interrupted the storing, an earlier line has a part of them
                        self.trials[event.trial].set_constraint(name, excess)
            case Epoch() if event.trial not in self.closed:
                return self._report(event)
            case Pause():
                self.trials[event.trial].set_user_attr(PAUSED_AT, event.step)
                self.standings.pause(event.trial, event.step)
            case Promote():
                return self._promote(event)
            case Tell() if event.trial not in self.closed:
                value = event.value if event.state == "COMPLETE" else None
                if event.trial not in self.trials:  # a broken connection left this trial, without settings
                    self.trials[event.trial] = Trial(self.study, new_trial(self.study)._trial_id)
                if event.failure is not None:
                    self.trials[event.trial].set_user_attr(FAILURE, event.failure)
                is_repeat = REPEATS in self.trials[event.trial].user_attrs
                if is_repeat:
                    pass  # a repeat is not compared at rungs
                elif value is None:
                    self.standings.end_early(event.trial, diverged=event.failure == "diverged")
                else:
                    self.standings.complete(event.trial, value)
                self.study.tell(self.trials[event.trial], value, TrialState[event.state])
                return is_repeat
        return None

    def _ask(self, event: Ask) -> dict[str, Value]:
        before = self.trials.get(event.trial)  # asked for a second time: a setting was missing
        frozen = trial_of(self.study, before.number) if before else new_trial(self.study)
        trial = self.trials[event.trial] = resume_trial(self.study, self.spec, frozen, self.space)
        answer: dict[str, Value] = trial.params
        if answer != event.params:  # later answers depend on the settings that were trained
            _set_params(self.study, trial, event.params, self.space)
        return answer

    def _report(self, event: Epoch) -> bool | None:
        trial = self.trials[event.trial]
        if (event.trial, event.step) not in self.reported:  # after an interruption, a result may be decided again
            trial.report(event.value, event.step)
            self.reported.add((event.trial, event.step))
        if REPEATS in trial.user_attrs:  # a repeat is never pruned, paused or compared
            return None
        if self.pauses:
            return self._at_rung(event, trial)
        # A search with "promote" asked no pruner of Optuna; another pruner is asked at each step but the last.
        if event.pruned is None and not (self.spec.search.pruner == "promote" and event.step < self.spec.num_steps):
            return None
        answer = bool(trial.should_prune())
        if self.pruner and answer:
            self.closed.add(event.trial)
            self.study.tell(trial, state=TrialState.PRUNED)
        return answer

    def _at_rung(self, event: Epoch, trial: Trial) -> bool | None:
        """Whether a trial is paused at the rung that it has reached with an epoch; None between rungs."""
        ladder = self.standings.ladder
        if event.pruned is None and event.step not in ladder.rungs:
            return None
        goes_on = self.standings.arrive(event.trial, event.step, event.value)
        if event.pruned is None:  # the trial is at its end, or a later line has the decision
            return None
        if event.pruned:
            trial.set_user_attr(PAUSED_AT, ladder.rung_of(event.step))
        elif ladder.anew:
            trial.set_user_attr(PROMOTED_AT, ladder.rung_of(event.step))
        return None if event.too_late else not goes_on  # a replay does not know the budget at that time

    def _promote(self, event: Promote) -> bool | None:
        """Whether this is the trial to promote; None if ``at_least`` is not known."""
        same = None if event.at_least is None else self.standings.next(event.at_least) == event.trial
        self.trials[event.trial].set_user_attr(PROMOTED_AT, event.step)
        self.standings.promote(event.trial)
        return same


def _set_params(
    study: optuna.Study, trial: Trial, params: Mapping[str, object], space: dict[str, BaseDistribution]
) -> None:
    for name, value in params.items():
        internal = space[name].to_internal_repr(value)
        study._storage.set_trial_param(trial._trial_id, name, internal, space[name])
