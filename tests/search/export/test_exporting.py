"""What an export decides by itself; that its files are what they say is tested end to end."""

from __future__ import annotations

import json
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import psutil
import pytest
import torch
from exports import recorded
from marked import add_own
from needed import required
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from safetensors import SafetensorError
from scripted import EPOCHS, ScriptedPool, trains
from sqlalchemy.exc import OperationalError
from tiny import tiny_study

import search.export.export
import search.export.retrain
import search.study.outage
import search.workers.places
from search.console import Terminal
from search.devices import WorkerDevice
from search.errors import HeldError, Interrupted, NothingToExport, ProofFailed, StudyChanged, UsageError
from search.export.build import write_graphs
from search.export.card import _choice
from search.export.choice import choose_trials
from search.export.deadline import Deadline
from search.export.description import _recorded_config
from search.export.export import _disk_errors, _export, export_best
from search.export.metrics import Export, evaluate_once, hash_of_model, text_of_export
from search.export.place import Place
from search.export.proof import BATCH, Difference, _rounding, compare_logits
from search.export.record import ExportRecord, ProofAnswer
from search.export.retrain import Retraining, raise_if_stopped
from search.export.trainings import Outcome, Training
from search.options import trial_numbers
from search.paths import Runs
from search.plan.prepare import prepare
from search.plan.schedule import Schedule
from search.study.confirmation import begin, confirmation_of, final_seed, missing, plan_of, record
from search.study.gain import paired_interval, wilson_interval
from search.study.owned import OwnedStudy
from search.study.storage import open_storage, parse_url
from search.study.study import UUID, open_study, record_test_use
from search.workers.messages import Assign, FromWorker
from search.workers.pool import Exit
from studies import Confirm, Faults, Limit, StudySpec
from studies.cluster import Cluster
from trainer.config import EpochResult, TrainConfig
from trainer.data import Dataset, prepare_data
from trainer.errors import DiskError, LimitError
from trainer.views import NO_VIEWS, Views


def test_each_final_model_is_an_opening_and_a_resumed_export_is_the_same_one(tmp_path: Path) -> None:
    study = optuna.create_study()
    weights, others = tmp_path / "model.safetensors", tmp_path / "others.safetensors"
    weights.write_bytes(b"weights")
    others.write_bytes(b"other weights")
    plain, flip, blue = NO_VIEWS, Views(("flip",)), [Views(("fancy_pca",), colour_shift=(0, 0, z)) for z in (0.1, 0.2)]
    models = [(weights, plain), (weights, plain), (weights, flip), (weights, flip), (others, flip)]
    assert [record_test_use(study, hash_of_model(*model)) for model in models] == [1, 1, 2, 2, 3]
    assert [record_test_use(study, hash_of_model(weights, views)) for views in blue] == [4, 5]


@pytest.mark.parametrize(
    ("hits", "n", "interval"), [(81, 263, (0.2553, 0.3662)), (0, 20, (0.0, 0.1611)), (20, 20, (0.8389, 1.0))]
)
def test_the_interval_is_wilsons(hits: int, n: int, interval: tuple[float, float]) -> None:
    """As Newcombe prints it (Statistics in Medicine 17, 1998)."""
    assert wilson_interval(hits, n) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [((36, 12, 2, 0), (0.0569, 0.3404)), ((36, 14, 0, 0), (0.1528, 0.4167)), ((1, 54, 53, 0), (-0.1755, 0.1934))],
)
def test_the_interval_of_two_models_on_the_same_pictures_is_newcombes(
    counts: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    """The first one as he prints it (Statistics in Medicine 17, 1998, page 2635)."""
    both, one, other, _ = counts
    assert paired_interval(both, one, other, sum(counts)) == pytest.approx(interval, abs=5e-5)
    low, high = interval
    assert paired_interval(both, other, one, sum(counts)) == pytest.approx((-high, -low), abs=5e-5)


@pytest.mark.parametrize("test_fraction", [0.0, 0.8])
def test_every_picture_is_evaluated_once(tmp_path: Path, test_fraction: float) -> None:
    spec = StudySpec.model_validate(
        {
            "name": "digits",
            "data": {"source": "digits", "image_size": 8, "test_fraction": test_fraction},
            "space": {"lr": [0.1, 0.2]},
            "confirm": {"top": 0},
        }
    )
    data = prepare_data(spec.data, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)).eval()
    seen: list[int] = []
    net.register_forward_hook(lambda _net, pictures, _logits: seen.append(len(pictures[0])))
    study = optuna.create_study(storage=open_storage(parse_url(f"sqlite:///{tmp_path}/search.db"), create=True))
    owned = OwnedStudy(study, spec, lambda: None)
    retraining = Retraining(owned, Runs(tmp_path), data, [], Terminal(file=StringIO()))
    outcomes: Any = [[SimpleNamespace(results=(), seconds=0.0)]]
    found = evaluate_once(tmp_path, net, net, retraining, ExportRecord.model_validate(recorded()), outcomes)
    assert found.evaluation.split == ("test" if test_fraction else "val")
    assert sum(seen) == len(data.splits["test"]) + len(data.splits["val"])
    assert found.validation.n == len(data.splits["val"])


def test_a_place_where_no_export_can_be_made_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^the folder /proc/export cannot be made \(.*\); choose another one with --out"
    ):
        Place(Path("/proc/export"), is_default=False).check()  # nobody makes a folder there
    Place(tmp_path / "exports/small-1", is_default=True).check()
    assert [path.name for path in tmp_path.rglob("*")] == ["exports"]


@pytest.mark.parametrize(("scale", "allowed"), [(0.01, 1e-4), (1.0, 1e-4), (300.0, 3e-3)])
def test_logits_may_differ_by_as_much_as_fp32_rounds(scale: float, allowed: float) -> None:
    expected = scale * np.array([[1.0, -0.5], [0.25, 0.0]])
    near = expected + 0.9 * allowed
    assert compare_logits("ONNX Runtime", near, expected, lambda: 0.0) == pytest.approx(0.9 * allowed)
    for wrong in (expected + 1.1 * allowed, expected * np.nan):
        with pytest.raises(Difference, match=r"^ONNX Runtime's logits differ by .*, more than "):
            compare_logits("ONNX Runtime", wrong, expected, lambda: 0.0)


def test_logits_of_a_model_that_amplifies_rounding_may_differ_by_as_much_as_fp32_changes_in_it() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), *(layer for _ in range(12) for layer in (torch.nn.Linear(12, 12), torch.nn.Tanh()))
    )
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data *= 8  # chaotic: each layer makes differences larger
    pictures = np.random.default_rng(0).normal(size=(70, 3, 2, 2)).astype(np.float32)
    rounding = _rounding(model, lambda start: pictures[start : start + BATCH], len(pictures))
    assert 1e-4 < rounding < 0.5
    expected = model(torch.from_numpy(pictures)).detach().numpy()
    assert compare_logits("ONNX Runtime", expected + 1.9 * rounding, expected, lambda: rounding) > rounding
    with pytest.raises(Difference, match=r"^ONNX Runtime's logits differ by "):
        compare_logits("ONNX Runtime", expected + 2.1 * rounding, expected, lambda: rounding)


def test_a_full_disk_ends_an_export_with_one_sentence_whichever_file_it_stops(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).eval()
    sentence = r"^no room for an export in .*/exports; make room, and the same command goes on$"
    for name in ("pt2", "onnx"):
        (tmp_path / f"model.{name}").symlink_to("/dev/full")  # every write to it finds no space left
        with pytest.raises(DiskError, match=sentence), _disk_errors(tmp_path / "exports"):
            write_graphs(tmp_path, net, (3, 8, 8), [name], {})
    with pytest.raises(DiskError, match=sentence), _disk_errors(tmp_path / "exports"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ValueError, match="ours"), _disk_errors(tmp_path):
        raise ValueError("ours")


def test_of_a_teacher_that_is_an_export_only_its_folders_name_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "big-7"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    for teacher, told in ((str(folder), "big-7"), ("hf-hub:timm/resnet18", "hf-hub:timm/resnet18")):
        config = TrainConfig.model_validate({"distill": {"teacher": teacher}})
        distill = _recorded_config(config).distill
        assert distill is not None
        assert distill.teacher == told
    assert _recorded_config(TrainConfig()) == TrainConfig()


@pytest.fixture
def spec() -> StudySpec:
    values: dict[str, Any] = {"name": "confirmed", "data": {"source": "digits"}, "confirm": {"top": 1, "seeds": 3}}
    space = {"lr": {"low": 0.001, "high": 0.1}}
    return StudySpec.model_validate(values | {"space": space, "train": {"epochs": EPOCHS}})


def completed_study(storage: RDBStorage | None = None, *, num_params: int = 1) -> optuna.Study:
    """A study with one trial, which is its best."""
    study = optuna.create_study(direction="maximize", storage=storage)
    axis, size = {"lr": FloatDistribution(0.001, 0.1)}, {"num_params": num_params, "seconds": 1.0}
    values = {"params": {"lr": 0.01}, "distributions": axis, "user_attrs": size, "intermediate_values": {1: 0.5}}
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.5, **values))
    return study


def test_an_export_whose_study_was_taken_over_writes_no_more_to_it(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = completed_study(open_storage(parse_url(f"sqlite:///{tmp_path}/search.db"), create=True))

    def trained(_retraining: Retraining, _stage: str, trainings: list[Training]) -> Iterator[Outcome]:
        result = EpochResult(
            epoch=1, train_loss=1.0, val_loss=1.0, val_accuracy=0.5, seconds=1.0, images_per_second=1.0, final=True
        )
        for training in trainings:
            yield Outcome(training, (result,))

    left = [2]  # before the first record, and before the second

    def check_lock() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise HeldError("confirmed", "a launch that was faster")

    monkeypatch.setattr(Retraining, "_outcomes", trained)
    data: Any = SimpleNamespace(fingerprint="pictures")
    devices: Any = ["one"]
    retraining = Retraining(OwnedStudy(study, spec, check_lock), Runs(tmp_path), data, devices, Terminal(quiet=True))
    with pytest.raises(HeldError, match="in use by a launch that was faster"):
        retraining.choose()
    assert [number for _, number in missing(study, spec)] == [1, 2], "what was recorded before it was lost"


class Desk:
    """An export whose workers play a script and whose database is away when the test says so."""

    def __init__(self, spec: StudySpec, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = ScriptedPool(trains)
        self.asked = 0
        """How often the study's lock was looked at."""
        self.is_away: Callable[[], bool] = lambda: False
        monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
        monkeypatch.setattr(search.workers.places, "LocalPool", lambda devices, logs: self.pool)
        storage = open_storage(parse_url(f"sqlite:///{folder}/search.db"), create=True)
        data: Any = SimpleNamespace(
            fingerprint="pictures", cache_path=folder / "cache", mean=(0.5,) * 3, std=(0.5,) * 3
        )
        devices = [WorkerDevice("cpu", None, 1)]
        self.said = StringIO()
        console = Terminal(file=self.said, width=200)
        self.study = completed_study(storage)
        self.study.set_user_attr(UUID, "its own")
        self.retraining = Retraining(
            OwnedStudy(self.study, spec, self.check_lock), Runs(folder), data, devices, console
        )

    def check_lock(self) -> None:
        self.asked += 1
        if self.is_away():
            raise OperationalError("SELECT 1", None, Exception("the server is gone"))


def test_an_export_trains_on_while_the_database_is_away_and_records_everything_once(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes in the second of three trainings, and is back a moment after the last."""
    desk = Desk(spec, tmp_path, monkeypatch)
    ended = []

    def is_away() -> bool:
        if len(desk.pool.assigned) == 3 and desk.pool.answers[-1] is False:
            ended.append(None)
        return len(desk.pool.answers) > EPOCHS and len(ended) < 4

    desk.is_away = is_away
    with desk.retraining as retraining:
        retraining.choose()
        assert missing(desk.study, spec) == []
        found = confirmation_of(desk.study, spec)
        assert found is not None
        assert len(found.candidates[0].accuracies) == 3
    assert desk.asked > 3 * EPOCHS, "in each turn"
    said = desk.said.getvalue()
    assert said.index("the database cannot be reached; training goes on") < said.index("2 of 3 trainings done")
    assert said.index("3 of 3 trainings done") < said.index("the database is back")


@pytest.mark.parametrize("place", ["slurm", "ray"])
def test_the_trainings_of_an_export_run_on_a_cluster_as_the_study_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Workers may have shared a GPU in the search; on a cluster each has its own."""
    settings = {"confirm": {"top": 1, "seeds": 2}, "cluster": {"threads": 3}}
    asked = StudySpec.model_validate(tomllib.loads(tiny_study("tiny", trials=1)) | settings)
    url, pools = parse_url(f"sqlite:///{tmp_path}/search.db"), list[ScriptedPool]()
    searched = asked.model_copy(
        update={"cluster": Cluster(), "search": asked.search.model_copy(update={"workers_per_gpu": 2})}
    )
    content = prepare_data(asked.data, Runs(tmp_path).cache).content_hash
    study = open_study(searched, open_storage(url, create=True), content)
    values: dict[str, Any] = {"params": {"lr": 0.01}, "distributions": {"lr": FloatDistribution(0.001, 0.02, log=True)}}
    size = {"num_params": 1, "seconds": 1.0}
    add_own(study, [create_trial(state=TrialState.COMPLETE, value=0.5, user_attrs=size, **values)])

    def pool_of(devices: list[WorkerDevice], *_: object) -> ScriptedPool:
        pools.append(made := ScriptedPool(trains, len(devices)))
        made.devices = devices
        return made

    def confirmed(*_: object) -> None:
        raise Interrupted("confirmed")

    if place == "ray":
        required("ray")
        monkeypatch.setattr("search.workers.ray_cluster.connect", lambda *_: None)
        monkeypatch.setattr("search.workers.ray_cluster.shortage", lambda *_: None)
        monkeypatch.setattr("search.workers.ray.RayPool", pool_of)
    else:
        (tmp_path / "srun").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(search.workers.places, "SlurmPool", pool_of)
    monkeypatch.setattr(search.export.export, "_unchanged_or_new", confirmed)
    with pytest.raises(Interrupted, match="confirmed"):
        export_best("tiny", url, Runs(tmp_path), f"{place}:2", asked=asked)
    assert missing(study, asked) == []
    (pool,) = pools
    assert len(pool.assigned) == len(plan_of(study, asked).results)
    assert list(pool.devices) == [WorkerDevice(f"{place}:{number}", "any", 3, place=place) for number in range(2)]
    assert pool.closed


def test_the_exported_model_has_a_seed_that_had_no_part_in_the_choice(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced = spec.model_copy(update={"confirm": Confirm()})
    desk = Desk(raced, tmp_path, monkeypatch)
    with desk.retraining as retraining:
        (trial,), found = retraining.choose()
        ((member,),) = retraining.plan([trial])
    assert found is not None
    chosen_by = len(found.candidates[0].accuracies)
    assert len(found.candidates[0].reported) == 2
    assert member.config.seed == final_seed(raced, trial.number, chosen_by)
    trained = [assignment.checkpoint for assignment in desk.pool.assigned]
    assert trained.index(str(member.checkpoint)) == chosen_by, "it is trained once, to measure the winner"
    assert "measuring the winner: trial 0, seed" in desk.said.getvalue()


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "and one of its name created"])
def test_an_export_whose_study_is_deleted_says_so_and_writes_nothing_to_the_next(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    def deleted(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if len(desk.pool.assigned) == 2:
            optuna.delete_study(study_name=name, storage=storage)
            if again:
                assert optuna.create_study(study_name=name, storage=storage)._study_id == desk.study._study_id
        yield from trains(assignment, times)

    desk = Desk(spec, tmp_path, monkeypatch)
    desk.pool.script = deleted
    name, storage = desk.study.study_name, open_storage(parse_url(f"sqlite:///{tmp_path}/search.db"))
    with desk.retraining as retraining, pytest.raises(StudyChanged, match="deleted or replaced while it was in use"):
        retraining.choose()
    for study in storage.get_all_studies():
        assert (study.user_attrs, study.system_attrs) == ({}, {})


@pytest.mark.parametrize("stage", ["training", "writing"])
def test_a_stop_request_ends_an_export_before_its_next_stage(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    desk = Desk(spec, tmp_path, monkeypatch)
    begun = []

    def asked_while(name: str) -> Any:
        begun.append(name)
        if name == stage:
            desk.retraining.runs.stop_request(spec.name).parent.mkdir(parents=True)
            desk.retraining.runs.stop_request(spec.name).touch()
        return "whole", "plain"

    monkeypatch.setattr(Retraining, "train", lambda *_: asked_while("training"))
    monkeypatch.setattr(search.export.export, "_write_models", lambda *_: asked_while("writing"))
    monkeypatch.setattr(search.export.export, "evaluate_once", lambda *_: asked_while("evaluating"))
    with pytest.raises(Interrupted, match="export stopped; nothing is lost, the same command goes on"):
        _export(
            Place(tmp_path / "export", is_default=True), ExportRecord.model_validate(recorded()), desk.retraining, [[]]
        )
    assert begun[-1] == stage
    assert not (tmp_path / "export").exists()


def test_a_stop_request_ends_an_export_while_it_decodes_pictures(tmp_path: Path) -> None:
    """Whatever shows its progress looks, the evaluation too."""
    runs, said = Runs(tmp_path), Terminal(quiet=True)
    spec = StudySpec.model_validate(tomllib.loads(tiny_study("tiny", trials=1)))
    runs.stop_request("tiny").parent.mkdir(parents=True)
    runs.stop_request("tiny").touch()
    with pytest.raises(Interrupted, match="export stopped; nothing is lost, the same command goes on"):
        prepare(spec, runs, said, lambda: raise_if_stopped(runs, "tiny"))
    assert not list(runs.cache.glob("[!.]*")), "half a cache is none"


class Proof:
    """Stands in for the interpreter in which an export is proven: a shell's script."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "interpreter"
        monkeypatch.setattr(sys, "executable", str(self.file))

    def prove(self, script: str, look: Callable[[], None] = lambda: None) -> ProofAnswer:
        self.file.write_text(f"#!/bin/sh\n{script}\n")
        self.file.chmod(0o755)
        spec = StudySpec.model_validate(tomllib.loads(tiny_study("tiny", trials=1)))
        data = cast(Dataset, SimpleNamespace(cache_path=self.file))
        return search.export.export.prove(self.file.parent, spec, data, Terminal(quiet=True), look)


def test_a_stop_request_ends_a_proof_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, looks = psutil.Process().children(), []

    def look() -> None:
        looks.append([child for child in psutil.Process().children() if child not in before])
        if len(looks) == 3:
            raise Interrupted("export stopped")

    with pytest.raises(Interrupted):
        Proof(tmp_path, monkeypatch).prove("exec sleep 600", look)
    (proof,) = looks[-1]
    assert not proof.is_running()


def test_a_proof_is_its_last_line_and_a_failed_one_its_last_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = Proof(tmp_path, monkeypatch)
    known = recorded()
    answer = known["proof"] | {"sha256": {}, "hardware": "a desk", "latency_ms": {"timm": {"1": 0.5}}}
    said = f"""echo '["through timm", 1, 2]'; sleep 1; echo '["through timm", 2, 2]'; echo '{json.dumps(answer)}'"""
    assert proof.prove(said) == ProofAnswer.model_validate(answer)
    with pytest.raises(ProofFailed, match=r"^the export failed its proof: accuracy: 0\.5; it was not put in place"):
        proof.prove("echo a warning >&2; echo accuracy: 0.5 >&2; exit 9")
    with pytest.raises(ProofFailed, match=r"^the export failed its proof: it ended with code 3; it was not"):
        proof.prove("exit 3")


def test_an_export_waits_no_longer_for_its_database_than_a_search_does(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec.model_copy(update={"faults": Faults(storage_minutes=0.01)})
    desk = Desk(spec, tmp_path, monkeypatch)
    desk.is_away = lambda: bool(desk.pool.assigned)
    with desk.retraining as retraining:
        with pytest.raises(OperationalError, match="the server is gone"):
            retraining.choose()
        assert "3 of 3 trainings done" in desk.said.getvalue(), "nothing was trained in vain: it is on the disk"


def test_a_result_whose_acknowledgement_was_lost_counts_once(spec: StudySpec) -> None:
    study = completed_study()
    begin(study, spec)
    for _ in range(2):
        record(study, 0, 1, 0.5, 1.0)
    found = confirmation_of(study, spec)
    assert found is not None
    assert (found.done, found.candidates[0].accuracies) == (1, (0.5,))


def test_several_trials_are_sorted_numbers_each_named_once() -> None:
    assert trial_numbers(None) == ()
    assert trial_numbers(" 12,3, 7") == (3, 7, 12), "the same trials are the same export"
    for text, words in (
        ("3,3", "names trial 3 twice"),
        ("3,", "give the number of a trial, or several"),
        ("-1", "give"),
    ):
        with pytest.raises(UsageError, match=rf"^--trial {text}:? {words}"):
            trial_numbers(text)


def test_several_trials_have_to_fit_the_limit_together(spec: StudySpec) -> None:
    study = completed_study()
    study.add_trials(completed_study().trials)
    both = spec.model_copy(update={"limit": Limit(params=2)})
    assert [trial.number for trial in choose_trials(study, (0, 1), both)] == [0, 1]
    with pytest.raises(
        LimitError, match=r"^2 members of trials 0 and 1 have 2 parameters .* the limit is 1 parameters"
    ):
        choose_trials(study, (0, 1), spec.model_copy(update={"limit": Limit(params=1)}))
    with pytest.raises(NothingToExport, match=r"trial 7 of .* is not there; search report"):
        choose_trials(study, (0, 7), both)


def test_complete_trials_over_a_lowered_limit_are_not_said_to_be_missing(spec: StudySpec) -> None:
    study = completed_study(num_params=2)
    with pytest.raises(NothingToExport, match=r"has no completed trial within its limit yet \(1 begun\)"):
        choose_trials(study, (), spec.model_copy(update={"limit": Limit(params=1)}))


@pytest.mark.parametrize("begun", [False, True], ids=["before it begins", "in its second training"])
def test_a_confirmation_ends_once_only_the_final_training_has_time_and_goes_on_later(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    desk = Desk(spec, tmp_path, monkeypatch)

    def slow(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if len(desk.pool.assigned) == 2:
            desk.retraining.deadline.until = 0.0
        yield from trains(assignment, times)

    desk.pool.script = slow
    hour = Schedule(spec, time.time() + (3600 if begun else 1), 1)
    desk.retraining.deadline.schedule = hour
    with desk.retraining as retraining:
        (trial,), found = retraining.choose()
        assert (trial.number, found, retraining.unconfirmed) == (0, None, "chosen")
        assert retraining.queue is None, "no worker trains what nobody waits for"
        assert [one.config.seed for one in retraining.plan([trial])[0]] == [final_seed(spec, 0, 0)]
        retraining.tidy([trial])
    assert len(missing(desk.study, spec)) == (2 if begun else 3), "what was done counts"
    assert "the time is over: the search's best is exported, unconfirmed" in " ".join(desk.said.getvalue().split())
    with desk.retraining as retraining:
        retraining.deadline.schedule, retraining.unconfirmed = None, None
        desk.pool = ScriptedPool(trains)
        assert retraining.choose()[1] is not None
    assert missing(desk.study, spec) == []


def test_the_winner_of_a_race_is_exported_unmeasured_if_the_time_ends_after_the_race(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = spec.model_copy(update={"confirm": Confirm()})
    desk = Desk(race, tmp_path, monkeypatch)
    ends = iter([math.inf, math.inf, 0.0])
    monkeypatch.setattr(Deadline, "begin_round", lambda self, _: setattr(self, "until", next(ends)))
    with desk.retraining as retraining:
        (trial,), found = retraining.choose()
        assert (trial.number, found, retraining.unconfirmed) == (0, None, "measured")
    assert [number for _, number in missing(desk.study, race)] == [3, 4]


@pytest.mark.parametrize(
    ("unconfirmed", "words"),
    [
        (None, "It was not confirmed with fresh seeds, so that value is likely too good"),
        ("chosen", "The hours were over before it was confirmed with fresh seeds, so that value is likely too good"),
        ("measured", "Fresh seeds chose it, but the hours were over before further ones measured it, so that value"),
    ],
)
def test_card_and_terminal_say_that_the_time_was_over(unconfirmed: str | None, words: str) -> None:
    told = recorded() | {"confirmation": None} | ({} if unconfirmed is None else {"unconfirmed": unconfirmed})
    record = ExportRecord.model_validate(told)
    assert words in _choice(record)
    text = text_of_export(Export(record, Path("export")))
    assert ("of one training; " in text) == (unconfirmed is not None)
    assert ("unconfirmed" in record.to_json()) == (unconfirmed is not None), "records of before stay as they are"
