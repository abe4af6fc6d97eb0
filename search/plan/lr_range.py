"""The learning-rate range test: train while the rate rises, and find where the loss falls fastest (Smith, 2015)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from optuna.distributions import CategoricalDistribution

from search.console import Terminal, show_progress
from search.devices import WorkerDevice, use_gpu
from search.errors import UsageError
from search.paths import Runs
from search.plan.prepare import Prepared, prepare
from search.plan.preview import check_figure
from search.plan.space import known_recipes
from search.plan.width import Fitter
from studies import StudySpec
from trainer.config import TrainConfig
from trainer.errors import DivergedError, no_room

LOWEST, HIGHEST = 1e-6, 1.0
"""Range of learning rates that are tried, evenly spaced on a logarithmic scale."""

STEPS = 120
"""Optimizer steps of the test."""

SMOOTHING = 0.95
"""Decay of the running mean of the loss."""

DIVERGED = 4.0
"""The test ends once the smoothed loss is so many times its minimum."""


@dataclass(frozen=True, kw_only=True)
class LrRange:
    """The result of the test: a range of learning rates for the study's space."""

    version: int = 2
    """Version of the JSON shape."""
    study: str
    optimizer: str
    low: float
    """A tenth of ``steepest``, rounded to one digit."""
    high: float
    """The rate at which the loss is lowest, rounded to one digit."""
    steepest: float
    """The rate at which the loss falls fastest."""
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed loss at each of ``lrs``."""
    toml: str
    """The line to paste into [space]."""
    figure: Path
    """Path of the PNG with the curve."""


def find_lr_range(spec: StudySpec, runs: Runs, device: WorkerDevice, out: Path) -> LrRange:
    """Run the test for a study's fixed recipe and draw it.

    Args:
        spec: the study. Sampled settings take the values of its first known recipe that fits, or else those of
            [train]; a sampled model is the first that fits, and a sampled width the one nearest to [train]'s that fits.
        runs: the runs folder.
        device: the device to train on.
        out: PNG to write.

    Raises:
        DivergedError: the loss never fell.
        TrainerError: the images, the model or the device cannot be used.
        UsageError: ``out`` cannot be written.
    """
    check_figure("--out", out)
    console = Terminal(stderr=True)
    use_gpu(device)
    prepared = prepare(spec, runs, console)

    from trainer.device import open_device
    from trainer.fit import sweep_lr

    config = _candidate(spec, prepared)
    lrs: list[float] = []
    losses: list[float] = []
    mean = 0.0
    with show_progress(console) as progress:
        sweep = sweep_lr(config, prepared.data, open_device(device.kind, device.num_threads), LOWEST, HIGHEST, STEPS)
        for step, (lr, loss) in enumerate(sweep):
            progress("learning-rate range test", step + 1, STEPS)
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            smoothed = mean / (1 - SMOOTHING ** (step + 1))
            if not math.isfinite(smoothed) or (losses and smoothed > DIVERGED * min(losses)):
                break
            lrs.append(lr)
            losses.append(smoothed)
    steepest, best = suggest(lrs, losses)
    low, high = _round(steepest / 10), _round(best)
    found = LrRange(
        study=spec.name,
        optimizer=config.optimizer,
        low=low,
        high=high,
        steepest=steepest,
        lrs=tuple(lrs),
        losses=tuple(losses),
        toml=f"lr = {{ low = {low:g}, high = {high:g}, log = true }}",
        figure=out,
    )
    try:
        _draw(found)
    except OSError as error:
        if full := no_room(error, out):
            raise full from error
        raise UsageError(f"--out {out} cannot be written ({error.strerror}); choose another file") from error
    return found


def _candidate(spec: StudySpec, prepared: Prepared) -> TrainConfig:
    """The candidate of the test, one that the search could have."""
    recipe: dict[str, object] = dict(next(iter(known_recipes(spec, prepared.left_out)), {}))
    if isinstance(models := prepared.space.get("model"), CategoricalDistribution):
        recipe = {"model": models.choices[0]} | recipe
    config = spec.config_for(recipe, spec.seed)
    if not (spec.sizes_vary or "width_mult" in spec.space):
        return config
    low, high = spec.width_range
    width = max(low, config.width_mult if high is None else min(config.width_mult, high))
    return Fitter(prepared.data.shape, spec.limit).resolve(config, 1.0, low, width)


def suggest(lrs: list[float], losses: list[float]) -> tuple[float, float]:
    """The rate at which the loss falls fastest, and the one at which it is lowest.

    Raises:
        DivergedError: the loss never fell.
    """
    lowest = losses.index(min(losses)) if losses else 0
    if lowest < 3:
        raise DivergedError("the loss rose from the start of the test; check the pictures and the batch size")
    slopes = [(losses[i + 1] - losses[i - 1]) / (math.log(lrs[i + 1]) - math.log(lrs[i - 1])) for i in range(1, lowest)]
    return lrs[1 + slopes.index(min(slopes))], lrs[lowest]


def text_of_lr_range(found: LrRange) -> str:
    """The output of ``search lr-range``."""
    return (
        f"{found.study}, {found.optimizer}: the loss falls fastest at lr {found.steepest:.2g}; "
        f"the curve is in {found.figure}\nfor [space]:  {found.toml}"
    )


def _round(value: float) -> float:
    """Round to one digit, which is the accuracy of the test."""
    return float(f"{value:.0e}")


def _draw(found: LrRange) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    axes.semilogx(found.lrs, found.losses, color="#1f5fa8")
    label = f"suggested: {found.low:g} to {found.high:g}"
    axes.axvspan(found.low, found.high, color="#1f5fa8", alpha=0.12, label=label)
    title = f"{found.study}: learning-rate range test"
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(found.figure)
    pyplot.close(figure)
