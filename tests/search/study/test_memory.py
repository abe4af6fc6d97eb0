"""A search sees its trials from memory, and they are what a fresh read of the database would show."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import optuna
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from needed import postgres
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy import event

from search.study import statements
from search.study.marks import BEFORE, FOREIGN_REASON, Marks, with_marks
from search.study.memory import RememberingStorage, is_new, looking_once, one_transaction, read_anew
from search.study.sampling import begin_anew, reset_foreign, set_attributes, undo_prune_query
from search.study.statements import Statements
from search.study.storage import backend_of, open_storage, parse_url
from search.study.study import UUID, find_study, open_study
from studies import StudySpec

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "layers": IntDistribution(1, 9),
    "kind": CategoricalDistribution(["a", None, True, 2, 0.5]),
}
NAMES = (f"study {number}" for number in itertools.count())


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('memory')}/search.db"
        return
    with postgres() as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def searched(url: str) -> Iterator[optuna.Study]:
    with searching(url) as study:
        yield study


@contextmanager
def searching(url: str) -> Iterator[optuna.Study]:
    """A study of its own, as a search has it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    storage = open_storage(parse_url(url), create=True)
    study = optuna.create_study(
        study_name=next(NAMES), storage=storage, direction="maximize", sampler=RandomSampler(seed=0), pruner=pruner
    )
    study.set_user_attr(UUID, "ours")
    study.set_user_attr(BEFORE, {"trials": 0})
    yield with_marks(study, "ours", in_memory=True)
    storage.engine.dispose()


@contextmanager
def others(study: optuna.Study) -> Iterator[optuna.Study]:
    """The study as any other program opens it."""
    url = backend_of(study).engine.url.render_as_string(hide_password=False)
    storage = RDBStorage(url)
    yield optuna.load_study(study_name=study.study_name, storage=storage, sampler=RandomSampler())
    storage.engine.dispose()


def facts(trial: FrozenTrial) -> dict[str, Any]:
    """All of a trial that a sampler can see; NaN equals itself here."""
    return {
        "number": (trial.number, trial._trial_id),
        "state": trial.state,
        "values": trial.values,
        "times": (trial.datetime_start, trial.datetime_complete),
        "params": repr(list(trial.params.items())),
        "distributions": list(trial.distributions.items()),
        "user_attrs": dict(trial.user_attrs),
        "system_attrs": dict(trial.system_attrs),
        "constraints": trial.constraints,
        "reports": repr(sorted(trial.intermediate_values.items())),
    }


def everything(trial: FrozenTrial) -> dict[str, str]:
    """All that Optuna's object holds; NaN equals itself here, and 1 is not True."""
    return {
        name: repr(sorted(value.items()) if isinstance(value, dict) else value) for name, value in vars(trial).items()
    }


def compare(study: optuna.Study) -> None:
    """What the memory shows with what a storage shows that has read nothing yet."""
    fresh = with_marks(study, "ours")
    expected = [facts(trial) for trial in fresh.get_trials(deepcopy=False)]
    assert [facts(trial) for trial in study.get_trials(deepcopy=False)] == expected
    for wanted, trial in zip(expected, fresh.get_trials(deepcopy=False), strict=True):
        assert facts(study._storage.get_trial(trial._trial_id)) == wanted
    for states in ((TrialState.WAITING,), (TrialState.RUNNING, TrialState.COMPLETE)):
        numbers = [trial.number for trial in fresh.get_trials(states=states)]
        assert [trial.number for trial in study.get_trials(states=states)] == numbers


class Lost(Exception):
    """An answer of the database that did not arrive."""


@contextmanager
def loses(study: optuna.Study, after: int, *, committed_only: bool = False) -> Iterator[None]:
    """The connection breaks once, after so many statements and commits; a commit is done all the same."""
    engine, left = backend_of(study).engine, [after]
    commit = engine.dialect.do_commit

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise Lost

    def commits(connection: Any) -> None:
        commit(connection)
        count()

    if not committed_only:
        event.listen(engine, "before_cursor_execute", count)
    engine.dialect.do_commit = commits  # type: ignore[method-assign]
    try:
        with contextlib.suppress(Lost):
            yield
    finally:
        del engine.dialect.do_commit
        if not committed_only:
            event.remove(engine, "before_cursor_execute", count)


VALUES = st.floats(width=64) | st.sampled_from([0.1, 1 / 3, float("inf"), float("nan")])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(st.sampled_from("xy"), inner),
    max_leaves=3,
)


class Operations(RuleBasedStateMachine):
    """One search and another program, in any order, with answers that are lost."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.closing = contextlib.ExitStack()
        self.study = self.closing.enter_context(searching(url))
        self.other = self.closing.enter_context(others(self.study))
        self.marks = Marks.of(self.study, "ours")
        self.held: list[tuple[FrozenTrial, dict[str, Any]]] = []
        self.lost_after: int | None = None

    def teardown(self) -> None:
        self.closing.close()

    def take(self, step: Callable[[], object]) -> None:
        if self.lost_after is None:
            step()
        else:
            with loses(self.study, self.lost_after):
                step()
            self.lost_after = None

    def one(self, data: st.DataObject) -> Trial:
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return Trial(self.study, data.draw(st.sampled_from(running))._trial_id)

    def any_runs(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    @rule(after=st.integers(0, 8))
    def an_answer_will_be_lost(self, after: int) -> None:
        self.lost_after = after

    @rule()
    def ask(self) -> None:
        self.take(lambda: self.study.ask(SPACE))

    @rule(value=st.sampled_from([0.002, 0.05]))
    def enqueue(self, value: float) -> None:
        self.take(lambda: self.study.enqueue_trial({"lr": value}, user_attrs={"known": (1, 2)}))

    @precondition(any_runs)
    @rule(data=st.data(), step=st.integers(1, 4), value=VALUES)
    def report(self, data: st.DataObject, step: int, value: float) -> None:
        trial = self.one(data)

        def report() -> None:
            if step not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
                trial.report(value, step)
            trial.should_prune()

        self.take(report)

    @precondition(any_runs)
    @rule(data=st.data(), key=st.sampled_from("ab"), value=JSON)
    def set_attributes(self, data: st.DataObject, key: str, value: Any) -> None:
        trial = self.one(data)

        def store() -> None:
            trial.set_user_attr(key, value)
            self.study._storage.set_trial_system_attr(trial._trial_id, key, value)
            if "params" not in trial.constraints:
                trial.set_constraint("params", 0.25)

        self.take(store)

    @precondition(any_runs)
    @rule(data=st.data(), state=st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]))
    def tell(self, data: st.DataObject, state: TrialState) -> None:
        trial = self.one(data)
        frozen = self.study.get_trials(deepcopy=False)[trial.number]

        def tell() -> None:
            value = 0.75 if state == TrialState.COMPLETE else None
            self.marks.mark_ended(self.study, frozen, state, value)
            self.study.tell(trial, value, state)

        self.take(tell)

    @precondition(any_runs)
    @rule(data=st.data(), what=st.sampled_from(["anew", "undo", "own"]))
    def delete_below_optuna(self, data: st.DataObject, what: str) -> None:
        frozen = self.study.get_trials(deepcopy=False)[self.one(data).number]
        steps: dict[str, Callable[[], object]] = {
            "anew": lambda: begin_anew(self.study, frozen),
            "undo": lambda: undo_prune_query(self.study, frozen),
            "own": lambda: reset_foreign(self.study, frozen, ["a"]),
        }
        self.take(steps[what])

    # -- another program

    @rule(state=st.sampled_from([TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING]))
    def another_adds(self, state: TrialState) -> None:
        value = 0.99 if state == TrialState.COMPLETE else None
        settings = {"params": {"lr": 0.02}, "distributions": {"lr": SPACE["lr"]}}
        self.other.add_trial(create_trial(state=state, value=value, intermediate_values={1: 0.5}, **settings))  # type: ignore[arg-type]

    @rule()
    def another_begins(self) -> None:
        self.other.ask(SPACE)

    @precondition(any_runs)
    @rule(data=st.data())
    def another_tells(self, data: st.DataObject) -> None:
        self.other.tell(self.one(data).number, 0.99)

    # -- what holds

    @rule()
    def hold(self) -> None:
        self.held = [(trial, facts(trial)) for trial in self.study.get_trials(deepcopy=False)]

    @invariant()
    def the_memory_is_what_the_database_has(self) -> None:
        if self.lost_after is None:
            compare(self.study)

    @invariant()
    def no_write_changes_what_somebody_holds(self) -> None:
        for trial, before in self.held:
            assert facts(trial) == before


def test_trials_are_read_as_optuna_reads_them(searched: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"lr": 0.1 / 3, "layers": 3, "kind": None}
    attributes = {"z": {"x": [1, None, float("nan")]}, "a": "\u00e4\ud83d\ude00", "": 1e300}
    reports = {9: float("nan"), 2: float("inf"), 3: float("-inf"), 1: 1 / 3}
    backend, states = backend_of(searched), [*TrialState]
    elsewhere = optuna.create_study(study_name=next(NAMES), storage=backend)
    for number in range(2 * len(states)):
        state = states[number % len(states)]
        value = [0.1, float("inf"), float("-inf")][number % 3] if state == TrialState.COMPLETE else None
        whole: dict[str, Any] = {"params": params, "distributions": SPACE} if number % 4 else {}
        whole |= {"intermediate_values": reports} if number % 3 else {}
        made = create_trial(state=state, value=value, user_attrs=attributes, system_attrs=attributes, **whole)
        searched.add_trial(made)
        elsewhere.add_trial(made)
    searched.ask(SPACE).set_user_attr("a", 1)
    expected = backend._get_trials(searched._study_id, None, set(), -1)
    ids = [trial._trial_id for trial in expected]
    monkeypatch.setattr(statements, "MOST_IDS", 2)
    read = Statements(backend.engine, searched._study_id).read
    cases = [((), -1), (ids, ids[-1]), (ids[1:6], ids[-2]), (ids[::-1], ids[3]), ((), ids[-1])]
    for known, above in cases:
        wanted = [trial for trial in expected if trial._trial_id in known or trial._trial_id > above]
        assert [everything(trial) for trial in read(known, above)] == [everything(trial) for trial in wanted]
    axes = {id(trial.distributions["lr"]) for trial in read((), -1) if trial.distributions}
    assert len(axes) == 1, "trials share their axes"
    optuna.delete_study(study_name=searched.study_name, storage=backend)
    with pytest.raises(KeyError):
        read((), -1)


@pytest.mark.slow
def test_after_any_operations_the_memory_is_what_a_fresh_read_shows(url: str) -> None:
    limits = settings(
        max_examples=12,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        print_blob=True,
    )
    run_state_machine_as_test(lambda: Operations(url), settings=limits)


def test_a_look_at_trials_that_nobody_changed_is_one_statement_and_copies_none(searched: optuna.Study) -> None:
    for number in range(6):
        searched.ask(SPACE)
        if number % 2:
            searched.tell(number, 0.5)
    before = searched.get_trials(deepcopy=False)
    statements: list[str] = []
    event.listen(backend_of(searched).engine, "before_cursor_execute", lambda *what: statements.append(what[2]))
    after = searched.get_trials(deepcopy=False)
    assert [old is new for old, new in zip(before, after, strict=True)] == [True] * 6
    assert len(statements) == 1
    assert searched.get_trials()[0] is not after[0]


def test_many_looks_are_one_statement_and_many_writes_one_transaction(searched: optuna.Study) -> None:
    searched.ask(SPACE)
    trial = searched.ask()
    searched.get_trials(deepcopy=False)
    engine, statements, commits = backend_of(searched).engine, [], []
    event.listen(engine, "before_cursor_execute", lambda *what: statements.append(what[2]))
    event.listen(engine, "commit", commits.append)
    with looking_once(searched):
        for _ in range(5):
            searched.get_trials(deepcopy=False)
    assert len(statements) == 1
    commits.clear()
    with one_transaction(searched):
        set_attributes(searched, trial, {"a": 1, "b": [2]})
        for name, axis in SPACE.items():
            trial._suggest(name, axis)
        trial.set_constraint("params", -3)
    assert len(commits) == 1
    assert len(statements) == 5, "a look, the trial's state, attributes, settings, the constraint"
    compare(searched)


def test_what_was_written_before_the_first_settings_of_a_search_is_not_stored_after_them(
    searched: optuna.Study,
) -> None:
    trial = searched.ask()
    with one_transaction(searched):
        set_attributes(searched, trial, {"asked": "ours"})
        trial._suggest("lr", SPACE["lr"])  # Optuna compares the axis with those of other trials, and stores at once
        with others(searched) as theirs:
            (seen,) = theirs.get_trials()
        assert (seen.user_attrs, list(seen.params)) == ({"asked": "ours"}, ["lr"])


@contextmanager
def statements_of(study: optuna.Study) -> Iterator[list[str]]:
    """What the database is told in this context: the first word of each statement."""
    engine, found = backend_of(study).engine, list[str]()

    def note(*what: Any) -> None:
        found.append(what[2].split()[0])

    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


def test_a_trial_is_created_and_ended_without_being_read(searched: optuna.Study) -> None:
    searched.get_trials()
    with looking_once(searched):
        searched.get_trials()
        with statements_of(searched) as creating:
            trial = searched.ask()
        trial.report(0.25, 1)
        with statements_of(searched) as telling:
            searched.tell(trial, 0.5)
            searched.get_trials()
    assert creating == ["SELECT", "INSERT", "SELECT", "INSERT"], "the study, the trial, its number, the count"
    assert telling == ["UPDATE", "INSERT"], "the state, the value"
    compare(searched)
    with pytest.raises(ValueError, match="Cannot tell a FAIL trial"):  # it was not marked, so it has a stand-in
        searched.tell(trial.number, 0.5)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        searched._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.75])
    compare(searched)


def test_a_file_that_nobody_else_has_changed_is_not_looked_through(searched: optuna.Study) -> None:
    for number in range(2):
        searched.tell(searched.ask(SPACE), 0.5)
        searched.ask()
        searched.get_trials()
        with statements_of(searched) as looking:
            searched.get_trials()
        is_file = backend_of(searched).engine.dialect.name == "sqlite"
        assert looking == ["PRAGMA" if is_file else "SELECT"]
        with others(searched) as other:
            other.tell(other.ask(), 0.99)
        assert len(searched.get_trials()) == 3 * (number + 1)
        compare(searched)


def test_only_the_last_trial_of_our_own_is_new(searched: optuna.Study) -> None:
    searched.ask()
    with others(searched) as other:
        other.enqueue_trial({"lr": 0.01})
    assert [is_new(searched, trial) for trial in searched.get_trials()] == [True, False]
    searched.ask()  # the one that another program has queued
    assert [is_new(searched, trial) for trial in searched.get_trials()] == [True, False]
    searched.ask()
    assert [is_new(searched, trial) for trial in searched.get_trials()] == [False, False, True]


def test_after_a_trial_is_told_no_other_one_is_read(searched: optuna.Study) -> None:
    for _ in range(3):
        searched.ask()
    searched.tell(0, 0.5)
    before = searched.get_trials(deepcopy=False)
    searched.tell(1, 0.5)
    after = searched.get_trials(deepcopy=False)
    assert [old is new for old, new in zip(before, after, strict=True)] == [True, False, True]
    compare(searched)


def test_after_an_old_trial_is_told_no_newer_one_is_read_again(searched: optuna.Study) -> None:
    for _ in range(4):
        searched.ask()
    for number in (3, 0):
        searched.tell(number, 0.5)
    before = searched.get_trials(deepcopy=False)
    searched.tell(1, 0.5)
    after = searched.get_trials(deepcopy=False)
    assert [old is new for old, new in zip(before, after, strict=True)] == [True, False, True, True]


def test_values_are_shown_as_the_database_returns_them(searched: optuna.Study) -> None:
    trial = searched.ask({"pair": CategoricalDistribution(["a", 2, 1.0])} | SPACE)
    read_anew(searched, searched.get_trials(deepcopy=False)[0])  # it is known from now on
    trial.set_user_attr("pair", (1, {2: "b"}))
    searched._storage.set_trial_system_attr(trial._trial_id, "pair", (1,))  # type: ignore[arg-type]
    trial.report(1, 1)
    trial.report(float("nan"), 2)
    compare(searched)
    searched._storage.set_trial_param(trial._trial_id, "lr", 0.07, SPACE["lr"])  # which Optuna leaves as it was
    compare(searched)
    searched.enqueue_trial({"lr": 0.01}, user_attrs={"pair": (1, {2: "b"})})
    compare(searched)


def test_no_write_changes_a_trial_that_somebody_holds(searched: optuna.Study) -> None:
    trial = Trial(searched, searched.ask()._trial_id)
    (held,) = searched.get_trials(deepcopy=False)
    before = facts(held)
    trial.report(0.5, 1)
    trial.set_user_attr("a", 1)
    trial.set_constraint("params", 1)
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    assert facts(held) == before != facts(searched.get_trials(deepcopy=False)[0])


WRITES: dict[str, Callable[[optuna.Study, Trial], object]] = {
    "create": lambda study, _: study._storage.create_new_trial(study._study_id),
    "param": lambda _, trial: trial.suggest_float("lr", 1e-4, 1e-1, log=True),
    "report": lambda _, trial: trial.report(0.5, 1),
    "user attribute": lambda _, trial: trial.set_user_attr("a", [1]),
    "system attribute": lambda _, trial: trial.set_constraint("params", -3),
    "tell": lambda study, trial: study.tell(trial, 0.5),
    "enqueue": lambda study, _: study.enqueue_trial({"lr": 0.01}),
    "begin anew": lambda study, trial: begin_anew(study, trial._cached_frozen_trial),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_the_database_took_without_an_answer_is_seen(searched: optuna.Study, write: str) -> None:
    trial = searched.ask()
    trial.report(0.25, 2)
    compare(searched)
    before = [facts(one) for one in searched.get_trials()]
    with loses(searched, 0, committed_only=True):
        WRITES[write](searched, trial)
        pytest.fail("no answer was lost")
    assert [facts(one) for one in searched.get_trials()] != before
    compare(searched)


def test_a_trial_that_another_program_added_before_ours_stands_before_it(searched: optuna.Study) -> None:
    searched.ask()
    assert len(searched.get_trials()) == 1
    with others(searched) as other:
        other.enqueue_trial({"lr": 0.01})
        searched._storage.create_new_trial(searched._study_id)
        other.enqueue_trial({"lr": 0.02})
    assert [trial.number for trial in searched.get_trials()] == [0, 1, 2, 3]
    compare(searched)


def test_a_trial_that_another_program_finished_is_never_the_best(searched: optuna.Study) -> None:
    marks = Marks.of(searched, "ours")
    for value in (0.5, 0.75, 0.25):
        trial = searched.ask()
        marks.mark_ended(searched, searched.get_trials()[trial.number], TrialState.COMPLETE, value)
        searched.tell(trial, value)
    with others(searched) as other:
        other.add_trial(create_trial(value=0.99))
    assert searched.get_trials()[3].user_attrs["reason"] == FOREIGN_REASON
    assert searched.best_trial.number == 1


def test_what_another_program_writes_into_a_trial_is_seen_when_it_is_read_anew(searched: optuna.Study) -> None:
    trial = searched.ask()
    frozen = searched.get_trials(deepcopy=False)[trial.number]
    with others(searched) as other:
        optuna.trial.Trial(other, frozen._trial_id).set_user_attr("by", "another")
    assert read_anew(searched, frozen).user_attrs == {"by": "another"}


def test_a_study_that_is_deleted_is_noticed_at_the_next_look(searched: optuna.Study) -> None:
    searched.ask()
    searched.get_trials()
    with others(searched) as other:
        optuna.delete_study(study_name=other.study_name, storage=other._storage)
    with pytest.raises(KeyError):
        searched.get_trials()


def test_only_a_search_has_its_trials_in_memory(spec: StudySpec, url: str) -> None:
    storage = open_storage(parse_url(url), create=True)
    named = spec.model_copy(update={"name": next(NAMES).replace(" ", "-")})
    assert isinstance(open_study(named, storage, "content")._storage, RememberingStorage)
    assert not isinstance(find_study(storage, named.name)[0]._storage, RememberingStorage)
    storage.engine.dispose()
