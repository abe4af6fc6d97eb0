"""The scores of an export are scikit-learn's, with intervals that hold what they should."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from exports import recorded
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score, top_k_accuracy_score

from search.export.card import card
from search.export.metrics import Export, section_of, text_of_export
from search.export.record import Evaluation, ExportRecord, Scores
from search.export.scores import (
    ROWS,
    Answers,
    calibration_error,
    class_rows,
    never_predicted,
    score_rows,
    scores_of,
    without_pictures,
)
from trainer.scores import ClassCounts

NAMES = [f"class_{number}" for number in range(8)]


def drawn(n: int, seed: int = 0, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels. Class 6 has no picture; class 7 is never predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 3, 4, 5, 7], size=n, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    logits = rng.normal(size=(n, len(NAMES)))
    logits[np.arange(n), labels] += scale
    logits[:, 7] = -9
    return logits.astype(np.float32), labels


def test_the_scores_are_scikit_learns() -> None:
    logits, labels = drawn(ROWS + 100)
    found = scores_of(Answers.of(logits, labels), labels, NAMES)
    predicted = logits.argmax(1)
    assert set(predicted) == {0, 1, 2, 3, 4, 5, 6}, "a class without a picture is predicted too"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found.macro_f1.value == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
        assert found.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
        each = {"labels": range(8), "average": None, "zero_division": 0}
        precision, recall = precision_score(labels, predicted, **each), recall_score(labels, predicted, **each)
    assert found.top5 is not None
    assert found.top5.value == top_k_accuracy_score(labels, logits, k=5, labels=range(8))
    for number, one in enumerate(found.classes):
        assert (one.name, one.n, one.predicted) == (
            NAMES[number],
            (labels == number).sum(),
            (predicted == number).sum(),
        )
        assert (one.precision is None) == (number == 7), "what is never predicted has no precision"
        assert (one.recall is None) == (number == 6), "what has no picture has no recall"
        assert one.precision is None or one.precision.value == pytest.approx(precision[number])
        assert one.recall is None or one.recall.value == pytest.approx(recall[number])
    assert never_predicted(found) == "Never predicted: class_7."
    assert without_pictures(found, "there").endswith(
        "1 of 8 classes have no picture there, so the scores do not say how well they are recognised: class_6."
    )
    assert "f1_score; 1 of them has no picture, and counts as 0 (" in score_rows(found)["macro F1"]
    counts = ClassCounts.of(np.column_stack([labels, predicted, np.ones_like(labels)]), 8)
    assert counts.macro_f1 == pytest.approx(found.macro_f1.value, abs=1e-12)
    assert counts.balanced_accuracy == pytest.approx(found.balanced_accuracy.value, abs=1e-12)


def test_test_pictures_of_one_class_are_scored_without_a_warning() -> None:
    """All are of class 1 and classified so; scikit-learn warns of that, and warnings are errors here."""
    labels = np.ones(8, np.int64)
    found = scores_of(Answers.of(np.tile(np.float32([0, 3]), (8, 1)), labels), labels, ["crow", "owl"])
    assert found.macro_f1.value == found.balanced_accuracy.value == 1
    assert found.top5 is None, "there are but two classes"
    assert [(one.n, one.f1) for one in found.classes] == [(0, None), (8, 1.0)]


def test_without_a_picture_the_scores_are_0_without_a_warning() -> None:
    counts = ClassCounts.of(np.zeros((0, 3), np.int64), 8)
    assert (counts.macro_f1, counts.balanced_accuracy) == (0, 0)


def test_answers_in_batches_are_those_of_all_at_once() -> None:
    logits, labels = drawn(300)
    whole = Answers.of(logits, labels)
    parts = [Answers.of(logits[start : start + 64], labels[start : start + 64]) for start in range(0, 300, 64)]
    assert scores_of(Answers.joined(parts), labels, NAMES) == scores_of(whole, labels, NAMES)
    assert whole.confidence == pytest.approx(softmax(logits.astype(float), axis=1).max(1))
    assert Answers.of(logits[:, :5], np.minimum(labels, 4)).in_top is None, "of five classes, all are among five"


def test_the_calibration_error_is_the_one_of_its_definition() -> None:
    """Guo et al., 2017, equation 3, written out bin by bin."""
    rng = np.random.default_rng(1)
    confidence, right = rng.uniform(0.2, 1, 500), rng.random(500) < 0.6
    expected = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        chosen = (confidence > low) & (confidence <= high)
        if chosen.any():
            expected += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    assert calibration_error(confidence, right) == pytest.approx(expected)
    assert calibration_error(np.ones(4), np.array([True, True, True, False])) == pytest.approx(0.25)


@pytest.mark.slow
def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """40 draws of 300 pictures; the truth is of 200,000. Of 40 intervals of 95 %, 32 hold it in 999 of 1,000 cases."""
    logits, labels = drawn(200_000)
    truth = ClassCounts.of(np.column_stack([labels, logits.argmax(1), np.ones_like(labels)]), 8)
    held = np.zeros(2)
    for draw in range(40):
        chosen = slice(draw * 300, draw * 300 + 300)
        found = scores_of(Answers.of(logits[chosen], labels[chosen]), labels[chosen], NAMES)
        scores = zip((found.macro_f1, found.balanced_accuracy), (truth.macro_f1, truth.balanced_accuracy), strict=True)
        held += [score.interval[0] <= value <= score.interval[1] for score, value in scores]  # type: ignore[index]
    assert held.min() >= 32


def test_without_a_mistake_a_bootstrap_has_no_interval() -> None:
    labels = np.arange(8).repeat(5)
    found = scores_of(Answers.of(100 * np.eye(8, dtype=np.float32)[labels], labels), labels, NAMES)
    assert (found.macro_f1.value, found.macro_f1.interval) == (1.0, None)
    assert score_rows(found)["macro F1"].startswith("100.00%: the mean over")
    assert found.classes[0].recall is not None
    assert found.classes[0].recall.interval == pytest.approx((0.5655, 1.0), abs=1e-4), "Wilson's knows how few 5 are"


def test_card_and_terminal_tell_the_scores_and_name_the_classes_that_are_never_predicted() -> None:
    logits, labels = drawn(901)
    scores = scores_of(Answers.of(logits, labels), labels, NAMES)
    values = recorded()
    values["evaluation"]["scores"] = scores.to_json()
    record = ExportRecord.model_validate(values)
    assert Scores.model_validate(scores.to_json()) == record.evaluation.scores == scores
    words = card(record)
    for name in ("macro F1", "balanced accuracy", "top-5 accuracy", "calibration error"):
        assert f"| {name} | {score_rows(scores)[name]} |" in words
    assert "15 bins of equal width (Guo et al., 2017; bootstrap over the pictures, 1,000 resamples)" in words
    first = scores.classes[0]
    assert first.recall is not None
    assert f"| class_0 | {first.n} | {first.predicted} |" in words
    assert f" | {first.recall.in_brief} | " in words
    assert "Never predicted: class_7." in words
    assert f"  macro F1    {scores.macro_f1.in_words}" in text_of_export(Export(record, "there")).splitlines()  # type: ignore[arg-type]


def test_classes_without_pictures_are_named_wherever_the_scores_are() -> None:
    labels = np.repeat([0], 30)
    scores = scores_of(Answers.of(np.tile(np.float32([3, 0]), (30, 1)), labels), labels, ["healthy", "s*ck"])
    assert scores.macro_f1.value == 1, "the only class with pictures"
    assert "are predicted, as in scikit-learn's f1_score (boot" in score_rows(scores)["macro F1"]
    values = recorded()
    values["evaluation"] |= {"scores": scores.to_json(), "confused": []}
    record = ExportRecord.model_validate(values)
    told = (
        f"1 of 2 classes have no picture in the {record.evaluation.split} split, so the scores do not say how well "
        "they are recognised: "
    )
    words = card(record)
    assert f"{told}s&#42;ck." in words
    assert "Never predicted: s&#42;ck." in words, "it has no picture, but the model may well never predict it"
    assert f"  no picture  {told}s*ck." in text_of_export(Export(record, "there")).splitlines()  # type: ignore[arg-type]
    assert section_of(record, None).never == f"{told}s*ck. Never predicted: s*ck."


def test_the_card_says_what_a_training_accuracy_is_of() -> None:
    values = recorded()
    assert "curves.csv" not in card(ExportRecord.model_validate(values)), "an export of before has none"
    values["histories"][0][-1]["train_accuracy"] = 0.5
    assert "the accuracy may be lower than on validation. The numbers are in" in card(
        ExportRecord.model_validate(values)
    )
    values["config"]["cutmix"] = 0.5
    assert "A mixture of two pictures counts with the share of" in card(ExportRecord.model_validate(values))


def test_an_export_of_before_has_no_such_scores() -> None:
    record = ExportRecord.model_validate(recorded())
    assert record.evaluation.scores is None
    assert "scores" not in Evaluation.model_validate(recorded()["evaluation"]).to_json()
    assert "macro F1" not in card(record)
    assert "macro F1" not in text_of_export(Export(record, "there"))  # type: ignore[arg-type]


def test_of_many_classes_a_card_lists_those_with_the_lowest_f1() -> None:
    names = [f"class_{number:02}" for number in range(40)]
    labels = np.repeat(np.arange(35), 4)  # classes 35 to 39 have no picture and are never predicted: they have no F1
    logits = 9 * np.eye(40, dtype=np.float32)[labels]
    logits[labels >= 30, :] = np.roll(logits[labels >= 30, :], 4, axis=0)  # 30 to 34 are taken for each other
    listed = [row[0] for row in class_rows(scores_of(Answers.of(logits, labels), labels, names))]
    assert listed == [*names[30:35], *names[:25]]
