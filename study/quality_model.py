"""What quality is expected of a configuration, by a Gaussian process of those that have run.

Shapes: T trials, C candidates, F features, S sources, P parameters of the kernel.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel

Array = npt.NDArray[np.float64]

_SCALE, _LENGTH, _NOISE = (1.0, 1.0), (1.0, 0.7), (0.02, 1.0)
"""Prior of the kernel: medians, and standard deviations of the logarithms; noise is a variance."""
_SLOPE, _LEVEL = 0.1, 0.5
"""Prior variances, with sources: of the weight of each, beside their mean, and of a constant."""
_TRUST = 2
"""How many trials a source counts for, where it says how much the quality varies."""
_FEW, _REFIT = 40, 1.15
"""The kernel is fitted anew with every trial up to so many, then to so many times the trials."""
_EVALUATIONS, _MORE_EVALUATIONS = 40, 6
"""Evaluations of a fit that begins at the prior, and of one that goes on from the last kernel."""


class QualityModel:
    """A Gaussian process with the most probable kernel.

    Likelihood alone chooses badly among kernels while trials are few: a prior says that quality
    changes over about the whole of a setting's range, and that trials repeat well.

    Sources, if there are, are other studies, each with a surface of its own. The quality is then
    expected to be their mean, and to differ from it by a weight of each, and by as smooth a
    surface as without them.
    """

    def __init__(self, num_sources: int = 0, variation: float = 0.0) -> None:
        """Prepares.

        Args:
            num_sources: S; the last features are what these expect, in standard deviations.
            variation: Standard deviation of qualities in them, as a share of their mean.
        """
        self._num_sources, self._variation = num_sources, variation
        self._kernel: Any = None
        self._fitted_to = 0

    def fit(self, features_TF: Array, quality_T: Array) -> None:
        """Learns from trials.

        Args:
            features_TF: Their settings, about 0 to 1 each.
            quality_T: Of each.
        """
        count = len(quality_T)
        self._centre, self._middle_F = quality_T.mean(), features_TF.mean(axis=0)
        self._spread = quality_T.std() or 1.0
        if expected := self._variation * abs(self._centre):
            # A few trials say little of how much the quality varies.
            trust = _TRUST / (_TRUST + count - 1)
            self._spread = expected**trust * self._spread ** (1 - trust)
        fits = self._kernel is None or count <= _FEW or count >= _REFIT * self._fitted_to
        evaluations = _MORE_EVALUATIONS
        if self._kernel is None or count <= _FEW:
            evaluations = _EVALUATIONS
            self._kernel = _kernel(features_TF.shape[1] - self._num_sources, self._num_sources)
        self._process = GaussianProcessRegressor(
            self._kernel,
            optimizer=partial(_most_probable, evaluations=evaluations) if fits else None,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # A length that ends at its bound.
            inputs_TF, prior_T = self._inputs(features_TF)
            self._process.fit(inputs_TF, (quality_T - self._centre) / self._spread - prior_T)
        if fits:
            self._kernel, self._fitted_to = self._process.kernel_, count

    def predict(self, features_CF: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the quality that a trial would measure."""
        inputs_CF, prior_C = self._inputs(features_CF)
        mean_C, deviation_C = self._process.predict(inputs_CF, return_std=True)
        deviation_C = np.maximum(deviation_C * self._spread, 1e-12)
        return (mean_C + prior_C) * self._spread + self._centre, deviation_C

    def _inputs(self, features_CF: Array) -> tuple[Array, Array]:
        """What the kernel is given, and what the sources expect on average, beside the trials'."""
        if not self._num_sources:
            return features_CF, np.zeros(len(features_CF))
        own = slice(-self._num_sources)
        expected_CS = (features_CF - self._middle_F)[:, -self._num_sources :]
        return np.hstack([features_CF[:, own], expected_CS]), expected_CS.mean(axis=1)


class _Surface(Matern):  # type: ignore[misc]
    """Of the first columns, as many as it has lengths."""

    def __call__(self, X: Array, Y: Array | None = None, eval_gradient: bool = False) -> Any:
        num_features = np.size(self.length_scale)
        others = None if Y is None else Y[:, :num_features]
        return super().__call__(X[:, :num_features], others, eval_gradient)


class _Weights(Kernel):  # type: ignore[misc]
    """Linear in the columns behind the first ones, with a constant; nothing to be fitted."""

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def __call__(self, X: Array, Y: Array | None = None, eval_gradient: bool = False) -> Any:
        left, right = (Z[:, self.num_features :] for Z in (X, X if Y is None else Y))
        product = _SLOPE * left @ right.T + _LEVEL
        return (product, np.empty((*product.shape, 0))) if eval_gradient else product

    def diag(self, X: Array) -> Array:
        """That of the matrix."""
        diagonal: Array = _SLOPE * np.square(X[:, self.num_features :]).sum(axis=1) + _LEVEL
        return diagonal

    def is_stationary(self) -> bool:
        """That it is not."""
        return False


def _kernel(num_features: int, num_sources: int) -> Any:
    surface = _Surface([_LENGTH[0]] * num_features, (0.05, 50.0), nu=2.5)
    kernel = ConstantKernel(_SCALE[0], (1e-4, 100.0)) * surface
    kernel += WhiteKernel(_NOISE[0], (1e-5, 1.0))
    return kernel + _Weights(num_features) if num_sources else kernel


def _most_probable(
    objective: Callable[..., Any], initial_P: Array, bounds: Array, evaluations: int
) -> tuple[Array, float]:
    """By likelihood and prior, in so many evaluations at most."""
    num_lengths = len(initial_P) - 2
    prior_P2 = np.array([_SCALE, *[_LENGTH] * num_lengths, _NOISE])
    centre_P, spread_P = np.log(prior_P2[:, 0]), prior_P2[:, 1]

    def improbability(parameters_P: Array) -> tuple[float, Array]:
        value, gradient_P = objective(parameters_P)
        z_P = (parameters_P - centre_P) / spread_P
        return value + 0.5 * float(z_P @ z_P), gradient_P + z_P / spread_P

    found = minimize(
        improbability,
        initial_P,
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"maxfun": evaluations},
    )
    return found.x, found.fun
