"""The pictures of an export: they may have moved since the search, but must be the same."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pytest
from inside import run_inside
from marked import add_own
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from tiny import tiny_study

import search.export.export
from search.errors import Interrupted
from search.export.pictures import moved_to
from search.paths import Runs
from search.study.storage import open_storage, parse_url
from search.study.study import open_study
from studies import StudySpec
from trainer.data import prepare_data


@dataclass
class Desk:
    """A folder with pictures and a finished search of them."""

    folder: Path
    study: optuna.Study

    def export(self, *options: str) -> tuple[int, str]:
        """Exit code and message of ``search export-best``."""
        code, _, said = run_inside(self.folder, "export-best", "--gpus", "cpu", *options)
        return code, said

    def typed(self, command: str) -> tuple[int, str]:
        """The same for a command that a message gave."""
        program, verb, study, *options = shlex.split(command)
        assert (program, verb) == ("search", "export-best")
        return self.export(study, *options)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"pets/{name}/{number}.png")
    text = tiny_study("pets", trials=1).replace('source = "digits"', 'source = "folder"')
    (tmp_path / "pets.toml").write_text(f"{text}\n[confirm]\ntop = 0\n")
    values = tomllib.loads((tmp_path / "pets.toml").read_text())
    values["data"]["path"] = str(tmp_path / "pets")
    spec, runs = StudySpec.model_validate(values), Runs(tmp_path / "runs")
    content = prepare_data(spec.data, runs.cache).content_hash
    study = open_study(spec, open_storage(parse_url(f"sqlite:///{runs.database}"), create=True), content)
    size = {"num_params": 1, "seconds": 1.0}
    axes = {"lr": FloatDistribution(0.001, 0.02, log=True)}
    trial = create_trial(state=TrialState.COMPLETE, value=0.5, params={"lr": 0.01}, distributions=axes, user_attrs=size)
    add_own(study, [trial])

    def goes_on(*_: object) -> None:
        raise Interrupted("trains")

    monkeypatch.setattr(search.export.export, "_unchanged_or_new", goes_on)
    return Desk(tmp_path, study)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a folder without pictures"])
@pytest.mark.parametrize("study", ["pets", "pets.toml"])
def test_pictures_that_have_moved_are_found_with_the_command_of_the_message(desk: Desk, left: str, study: str) -> None:
    assert desk.export(study) == (75, "search: trains\n")
    (desk.folder / "pets").rename(desk.folder / "moved pets")
    if left != "nothing":
        (desk.folder / "pets").mkdir()
    if left == "a folder without pictures":
        (desk.folder / "pets/README.txt").write_text("mount the disk here")
    code, said = desk.export(study)
    assert code == 4
    assert str(desk.folder / "pets") in said
    (command,) = re.findall(r"give their present folder: (.*?)\. If their disk", said)
    assert desk.typed(command.replace("DIR", "'moved pets'")) == (75, "search: trains\n")
    assert desk.export(study) == (75, "search: trains\n"), "and the study remembers it"


@pytest.mark.parametrize("moved", [False, True])
def test_other_pictures_are_refused_and_not_remembered(desk: Desk, moved: bool) -> None:
    shutil.copytree(desk.folder / "pets", desk.folder / "other")
    changed = desk.folder / ("other" if moved else "pets")
    (changed / "cat/0.png").unlink()
    code, said = desk.export("pets", *(["--data", "other"] if moved else []))
    assert code == 8
    assert f"the pictures in {changed} or their classes are not those of its last launch" in said
    assert "repeat its search launch with --accept-changes" in said
    assert (desk.export("pets")[0] == 75) == moved
    if not moved:
        assert desk.export("pets", "--data", str(desk.folder / "other"))[0] == 75


def test_a_study_of_built_in_pictures_takes_no_folder(desk: Desk) -> None:
    spec = StudySpec.model_validate(tomllib.loads(tiny_study("tiny", trials=1)))
    open_study(spec, open_storage(parse_url(f"sqlite:///{Runs(desk.folder / 'runs').database}")), "content")
    code, said = desk.export("tiny", "--data", "pets")
    assert code == 2
    assert "the digits are built in" in said


def test_a_table_in_the_data_folder_moves_with_it_however_its_path_was_given(tmp_path: Path) -> None:
    values = tomllib.loads(tiny_study("pets", trials=1))
    inside, outside = str(tmp_path / "pets/labels.csv"), str(tmp_path / "elsewhere/test.csv")
    values["data"] |= {"source": "folder", "path": str(tmp_path / "pets"), "labels": inside, "test_labels": outside}
    moved = moved_to(StudySpec.model_validate(values), tmp_path / "now").data
    assert (moved.path, moved.labels, moved.test_labels) == (str(tmp_path / "now"), "labels.csv", outside)
