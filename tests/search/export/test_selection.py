"""The choice of the members of an ensemble, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exports import recorded
from sklearn.metrics import balanced_accuracy_score, f1_score

from search.errors import UsageError
from search.export.card import card
from search.export.choice import choose_trials
from search.export.record import ExportRecord
from search.export.selection import objective_of, select
from search.plan.after import after_search
from studies import StudySpec
from studies.final import exported_size
from studies.objective import Objective
from trainer.config import ModelSize
from trainer.evaluate import measure


def votes(*members: list[float]) -> list[torch.Tensor]:
    """Members that give these probabilities to the first of two classes, which is the true one."""
    return [torch.tensor([[right, 1 - right] for right in member]).log() for member in members]


ALIKE = votes([0.9, 0.9, 0.9, 0.2], [0.8, 0.8, 0.8, 0.2], [0.4, 0.4, 0.4, 0.9])


def test_the_members_are_those_that_are_best_together_not_the_best_alone() -> None:
    found = select(ALIKE, np.zeros(4, np.int64), 2, "accuracy")
    assert (found.of, found.members, found.values) == (3, (1, 3), (0.75, 1.0))


def test_of_equals_the_one_with_the_lower_loss_is_taken() -> None:
    assert select(ALIKE[1::-1], np.zeros(4, np.int64), 1, "accuracy").members == (2,)
    assert select([ALIKE[0], ALIKE[0]], np.zeros(4, np.int64), 1, "accuracy").members == (1,)


@pytest.mark.parametrize("objective", ["accuracy", "macro_f1", "balanced_accuracy", "loss"])
def test_what_is_best_is_the_objective_of_the_study(objective: Objective) -> None:
    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.normal(size=(50, 3)).astype(np.float32)), rng.integers(0, 3, 50)
    predicted = logits.argmax(1).numpy()
    expected = {
        "accuracy": (predicted == labels).mean(),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "loss": logits.log_softmax(1)[np.arange(50), labels].mean().item(),
    }
    assert objective_of(measure(logits, labels), objective, 3) == pytest.approx(expected[objective])


def selecting() -> StudySpec:
    return StudySpec.model_validate(
        {"name": "s", "space": {"lr": [0.1, 0.2]}, "final": {"ensemble": {"of": 10, "keep": 6}}, "confirm": {"top": 0}}
    )


def test_the_limit_counts_the_members_that_are_kept_and_the_plan_those_that_are_trained() -> None:
    spec = selecting()
    whole, counted = exported_size([ModelSize(params=10, macs=100)] * spec.num_members, spec.final)
    assert (whole.params, counted.macs) == (60, 600)
    assert after_search(spec, 5, 60.0, 1).final == 10
    assert StudySpec.model_validate(spec.model_dump(mode="json")) == spec, "as a study stores it"


def test_it_chooses_among_the_seeds_of_one_trial() -> None:
    import optuna
    from marked import add_own
    from optuna.trial import create_trial

    study = optuna.create_study()
    add_own(study, [create_trial(value=0.5, user_attrs={"num_params": 1}) for _ in range(2)])
    with pytest.raises(
        UsageError, match=r"^final\.ensemble = \{ of, keep \} chooses among the seeds of one trial; name"
    ):
        choose_trials(study, (0, 1), selecting())
    assert [trial.number for trial in choose_trials(study, (1,), selecting())] == [1]


def test_the_card_says_that_the_members_were_chosen_on_validation_and_that_this_is_a_claim() -> None:
    values = recorded()
    values["selection"] = {"of": 3, "members": [3, 1], "values": [0.5, 0.75]}
    words = card(ExportRecord.model_validate(values))
    assert "2 of 3 trained models are exported, in this order: 3, 1." in words
    assert "after each choice: 50.00%, 75.00%. The last value is likely too high" in words
    assert f"n = {values['validation']['n']:,}, which chose its members |" in words
    values["evaluation"]["split"] = "val"
    assert "top-1 on the validation split, which chose its members, n = " in card(ExportRecord.model_validate(values))
