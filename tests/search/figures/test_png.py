"""Figures of an export: whatever classes are called, they are drawn, and nothing warns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import search.figures.png
from search.export.card import _cell
from search.figures.confusion import table_of
from search.figures.png import CurvePoint, draw_confusion, draw_curves, draw_values, numbered, write_curves

ODD = {
    "a formula": r"$\mathds{R}$",
    "one dollar": "$5",
    "two dollars": "$5 to $9",
    "Korean": "참새",
    "Chinese": "麻雀",
    "Arabic": "عصفور",
    "markup": "<b>[red]*bold*_",
    "an escape": "\x1b[31mred",
    "a line break": "two\nlines",
    "bytes that are no letters": "caf\udce9",
    "NFD": "e\u0301tourneau",
    "very long": "x" * 250,
    "a letter of nobody": "\U000e0001\U0010ffff",
}


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_a_class_of_any_name_is_drawn(name: str, tmp_path: Path) -> None:
    file = tmp_path / "confusion.png"
    draw_confusion(table_of(np.eye(2, dtype=np.int64) * 5), ["plain", name], file, title="two classes")
    with Image.open(file) as drawn:
        assert drawn.size[0] > 300


def test_the_curve_of_a_series_of_trainings_has_a_gap_where_one_begins_anew(tmp_path: Path) -> None:
    def blue_columns(trainings: list[dict[int, float]]) -> list[int]:
        draw_values(trainings, tmp_path / "curve.png", title="", step="epoch", objective="accuracy")
        pixels = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")).astype(int)
        blue = (abs(pixels - (0x1F, 0x5F, 0xA8)).sum(axis=2) < 30).any(axis=0)
        return [int(column) for column in np.flatnonzero(blue)]

    one = np.diff(blue_columns([{1: 0.5, 2: 0.9, 3: 0.2, 4: 0.8}]))
    two = np.diff(blue_columns([{1: 0.5, 2: 0.9}, {3: 0.2, 4: 0.8}]))
    assert max(one) < 5
    assert max(two) > 50


def test_classes_whose_letters_no_font_has_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.figures.png, "fonts_for", lambda text: None if "참" in text else ["DejaVu Sans"])
    assert numbered(["crow", "참새"]) == {1: "crow", 2: "참새"}
    assert numbered(["crow", "owl"]) == {}


def test_plain_names_have_the_default_font_alone() -> None:
    assert search.figures.png.fonts_for("crow, étourneau") == ["DejaVu Sans"]


def test_a_font_of_boxes_alone_is_no_font() -> None:
    """Matplotlib brings one along that has each letter of Unicode; this letter is in no other font (private use)."""
    assert search.figures.png.fonts_for("crow \U000f1234") is None


def test_a_name_in_the_card_is_no_markup() -> None:
    assert _cell("<script>alert(1)</script>") == "&#60;script&#62;alert(1)&#60;/script&#62;"
    assert _cell("a|b") == "a&#124;b"
    assert _cell("$x$ [l](u) *b* _i_ snake_case") == "&#36;x&#36; &#91;l&#93;(u) &#42;b&#42; &#95;i&#95; snake_case"
    assert _cell("red\x1b[31m\nline") == "red&#92;x1b&#91;31m&#92;nline"
    assert _cell("참새") == "참새"


def history(*accuracies: float | None) -> list[CurvePoint]:
    return [
        CurvePoint(
            stage="training", epoch=epoch, train_loss=1.5, val_loss=0.5, val_accuracy=0.9, train_accuracy=accuracy
        )
        for epoch, accuracy in enumerate(accuracies, 1)
    ]


def test_the_accuracy_on_the_training_pictures_is_drawn_and_written(tmp_path: Path) -> None:
    for name, drawn in (("without", history(None, None)), ("with", history(0.25, 0.75))):
        draw_curves([drawn], tmp_path / f"{name}.png", title="curves", seen=False)
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    write_curves([history(0.25, 0.75), history(None)], tmp_path / "curves.csv")
    head, *lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert head == (
        "member,stage,epoch,train_loss,train_accuracy,val_loss,val_accuracy,val_macro_f1,val_balanced_accuracy"
    )
    assert lines == [
        "1,training,1,1.5,0.25,0.5,0.9,,",
        "1,training,2,1.5,0.75,0.5,0.9,,",
        "2,training,1,1.5,,0.5,0.9,,",
    ]
