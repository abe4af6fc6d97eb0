"""A study that this process owns: Optuna's study, the study's spec, and the check before each write."""

from __future__ import annotations

from collections.abc import Callable

import optuna

from search.study.identity import identify
from studies import StudySpec


class OwnedStudy:
    """A study that this process owns. Only code that has this object writes to the study.

    Args:
        study: opened by ``search.study.study.open_study`` or ``find_study``.
        spec: the study's spec.
        check_lock: from ``search.study.lock.own_study``; raises HeldError once another process has the lock.

    Raises:
        StudyChanged: the study was deleted.
    """

    def __init__(self, study: optuna.Study, spec: StudySpec, check_lock: Callable[[], None]) -> None:
        self.study, self.spec = study, spec
        self._check_lock, self._check_identity = check_lock, identify(study)

    def check(self) -> None:
        """Check, before a write, that this process still owns the study and that it is still the same study.

        Raises:
            HeldError: another process has taken the lock. (A Postgres server that restarts forgets its locks.)
            StudyChanged: the study was deleted, or replaced by another one of the same name.
        """
        self._check_lock()
        self._check_identity()
