"""Binary cross-entropies of each row's target and sampled candidates: BCE, BCE+ and gBCE.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, D width.
"""

import math

from torch import Tensor

from kernels._losses import checked_problem, sampled_loss, with_candidates
from kernels.candidates import Candidates
from kernels.row_gradient import RowSink


def sampled_binary_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    candidates: Candidates,
    *,
    group_size: int = 1,
    positive_weight: float = 1.0,
    bias_V: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    table_gradient: str | RowSink = "dense",
    deterministic: bool | None = None,
) -> Tensor:
    """The target against 1 and each candidate against 0 (BCE with one candidate, BCE+ with more).

    Row n belongs to group n // group_size and shares that group's K candidates j. With t its
    target and z_v = logit_scale * <state, item v> + bias_v::

        loss = positive_weight * softplus(-z_t) + sum of softplus(z_j) over j != t

    It is summed over the candidates, as BCE+ is; gSASRec and RecTools divide by K + 1.

    Args:
        states_ND: Output states: float16, bfloat16, float32 or float64, in any layout.
        table_VD: Item table, V at least 2.
        targets_N: Item ids, int64.
        candidates: Source of the K candidates of every group. A log-weight of `Explicit` lists is
            added to the logits.
        group_size: R, rows that share their candidates.
        positive_weight: Weight of the target's term; that of gBCE is `calibrated_weight`.
        bias_V: Added to the logits.
        logit_scale: Factor of the inner products, a number or a 0-dimensional tensor.
        ignore_index: A row with this target has loss 0 and no gradient.
        reduction: "mean" over the rows that are not ignored (0 where there is none), "sum" or
            "none".
        table_gradient: As that of `sampled_cross_entropy`.
        deterministic: As that of `sampled_cross_entropy`.

    Returns:
        The loss, at least float32: a scalar, or [N] with reduction "none".

    Raises:
        ValueError: An argument does not fit; the message names it. What cannot be seen on a GPU is
            as in `sampled_cross_entropy`.

    Source: SASRec (arXiv 1808.09781) with K = 1, BCE+ of CCE- (arXiv 2509.09682), gBCE (arXiv
    2308.07192); here a collision with the target is no candidate, and nothing is added to the
    probabilities, for softplus is safe at any logit.
    """
    problem = checked_problem(
        states_ND, table_VD, targets_N, bias_V, logit_scale, ignore_index, deterministic
    )
    if not 0 <= positive_weight < math.inf:
        raise ValueError(f"positive_weight must be finite and not negative, not {positive_weight}")
    problem = with_candidates(problem, candidates, group_size)
    problem = problem._replace(positive_weight=float(positive_weight))
    loss, _ = sampled_loss(problem, reduction, table_gradient)
    return loss


def calibrated_weight(num_candidates: int, num_items: int, calibration: float) -> float:
    """The weight of the target's term in gBCE, beta = 1 - t (1 - alpha) with alpha = K / (V - 1).

    The paper's log(sigmoid(z)^beta) of the positive logit is beta times the target's term, so
    that no transform of logits is needed.

    Args:
        num_candidates: K.
        num_items: V, at least 2.
        calibration: t: 0 is BCE, 1 undoes the overconfidence of sampling altogether.

    Raises:
        ValueError: The calibration is not in [0, 1], or V below 2.

    Source: gSASRec (arXiv 2308.07192, section 5).
    """
    if not 0 <= calibration <= 1:
        raise ValueError(f"calibration must lie in [0, 1], not be {calibration}")
    if num_items < 2:
        raise ValueError("num_items must be at least 2: one item has no negatives")
    return 1 - calibration * (1 - min(1.0, num_candidates / (num_items - 1)))
