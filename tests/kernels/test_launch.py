from collections.abc import Iterator

import pytest
import torch

from kernels.gpu import Gpu
from kernels.reference import Problem

pytest.importorskip("triton")
from kernels import launch

BF16 = torch.bfloat16
TILE = launch.Tile(16, 16, 1, 1)


def key(**fields: int) -> launch.Key:
    # The CPU, where the interpreter runs, has capability 0.
    sizes = {"capability": 0, "operand_bytes": 2, "table_bytes": 2, "block_d": 64}
    return launch.Key(**(sizes | fields))


def problem(width: int, table_dtype: torch.dtype = BF16) -> Problem:
    return Problem(
        torch.zeros(4, width, dtype=BF16),
        torch.zeros(9, width, dtype=table_dtype),
        torch.zeros(4, dtype=torch.int64),
        operand_dtype=BF16,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[launch.Tiles]:
    """Tiles for a width of at most 64 and for one of at most 256."""
    tiles = launch.Tiles(*(TILE._replace(num_stages=number) for number in range(6)))
    table = {key(): tiles, key(block_d=256): tiles}
    monkeypatch.setattr(launch, "_table", lambda: table)
    launch.config_of.cache_clear()
    yield tiles
    launch.config_of.cache_clear()


def test_a_measured_row_is_for_the_widths_of_its_block(measured: launch.Tiles) -> None:
    default = launch.default_tiles(2, 256).catalogue
    found = [launch.launch_config(problem(width), False).forward for width in (33, 64, 250, 257)]
    assert found == [measured.catalogue] * 3 + [default]
    assert launch.launch_config(problem(30), False).forward != measured.catalogue


def test_a_measured_row_is_for_its_type_of_table(measured: launch.Tiles) -> None:
    wide = launch.launch_config(problem(64, torch.float32), False)
    assert wide.forward == launch.default_tiles(2, 64).catalogue
    assert wide.dtype == launch.launch_config(problem(64), False).dtype


def test_the_rows_of_the_table_are_tiles() -> None:
    for row, tiles in launch._table().items():
        assert row.operand_bytes in (2, 4)
        assert row.block_d == launch.block_of(row.block_d)
        for tile in tiles:
            assert all(size == launch.next_power_of_2(size) for size in tile[:3])


def test_float32_is_multiplied_in_narrow_blocks_where_products_are_split() -> None:
    h100 = Gpu(9, 132)
    for kernel, exact, block_d in (
        ("forward", True, 64),
        ("catalogue", True, 64),
        ("row", True, 256),
        ("forward", False, 256),
    ):
        config = launch.config_of(h100, torch.float32, torch.float32, 256, kernel, exact)
        assert config.block_d == block_d
    assert launch.config_of(h100, BF16, torch.float32, 256, "forward").block_d == 256
