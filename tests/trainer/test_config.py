"""Settings: what is accepted, what an error says, and that reading them costs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer.config import DataConfig, ModelSize, Sam, TrainConfig
from trainer.errors import ConfigError
from trainer.values import FrozenModel, nearest, override, to_json, validate


def problems_of(values: dict[str, object], kind: type[FrozenModel] = TrainConfig) -> str:
    with pytest.raises(ConfigError) as error:
        validate(kind, values, "study.toml [train]")
    return str(error.value)


def test_importing_the_settings_imports_neither_torch_nor_timm() -> None:
    code = "import sys, trainer.config; print(*{'torch', 'timm', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("kind", [DataConfig, TrainConfig])
def test_every_setting_is_documented_and_has_a_default(kind: type[FrozenModel]) -> None:
    kind()
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


def test_a_config_cannot_be_changed() -> None:
    config = TrainConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 1.0  # type: ignore[misc]


def test_a_config_comes_back_from_json_as_it_was() -> None:
    config = TrainConfig(
        model_args={"act_layer": "relu", "depth_mult": 1.0, "se": True, "initial_chs": 16, "layers": [1, 2]},
        lr=0.1 + 0.2,
        augment=({"name": "ColorJitter", "p": 0.5},),
    )
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert [type(value) for value in again.model_args.values()] == [str, float, bool, int, list]


def test_an_unknown_key_names_the_nearest_one() -> None:
    assert "lable_smoothing: unknown key; did you mean label_smoothing?" in problems_of({"lable_smoothing": 0.1})


def test_a_key_like_no_other_lists_those_that_exist() -> None:
    problems = problems_of({"zzz": 1})
    assert "zzz: unknown key; known: agc, augment, augment_from_epoch, augment_share" in problems


def test_all_problems_are_told_at_once_each_on_its_line() -> None:
    problems = problems_of({"lr": -1.0, "epochs": 0, "optimizer": "lion", "dropout": 1.0})
    assert problems.splitlines() == [
        "study.toml [train]:",
        "  dropout = 1.0: input should be less than 1",
        "  epochs = 0: input should be greater than or equal to 1",
        "  optimizer = 'lion': input should be 'adam', 'adamw', 'nadam', 'sgd' or 'rmsprop'",
        "  lr = -1.0: input should be greater than 0",
    ]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs = 5 must be less than epochs = 5"),
        ({"augment": [{"p": 0.5}]}, 'needs a name, as in { name = "FancyPCA" }'),
        ({"lr": float("inf")}, "lr = inf: input should be a finite number"),
        ({"weight_decay": float("nan")}, "weight_decay = nan: input should be"),
        ({"batch_size": 1}, "batch_size = 1: input should be greater than or equal to 2"),
        ({"augment_share": 0.5, "augment_from_epoch": 11}, "augment_share = 0.5 spreads the plain epochs over the"),
        ({"rotate": 200}, "rotate: 200 is not an angle; write degrees from 0 to 180, or a list such as [15, 25]"),
        ({"rotate": [15, -1]}, "rotate: -1 is not an angle"),
        ({"rotate": "much"}, "rotate: 'much' is not an angle"),
        ({"rotate": []}, "rotate: []: list 1 to 4 angles"),
        ({"rotate": [1, 2, 3, 4, 5]}, "rotate: [1, 2, 3, 4, 5]: list 1 to 4 angles"),
        ({"rotate": [15, 25], "rotations": 2}, "rotate = [15.0, 25.0] lists every rotation, and rotations = 2 repeats"),
        ({"epochs": 2.5}, "epochs = 2.5: input should be a valid integer"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, object], sentence: str) -> None:
    assert sentence in problems_of(values)


def test_a_folder_is_the_same_wherever_the_settings_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert DataConfig(path="~/birds").path == str(Path.home() / "birds")
    assert DataConfig(path="birds").path == str(tmp_path / "birds")
    assert DataConfig().path is None


def test_the_digits_take_no_folder() -> None:
    assert "the digits are built in" in problems_of({"source": "digits", "path": "/pictures"}, DataConfig)


def test_nearest_completes_a_sentence() -> None:
    assert nearest("rexnet100", ["rexnet_100", "resnet18"]) == "did you mean rexnet_100?"
    assert nearest("x", ["b", "a"]) == "known: a, b"
    assert nearest("x", [f"{number:02}" for number in range(43)]).endswith(", 39 and 3 more")


def test_assignments_are_dotted_keys_and_toml_values() -> None:
    values = {"train": {"lr": 1.0, "epochs": 3}, "space": {"lr": {"low": 1.0}}}
    changed = override(
        values, ["train.lr=1e-3", "train.model=resnet18", "space.lr.low=2", "train.tags=[1, 2]", 'data.path="a b"']
    )
    assert changed == {
        "train": {"lr": 1e-3, "epochs": 3, "model": "resnet18", "tags": [1, 2]},
        "space": {"lr": {"low": 2}},
        "data": {"path": "a b"},
    }


def test_assignments_leave_the_original_alone_however_deep() -> None:
    values = {"space": {"lr": {"low": 1.0}}, "train": {"lr": 1.0}}
    override(values, ["space.lr.low=2", "train.lr=2"])
    assert values == {"space": {"lr": {"low": 1.0}}, "train": {"lr": 1.0}}


@pytest.mark.parametrize("assignment", ["train.lr", "=3", "   =3"])
def test_an_assignment_without_key_and_value_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match="write key=value, for example"):
        override({}, [assignment])


def test_an_assignment_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="lr is a value, not a table"):
        override({"train": {"lr": 1.0}}, ["train.lr.low=2"])


def test_the_json_form_of_a_value_has_its_fields_and_refuses_what_has_none() -> None:
    size = ModelSize(params=1, macs=2)
    value = {"size": size, "sam": Sam(rho=0.1), "places": (Path("a/b"), None), 16: [True, 0.5, "x"]}
    assert to_json(value) == {
        "size": {"params": 1, "macs": 2},
        "sam": {"rho": 0.1, "adaptive": False},
        "places": ["a/b", None],
        "16": [True, 0.5, "x"],
    }
    with pytest.raises(TypeError, match="set has no JSON form"):
        to_json({"kinds": {1, 2}})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("labels.csv", "labels.csv"),
        ("tables/./labels.csv", "tables/./labels.csv"),
        ("/home/me/birds/tables/labels.csv", "tables/labels.csv"),
        ("/home/me/labels.csv", "labels.csv"),
        ("../../me/labels.csv", "labels.csv"),
        ("~/labels.csv", "labels.csv"),
    ],
)
def test_of_a_table_outside_the_data_folder_only_the_name_is_told(given: str, told: str) -> None:
    config = DataConfig(path="/home/me/birds", labels=given, test_labels=given)
    assert config.named_tables == {"labels": told, "test_labels": told}
    assert DataConfig(path="/home/me/birds").named_tables == {}
