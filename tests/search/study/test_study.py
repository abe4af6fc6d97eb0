"""The one place that opens studies: its seeds, its fingerprint, its lock."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from choices import UNKNOWN, choices_of, with_word
from filelock import FileLock
from needed import postgres
from optuna.distributions import CategoricalDistribution
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import GPSampler, RandomSampler
from optuna.storages import RDBStorage
from sqlalchemy import URL

import search.study.lock
from search.errors import HeldError, StorageError, StudyChanged, UsageError
from search.export.export import export_best
from search.paths import Runs
from search.plan.space import distributions
from search.policy.halving import RememberingHalving
from search.policy.model import ModelSampler
from search.policy.tpe import RememberingTPE
from search.study.begun import as_begun
from search.study.lock import own_study, owner_of
from search.study.sampling import build_ladder, build_pruner, build_sampler, seed_of
from search.study.storage import open_storage, parse_url
from search.study.study import SPEC, check_trials, differences, find_study, fingerprint, open_study
from studies import Search, StudySpec
from trainer.values import override

VALUES: dict[str, Any] = {
    "name": "birds",
    "data": {"path": "/pictures", "image_size": 64},
    "limit": {"params": 5_000_000},
    "train": {"model": "rexnet_100", "epochs": 9},
    "space": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "optimizer": ["adamw", "sgd"]},
    "search": {"trials": 6},
}


def spec_of(*assignments: str) -> StudySpec:
    return StudySpec.model_validate(override(VALUES, assignments))


@pytest.fixture
def storage(url: URL) -> Iterator[RDBStorage]:
    opened = open_storage(url, create=True)
    yield opened
    opened.remove_session()
    opened.engine.dispose()


@pytest.mark.parametrize(
    "harmless",
    [
        "search.trials=99",
        "search.hours=2",
        "search.sampler=random",
        "search.pruner=hyperband",
        "search.min_epochs=2",
        "data.path=/elsewhere",
        "data.bad_files=skip",
        "known=[{lr=0.01}]",
    ],
)
def test_what_does_not_change_a_trials_value_may_change(storage: RDBStorage, harmless: str) -> None:
    open_study(spec_of(), storage, "content")
    open_study(spec_of(harmless), storage, "content")
    _, remembered = find_study(storage, "birds")
    assert remembered == spec_of(harmless)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("data.image_size=96", "data.image_size: 64 -> 96"),
        ("data.val_fraction=0.2", "data.val_fraction: 0.1 -> 0.2"),
        ("data.split_seed=3", "data.split_seed: 0 -> 3"),
        ("data.resize=squash", 'data.resize: "crop" -> "squash"'),
        ("limit.params=4_000_000", "limit.params: 5000000 -> 4000000"),
        ("limit.macs=1000", "limit.macs: null -> 1000"),
        ("train.model=resnet18", 'train.model: "rexnet_100" -> "resnet18"'),
        ("train.epochs=8", "train.epochs: 9 -> 8"),
        ("train.hflip=0.5", "train.hflip: 0.0 -> 0.5"),
        ("space.lr.high=0.2", "space.lr.high: 0.1 -> 0.2"),
        ("space.lr.log=false", "space.lr.log: true -> false"),
        ("space.dropout={low=0.0,high=0.5}", "space.dropout: null -> "),
    ],
)
def test_what_changes_a_trials_value_is_refused_with_the_difference(
    storage: RDBStorage, change: str, line: str
) -> None:
    open_study(spec_of(), storage, "content")
    with pytest.raises(StudyChanged) as raised:
        open_study(spec_of(change), storage, "content")
    assert f"\n  {line}" in str(raised.value)
    assert str(raised.value).count("\n  ") == 1, "that and nothing else"
    _, remembered = find_study(storage, "birds")
    assert remembered == spec_of(), "what was refused is not remembered"


def test_other_pictures_are_another_study(storage: RDBStorage) -> None:
    open_study(spec_of(), storage, "content")
    with pytest.raises(StudyChanged, match=r'data\.content: "content" -> "other"'):
        open_study(spec_of(), storage, "other")


def test_another_source_does_not_take_over_the_folder_of_the_pictures(storage: RDBStorage) -> None:
    open_study(spec_of("data.labels=table.csv"), storage, "content")
    same, other = ({**VALUES, "data": {"source": source, "image_size": 64}} for source in ("folder", "digits"))
    data = as_begun(StudySpec.model_validate(same), storage, None).spec.data
    assert (data.path, data.labels) == ("/pictures", "table.csv")
    asked = StudySpec.model_validate(other)
    assert as_begun(asked, storage, None).spec.data == asked.data


def test_accepted_changes_are_the_studys_own_from_then_on(storage: RDBStorage) -> None:
    open_study(spec_of(), storage, "content")
    noted: list[str] = []
    open_study(spec_of("seed=1"), storage, "content", accept_changes=True, accepted=noted.extend)
    assert noted == ["seed: 0 -> 1"]
    open_study(spec_of("seed=1"), storage, "content")
    with pytest.raises(StudyChanged, match="seed: 1 -> 0"):
        open_study(spec_of(), storage, "content")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("space.lr.log=false", "with lr from numbers 0.0001 to 0.1, log, and now lr is from numbers 0.0001 to 0.1"),
        ('space.optimizer=["adamw","rmsprop"]', r'with optimizer from the choices \["adamw", "sgd"\], and'),
        ("space.lr=[0.1,0.2]", r"0.1, log, and now lr is from the choices \[0.1, 0.2\]"),
    ],
)
def test_a_change_that_the_trials_there_cannot_live_with_is_a_sentence_with_the_cure(
    storage: RDBStorage, change: str, complaint: str
) -> None:
    study = open_study(spec_of(), storage, "content")
    space = distributions(spec_of(), None)
    study.tell(study.ask(space), 0.5)
    wider = spec_of("space.lr.high=0.2", "space.dropout={low=0.0,high=0.5}")
    check_trials(wider, storage, distributions(wider, None))
    with pytest.raises(StudyChanged, match=complaint) as refused:
        check_trials(spec_of(change), storage, distributions(spec_of(change), None))
    assert "another name (--set name=NEW)" in str(refused.value)


def test_every_difference_is_listed_at_once() -> None:
    before, after = (
        json.loads(json.dumps(fingerprint(spec_of(*changes), content)))
        for changes, content in (((), "a"), (("seed=1", "train.epochs=3", "space.lr.low=1e-5"), "b"))
    )
    assert differences(before, after) == [
        'data.content: "a" -> "b"',
        "seed: 0 -> 1",
        "space.lr.low: 0.0001 -> 1e-05",
        "train.epochs: 9 -> 3",
    ]
    assert differences(before, before) == []


def test_a_difference_in_a_long_value_is_shown_where_it_is(storage: RDBStorage) -> None:
    short = list(range(100, 160))
    long = [*short[:30], 7, *short[30:]]
    assert differences({"batch_size": long}, {"batch_size": short}) == [
        "batch_size: [..., 128, 129, 7, 130, 131, ...] -> [..., 128, 129, 130, 131, ...]"
    ]
    text = "x" * 300
    assert differences({"a": f"{text}y{text}"}, {"a": f"{text}z{text}"}) == [
        f"a: ...{text[:20]}y{text[:20]}... -> ...{text[:20]}z{text[:20]}..."
    ]
    (everything,) = differences({"a": [1, *short]}, {"a": [2, *range(500, 560)]})
    assert everything.startswith("a: [1, 100,")
    assert " -> [2, 500," in everything
    assert len(everything) < 260
    study = open_study(spec_of(), storage, "content")
    study.tell(study.ask({"batch_size": CategoricalDistribution(long)}), 0.5)
    with pytest.raises(StudyChanged, match=r"129, 7, 130.* and now .* from the choices \[\.\.\., 128, 129, 130, 131"):
        check_trials(spec_of(), storage, {"batch_size": CategoricalDistribution(short)})


def test_a_replaced_teacher_is_another_study_and_a_moved_one_is_not(tmp_path: Path) -> None:
    for name, weights in (("export", b"weights"), ("moved", b"weights"), ("trained-again", b"others")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    first, moved, again, timm = (
        fingerprint(spec_of(f"train.distill.teacher={json.dumps(teacher)}"), "content")
        for teacher in (*(str(tmp_path / name) for name in ("export", "moved", "trained-again")), "resnet18.a1_in1k")
    )
    assert first == moved
    assert [line.partition(":")[0] for line in differences(first, again)] == ["train.distill.teacher"]
    assert timm["train"]["distill"]["teacher"] == "resnet18.a1_in1k"


def test_a_study_of_another_program_is_not_touched(storage: RDBStorage) -> None:
    foreign = optuna.create_study(storage=storage, study_name="birds", direction="maximize")
    foreign.tell(foreign.ask(), 0.5)
    with pytest.raises(UsageError, match="made by another program; choose another name"):
        open_study(spec_of(), storage, "content")
    with pytest.raises(UsageError, match="was not made by search launch"):
        find_study(storage, "birds")
    assert foreign.user_attrs == {}


@pytest.mark.parametrize(
    ("name", "cure"),
    [("../../x", "no study file can have this name"), ("birds-copied", "give search launch --set name=birds-copied")],
)
def test_a_study_that_another_program_has_renamed_is_refused_with_the_launch_that_goes_on(
    storage: RDBStorage, url: URL, tmp_path: Path, name: str, cure: str
) -> None:
    """Its name says where its files are, and may be a path."""
    old = open_study(spec_of(), storage, "content")
    old.tell(old.ask(), 0.5)
    optuna.copy_study(from_study_name="birds", from_storage=storage, to_storage=storage, to_study_name=name)
    optuna.delete_study(study_name="birds", storage=storage)
    before = sorted(tmp_path.rglob("*"))
    sentence = f"study '{name}' is 'birds', renamed or copied by another program; .*{cure}"
    with pytest.raises(UsageError, match=sentence):
        find_study(storage, name)
    with pytest.raises(UsageError, match=sentence):
        export_best(name, url, Runs(tmp_path / "runs/of/birds"), "cpu")
    if "/" not in name:
        open_study(spec_of(f"name={name}"), storage, "content")
        assert len(find_study(storage, name)[0].trials) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_study_names_the_nearest_one(storage: RDBStorage) -> None:
    with pytest.raises(UsageError, match="no study 'brids' in this database; it has none yet"):
        find_study(storage, "brids")
    open_study(spec_of(), storage, "content")
    with pytest.raises(UsageError, match=r"did you mean birds\?"):
        find_study(storage, "brids")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("successive_halving", RememberingHalving),
        ("hyperband", HyperbandPruner),
        ("median", MedianPruner),
        ("none", NopPruner),
    ],
)
def test_a_reopened_study_has_its_own_pruner_not_optunas_default(
    storage: RDBStorage, name: str, kind: type[Any]
) -> None:
    spec = spec_of(f"search.pruner={name}")
    assert type(open_study(spec, storage, "content").pruner) is kind
    assert type(build_pruner(spec)) is kind


@pytest.mark.parametrize(
    ("name", "kind"), [("tpe", RememberingTPE), ("random", RandomSampler), ("gp", GPSampler), ("model", ModelSampler)]
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # GPSampler is one
def test_a_reopened_study_has_its_own_sampler(storage: RDBStorage, name: str, kind: type[Any]) -> None:
    spec = spec_of(f"search.sampler={name}")
    assert type(open_study(spec, storage, "content").sampler) is kind
    assert type(build_sampler(spec, 3)) is kind


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # GPSampler is one
def test_each_sampler_and_each_pruner_that_a_study_may_name_is_another_one() -> None:
    words = choices_of(Search)
    assert words.keys() == {"sampler", "pruner", "objective"}
    spec = spec_of()

    def searched(setting: str, word: str) -> StudySpec:
        return spec.model_copy(update={"search": with_word(Search, setting, word)})

    samplers = {type(build_sampler(searched("sampler", word), 3)) for word in words["sampler"]}
    pruners = {type(build_pruner(searched("pruner", word))) for word in words["pruner"]}
    assert len(samplers) == len(words["sampler"])
    assert len(pruners) == len(words["pruner"]) - 1, "two leave Optuna's pruner out"
    ladders = {build_ladder(searched("pruner", word)) for word in ("none", "promote")}
    assert len(ladders) == 2
    with pytest.raises(AssertionError, match=UNKNOWN):
        build_sampler(searched("sampler", UNKNOWN), 3)
    with pytest.raises(AssertionError, match=UNKNOWN):
        build_pruner(searched("pruner", UNKNOWN))


def test_seeds_differ_by_study_trial_and_purpose_and_are_the_same_everywhere() -> None:
    seeds = {seed_of(study, trial, purpose) for study in range(5) for trial in range(50) for purpose in range(3)}
    assert len(seeds) == 5 * 50 * 3
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert [seed_of(0, 0), seed_of(0, 1), seed_of(7, 3, 2)] == [2968811710, 3964924996, 2682643779]


def test_a_study_is_held_by_one_process_and_says_by_which(url: URL, tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert owner_of("birds", url, runs) is None
    hold = (
        "import sys; from pathlib import Path; from search.study.lock import own_study; from search.paths import Runs\n"
        "from search.study.storage import parse_url\n"
        "with own_study('birds', parse_url(sys.argv[1]), Runs(Path(sys.argv[2]))):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(url), str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        assert f"process {holder.pid} on " in str(owner_of("birds", url, runs))
        with pytest.raises(HeldError, match=f"in use by process {holder.pid} on "), own_study("birds", url, runs):
            pass
        with own_study("another", url, runs):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert owner_of("birds", url, runs) is None, "the lock ends with its process, however that ended"
    with own_study("birds", url, runs):
        assert owner_of("birds", url, runs) is not None


def test_looking_whether_a_study_is_held_does_not_refuse_a_launch(url: URL, tmp_path: Path) -> None:
    """`search status` takes the lock for an instant; a launch in that instant waits."""
    held = threading.Event()

    def look() -> None:
        with FileLock(f"{url.database}.birds.lock"):
            held.set()
            time.sleep(0.3)

    looking = threading.Thread(target=look)
    looking.start()
    held.wait()
    with own_study("birds", url, Runs(tmp_path)):
        assert not looking.is_alive()
    looking.join()


def test_studies_of_one_name_in_two_databases_do_not_share_a_folder_at_once(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.lock, "LOCK_PATIENCE_SECONDS", 0)
    runs, other = Runs(tmp_path), parse_url(f"sqlite:///{tmp_path}/other.db")
    with own_study("birds", url, runs):
        who = f"'birds' is in use by process .*, with another database than {other}; .* --storage OTHER_URL$"
        with pytest.raises(HeldError, match=who), own_study("birds", other, runs):
            pass
        assert not list(tmp_path.glob("other*")), "nothing is made beside a database that does not exist"
        with own_study("birds", other, Runs(tmp_path / "elsewhere")):
            pass
    with own_study("birds", other, runs):
        pass


def test_who_has_lost_a_study_leaves_the_name_of_its_next_owner_there(url: URL, tmp_path: Path) -> None:
    """Where locks of files do not reach: another machine took the lock of a Postgres server that was restarted."""
    runs = Runs(tmp_path)
    with own_study("birds", url, runs):
        runs.holder("birds").write_text("process 7 on elsewhere since today")
    assert runs.holder("birds").read_text() == "process 7 on elsewhere since today"
    with own_study("birds", url, runs):
        pass
    assert not runs.holder("birds").exists()


@pytest.mark.postgres
def test_a_postgres_lock_that_is_lost_may_be_taken_from_another_runs_folder_only(tmp_path: Path) -> None:
    here, there = Runs(tmp_path / "here"), Runs(tmp_path / "there")
    with postgres() as server:
        url = parse_url(server.get_uri())
        with own_study("birds", url, here) as check_lock:
            others = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
            server.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others};")
            assert owner_of("birds", url, here) is None, "it is lost"
            with pytest.raises(HeldError, match="in use by process ") as held, own_study("birds", url, here):
                pass
            assert "another" not in str(held.value)
            with own_study("birds", url, there):
                with pytest.raises(HeldError, match=r"which was faster; .* --runs OTHER_FOLDER$"):
                    check_lock()
                assert there.holder("birds").exists()
            check_lock()
            assert owner_of("birds", url, there) is not None, "it is taken again"


def test_a_study_of_another_version_is_a_sentence_with_the_cure(storage: RDBStorage) -> None:
    study = open_study(spec_of(), storage, "content")
    stored = study.user_attrs[SPEC]
    study.set_user_attr(SPEC, stored | {"train": stored["train"] | {"warp": 9}, "moon": True})
    with pytest.raises(StudyChanged) as refused:
        find_study(storage, "birds")
    first, *problems, cure = str(refused.value).splitlines()
    assert first.startswith("study 'birds' was last launched by another version of this program")
    assert [line.split(":")[0] for line in problems] == ["  train.warp", "  moon"]
    assert cure.startswith("launch it again with this version")
    open_study(spec_of(), storage, "content")
    assert find_study(storage, "birds")[1] == spec_of(), "and it does cure it"


def test_a_runs_folder_that_cannot_be_made_is_an_error(url: URL, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    held = own_study("birds", url, Runs(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot be written: Not a directory; choose another --runs folder"), held:
        pass


def test_a_study_is_held_by_whichever_name_its_database_is_opened(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/search.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "real/search.db")
    with (
        own_study("birds", parse_url(f"sqlite:///{tmp_path}/real/search.db"), Runs(tmp_path / "one")),
        pytest.raises(HeldError),
        own_study("birds", parse_url(f"sqlite:///{tmp_path}/link.db"), Runs(tmp_path / "two")),
    ):
        pass
