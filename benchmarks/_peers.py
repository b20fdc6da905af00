"""Other people's losses, called as their own code calls them, and the truth each is held to.

Shapes: N rows, K candidates, V items, D width.

Every loss and every truth takes (states_ND, table_VD, targets_N, K, seed) and returns the mean
over the rows. K is 0 for the full softmax. A loss that draws takes its ids from torch's generator,
which the caller may seed; its truth seeds the generator and draws the same ids. The losses that
are part of a model, `sasrec` and `rectools`, are built around states of B sequences of L instead.

The code of the peers lies in the folder .peers; README.md beside this says how to fetch it.
"""

import functools
import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_PEERS = Path(__file__).parents[1] / ".peers"

Loss = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]


class Unavailable(Exception):
    """Why a loss cannot be measured here."""


@dataclass(frozen=True)
class Implementation:
    """A loss to measure.

    Attributes:
        name: What the rows call it.
        loss: The loss.
        truth: What it computes, in plain PyTorch; given float64, only rounding is left between.
        group_size: Rows that share their candidates; None for the full softmax.
        table_gradient: Form of the table's gradient, "dense" or "touched".
        table_grad_dtype: Its type.
    """

    name: str
    loss: Loss
    truth: Loss
    group_size: int | None = None
    table_gradient: str = "dense"
    table_grad_dtype: torch.dtype = torch.bfloat16


def candidate_loss(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, negatives_NK: Tensor
) -> Tensor:
    """CE- with the candidates of every row gathered: logits in the inputs' type, then float32."""
    num_items, num_candidates = table_VD.shape[0], negatives_NK.shape[1]
    collides_NK = negatives_NK == targets_N[:, None]
    logits_NC = _gathered_logits(states_ND, table_VD, targets_N, negatives_NK)
    misses_N1 = (num_candidates - collides_NK.sum(1, keepdim=True)).clamp(min=1)
    correction_N1 = torch.log((num_items - 1) / misses_N1.to(logits_NC.dtype))
    correction_NK = correction_N1.expand_as(negatives_NK)
    logits_NC = logits_NC + F.pad(correction_NK.masked_fill(collides_NK, -torch.inf), (1, 0))
    return F.cross_entropy(logits_NC, torch.zeros_like(targets_N))


def full_loss(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, *_: int) -> Tensor:
    """CE with all logits stored."""
    _check_memory(states_ND, len(states_ND) * len(table_VD))
    return F.cross_entropy(states_ND @ table_VD.T, targets_N)


def _eager_sampled(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, num_candidates: int, _: int
) -> Tensor:
    negatives_NK = _draw(targets_N, len(table_VD), num_candidates)
    return candidate_loss(states_ND, table_VD, targets_N, negatives_NK)


def _eager_sampled_truth(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, num_candidates: int, seed: int
) -> Tensor:
    torch.manual_seed(seed)
    return _eager_sampled(states_ND, table_VD, targets_N, num_candidates, seed)


_PUBLISHED_LOSS_SCALE = 2.0**16
"""Their trainer runs with precision "16-mixed", whose gradient scaler starts here. Without it most
of the float16 gradient of a mean over so many rows would round to zero."""


def _published(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, num_candidates: int, _: int
) -> Tensor:
    """CCE- as `SasRec._compute_loss_cce` of the released code has it, line by line.

    Timed: the float16 copies of states and table (and, going back, the casts of their gradients),
    the search for ignored targets, which waits for the device, the draws, the collisions, the
    target put in front, the kernels, the scaling of the loss. Not timed: leaving out the padded
    positions, which comes before there is a state for each row.
    """
    cce = load("published", "cut_cross_entropy.cce")
    vocab_size = len(table_VD)
    e = states_ND.to(torch.float16).contiguous()
    valids = cce._build_flat_valids(targets_N, -100, 0)
    negative_labels = _draw(targets_N, vocab_size, num_candidates)
    # All three tensors live until the loss is returned, as they do there.
    reject_labels_mask = targets_N.view(-1, 1) == negative_labels
    negative_labels[reject_labels_mask] = vocab_size
    item_inds = torch.hstack([targets_N.view(-1, 1), negative_labels])
    params = cce.CCEParams(
        targets=targets_N,
        valids=valids,
        softcap=None,
        reduction="mean",
        filter_eps=None,
        shift=0,
        batch_shape=targets_N.size(),
        use_kahan=False,
        item_inds=item_inds,
    )
    loss: Tensor = cce.LinearCrossEntropyFunction.apply(e, table_VD.to(e.dtype), None, params)
    return loss * _PUBLISHED_LOSS_SCALE


def _published_truth(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, num_candidates: int, seed: int
) -> Tensor:
    """Its own formula: a collision is an item of zeros, and K + 1 items were drawn."""
    torch.manual_seed(seed)
    negatives_NK = _draw(targets_N, len(table_VD), num_candidates)
    collides_NC = F.pad(negatives_NK == targets_N[:, None], (1, 0))
    correction_NC = F.pad(
        torch.full_like(
            negatives_NK,
            math.log(len(table_VD) - 1) - math.log(num_candidates + 1),
            dtype=states_ND.dtype,
        ),
        (1, 0),
    )
    logits_NC = _gathered_logits(states_ND, table_VD, targets_N, negatives_NK)
    logits_NC = logits_NC.masked_fill(collides_NC, 0.0) + correction_NC
    return F.cross_entropy(logits_NC, torch.zeros_like(targets_N)) * _PUBLISHED_LOSS_SCALE


def _apple(preset: str, states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, *_: int) -> Tensor:
    package = load("apple", "cut_cross_entropy")
    loss: Tensor = package.linear_cross_entropy(states_ND, table_VD, targets_N, impl=preset)
    return loss


def _liger(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, *_: int) -> Tensor:
    module = load("liger", "liger_kernel.ops.fused_linear_cross_entropy")
    # The gradient of the table is summed over thousands of chunks: in float32, as their
    # documentation advises, not in the type of the table, which is the default.
    loss: Tensor = module.LigerFusedLinearCrossEntropyFunction.apply(
        states_ND,
        table_VD,
        targets_N,
        None,  # bias
        None,  # ce_weight
        -100,  # ignore_index
        0.0,  # lse_square_scale
        0.0,  # label_smoothing
        "mean",
        None,  # softcap
        False,  # return_z_loss
        torch.float32,  # accum_dtype
    )[0]
    return loss


def _torch(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, *_: int) -> Tensor:
    linear_cross_entropy = getattr(F, "linear_cross_entropy", None)
    if linear_cross_entropy is None:
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy")
    # Without options it stores all logits.
    options = torch.nn.LinearCrossEntropyOptions()
    loss: Tensor = linear_cross_entropy(states_ND, table_VD, targets_N, options=options)
    return loss


PUBLISHED = Implementation("published", _published, _published_truth, group_size=1)
EAGER_SAMPLED = Implementation("eager", _eager_sampled, _eager_sampled_truth, group_size=1)
EAGER_FULL = Implementation("eager", full_loss, full_loss)
APPLE = Implementation("apple cce", functools.partial(_apple, "cce"), full_loss)
APPLE_EXACT = Implementation("apple cce_exact", functools.partial(_apple, "cce_exact"), full_loss)
LIGER = Implementation("liger", _liger, full_loss)
TORCH = Implementation("torch linear_cross_entropy", _torch, full_loss)


def sasrec(
    folder: str,
    states_BLD: Tensor,
    table_VD: Tensor,
    targets_BL: Tensor,
    negatives_BLK: Tensor | None,
    config: dict[str, Any],
) -> tuple[Tensor, Callable[[], Tensor]]:
    """A loss of Scalable-SASRec or RECE: `forward` of their `SASRec`, built without blocks.

    Overridden is `log2feats`, the encoder, which gives the states.

    Args:
        folder: In .peers.
        states_BLD: Output states.
        table_VD: Item table; copied.
        targets_BL: Item ids.
        negatives_BLK: Item ids, where the loss has them from a loader.
        config: The loss, `fwd_type`, and what it needs.

    Returns:
        Their table, a leaf, with a row for padding behind the items and, for RECE, up to a
        multiple of its buckets; the loss.
    """
    module: Any = load(folder, "model")
    width, num_items = states_BLD.shape[-1], len(table_VD)
    encoder = {"hidden_units": width, "num_blocks": 0, "num_heads": 1, "dropout_rate": 0.0}
    sizes = {"maxlen": states_BLD.shape[1], "buckets_per_chunk": 1, "manual_seed": 0}
    with torch.device("meta"):
        # Its item numbers end with this one.
        model = module.SASRec(num_items - 1, {**encoder, **sizes, **config})
    num_padding = len(model.item_emb.weight) - num_items
    model.item_emb.weight = torch.nn.Parameter(F.pad(table_VD, (0, 0, 0, num_padding)))
    model.log2feats = lambda _: states_BLD
    negatives_BKL = None
    if negatives_BLK is not None:
        negatives_BKL = negatives_BLK.transpose(1, 2).contiguous()
    # Of the items of the histories it only asks whether they are padding.
    return model.item_emb.weight, lambda: model(targets_BL, targets_BL, negatives_BKL)


def rectools(
    loss: str,
    states_BLD: Tensor,
    table_VD: Tensor,
    targets_BL: Tensor,
    negatives_BLK: Tensor,
    calibration: float,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """A loss of RecTools: `training_step` of its Lightning module.

    Overridden are `encode_sessions`, which gives the states, the item net, which gives the table
    itself where theirs gives a copy in every step, and `log`.

    Args:
        loss: "BCE" or "gBCE".
        states_BLD: Output states.
        table_VD: Item table; copied.
        targets_BL: Item ids.
        negatives_BLK: Item ids; theirs come from a loader.
        calibration: t of gBCE.

    Returns:
        Their table, a leaf, whose first row is padding; the loss.
    """
    try:
        from rectools.models.nn.transformers.lightning import TransformerLightningModule
        from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
        from rectools.models.nn.transformers.torch_backbone import TransformerTorchBackbone
    except ImportError as error:
        raise Unavailable(f"{error}: benchmarks/README.md says how to get RecTools") from None
    table = F.pad(table_VD, (0, 0, 1, 0)).requires_grad_()
    model = TransformerTorchBackbone(
        n_heads=1,
        dropout_rate=0.0,
        item_model=SimpleNamespace(n_items=len(table), get_all_embeddings=lambda: table),
        pos_encoding_layer=None,
        transformer_layers=None,
        similarity_module=DistanceSimilarityModule(),
    )
    model.encode_sessions = lambda *_: states_BLD
    module = TransformerLightningModule(
        model,
        model_config={},
        dataset_schema={},
        item_external_ids=None,
        item_extra_tokens=("PAD",),
        data_preparator=SimpleNamespace(n_negatives=negatives_BLK.shape[-1]),
        lr=0.0,
        gbce_t=calibration,
        loss=loss,
    )
    module.log = lambda *_, **__: None
    weights_BL = torch.ones(targets_BL.shape, device=targets_BL.device)
    batch = {"y": targets_BL + 1, "yw": weights_BL, "negatives": negatives_BLK + 1}
    return table, lambda: module.training_step(batch, 0)


def _draw(targets_N: Tensor, num_items: int, num_candidates: int) -> Tensor:
    shape = (len(targets_N), num_candidates)
    return torch.randint(0, num_items, shape, dtype=torch.long, device=targets_N.device)


def _gathered_logits(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, negatives_NK: Tensor
) -> Tensor:
    """Inner products with the target, column 0, and the negatives, at least float32."""
    ids_NC = torch.cat([targets_N[:, None], negatives_NK], dim=1)
    _check_memory(states_ND, ids_NC.numel() * states_ND.shape[1])
    logits_NC = torch.einsum("nd,ncd->nc", states_ND, F.embedding(ids_NC, table_VD))
    return logits_NC.to(torch.promote_types(logits_NC.dtype, torch.float32))


def _check_memory(like: Tensor, num_elements: int) -> None:
    """Gives up at once where so large a tensor and its gradient leave no room for the rest."""
    needed = 2 * num_elements * like.element_size()
    memory = torch.cuda.get_device_properties(like.device).total_memory
    if needed > 0.9 * memory:
        raise Unavailable(
            f"one tensor and its gradient take {needed / 2**30:.0f} of {memory / 2**30:.0f} GiB"
        )


@functools.cache
def load(peer: str, name: str) -> ModuleType:
    """A module of a peer, with nothing of another peer whose package has the same name."""
    folder = _PEERS / peer
    if not folder.is_dir():
        raise Unavailable(f"no folder .peers/{peer}: benchmarks/README.md says how to get it")
    package = name.partition(".")[0]
    for loaded in [known for known in sys.modules if known.partition(".")[0] == package]:
        del sys.modules[loaded]
    # Liger would import these two, in seconds, only to see whether they are there.
    hidden = {module: sys.modules.pop(module, None) for module in ("peft", "transformers")}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for module, value in hidden.items():
            del sys.modules[module]
            if value is not None:
                sys.modules[module] = value
