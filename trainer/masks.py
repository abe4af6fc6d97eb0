"""Masks of data for segmentation, in folders or beside their pictures: they are no pictures to train on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from trainer.errors import DataError
from trainer.split_names import WRAPPER_WORDS, words_of
from trainer.tree import File, Folder

__all__ = ["MASK_WORDS", "masks_among", "masks_inside", "refuse_masks_beside_pictures"]

IMAGE_WORDS = WRAPPER_WORDS | {"input", "inputs", "jpegimages", "jpg", "jpeg", "original", "originals", "png", "rgb"}
MASK_WORDS = {
    *("anno", "annotation", "annotations", "groundtruth", "gt", "label", "labels", "mask", "masks", "matte", "mattes"),
    *("seg", "segmentation", "segmentations", "target", "targets", "trimaps", "truth"),
}
"""Words that name a folder with the answers of a data set for segmentation or detection."""

MASK_ENDING = re.compile(r"[-_. ](annotation|gt|label|mask|seg|segmentation|superpixel)s?([-_]?\d+)?$", re.IGNORECASE)
"""Ending of the name of a mask, which the name of its picture does not have: 000_mask.png, 000_mask_1.png."""


def masks_among(folders: Sequence[Folder], *, same_name: bool = False) -> Iterator[tuple[Folder, Folder]]:
    """The folders that seem to hold masks, each with the folder of their pictures: one of a name such as images, or,
    with ``same_name``, of the name of the masks' folder without the word for masks (Trout beside Trout GT)."""
    masks = [one for one in folders if words_of(one.base) & MASK_WORDS]
    others = [(one, words) for one in folders if not (words := words_of(one.base)) & MASK_WORDS]
    for mask in masks if others else ():
        name = words_of(mask.base) - MASK_WORDS if same_name else set()
        images = [one for one, words in others if words & IMAGE_WORDS or words == name != set()]
        known = {MASK_ENDING.sub("", _stem(file)) for file in mask.walk() if file.is_picture} if images else set()
        for image in images:
            pictures = [file for file in image.walk() if file.is_picture]
            if sum(_stem(file) in known for file in pictures) > len(pictures) / 2:
                yield mask, image


def masks_inside(classes: Sequence[Folder]) -> list[str]:
    """A sentence about folders inside class folders that may hold masks; earlier versions trained on them, too."""
    inside = [one.holding for folder in classes for one in folder.tree()]
    found = [one for folders in inside for one in masks_among(folders, same_name=True)]
    return [
        f"{mask.name} holds pictures of the same names as {image.name}, so it may hold masks, and these are trained as "
        f"pictures of their class{f' (so are those of {len(found) - 1:,} more such folders)' if found[1:] else ''}; if "
        "they are masks, move such folders elsewhere"
        for mask, image in found[:1]
    ]


def refuse_masks_beside_pictures(place: str, folders: Sequence[Folder]) -> None:
    """Raise if a third of the pictures in a folder, at any depth, have the names of masks of others: X_mask beside X.

    A few such names are accidents: box_label.jpg beside box.jpg.
    """
    masks: list[tuple[File, File]] = []
    for folder in (one for top in folders for one in top.tree() if one.pictures):
        known = {_stem(file): file for file in folder.pictures}
        plain = ((file, MASK_ENDING.sub("", _stem(file))) for file in folder.pictures)
        found = [(file, known[stem]) for file, stem in plain if stem in known and stem != _stem(file)]
        masks += found if 3 * len(found) >= len(folder.pictures) else []
    if masks:
        mask, picture = masks[0]
        files = f"{len(masks):,} files have the names" if len(masks) > 1 else "1 file has the name"
        raise DataError(
            f"{place}: {files} of masks of pictures beside them, as in data for segmentation: {mask.name} beside "
            f"{picture.base}; move the masks out of the data folder; if they are pictures to train on, rename them"
        )


def _stem(file: File) -> str:
    return file.base.rpartition(".")[0]
