"""The mending of a study whose trials were deleted by SQL, before a process that owns it reads them."""

from __future__ import annotations

from optuna.storages import RDBStorage

from search.study.gone import fill_gaps
from search.study.study import uuid_of


def mend_trials(storage: RDBStorage, name: str) -> list[str]:
    """Give each number of a study one trial, see ``fill_gaps``. Returns sentences for the user.

    A study that does not exist yet, or that another program has made, is left as it is.
    """
    if uuid_of(name, storage) is None:
        return []
    return fill_gaps(storage.engine, storage.get_study_id_from_name(name)).sentences()
