"""Transfer between studies: a new study first tries the best recipes of the same person's earlier studies."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest

import optuna
from optuna.storages import RDBStorage
from pydantic import ValidationError
from sqlalchemy import URL

from search.errors import StudyChanged, UsageError
from search.study.file import is_missing
from search.study.marks import own_trials
from search.study.storage import open_storage, sqlite_file, storage_errors
from search.study.study import SPEC, find_study, person_of, user_name
from search.study.trial import ranked, recipe_of
from studies import StudySpec
from studies.axes import TIMM, Value, values_of
from trainer.values import FrozenModel

DATA_SIZE = "featherweight:pictured"
"""Study attribute: see ``DataSize``."""

TRANSFERRED = "featherweight:transferred"
"""Study attribute: the recipes of earlier studies that the study queues; they are chosen once. Trial attribute: the
source of the trial's recipe, "STUDY/TRIAL"."""


class DataSize(FrozenModel):
    """The size of a study's data. By it, the nearest earlier studies are found."""

    classes: int
    image_size: int
    """Pixels of a side."""
    pictures: int
    """Number of training pictures."""

    def distance(self, other: DataSize) -> float:
        """The distance of two studies: the sum of |log2| of the ratios of their numbers. Twice as many classes, sides
        of twice as many pixels, and twice as many pictures are equally far away."""
        pairs = zip(self.model_dump().values(), other.model_dump().values(), strict=True)
        return sum(abs(math.log2(max(1, one) / max(1, two))) for one, two in pairs)


class Transferred(FrozenModel):
    """A recipe of an earlier study."""

    study: str
    """Name of the earlier study."""
    trial: int
    recipe: Mapping[str, Value]
    """Setting of the new study's space -> value. A recipe from ``choose_transfers`` has the values of a study file,
    such as the width. The stored and queued recipe has the values that are sampled, such as a share of the widths."""

    @property
    def source(self) -> str:
        """The source of the recipe, "STUDY/TRIAL"."""
        return f"{self.study}/{self.trial}"


@dataclass(frozen=True)
class _Earlier:
    study: optuna.Study
    spec: StudySpec
    distance: float


def store_data_size(study: optuna.Study, size: DataSize) -> None:
    """Store the size of a study's data, for later studies."""
    if study.user_attrs.get(DATA_SIZE) != (values := size.model_dump()):
        study.set_user_attr(DATA_SIZE, values)


def find_transfers(spec: StudySpec, size: DataSize, url: URL) -> list[Transferred]:
    """Open the database, and choose the recipes that a study would take over; see ``choose_transfers``.

    Raises:
        StorageError: the database cannot be reached or read.
    """
    file = sqlite_file(url)
    if not spec.search.transfer or (file is not None and is_missing(file)):
        return []
    with storage_errors(url):
        storage = open_storage(url)
        return choose_transfers(spec, size, storage)


def choose_transfers(spec: StudySpec, size: DataSize, storage: RDBStorage) -> list[Transferred]:
    """Choose at most ``search.transfer`` recipes of the nearest earlier studies: first the best recipe of each study,
    then the second best of each, and so on.

    An earlier study counts if the same person began it, and if it has a complete trial within its limit whose model is
    of a family that the new study trains; other trials are passed over. A recipe has the settings of the new study's
    space, whether the earlier study sampled them or not. Only settings of a nested table, such as distill, that the
    earlier study did not use are left out.

    Args:
        spec: the new study.
        size: the size of the new study's data.
        storage: the database.
    """
    if not spec.search.transfer:
        return []
    from trainer.families import kin_of  # imports timm, which takes seconds; few studies need it

    models = {str(one) for one in values_of("model", spec.train, spec.space)}
    kin = {kin_of(model) for model in models if not model.startswith(TIMM)}
    anything = any(model.startswith(TIMM) for model in models)

    def best_of(earlier: _Earlier) -> Iterator[Transferred]:
        for trial in ranked(own_trials(earlier.study), earlier.spec.limit):
            own = recipe_of(trial)
            if not anything and kin_of(str(own.get("model", earlier.spec.train.model))) not in kin:
                continue
            values = earlier.spec.values_for(own, seed=0)
            recipe = {key: value for key in spec.space if isinstance(value := _value(values, key), str | float | int)}
            yield Transferred(study=earlier.spec.name, trial=trial.number, recipe=recipe)

    found: list[list[Transferred]] = []
    for earlier in _nearest(spec, size, storage):
        if best := list(islice(best_of(earlier), spec.search.transfer)):
            found.append(best)
        if len(found) == spec.search.transfer:
            break
    known = [dict(one) for one in spec.known]
    chosen: list[Transferred] = []
    for one in (one for rank in zip_longest(*found) for one in rank if one is not None):
        if one.recipe and one.recipe not in [*known, *(other.recipe for other in chosen)]:
            chosen.append(one)
    return chosen[: spec.search.transfer]


def _value(values: Mapping[str, object], key: str) -> object:
    """The value of a setting of [train]; None if its table is off. The key of a setting in a nested table has a dot."""
    table, dot, name = key.partition(".")
    if not dot:
        return values[key]
    nested = values[table]
    return nested.get(name) if isinstance(nested, Mapping) else None


def _nearest(spec: StudySpec, size: DataSize, storage: RDBStorage) -> list[_Earlier]:
    """The other studies of the same person, the nearest first; those whose data size is not known come last."""
    names = optuna.get_all_study_names(storage)
    person: str | None = user_name()
    if spec.name in names:
        person = person_of(optuna.load_study(study_name=spec.name, storage=storage))
    found = []
    for name in names:
        study = optuna.load_study(study_name=name, storage=storage)
        if name == spec.name or person is None or SPEC not in study.user_attrs or person_of(study) != person:
            continue
        try:
            opened, earlier = find_study(storage, name)
        except (StudyChanged, UsageError):  # of a version that this one cannot read
            continue
        found.append(_Earlier(opened, earlier, _distance(size, study)))
    return sorted(found, key=lambda one: (one.distance, one.spec.name))


def _distance(size: DataSize, study: optuna.Study) -> float:
    try:
        return size.distance(DataSize.model_validate(study.user_attrs.get(DATA_SIZE)))
    except ValidationError:  # it was last launched by a version that did not store the size
        return math.inf


def keep_transferred(study: optuna.Study, chosen: Collection[Transferred]) -> None:
    """Store the chosen recipes, which have the settings as they are sampled, before any of them is queued.

    They are chosen once, because at the next launch the other studies may have other results.
    """
    study.set_user_attr(TRANSFERRED, [one.model_dump(mode="json") for one in chosen])


def transferred(study: optuna.Study) -> list[Transferred] | None:
    """The stored recipes that the study queues; None if they were not chosen yet."""
    kept = study.user_attrs.get(TRANSFERRED)
    return None if kept is None else [Transferred.model_validate(one) for one in kept]
