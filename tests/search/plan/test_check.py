"""``search check``: what a study means, and whatever is wrong with it in one go."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inside import run_inside
from PIL import Image
from rich.console import Console
from scripted import Bench, ScriptedPool, trains

from search.devices import WorkerDevice
from search.errors import UsageError
from search.paths import Runs
from search.plan.check import candidates_for, check_study
from search.plan.meaning import Candidates, Meaning, RangeAxis, text_of_check
from search.plan.prepare import checkpoint_bytes, prepare, room_needed
from search.plan.preview import CELL_PIXELS, GAP_PIXELS, draw_images
from search.plan.space import distributions, find_bounds
from search.plan.speed import MOST_TIMED, largest_candidate, largest_candidates, measure_speed
from search.plan.width import Fitter
from search.study.budget import Budget
from search.study.sampling import build_ladder
from search.study.storage import parse_url
from studies import Limit, StudySpec
from trainer.config import AUGMENTATIONS, ModelSize, Shape, TrainConfig
from trainer.data import prepare_data
from trainer.errors import ConfigError, DataError, DiskError, LimitError
from trainer.models import count
from trainer.sums import write_sums
from trainer.values import to_json, validate

SHAPE = Shape(10, 16)
TWO_WORKERS = [WorkerDevice("cpu:0", None, 1), WorkerDevice("cpu:1", None, 1)]


def study(**values: Any) -> StudySpec:
    """A small net on the digits, unless told otherwise."""
    defaults: dict[str, Any] = {
        "name": "small",
        "data": {"source": "digits", "image_size": 16, "test_fraction": 0.2},
        "limit": {"params": 60_000},
        "train": {"model": "resnet10t", "epochs": 3, "rotate": 10},
        "space": {
            "lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "width_mult": {"low": 0.02},
            "batch_size": [16, 64],
            "optimizer": ["sgd", "adamw"],
        },
        "known": [{"lr": 1e-3, "width_mult": 0.05}, {"optimizer": "adamw"}],
        "search": {"trials": 7, "pruner": "successive_halving"},
    }
    return validate(StudySpec, defaults | values, "study small")


def shown(meaning: Meaning, width: int = 80) -> str:
    """What a terminal of so many columns shows."""
    console = Console(file=io.StringIO(), width=width)
    console.print(text_of_check(meaning), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def make_pictures(root: Path, counts: dict[str, int]) -> Path:
    """Folders with so many different pictures of 8 px each: {"train/cat": 3}."""
    random = np.random.default_rng(0)
    for folder, number in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(number):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def meaning(runs: Runs) -> Meaning:
    return check_study(study(), runs, TWO_WORKERS)


def test_the_space_has_its_exact_upper_end_with_its_size_and_the_proof(meaning: Meaning) -> None:
    width = Fitter(SHAPE, Limit(params=60_000)).widest(TrainConfig(model="resnet10t"), 0.02)
    assert width.next is not None
    assert to_json(meaning.space) == {
        "lr": {"low": 1e-4, "high": 1e-2, "log": True, "step": None},
        "width_mult": {"low": 0.02, "high": width.widest.width_mult, "log": False, "step": None},
        "batch_size": {"choices": [16, 64]},
        "optimizer": {"choices": ["sgd", "adamw"]},
    }
    assert meaning.largest == meaning.widest == width.widest
    assert meaning.next == width.next
    assert width.next.params > 60_000
    assert meaning.limit == Limit(params=60_000)


def test_pictures_are_counted_per_class_and_split(meaning: Meaning) -> None:
    images = meaning.pictures
    assert list(images.classes) == [str(digit) for digit in range(10)]
    for split, number in images.splits.items():
        assert sum(counts[split] for counts in images.classes.values()) == number > 0
    assert sum(images.splits.values()) == 1797


def test_steps_per_epoch_are_those_of_the_training_loop(meaning: Meaning) -> None:
    num_train = meaning.pictures.splits["train"]
    assert meaning.steps_per_epoch == {16: num_train // 16, 64: num_train // 64}


def test_only_what_is_fixed_and_not_the_default_is_named(meaning: Meaning) -> None:
    assert meaning.fixed == {"rotate": 10.0}
    assert list(meaning.known) == [{"lr": 1e-3, "width_mult": 0.05}, {"optimizer": "adamw"}]


def test_time_and_disk_are_scaled_from_what_was_measured(meaning: Meaning, runs: Runs) -> None:
    estimate = meaning.estimate
    num_train = meaning.pictures.splits["train"]
    assert estimate.seconds_per_epoch > (num_train // 16 * 16) / estimate.images_per_second
    assert estimate.seconds_per_trial == 3 * estimate.seconds_per_epoch
    assert estimate.candidates == Candidates(trained_to_the_end=7, stopped_at_first_rung=7, first_rung=1)
    assert estimate.seconds_at_most == math.ceil(7 / 2) * estimate.seconds_per_trial
    (pictures_file,) = runs.cache.glob("*/pictures.npy")
    assert estimate.cache_bytes > pictures_file.stat().st_size > 1797 * 16 * 16 * 3
    assert estimate.checkpoint_bytes == checkpoint_bytes(meaning.largest.params, 2)


@pytest.mark.parametrize(
    ("search", "candidates", "line"),
    [
        (
            {"trainings": 8, "min_epochs": 3},
            (8, 24, 3),
            "8 full trainings: 8 candidates trained to the end, up to 24 if",
        ),
        ({"trainings": 8, "pruner": "none"}, (8, 8, 9), "8 full trainings: 8 candidates trained to the end"),
        (
            {"trainings": 1.5, "trials": 12},
            (2, 12, 1),
            "1.5 full trainings or 12 trials: 2 candidates trained to the end",
        ),
        ({"trials": 12, "hours": 2}, (12, 12, 1), "12 candidates trained to the end; none begins after 2 hours of a"),
        ({"trainings": 0.1}, (1, 1, 1), "0.1 full trainings: 1 candidate trained to the end"),
    ],
)
def test_what_a_budget_buys_is_said_in_candidates(
    meaning: Meaning, search: dict[str, Any], candidates: tuple[int, int, int], line: str
) -> None:
    spec = study(search={"pruner": "successive_halving"} | search, train={"epochs": 9})
    found = candidates_for(spec)
    assert (found.trained_to_the_end, found.stopped_at_first_rung, found.first_rung) == candidates
    told = replace(meaning, budget=Budget.of(spec), estimate=replace(meaning.estimate, candidates=found))
    assert line in " ".join(shown(told, 200).split())


@pytest.mark.parametrize(
    ("train", "search", "candidates", "words"),
    [
        (
            {"epochs": 18, "schedule": "cosine"},
            {"trainings": 6},
            (5, 54, 2, 18),
            "5 candidates trained to the end, about 18 if the usual share goes on from each rung, up to 54",
        ),
        (
            {"epochs": 18, "schedule": "constant"},
            {"trainings": 6, "trials": 20},
            (6, 20, 2, 20),
            "6 full trainings or 20 trials: 6 candidates trained to the end, about 20 if the usual share goes on",
        ),
    ],
)
def test_rungs_are_said_and_what_a_budget_buys_with_them(
    meaning: Meaning, train: dict[str, Any], search: dict[str, Any], candidates: tuple[int, ...], words: str
) -> None:
    spec = study(search=search | {"pruner": "promote"}, train=train)
    found = candidates_for(spec)
    assert candidates == (
        *(found.trained_to_the_end, found.stopped_at_first_rung, found.first_rung, found.paused_at_rungs),
    )
    estimate = replace(meaning.estimate, candidates=found)
    told = replace(meaning, budget=Budget.of(spec), rungs=build_ladder(spec).describe("epoch", 3), estimate=estimate)
    text = " ".join(shown(told, 300).split())
    assert words in text
    assert f"rungs {told.rungs}" in text
    assert "unless it is paused" in text


def test_the_time_of_a_candidate_is_that_of_all_its_trainings(meaning: Meaning, runs: Runs) -> None:
    assert meaning.rungs == ""
    assert meaning.estimate.seconds_per_trial == pytest.approx(3 * meaning.estimate.seconds_per_epoch)
    spec = study(search={"pruner": "promote"}, train={"model": "resnet10t", "epochs": 3, "schedule": "cosine"})
    found = check_study(spec, runs, TWO_WORKERS[:1])
    assert found.rungs == "compared after 1 and 3 epochs, each in a separate training; the best third goes on"
    assert found.estimate.seconds_per_trial == pytest.approx(4 * found.estimate.seconds_per_epoch)


def test_the_answer_is_json(meaning: Meaning) -> None:
    found = json.loads(json.dumps(to_json(meaning)))
    assert found == to_json(meaning)
    assert list(found) == [
        *("version", "study", "model", "epochs", "budget", "rungs", "limit", "pictures", "space", "largest", "widest"),
        *(
            "next",
            "left_out",
            "exported",
            "views",
            "convolutions",
            "rerank",
            "fixed",
            "known",
            "transferred",
            "steps_per_epoch",
            "estimate",
        ),
    ]
    assert found["limit"] == {"params": 60_000, "macs": None}
    assert found["largest"].keys() == {"width_mult", "params", "macs"}
    assert found["steps_per_epoch"].keys() == {"16", "64"}


def test_people_are_shown_all_of_it_in_80_columns(meaning: Meaning) -> None:
    text, width, following = shown(meaning), meaning.space["width_mult"], meaning.next
    assert isinstance(width, RangeAxis)
    assert following is not None
    assert "small: 7 trials of resnet10t, 3 epochs each" in text
    assert f"{meaning.largest.params:,} parameters" in text
    assert f"{following.params - 60_000:,} parameters over" in text
    assert f"0.02 to {width.high:g}" in text
    for line in ("0.0001 to 0.01, logarithmic", "16, 64", "sgd, adamw", "rotate", "lr 0.001, width_mult 0.05"):
        assert line in text
    assert "with 2 workers; pruning makes it shorter" in text
    for name, counts in meaning.pictures.classes.items():
        assert any(line.split() == [name, *map(str, counts.values())] for line in text.splitlines())


def test_without_a_pruner_nothing_is_said_about_pruning(runs: Runs) -> None:
    text = shown(check_study(study(search={"trials": 7, "pruner": "none"}), runs, TWO_WORKERS))
    assert "with 2 workers" in text
    assert "prun" not in text


def test_each_of_a_few_models_is_timed_and_the_plan_is_that_of_the_slowest(runs: Runs) -> None:
    models = ["wrn-10-1", "wrn-16-2"]
    space = {"model": models, "lr": {"low": 1e-3, "high": 1e-2}}
    found = check_study(study(limit={}, train={"epochs": 3}, space=space, known=[]), runs, TWO_WORKERS)
    estimate, text = found.estimate, shown(found, 200)
    assert list(estimate.timed) == models
    assert (estimate.model, estimate.images_per_second) == ("wrn-16-2", estimate.timed["wrn-16-2"])
    assert estimate.timed["wrn-10-1"] > 2 * estimate.timed["wrn-16-2"]
    num_train = found.pictures.splits["train"]
    assert estimate.seconds_per_epoch > 0.9 * num_train / estimate.timed["wrn-16-2"]
    assert found.largest.params == count(TrainConfig(model="wrn-16-2"), SHAPE).params
    assert "\n  wrn-16-2, the slowest of 2 models; others may be larger:\n" in text
    assert "pictures/s with wrn-16-2, the slowest of 2 models" in text
    speeds = ", ".join(f"{model} {speed:,.0f}" for model, speed in estimate.timed.items())
    assert f"{speeds} pictures/s; the times below are for wrn-16-2" in text
    assert "at most about" in text


@pytest.mark.slow
def test_of_many_models_only_the_one_with_the_most_multiply_adds_is_timed(runs: Runs) -> None:
    models = ["wrn-10-1", "resnet10t", "wrn-16-2", "wrn-10-2", "rexnet_100"]
    assert len(models) > MOST_TIMED
    spec = study(limit={}, train={"epochs": 3}, space={"model": models, "lr": {"low": 1e-3, "high": 1e-2}}, known=[])
    found = check_study(spec, runs, TWO_WORKERS)
    text = shown(found, 200)
    most = max(models, key=lambda model: count(TrainConfig(model=model), SHAPE).macs)
    assert most == "wrn-16-2"
    assert list(found.estimate.timed) == [found.estimate.model] == [most]
    assert f"pictures/s with {most}, which has the most multiply-adds of 5 models" in text
    assert f"if each model takes as long as {most}" in text
    assert "the times below" not in text
    assert "at most about" not in text.partition("search  ")[2].partition("\n")[0]


def test_the_models_of_a_survey_are_compared_by_their_counts_without_building_them_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"source": "digits", "image_size": 32}
    space = {"model": ["timm:test_eff*", "timm:test_conv*"], "lr": {"low": 1e-3, "high": 1e-2}}
    spec = study(limit={"params": 500_000}, data=data, train={"epochs": 1}, space=space, known=[])
    axes = find_bounds(spec, 10, runs).space
    shape = Shape(10, 32)
    models = axes["model"].choices  # type: ignore[attr-defined]
    assert len(models) > MOST_TIMED
    most = max(models, key=lambda model: count(TrainConfig(model=model), shape).macs)
    built: list[str] = []
    monkeypatch.setattr(
        "trainer.models.count", lambda config, shape: built.append(config.model) or count(config, shape)
    )
    (timed,) = largest_candidates(spec, axes, Fitter(shape, spec.limit, runs.widths))
    assert timed.model == most
    assert set(built) <= {most}


def test_a_set_without_a_test_split_is_warned_of(meaning: Meaning) -> None:
    warning = "no test split: an export would be measured on the validation pictures"
    assert warning not in shown(meaning)
    without = replace(meaning.pictures, splits={**meaning.pictures.splits, "test": 0})
    assert warning in shown(replace(meaning, pictures=without))


def test_the_time_is_that_of_the_widest_candidate_with_most_augmentation_in_the_smallest_batches(runs: Runs) -> None:
    spec = study(
        space={
            "width_mult": {"low": 0.02},
            "batch_size": {"low": 8, "high": 64, "step": 8},
            "rotate": {"low": 0, "high": 20},
            "crop_padding": [0, 2],
            "optimizer": ["sgd", "adamw"],
        },
        known=[],
    )
    space = prepare(spec, runs, Console(stderr=True)).space
    candidate = largest_candidate(spec, space, Fitter(SHAPE, spec.limit), "resnet10t")
    assert (candidate.batch_size, candidate.rotate, candidate.crop_padding, candidate.optimizer) == (8, 20, 2, "sgd")
    assert candidate.width_mult == space["width_mult"].high  # type: ignore[attr-defined]


@pytest.mark.parametrize("growth", [{"train": {"growth": 2.5}}, {"space": {"growth": {"low": 1.5, "high": 2.5}}}])
def test_the_largest_candidate_lacks_what_its_family_does_not_have(runs: Runs, growth: dict[str, Any]) -> None:
    space = {"model": ["rexnet_100", "resnet10t"]} | growth.get("space", {})
    spec = study(limit={"params": 9_000_000}, space=space, known=[], train=growth.get("train", {}))
    candidate = largest_candidate(spec, find_bounds(spec, 10, runs).space, Fitter(SHAPE, spec.limit), "rexnet_100")
    assert (candidate.model, candidate.growth, candidate.width_mult) == ("rexnet_100", 2.0, 1.0)
    assert count(candidate, SHAPE).params < 9_000_000


@pytest.mark.parametrize(
    ("train", "space", "said"),
    [
        ({"augment_share": 0.5}, {}, "augment_share = 0.5 has no effect"),
        ({"augment_from_epoch": 2}, {}, "augment_from_epoch = 2 has no effect"),
        ({}, {"augment_share": {"low": 0.25, "high": 1.0}}, "space.augment_share has no effect"),
    ],
)
def test_a_choice_of_augmented_epochs_without_any_augmentation_is_noted(
    train: dict[str, Any], space: dict[str, Any], said: str, runs: Runs
) -> None:
    def noted(**more: Any) -> list[str]:
        values = {"model": "resnet10t", "width_mult": 0.05, "epochs": 3} | train | more.pop("train", {})
        axes = {"lr": [0.1, 0.2]} | space | more.pop("space", {})
        spec = study(train=values, space=axes, known=[])
        return [note for note in prepare(spec, runs, Console(stderr=True)).notes if "has no effect" in note]

    assert noted() == [f"{said}, because the study has no augmentation; add one, such as hflip"]
    for on in ({"hflip": 0.5}, {"rotate": [5, 10]}, {"augment": ["HorizontalFlip"]}, {"mixup": 0.2}):
        assert noted(train=on) == []
    assert noted(space={"hflip": [0.0, 0.5]}) == []
    assert noted(space={"hflip": [0.0]}) != []


def test_augmentation_that_begins_after_the_last_epoch_is_noted(runs: Runs) -> None:
    def noted(first: int) -> list[str]:
        train = {"model": "resnet10t", "width_mult": 0.05, "epochs": 3, "hflip": 0.5, "augment_from_epoch": first}
        return list(prepare(study(train=train, space={"lr": [0.1]}, known=[]), runs, Console(stderr=True)).notes)

    said = "no epoch is augmented: augment_from_epoch = 4 is after the last epoch, 3; lower it"
    assert said in noted(4)
    assert not any("no epoch is augmented" in note for note in noted(3))


def test_the_augmentations_are_all_settings_between_the_flips_and_the_plain_epochs() -> None:
    fields = list(TrainConfig.model_fields)
    between = fields[fields.index("hflip") : fields.index("augment_from_epoch")]
    assert sorted(AUGMENTATIONS) == sorted({*between} - {"rotations", "mix_alpha"}), "those two alone do nothing"
    for name in AUGMENTATIONS:
        assert not TrainConfig.model_fields[name].default


def test_a_teacher_of_pictures_with_another_background_is_noted(runs: Runs, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", {"a": 6, "b": 6})
    for name, described in {"plain": {}, "cut": {"background": "grabcut"}}.items():
        (tmp_path / name).mkdir()
        for file, content in {
            "config.json": json.dumps(described),
            "metrics.json": "{}",
            "model.safetensors": "",
        }.items():
            (tmp_path / name / file).write_text(content)
        write_sums(tmp_path / name)

    def noted(table: str, teacher: str, background: str) -> list[str]:
        distill = {"distill": {"teacher": str(tmp_path / teacher)}}
        train = {"model": "resnet10t", "width_mult": 0.05, "epochs": 1}
        more = {"train": train | distill} if table == "train" else {"train": train, "final": distill}
        data = {"path": str(folder), "image_size": 16, "background": background}
        spec = study(data=data, space={"lr": [0.1, 0.2]}, known=[], **more)
        return list(prepare(spec, runs, Console(stderr=True)).notes)

    for table in ("train", "final"):
        assert noted(table, "plain", "keep") == noted(table, "cut", "grabcut") == []
        assert noted(table, "cut", "keep") == [
            f"{table}.distill.teacher {tmp_path / 'cut'} was trained on pictures without their background and would "
            'see pictures with it; use another teacher, or data.background = "grabcut"'
        ]
        assert noted(table, "plain", "grabcut") == [
            f"{table}.distill.teacher {tmp_path / 'plain'} was trained on pictures with their background and would "
            'see pictures without it; use another teacher, or data.background = "keep"'
        ]
    (said,) = noted("final", "none", "keep")
    assert said.startswith(f"final.distill.teacher = '{tmp_path / 'none'}' is neither an export nor a timm model; ")
    (tmp_path / "cut" / "metrics.json").write_text("{ }")
    assert noted("final", "cut", "grabcut")[0].startswith("final.distill.teacher ")
    assert "is not the file that was proven" in noted("final", "cut", "grabcut")[0]


def test_the_time_is_that_of_augmented_pictures_also_where_the_first_epochs_are_plain(runs: Runs) -> None:
    for plain in ({"augment_from_epoch": 11}, {"augment_share": 0.5}):
        spec = study(train={"model": "resnet10t", "width_mult": 0.05, "augment": ["ToFloat"]} | plain)
        with pytest.raises(ConfigError, match=r"a picture of \(16, 16, 3\) uint8 became \(16, 16, 3\) float32"):
            measure_speed(spec.train, prepare_data(spec.data, runs.cache), TWO_WORKERS[0])


def test_a_check_says_what_transforms_do_to_the_size_and_what_their_library_warns_of(runs: Runs) -> None:
    crop = {"name": "RandomCrop", "height": 8, "width": 8, "p": 1}
    train = {"model": "resnet10t", "augment": [crop, "ShiftScaleRotate"]}
    said = shown(check_study(study(train=train), runs, TWO_WORKERS[:1]))
    assert "augment: RandomCrop changes the size of pictures; each is then resized to 16 px" in said
    assert "augment: ShiftScaleRotate is a special case of Affine transform." in said


def test_of_several_families_the_time_says_which_one_it_is_of(runs: Runs) -> None:
    models = ["resnet10t", "rexnet_100", "mobilenetv3_small_050"]
    space = {"model": models, "width_mult": {"low": 0.05, "high": 0.2}}
    known = [{"model": "mobilenetv3_small_050"}, {"model": "rexnet_100"}]
    meaning = check_study(study(limit={"params": 200_000}, space=space, known=known), runs, TWO_WORKERS[:1])
    assert "small: 7 trials of 2 models, 3 epochs each" in shown(meaning)
    assert meaning.estimate.timed.keys() == {"resnet10t", "rexnet_100"}
    assert f"pictures/s with {meaning.estimate.model}, the slowest of 2" in shown(meaning, 200)
    assert list(meaning.left_out) == ["mobilenetv3_small_050", "known.0"]
    assert list(meaning.known) == known[1:]
    assert "2 left out:\n  mobilenetv3_small_050: mobilenetv3_small_050 " in shown(meaning)
    assert "\n  known.0: its model, mobilenetv3_small_050, does not fit\n" in shown(meaning)


def test_many_pictures_left_out_of_each_epoch_are_told(runs: Runs, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"a": 12, "b": 12})
    spec = study(
        data={"path": str(folder), "image_size": 16},
        train={"model": "resnet10t", "epochs": 1, "batch_size": 16},
        space={"lr": [0.1, 0.2]},
        known=[],
        limit={},
    )
    meaning = check_study(spec, runs, TWO_WORKERS[:1])
    num_train = meaning.pictures.splits["train"]
    told = f"1 in batches of 16; {num_train - 16} of {num_train} pictures left out, different ones each epoch"
    assert told in shown(meaning, 200)
    assert "left out, different ones" not in shown(replace(meaning, steps_per_epoch={4: num_train // 4}), 200)


def test_a_batch_larger_than_the_training_split_is_measured_as_it_trains(runs: Runs, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"a": 4, "b": 4})
    spec = study(data={"path": str(folder), "image_size": 16}, space={"lr": [0.1, 0.2]}, known=[], limit={})
    data = prepare_data(spec.data, runs.cache)
    speed = measure_speed(spec.train, data, TWO_WORKERS[0])
    assert speed.images_per_second > 0
    meaning = check_study(spec, runs, TWO_WORKERS[:1])
    assert meaning.steps_per_epoch == {128: 1}
    assert (meaning.widest, meaning.next, meaning.largest.width_mult) == (None, None, 1.0)
    assert "\nno limit\n" in shown(meaning)
    assert "with 1 worker;" in shown(meaning)


def test_recipes_of_earlier_studies_are_shown_without_values_outside_the_space(runs: Runs, tmp_path: Path) -> None:
    space = {"lr": {"low": 1e-3, "high": 1e-2, "log": True}, "optimizer": ["sgd", "adamw"]}
    before = study(name="before", space=space, known=[], search={"trials": 1, "pruner": "none"})
    Bench(tmp_path).coordinator(ScriptedPool(trains), before).run()
    search = {"trials": 7, "pruner": "successive_halving", "transfer": 2}
    url = parse_url(f"sqlite:///{Runs(tmp_path).database}")
    meaning = check_study(study(search=search), runs, TWO_WORKERS[:1], url=url)
    (one,) = meaning.transferred
    assert one.source == "before/0"
    assert set(one.recipe) == {"lr", "optimizer"}, "width 1 is over the limit, and no batch is of the default size"
    assert f"recipes of earlier studies, tried next\n  before, trial 0: lr {one.recipe['lr']:g}" in shown(meaning, 200)
    answer = to_json(meaning)
    assert isinstance(answer, dict)
    assert answer["transferred"] == [{"study": "before", "trial": 0, "recipe": dict(one.recipe)}]


def test_a_space_that_ends_below_the_limit_says_so(runs: Runs) -> None:
    spec = study(space={"width_mult": {"low": 0.02, "high": 0.05}}, known=[])
    meaning = check_study(spec, runs, TWO_WORKERS[:1])
    assert meaning.largest.width_mult == 0.05
    assert meaning.largest.params == count(TrainConfig(model="resnet10t", width_mult=0.05), SHAPE).params
    assert meaning.widest is not None
    assert f"the space ends below the widest that fits, {meaning.widest.width_mult:g}" in shown(meaning)
    asked_for = room_needed(spec, find_bounds(spec, 10, runs), 1)
    assert meaning.estimate.checkpoint_bytes == asked_for, "what a launch would refuse is refused here"


def test_an_ensemble_that_would_not_fit_is_told_before_the_search(runs: Runs) -> None:
    one = check_study(study(), runs, TWO_WORKERS)
    assert one.exported == ModelSize(params=one.largest.params, macs=one.largest.macs)
    two = check_study(study(final={"ensemble": 2, "tta": ["flip"]}), runs, TWO_WORKERS)
    expected = ModelSize(params=2 * one.largest.params, macs=4 * one.largest.macs)
    assert two.exported == expected
    assert f"with [final], the export has {expected.params:,} parameters" in shown(two)
    assert "the export has" not in shown(one)
    assert "averaged" not in shown(one)
    assert "flip, averaged with the picture; 2 times the multiply-adds" in shown(two, 200)
    assert two.views == ("flip",)
    each = check_study(study(final={"ensemble": 3, "limit_each": True}), runs, TWO_WORKERS)
    assert each.exported == one.exported


def test_the_layers_that_rerank_may_name_are_told_and_another_name_is_refused(runs: Runs) -> None:
    layer = "layer1.0.conv1"
    meaning = check_study(study(final={"rerank": {"layer": layer, "share": 0.5}}), runs, TWO_WORKERS)
    filters = meaning.convolutions[layer]
    told = shown(meaning, 1000)
    assert f"{round(filters / 2)} of the {filters} filters of {layer} are drawn again" in told
    assert f"layer1.0.conv2 ({meaning.convolutions['layer1.0.conv2']})" in told
    assert "to export it" in told
    with pytest.raises(ConfigError, match=r"^final.rerank.layer = 'layer1.0.conv': .*did you mean layer1.0.conv"):
        check_study(study(final={"rerank": {"layer": "layer1.0.conv"}}), runs, TWO_WORKERS)


def test_a_stepped_width_ends_on_a_step_without_a_warning(runs: Runs) -> None:
    dropout = {"low": 0, "high": 0.5, "step": 0.2}
    spec = study(space={"width_mult": {"low": 0.02, "step": 0.02}, "dropout": dropout}, known=[])
    width = Fitter(SHAPE, spec.limit).widest(spec.train, 0.02)
    space = distributions(spec, width)
    last = space["width_mult"].high  # type: ignore[attr-defined]
    assert width.widest.width_mult - 0.02 < last <= width.widest.width_mult
    assert space["dropout"].high == 0.4  # type: ignore[attr-defined]


def test_many_classes_are_summed_up_and_bad_files_and_duplicates_listed(runs: Runs, tmp_path: Path) -> None:
    counts = {f"train/c{i:02}": 3 + i for i in range(15)} | {f"val/c{i:02}": 2 for i in range(15)}
    folder = make_pictures(tmp_path, counts)
    (folder / "train/c00/broken.png").write_bytes(b"no picture")
    shutil.copy(folder / "train/c01/00.png", folder / "train/c02/twin.png")
    shutil.copy(folder / "train/c03/00.png", folder / "val/c03/twin.png")
    spec = study(
        data={"path": str(folder), "image_size": 16, "bad_files": "skip"}, space={"lr": [0.1, 0.2]}, known=[], limit={}
    )
    meaning = check_study(spec, runs, TWO_WORKERS[:1])
    assert [file.name for file in meaning.pictures.bad_files] == ["train/c00/broken.png"]
    kinds = {(pair.kind, pair.first, pair.second) for pair in meaning.pictures.duplicates}
    assert kinds == {
        ("across classes", "train/c01/00.png", "train/c02/twin.png"),
        ("across splits", "train/c03/00.png", "val/c03/twin.png"),
    }
    text = shown(meaning, width=120)
    rows = [line.split() for line in text.splitlines()]
    for row in (["smallest", "3", "2", "0"], ["median", "10", "2", "0"], ["largest", "17", "3", "0"]):
        assert row in rows
    assert ["all", "15", "151", "31", "0"] in rows
    assert "train/c00/broken.png: is not a picture in a format that Pillow knows" in text
    assert "across splits: train/c03/00.png = val/c03/twin.png" in text


# -- problems


def test_problems_of_pictures_limit_and_recipes_come_at_once(runs: Runs, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"a": 4, "b": 4, "c": 1})
    (folder / "a/broken.png").write_bytes(b"no picture")
    data = {"path": str(folder), "image_size": 16}
    with pytest.raises(DataError) as caught:
        check_study(study(data=data, limit={"params": 100}), runs, TWO_WORKERS)
    for sentence in (
        "a/broken.png: is not a picture in a format that Pillow knows",
        "c: one training picture, so none is left for validation",
        "no width of resnet10t fits: at 0.02, the narrowest",
        "with 3 classes at 16 px; the limit is 100 parameters",
    ):
        assert sentence in str(caught.value)
    with pytest.raises(DataError) as caught:
        check_study(study(data=data, known=[{"width_mult": 0.9}, {"lr": 1e-3}, {"width_mult": 1.5}]), runs, TWO_WORKERS)
    assert "a/broken.png: " in str(caught.value)
    assert "known.0.width_mult = 0.9 is over the limit; the widest that fits is 0." in str(caught.value)
    assert "known.2.width_mult = 1.5 is over the limit; the widest that fits is 0." in str(caught.value)


def test_without_pictures_the_sentence_shows_the_layout_and_the_model_is_checked_all_the_same(runs: Runs) -> None:
    with pytest.raises(DataError, match=r"give it with --data DIR, where DIR holds CLASS/\* or train/CLASS/\*"):
        check_study(study(data={}), runs, TWO_WORKERS)
    with pytest.raises(DataError, match=r"(?s)none was given.*'rexnet_10' is not a timm model; did you mean rexnet_1"):
        check_study(study(data={}, train={"model": "rexnet_10"}), runs, TWO_WORKERS)
    with pytest.raises(DataError, match=r"(?s)nowhere does not exist.*'rexnet_10' is not a timm model"):
        check_study(study(data={"path": "/nowhere"}, train={"model": "rexnet_10"}), runs, TWO_WORKERS)


def test_without_pictures_the_limit_and_recipes_are_not_judged_by_an_invented_number_of_classes(runs: Runs) -> None:
    with pytest.raises(DataError, match=r"^the data folder /nowhere does not exist; check --data DIR$"):
        check_study(study(data={"path": "/nowhere"}, limit={"params": 9}), runs, TWO_WORKERS)
    with pytest.raises(DataError, match=r"^the data folder /nowhere does not exist; check --data DIR$"):
        check_study(study(data={"path": "/nowhere"}, known=[{"width_mult": 2.0}]), runs, TWO_WORKERS)


def test_an_impossible_limit_and_recipes_beyond_it_have_their_own_errors(runs: Runs) -> None:
    with pytest.raises(LimitError, match="no width of resnet10t fits"):
        check_study(study(limit={"params": 100}), runs, TWO_WORKERS)
    with pytest.raises(LimitError, match=r"resnet10t at width_mult 1 has .* the limit is 100 parameters"):
        check_study(study(limit={"params": 100}, space={"lr": [0.1, 0.2]}, known=[]), runs, TWO_WORKERS)
    with pytest.raises(ConfigError, match=r"known\.0.* over the limit; .*\nknown\.1.* over the limit"):
        check_study(study(known=[{"width_mult": 2.0}, {"width_mult": 1.0}]), runs, TWO_WORKERS)


def test_what_only_training_would_find_is_found(runs: Runs) -> None:
    with pytest.raises(ConfigError, match='precision = "bf16" needs a GPU'):
        check_study(study(train={"model": "resnet10t", "precision": "bf16"}), runs, TWO_WORKERS)
    with pytest.raises(ConfigError, match="no transform 'Bluur'; did you mean Blur"):
        check_study(study(train={"model": "resnet10t", "augment": [{"name": "Bluur"}]}), runs, TWO_WORKERS)


def test_a_disk_without_room_for_checkpoints_is_found(runs: Runs) -> None:
    devices = [WorkerDevice("cpu", None, 1)] * 10**7
    with pytest.raises(
        DiskError, match=r"checkpoints need [\d.]+ [MG]B in .*, [\d.]+ [MG]B are free; free some or use --runs"
    ):
        check_study(study(), runs, devices)


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        ("no/such/grid.png", "grid.png: there is no folder .*no/such; create it first"),
        ("grid", "grid: the picture is a PNG; give it a name that ends in .png"),
        ("folder.png", "folder.png cannot be written; choose another file"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_told_before_anything_is_read(
    figure: str, sentence: str, runs: Runs, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=f"^--pictures .*{sentence}"):
        check_study(study(data={}), runs, TWO_WORKERS, figure=tmp_path / figure)


def test_pictures_are_drawn_before_the_rest_is_checked(runs: Runs, tmp_path: Path) -> None:
    said: list[str] = []
    devices = [WorkerDevice("cpu", None, 1)] * 10**7
    with pytest.raises(DiskError):
        check_study(study(), runs, devices, figure=tmp_path / "grid.PNG", say=said.append)
    (sentence,) = said
    assert sentence.startswith(f"wrote {tmp_path}/grid.PNG: plain pictures on the left, then ")
    with Image.open(tmp_path / "grid.PNG") as grid:
        assert (grid.format, grid.width > grid.height) == ("PNG", True)


def test_a_sampled_augmentation_is_drawn_from_its_first_value_to_its_last(runs: Runs, tmp_path: Path) -> None:
    space = {"hflip": {"low": 0, "high": 1}, "vflip": [0.0, 1.0]}
    spec = study(train={"model": "resnet10t"}, space=space, known=[])
    said = draw_images(spec, prepare_data(spec.data, runs.cache), tmp_path / "grid.png")
    assert said.endswith("; from left to right, hflip, vflip from the first value of the space to the last")
    with Image.open(tmp_path / "grid.png") as grid:
        lefts = (0, CELL_PIXELS + GAP_PIXELS, grid.width - CELL_PIXELS)
        cells = [np.asarray(grid)[:CELL_PIXELS, left : left + CELL_PIXELS] for left in lefts]
    plain, first, last = (cell.astype(int) for cell in cells)
    assert np.abs(first - plain).max() <= 1
    assert np.abs(last - plain[::-1, ::-1]).max() <= 1
    assert np.abs(last - plain).max() > 50, "else it would not matter"


def test_the_command_answers_and_exits_as_documented(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", {"a": 6, "b": 6})
    (tmp_path / "mine.toml").write_text(
        'data.image_size = 16\ntrain = { model = "resnet10t", epochs = 1, batch_size = 4 }\nspace.lr = [0.1, 0.2]\n'
    )

    command = ("check", "mine.toml", "--gpus", "cpu:2", "--data", folder)
    code, out, err = run_inside(tmp_path, *command, "--json", "--pictures", "grid.png")
    assert code == 0, err
    assert err.startswith("wrote grid.png: plain pictures on the left")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(out)
    assert (told["version"], told["study"]) == (2, "mine")
    code, out, err = run_inside(tmp_path, *command, "--set", "limit.params=9")
    assert (code, out) == (5, "")
    assert err.startswith("search: resnet10t at width_mult 1 has ")
