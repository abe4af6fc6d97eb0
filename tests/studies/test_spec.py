"""StudySpec: whatever is wrong in a study file has its sentence, at its key, and all of them come at once."""

from __future__ import annotations

import ast
import inspect
import shlex
import textwrap
from pathlib import Path
from random import Random
from typing import Any

import pytest
from choices import UNKNOWN, choices_of, with_word
from pydantic import BaseModel

import studies
from studies import Confirm, Final, Finetune, Limit, Range, Search, StudySpec
from studies.axes import SAMPLED, TABLES, TOGETHER, annotation_of
from trainer.config import DataConfig, Distill, TrainConfig
from trainer.errors import ConfigError
from trainer.values import validate

LR = {"low": 1e-4, "high": 1e-2, "log": True}

RULES = "_settings_fit_together"
"""Name of the method of TrainConfig with the rules that combine settings."""


def study(**values: Any) -> StudySpec:
    return validate(StudySpec, {"name": "mine", "space": {"lr": LR}} | values, "study mine")


def problems(**values: Any) -> list[str]:
    """The lines of the error, without the headline."""
    with pytest.raises(ConfigError) as caught:
        study(**values)
    headline, *lines = str(caught.value).splitlines()
    assert headline == "study mine:"
    return [line.strip() for line in lines]


def keys(lines: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines]


def test_a_study_needs_a_name_and_a_space_and_nothing_else() -> None:
    spec = study()
    assert (spec.train, spec.data, spec.limit, spec.search) == (TrainConfig(), DataConfig(), Limit(), Search())


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"serch": {}}, "serch: unknown key; did you mean search?"),
        ({"data": {"sorce": "digits"}}, "data.sorce: unknown key; did you mean source?"),
        ({"limit": {"parms": 5}}, "limit.parms: unknown key; did you mean params?"),
        ({"train": {"lable_smoothing": 0.1}}, "train.lable_smoothing: unknown key; did you mean label_smoothing?"),
        ({"search": {"trails": 3}}, "search.trails: unknown key; did you mean trials?"),
        ({"space": {"lrr": LR}}, "space.lrr: cannot be sampled; did you mean lr?"),
        ({"space": {"lr": LR | {"stp": 1}}}, "space.lr: stp: unknown key; did you mean step?"),
        ({"known": [{"lrr": 1e-3}]}, "known.0.lrr: is not in the space; did you mean lr?"),
    ],
)
def test_an_unknown_key_names_the_nearest_at_every_level(values: dict[str, Any], line: str) -> None:
    assert problems(**values) == [line]


@pytest.mark.parametrize(
    ("named", "trainings", "trials"),
    [
        ({}, 30.0, None),
        ({"hours": 2}, 30.0, None),
        ({"trials": 12}, None, 12),
        ({"trainings": 4.5}, 4.5, None),
        ({"trainings": 4.5, "trials": 12}, 4.5, 12),
    ],
)
def test_of_two_budgets_one_that_is_not_named_is_none(
    named: dict[str, Any], trainings: float | None, trials: int | None
) -> None:
    search = study(search=named).search
    assert (search.trainings, search.trials) == (trainings, trials)
    dumped = search.model_dump(mode="json")
    assert (dumped["trainings"], dumped["trials"]) == (trainings, trials)
    assert Search.model_validate(dumped) == search
    assert (
        ("trials" in search.model_fields_set)
        == ("trainings" in search.model_fields_set)
        == bool({"trainings", "trials"} & named.keys())
    ), "a study keeps neither or both"


def test_a_search_without_any_budget_is_refused() -> None:
    assert problems(search={"trainings": None}) == ["search: no budget: name trainings, or trials, or both"]


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({}, "space: is empty; name at least one setting to sample, for example lr"),
        ({"lr": {"low": 1, "high": 0.1}}, "space.lr: low = 1 is above high = 0.1; exchange them"),
        (
            {"dropout": {"low": 0, "high": 0.5, "log": True}},
            "space.dropout: low = 0 has no logarithm; use a positive low or leave out log",
        ),
        ({"lr": LR | {"step": 1e-4}}, "space.lr: log and step exclude each other; leave one out"),
        (
            {"dropout": {"low": 0.1, "high": 0.7, "step": 1e-30}},
            "space.dropout: step = 1e-30 is below the precision of numbers in this range; leave it out",
        ),
        (
            {"width_mult": {"low": 2, "step": 1e-15}},
            "space.width_mult: step = 1e-15 is below the precision of numbers in this range; leave it out",
        ),
        ({"lr": {"high": 0.1}}, "space.lr: low: is required"),
        (
            {"lr": {"low": 1e-3}},
            "space.lr: high is missing (only width_mult has a default for it: the widest that fits)",
        ),
        (
            {"width_mult": {"low": 0.5}},
            "space.width_mult: high is missing, and [limit] is empty; give high, or a limit from which it follows",
        ),
        (
            {"width_mult": [0.5, 1.0]},
            "space.width_mult: give a range, { low = 0.5 }; its upper end is the widest that fits",
        ),
        ({"optimizer": ["sgd", "sgd"]}, "space.optimizer: ['sgd', 'sgd']: list at least one choice, each once"),
        ({"optimizer": []}, "space.optimizer: []: list at least one choice, each once"),
        (
            {"optimizer": ["sgd", "lion"]},
            "space.optimizer: 'lion': input should be 'adam', 'adamw', 'nadam', 'sgd' or 'rmsprop'",
        ),
        (
            {"optimizer": {"low": 0, "high": 1}},
            'space.optimizer: is not a number; list its choices, for example optimizer = ["...", "..."]',
        ),
        ({"epochs": [10, 20]}, "space.epochs: cannot be sampled; did you mean step_epochs?"),
        (
            {"fraction": {"low": 0.1, "high": 1.0}},
            "space.fraction: cannot be sampled; [data] is the same for all candidates, so set it there",
        ),
        (
            {"data.fraction": [0.5, 1.0]},
            "space.data.fraction: cannot be sampled; [data] is the same for all candidates, so set it there",
        ),
        ({"model": ["timm:"]}, 'space.model: "timm:" has no pattern; "timm:*" stands for all models of timm'),
        ({"dropout": {"low": 0.5, "high": 1.0}}, "space.dropout: 1.0: input should be less than 1"),
        ({"lr": [0.1, -0.1]}, "space.lr: -0.1: input should be greater than 0"),
        (
            {"width_mult": {"low": 0.5, "high": 1.0, "log": True}, "depth_mult": [0.6, 1.0]},
            "space.width_mult: log has no effect if other sampled settings change the size too; leave it out",
        ),
        (
            {"model": ["rexnet_100"], "width_mult": {"low": 0.5, "high": 1.0, "step": 0.1}},
            "space.width_mult: step has no effect if other sampled settings change the size too; leave it out",
        ),
        ({"warmup_epochs": {"low": 0, "high": 50}}, "space.warmup_epochs: 50 must be less than epochs = 50"),
        (
            {"batch_size": {"low": 8, "high": 64, "step": 0.5}},
            "space.batch_size: step = 0.5: batch_size is a whole number; use a whole step",
        ),
        (
            {"batch_size": [16, 24.5]},
            "space.batch_size: 24.5: input should be a valid integer, got a number with a fractional part",
        ),
        (
            {"lr": 0.1},
            "space.lr: 0.1 is not an axis; write a range, { low = 0.1, high = 0.5 }, or a list of choices",
        ),
        (
            {"batch_size": [float("inf"), 32]},
            "space.batch_size: inf cannot be sampled; write a number, a string, true or false",
        ),
        ({"lr": [[0.1]]}, "space.lr: [0.1] cannot be sampled; write a number, a string, true or false"),
        (
            {"lr": {"low": "a", "high": 1}},
            "space.lr: low = 'a': input should be a valid number, unable to parse string as a number",
        ),
        ({"lr": {"low": 0.1, "high": float("inf")}}, "space.lr: high = inf: input should be a finite number"),
        ("lr", "space = 'lr': input should be a valid dictionary"),
        (
            {"schedule": ["milestones"]},
            'space.schedule: "milestones" needs milestones, for example [0.3, 0.5, 0.7, 0.9]',
        ),
    ],
)
def test_an_axis_that_cannot_be_sampled_says_why(space: Any, line: str) -> None:
    assert problems(space=space) == [line]


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (
            {"mixup": {"low": 0, "high": 0.7}, "cutmix": {"low": 0, "high": 0.7}},
            "space: mixup = 0.7 and cutmix = 0.7 are shares of batches; at most 1 together; narrow mixup or cutmix",
        ),
        (
            {"schedule": ["cosine", "warm_restarts"], "warmup_epochs": [0, 5], "step_epochs": [3, 10]},
            "space: warmup_epochs = 5 must be less than a cycle, step_epochs = 3; narrow warmup_epochs or step_epochs",
        ),
        (
            {"schedule": ["cosine", "warm_restarts"], "warmup_epochs": {"low": 0, "high": 12}},
            "space.warmup_epochs: 12 must be less than a cycle, step_epochs = 10",
        ),
        (
            {"class_weights": ["none", "inverse"], "logit_adjustment": {"low": 0, "high": 1.5}},
            'space: class_weights = "inverse" and logit_adjustment = 1.5 correct the same imbalance more than once; '
            "keep one of them; narrow class_weights or logit_adjustment",
        ),
    ],
)
def test_a_space_with_candidates_that_could_not_be_trained_is_refused(space: dict[str, Any], line: str) -> None:
    assert problems(space=space) == [line]


def test_a_space_of_sam_is_refused_beside_fp16_as_fixed_sam_is() -> None:
    space, line = {"sam.rho": {"low": 0.01, "high": 0.2}}, 'precision = "fp16" does not go with sam: sam would move'
    (sampled,) = problems(train={"precision": "fp16"}, space=space)
    (fixed,) = problems(train={"precision": "fp16", "sam": {}})
    assert (sampled.startswith(f"space.sam.rho: {line}"), fixed.startswith(f"train: {line}")) == (True, True)
    assert study(train={"precision": "bf16"}, space=space).space


def test_each_rule_of_a_recipe_is_checked_for_whole_spaces() -> None:
    source = textwrap.dedent(inspect.getsource(TrainConfig.__pydantic_decorators__.model_validators[RULES].func))
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    rules, read = 0, set[str]()
    for statement in function.body:
        # a rule is a statement that raises, with the assignments before it
        of_self = [one for one in ast.walk(statement) if isinstance(one, ast.Attribute)]
        read |= {one.attr for one in of_self if isinstance(one.value, ast.Name) and one.value.id == "self"}
        if any(isinstance(one, ast.Raise) for one in ast.walk(statement)):
            sampled = {key for key in SAMPLED if key.partition(".")[0] in read}
            assert any(sampled <= set(keys) for keys in TOGETHER), f"list {sampled} in studies.axes.TOGETHER"
            rules, read = rules + bool(sampled), set()
    assert rules >= len(TOGETHER)


def test_what_corrects_uneven_classes_can_be_searched_and_is_kept_in_the_last_stage() -> None:
    spec = study(
        space={"loss": ["cross_entropy", "focal"], "focal_gamma": {"low": 0, "high": 3}, "class_weights": ["none"]},
        final={"finetune": {}},
    )
    config = spec.config_for({"loss": "focal", "focal_gamma": 1.0, "class_weights": "effective"}, 0)
    tuned = spec.finetune_config(config)
    assert (tuned.loss, tuned.focal_gamma, tuned.class_weights) == ("focal", 1.0, "effective")
    for space in ({"logit_adjustment": {"low": 0, "high": 1.5}}, {"class_sampling": ["natural", "balanced"]}):
        assert study(space=space).space


def test_no_candidate_of_a_space_that_was_taken_is_refused() -> None:
    random, taken = Random(0), 0
    most = {"mixup": 1.0, "cutmix": 1.0, "warmup_epochs": 8.0, "step_epochs": 12}
    for _ in range(300):
        draw = {key: random.uniform if key != "step_epochs" else random.randint for key in most}
        ends = {key: sorted(draw[key](int(high > 9), high) for _ in "ab") for key, high in most.items()}
        space = {key: {"low": low, "high": high} for key, (low, high) in ends.items() if random.random() < 0.7}
        try:
            spec = study(space=space | {"schedule": ["cosine", "warm_restarts"]})
        except ConfigError:
            continue
        taken += 1
        for schedule in ("cosine", "warm_restarts"):
            sampled = {key: random.choice([*ends[key], draw[key](*ends[key])]) for key in space}
            spec.config_for(sampled | {"schedule": schedule}, 0)
    assert 50 < taken < 250


def test_what_is_sampled_is_not_judged_by_the_fixed_value_that_it_replaces() -> None:
    space = {"warmup_epochs": [0, 12], "step_epochs": [15, 20]}
    recipe = {"warmup_epochs": 12, "step_epochs": 15}
    spec = study(train={"schedule": "warm_restarts"}, space=space, known=[recipe])
    assert spec.train.step_epochs == 10
    assert spec.config_for(recipe, 0).warmup_epochs == 12


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ({"lr": 1.0}, "known.0.lr: 1.0 is outside the space, 0.0001 to 0.01"),
        ({"lr": "fast"}, "known.0.lr: fast is outside the space, 0.0001 to 0.01"),
        ({"width_mult": 0.1}, "known.0.width_mult: 0.1 is outside the space, 0.5 to the widest that fits"),
        ({"optimizer": "lion"}, "known.0.optimizer: 'lion' is not among the space's ['adamw', 'sgd']"),
        ({"batch_size": 20}, "known.0.batch_size: 20 is not on the space's steps, 16 + n x 8"),
        ({"crop_padding": 1.5}, "known.0.crop_padding: 1.5: input should be a valid integer, got a number with a"),
        ({"dropout": 0.2}, "known.0.dropout: is not in the space; known: batch_size, crop_padding, lr, optimizer,"),
        ({"lr": [1e-3]}, "known.0.lr: [0.001] cannot be sampled; write a number, a string, true or false"),
    ],
)
def test_a_known_recipe_outside_the_space_is_refused(recipe: dict[str, Any], line: str) -> None:
    space = {
        "lr": LR,
        "width_mult": {"low": 0.5},
        "optimizer": ["adamw", "sgd"],
        "batch_size": {"low": 16, "high": 64, "step": 8},
        "crop_padding": {"low": 0, "high": 4},
    }
    (found,) = problems(space=space, limit={"params": 1000}, known=[recipe])
    assert found.startswith(line)


def test_one_known_table_is_told_how_to_become_a_list() -> None:
    assert problems(known={"lr": 1e-3}) == [
        "known: is one table, but must be a list of tables; write [[known]] above each recipe"
    ]


def test_a_known_recipe_on_a_decimal_step_is_on_it() -> None:
    space = {"dropout": {"low": 0.1, "high": 0.7, "step": 0.1}}
    assert study(space=space, known=[{"dropout": 0.3}, {"dropout": 0.7}]).known[0] == {"dropout": 0.3}


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "/tmp/x", "two words", "x\n", "-x", "x" * 65])
def test_a_name_that_could_be_a_path_is_refused(name: str) -> None:
    (line,) = problems(name=name)
    assert "cannot name a study; use 1 to 64 letters, digits, '.', '_' or '-'" in line


@pytest.mark.parametrize("name", ["birds400", "a", "cub-64px_2.1", "x" * 64])
def test_a_plain_name_is_taken(name: str) -> None:
    assert study(name=name).name == name


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"seed": "a"}, "seed = 'a': input should be a valid integer, unable to parse string as an integer"),
        ({"seed": -1}, "seed = -1: input should be greater than or equal to 0"),
        ({"limit": {"params": 5.5}}, "limit.params = 5.5: input should be a valid integer, got a number with a"),
        ({"limit": {"macs": 0}}, "limit.macs = 0: input should be greater than or equal to 1"),
        (
            {"train": {"optimizer": "lion"}},
            "train.optimizer = 'lion': input should be 'adam', 'adamw', 'nadam', 'sgd' or",
        ),
        ({"train": {"lr": float("nan")}}, "train.lr = nan: input should be a finite number"),
        ({"data": {"source": "web"}}, "data.source = 'web': input should be 'folder', 'digits', 'cifar10' or"),
        ({"search": {"trials": 0}}, "search.trials = 0: input should be greater than or equal to 1"),
        ({"search": {"trainings": 0}}, "search.trainings = 0: input should be greater than 0"),
        ({"search": {"pruner": "asha"}}, "search.pruner = 'asha': input should be 'promote', 'successive_halving',"),
        (
            {"search": {"min_epochs": 60}},
            "search.min_epochs: 60 exceeds train.epochs = 50; lower min_epochs, or raise train",
        ),
        ({"train": {"epochs": 2, "warmup_epochs": 2}}, "train: warmup_epochs = 2 must be less than epochs = 2"),
        ({"confirm": {"top": -1}}, "confirm.top = -1: input should be greater than or equal to 0"),
        ({"confirm": {"seed": 3}}, "confirm.seed: unknown key; did you mean seeds?"),
        ({"final": {"fit_on": "test"}}, "final.fit_on = 'test': input should be 'train' or 'train+val'"),
        (
            {"final": {"ensemble": 0}},
            "final.ensemble: 0 is not a number of models; write 1 or more, { of = 10, keep = 6 } or",
        ),
        (
            {"final": {"ensemble": "folds"}},
            'final.ensemble: "folds" needs data.folds, for example data.folds = 5; it is 0',
        ),
        (
            {"final": {"ensemble": "folds", "finetune": {}}},
            'final: ensemble = "folds" trains each model on all folds but',
        ),
        ({"final": {"ensemble": True}}, "final.ensemble: True is not a number of models; write 1 or more"),
        (
            {"final": {"ensemble": {"of": 4, "keep": 4}}},
            "final.ensemble: keep = 4 must be less than of = 4; for all, write ensemble = 4",
        ),
        (
            {"final": {"ensemble": {"of": 1, "keps": 1}}},
            "final.ensemble: of = 1: input should be greater than or equal to 2",
        ),
        (
            {"final": {"ensemble": {"of": 4, "keep": 2}, "fit_on": "train+val"}},
            'final: ensemble = { of, keep } chooses members on the validation split, and fit_on = "train+val"',
        ),
        (
            {"final": {"ensemble": {"of": 4, "keep": 2}, "finetune": {}}},
            "final: ensemble = { of, keep } chooses members on the",
        ),
        ({"final": {"tta": ["flip", "flip"]}}, "final.tta: ['flip', 'flip'] names one twice; name each once"),
        ({"final": {"tta": ["rotate=10", "rotate=10.0"]}}, "final.tta: ['rotate=10', 'rotate=10'] names one twice"),
        ({"final": {"tta": ["hflip"]}}, "final.tta: 'hflip' is no view; did you mean flip?"),
        ({"final": {"tta": ["flip=1"]}}, "final.tta: 'flip=1' is no view; only rotate and shift take numbers"),
        ({"final": {"tta": ["rotate"]}}, "final.tta: 'rotate' is no rotation; write degrees above -180, at most 180"),
        ({"final": {"tta": ["rotate=nan"]}}, "final.tta: 'rotate=nan' is no rotation; write degrees"),
        ({"final": {"tta": ["rotate=200"]}}, "final.tta: 'rotate=200' is no rotation; write degrees"),
        ({"final": {"tta": ["shift=4"]}}, "final.tta: 'shift=4' is no shift; write whole pixels to the right and down"),
        ({"final": {"tta": ["shift=0.5,1"]}}, "final.tta: 'shift=0.5,1' is no shift; write whole pixels"),
        (
            {"data": {"image_size": 8}, "final": {"tta": ["shift=0,-8"]}},
            "final.tta: shift=0,-8 moves the whole picture away: data.image_size = 8; shift it by less",
        ),
        (
            {"data": {"channels": 1}, "final": {"tta": ["fancy_pca"]}},
            "final.tta: fancy_pca changes colours, and data.channels = 1 has none; leave it out",
        ),
        ({"final": {"rerank": {}}}, "final.rerank.layer: "),
        ({"final": {"rerank": {"layer": "conv1", "share": 0.1}}}, "final.rerank.share = 0.1: input should be greater"),
        (
            {"final": {"rerank": {"layer": "conv1", "share": 0.7}}},
            "final.rerank.share = 0.7: input should be less",
        ),
        (
            {"final": {"rerank": {"layer": "conv1"}, "ensemble": 2}},
            "final: rerank is for a single model, and ensemble = 2; leave one of them out",
        ),
        (
            {"final": {"rerank": {"layer": "conv1"}, "fit_on": "train+val"}},
            'final: rerank is measured on the validation split, and fit_on = "train+val" trains on it; leave one',
        ),
        (
            {"final": {"rerank": {"layer": "conv1"}, "finetune": {}}},
            "final: rerank is measured on the validation split, and finetune trains on it; leave one of them out",
        ),
        ({"final": {"formats": ["tflite"]}}, "final.formats.0 = 'tflite': input should be 'onnx' or 'pt2'"),
        ({"final": {"finetune": {"epoch": 4}}}, "final.finetune.epoch: unknown key; did you mean epochs?"),
        ({"final": {"distill": {"weight": 2, "teacher": "x"}}}, "final.distill.weight = 2: input should be less than"),
        (
            {"train": {"warmup_epochs": 3}, "final": {"epochs": 3}},
            "final.epochs: 3 must be more than train.warmup_epochs = 3",
        ),
        (
            {"space": {"warmup_epochs": [0, 5, 2]}, "final": {"epochs": 4}},
            "final.epochs: 4 must be more than space.warmup_epochs = 5",
        ),
        (
            {"space": {"warmup_epochs": {"low": 0, "high": 4}}, "final": {"epochs": 4}},
            "final.epochs: 4 must be more than space.warmup_epochs = 4",
        ),
        (
            {"train": {"schedule": "plateau"}, "final": {"fit_on": "train+val"}},
            'final.fit_on: "train+val" leaves no validation loss for the schedule "plateau"; use fit_on = "train", or',
        ),
        ({"data": 3}, "data = 3: input should be a valid dictionary or instance of DataConfig"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_cure(values: dict[str, Any], line: str) -> None:
    (found,) = problems(**values)
    assert found.startswith(line)


def test_all_problems_of_a_study_come_at_once() -> None:
    found = problems(
        name="../x",
        serch={},
        data={"sorce": "digits"},
        train={"epochs": 5},
        space={"lr": {"low": 1, "high": 0.1}, "epochs": [1, 2], "dropout": [2]},
        search={"min_epochs": 9},
    )
    assert keys(found) == [
        "name",
        "data.sorce",
        "space.lr",
        "search.min_epochs",
        "serch",
    ]
    found = problems(
        space={"epochs": [1, 2], "dropout": [2], "optimizer": ["a", "b"]}, limit={"params": 0}, search={"trails": 1}
    )
    assert keys(found) == [
        *("limit.params = 0", "space.epochs", "space.dropout", "space.optimizer", "space.optimizer", "search.trails"),
    ]
    found = problems(known=[{"lr": 1.0, "lrr": 1}, {"lr": 0.001}, {"lr": 2.0}], search={"min_epochs": 99})
    assert keys(found) == [
        *("known.0.lr", "known.0.lrr", "known.2.lr", "search.min_epochs"),
    ]


def test_every_number_of_the_recipe_can_be_sampled_but_its_length() -> None:
    settings = [
        *TrainConfig.model_fields,
        *(f"{table}.{name}" for table in TABLES for name in TABLES[table].model_fields),
    ]
    numbers = {key for key in settings if annotation_of(key) in (int, float)}
    assert numbers - set(SAMPLED) == {"epochs", "seed"}  # pruners compare trials of one length
    words = {"model", "optimizer", "loss", "class_weights", "class_sampling", "schedule"}
    assert set(SAMPLED) - numbers == words
    spec = study(
        train={"distill": {"teacher": "big", "temperature": 2.0}},
        space={"distill.weight": {"low": 0.1, "high": 0.9}, "patience": [3, 5]},
    )
    config = spec.config_for({"distill.weight": 0.25, "patience": 5}, 0)
    assert config.distill == Distill(teacher="big", temperature=2.0, weight=0.25)
    assert config.patience == 5


def test_listed_rotations_are_fixed_and_a_sampled_rotation_is_a_number() -> None:
    listed = study(train={"rotate": [15, 25]}, space={"lr": LR})
    assert StudySpec.model_validate(listed.model_dump(mode="json")).config_for({}, 0).angles == (15, 25)
    sampled = study(space={"rotate": {"low": 0, "high": 30}, "rotations": [1, 2]})
    assert sampled.config_for({"rotate": 12.5, "rotations": 2}, 0).angles == (12.5, 12.5)
    assert problems(train={"rotate": [15, 25]}, space={"rotations": [1, 2]}) == [
        "space.rotations: rotate = [15.0, 25.0] lists every rotation, and rotations = 2 repeats one; leave rotations "
        "out"
    ]
    assert problems(space={"rotate": {"low": 0, "high": 200}}) == [
        "space.rotate: 200.0 is not an angle; write degrees from 0 to 180, or a list such as [15, 25]"
    ]


def test_the_share_of_augmented_epochs_is_sampled_and_stays_in_a_short_training() -> None:
    spec = study(train={"epochs": 40}, space={"augment_share": {"low": 0.25, "high": 1}})
    assert spec.values_for({"augment_share": 0.5}, 0, epochs=10)["augment_share"] == 0.5
    assert problems(train={"augment_from_epoch": 11}, space={"augment_share": {"low": 0.25, "high": 1}}) == [
        "space.augment_share: 0.25 spreads the plain epochs over the training, and augment_from_epoch = 11 puts them "
        "first; leave one of them out"
    ]


def test_a_study_survives_json() -> None:
    spec = studies.load("birds400")
    assert StudySpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_candidate_is_the_fixed_recipe_with_the_sampled_values_and_a_seed() -> None:
    spec = study(train={"epochs": 7, "erase": 0.25}, space={"lr": LR})
    assert spec.config_for({"lr": 0.005}, 11) == TrainConfig(epochs=7, erase=0.25, lr=0.005, seed=11)


def test_the_final_training_changes_what_final_names_and_nothing_else() -> None:
    recipe = {"epochs": 7, "patience": 2, "ema": 0.9, "erase": 0.25}
    spec = study(train=recipe, final={"epochs": 20, "ema": 0.0, "fit_on": "train+val"})
    expected = TrainConfig(epochs=20, erase=0.25, lr=0.005, seed=11, patience=None)
    assert spec.final_config_for({"lr": 0.005}, 11) == expected
    assert study(train=recipe).final_config_for({"lr": 0.005}, 11) == TrainConfig(**recipe, lr=0.005, seed=11)


def test_finetuning_keeps_the_net_and_ends_schedule_and_augmentation() -> None:
    spec = study(train={"width_mult": 1.1, "batch_size": 16, "ema": 0.9, "rotate": 9}, final={"finetune": {}})
    assert spec.finetune_config(TrainConfig(model="resnet18", stem="cifar")).stem == "cifar"
    config = spec.finetune_config(spec.final_config_for({"lr": 0.005}, 11))
    winners = {"optimizer": "adam", "lr": 1e-3, "epochs": 4, "dropout": 0.16, "hflip": 0.5, "schedule": "constant"}
    assert config == TrainConfig(width_mult=1.1, batch_size=16, seed=11, **winners)
    assert spec.final.sees_validation
    assert not study().final.sees_validation


def test_each_word_of_what_a_final_model_is_fitted_on_has_code() -> None:
    words = choices_of(Final)
    assert words.keys() == {"fit_on", "ensemble", "formats"}
    assert [*words["ensemble"]] == ["folds"]
    assert {word: with_word(Final, "fit_on", word).fits_on_validation for word in words["fit_on"]} == {
        "train": False,
        "train+val": True,
    }
    with pytest.raises(AssertionError, match=UNKNOWN):
        _ = with_word(Final, "fit_on", UNKNOWN).sees_validation


@pytest.mark.parametrize(
    "kind", [StudySpec, Range, Limit, Search, Confirm, Final, Finetune, Distill, TrainConfig, DataConfig]
)
def test_every_field_says_what_it_means(kind: type[BaseModel]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 7\n[space]\nlr = { low = 1e-4, high = 1e-2, log = true }\n")
    return path


def test_a_study_file_is_named_after_itself(file: Path) -> None:
    assert studies.load(str(file)).name == "mine"


def test_set_overrides_the_file_with_toml_values_and_bare_words(file: Path) -> None:
    assignments = [
        *("name=other", "train.epochs=9", "train.optimizer=sgd", "limit.params=1_000", "space.dropout=[0.1, 0.2]"),
        *("space.lr.high=0.1", "search.hours=1.5", 'train.augment=[{name="Blur"}]'),
    ]
    spec = studies.load(str(file), assignments)
    assert (spec.name, spec.train.epochs, spec.train.optimizer, spec.limit.params) == ("other", 9, "sgd", 1000)
    assert spec.space == {"lr": Range(low=1e-4, high=0.1, log=True), "dropout": (0.1, 0.2)}
    assert (spec.search.hours, spec.train.augment) == (1.5, ({"name": "Blur"},))


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("train.epochs", "--set 'train.epochs': write key=value, for example --set train.lr=0.01"),
        ("=3", "--set '=3': write key=value, for example --set train.lr=0.01"),
        ("train.epochs.x=1", "--set 'train.epochs.x=1': epochs is a value, not a table"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean epochs?"),
        ("train.epochs=many", "train.epochs = 'many': input should be a valid integer"),
    ],
)
def test_an_override_that_cannot_be_is_one_sentence(file: Path, assignment: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        studies.load(str(file), [assignment])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("study_name", "sentence"),
    [
        ("brids400", "no study 'brids400' comes with the program, nor is it a .toml file; did you mean birds400?"),
        ("nothing.toml", "there is no file nothing.toml; search studies --new nothing.toml begins one"),
        ("folder.toml", "cannot read study folder.toml: [Errno 21] Is a directory: 'folder.toml'"),
        ("pets", "no study 'pets' comes with the program, nor is it a .toml file; did you mean pets.toml?"),
    ],
)
def test_a_study_that_is_not_there_is_one_sentence(
    study_name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.toml", "pets"):  # pictures are often in a folder with the name of their study
        Path(folder).mkdir()
    Path("pets.toml").touch()
    with pytest.raises(ConfigError) as caught:
        studies.load(study_name)
    assert str(caught.value) == sentence


def test_a_study_named_without_its_ending_is_told_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit.toml").write_text("[space]\ndropout = [0.0, 0.2]\n")
    with pytest.raises(ConfigError, match=r"did you mean digit\.toml\?$"):
        studies.load("digit")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[space]\ndropout = [0.0, 0.2]\n", encoding="utf-8-sig")
    assert studies.load(str(file)).name == "x"


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("lr = = 3")
    with pytest.raises(ConfigError, match=r"is not TOML: .*line 1, column 6"):
        studies.load(str(tmp_path / "x.toml"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_file_in_another_encoding_is_refused_with_the_one_to_save_it_in(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "y.toml").write_text('[data]\npath = "caf\u00e9"\n', encoding=encoding)
    with pytest.raises(ConfigError, match=r"^cannot read study .*y.toml: it is not text in UTF-8; save it as UTF-8$"):
        studies.load(str(tmp_path / "y.toml"))


def test_the_command_that_checks_a_new_study_can_be_pasted(tmp_path: Path) -> None:
    file = tmp_path / "my study; $x.toml"
    command = studies.text_of_new_file(studies.NewStudyFile(file)).partition("then: ")[2]
    assert shlex.split(command) == ["search", "check", str(file), "--data", "DIR"]
