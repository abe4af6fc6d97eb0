"""The meaning of the folders in a data folder, splits or classes, from their names and the places of the pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import DataError
from trainer.tree import Folder

__all__ = ["EXPECTED_LAYOUT", "Layout", "read_layout", "split_of"]

EXPECTED_LAYOUT = "CLASS/* or train/CLASS/* (and, if you have them, val/CLASS/* and test/CLASS/*)"

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words that name it, alone or among other words: seg_train, Test-Set."""

UNLABELLED_WORDS = {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"}
"""Words that name a folder of pictures to predict, next to splits: seg_pred."""

WRAPPER_WORDS = {"data", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "unknown"}
"""Words that name a single folder of unlabelled pictures in a test folder: test/images."""


@dataclass(frozen=True)
class Layout:
    """The folders of each split's classes."""

    parts: Sequence[tuple[str, Folder]]
    """Pairs of a split and the folder that holds its class folders."""
    notices: Sequence[str] = ()
    """A sentence for everything that was ignored, or that may have another meaning."""
    is_plain: bool = True
    """Whether no folder's name contradicts this layout; False for a single folder."""


def split_of(name: str) -> str | None:
    """The split that a folder's name contains as a word, in upper or lower case; None if there is none or several.

    Words are separated by ``_``, ``-``, ``.``, a space, or an upper-case letter. A split's word may end in "set" and
    in digits.

    >>> split_of("seg_train"), split_of("Test-Set"), split_of("trains"), split_of("train_test")
    ('train', 'test', None, None)
    >>> split_of("val2017"), split_of("trainset"), split_of("testImages")
    ('val', 'train', 'test')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = {re.sub(r"(?<=.)(set)?\d*$", "", word) for word in _words(spaced)}
    found = [split for split, synonyms in SPLIT_WORDS.items() if words & set(synonyms)]
    return found[0] if len(found) == 1 else None


def _words(name: str) -> set[str]:
    return set(re.split(r"[-_. ]+", name.lower()))


def read_layout(root: Folder, where: str, *, needs_train: bool = True) -> Layout:
    """Decide whether the folders of ``root`` are splits or classes.

    They are splits if every folder with pictures has the name of a split, and classes otherwise. If they are splits,
    folders without pictures are ignored. Test pictures outside class folders are unlabelled, and are left out.

    Args:
        root: the data folder.
        where: path of the data folder, for messages.
        needs_train: whether splits without train are an error.

    Raises:
        DataError: the folders are splits, but train is missing, has no class folder, or exists twice; or the folders
            are neither splits nor classes, because all of them hold the same folders.
    """
    named = [folder for folder in root.folders if split_of(folder.base)]
    holding = [folder for folder in root.folders if folder.holds_pictures]
    if not holding:  # no file has the ending of a picture
        holding = [folder for folder in root.folders if any(folder.walk())] or list(root.folders)
    # A folder train_labels with tables is not a split. An empty test folder is a split without pictures.
    named = [folder for folder in named if folder in holding or not any(folder.walk())]
    unlabelled = [one for one in holding if _words(one.base) & UNLABELLED_WORDS and not _class_folders(one)]
    if named and all(split_of(folder.base) for folder in holding if folder not in unlabelled):
        if needs_train and not any(split_of(folder.base) == "train" for folder in named):
            raise DataError(
                f"{where} holds {_names(named)}, which {'name splits' if len(named) > 1 else 'names a split'}, and no "
                f"train folder; expected is {EXPECTED_LAYOUT}; if they are classes, rename them"
            )
        return _splits(named, unlabelled, where)
    _refuse_shared_names(holding, where)
    notices = _loose_pictures(root)
    if beside := [folder for folder in named if folder in holding]:
        others = [folder for folder in holding if folder not in named]
        notices.append(
            f"{_names(beside)} {'are' if len(beside) > 1 else 'is'} taken for {_a_class(beside)}, not for "
            f"{'splits' if len(beside) > 1 else 'a split'}, because {_names(others)} "
            f"{'name' if len(others) > 1 else 'names'} no split; if "
            f"{'they are splits' if len(beside) > 1 else 'it is one'}, move {_names(others)} elsewhere"
        )
    return Layout([("train", root)], notices, is_plain=not beside and len(holding) > 1)


def _splits(named: list[Folder], unlabelled: list[Folder], where: str) -> Layout:
    splits = [(str(split_of(folder.base)), folder) for folder in named]
    count = Counter(split for split, _ in splits)
    if twice := [folder for split, folder in splits if count[split] > 1]:
        raise DataError(
            f"{where} holds {' and '.join(folder.base for folder in twice)}, which mean the same split; keep one of "
            f"them; expected is {EXPECTED_LAYOUT}"
        )
    parts = [(split, _without_wrapper(folder, split)) for split, folder in splits]
    classes = {one.base for split, part in parts if split == "train" for one in _holding(part)}
    notices = [_passed_over(folder, where) for folder in unlabelled]
    labelled = []
    for split, part in parts:
        if split == "test" and _is_unlabelled(part, classes):
            notices.append(_passed_over(part, where))
            continue
        if part.pictures and not _holding(part):
            raise DataError(
                f"{where}: {part.name} holds pictures ({part.pictures[0].name}) and no class folder, so their "
                f"classes are not known; expected is {EXPECTED_LAYOUT}"
            )
        labelled.append((split, part))
        notices += _loose_pictures(part)
    return Layout(labelled, notices)


def _holding(folder: Folder) -> list[Folder]:
    return [one for one in folder.folders if one.holds_pictures]


def _class_folders(folder: Folder) -> list[Folder]:
    """The folders inside that hold pictures; none if there is only one, because it may be a wrapper: test/images."""
    holding = _holding(folder)
    return holding if len(holding) > 1 else []


def _is_unlabelled(test: Folder, classes: set[str]) -> bool:
    """Whether a test folder's pictures are in no class folder: directly in it, or in a wrapper."""
    wrapping = WRAPPER_WORDS | UNLABELLED_WORDS | set(SPLIT_WORDS["test"])
    inner = _holding(test)
    if len(inner) > 1 or not test.holds_pictures:
        return False
    return all(one.base not in classes and _words(one.base) & wrapping for one in inner)


def _passed_over(folder: Folder, where: str) -> str:
    inner = folder if folder.pictures else (_holding(folder) or [folder])[0]
    count = sum(file.is_picture for file in folder.walk())
    pictures = f"{count:,} pictures" if count > 1 else "1 picture"
    return (
        f"{folder.name}: {pictures} in no class folder, so unlabelled and not used; an exported model classifies "
        f"them: search predict EXPORT {where}/{inner.name}"
    )


def _without_wrapper(folder: Folder, split: str) -> Folder:
    """The folder itself, or the single folder inside that names the same split again: seg_train/seg_train/CLASS."""
    holding = _holding(folder)
    if len(holding) == 1 and split_of(holding[0].base) == split and not folder.pictures:
        return holding[0]
    return folder


def _refuse_shared_names(tops: list[Folder], where: str) -> None:
    """Raise if folders without pictures hold folders of the same names: they are parts of a data set, not classes."""
    apart = [folder for folder in tops if not folder.pictures]
    names = [{one.base for one in folder.folders if any(one.walk())} for folder in apart]
    count = Counter(name for found in names for name in found)
    shared = sorted(name for name, number in count.items() if number > 1)
    parts = [folder for folder, found in zip(apart, names, strict=True) if found & set(shared)]
    if len(shared) < 2 or len(shared) <= len(count) / 2:  # a single name may be a wrapper: cat/images, dog/images
        return
    raise DataError(
        f"{where}: {_names(parts)} hold no pictures themselves, but the same folders ({', '.join(shared[:3])}"
        f"{', ...' if shared[3:] else ''}); if those are the classes, expected is {EXPECTED_LAYOUT}; if "
        f"{_names(parts)} are, put them into a folder train: train/CLASS/*"
    )


def _loose_pictures(folder: Folder) -> list[str]:
    """A sentence about pictures beside class folders, if there are any."""
    loose = folder.pictures
    if not loose or not folder.folders:
        return []
    what = f"1 picture lies ({loose[0].name})" if len(loose) == 1 else f"{len(loose):,} pictures lie"
    first = "" if len(loose) == 1 else f", the first: {loose[0].name}"
    verb = "is" if len(loose) == 1 else "are"
    return [f"{what} beside the class folders, not in one, and {verb} not used{first}"]


def _names(folders: Sequence[Folder]) -> str:
    names = [folder.base for folder in folders]
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _a_class(folders: Sequence[Folder]) -> str:
    return "a class" if len(folders) == 1 else "classes"
