"""CCE: cross-entropy over the whole catalogue, without storing the logits.

Shapes: N rows, V items, D width.
"""

from typing import Literal, overload

from torch import Tensor

from kernels._checks import check_filter
from kernels._losses import checked_problem, reduced_loss


@overload
def full_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_lse: Literal[False] = False,
    filter_eps: float | None = None,
    deterministic: bool | None = None,
) -> Tensor: ...


@overload
def full_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_lse: Literal[True],
    filter_eps: float | None = None,
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor]: ...


def full_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_lse: bool = False,
    filter_eps: float | None = None,
    deterministic: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-entropy of each row's target t against all V items.

    With z_v = logit_scale * <state, item v> + bias_v::

        lse  = logsumexp(z_v over all items v)
        loss = lse - z_t

    Args:
        states_ND: Output states: float16, bfloat16, float32 or float64, in any layout.
        table_VD: Item table, V at least 1.
        targets_N: Item ids, int64.
        bias_V: Added to the logits.
        logit_scale: Factor of the inner products, a number or a 0-dimensional tensor (1 /
            temperature).
        ignore_index: A row with this target has loss 0 and no gradient.
        reduction: "mean" over the rows that are not ignored (0 where there is none), "sum" or
            "none".
        return_lse: Return the log-sum-exp of every row too; both are differentiable, once.
        filter_eps: Leave out of the gradients the tiles of rows and items in which no softmax
            error reaches this. It saves time where the softmax is peaked. Where it is flat, every
            error is about 1 / V, and a threshold above that loses the whole gradient but for the
            targets'. The eager backend leaves out nothing.
        deterministic: Gradients that are equal bit by bit in every run; None: as
            `torch.use_deterministic_algorithms` has it.

    Returns:
        The loss, at least float32: a scalar, or [N] with reduction "none". With return_lse, the
        pair of it and lse_N, which is 0 in an ignored row.

    Raises:
        ValueError: An argument does not fit; the message names it. A target outside [0, V) on a
            GPU has loss NaN and no gradient, and the next call of a loss raises the error.

    Source: CCE (arXiv 2411.09009). Its gradient filter is `filter_eps` = 2^-12 for bfloat16.
    """
    check_filter(filter_eps)
    problem = checked_problem(
        states_ND, table_VD, targets_N, bias_V, logit_scale, ignore_index, deterministic
    )
    loss, lse_N = reduced_loss(problem, reduction, filter_eps=filter_eps)
    return (loss, lse_N) if return_lse else loss
