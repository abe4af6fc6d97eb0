"""metrics.json as a value: what is read is what is written, an export of before included."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from exports import recorded
from pydantic import ValidationError

from search.errors import UsageError
from search.export.card import card
from search.export.metrics import Export, text_of_export
from search.export.record import ExportRecord, identity_of, write_metrics


def test_the_record_of_an_export_of_before_says_all_that_its_file_says_and_has_its_identity(tmp_path: Path) -> None:
    """Another identity would train every export anew."""
    file = recorded()
    write_metrics(tmp_path, file)
    record = ExportRecord.load(tmp_path)
    said = json.loads(json.dumps(record.to_json()))
    file["proof"]["stranger_tolerance"] = None  # was left out where no stranger could read the pictures
    file["proof"] |= {"misread": {}, "misread_in_all": {}}  # later, and so is the next one
    file["evaluation"]["near_duplicates"] = None
    assert said == file
    described = list(said)[: list(said).index("identity")]
    assert identity_of({name: said[name] for name in described}) == record.identity == file["identity"]


def test_a_record_cannot_be_changed() -> None:
    record = ExportRecord.model_validate(recorded())
    with pytest.raises(ValidationError):
        record.study = "another"
    assert record.confirmed is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.confirmed.trial = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("damaged", "sentence"),
    [
        (lambda values: values["model"].pop("macs"), r"metrics\.json is not what .* writes \(model\.macs is missing"),
        (lambda values: values.update(proof=None), r"\(proof is missing or has another form\); export again"),
        (lambda values: values.update(histories=[[{"epoch": "first"}]]), r"\(histories\.0\.0\."),
    ],
)
def test_a_file_of_another_form_is_a_sentence_that_names_the_key(tmp_path: Path, damaged, sentence: str) -> None:
    values = recorded()
    damaged(values)
    write_metrics(tmp_path, values)
    with pytest.raises(UsageError, match=sentence):
        ExportRecord.load(tmp_path)


def test_a_folder_without_metrics_and_a_file_that_is_no_json_are_no_export(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\); give a folder that"):
        ExportRecord.load(tmp_path)
    (tmp_path / "metrics.json").write_text("accuracy: high")
    with pytest.raises(UsageError, match=r"metrics\.json is not what this version of export-best writes"):
        ExportRecord.load(tmp_path)


def test_losses_that_are_infinite_are_written_and_read(tmp_path: Path) -> None:
    values = recorded()
    values["validation"]["loss"] = values["histories"][0][0]["train_loss"] = float("inf")
    write_metrics(tmp_path, values)
    record = ExportRecord.load(tmp_path)
    write_metrics(tmp_path, record.to_json())
    assert ExportRecord.load(tmp_path) == record
    assert record.validation.loss == float("inf")


def test_card_and_last_lines_are_made_of_the_record() -> None:
    record = ExportRecord.model_validate(recorded())
    words = card(record)
    assert "| **chosen** |" in words
    assert "| 5 | 2,086 | 60.06% | 60.34% | 60.34% | **chosen** |" in words
    assert "**60.93%** top-1 on the test split, n = 901" in words
    said = text_of_export(Export(record, Path("there"))).splitlines()
    assert said[:2] == ["exported to there", "  confirmed   60.34% on validation, 1 fresh seed"]
    assert said[-1] == "  load it     see there/README.md"
