"""Creates and opens the studies of this program. Their attributes hold fingerprint, spec, person, uses of the test
split."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import optuna
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
)
from optuna.storages import RDBStorage

from search.errors import StudyChanged, UsageError
from search.paths import DEFAULT_RUNS, Runs
from search.policy.ladder import Ladder
from search.study.marks import mark_those_before, with_marks
from search.study.sampling import build_ladder, build_pruner, build_sampler, described_change
from search.study.trial import is_paused, step_word
from search.words import count, short_change
from studies import Range, StudySpec
from studies.spec import STUDY_NAME
from trainer.config import RECIPE_VERSION, TrainConfig
from trainer.errors import ConfigError, printable
from trainer.identity import identity
from trainer.values import Json, expanded, nearest, validate

SPEC = "featherweight:study"
FINGERPRINT = "featherweight:fingerprint"
UUID = "featherweight:uuid"
VERSIONS = "featherweight:versions"
PERSON = "featherweight:owner"
"""Study attributes that a later launch or an export reads."""

HAS_REPEAT = "featherweight:repeats_known"
"""Study attribute: true if the study was begun by a version that repeats the first known recipe."""

PERSON_LENGTH = 60
"""Largest number of characters of a person's name."""

TEST_OPENING = "featherweight:test_opening:"
"""Prefix of the study attributes for uses of the test split. The rest of the key is the hash of what was evaluated."""


PLACES = ("path", "source", "bad_files", "labels", "test_labels", "columns")
"""Settings of [data] that locate pictures and labels. The fingerprint has the hash of the content instead."""


def fingerprint(spec: StudySpec, content_hash: str) -> dict[str, Json]:
    """Everything that changes the value of a trial. Trials with equal fingerprints are comparable.

    It leaves out the paths of pictures, tables and teachers, and the budget, sampler, pruner and known recipes.
    """
    train = identity(spec.train)
    if train["distill"] is not None:
        train["distill"]["teacher"] = teacher_hash(spec.train)
    found: dict[str, Json] = {
        "seed": spec.seed,
        "data": {"content": content_hash} | identity(spec.data, without=PLACES),
        "limit": identity(spec.limit),
        "train": train,
        "space": {key: identity(axis) if isinstance(axis, Range) else list(axis) for key, axis in spec.space.items()},
        "recipe_version": RECIPE_VERSION,
    }
    if spec.search.objective != "accuracy":  # earlier versions had no such key
        found["objective"] = spec.search.objective
    return found


def teacher_hash(config: TrainConfig) -> str | None:
    """The identity of a teacher: the SHA-256 of an export's weights, or the name of a timm model."""
    if config.distill is None:
        return None
    try:
        with (expanded(config.distill.teacher) / "model.safetensors").open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()
    except OSError:
        return config.distill.teacher


def differences(before: Mapping[str, Json], after: Mapping[str, Json], prefix: str = "") -> list[str]:
    """One line for each value that differs: "train.epochs: 50 -> 60"."""
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            was, now = short_change(old, new)
            lines.append(f"{prefix}{key}: {was} -> {now}")
    return lines


def check_trials(spec: StudySpec, storage: RDBStorage, space: dict[str, BaseDistribution]) -> None:
    """Check that a changed study can go on with its existing trials.

    Raises:
        StudyChanged: a setting has an axis that Optuna cannot combine with that of the existing trials.
    """
    for trial in optuna.load_study(study_name=spec.name, storage=storage).get_trials(deepcopy=False):
        for name in space.keys() & trial.distributions.keys():
            try:
                check_distribution_compatibility(trial.distributions[name], space[name])
            except ValueError:
                was, now = described_change(trial.distributions[name], space[name])
                raise StudyChanged(
                    f"study {spec.name!r} has trials with {name} from {was}, and now {name} is from {now}; only the "
                    "ends of a range may change; for any other change, give the study another name (--set name=NEW)"
                ) from None


def check_rungs(spec: StudySpec, study: optuna.Study, runs: Runs = DEFAULT_RUNS) -> None:
    """Check that a study can go on with the rungs of its file: its candidates may have been compared at other rungs.

    Raises:
        StudyChanged: trials are paused at other rungs, or steps would be counted differently.
    """
    try:
        before = build_ladder(stored_spec(study.user_attrs.get(SPEC), "", ""))
    except StudyChanged:  # the study is new, or of a version without rungs
        return
    now = build_ladder(spec)
    if before == now:
        return
    step, trials = step_word(spec), study.get_trials(deepcopy=False)
    if (before.anew or now.anew) and any(trial.intermediate_values for trial in trials):
        cure = "give the study another name (--set name=NEW)"
    elif paused := [trial.number for trial in trials if is_paused(trial)]:
        numbers = f"{count(len(paused), 'paused trial')} ({', '.join(map(str, paused))})"
        cure = f"end its {numbers}: {runs.command('stop', spec.name, '--finish')}"
    else:
        return
    raise StudyChanged(
        f"study {spec.name!r}: its candidates were {_compared(before, step)}, and would be {_compared(now, step)}; "
        f"undo the change of pruner, min_epochs, reduction_factor, schedule or epochs, or {cure}"
    )


def check_objective(spec: StudySpec, study: optuna.Study) -> None:
    """Check that a study has no values of another objective: the two cannot be compared.

    Raises:
        StudyChanged: the study has such values.
    """
    before = study.user_attrs.get(FINGERPRINT, {}).get("objective", "accuracy")
    if before == spec.search.objective:
        return
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        raise StudyChanged(
            f"study {spec.name!r} has values of search.objective = {before}, which cannot be compared with "
            f"{spec.search.objective}; undo the change, or give the study another name (--set name=NEW)"
        )


def _compared(ladder: Ladder, step: str) -> str:
    """The steps after which candidates are compared, in words; ``step`` is "epoch" or "fold"."""
    if not ladder.rungs:
        return "trained without rungs"
    listed, last = ", ".join(map(str, ladder.lengths[:-1])), count(ladder.lengths[-1], step)
    return f"compared after {listed} of {last}{', each in a separate training' if ladder.anew else ''}"


def open_study(
    spec: StudySpec,
    storage: RDBStorage,
    content_hash: str,
    runs: Runs = DEFAULT_RUNS,
    *,
    accept_changes: bool = False,
    accepted: Callable[[list[str]], None] = lambda changes: None,
    renewed: Callable[[optuna.Study, int], None] = lambda study, was: None,
) -> optuna.Study:
    """Create the study, or open it and compare its stored fingerprint with the present one.

    Many parameters: values and functions that only the launch has.

    Args:
        spec: the study.
        storage: the storage of the study.
        content_hash: hash of the pictures.
        runs: the runs folder, for the commands in messages.
        accept_changes: whether to go on although the fingerprint differs.
        accepted: called with the differences, before the new fingerprint is stored.
        renewed: called with the study and its stored recipe version, if that is older than this program's, before the
            new version is stored. It must let unfinished trials begin anew.

    Raises:
        StudyChanged: the fingerprint differs and ``accept_changes`` is off (the message has a line for each
            difference), or the rungs differ, see ``check_rungs``.
    """
    study = optuna.create_study(
        study_name=spec.name,
        storage=storage,
        direction="maximize",
        sampler=build_sampler(spec, 0),
        pruner=build_pruner(spec),
        load_if_exists=True,
    )
    check_objective(spec, study)
    asked = json.loads(json.dumps(fingerprint(spec, content_hash)))
    begun = study.user_attrs.get(FINGERPRINT)
    if begun is None and study.get_trials(deepcopy=False):
        raise UsageError(f"the database has a study {spec.name!r} made by another program; choose another name")
    was = RECIPE_VERSION if begun is None else begun["recipe_version"]
    # An older recipe version is left out of the changes that the user must accept.
    changes = [] if begun is None else differences(begun | {"recipe_version": max(was, RECIPE_VERSION)}, asked)
    if changes and not accept_changes:
        listed = "\n".join(f"  {line}" for line in changes)
        if any(line.startswith("data.content:") for line in changes):
            listed += "\ndata.content is a checksum: the pictures or their classes have changed."
        raise StudyChanged(
            f"study {spec.name!r}{_of_another(study)} was begun with other settings:\n{listed}\n"
            "Undo the change, give the study another name (--set name=NEW), or go on with --accept-changes."
        )
    check_rungs(spec, study, runs)
    if changes:
        accepted(changes)
    if was < RECIPE_VERSION:
        renewed(study, was)
    if begun is None:
        study.set_user_attr(PERSON, user_name())
        study.set_user_attr(HAS_REPEAT, True)
    if UUID not in study.user_attrs:
        study.set_user_attr(UUID, str(uuid.uuid4()))
    mark_those_before(study)
    if begun != asked:
        study.set_user_attr(FINGERPRINT, asked)
    values = spec.model_dump(mode="json", exclude={"notify"})  # a webhook's address is a secret, and this is shown
    if study.user_attrs.get(SPEC) != values:
        study.set_user_attr(SPEC, values)
    return with_marks(study, study.user_attrs[UUID], in_memory=True)


def find_study(storage: RDBStorage, name: str) -> tuple[optuna.Study, StudySpec]:
    """Open an existing study, with the spec of its last launch.

    Raises:
        UsageError: there is no study of this name, or another program made or renamed it.
        StudyChanged: another version of this program launched it last.
    """
    found = optuna.get_all_study_names(storage)
    if name not in found:
        raise UsageError(f"no study {name!r} in this database; {nearest(name, found) if found else 'it has none yet'}")
    study = optuna.load_study(study_name=name, storage=storage)
    if SPEC not in study.user_attrs:
        raise UsageError(f"study {name!r} was not made by search launch; name one that was, or look at it with optuna")
    cure = "launch it again with this version, or use that one"
    spec = stored_spec(study.user_attrs[SPEC], f"study {name!r} was last launched", cure)
    if spec.name != name:  # its name may be a path, and names of files contain it
        cure = f"to go on with it, give search launch --set name={name}"
        if not STUDY_NAME.fullmatch(name):
            cure = "no study file can have this name; rename the study with that program"
        raise UsageError(f"study {name!r} is {spec.name!r}, renamed or copied by another program; {cure}")
    return with_marks(study, study.user_attrs.get(UUID)), spec


def stored_spec(values: object, what: str, cure: str) -> StudySpec:
    """The spec that a launch stored in the database or the journal.

    Args:
        values: the stored values.
        what: beginning of the message, such as "study 'birds' was last launched".
        cure: the user's cure if this version cannot read the values, for the message.

    Raises:
        StudyChanged: another version of this program stored them.
    """
    try:
        return validate(StudySpec, values, f"{what} by another version of this program, and this one cannot read it")
    except ConfigError as error:
        raise StudyChanged(f"{error}\n{cure}") from None


def uuid_of(name: str, storage: RDBStorage) -> str | None:
    """The UUID of a study; None if there is no such study yet."""
    if name not in optuna.get_all_study_names(storage):
        return None
    found: str | None = optuna.load_study(study_name=name, storage=storage).user_attrs.get(UUID)
    return found


def content_of(study: optuna.Study) -> str | None:
    """The content hash of a study's pictures at its last launch; None before the first."""
    found: str | None = study.user_attrs.get(FINGERPRINT, {}).get("data", {}).get("content")
    return found


def content_in_database(name: str, storage: RDBStorage) -> str | None:
    """As ``content_of``, for the name of a study; None also if there is no such study."""
    if name not in optuna.get_all_study_names(storage):
        return None
    return content_of(optuna.load_study(study_name=name, storage=storage))


def user_name() -> str:
    """The name of this process's user: SEARCH_OWNER, or without it the name in the operating system."""
    named = printable(os.environ.get("SEARCH_OWNER", "").strip())
    if named:
        return named[:PERSON_LENGTH]
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # the user has no name, for example in a container that runs as a user of the host
        return f"user {os.getuid()}"


def person_of(study: optuna.Study) -> str | None:
    """The person who began a study; None if the name was not stored."""
    found = study.user_attrs.get(PERSON)
    return printable(found)[:PERSON_LENGTH] if isinstance(found, str) and found else None


def other_person(study: optuna.Study) -> str | None:
    """The person who began a study, if that is not the user of this process; None also if the name was not stored."""
    person = person_of(study)
    return None if person == user_name() else person


def other_person_in_database(name: str, storage: RDBStorage) -> str | None:
    """As ``other_person``, for the name of a study; None also if there is no such study."""
    if name not in optuna.get_all_study_names(storage):
        return None
    return other_person(optuna.load_study(study_name=name, storage=storage))


def _of_another(study: optuna.Study) -> str:
    person = other_person(study)
    return "" if person is None else f" of {person}"


def record_test_use(study: optuna.Study, evaluated: str, **facts: Json) -> int:
    """Record a use of the test split, before it begins.

    Args:
        study: the study of the pictures.
        evaluated: hash of the evaluated model, or of the comparison. A second use with the same hash is not counted.
        facts: values that are stored with the use.

    Returns:
        The number of uses so far.
    """
    name = f"{TEST_OPENING}{evaluated[:16]}"
    uses = {key for key in study.user_attrs if key.startswith(TEST_OPENING)}
    if name not in uses:
        study.set_user_attr(name, facts | {"at": datetime.now(UTC).isoformat(timespec="seconds")})
    return len(uses | {name})
