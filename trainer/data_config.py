"""Frozen values: the pictures, and how each becomes the input of a model. Does not import torch."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from trainer.results import Shape
from trainer.values import FrozenModel, expanded


class Columns(FrozenModel):
    """Names of the columns of label tables. Needed only if a name differs from the defaults."""

    file: str | None = None
    """Names or ids of the pictures. Default: id, image, image_id, image_name, image_path, img, img_path, file,
    file_name, filename, file_path, filepath, filepaths or path."""
    label: str | None = None
    """Classes. Default: label, class, target, labels, class_name, classname, class_id, classid, category or
    choice."""
    split: str | None = None
    """Splits: train, val, test or other usual names of these. Default: split, if a column of this name has splits."""
    group: str | None = None
    """Groups of pictures that no split may divide, such as patients or videos. Default: group, if there is one."""


class DataConfig(FrozenModel):
    """The pictures, their size, and how they are split."""

    source: Literal["folder", "digits", "cifar10", "cifar100"] = "folder"
    """Where pictures come from: a folder, scikit-learn's built-in digits, or a torchvision data set."""
    path: str | None = None
    """Folder with the pictures: CLASS/* to be split, or train/CLASS/* with val/ and test/ where they exist. Other
    usual names of splits work too (Training, valid, dev, seg_test, eval-set).
    For cifar10 and cifar100 it may also be torchvision's own download folder. Usually given as --data. A relative
    path starts from the folder in which the command runs."""
    labels: str | None = None
    """CSV or TSV file with the class of each picture; its path is relative to ``path``. Its first line names the
    columns. A row without a label is an unlabelled picture. With a table, the names of folders have no meaning."""
    test_labels: str | None = None
    """CSV or TSV file of the same form for the test split."""
    columns: Columns | None = None
    """Columns of the tables, for example { file = "name", label = "species" }. Default: found by name."""
    group_by: str | None = None
    """Regular expression that is searched in each file's name (in its path if the expression has a slash). Pictures
    with the same match are never divided by a drawn split or fold. If the expression has a group in parentheses,
    the first group counts instead of the match. Default: none."""
    image_size: int = Field(224, ge=8, le=1024)
    """Height and width in pixels of the model's input."""
    cache_size: int | None = Field(None, ge=9, le=2048)
    """Height and width in pixels of the cached pictures, above image_size. random_crop and random_resized_crop cut
    training pictures from them, and their margin fills the parts that a rotation or a shift uncovers. Validation,
    exports and plain epochs use the centre, as with crop_pct = image_size / cache_size. Default: image_size, no
    margin."""
    resize: Literal["crop", "squash"] = "crop"
    """crop: the shorter side is resized to image_size, or to more with crop_pct or cache_size; then the centre square
    is cut. squash: both sides are resized to that length; the rest is the same."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Filter of the resize, by Pillow, with antialiasing."""
    crop_pct: float = Field(1.0, gt=0, le=1)
    """Share of the resized picture's side that the crop keeps (timm's crop_pct): with 0.875 and image_size 224, a
    picture is resized to 256 and cropped to 224."""
    background: Literal["keep", "grabcut"] = "keep"
    """grabcut: OpenCV's GrabCut makes the background of each picture black before anything else, in training and
    wherever the model is used. It takes about 80 ms a picture and is often wrong: the contest team that tried it
    reported that it hurt."""
    channels: Literal[1, 3] = 3
    """3: RGB. 1: gray, for models of one channel."""
    normalize: Literal["imagenet", "dataset"] = "imagenet"
    """Source of the mean and standard deviation that normalise the pictures: ImageNet, or the training split."""
    val_fraction: float = Field(0.1, gt=0, lt=0.9)
    """Share of the training pictures that is held out for validation, after those for test were held out. Unused if the
    source has a validation split."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of each class's training pictures that is used, at least one picture of each class, drawn by split_seed.
    Validation and test split are not reduced."""
    test_fraction: float = Field(0.0, ge=0, lt=0.9)
    """Share of the training pictures held out as test split if the source has none. 0: no test split is drawn."""
    stratified: bool = True
    """true: each drawn split has nearly the same share of every class. false: classes have no part in the draw."""
    folds: int = Field(0, ge=0)
    """2 or more: cross-validation; a trial trains once for each fold, and its value is the mean over the folds.
    0: one validation split."""
    split_seed: int = Field(0, ge=0)
    """Seed of the drawn splits, and of the folds."""
    bad_files: Literal["fail", "skip"] = "fail"
    """Files that cannot be read; also, with a table, rows without a file; and pictures without a row, in folders where
    others have one. fail: list them all and stop. skip: list them all and go on without them."""

    def shape_for(self, num_classes: int) -> Shape:
        """The shape for which a model of these images is built."""
        return Shape(num_classes, self.image_size, self.channels)

    @property
    def cached_side(self) -> int:
        """Height and width in pixels of the cached pictures."""
        return self.cache_size or self.image_size

    @property
    def scaled_side(self) -> int:
        """Pixels to which the shorter side of a picture is resized before the crop (both sides, if squashed)."""
        return self.cache_size or math.floor(self.image_size / self.crop_pct)

    @property
    def evaluated_crop_pct(self) -> float:
        """The crop_pct with which timm's evaluation cuts the same centre from a picture."""
        if self.cache_size is None:
            return self.crop_pct
        share = self.image_size / self.cache_size
        # timm takes floor(image_size / crop_pct). In floating point 8 / (8 / 93) is below 93, and timm would take 92.
        return share if math.floor(self.image_size / share) == self.cache_size else math.nextafter(share, 0)

    @property
    def tables_inside(self) -> dict[str, str]:
        """``labels`` and ``test_labels``, if they are set and in the data folder, relative to it."""
        found, folder = dict[str, str](), Path(self.path or "")
        for setting, given in (("labels", self.labels), ("test_labels", self.test_labels)):
            if given is not None:
                written = expanded(given)
                table = Path(os.path.normpath(folder / written))
                if table.is_relative_to(folder):
                    found[setting] = table.relative_to(folder).as_posix() if written.is_absolute() else given
        return found

    @property
    def named_tables(self) -> dict[str, str]:
        """``labels`` and ``test_labels``, if set, in a form for other people. A table outside the data folder is given
        by its name alone, because its path is private."""
        given = {"labels": self.labels, "test_labels": self.test_labels}
        return {name: Path(table).name for name, table in given.items() if table is not None} | self.tables_inside

    def crop_problem(self, random_crop: float) -> str | None:
        """Why ``random_crop`` has no effect, and the cure; None if it is 0 or has an effect."""
        if not random_crop or self.cache_size is not None:
            return None
        return (
            f"random_crop = {random_crop:g} has no effect without data.cache_size; for pictures of {self.image_size} "
            f"px, set for example data.cache_size = {round(self.image_size * 8 / 7)}"
        )

    @field_validator("path")
    @classmethod
    def _path_is_the_same_everywhere(cls, path: str | None) -> str | None:
        return None if path is None else str(expanded(path).absolute())

    @model_validator(mode="after")
    def _digits_need_no_folder(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds = 1 leaves nothing to train on; use 0 for one validation split, or at least 2")
        if self.source == "digits" and self.path is not None:
            raise ValueError(f'path = {self.path!r}: the digits are built in; use source = "folder" for your pictures')
        return self

    @model_validator(mode="after")
    def _cache_has_a_margin(self) -> Self:
        if self.cache_size is not None and self.cache_size <= self.image_size:
            raise ValueError(
                f"cache_size = {self.cache_size} must be above image_size = {self.image_size}; without random crops, "
                "leave it out"
            )
        if self.cache_size is not None and self.crop_pct != 1:
            raise ValueError(
                f"cache_size = {self.cache_size} and crop_pct = {self.crop_pct:g} both set the size before the crop; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_of_a_folder(self) -> Self:
        if self.labels is not None and self.source != "folder":
            raise ValueError(f'labels = {self.labels!r}: {self.source} has labels of its own; use source = "folder"')
        if self.labels is None and (self.test_labels is not None or self.columns is not None):
            name = "columns" if self.test_labels is None else "test_labels"
            raise ValueError(f"{name} would be ignored without labels; name the table of the training pictures too")
        if self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                raise ValueError(f"group_by = {self.group_by!r} is not a regular expression: {error}") from None
        return self
