"""A Gaussian process in which each observation has its own noise.

scikit-learn's regressor has no priors on its hyperparameters. With a dozen observations of seven settings, priors are
needed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, lapack
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

PRIOR_LENGTH, PRIOR_VARIANCE, PRIOR_NOISE = (0.0, 1.0), (0.0, 1.0), (np.log(0.01), 1.5)
"""Priors as (mean, standard deviation) of the logarithm: of a length in the unit cube, and of the variance and noise of
standardised values. For the lengths see bench/sampler.md, "How well the model sampler chooses"."""

BLOCK = 16_384
"""Number of values in a block of ``_matern``: three arrays of them take 400 kB."""

JITTER = 1e-6
"""Added to the diagonal of each covariance matrix, which would be singular for equal points."""


@dataclass(frozen=True)
class Observations:
    """The data that a Gaussian process is fitted to."""

    features: Array
    """[number, number of columns]."""
    values: Array
    """[number], standardised."""
    variances: Array
    """[number], the known part of the noise variance of each value, in squared standardised units."""


class Process:
    """A Gaussian process with Matern 5/2 covariance and a length for each setting.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006: equations 2.25 and 2.26 for the prediction,
    4.17 for the covariance, 5.8 and 5.9 for the likelihood.

    Args:
        observations: at least one.
        setting_of: column of the features -> number of its setting.
        theta: logarithms of the length of each setting, of the variance and of the noise, from ``fitted_theta``.
    """

    def __init__(self, observations: Observations, setting_of: NDArray[np.int_], theta: Array) -> None:
        self._lengths = np.exp(theta[:-2])[setting_of]
        self._variance = float(np.exp(theta[-2]))
        self._scaled = observations.features / self._lengths
        covariance = self._variance * _matern(_distances(self._scaled, self._scaled))
        covariance[np.diag_indices_from(covariance)] += observations.variances + np.exp(theta[-1]) + JITTER
        factor = cholesky(covariance, lower=True)
        self._weights = cho_solve((factor, True), observations.values)
        self._whitening, _ = lapack.dtrtri(factor, lower=1)

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free values at these points."""
        cross = self._covariances(features)
        explained = cross @ self._whitening.T
        variance = self._variance - np.einsum("ij,ij->i", explained, explained)
        return cross @ self._weights, np.sqrt(np.maximum(variance, 1e-9))

    def mean(self, features: Array) -> Array:
        """Mean of the values at these points."""
        means: Array = self._covariances(features) @ self._weights
        return means

    def _covariances(self, features: Array) -> Array:
        return self._variance * _matern(_distances(features / self._lengths, self._scaled))


def one_thread() -> AbstractContextManager[object]:
    """A context in which linear algebra uses one thread.

    For matrices of a few hundred rows, more threads are not faster, and are much slower if other processes use the
    cores. The last bits of a result depend on the number of threads.
    """
    context: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return context


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def first_theta(settings: int) -> Array:
    """The most likely hyperparameters by the priors alone, for this number of settings."""
    return np.array([PRIOR_LENGTH[0]] * settings + [PRIOR_VARIANCE[0], PRIOR_NOISE[0]])


def fitted_theta(observations: Observations, setting_of: NDArray[np.int_], begin: Array, steps: int) -> Array:
    """Hyperparameters with a high posterior density, after ``steps`` steps of L-BFGS-B from ``begin``."""
    settings = len(begin) - 2
    bounds = [(-3.0, 3.0)] * (settings + 1) + [(-9.0, 0.0)]
    options = {"maxiter": steps}
    found = minimize(
        _loss, begin, (observations, setting_of), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return np.asarray(found.x, float)


def _loss(theta: Array, observations: Observations, setting_of: NDArray[np.int_]) -> tuple[float, Array]:
    """Negative logarithm of the posterior density, and its gradient."""
    settings = len(theta) - 2
    lengths, variance, noise = np.exp(theta[:settings])[setting_of], np.exp(theta[-2]), np.exp(theta[-1])
    scaled = observations.features / lengths
    values = observations.values
    signal, slope = _matern_and_slope(_distances(scaled, scaled))
    covariance = variance * signal
    covariance[np.diag_indices_from(covariance)] += observations.variances + noise + JITTER
    factor = cholesky(covariance, lower=True, check_finite=False)
    weights = cho_solve((factor, True), values, check_finite=False)
    inverse, _ = lapack.dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    pull = inverse - np.outer(weights, weights)
    spread = np.array([PRIOR_LENGTH] * settings + [PRIOR_VARIANCE, PRIOR_NOISE])
    away = (theta - spread[:, 0]) / spread[:, 1]
    loss = 0.5 * values @ weights + np.log(np.diag(factor)).sum() + 0.5 * away @ away

    gradient = np.empty_like(theta)
    weighted = pull * slope
    per_column = weighted.sum(1) @ scaled**2 - np.einsum("ij,ij->j", scaled, weighted @ scaled)
    gradient[:settings] = variance * np.bincount(setting_of, per_column, settings)
    gradient[-2] = 0.5 * variance * np.einsum("ij,ij->", pull, signal)
    gradient[-1] = 0.5 * noise * np.trace(pull)
    return float(loss), gradient + away / spread[:, 1]


def _distances(one: Array, other: Array) -> Array:
    """Squared distances between rows."""
    squared: Array = (one**2).sum(1)[:, None] + (other**2).sum(1)
    squared -= 2 * one @ other.T
    return np.maximum(squared, 0.0, out=squared)


def _matern(squared: Array) -> Array:
    """Matern 5/2 at these squared distances, in their place.

    In blocks, which stay in the processor's cache: that takes 40 % of the time that whole arrays take.
    """
    flat, scratch = squared.reshape(-1), np.empty((2, min(BLOCK, squared.size)))
    for begin in range(0, len(flat), BLOCK):
        root = flat[begin : begin + BLOCK]
        curve, line = scratch[:, : len(root)]
        np.sqrt(np.multiply(root, 5.0, out=root), out=root)
        np.divide(np.square(root, out=curve), 3, out=curve)
        curve += np.add(root, 1, out=line)
        np.multiply(np.exp(np.negative(root, out=root), out=root), curve, out=root)
    return squared


def _matern_and_slope(squared: Array) -> tuple[Array, Array]:
    """Matern 5/2 at these squared distances, and -2 times its derivative by the squared distance."""
    root = np.sqrt(5.0 * squared)
    decay = np.exp(-root)
    slope = (1 + root) * decay
    return slope + root**2 / 3 * decay, (5 / 3) * slope
