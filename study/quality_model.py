"""What quality is expected of a configuration, by a Gaussian process of those that have run.

Shapes: T trials, C candidates, F features, P parameters of the kernel.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

Array = npt.NDArray[np.float64]

_SCALE, _LENGTH, _NOISE = (1.0, 1.0), (1.0, 0.7), (0.02, 1.0)
"""Prior of the kernel: medians, and standard deviations of the logarithms; noise is a variance."""
_FEW, _REFIT = 40, 1.15
"""The kernel is fitted anew with every trial up to so many, then to so many times the trials."""
_EVALUATIONS, _MORE_EVALUATIONS = 40, 6
"""Evaluations of a fit that begins at the prior, and of one that goes on from the last kernel."""


class QualityModel:
    """A Gaussian process with the most probable kernel.

    Likelihood alone chooses badly among kernels while trials are few: a prior says that quality
    changes over about the whole of a setting's range, and that trials repeat well.
    """

    def __init__(self) -> None:
        self._kernel: Any = None
        self._fitted_to = 0

    def fit(self, features_TF: Array, quality_T: Array) -> None:
        """Learns from trials.

        Args:
            features_TF: Their settings, about 0 to 1 each.
            quality_T: Of each.
        """
        count = len(quality_T)
        self._centre, self._spread = quality_T.mean(), quality_T.std() or 1.0
        fits = self._kernel is None or count <= _FEW or count >= _REFIT * self._fitted_to
        evaluations = _MORE_EVALUATIONS
        if self._kernel is None or count <= _FEW:
            evaluations = _EVALUATIONS
            self._kernel = _kernel(features_TF.shape[1])
        self._process = GaussianProcessRegressor(
            self._kernel,
            optimizer=partial(_most_probable, evaluations=evaluations) if fits else None,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # A length that ends at its bound.
            self._process.fit(features_TF, (quality_T - self._centre) / self._spread)
        if fits:
            self._kernel, self._fitted_to = self._process.kernel_, count

    def predict(self, features_CF: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the quality that a trial would measure."""
        mean_C, deviation_C = self._process.predict(features_CF, return_std=True)
        deviation_C = np.maximum(deviation_C * self._spread, 1e-12)
        return mean_C * self._spread + self._centre, deviation_C


def _kernel(num_features: int) -> Any:
    surface = Matern([_LENGTH[0]] * num_features, (0.05, 50.0), nu=2.5)
    return ConstantKernel(_SCALE[0], (1e-4, 100.0)) * surface + WhiteKernel(_NOISE[0], (1e-5, 1.0))


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
