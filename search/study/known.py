"""The result of a study beyond the value from its search: confirmed with fresh seeds, tested by an export."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from search.study.confirmation import Confirmation, confirmed
from search.study.exported import Exported, tested
from search.study.gain import Gain, gain_of
from search.study.noise import Noise, noise_of
from studies import StudySpec
from studies.objective import NAMES, Objective, number_of
from trainer.values import Json


@dataclass(frozen=True)
class Known:
    """What is known of a study's result."""

    confirmation: Confirmation | None = None
    exported: Exported | None = None
    """The last export, if it has a result on a test split."""
    gain: Gain | None = None
    """The gain of the search over its first known recipe."""
    noise: Noise | None = None
    """The noise of one training."""

    def headline(self, best: FrozenTrial | None, objective: Objective) -> tuple[str, str, int | None]:
        """The most reliable number of a study: ("tested accuracy" or the like, the number, parameters).

        Args:
            best: the best trial of the search, for its claim; None if no trial has completed.
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
        """The test and the confirmation, a sentence each."""
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


NOTHING_KNOWN = Known()


def known_of(study: optuna.Study, spec: StudySpec) -> Known:
    """What is known of the result of a study now."""
    found = confirmed(study, spec)
    return Known(found, tested(study), gain_of(study, spec, found), noise_of(study, spec, found))
