"""The output of ``search predict``, and the files that it refuses."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from search.console import Terminal
from search.export.files import Preprocessing, read_images
from search.export.predict import Class, Prediction, Predictions, text_of_prediction
from trainer.errors import DataError


def test_the_name_of_a_picture_stands_in_one_line_in_a_pipe() -> None:
    name = f"pictures/{'long' * 30}.png"
    pipe = io.StringIO()
    answer = Predictions((Prediction(name, (Class("robin", 0.75), Class("wren", 0.25))),))
    Terminal(file=pipe).print(text_of_prediction(answer), soft_wrap=True)
    assert [line.split() for line in pipe.getvalue().splitlines()[1:]] == [
        [name, "robin", "75.00%"],
        ["wren", "25.00%"],
    ]


def test_a_folder_in_place_of_a_picture_is_told_with_its_cure(tmp_path: Path) -> None:
    preprocessing = Preprocessing(
        input_size=(1, 8, 8), interpolation="bicubic", crop_pct=1.0, crop_mode="center", mean=(0.5,), std=(0.5,)
    )
    with pytest.raises(DataError, match="is a folder; give the files in it"):
        read_images([tmp_path], preprocessing)
