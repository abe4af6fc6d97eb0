"""metrics.json as a value: what is read is what is written, an export of before included."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from exports import recorded
from pydantic import ValidationError

from search.errors import UsageError
from search.export.card import card
from search.export.formats.weights import CLASS_MAP, class_map
from search.export.metrics import Export, text_of_export
from search.export.record import Evaluation, ExportRecord, identity_of, write_metrics
from search.figures.confusion import table_of
from search.figures.png import confused_pairs, dense, draw_confusion


def test_the_record_of_an_export_of_before_says_all_that_its_file_says_and_has_its_identity(tmp_path: Path) -> None:
    """Another identity would train every export anew."""
    file = recorded()
    write_metrics(tmp_path, file)
    record = ExportRecord.load(tmp_path)
    said = json.loads(json.dumps(record.to_json()))
    file["proof"]["stranger_tolerance"] = None  # was left out where no stranger could read the pictures
    file["proof"] |= {"misread": {}, "misread_in_all": {}}  # later, and so is the next one
    file["evaluation"]["near_duplicates"] = None
    file["gain"] = None
    for epoch in file["histories"][0]:
        epoch |= {"train_accuracy": None, "val_macro_f1": None, "val_balanced_accuracy": None}
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
    assert said[:4] == [
        "exported to there",
        "  accuracy    60.93% on the test split, n = 901 (95 % interval 57.71% to 64.07%)",
        "  confirmed   60.34% on validation, 1 fresh seed",
        "  claimed     60.06% on validation by the search, of one training",
    ]
    assert said[-1] == "  load it     see there/README.md"


def test_one_candidate_with_one_seed_is_told_in_the_singular_and_folds_are_named() -> None:
    values = recorded()
    values["data"]["config"]["folds"] = 5
    found = values["confirmation"]
    found |= {"candidates": [one for one in found["candidates"] if one["trial"] == 5], "trainings": 1, "done": 1}
    record = ExportRecord.model_validate(values)
    words, last = card(record), text_of_export(Export(record, Path("there")))
    assert (
        "The best trial was then trained again with a fresh seed: 1 training in all (5 s). The mean of the chosen "
        in words
    )
    assert ": **60.34%** in 5-fold cross-validation. The search's best had claimed 72.91%." in words
    assert "60.34% in 5-fold cross-validation, 1 seed, with the recipe of the search" in words
    assert "The search claimed 60.06% in 5-fold cross-validation for it." in words
    assert "  confirmed   60.34% in 5-fold cross-validation, 1 fresh seed\n" in last


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"tied": True}, "Of the tied ones, the chosen one has the fewest parameters."),
        ({"tied": True, "num_params": 9}, "The chosen one has the best mean, with its value in the search included."),
        ({"tied": False}, None),
    ],
    ids=["smallest", "larger, after a race", "none tied"],
)
def test_the_card_says_what_decided_among_tied_candidates(other: dict[str, object], why: str | None) -> None:
    values = recorded()
    found = values["confirmation"]
    found["test"] = "Welch's t test, 95 %"
    next(one for one in found["candidates"] if one["trial"] != 5).update(other)
    paragraph = next(
        line for line in card(ExportRecord.model_validate(values)).splitlines() if "Tied candidates" in line
    )
    assert paragraph.endswith(why or "not that of the validation pictures).")


def test_a_value_without_a_confirmation_is_the_best_of_so_many_trials() -> None:
    values = recorded() | {"confirmation": None}
    many = ExportRecord.model_validate(values)
    said = f"not confirmed with fresh seeds, so that value is likely too good: it is the best of {many.search.trials}."
    assert said in card(many)
    values["search"] |= {"trials": 1}
    assert "It was not confirmed with fresh seeds.\n" in card(ExportRecord.model_validate(values))


def test_pictures_that_were_trained_on_are_named_where_the_accuracy_stands() -> None:
    values = recorded() | {"fit_on": "train+val", "sees_validation": True}
    tested = ExportRecord.model_validate(values)
    assert "**60.93%** top-1 on the test split, trained on train+val, n = 901" in card(tested)
    values["evaluation"]["split"] = "val"
    said = text_of_export(Export(ExportRecord.model_validate(values), Path("there")))
    assert "  accuracy    60.93% on the validation split, which it was trained on, n = 901" in said


def test_the_file_that_gives_the_accuracy_is_named_first() -> None:
    values = recorded() | {"formats": ["onnx", "pt2"]}
    values["model"] |= {"stock_timm": True, "views": ["flip"]}
    values["evaluation"]["plain_accuracy"] = 0.5
    record = ExportRecord.model_validate(values)
    assert text_of_export(Export(record, Path("there"))).splitlines()[-2:] == [
        "  load it     there/model.onnx, see there/README.md: 60.93%",
        '              timm.create_model("local-dir:there", pretrained=True): 50.00%, without the views',
    ]
    words = card(record)
    onnx, torch_alone, stock = (words.index(line) for line in ("import onnxruntime", "torch.export.load", "local-dir:"))
    assert onnx < torch_alone < stock
    assert words.count("This gives 60.93%, the accuracy above. ") == 2
    assert "This gives 50.00%, because it is the model without the views. With timm" in words


def test_the_card_counts_paused_trials_apart() -> None:
    kept = recorded()
    assert "paused" not in card(ExportRecord.model_validate(kept))
    kept["search"]["states"]["PAUSED"] = 7
    assert " failed, 7 paused; " in card(ExportRecord.model_validate(kept))


def test_of_many_classes_only_what_occurs_is_recorded_and_drawn(tmp_path: Path) -> None:
    table, names = [[0, 0, 3], [0, 9_999, 1], [9_998, 9_999, 2]], [str(number) for number in range(10_000)]
    values = recorded()["evaluation"] | {"confusion": None, "confusion_table": table}
    found = Evaluation.model_validate(values)
    assert found.table.tolist() == table
    assert Evaluation.model_validate(recorded()["evaluation"]).table[:, 2].sum() == found.n
    assert len(json.dumps(found.to_json())) < 2_000, "a matrix would have a hundred million numbers"
    draw_confusion(found.table, names, tmp_path / "confusion.png", title="many")
    assert (tmp_path / "confusion.png").stat().st_size > 1_000
    first, second = confused_pairs(found.table, names)
    assert (first.true, first.predicted, first.count, first.of) == ("9998", "9999", 2, 2)
    assert (second.true, second.predicted, second.count, second.of) == ("0", "9999", 1, 4)
    dense_one = np.array([[5, 1], [0, 6]])
    assert np.array_equal(dense(table_of(dense_one), 2), dense_one)


@pytest.mark.parametrize(
    ("names", "natural"),
    [
        (["0", "1", "2"], True),
        (["0", "1", "10", "2"], False),
        (["Robin", "crow"], False),
        (["crow", "robin"], True),
    ],
)
def test_the_class_map_has_the_order_of_the_labels_and_the_card_says_where_timms_reader_has_another(
    tmp_path: Path, names: list[str], natural: bool
) -> None:
    from timm.data.readers.class_map import load_class_map

    (tmp_path / CLASS_MAP).write_bytes(class_map(names))
    assert load_class_map(str(tmp_path / CLASS_MAP)) == {name: label for label, name in enumerate(names)}
    record = ExportRecord.model_validate(recorded())
    words = card(record.model_copy(update={"data": record.data.model_copy(update={"class_names": tuple(names)})}))
    assert f"the lines of `{CLASS_MAP}`" in words
    assert ("timm's own folder reader sorts these classes in another order" in words) is not natural
    assert ("--class-map" in words) is not natural


@pytest.mark.parametrize("name", ["\u00b2", "\u2460", "1\u24602", "3\u00b2"])
def test_the_card_says_that_timms_reader_cannot_sort_a_class(name: str) -> None:
    from timm.utils.misc import natural_key

    with pytest.raises(ValueError, match="invalid literal"):
        natural_key(name)
    record = ExportRecord.model_validate(recorded())
    names = (name, "m\u00b2")  # timm sorts the second one
    words = card(record.model_copy(update={"data": record.data.model_copy(update={"class_names": names})}))
    assert "timm's own folder reader cannot sort 1 of these classes and ends with a ValueError" in words
    assert "in another order" not in words
    assert "--class-map" not in words


def test_class_names_that_timm_would_read_without_their_spaces_are_not_sent_to_its_class_map() -> None:
    record = ExportRecord.model_validate(recorded())
    words = card(record.model_copy(update={"data": record.data.model_copy(update={"class_names": ("Dog", "cat ")})}))
    assert "--class-map" not in words
    assert "without the spaces around them. Rename the folders of such classes" in words


@pytest.mark.parametrize("name", ["B\\xe4r", "two\nlines"])
def test_class_names_that_are_not_those_of_their_folders_are_not_sent_to_timms_class_map(name: str) -> None:
    record = ExportRecord.model_validate(recorded())
    words = card(
        record.model_copy(update={"data": record.data.model_copy(update={"class_names": (name, "Dog", "cat")})})
    )
    assert "--class-map" not in words
    assert "does not have the folder names of 1 of them" in words


def test_a_class_map_keeps_names_that_are_no_text() -> None:
    assert class_map(["caf\udce9", "two\nlines", "\u9ce5"]) == b"caf\xe9\ntwo lines\n\xe9\xb3\xa5\n"


def test_the_card_says_that_a_part_of_the_pictures_was_trained_on() -> None:
    record = ExportRecord.model_validate(recorded())
    data = record.data.model_copy(update={"config": {**record.data.config, "fraction": 0.5}})
    said = "of the training pictures of each class, a share of 0.5 is used"
    assert said not in card(record)
    assert said in card(record.model_copy(update={"data": data}))
