"""How a study goes on after this program or its study file has changed, and which settings it keeps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from search.errors import StudyChanged
from search.paths import Runs
from search.study.events import Recipe
from search.study.journal import Journal, installed_versions
from search.study.sampling import begin_anew
from search.study.study import SPEC, VERSIONS, differences, stored_spec
from studies import StudySpec
from trainer.config import RECIPE_VERSION
from trainer.values import override, validate

KEPT = {
    "search": ("trials", "trainings", "sampler", "startup_trials", "pruner", "min_epochs", "reduction_factor"),
    "confirm": ("top", "seeds", "report_seeds"),
}
"""Settings of which a study keeps the stored values, unless its file names them: a default that has changed is for new
studies only. search.hours is not among them, because it limits a single launch."""

SAME_AS_NONE = {"min_epochs": 1}
"""Setting -> its default in earlier versions. The present default is None, which means the same; so a stored value that
equals the earlier default is read as None."""

SHOWN_DIFFERENCES = 3
"""Number of differences between the texts of a study file that are listed; the others are only counted."""


Tables: TypeAlias = "dict[str, dict[str, object]]"
"""A study's spec as it was stored, perhaps by another version: table -> setting -> value. Its ``name`` and ``seed`` are
plain values, not tables."""


@dataclass(frozen=True)
class Begun:
    """A study as this launch continues it."""

    spec: StudySpec
    kept: dict[str, object]
    """Setting, such as "search.pruner" -> kept value. The file does not name these settings, and the value is not the
    present default."""
    notes: list[str]
    """Lines for the user: the kept settings, or the differences from the present text of the study file."""


def as_begun(asked: StudySpec, storage: RDBStorage, overrides: Sequence[str] | None) -> Begun:
    """The spec that a launch searches: the study file, with the settings that the stored study keeps.

    Args:
        asked: the study file with the overrides.
        storage: the storage of the study, which need not exist yet.
        overrides: the "key=value" settings, if ``asked`` is a study file that comes with this program. An existing
            study then goes on with the text it was begun with, and these overrides. None if ``asked`` is the user's
            own file: its present text counts.

    Raises:
        ConfigError: an override contradicts the text that the study was begun with.
    """
    names = optuna.get_all_study_names(storage)
    stored = (
        optuna.load_study(study_name=asked.name, storage=storage).user_attrs.get(SPEC) if asked.name in names else {}
    )
    if not stored:
        return Begun(asked, {}, [])
    if overrides is not None:
        spec = _with_stored_text(asked, stored, overrides)
        if spec is not None:
            return Begun(spec, {}, _difference_to_today(spec, asked))
    before = stored.get("data", {})
    same_source = before.get("source", asked.data.source) == asked.data.source
    if asked.data.path is None and same_source:  # --data and --labels need not be repeated
        places = {"path": before.get("path"), "labels": asked.data.labels or before.get("labels")}
        asked = asked.model_copy(update={"data": asked.data.model_copy(update=places)})
    return with_kept_settings(asked, stored)


def with_kept_settings(asked: StudySpec, stored: Tables, tables: Sequence[str] = tuple(KEPT)) -> Begun:
    """The study file with the stored values of the settings in KEPT that it does not name.

    Args:
        asked: the study file.
        stored: the study's spec as it was stored.
        tables: tables of the study file whose settings are kept.

    Raises:
        ConfigError: the file's settings and the kept ones contradict each other.
    """
    values = asked.model_dump(mode="json")
    if "trials" in stored.get("search", {}):  # studies of earlier versions had no budget of compute
        stored = {**stored, "search": {"trainings": None} | stored["search"]}
    kept: dict[str, object] = {}
    for table in tables:
        for name in KEPT[table]:
            before = stored.get(table, {}).get(name, values[table][name])
            before = None if before == SAME_AS_NONE.get(name) else before
            if name not in getattr(asked, table).model_fields_set and before != values[table][name]:
                kept[f"{table}.{name}"] = before
    if not kept:
        return Begun(asked, {}, [])
    for setting, value in kept.items():
        table, name = setting.split(".")
        values[table][name] = value
    listed = ", ".join(f"no {key}" if value is None else f"{key} = {value}" for key, value in kept.items())
    line = f"kept from before, because the study file does not name it: {listed}"
    return Begun(validate(StudySpec, values, f"study {asked.name}, {line}"), kept, [line])


def _with_stored_text(asked: StudySpec, stored: Tables, overrides: Sequence[str]) -> StudySpec | None:
    """The stored study with the present overrides; None if this version cannot read it."""
    try:
        stored_spec(stored, f"study {asked.name!r} was last launched", "")
    except StudyChanged:
        return None
    own = {
        "notify": asked.notify.model_dump(),
        "track": asked.track.model_dump(),
        "cluster": asked.cluster.model_dump(),
        "search": stored["search"] | {"hours": asked.search.hours},
    }
    return validate(
        StudySpec, override({**stored, **own}, overrides), f"study {asked.name}, with the text it was begun with"
    )


def _difference_to_today(spec: StudySpec, asked: StudySpec) -> list[str]:
    begun, today = (one.model_dump(mode="json", exclude={"data": {"path"}}) for one in (spec, asked))
    changes = differences(begun, today)
    if not changes:
        return []
    more = f" and {len(changes) - SHOWN_DIFFERENCES} more" if len(changes) > SHOWN_DIFFERENCES else ""
    return [
        f"{spec.name} goes on with the text it was begun with; a new study (--set name=NEW) would have "
        f"{', '.join(changes[:SHOWN_DIFFERENCES])}{more}"
    ]


def other_versions(study: optuna.Study) -> str:
    """The packages whose versions have changed since the study's last launch, in words; "" if there are none."""
    now, before = installed_versions(), study.user_attrs.get(VERSIONS, {})
    return ", ".join(f"{name} {was} -> {now[name]}" for name, was in before.items() if now.get(name, was) != was)


def store_versions(study: optuna.Study) -> None:
    """Store the versions of the installed packages for the next launch."""
    if study.user_attrs.get(VERSIONS) != installed_versions():
        study.set_user_attr(VERSIONS, installed_versions())


def begin_trials_anew(study: optuna.Study, runs: Runs, was: int) -> str:
    """Begin unfinished trials anew after a change of recipe, because the same settings may now give another result.

    The call can be repeated: the study's new recipe version is stored only after it.

    Args:
        study: the study, owned.
        runs: the runs folder.
        was: RECIPE_VERSION when the study was last launched.

    Returns:
        One line for the user.
    """
    name, trials = study.study_name, study.get_trials(deepcopy=False)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    for trial in running:
        shutil.rmtree(runs.trial(name, trial.number), ignore_errors=True)
        begin_anew(study, trial)
    anew = [trial.number for trial in running]
    Journal(runs.journal(name)).append(Recipe(was=was, now=RECIPE_VERSION, anew=anew))
    finished = sum(trial.state.is_finished() for trial in trials)
    begins = f", and trial {', '.join(map(str, anew))} begins anew" if anew else ""
    return (
        f"the recipe has changed since the last launch, from version {was} to {RECIPE_VERSION}: the same settings may "
        f"now give another result; {finished} finished trials stay{begins}"
    )
