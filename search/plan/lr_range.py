"""The learning-rate range test (Smith, 2015): it trains while the rate rises, and finds the rates at which the loss
begins to fall and turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from optuna.distributions import CategoricalDistribution
from scipy.ndimage import gaussian_filter1d

from search.console import Terminal, show_progress
from search.devices import WorkerDevice, use_gpu
from search.figures.png import open_pyplot
from search.paths import Runs
from search.plan.prepare import Prepared, prepare
from search.plan.preview import check_figure, save_figure
from search.plan.space import known_recipes
from search.plan.width import Fitter
from studies import StudySpec
from trainer.config import TrainConfig
from trainer.errors import DivergedError

LOWEST, HIGHEST = 1e-6, 1.0
"""Range of learning rates that are tried, evenly spaced on a logarithmic scale."""

STEPS = 120
"""Number of optimizer steps of the test."""

BURN_IN = 20
"""Number of first steps, with rates up to 1e-5. They learn nothing, and so give the loss before its fall."""

SMOOTHING = 4.0
"""Standard deviation, in steps, of the Gaussian that smooths the loss: a factor of 1.6 in the rate. It is
symmetric, so it does not shift the curve as a running mean does."""

SURE = 3.0
"""A fall of the loss counts only if it is this many times its standard error."""

SUSTAINED = 10
"""A fall of the loss counts only if it lasts this many steps, a factor of three in the rate."""

RUNNING = 0.95
"""Decay of the running mean of the loss."""

DIVERGED = 4.0
"""The test ends once the running mean is this many times its minimum."""


@dataclass(frozen=True, kw_only=True)
class LrRange:
    """The result of the test: a range of learning rates for the study's space."""

    version: int = 2
    """Version of the JSON shape."""
    study: str
    optimizer: str
    low: float
    """The rate at which the loss begins to fall for good, rounded up to one digit."""
    high: float
    """The rate at which the loss is lowest after that, rounded down to one digit."""
    steepest: float
    """The rate between ``low`` and ``high`` at which the loss falls fastest."""
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
        spec: the study. Sampled settings have the values of the first known recipe that fits, or else those of
            [train]. A sampled model is the first that fits; a sampled width is the one nearest to [train]'s that fits.
        runs: the runs folder.
        device: the device to train on.
        out: PNG to write.

    Raises:
        DivergedError: the test has no result (``Curve.fall``); the curve is drawn nevertheless.
        TrainerError: the pictures, the model or the device cannot be used.
        UsageError: ``out`` cannot be written.
    """
    check_figure("--out", out)
    console = Terminal(stderr=True)
    use_gpu(device)
    prepared = prepare(spec, runs, console)

    from trainer.device import open_device
    from trainer.fit import sweep_lr

    config = _candidate(spec, prepared)
    device_ = open_device(device.kind, device.num_threads)
    lrs: list[float] = []
    losses: list[float] = []
    mean, lowest = 0.0, math.inf
    with show_progress(console) as progress:
        for step, (lr, loss) in enumerate(sweep_lr(config, prepared.data, device_, LOWEST, HIGHEST, STEPS), 1):
            progress("learning-rate range test, in steps", step, STEPS)
            mean = RUNNING * mean + (1 - RUNNING) * loss
            running = mean / (1 - RUNNING**step)
            if not math.isfinite(running) or running > DIVERGED * lowest:
                break
            lowest = min(lowest, running)
            lrs.append(lr)
            losses.append(loss)
    curve = Curve.of(lrs, losses)
    fall = curve.fall()
    save_figure("--out", out, lambda file: _draw(spec.name, curve, fall, file))
    if isinstance(fall, str):
        raise DivergedError(f"{fall}; the curve is in {out}")
    return LrRange(
        study=spec.name,
        optimizer=config.optimizer,
        low=fall.low,
        high=fall.high,
        steepest=fall.steepest,
        lrs=curve.lrs,
        losses=curve.smoothed,
        toml=f"lr = {{ low = {fall.low:g}, high = {fall.high:g}, log = true }}",
        figure=out,
    )


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


@dataclass(frozen=True)
class Fall:
    """The part of a curve in which the loss falls."""

    low: float
    high: float
    steepest: float
    """``low``, ``high`` and ``steepest`` as in LrRange."""


@dataclass(frozen=True)
class Curve:
    """The losses of a test."""

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    """Loss of the batch at each of ``lrs``."""
    smoothed: tuple[float, ...]

    @classmethod
    def of(cls, lrs: Sequence[float], losses: Sequence[float]) -> Self:
        """The curve of the losses at these rates."""
        smoothed = gaussian_filter1d(np.asarray(losses, dtype=float), SMOOTHING, mode="nearest") if losses else ()
        return cls(tuple(lrs), tuple(losses), tuple(map(float, smoothed)))

    def fall(self) -> Fall | str:
        """The first sustained fall, up to where the curve turns; or the reason why the test has no result."""
        if len(self.losses) < BURN_IN + SUSTAINED:
            return (
                f"the test has no result: it ended after {len(self.losses)} of {STEPS} steps, because the loss rose; "
                "check the pictures, the batch size and the augmentation"
            )
        lrs, losses, smoothed = np.array(self.lrs), np.array(self.losses), np.array(self.smoothed)
        before = losses[:BURN_IN].mean()
        noise = 1.4826 * np.median(np.abs(losses - smoothed))  # a deviation that outliers do not change
        # The variance of a Gaussian mean of independent losses is the variance of a loss divided by 2 sqrt(pi) sigma.
        error = noise * math.sqrt(1 / (2 * math.sqrt(math.pi) * SMOOTHING) + 1 / BURN_IN)
        has_fallen = smoothed < before - SURE * error
        begins = next(
            (at for at in range(BURN_IN, len(losses) - SUSTAINED) if has_fallen[at : at + SUSTAINED].all()), None
        )
        if begins is None:
            return (
                f"the test has no result: from {before:.3g} the loss fell by {max(0.0, before - smoothed.min()):.2g}, "
                f"and batches of this noise need a lasting fall by {SURE * error:.2g}; larger batches "
                "(train.batch_size) and less augmentation make the losses less noisy"
            )
        turns = begins + int(smoothed[begins:].argmin())
        low, high = _one_digit(lrs[begins], math.ceil), _one_digit(lrs[turns], math.floor)
        if low >= high:
            return f"the test has no result: the loss turns at {lrs[turns]:.2g}, as soon as it has begun to fall"
        inside = (lrs >= low) & (lrs <= high)
        slopes = np.gradient(smoothed, np.log(lrs))
        return Fall(low, high, float(lrs[inside][slopes[inside].argmin()]))


def text_of_lr_range(found: LrRange) -> str:
    """The output of ``search lr-range``."""
    return (
        f"{found.study}, {found.optimizer}: the loss falls from lr {found.low:g} on, fastest at {found.steepest:.2g}, "
        f"and turns at {found.high:g}; the curve is in {found.figure}\nfor [space]:  {found.toml}"
    )


def _one_digit(value: float, towards: Callable[[float], int]) -> float:
    """Round to one digit, which is the accuracy of the test."""
    digit = 10.0 ** math.floor(math.log10(value))
    return float(f"{towards(round(value / digit, 6)) * digit:.0e}")


def _draw(study: str, curve: Curve, fall: Fall | str, out: Path) -> None:
    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    axes.semilogx(curve.lrs, curve.losses, ".", color="#9db7d5", markersize=4, label="loss of a batch")
    axes.semilogx(curve.lrs, curve.smoothed, color="#1f5fa8", label="smoothed")
    if isinstance(fall, Fall):
        label = f"suggested: {fall.low:g} to {fall.high:g}"
        axes.axvspan(fall.low, fall.high, color="#1f5fa8", alpha=0.12, label=label)
    title = f"{study}: learning-rate range test{'' if isinstance(fall, Fall) else ', without a result'}"
    axes.set(xlabel="learning rate", ylabel="training loss", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out)
    pyplot.close(figure)
