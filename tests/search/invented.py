"""Trials that nobody trained, as the coordinator leaves them, and the page that tells of them."""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from search.policy.ladder import PAUSED_AT, PROMOTED_AT
from search.study.sampling import build_ladder
from search.watch.report import html_of_report
from studies import StudySpec

BEGAN = datetime(2026, 3, 7, 9, 30)

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-3, 2e-2, log=True),
    "weight_decay": FloatDistribution(1e-3, 0.3, log=True),
    "label_smoothing": FloatDistribution(0.0, 0.1),
    "dropout": FloatDistribution(0.0, 0.5),
    "batch_size": CategoricalDistribution([32, 64, 128]),
    "width_mult": FloatDistribution(0.1, 0.232),
}


def trial(number: int, state: TrialState, accuracies: list[float], **more: Any) -> FrozenTrial:
    """A trial as the coordinator leaves it; ``more`` may hold params, device, reason, size and its beginning."""
    begun = more.get("begun", BEGAN + timedelta(minutes=number))
    seconds = 40.0 * len(accuracies)
    params = {"lr": 5e-3, "weight_decay": 0.02, "label_smoothing": 0.05, "dropout": 0.2, "batch_size": 64}
    params |= {"width_mult": 0.17} | more.get("params", {})
    attributes = {"num_params": more.get("size", 200_000), "macs": 9_000_000, "seconds": seconds}
    attributes |= {"device": more.get("device", "cpu"), "images_per_second": 900.0}
    if "reason" in more:
        attributes["reason"] = more["reason"]
    finished = state.is_finished()
    return FrozenTrial(
        number=number,
        state=state,
        value=accuracies[-1] if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        datetime_start=begun,
        datetime_complete=begun + timedelta(seconds=seconds) if finished else None,
        params=params,
        distributions=SPACE,
        user_attrs=attributes,
        system_attrs={},
        intermediate_values=dict(enumerate(accuracies, start=1)),
        trial_id=number,
    )


def complete(number: int, accuracy: float, **more: Any) -> FrozenTrial:
    curve = [accuracy * (1 - 0.6 * math.exp(-epoch / 2)) for epoch in range(1, 9)]
    return trial(number, TrialState.COMPLETE, [*curve, accuracy], **more)


def pruned(number: int, *accuracies: float, reason: str = "successive_halving after epoch 1") -> FrozenTrial:
    return trial(number, TrialState.PRUNED, list(accuracies), reason=reason)


def at_rungs(spec: StudySpec, number: int, *accuracies: float, **more: Any) -> FrozenTrial:
    """A candidate of a study with the pruner "promote" that came to so many rungs, or to its end; else it waits there.

    Its accuracy rises in equal steps to that of each rung; of a series of trainings, from 0 each.
    """
    ladder, values = build_ladder(spec), {}
    for stage, accuracy in enumerate(accuracies):
        begin, end = ladder.steps[stage - 1] if stage else 0, ladder.steps[stage]
        low = 0.0 if ladder.anew or not stage else accuracies[stage - 1]
        values |= {step: low + (accuracy - low) * (step - begin) / (end - begin) for step in range(begin + 1, end + 1)}
    whole = len(accuracies) == len(ladder.steps)
    made = trial(number, TrialState.COMPLETE if whole else TrialState.RUNNING, [*values.values()], **more)
    if whole:
        made.user_attrs[PROMOTED_AT] = ladder.rungs[-1]
    else:
        made.user_attrs[PAUSED_AT] = ladder.rungs[len(accuracies) - 1]
        if len(accuracies) > 1:
            made.user_attrs[PROMOTED_AT] = ladder.rungs[len(accuracies) - 2]
    return made


def many_trials(count: int = 60) -> list[FrozenTrial]:
    """A search that looks like a real one: two devices, a good learning rate, a third pruned, a few accidents."""
    dice = random.Random(7)
    free = {"NVIDIA L4": BEGAN, "NVIDIA T4 <b>old</b>": BEGAN}
    trials = []
    for number in range(count):
        params = {
            "lr": 10 ** dice.uniform(-3, math.log10(2e-2)),
            "weight_decay": 10 ** dice.uniform(-3, math.log10(0.3)),
            "label_smoothing": dice.uniform(0, 0.1),
            "dropout": dice.uniform(0, 0.5),
            "batch_size": dice.choice([32, 64, 128]),
            "width_mult": dice.uniform(0.1, 0.232),
        }
        quality = 0.975 - 0.05 * (math.log10(params["lr"] / 0.018)) ** 2 - 0.3 * (0.232 - params["width_mult"])
        quality += dice.gauss(0, 0.004) - 0.03 * params["dropout"]
        curve = [quality * (1 - 0.55 * math.exp(-epoch / 1.8)) + dice.gauss(0, 0.006) for epoch in range(1, 10)]
        state, epochs, reason = TrialState.COMPLETE, 9, None
        if number in (17, 41):
            state, epochs, reason = TrialState.FAIL, 2, "the worker ended with signal 9: <Killed> & gone\nlast words"
        elif number == 23:
            state, epochs, reason = TrialState.PRUNED, 3, "DivergedError: epoch 4 has a training loss of nan"
        elif number > 8 and quality < 0.935:
            epochs = 1 if quality < 0.925 else 3
            state, reason = TrialState.PRUNED, f"successive_halving after epoch {epochs}"
        device = min(free, key=lambda name: free[name])
        more: dict[str, Any] = {"reason": reason} if reason else {}
        size = round(300_000 * (params["width_mult"] / 0.232) ** 2)
        made = trial(number, state, curve[:epochs], params=params, device=device, begun=free[device], size=size, **more)
        trials.append(made)
        assert made.datetime_complete is not None
        free[device] = made.datetime_complete + timedelta(seconds=2)
    return trials


def page_of(spec: StudySpec, trials: list[FrozenTrial], importances: dict[str, float] | None = None) -> str:
    """The page without plotly.js, which is 4.8 MB of somebody else's text."""
    return html_of_report(spec, trials, importances or {}, datetime(2026, 3, 8)).replace(get_plotlyjs(), "")
