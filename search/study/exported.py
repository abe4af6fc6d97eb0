"""The result of a study's last export, stored in the study so that the live view, status and dashboard show it."""

from __future__ import annotations

import optuna
from pydantic import Field, ValidationError

from search.words import trials_in_words
from studies.objective import Objective, number_of, words_of
from trainer.values import FrozenModel

EXPORTED = "featherweight:exported"
"""Study attribute: the last export, see ``Exported``."""


class Exported(FrozenModel):
    """The result of an export."""

    trial: int
    """Number of the trial; if there are several, of the first one."""
    trials: tuple[int, ...] = Field((), exclude_if=lambda trials: not trials)
    """The exported trials, if there are several; else empty."""
    folder: str
    """Folder of the export."""
    split: str
    """Name of the evaluated split: "test", or "val" if there is no test split."""
    n: int
    """Number of pictures in the split."""
    accuracy: float
    interval: tuple[float, float]
    """95 % interval of the accuracy."""
    num_params: int
    fit_on: str
    """Splits that the model was trained on, as in ``final.fit_on``."""
    objective: Objective = "accuracy"
    """The objective of the study."""
    value: float | None = None
    """Value of the objective on the same pictures, a loss negated; None if the objective is the accuracy."""

    @property
    def is_tested(self) -> bool:
        """Whether the accuracy was measured on a test split, whose pictures had no part in any choice."""
        return self.split == "test"

    @property
    def headline(self) -> str:
        """The value of the objective: "97.12%", or the loss "0.1234"."""
        return number_of(self.accuracy if self.value is None else self.value, self.objective)

    @property
    def sentence(self) -> str:
        """The result in one line."""
        low, high = self.interval
        trained = {"train+val": ", trained on train+val", "folds": ", trained on the folds of train+val"}
        on = trained.get(self.fit_on, "")
        which = trials_in_words(self.trials or (self.trial,))
        chosen_by = "" if self.value is None else f"{words_of(self.value, self.objective)} and accuracy "
        return (
            f"{which}, {chosen_by}{self.accuracy:.2%} on the {'test' if self.is_tested else 'validation'} split{on}, "
            f"n = {self.n:,} (95 % interval {low:.2%} to {high:.2%}), {self.num_params:,} parameters"
        )


def store_export(study: optuna.Study, exported: Exported) -> None:
    """Store the result of an export in its study, which this process owns; it replaces that of an earlier export."""
    study.set_user_attr(EXPORTED, exported.model_dump(mode="json"))


def last_export(study: optuna.Study) -> Exported | None:
    """The last export of a study; None if there is none, or if this version cannot read what is stored."""
    try:
        return Exported.model_validate(study.user_attrs.get(EXPORTED))
    except ValidationError:
        return None


def tested_export(study: optuna.Study) -> Exported | None:
    """The last export of a study; None if there is none, or if its accuracy is not that of a test split."""
    found = last_export(study)
    return found if found is not None and found.is_tested else None
