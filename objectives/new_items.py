"""Vectors of items that a trained model has not met.

Shapes: T tokens of packed sequences, V items, N new items, D width.
"""

import torch
from torch import Tensor

from models.packing import Packing
from objectives.data import Sequences
from objectives.evaluation import autocast
from objectives.saved_model import SavedModel

_NOISE = 0.1
"""Of the spread of a column of the item table, in rows that nothing else is known of."""

_SEQUENCES = 512
"""So many are encoded at a time."""


def with_new_items(
    saved: SavedModel, train: Sequences, num_items: int, device: torch.device, seed: int
) -> dict[str, Tensor]:
    """The weights of a model with rows for more items behind its own.

    A new row is the mean row plus a tenth of each column's spread as noise. Where states of a
    causal model are compared with it, it is the mean state behind the items that came before the
    new one, as long as a row is on average: who has such a history is shown the item at once
    (Qi et al., "Low-Shot Learning with Imprinted Weights", CVPR 2018).

    Args:
        saved: The model, of the first items.
        train: Sequences with new items in them.
        num_items: Items in all, V.
        device: Where states are computed.
        seed: Of the noise.
    """
    weights = dict(saved.weights)
    generator = torch.Generator().manual_seed(seed)
    for name in ("items.weight", "_outputs.weight"):
        if name in weights:
            table_VD = weights[name].float()
            shape = num_items - len(table_VD), table_VD.shape[1]
            noise_ND = table_VD.std(0) * torch.randn(shape, generator=generator)
            rows_ND = table_VD.mean(0) + _NOISE * noise_ND
            weights[name] = torch.cat([weights[name], rows_ND.to(weights[name].dtype)])
    if saved.config.model.architecture == "sasrec":
        output = "_outputs.weight" if "_outputs.weight" in weights else "items.weight"
        known = len(saved.item_ids)
        states_ND, is_met_N = _states_before(saved, weights, train, num_items, device)
        length = weights[output][:known].float().norm(dim=1).mean()
        rows_ND = torch.nn.functional.normalize(states_ND) * length
        new_ND = weights[output][known:]
        new_ND[is_met_N] = rows_ND[is_met_N].to(new_ND.dtype)
    return weights


def _states_before(
    saved: SavedModel,
    weights: dict[str, Tensor],
    train: Sequences,
    num_items: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The summed states before each new item [N, D], and which of the items had any."""
    config, known = saved.config.model, len(saved.item_ids)
    with torch.device("meta"):
        model = config.build(num_items, table_dtype=saved.config.training.table_dtype)
    model.load_state_dict(weights, assign=True)
    model.eval().to(device)
    sums_ND = torch.zeros(num_items - known, config.width, device=device)
    counts_N = torch.zeros(num_items - known, device=device)
    for first in range(0, len(train), _SEQUENCES):
        ends = train.offsets[first + 1 : first + _SEQUENCES + 1]
        begins = train.offsets[first : first + len(ends)].clip(min=ends - config.max_length - 1)
        parts = [
            torch.from_numpy(train.items[begin:end].astype("int64"))
            for begin, end in zip(begins, ends, strict=True)
        ]
        packing = Packing.of((ends - begins - 1).tolist(), device)
        targets_T = torch.cat([part[1:] for part in parts]).to(device) - known
        ids_T = torch.cat([part[:-1] for part in parts]).to(device)
        with torch.no_grad(), autocast(device):
            states_TD = model(ids_T, packing)
        is_new_T = targets_T >= 0
        sums_ND.index_add_(0, targets_T[is_new_T], states_TD[is_new_T].float())
        counts_N.index_add_(0, targets_T[is_new_T], counts_N.new_ones(int(is_new_T.sum())))
    return sums_ND.cpu(), (counts_N > 0).cpu()
