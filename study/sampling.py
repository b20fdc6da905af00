"""Which point next."""

import optuna


def build_sampler(seed: int, num_trials: int) -> optuna.samplers.BaseSampler:
    """Multivariate TPE; of Optuna's samplers the one that learns from infeasible trials.

    Args:
        seed: The study's seed.
        num_trials: Trials the study has already; a resumed study must not draw its first random
            points again.
    """
    return optuna.samplers.TPESampler(multivariate=True, seed=(seed + num_trials * 7919) % 2**32)
