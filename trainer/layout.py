"""The meaning of the folders in a data folder, splits or classes, from their names and the places of the pictures."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.errors import DataError
from trainer.masks import masks_inside, refuse_masks_beside_pictures
from trainer.shards import refuse_shards
from trainer.split_names import UNLABELLED_WORDS, WRAPPER_WORDS, rest_of, split_of, splits_of, words_of
from trainer.tree import ARCHIVE, Folder
from trainer.unclear import (
    EXPECTED_LABELS,
    EXPECTED_LAYOUT,
    copies_among,
    names_of,
    part_of,
    refuse_masks,
    refuse_same_splits,
    refuse_unclear,
    unwrapped,
)

__all__ = ["Layout", "read_layout"]


@dataclass(frozen=True)
class Layout:
    """The folders of each split's classes."""

    parts: Sequence[tuple[str, Folder]]
    """Pairs of a split and the folder that holds its class folders."""
    notices: Sequence[str] = ()
    """Sentences about pictures and folders that were ignored, or that may have another meaning."""
    has_splits: bool = True
    """Whether the folders are splits; False: they are classes."""
    is_plain: bool = True
    """Whether the layout is certain. False: a class has a split's name, the folders are classes and there is
    only one, or ``below`` is set."""
    below: Folder | None = None
    """The folder that holds the splits or the classes, if it is not the data folder itself but in it: archive of
    archive/train/CLASS, data of data/CLASS."""

    @property
    def train_classes(self) -> list[Folder]:
        """The class folders with pictures from which a model is trained."""
        return [folder for split, part in self.parts if split == "train" for folder in part.holding]

    @property
    def only_texts(self) -> list[str]:
        """The names of folders beside class folders that have only texts and annotations (gt_query, with .mat files).
        They are no classes, unless another split has a class of this name."""
        folders = [folder for _, part in self.parts for folder in part.folders]
        found = {folder.name for folder in folders if _has_only_texts(folder)}
        classes = {folder.base for folder in folders if folder.name not in found}
        return [one.name for one in folders if classes and one.name in found and one.base not in classes]


def read_layout(root: Folder, where: str, *, needs_train: bool = True) -> Layout:
    """Decide whether the folders of ``root`` are splits or classes.

    They are splits if every folder with pictures has the name of a split, or a name for unlabelled pictures. Otherwise
    they are classes, unless their contents contradict that (``refuse_unclear``). If only one folder holds pictures, the
    folders in it are read. Three kinds of folders are left out: copies; folders without pictures beside splits,
    except an empty one with the name of a split; and unlabelled test pictures, which are in no class folder.

    Args:
        root: the data folder, or a folder in it.
        where: path of the data folder, for messages.
        needs_train: whether splits without train are an error.

    Raises:
        DataError: the folders are splits, but train is missing, a split exists twice, or train or val has no class
            folder; or a folder holds masks; or the folders are neither splits nor classes.
    """
    place = f"{where}/{root.name}" if root.name else where
    tops = root.holding  # empty if no file has the ending of a picture
    tops = tops or [folder for folder in root.folders if any(folder.walk())] or list(root.folders)
    copies = copies_among(tops)
    tops = [folder for folder in tops if folder.name not in copies]
    notices = list(copies.values())
    # A folder train_labels with tables is not a split. An empty test folder is a split without pictures.
    top_names = {folder.name for folder in tops}
    named = [folder for folder in root.folders if folder.name in top_names or not any(folder.walk())]
    splits = splits_of(named)
    named = [folder for folder in named if folder.name in splits]
    unlabelled = [one for one in tops if words_of(one.base) & UNLABELLED_WORDS and len(one.holding) < 2]
    if named and all(folder in named or folder in unlabelled for folder in tops):
        if needs_train and "train" not in splits.values():
            raise DataError(
                f"{place} holds {names_of(named)}, which {'name splits' if len(named) > 1 else 'names a split'}, and "
                f"no train folder; expected is {EXPECTED_LAYOUT}; if they are classes, rename them"
            )
        notices += _archives(root)
        return _splits(where, [(splits[folder.name], folder) for folder in named], unlabelled, notices)
    named = [folder for folder in named if folder.name in top_names]
    if len(tops) == 1 and (inner := unwrapped(tops[0])).holding:
        found = read_layout(inner, where, needs_train=needs_train)
        if found.has_splits or len(found.train_classes) > 1:
            return replace(found, is_plain=False, below=inner)
    refuse_shards(place, tops)
    refuse_unclear(place, where, tops, {folder.name: splits[folder.name] for folder in named})
    if any(map(_has_only_texts, root.folders)):
        _refuse_set(place, named, [folder for folder in tops if folder not in named], splits)
    notices += _loose_pictures(root) + _archives(root) + _index(tops) + masks_inside(tops)
    if named:
        notices.append(_taken_for_classes(named, [folder for folder in tops if folder not in named], splits))
    if unlabelled:
        one = len(unlabelled) == 1
        notices.append(
            f"{names_of(unlabelled)} {'is' if one else 'are'} taken for {_a_class(unlabelled)}; if "
            f"{'its' if one else 'their'} pictures have no class, move {'it' if one else 'them'} elsewhere"
        )
    folders = tuple(folder for folder in root.folders if folder.name not in copies)
    is_plain = not named and len(tops) > 1
    return Layout([("train", replace(root, folders=folders))], notices, has_splits=False, is_plain=is_plain)


def _has_only_texts(folder: Folder) -> bool:
    return any(folder.walk()) and all(file.is_text for file in folder.walk())


def _refuse_set(place: str, named: Sequence[Folder], others: Sequence[Folder], splits: Mapping[str, str]) -> None:
    """Raise if folders differ only in the split's word: bounding_box_train, bounding_box_test. If a folder of texts is
    beside them (gt_query), they are those of a data set, and no classes."""
    rests = [rest for folder in named if (rest := rest_of(folder.base))]
    if len(rests) > len(set(rests)) and "train" in {splits[folder.name] for folder in named}:
        raise DataError(
            f"{place}: {names_of(named)} name splits, and {names_of(others)} {'name' if others[1:] else 'names'} none; "
            f"move {names_of(others)} elsewhere; if all of them are classes, put all of them into a folder train"
        )


def _taken_for_classes(named: Sequence[Folder], others: Sequence[Folder], splits: Mapping[str, str]) -> str:
    """A sentence that folders with the names of splits are taken for classes, because others name no split."""
    one, all_others = len(named) == 1, names_of(others)
    has_train = any(splits[folder.name] == "train" for folder in named)
    cure = f"move {all_others} elsewhere" if has_train else f"put {all_others} into a folder train"
    return (
        f"{names_of(named)} {'is' if one else 'are'} taken for {_a_class(named)}, not for "
        f"{'a split' if one else 'splits'}, because {all_others} {'name' if len(others) > 1 else 'names'} no split; "
        f"if {'it is one' if one else 'they are splits'}, {cure}"
    )


def _splits(where: str, splits: Sequence[tuple[str, Folder]], unlabelled: list[Folder], notices: list[str]) -> Layout:
    """The layout of folders that are splits, without unlabelled test pictures."""
    count = Counter(split for split, _ in splits)
    training = [folder for split, folder in splits if split == "train"]
    classes = {one.base for folder in training for one in part_of(folder, "train").holding}
    known = classes | {rest_of(folder.base) for folder in training}
    kept = []
    for split, folder in splits:
        # True for test_real beside train_real, False for "images to predict test".
        is_class = rest_of(folder.base) in known - {""}
        if split == "test" and count["test"] > 1 and not folder.holding and not is_class:
            unlabelled = [*unlabelled, folder]
        else:
            kept.append((split, folder))
    refuse_same_splits(where, kept)
    parts = [(split, part_of(folder, split)) for split, folder in kept]
    notices = notices + [_passed_over(folder, where) for folder in unlabelled]
    labelled = []
    for split, part in parts:
        refuse_shards(f"{where}/{part.name}", part.holding)
        refuse_masks(where, part.holding)
        refuse_masks_beside_pictures(where, [part])
        if _is_unlabelled(part, split, classes):
            if split != "test":
                raise DataError(_without_classes(where, part, [folder for _, folder in splits]))
            notices.append(_passed_over(part, where))
            continue
        labelled.append((split, part))
        notices += _loose_pictures(part) + _archives(part) + _index(part.holding)
    notices += masks_inside([folder for _, part in labelled for folder in part.holding])
    return Layout(labelled, notices)


def _without_classes(where: str, part: Folder, named: Sequence[Folder]) -> str:
    as_classes = ""
    if not any(split_of(folder.base) for folder in named):  # classes that read as splits: Trainer and Tester
        inside = " and ".join(f"train/{folder.base}" for folder in named)
        as_classes = f"; the names {names_of(named)} read as splits; if they are the classes, move them to {inside}"
    first = next(file for file in part.walk() if file.is_picture)
    return (
        f"{where}: {part.name} holds pictures ({first.name}) and no class folder, so their classes are not known; "
        f"expected is {EXPECTED_LABELS}{as_classes}"
    )


def _is_unlabelled(part: Folder, split: str, classes: set[str]) -> bool:
    """Whether a split's pictures are in no class folder, but directly in the split's folder or in a wrapper."""
    wrapping = WRAPPER_WORDS | UNLABELLED_WORDS
    inner = part.holding
    if len(inner) > 1 or not part.holds_pictures:
        return False
    known = classes if split != "train" else set()
    return all(
        one.base not in known
        and (words_of(one.base) & wrapping or words_of(one.base) <= {"all", "classes"} or split_of(one.base) == split)
        for one in inner
    )


def _passed_over(folder: Folder, where: str) -> str:
    inner = folder if folder.pictures else (folder.holding or [folder])[0]
    count = sum(file.is_picture for file in folder.walk())
    pictures = f"{count:,} pictures" if count > 1 else "1 picture"
    return (
        f"{folder.name}: {pictures} in no class folder, so unlabelled and not used; an exported model classifies "
        f"them: search predict EXPORT {shlex.quote(f'{where}/{inner.name}')}"
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


def _index(folders: Sequence[Folder]) -> list[str]:
    """A sentence if folders are an index by first letters: a/abbey/1.jpg, or 4/f/4f1c.jpg."""
    if len(folders) < 2 or any(len(folder.base) > 1 or folder.pictures for folder in folders):
        return []
    for folder in folders:
        for inner in folder.holding:
            letters = (folder.base + inner.base).lower()
            is_letter = len(inner.base) == 1
            names = [file.base for file in inner.walk() if file.is_picture] if is_letter else [inner.base]
            start = letters if is_letter else letters[0]
            if not all(name.lower().startswith(start) for name in names):
                return []
    return [
        f"{names_of(folders)} seem to be an index, because the names in each of them begin with its letter; if the "
        "folders in them are the classes, move these up; if the classes are in a table, name it (data.labels)"
    ]


def _archives(folder: Folder) -> list[str]:
    """A sentence about archives beside folders. One with the name of a folder was extracted, and does not count."""
    names = {one.base.lower() for one in folder.folders}
    stems = [(file, found[1].lower()) for file in folder.files if (found := ARCHIVE.fullmatch(file.base))]
    packed = [file.name for file, stem in stems if stem not in names]
    if not packed:
        return []
    if len(packed) == 1:
        return [f"{packed[0]} is an archive, so it is not read; if a class or a split is in it, extract it"]
    return [
        f"{len(packed):,} files are archives, so they are not read, the first: {packed[0]}; if classes or splits are "
        "in them, extract them"
    ]


def _a_class(folders: Sequence[Folder]) -> str:
    return "a class" if len(folders) == 1 else "classes"
