"""Items of the highest scores through a table of bytes, ranked again exactly.

Shapes: B rows, V items, D width, C candidates, k places of a list, P seen pairs; lower case for a
part.
"""

import torch
from torch import Tensor

_TILE_ITEMS = 1 << 16
CANDIDATES = 1000
"""So many items by the bytes are ranked again by the table itself."""


class Int8Table:
    """A copy of an item table with a byte for each number and a scale for each row.

    A row's numbers are -127 to 127 times its scale, rounded to the nearest: the largest is exact,
    the others are off by half a scale at most.
    """

    def __init__(self, table_VD: Tensor) -> None:
        self._table_VD = table_VD
        self.scale_V = torch.empty(len(table_VD), device=table_VD.device)
        self.codes_VD = torch.empty_like(table_VD, dtype=torch.int8)
        for first in range(0, len(table_VD), _TILE_ITEMS):
            tile_vD = table_VD[first : first + _TILE_ITEMS].float()
            scale_v = tile_vD.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            self.scale_V[first : first + _TILE_ITEMS] = scale_v
            self.codes_VD[first : first + _TILE_ITEMS] = (tile_vD / scale_v[:, None]).round()

    def top_k(self, states_BD: Tensor, k: int, seen: tuple[Tensor, Tensor] | None) -> Tensor:
        """As `kernels.top_k`: its list, but for items that are not among the best by the bytes.

        Args:
            states_BD: Query states.
            k: Length of the lists.
            seen: Items to leave out: (rows, item ids).

        Returns:
            ids_Bk, int64; -1 where fewer than k items remain.
        """
        states_BD = states_BD.float()
        ids_BC = self._candidates(states_BD, max(k, CANDIDATES), seen)
        # By id, so that a stable order by score breaks ties by the lower one.
        ids_BC = ids_BC.sort(1).values
        rows_BCD = self._table_VD[ids_BC.clamp(min=0)].float()
        scores_BC = torch.einsum("bd,bcd->bc", states_BD, rows_BCD)
        scores_BC = scores_BC.masked_fill(ids_BC < 0, -torch.inf)
        order_Bk = scores_BC.sort(dim=1, descending=True, stable=True).indices[:, :k]
        ids_Bk = ids_BC.gather(1, order_Bk)
        return torch.nn.functional.pad(ids_Bk, (0, k - ids_Bk.shape[1]), value=-1)

    def _candidates(
        self, states_BD: Tensor, count: int, seen: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The best items by the bytes [B, C], in any order; -1 for none."""
        best_BC = states_BD.new_empty(len(states_BD), 0)
        ids_BC = torch.empty_like(best_BC, dtype=torch.int64)
        for first in range(0, len(self.codes_VD), _TILE_ITEMS):
            codes_vD = self.codes_VD[first : first + _TILE_ITEMS]
            scores_Bv = states_BD @ codes_vD.float().T
            scores_Bv *= self.scale_V[first : first + _TILE_ITEMS]
            if seen is not None:
                is_here = (seen[1] >= first) & (seen[1] < first + len(codes_vD))
                scores_Bv[seen[0][is_here], seen[1][is_here] - first] = -torch.inf
            ids_Bv = torch.arange(first, first + len(codes_vD), device=states_BD.device)
            both_BC = torch.cat([best_BC, scores_Bv], 1)
            best_BC, places_BC = both_BC.topk(min(count, both_BC.shape[1]), 1, sorted=False)
            ids_BC = torch.cat([ids_BC, ids_Bv.expand(len(states_BD), -1)], 1).gather(1, places_BC)
        return ids_BC.where(best_BC > -torch.inf, -1)
