"""Refusals of folders that are neither splits nor classes: each says in one sentence what was found, and the cure."""

from __future__ import annotations

import filecmp
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

from trainer.errors import DataError
from trainer.masks import MASK_WORDS, masks_among, refuse_masks_beside_pictures
from trainer.split_names import WRAPPER_WORDS, rest_of, split_of, splits_of, words_in_order, words_of
from trainer.tree import File, Folder

__all__ = [
    "EXPECTED_LABELS",
    "EXPECTED_LAYOUT",
    "copies_among",
    "describes_objects",
    "names_of",
    "option_for",
    "part_of",
    "refuse_masks",
    "refuse_same_splits",
    "refuse_unclear",
    "unwrapped",
]

EXPECTED_LAYOUT = "CLASS/* or train/CLASS/* (and, if you have them, val/CLASS/* and test/CLASS/*)"
EXPECTED_LABELS = f"{EXPECTED_LAYOUT}, or a table of labels (data.labels)"

PART_WORDS = WRAPPER_WORDS | {
    *("batch", "chunk", "dataset", "ds", "fold", "folder", "folds"),
    *("part", "set", "shard", "split", "subset", "volume"),
}
"""Words that, with a number or a letter, name a part of a data set: fold_0, part_A, images_001."""

CAMERA = re.compile(r"[1-9]\d\d(?=[A-Z_])[A-Z0-9_]{5}")
"""Names that cameras and telephones give to folders: 100CANON, 101CANON."""

UNNAMED = re.compile(
    r"(new folder|untitled folder|neuer ordner|nouveau dossier|nueva carpeta|nova pasta|nuova cartella|新建文件夹"
    r"|新しいフォルダー|새 폴더|новая папка)( ?[(]?\d+[)]?)?",
    re.IGNORECASE,
)
"""Names of folders to which nobody gave a name: New folder (2)."""

NO_CLASS = PART_WORDS | MASK_WORDS | {""}
"""Words that do not name a class if they stand beside the word of a split: images in train_images."""

OBJECT_WORDS = {"annotation", "annotations", "bbox", "boxes", "coco", "instances", "keypoints"}
"""Words in the name of a JSON file that describes objects in pictures: instances_train2017.json."""

COMPARED = 50
"""Largest number of files whose bytes are compared before a folder is taken for a copy; they are evenly spaced."""


def unwrapped(folder: Folder) -> Folder:
    """The first folder, from this one down, that holds pictures itself, several folders with pictures, or a split."""
    while not folder.pictures and len(folder.holding) == 1 and split_of(folder.holding[0].base) is None:
        folder = folder.holding[0]
    return folder


def part_of(folder: Folder, split: str) -> Folder:
    """The folder that holds a split's class folders. It is the split's own folder, or the only folder in it: this names
    the split again (seg_train/seg_train/CLASS), or wraps several folders (train/images/CLASS)."""
    while not folder.pictures and len(holding := folder.holding) == 1:
        (inner,) = holding
        is_wrapper = words_of(inner.base) & WRAPPER_WORDS and len(inner.holding) > 1
        if split_of(inner.base) != split and not is_wrapper:
            break
        folder = inner
    return folder


def names_of(folders: Sequence[Folder]) -> str:
    """The last parts of the folders' names, as a list in words."""
    return _listed([folder.base for folder in folders])


def _listed(names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def refuse_same_splits(where: str, splits: Sequence[tuple[str, Folder]]) -> None:
    """Raise if several folders are the same split; their other words may be classes (train_real, train_fake)."""
    same: dict[str, list[Folder]] = defaultdict(list)
    for split, folder in splits:
        same[split].append(folder)
    twice = [folders for folders in same.values() if len(folders) > 1]
    if not twice:
        return
    found = f"{where} holds {', and '.join(f'{names_of(folders)}, which mean the same split' for folders in twice)}"
    cure = "keep one of them"
    rests = [[rest_of(folder.base) for folder in folders] for folders in twice]
    kinds = sorted({rest for one in rests for rest in one})
    if all(len(set(one)) == len(one) for one in rests) and not any(words_of(kind) <= NO_CLASS for kind in kinds):
        moved = [f"{split}/{rest}" for split, folder in splits if (rest := rest_of(folder.base)) in kinds]
        cure = f"if {_listed(kinds)} are the classes, move the folders to {_listed(moved)}"
        if not all(unwrapped(folder).pictures for folders in twice for folder in folders):
            cure = f"if {_listed(kinds)} are data sets, keep the folders of one of them, or merge them; {cure}"
    raise DataError(f"{found}; {cure}; expected is {EXPECTED_LAYOUT}")


def option_for(folder: Folder, where: str) -> str:
    """The option that names a folder as the data folder."""
    return f"--data {shlex.quote(f'{where}/{folder.name}')}"


def _use_one(parts: Sequence[Folder], where: str) -> str:
    """A clause that advises to use one of the parts. If one has over half of the pictures, the clause names it; the
    others may be test pictures."""
    count = {part.name: sum(file.is_picture for file in part.walk()) for part in parts}
    most = [part for part in parts if 2 * count[part.name] > sum(count.values())]
    return f"use {option_for(unwrapped(most[0]), where)}" if most else "use one of them with --data"


def refuse_unclear(place: str, where: str, tops: Sequence[Folder], splits: Mapping[str, str]) -> None:
    """Raise if the folders cannot be classes.

    Args:
        place: the folder that holds them, for messages.
        where: the data folder, to which names are relative.
        tops: the folders with pictures.
        splits: name -> split of those that name one; not all do.
    """
    others = [folder for folder in tops if folder.name not in splits]
    _refuse_nested_splits(place, where, others, has_train="train" in splits.values())
    refuse_masks(place, tops)
    for folder in tops:
        refuse_masks(place, folder.holding)
    refuse_masks_beside_pictures(place, tops)
    if splits:
        _refuse_others(place, where, [folder for folder in tops if folder.name in splits], others, splits)
    _refuse_shared_names(place, where, tops)
    names = {folder.base for folder in tops}
    for folder in tops:
        if shared := _shared_with_siblings(folder, names):
            counts = [sum(file.is_picture for file in one.walk()) for one in (folder, *tops)]
            use = f", or use {option_for(unwrapped(folder), where)}" if 2 * counts[0] > sum(counts[1:]) else ""
            raise DataError(
                f"{place}: {folder.base} holds folders of the same names as those beside it ({_some(shared)}), but not "
                f"the same pictures; move {folder.base} elsewhere{use}; if {folder.base} is a class, put all classes "
                "into a folder train: train/CLASS/*"
            )
    if len(others) > 1 and _are_parts([folder.base for folder in others]):
        raise DataError(
            f"{place}: {names_of(others)} are names of parts of a data set, not of classes; expected is "
            f"{EXPECTED_LABELS}; if they are classes, put them into a folder "
            "train: train/CLASS/*"
        )


def _refuse_nested_splits(place: str, where: str, others: Sequence[Folder], *, has_train: bool) -> None:
    """Raise if folders hold splits of their own, with class folders in train."""
    sets = [inner for inner in map(unwrapped, others) if "train" in _splits_with_classes(inner)]
    if not sets:
        return
    inside = sorted({split for one in sets for split in _splits_with_classes(one)})
    options = " or ".join(option_for(one, where) for one in sets[:3])
    what = " and ".join(one.name for one in sets[:3]) + (f" and {len(sets) - 3} more" if sets[3:] else "")
    cure = f"move {'it' if len(sets) == 1 else 'them'} elsewhere, or use {options}" if has_train else f"use {options}"
    raise DataError(
        f"{place}: {what} {'has' if len(sets) == 1 else 'have'} splits of {'its' if len(sets) == 1 else 'their'} own "
        f"({', '.join(inside)}); {cure}"
    )


def _splits_with_classes(folder: Folder) -> set[str]:
    """The splits in a folder that hold several class folders."""
    inside = splits_of(folder.holding)
    return {inside[one.name] for one in folder.holding if one.name in inside and _has_classes(one, inside[one.name])}


def _has_classes(folder: Folder, split: str) -> bool:
    part = part_of(folder, split)
    return not part.pictures and len(part.holding) > 1


def _refuse_others(
    place: str, where: str, named: list[Folder], others: Sequence[Folder], splits: Mapping[str, str]
) -> None:
    """Raise if a folder with a split's name holds class folders. Raise too if exactly one folder has no split's name,
    and that folder holds class folders.

    Else all of them may be classes: a folder "train" with pictures beside "car" and "bus".
    """
    is_train = len(others) == 1 and not (inner := unwrapped(others[0])).pictures and len(inner.holding) > 1
    if not is_train and not any(_has_classes(folder, splits[folder.name]) for folder in named):
        return
    missing = [split for split in ("val", "test") if split not in splits.values()]
    if any(splits[folder.name] == "train" for folder in named):
        cure = f"move {names_of(others)} elsewhere"
        if missing and all(_has_classes(folder, "") for folder in others):
            cure += f", or rename {'it' if len(others) == 1 else 'them'} to {' or '.join(missing)}"
    elif is_train:
        cure = f"rename {others[0].base} to train if it has the training pictures"
    elif len(set.intersection(*({one.base for one in unwrapped(folder).holding} for folder in [*named, *others]))) > 1:
        them, one = ("the other", "it") if len(others) == 2 else ("the others", "one of them")
        cure = (
            f"all hold the same folders; if each is a data set, {_use_one([*named, *others], where)}; if they are "
            f"splits, rename the one with the training pictures to train, and move {them} elsewhere"
        ) + "".join(f", or rename {one} to {split}" for split in missing)
    else:
        cure = f"put {names_of(others)} into a folder train: train/CLASS/*"
    raise DataError(
        f"{place}: {names_of(named)} {'name splits' if len(named) > 1 else 'names a split'}, and {names_of(others)} "
        f"{'name' if len(others) > 1 else 'names'} none; {cure}; if all of them are classes, put all of them into a "
        "folder train"
    )


def _refuse_shared_names(place: str, where: str, tops: Sequence[Folder]) -> None:
    """Raise if folders without pictures hold folders of the same names: they are parts of a data set, not classes."""
    apart = [folder for folder in tops if not folder.pictures]
    names = [{one.base for one in unwrapped(folder).folders if any(one.walk())} for folder in apart]
    count = Counter(name for found in names for name in found)
    shared = sorted(name for name, number in count.items() if number > 1)
    parts = [folder for folder, found in zip(apart, names, strict=True) if found & set(shared)]
    if len(shared) < 2 or len(shared) <= len(count) / 2:  # a single name may be a wrapper: cat/images, dog/images
        return
    found = f"{place}: {names_of(parts)} hold no pictures themselves, but the same folders ({_some(shared)})"
    if "train" in map(split_of, shared):
        raise DataError(
            f"{found}; if {names_of(parts)} are the classes, put them into the splits: {shared[0]}/{parts[0].base}/*; "
            f"if each is a data set, {_use_one(parts, where)}"
        )
    rename = f"if {names_of(parts)} are splits, rename them to train, val and test; "
    raise DataError(
        f"{found}; {rename if len(parts) < 4 else ''}expected is {EXPECTED_LABELS}; if each is a data set, "
        f"{_use_one(parts, where)}; if {names_of(parts)} are the classes, put them into a folder train: train/CLASS/*"
    )


def refuse_masks(place: str, folders: Sequence[Folder]) -> None:
    """Raise if one of the folders has pictures, and another one has masks of them, with the same names."""
    for mask, image in masks_among(folders):
        raise DataError(
            f"{place}: {mask.name} holds pictures of the same names as {image.name}, so it seems to hold masks, as "
            "data for segmentation does; move such folders elsewhere, or rename them if they are classes; a classifier "
            f"needs one class for each picture: expected is {EXPECTED_LABELS}"
        )


def describes_objects(tree: Folder) -> str | None:
    """A sentence if files describe objects in the pictures: YOLO's .txt, Pascal VOC's .xml, labelme's and COCO's .json;
    else None."""
    stems = {_stem(file) for file in tree.walk() if file.is_picture}
    texts: dict[str, File] = {}
    found = None
    for file in tree.walk():
        ending = file.base.lower().rpartition(".")[2]
        if ending in ("txt", "xml", "json") and _stem(file) in stems:
            texts.setdefault(_stem(file), file)
        elif ending == "json" and stems and words_of(file.base) & OBJECT_WORDS:
            found = found or file
    if texts and len(texts) >= len(stems) / 4:
        found = min(texts.values(), key=lambda file: file.name)
    if found is None:
        return None
    return (
        f"{found.name} seems to describe objects in the pictures, as data for detection does; a classifier needs one "
        f"class for each picture, from folders or from a table of labels (data.labels)"
    )


def _stem(file: File) -> str:
    return file.base.rpartition(".")[0]


def _are_parts(names: Sequence[str]) -> bool:
    """Whether names are those of parts of a data set, in one of three forms: PART_WORDS and a number or a letter
    (fold_0, part_A, images_001); names that differ only in the number or letter after one of PART_WORDS
    (HAM10000_images_part_1 and _2); names that no person gave (100CANON and 101CANON, New folder and New folder
    (2))."""
    if all(map(UNNAMED.fullmatch, names)) or (
        all(map(CAMERA.fullmatch, names)) and len({one[3:] for one in names}) == 1
    ):
        return True
    split = [re.findall(r"[^\W\d_]+|\d+", " ".join(words_in_order(name))) for name in names]
    if all({word for word in words if not _is_short(word)} <= PART_WORDS for words in split):
        return all(len({_is_short(word) for word in words}) == 2 for words in split)
    if len({len(words) for words in split}) > 1:
        return False
    columns = list(zip(*split, strict=True))
    differing = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    if len(differing) != 1 or differing[0] == 0:
        return False
    return all(map(_is_short, columns[differing[0]])) and columns[differing[0] - 1][0] in PART_WORDS


def _is_short(word: str) -> bool:
    return word.isdigit() or len(word) == 1


def copies_among(tops: Sequence[Folder]) -> dict[str, str]:
    """Name -> a sentence, for each folder with copies of the pictures beside it: the same names, sizes and bytes."""
    copies: dict[str, str] = {}
    names = {folder.base for folder in tops}
    alike: dict[str, list[Folder]] = defaultdict(list)
    for folder in tops:
        alike[folder.base.lower()].append(folder)
    for folder in tops:
        if split_of(folder.base) is None and _shared_with_siblings(folder, names):
            originals = [one for one in tops if one is not folder and one.name not in copies]
            theirs = {f"{one.base}/{path}": file for one in originals for path, file in _by_path(one)}
        else:
            twins = alike[folder.base.lower()]
            originals = [one for one in twins if one.name < folder.name and one.name not in copies]
            theirs = {path: file for one in originals for path, file in _by_path(unwrapped(one))}
        if theirs and _holds_same(dict(_by_path(unwrapped(folder))), theirs):
            count = sum(file.is_picture for file in folder.walk())
            copies[folder.name] = (
                f"{folder.name}: its {count:,} pictures are copies of those in {names_of(originals)}, and are not used"
            )
    return copies


def _shared_with_siblings(folder: Folder, names: Set[str]) -> list[str]:
    """Names that folders inside this folder share with folders beside it; none if they share only one. ``names`` are
    those of this folder and of the folders beside it."""
    shared = sorted(one.base for one in unwrapped(folder).holding if one.base != folder.base and one.base in names)
    return shared if len(shared) > 1 else []


def _holds_same(copy: Mapping[str, File], originals: Mapping[str, File]) -> bool:
    """Whether all pictures are among the originals too, under the same paths. Few files are opened."""
    same = [(file, originals[path]) for path, file in copy.items() if path in originals]
    if len(same) < len(copy) or any(_size(one) != _size(other) for one, other in same):
        return False
    try:
        sample = same[:: -(-len(same) // COMPARED)]
        return all(filecmp.cmp(one.path, other.path, shallow=False) for one, other in sample)
    except OSError:
        return False


def _by_path(folder: Folder) -> Iterator[tuple[str, File]]:
    """The pictures in a folder, with their paths in it."""
    return ((file.name[len(folder.name) + 1 :], file) for file in folder.walk() if file.is_picture)


def _size(file: File) -> int | None:
    return file.info and file.info.st_size


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")
