"""The assignment of a trial to a worker: the settings of the trial, for its present training."""

from __future__ import annotations

from optuna.trial import Trial

from search.paths import Runs
from search.policy.ladder import Ladder
from search.running.records import Progress
from search.study.sampling import seed_of
from search.workers.messages import Assign, WidthShare
from studies import StudySpec
from studies.axes import WIDTH_SHARE


def assignment_of(progress: Progress, spec: StudySpec, ladder: Ladder, runs: Runs, cache: str) -> Assign:
    """The assignment of a trial; ``cache`` is the path of the decoded pictures."""
    trial = progress.trial
    epochs = ladder.lengths[progress.stage] if ladder.anew else None
    return Assign(
        trial=trial.number,
        config=spec.values_for(trial.params, seed_of(spec.seed, trial.number), epochs),
        data=spec.data,
        cache=cache,
        checkpoint=str(runs.checkpoint(spec.name, trial.number, progress.stage)),
        limit=spec.limit,
        width=_width_share(trial, spec),
        micro_batches=progress.setbacks.micro_batches,
        streamed=progress.setbacks.streamed,
    )


def _width_share(trial: Trial, spec: StudySpec) -> WidthShare | None:
    """The share from which the worker finds the width; None if no setting but the width changes the model's size."""
    if not spec.sizes_vary:
        return None
    low, high = spec.width_range
    share = trial.params[WIDTH_SHARE] if spec.shares_width else 0.0
    return WidthShare(share=share, low=low, high=high)
