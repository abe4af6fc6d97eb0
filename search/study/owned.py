"""A study that this process owns: Optuna's study, what it searches, and the check before each write to it."""

from __future__ import annotations

from collections.abc import Callable

import optuna

from search.study.identity import identify
from studies import StudySpec


class OwnedStudy:
    """The one value that says "this study is ours"; only its holder writes to the study.

    Args:
        study: opened by ``search.study.study.open_study`` or ``find_study``.
        spec: what it searches.
        check_lock: given by ``search.study.lock.own_study``; raises HeldError once another process has the lock.

    Raises:
        StudyChanged: the study is gone already.
    """

    def __init__(self, study: optuna.Study, spec: StudySpec, check_lock: Callable[[], None]) -> None:
        self.study, self.spec = study, spec
        self._check_lock, self._check_identity = check_lock, identify(study)

    def check(self) -> None:
        """See, before a write, whether the study is still ours and still the same.

        Raises:
            HeldError: another process has taken the lock, which a restarted Postgres server forgets.
            StudyChanged: the study was deleted, or replaced by another of its name.
        """
        self._check_lock()
        self._check_identity()
