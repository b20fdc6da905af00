"""Which point next."""

import warnings

import optuna


def build_sampler(seed: int, num_trials: int) -> optuna.samplers.BaseSampler:
    """Multivariate TPE; of Optuna's samplers the one that learns from infeasible trials.

    Settings that the same trials have are modelled together, as those of one loss.

    Args:
        seed: The study's seed.
        num_trials: Trials the study has already; a resumed study must not draw its first random
            points again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, seed=(seed + num_trials * 7919) % 2**32
        )
