"""Lists through a table of bytes."""

import pytest
import torch

from kernels import top_k
from objectives import int8_table
from objectives.int8_table import Int8Table


def test_a_row_is_rounded_by_half_its_scale_at_most() -> None:
    torch.manual_seed(0)
    table_VD = torch.randn(50, 8) * torch.logspace(-6, 6, 50)[:, None]
    table_VD[7] = 0
    found = Int8Table(table_VD)
    assert found.codes_VD.dtype == torch.int8
    back_VD = found.codes_VD * found.scale_V[:, None]
    assert ((back_VD - table_VD).abs() <= 0.5001 * found.scale_V[:, None]).all()


@pytest.mark.parametrize("tile_items", [7, 1 << 16])
def test_lists_are_exact_where_all_best_items_are_candidates(
    tile_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_table, "_TILE_ITEMS", tile_items)
    torch.manual_seed(0)
    table_VD, states_BD = torch.randn(60, 8), torch.randn(5, 8)
    table_VD[1::2] = table_VD[::2]  # ties
    seen = torch.randint(0, 5, (90,)), torch.randint(0, 60, (90,))
    found = Int8Table(table_VD)
    for k, removed in ((10, seen), (10, None), (70, seen)):
        expected = top_k(states_BD, table_VD, k, removed)
        assert torch.equal(found.top_k(states_BD, k, removed), expected)


def test_candidates_are_ranked_again_by_the_table_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_table, "CANDIDATES", 8)
    torch.manual_seed(0)
    table_VD, states_BD = torch.randn(500, 16), torch.randn(20, 16)
    ids_Bk = Int8Table(table_VD).top_k(states_BD, 5, None)
    scores_Bk = (states_BD @ table_VD.T).gather(1, ids_Bk)
    assert torch.equal(scores_Bk, scores_Bk.sort(dim=1, descending=True).values)
    best_Bk = top_k(states_BD, table_VD, 5)
    assert (ids_Bk == best_Bk).float().mean() > 0.9
