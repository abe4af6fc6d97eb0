"""The result of a study besides the search's own values: confirmation, export, gain and noise."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from search.study.confirmation import Confirmation, confirmation_of
from search.study.exported import Exported, tested_export
from search.study.gain import Gain, gain_of
from search.study.noise import Noise, noise_of
from studies import StudySpec
from studies.objective import NAMES, Objective, number_of
from trainer.values import Json


@dataclass(frozen=True)
class StudyResult:
    """The result of a study, as far as it is known; what is not known is None."""

    confirmation: Confirmation | None = None
    exported: Exported | None = None
    """The last export, if it has a result on a test split."""
    gain: Gain | None = None
    """The gain of the search over its first known recipe."""
    noise: Noise | None = None
    """The noise of one training."""

    def headline(self, best: FrozenTrial | None, objective: Objective) -> tuple[str, str, int | None]:
        """The most reliable number of a study, as (its name, such as "tested accuracy"; the number; parameters).

        Args:
            best: the best trial of the search; its value counts if nothing better is known. None if no trial is
                complete.
            objective: the objective of the search.
        """
        found, name = self.confirmation, NAMES[objective]
        if self.exported is not None:
            return f"tested {NAMES[self.exported.objective]}", self.exported.headline, self.exported.num_params
        if found is not None and (winner := found.candidate(found.winner)) is not None and winner.best_mean is not None:
            return f"confirmed {name}", number_of(winner.best_mean, objective), winner.num_params
        if best is not None:
            return f"claimed {name}", number_of(best.values[0], objective), best.user_attrs.get("num_params")
        return f"best {name}", "none yet", None

    @property
    def sentences(self) -> list[str]:
        """A sentence about the test and one about the confirmation, if they are known."""
        said = [] if self.exported is None else [f"The exported model was tested: {self.exported.sentence}."]
        if self.confirmation is not None:
            words = self.confirmation.sentence
            said.append(f"{words[0].upper()}{words[1:]}.")
        return said

    def to_json(self) -> dict[str, Json]:
        """The confirmation, the export and the noise, each None if there is none."""
        confirmation, exported = self.confirmation, self.exported
        return {
            "confirmation": None if confirmation is None else confirmation.to_json(),
            "export": None if exported is None else exported.model_dump(mode="json"),
            "noise": None if self.noise is None else self.noise.to_json(),
        }


NO_RESULT = StudyResult()


def result_of(study: optuna.Study, spec: StudySpec) -> StudyResult:
    """The result of a study as it is known now."""
    found = confirmation_of(study, spec)
    return StudyResult(found, tested_export(study), gain_of(study, spec, found), noise_of(study, spec, found))
