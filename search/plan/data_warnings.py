"""Warnings about the pictures: sentences with numbers, which do not stop a search."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from search.figures.confusion import read_confusion
from search.plan.brightness import brightness
from search.plan.placeholders import placeholders
from search.words import count as _count
from trainer.config import DataConfig
from trainer.data import Dataset
from trainer.errors import printable
from trainer.named_copies import find_named_copies
from trainer.pictures import TURNED, read_right
from trainer.scan import LOOK_ALIKES, VARIATIONS, folded
from trainer.spellings import about_groups_alike

SMALL_VALIDATION = 100
"""Smallest number of validation pictures without a warning. With fewer, one picture is more than a point of
accuracy."""

MASK_NAMES = {"mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentations"}
"""Names of folders, in lower case, in which data sets for segmentation and detection have their answers."""

DEEPEST_FOLDERS = 3
"""Largest number of folders above a picture that are looked at for groups: PATIENT of CLASS/PATIENT/STUDY/SERIES/*."""

FEWEST_FOLDERS = 5
"""Smallest number of different names of folders inside the classes for which groups are suggested. Fewer names, such as
indoors and outdoors, are kinds of pictures and no groups."""

MOST_SUBCLASSES = 20
"""Largest number of folders inside a class of which it is said that they may be the classes."""

DATE = re.compile(
    r"(19|20)\d\d([-_.]?(0[1-9]|1[0-2])([-_.]?(0[1-9]|[12]\d|3[01])([-_. ].*)?)?)?|Photos from \d{4}"
    r"|(0?[1-9]|[12]\d|3[01])[-_.](0?[1-9]|[12]\d|3[01])[-_.](19|20)\d\d"
)
"""Names of folders that may say when pictures were taken: 2024-01-31, 20240131, 2024-01, 2024, 31.1.2024,
2024-01-31 Rome, and Photos from 2024, as Google writes them."""

LOOKED_AT = 1000
"""Largest number of pictures of which it is checked whether they have a single colour; they are evenly spaced."""

HEAVY_IMBALANCE = 10
"""Smallest ratio of the largest class to the smallest that causes a warning about imbalance."""


def warnings_about(data: Dataset, config: DataConfig) -> Iterator[str]:
    """Warnings about pictures that may be a mistake, or that make accuracies less reliable than they look."""
    yield from brightness(data, config)
    yield from data.notices
    yield from misread(data, config)
    yield from _class_names(data)
    yield from _dates(data, config)
    yield from _single_colour(data)
    yield from placeholders(data)
    yield from _copies(data)
    yield from _subclasses(data, config)
    yield from _groups(data, config)
    yield from about_groups_alike(config, data.groups, data.splits)
    yield from _folds(data, config)
    yield from _left_out(data, config)
    yield from _validation(data, config)
    yield from _test(data)
    yield from _imbalance(data)


def _class_names(data: Dataset) -> Iterator[str]:
    """Warnings about classes that may be one class, and about class folders that may hold masks."""
    twins: dict[str, list[str]] = defaultdict(list)
    for name in data.class_names:
        twins[folded(name)].append(name)
    for names in twins.values():
        if len(names) > 1:
            told = " and ".join(repr(name) if _is_distinct(name) else ascii(name) for name in names)
            yield f"the classes {told} {_difference(names)}; if they are one class, give them one name"
    known = {name.casefold(): name for name in data.class_names}
    if "background_google" in known:
        yield (
            f"{known['background_google']} is taken for a class; Caltech-101 has other pictures in it, and torchvision "
            "leaves it out; to leave it out, move the folder elsewhere"
        )
    if (masks := sorted(known.keys() & MASK_NAMES)) and known.keys() & {"image", "images", "img", "imgs"}:
        yield (
            f"the folder {known[masks[0]]} beside a folder of images is taken for a class; if it holds masks or "
            "annotations, move it elsewhere"
        )


def _dates(data: Dataset, config: DataConfig) -> Iterator[str]:
    """A warning if most classes look like dates."""
    dates = [name for name in data.class_names if DATE.fullmatch(name)]
    if 2 * len(dates) > len(data.class_names):
        cure = "name the column that has the classes (data.columns)"
        if config.labels is None:
            cure = "put the pictures into folders of their classes, or name a table of labels (data.labels)"
        yield (
            f"{len(dates):,} of {len(data.class_names):,} classes look like dates ({_some(dates)}); if they say when "
            f"the pictures were taken, {cure}"
        )


def _difference(names: Sequence[str]) -> str:
    if re.fullmatch(r"[-+]?\d+", folded(names[0])):
        return "are the same number"
    return "differ only in case, in spaces (or _ or -), or in characters that look alike or are not seen"


def _is_distinct(name: str) -> bool:
    """Whether a name can be shown as it is: all of its characters are seen, and none looks like another one."""
    return name.isprintable() and all(ord(one) not in LOOK_ALIKES and one not in VARIATIONS for one in name.casefold())


def _single_colour(data: Dataset) -> Iterator[str]:
    """A warning about pictures without anything to see, such as a black sign on transparency."""
    chosen = range(0, len(data.names), -(-len(data.names) // LOOKED_AT))
    plain = [index for index in chosen if not np.ptp(data.images[index], axis=(0, 1)).any()]
    if plain:
        looked = f"{len(chosen):,}" if len(chosen) == len(data.names) else f"{len(chosen):,} that were looked at"
        cure = "their values are too close together for 8 bits; remove such pictures, or convert them"
        if any(data.names[index] not in data.scales for index in plain):
            cure = (
                "transparency is left out, so a black sign on a transparent background is black; remove such "
                "pictures, or save them on a background"
            )
        yield (
            f"{_count(len(plain), 'picture')} of {looked} {'has' if len(plain) == 1 else 'have'} a single colour, the "
            f"first: {data.names[plain[0]]}; {cure}"
        )


def _copies(data: Dataset) -> Iterator[str]:
    """Warnings about copies whose names give them away."""
    for found in find_named_copies(data):
        such = f"{found.first} and {found.second}"
        if found.kind == "classes":
            yield (
                f"{found.count:,} of {found.compared:,} pictures that were compared with one of the same name in "
                f"another class look the same, for example {such}; if they are copies, keep those of one class"
            )
        else:
            yield (
                f"{found.count:,} of {found.compared:,} pictures that were compared with one of a related name in "
                f"another split look the same, for example {such}; if they are copies, remove them, or keep them "
                "together with data.group_by"
            )


def _groups(data: Dataset, config: DataConfig) -> Iterator[str]:
    """A warning if ``group_by`` keeps no pictures together, or if it or a table leaves pictures without a group.
    Without ``group_by`` and a table, a warning if folders that may be groups are divided."""
    if config.group_by is None:
        if config.labels is None:
            yield from _divided_folders(data, config)
        elif data.grouped:
            yield from _empty_cells(data)
        return
    counts = Counter(data.groups)
    alone = counts.pop("", 0)
    asked = f"data.group_by = {config.group_by!r}"
    if not counts or max(counts.values()) == 1:
        yield f"{asked} keeps no pictures together: {len(counts):,} groups in {_count(len(data.names), 'picture')}"
    elif alone:
        first = data.names[data.groups.index("")]
        yield f"{asked} gives {_count(alone, 'picture')} of {len(data.names):,} no group, the first: {first}"


def _folds(data: Dataset, config: DataConfig) -> Iterator[str]:
    """A warning about classes with fewer groups than folds. (Fewer pictures than folds are refused.)"""
    if not (config.folds and data.grouped):
        return
    found: dict[int, set[str]] = defaultdict(set)
    for index in np.concatenate([data.splits["train"], data.splits["val"]]).tolist():
        found[int(data.labels[index])].add(data.groups[index] or f"\0{index}")
    few = [f"{name} ({len(found[label])})" for label, name in enumerate(data.class_names)]
    few = [told for label, told in enumerate(few) if len(found[label]) < config.folds]
    if few:
        yield (
            f"{len(few):,} of {len(data.class_names):,} classes have fewer groups than the {config.folds} folds, so "
            f"some folds have no picture of them to validate on: {_some(few)}; fewer folds or more groups help"
        )


def _empty_cells(data: Dataset) -> Iterator[str]:
    """A warning if a table has a group for some of the pictures to train and validate on, and none for others."""
    indices = np.sort(np.concatenate([data.splits["train"], data.splits["val"]])).tolist()
    if alone := [index for index in indices if not data.groups[index]]:
        yield (
            f"the column of groups is empty for {_count(len(alone), 'picture')} of {len(indices):,} in train and val, "
            f"the first: {data.names[alone[0]]}; splits are drawn as if each of them were a group of its own"
        )


def _subclasses(data: Dataset, config: DataConfig) -> Iterator[str]:
    """A warning if folders inside the class folders may be the classes: lung/cancer and lung/well beside colon/polyp.

    Every picture is in such a folder. Each class has few of them, and no other class has the same ones.
    """
    if config.labels is not None or config.group_by is not None:
        return
    inside: dict[str, dict[str, str]] = defaultdict(dict)
    for name, label in zip(data.names, data.labels.tolist(), strict=True):
        folders = name.split("/")[:-1]
        composed = [unicodedata.normalize("NFC", folder) for folder in folders]
        class_name = unicodedata.normalize("NFC", data.class_names[label])
        at = composed.index(class_name) if class_name in composed else len(folders)
        if at + 1 >= len(folders):
            return
        inside[class_name].setdefault(composed[at + 1], "/".join(folders[: at + 2]))
    # cat/indoors_cat and dog/indoors_dog are no classes: without the class's own name, both are "indoors".
    names = [{_without(class_name, name) for name in found} for class_name, found in inside.items()]
    count = sum(map(len, names))
    most = max(names, key=len, default=set())
    if not 1 < len(most) <= MOST_SUBCLASSES or len(set().union(*names)) < count or len(data.names) < 2 * count:
        return
    if all(_are_words(one) for one in names):
        first = next(path for found in inside.values() if len(found) > 1 for path in found.values())
        above, _, name = first.rpartition("/")
        kinds = [name for found in inside.values() for name in found]
        moved = "/".join([*above.split("/")[:-1], name])
        yield (
            f"the classes are {_some(list(inside))}, and all of their pictures are in {count:,} folders inside, whose "
            f"names differ from class to class; if these are the classes ({_some(kinds)}), move each up one level, "
            f"such as {printable(first)} to {printable(moved)}"
        )


def _without(class_name: str, name: str) -> str:
    """The name of a folder inside a class, without the name of the class at its beginning or end."""
    rest = name.removesuffix(class_name) if name.endswith(class_name) else name.removeprefix(class_name)
    return rest.strip("-_. ").lower()


def _are_words(names: Collection[str]) -> bool:
    """Whether names are words, and not numbers, dates, ids or numbered parts."""
    words = ["".join(one for one in name if one.isalpha()) for name in names]
    most_are_letters = (2 * len(word) > sum(map(str.isalnum, name)) for word, name in zip(words, names, strict=True))
    return len(set(words)) == len(words) and all(most_are_letters)


def _divided_folders(data: Dataset, config: DataConfig) -> Iterator[str]:
    """A warning if drawn splits divide folders inside the classes that look like groups: CLASS/PATIENT/*, or
    CLASS/PATIENT/STUDY/*. Of several such levels, the lowest one counts.

    The class folders themselves are not counted: with train/CLASS and test/CLASS, each class has two.
    """
    for up in range(1, DEEPEST_FOLDERS + 1):
        splits: dict[str, set[str]] = defaultdict(set)
        classes: dict[int, set[str]] = defaultdict(set)
        composed = [unicodedata.normalize("NFC", name) for name in data.class_names]
        for split, indices in data.splits.items():
            for index in indices:
                *above, folder = ["", *data.names[index].split("/")][:-up] or [""]
                label = int(data.labels[index])
                inside = unicodedata.normalize("NFC", folder) != composed[label]
                if up > 1 and not (inside and composed[label] in (unicodedata.normalize("NFC", one) for one in above)):
                    return
                if inside and not (config.folds and split == "test"):
                    splits["/".join([*above[1:], folder])].add(split)
                    classes[label].add("/".join([*above[1:], folder]))
        names = {folder.rpartition("/")[2] for folder in splits}
        divided = sorted(folder for folder, parts in splits.items() if len(parts) > 1 or config.folds)
        are_groups = len(names) >= max(FEWEST_FOLDERS, len(splits) / 2) and len(data.names) >= 2 * len(splits)
        if not are_groups or not all(len(folders) > 1 for folders in classes.values()):
            continue
        if divided:
            yield (
                f"the classes are divided into {len(splits):,} folders, and {len(divided):,} of them have pictures in "
                f"several {'folds' if config.folds else 'splits'}, for example {divided[0]}; if each is a patient, a "
                f"burst or a video, data.group_by = '([^/]+){'/[^/]+' * up}$' keeps its pictures together"
            )
        return


def misread(data: Dataset, config: DataConfig) -> Iterator[str]:
    """Warnings about pictures that a plain convert("RGB") misreads, with the line of code that reads them right."""
    turned = 'they are trained upright, and a plain Image.open(file).convert("RGB") leaves them turned'
    deep = 'they are scaled to 8 bits, and a plain Image.open(file).convert("RGB") does not scale them'
    for why, count in sorted(Counter(data.misread.values()).items()):
        first = next(name for name, reason in data.misread.items() if reason == why)
        line = read_right(why, data.images.shape[-1])
        imports = "import numpy as np; " * ("np." in line) + "from PIL import Image, ImageOps"
        file = str(Path(config.path or "").absolute() / first)
        yield (
            f"{_count(count, 'picture')} of {len(data.names):,} {'is' if count == 1 else 'are'} {why}, the first: "
            f"{first}; {turned if why == TURNED else deep}; this line of Python "
            f"{'reads the first one right' if why == TURNED else 'scales the first one'}: "
            f"{imports}; file = {file!r}; picture = {line}"
        )


def never_predicted(confusion: Path, class_names: Sequence[str]) -> str | None:
    """A warning about classes that the best trial so far never predicts; None if there are no such classes, or no
    trial."""
    try:
        known = read_confusion(confusion)
    except (OSError, ValueError):
        return None
    if known.names != list(class_names):
        return None
    true, predicted, pictures = known.table.T
    if lost := [class_names[label] for label in sorted({*true.tolist()} - {*predicted.tolist()})]:
        return (
            f"the best so far, trial {known.trial}, never predicts {len(lost)} of {len(class_names)} classes on the "
            f"{int(pictures.sum()):,} validation pictures: {_some(lost)}"
        )
    return None


def _validation(data: Dataset, config: DataConfig) -> Iterator[str]:
    count = len(data.splits["val"])
    if config.folds:  # each picture of train and val is validated once
        count += len(data.splits["train"])
    else:
        seen = set(data.labels[data.splits["val"]].tolist())
        if lost := [name for label, name in enumerate(data.class_names) if label not in seen]:
            yield (
                f"{len(lost)} of {len(data.class_names)} classes have no validation picture, so no trial is judged by "
                f"them: {_some(lost)}"
            )
    if count < SMALL_VALIDATION:
        if config.folds:
            cure = "only more pictures help"
        elif "val" in data.own_splits:
            cure = "more pictures in the val split help, or data.folds, which validates on the training pictures too"
        else:
            cure = "a larger val split (data.val_fraction) or data.folds helps"
        yield (
            f"{_count(count, 'validation picture')} {'tells' if count == 1 else 'tell'} candidates apart in steps of "
            f"{100 / count:.1f} points, with a standard error of {30 / count**0.5:.1f} points at 90 % and "
            f"{50 / count**0.5:.1f} at 50 % accuracy; {cure}"
        )


def _test(data: Dataset) -> Iterator[str]:
    """Warnings about classes of which the test split has no picture, or only one."""
    counts = np.bincount(data.labels[data.splits["test"]], minlength=len(data.class_names))
    if not counts.any():  # no test split
        return
    names = data.class_names
    cure = "more pictures of them help, in the test split if it is not drawn"
    if lost := [name for name, count in zip(names, counts, strict=True) if count == 0]:
        yield (
            f"{len(lost)} of {len(names)} classes have no test picture, so the test of an export says nothing of "
            f"them: {_some(lost)}; {cure}"
        )
    if single := [name for name, count in zip(names, counts, strict=True) if count == 1]:
        yield (
            f"{len(single)} of {len(names)} classes have one test picture each, so the recall of each will be 0 % or "
            f"100 % (with Wilson's 95 % intervals, 0 to 79 % or 21 to 100 %): {_some(single)}; {cure}"
        )


def _left_out(data: Dataset, config: DataConfig) -> Iterator[str]:
    if config.fraction < 1:
        used, others = len(data.splits["train"]), len(data.splits["val"]) + len(data.splits["test"])
        whole = "all pictures of the validation and the test split are used"
        if config.folds:
            whole = "the folds divide these and all pictures of the validation split; the test split is whole"
        yield (
            f"data.fraction = {config.fraction:g}: {used:,} of {len(data.names) - others:,} training pictures are "
            f"used, the same ones in every training; {whole}"
        )


def _imbalance(data: Dataset) -> Iterator[str]:
    counts = np.bincount(data.labels[data.splits["train"]], minlength=len(data.class_names))
    most, fewest = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= HEAVY_IMBALANCE * counts[fewest]:
        yield (
            f"training pictures are uneven: {counts[most]:,} of {data.class_names[most]}, {counts[fewest]:,} of "
            f"{data.class_names[fewest]}; always predicting {data.class_names[most]} is right on "
            f"{counts[most] / counts.sum():.0%} of them, and accuracy hardly depends on the small classes; "
            "train.logit_adjustment = 1.0 makes a model predict them more often"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(printable(name) for name in names[:5]) + more
