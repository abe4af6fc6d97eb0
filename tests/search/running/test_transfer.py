"""Recipes of earlier studies in a new one: real databases, workers that play a script."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
from fast import slow_after
from needed import postgres
from optuna.trial import TrialState, create_trial
from scripted import Bench, ScriptedPool, spec_of, trains
from sqlalchemy.engine import make_url

from search.paths import Runs
from search.plan.prepare import Prepared
from search.plan.space import distributions
from search.plan.transfer import recipes_within
from search.plan.width import Fitter
from search.policy.ladder import REPEATS
from search.running.launch import transfer_recipes
from search.study.events import Enqueue
from search.study.journal import read_journal
from search.study.owned import OwnedStudy
from search.study.replay import replay
from search.study.storage import open_storage, parse_url
from search.study.study import PERSON, open_study
from search.study.transfer import (
    TRANSFERRED,
    DataSize,
    Transferred,
    choose_transfers,
    find_transfers,
    keep_transferred,
    store_data_size,
    transferred,
)
from search.watch.findings import story
from studies import StudySpec
from trainer.config import Shape
from trainer.values import validate

NUMBERS = (f"n{number}" for number in itertools.count())
DATA_SIZE = DataSize(classes=10, image_size=16, pictures=1000)


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgres, pytest.mark.slow])]
)
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "sqlite":
        yield None
        return
    with postgres() as server:
        yield server


@pytest.fixture
def url(server: Any, tmp_path: Path) -> str:
    """Of a database of the test's own."""
    if server is None:
        return f"sqlite:///{tmp_path}/search.db"
    server.psql(f"CREATE DATABASE {(name := next(NUMBERS))};")
    found: str = server.get_uri(database=name).replace("postgresql://", "postgresql+psycopg://")
    return found


def spec(name: str, **changes: Any) -> StudySpec:
    train = {"model": "resnet10t", "epochs": 3, "schedule": "constant"} | changes.pop("train", {})
    space = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "batch_size": [16, 64]}
    return validate(
        StudySpec, spec_of(trials=8).model_dump() | {"name": name, "train": train, "space": space} | changes, name
    )


def earlier(
    url: str, settings: StudySpec, *values: float, pictured: DataSize | None = DATA_SIZE, owner: Any = ""
) -> None:
    """A finished study with a trial of each value; its learning rate is a hundredth of it."""
    study = open_study(settings, open_storage(parse_url(url), create=True), "content")
    if owner != "":
        study.set_user_attr(PERSON, owner)
    if pictured is not None:
        store_data_size(study, pictured)
    space = distributions(settings, None)
    known = {"lr": 0.01, "batch_size": 64}
    plain = optuna.load_study(study_name=settings.name, storage=parse_url(url).render_as_string(hide_password=False))
    for number, value in enumerate(values):
        params = {key: known[key] for key in space} | {"lr": round(value / 100, 4)}
        uuid = plain.user_attrs["featherweight:uuid"]
        marks = {"featherweight:mark": f"{uuid}/{number}/ended", "num_params": 900}
        plain.add_trial(
            create_trial(
                state=TrialState.COMPLETE, value=value, params=params, distributions=space,
                intermediate_values={1: value, 2: value, 3: value}, user_attrs=marks,
            )
        )  # fmt: skip


def chosen(url: str, settings: StudySpec) -> list[tuple[str, float]]:
    found = find_transfers(settings, DATA_SIZE, parse_url(url))
    return [(one.source, float(one.recipe["lr"])) for one in found]


def new(transfer: int = 3, **changes: Any) -> StudySpec:
    made = spec("new", **changes)
    return made.model_copy(update={"search": made.search.model_copy(update={"transfer": transfer})})


def test_the_best_of_the_nearest_own_studies_of_the_same_family_are_chosen(url: str) -> None:
    far = DATA_SIZE.model_copy(update={"classes": 100, "pictures": 50_000})
    earlier(url, spec("far"), 0.9, 0.8, pictured=far)
    earlier(url, spec("near"), 0.3, 0.6, 0.5, pictured=DATA_SIZE.model_copy(update={"pictures": 2000}))
    earlier(url, spec("before"), 0.7, pictured=None)
    earlier(url, spec("others"), 0.99, owner="somebody else")
    earlier(url, spec("nobodys"), 0.98, owner=None)
    earlier(url, spec("family", train={"model": "rexnet_100"}), 0.97)
    earlier(url, spec("empty"))
    optuna.create_study(study_name="foreign", storage=parse_url(url).render_as_string(hide_password=False))
    assert chosen(url, new(1)) == [("near/1", 0.006)]
    assert chosen(url, new()) == [("near/1", 0.006), ("far/0", 0.009), ("before/0", 0.007)], (
        "the best of each, nearest first"
    )
    assert chosen(url, new(5)) == [
        ("near/1", 0.006), ("far/0", 0.009), ("before/0", 0.007), ("near/2", 0.005), ("far/1", 0.008),
    ]  # fmt: skip
    assert chosen(url, new(0)) == []
    rex = new(train={"model": "rexnet_130"})
    assert [source for source, _ in chosen(url, rex)] == ["family/0"]
    known = ({"lr": 0.006, "batch_size": 64},)
    assert chosen(url, new(2).model_copy(update={"known": known})) == [("far/0", 0.009), ("near/2", 0.005)]


def test_a_study_of_unknown_owner_takes_nothing_over_and_a_missing_database_is_none(url: str, tmp_path: Path) -> None:
    earlier(url, spec("near"), 0.3)
    earlier(url, new(), owner=None)
    assert chosen(url, new()) == []
    assert find_transfers(new(), DATA_SIZE, parse_url(f"sqlite:///{tmp_path}/none.db")) == []
    assert not (tmp_path / "none.db").exists()


def test_settings_that_were_fixed_come_along_and_values_outside_the_space_are_dropped(tmp_path: Path) -> None:
    recipe = {"lr": 0.5, "batch_size": 64, "optimizer": "adamw", "width_mult": 0.9, "dropout": 0.1}
    space = {
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "batch_size": [16, 64],
        "optimizer": ["sgd", "nadam"],
        "width_mult": {"low": 0.1},
        "dropout": {"low": 0.0, "high": 0.5},
    }
    settings = new(space=space, limit={"params": 1_000_000})
    axes = distributions(settings, SimpleNamespace(widest=SimpleNamespace(width_mult=0.5)))  # type: ignore[arg-type]
    fitter = Fitter(Shape(10, 16), settings.limit, tmp_path)
    taken = recipes_within(settings, axes, [Transferred(study="a", trial=1, recipe=recipe)], fitter)
    assert [dict(one.recipe) for one in taken] == [{"batch_size": 64, "dropout": 0.1}]
    nothing = Transferred(study="a", trial=2, recipe={"lr": 0.5, "optimizer": "adamw"})
    assert recipes_within(settings, axes, [nothing], fitter) == []


def test_a_width_becomes_a_share_of_the_widths_that_fit_or_is_dropped(tmp_path: Path) -> None:
    space = {"depth_mult": {"low": 0.5, "high": 1.0}, "width_mult": {"low": 0.3, "high": 0.4}}
    settings = new(space=space, train={"model": "rexnet_100"})
    fitter = Fitter(Shape(10, 16), settings.limit, tmp_path)
    axes = distributions(settings, None)
    fits = Transferred(study="a", trial=1, recipe={"depth_mult": 0.7, "width_mult": 0.35})
    too_wide = Transferred(study="a", trial=2, recipe={"depth_mult": 0.7, "width_mult": 0.9})
    taken = recipes_within(settings, axes, [fits, too_wide], fitter)
    assert [dict(one.recipe) for one in taken] == [
        {"depth_mult": 0.7, "width_share": pytest.approx(0.5)},
        {"depth_mult": 0.7},
    ]


def test_a_recipe_has_the_fixed_settings_of_its_study(url: str) -> None:
    fixed = spec("near", train={"batch_size": 16}, space={"lr": {"low": 1e-4, "high": 1e-1, "log": True}})
    earlier(url, fixed, 0.6)
    (one,) = find_transfers(new(1), DATA_SIZE, parse_url(url))
    assert dict(one.recipe) == {"lr": 0.006, "batch_size": 16}


def begin(bench: Bench, settings: StudySpec, url: str) -> tuple[OwnedStudy, list[str]]:
    """What a launch does before it has workers."""
    storage = open_storage(parse_url(url), create=True)
    owned = OwnedStudy(open_study(settings, storage, "content"), settings, lambda: None)
    data: Any = SimpleNamespace(
        class_names=list("0123456789"), splits={"train": range(1000), "val": range(10)}, shape=Shape(10, 16)
    )
    prepared = SimpleNamespace(data=data, space=distributions(settings, None))
    return owned, transfer_recipes(owned, cast(Prepared, prepared), storage, Runs(bench.folder))


def test_they_are_queued_after_the_known_ones_once_and_a_replay_is_whole(bench: Bench, url: str) -> None:
    bench.url = url
    earlier(url, spec("near"), 0.3, 0.6)
    settings = new(2).model_copy(update={"name": "scripted", "known": ({"lr": 0.02},)})
    owned, said = begin(bench, settings, url)
    assert said == ["recipes of earlier studies, tried after the known ones: near, trial 1, near, trial 0"]
    earlier(url, spec("later"), 0.99)
    assert begin(bench, settings, url)[1] == [], "they were chosen"
    assert [one.source for one in transferred(owned.study) or ()] == ["near/1", "near/0"]
    assert bench.coordinator(ScriptedPool(trains), settings).run() is True
    coordinator = bench.coordinator(ScriptedPool(trains), settings)
    assert coordinator.run() is True, "another launch queues nothing"
    trials = coordinator.trials.study.get_trials()
    assert [one.params["lr"] for one in trials[:3]] == [0.02, 0.006, 0.003]
    assert [one.user_attrs.get(TRANSFERRED) for one in trials[:4]] == [None, "near/1", "near/0", None]
    assert len(trials) == 8
    events = read_journal(coordinator.journal.path)
    assert [one.params["lr"] for one in events if isinstance(one, Enqueue)] == [0.02, 0.006, 0.003]
    played = replay(events)
    assert played.identical, played.first_difference
    assert (played.asks, played.rebuilt) == (8, 0)
    assert not any(REPEATS in one.user_attrs for one in trials)


@pytest.mark.parametrize("killed_at", slow_after(1, [0, 1]))
def test_a_kill_while_they_are_queued_loses_and_doubles_none(
    bench: Bench, url: str, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    bench.url = url
    settings = new(2).model_copy(update={"name": "scripted"})
    earlier(url, spec("near"), 0.3, 0.6)
    begin(bench, settings, url)
    coordinator = bench.coordinator(ScriptedPool(trains), settings)
    append, queued = coordinator.journal.append, itertools.count()

    def killed(*events: Any) -> None:
        if any(isinstance(event, Enqueue) and next(queued) == killed_at for event in events):
            raise Killed  # the database has it, the journal does not
        append(*events)

    monkeypatch.setattr(coordinator.journal, "append", killed)
    with pytest.raises(Killed):
        coordinator.run()
    again = bench.coordinator(ScriptedPool(trains), settings)
    assert again.run() is True
    trials = again.trials.study.get_trials()
    assert [one.user_attrs.get(TRANSFERRED) for one in trials] == ["near/1", "near/0", *[None] * 6]
    events = read_journal(again.journal.path)
    assert [one.params["lr"] for one in events if isinstance(one, Enqueue)] == [0.006, 0.003]
    assert replay(events).identical


def test_the_report_names_the_earlier_study_of_the_best(bench: Bench) -> None:
    settings = new(1).model_copy(update={"name": "scripted"})
    coordinator = bench.coordinator(ScriptedPool(trains), settings)
    keep_transferred(
        coordinator.trials.study, [Transferred(study="near", trial=4, recipe={"lr": 0.1, "batch_size": 16})]
    )
    coordinator.run()
    assert "trial 0, a recipe of an earlier study (near/4), reached" in story(
        settings, coordinator.trials.study.get_trials()
    )


def test_without_any_earlier_study_a_launch_says_so(bench: Bench, url: str) -> None:
    _, said = begin(bench, new(2), url)
    assert len(said) == 1
    assert said[0].startswith("search.transfer = 2: no earlier study of ")
    assert begin(bench, new(0), url)[1] == []
    assert choose_transfers(new(0), DATA_SIZE, open_storage(parse_url(url))) == []
    assert make_url(url).drivername
