"""The sampler "model", for candidates that are compared at rungs: a Gaussian process on their estimated ends."""

from __future__ import annotations

import math
import zlib
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from search.policy.candidates import CandidateReader, Candidates, common_space
from search.policy.encoding import Encoding, Points, value_at
from search.policy.estimate import Estimates, estimated_ends
from search.policy.gp import Observations, Process, first_theta, fitted_theta, one_thread
from search.policy.ladder import Ladder
from search.policy.propose import proposed

MOST, CHOSEN = 300, 150
"""The Gaussian process is fitted to all candidates, or to CHOSEN of them if there are more than MOST."""

FIT_STEPS = 20
"""Steps of the optimizer that fits the hyperparameters."""

REFIT_EVERY, REFIT_STEPS = 10, 4
"""With more than MOST candidates, hyperparameters are fitted only for each REFIT_EVERY-th trial, by REFIT_STEPS steps
from the last fitted values."""

THETA = "model:theta"
"""Trial attribute, set if there are more than MOST candidates: the names of the sampled settings, and the
hyperparameters that were fitted for the trial."""

RANDOM_EVERY = 3
"""One of RANDOM_EVERY candidates is random (bench/LOG.md, "What was tried for the model sampler")."""

FLOOR = 2.0
"""Values below the bound median - FLOOR x (best - median) are raised to it (bench/sampler.md)."""


class ModelSampler(BaseSampler):
    """Learns from all candidates of a study: complete, pruned, paused and running.

    The first candidates are a scrambled Sobol sequence. After them, every third candidate is random. The others have
    the highest expected improvement of a Gaussian process. The process is fitted to the estimated end of each candidate
    and the variance of the estimate (``search.policy.estimate``). A candidate that has reached no rung counts with the
    mean that the process predicts for it. A diverged candidate counts as the worst. Low values are raised to a bound
    (``FLOOR``).

    A suggestion depends only on the seed, on the trial's number, and on the settings, values and attributes of the
    other trials. The sampler is for one objective without constraints. Axes that some trials do not have, or that have
    changed, are sampled at random.

    Args:
        seed: the seed of the study.
        ladder: the rungs. With ``Ladder((last_step,))`` there are none, and a pruner may end candidates at any step.
            None: only values of complete trials are used.
        startup_trials: number of candidates that must have reached a rung or the end, or have diverged, before the
            Gaussian process is used.
    """

    def __init__(self, *, seed: int, ladder: Ladder | None = None, startup_trials: int = 10) -> None:
        self._seed = seed
        self._startup_trials = startup_trials
        self._ladder = ladder
        self._study: Study | None = None
        self._seen = CandidateReader(ladder)
        self._last: tuple[int, Candidates] | None = None
        """Number of the last trial that the sampler was asked for, and the candidates at that time."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The axes that all other candidates have in common, without axes of a single value."""
        if study is not self._study:
            self._study, self._seen = study, CandidateReader(self._ladder)
        candidates = self._seen.candidates(study.get_trials(deepcopy=False), but=trial.number)
        self._last = trial.number, candidates
        return common_space(candidates.spaces)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a random value."""
        rng = self._rng(trial, zlib.crc32(param_name.encode()))
        return value_at(param_distribution, rng.random())

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The settings to try next; empty if the trial is resumed and has all its settings already."""
        if search_space.keys() <= trial.params.keys():
            return {}
        with one_thread():
            return self._settings(study, trial, search_space)

    def _settings(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        encoding, rng = Encoding(search_space), self._rng(trial)
        if self._last is not None and self._last[0] == trial.number:
            candidates = self._last[1]
        else:  # another thread has asked meanwhile
            candidates = self._seen.candidates(study.get_trials(deepcopy=False), but=trial.number)
        judged, running = candidates.judged, candidates.unjudged[-CHOSEN:]
        if len(judged) < self._startup_trials:
            sequence = qmc.Sobol(len(search_space), rng=np.random.default_rng(self._seed)).fast_forward(trial.number)
            return encoding.settings(sequence.random()[0])
        sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
        estimates = estimated_ends(sign * candidates.values)
        if trial.number % RANDOM_EVERY == RANDOM_EVERY - 1 or np.isnan(estimates.ends).all():
            return encoding.settings(rng.random(len(search_space)))
        chosen = np.arange(len(judged)) if len(judged) <= MOST else _choice(estimates.ends, CHOSEN)
        points = _points(candidates, judged[chosen], encoding)
        ends, variances = _standardised(estimates, chosen)
        observations = Observations(encoding.features(points), ends, variances)
        theta = self._theta(study, trial, observations, encoding, beyond=len(judged) > MOST)
        process = Process(observations, encoding.setting_of, theta)
        if len(running):
            believed = _points(candidates, running, encoding)
            means = process.mean(encoding.features(believed))
            points = np.concatenate([points, believed])
            observations = Observations(
                encoding.features(points),
                np.concatenate([ends, means]),
                np.concatenate([variances, np.zeros(len(means))]),
            )
            process = Process(observations, encoding.setting_of, theta)
        return encoding.settings(proposed(encoding, points, process, rng))

    def _rng(self, trial: FrozenTrial, purpose: int = 0) -> np.random.Generator:
        return np.random.default_rng((self._seed, trial.number, purpose))

    def _theta(
        self, study: Study, trial: FrozenTrial, observations: Observations, encoding: Encoding, *, beyond: bool
    ) -> NDArray[np.float64]:
        """The hyperparameters, fitted now or stored with one of the last trials; ``beyond``: there are more than MOST
        candidates."""
        names, begin, steps = list(encoding.axes), first_theta(len(encoding.axes)), FIT_STEPS
        if beyond:
            before = takewhile(lambda other: other.number < trial.number, study.get_trials(deepcopy=False))
            for other in reversed(list(before)):
                kept = other.system_attrs.get(THETA)
                if kept is not None and kept["settings"] == names:
                    begin, steps = np.array(kept["theta"]), REFIT_STEPS
                    if trial.number - other.number < REFIT_EVERY:
                        return begin
                    break
        theta = fitted_theta(observations, encoding.setting_of, begin, steps)
        if beyond:
            kept = {"settings": names, "theta": theta.tolist()}
            study._storage.set_trial_system_attr(trial._trial_id, THETA, kept)  # as Optuna's own samplers do
        return theta


def _points(candidates: Candidates, places: NDArray[np.int_], encoding: Encoding) -> Points:
    found = [one.coordinates for at in places if (one := candidates.at[at]) is not None]
    return np.array([[coordinates[name] for name in encoding.axes] for coordinates in found], float)


def _choice(ends: NDArray[np.float64], most: int) -> NDArray[np.int_]:
    """Choose ``most`` candidates for the Gaussian process: a third are the best, a third the newest, and a third evenly
    spaced among the others."""
    third = most // 3
    order = np.argsort(-np.nan_to_num(ends, nan=-math.inf), kind="stable")
    taken = np.zeros(len(ends), bool)
    taken[order[:third]] = True
    taken[np.flatnonzero(~taken)[-third:]] = True
    rest = np.flatnonzero(~taken)
    taken[rest[np.linspace(0, len(rest) - 1, most - 2 * third).round().astype(int)]] = True
    return np.flatnonzero(taken)


def _standardised(estimates: Estimates, chosen: NDArray[np.int_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and variances of the chosen candidates: relative to the median, in units of the standard deviation.

    Low values are raised first (``FLOOR``); otherwise, with a few very low values, the others would hardly differ.
    """
    ends, variances = estimates.ends[chosen], estimates.variances[chosen]
    ends = np.where(np.isnan(ends), np.nanmin(estimates.ends), ends)
    middle, top = float(np.median(ends)), float(ends.max())
    ends = np.maximum(ends, middle - FLOOR * (top - middle))
    unit = max(float(ends.std()), 1e-9)
    return (ends - middle) / unit, np.nan_to_num(variances, nan=0.0) / unit**2
