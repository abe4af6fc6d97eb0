"""The studies that come with the program load, and the template shows every field there is."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from choices import choices_of
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import studies
from studies import Confirm, Faults, Final, Limit, Range, Search, StudySpec
from studies.spec import Notify
from trainer.config import DataConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.values import to_json

SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "limit": Limit,
    "train": TrainConfig,
    "search": Search,
    "faults": Faults,
    "notify": Notify,
    "confirm": Confirm,
    "final": Final,
}

EXAMPLES = {("limit", "params")}
"""Shown with a value that is no default: a limit is what a study is about."""


def text_of(name: str) -> str:
    return (files("studies") / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", studies.names())
def test_a_shipped_study_loads_under_its_own_name(name: str) -> None:
    spec = studies.load(name)
    assert spec.name == name.rpartition("/")[2]
    assert spec.limit != Limit()


@pytest.mark.parametrize("name", studies.names())
def test_a_shipped_study_says_how_to_run_it_and_what_came_of_it(name: str) -> None:
    header = text_of(name).partition("\n[")[0]
    assert all(line.startswith("#") or not line for line in header.splitlines())
    assert f"search launch {name}" in header
    assert "Hardware, time and result" in header


def test_the_shipped_studies_are_those_of_the_design() -> None:
    contest = ["efficientnet", "nf_regnet", "resnet_sam", "rexnet_adamw", "rexnet_plan", "rexnet_sgd", "wide_resnet"]
    others = ["digits", "few_gray", "recipes", "survey"]
    assert studies.names() == ["birds400", "cifar10", *(f"contest/{name}" for name in contest), *others]


def test_what_the_list_of_studies_names_can_be_launched() -> None:
    rows = {row.name: row for row in studies.shipped().studies}
    assert list(rows) == studies.names()
    assert to_json(rows["contest/rexnet_sgd"]) == {
        **{"name": "contest/rexnet_sgd", "data": "folder", "models": ["rexnet_100"]},
        "trainings": studies.load("contest/rexnet_sgd").search.trainings,
        "trials": None,
    }
    lines = studies.text_of_studies(studies.shipped()).splitlines()
    assert lines[-1].split() == ["survey", "folder", "20", "models", "22", "full", "trainings"]
    assert len({line.index(f"  {row.data} ") for line, row in zip(lines, rows.values(), strict=True)}) == 1


def test_birds400_tries_the_two_winning_recipes_first() -> None:
    spec = studies.load("birds400")
    adamw, sgd = spec.known
    assert adamw == {
        "optimizer": "adamw",
        "lr": 5.77e-3,
        "weight_decay": 0.015,
        "label_smoothing": 0.06,
        "dropout": 0.2,
        "width_mult": 1.0,
        "batch_size": 128,
    }
    stated = {"optimizer": "sgd", "lr": 0.002, "batch_size": 16, "dropout": 0.5, "width_mult": 1.12}
    assert sgd.items() >= stated.items()
    assert set(sgd) == set(adamw) == set(spec.space), "nothing of a known recipe is left to chance"
    assert (spec.train.model, spec.train.epochs, spec.limit.params) == ("rexnet_100", 50, 5_000_000)


def test_the_template_is_a_study(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("new") / "mine.toml"
    path.write_text(studies.template(), encoding="utf-8")
    assert studies.load(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mine.toml", "mine.toml exists already; choose another name"),
        ("no/where.toml", "there is no folder .*no; create it first"),
        (f"{'long' * 99}.toml", "cannot be written .*; choose another place"),
    ],
)
def test_a_new_study_file_that_cannot_be_written_is_one_sentence(name: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("mine")
    with pytest.raises(ConfigError, match=sentence):
        studies.write_new_file(tmp_path / name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mine.toml", "mine")]


def test_the_template_shows_every_field_of_every_section_with_its_default() -> None:
    shown = tomllib.loads(studies.template())
    # "# name = value": a field without a default that could be written down, with an example.
    everything = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", studies.template(), flags=re.MULTILINE))
    assert set(everything) == set(StudySpec.model_fields)
    assert shown["seed"] == StudySpec.model_fields["seed"].default
    for section, kind in SECTIONS.items():
        assert set(everything[section]) == set(kind.model_fields), section
        for key, field in kind.model_fields.items():
            assert field.default is not PydanticUndefined
            if key not in shown[section]:
                assert field.default is None, f"{section}.{key} has a default to show"
            elif (section, key) not in EXAMPLES:
                value = getattr(kind.model_validate({key: shown[section][key]}), key)
                assert value == field.default, f"{section}.{key}"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_template_names_every_word_that_a_setting_may_be(section: str) -> None:
    lines = studies.template().partition(f"\n[{section}]")[2].partition("\n[")[0].splitlines()
    for setting, words in choices_of(SECTIONS[section]).items():
        (line,) = (line for line in lines if re.match(rf"(# )?{setting} = ", line))
        shown = set(re.findall(r"[\w+]+", line.partition("=")[2]))
        assert {str(word) for word in words} <= shown, f"{section}.{setting}"


def test_the_template_names_every_field_of_an_axis() -> None:
    (line,) = (line for line in studies.template().splitlines() if line.startswith("[space]"))
    assert re.findall(r"\w+", line.partition("{")[2].partition("}")[0]) == list(Range.model_fields)


def test_no_contest_study_inherits_a_weight_decay_that_its_team_never_named() -> None:
    """The default is AdamW's; coupled with SGD or RMSprop, or a hundred times as strong, it is another recipe."""
    for name in (name for name in studies.names() if name.startswith("contest/")):
        spec = studies.load(name)
        assert "weight_decay" in spec.train.model_fields_set | set(spec.space), name


def test_pictures_are_resized_and_cropped_and_split_in_every_way_in_some_shipped_study() -> None:
    data = [studies.load(name).data for name in studies.names()]
    assert any(one.crop_pct < 1 for one in data)
    assert {one.stratified for one in data} == {False, True}
    assert {one.normalize for one in data} == {"dataset", "imagenet"}
    assert {one.channels for one in data} == {1, 3}
    assert 64 in {one.image_size for one in data}
