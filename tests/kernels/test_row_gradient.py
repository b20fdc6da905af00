"""Gradients of touched rows, on each backend, against sparse tensors and dense gradients.

Shapes: V items, U touched items, D width, T looked up ids, N rows.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kernels import (
    RowGradient,
    RowSink,
    RowWiseAdagrad,
    RowWiseAdam,
    Uniform,
    look_up,
    sampled_cross_entropy,
    sum_rows,
)

# torch 2.11 warns of the first whatever is asked for, and the second is a prototype.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lookups(items: list[int], width: int, device: torch.device) -> RowGradient:
    """Of whole numbers: their sums are exact in any order."""
    rows_TD = (random(len(items), len(items), width) * 100).round()
    return RowGradient(torch.tensor(items, dtype=torch.int64).to(device), rows_TD.to(device))


def with_room(gradient: RowGradient, room: int) -> RowGradient:
    """The gradient with ids behind its end that are none."""
    items_U, rows_UD, num_touched = gradient
    assert num_touched is not None
    items_U = items_U[: int(num_touched)]
    return RowGradient(
        F.pad(items_U, (0, room), value=1 << 40),
        F.pad(rows_UD[: len(items_U)], (0, 0, 0, room)),
        num_touched,
    )


def coalesced(parts: list[RowGradient], num_items: int) -> tuple[Tensor, Tensor]:
    """What PyTorch's sparse tensors make of the parts."""
    ends = [None if part.num_touched is None else int(part.num_touched) for part in parts]
    items = torch.cat([part.items_U[:end] for part, end in zip(parts, ends, strict=True)])
    rows = torch.cat([part.rows_UD[:end] for part, end in zip(parts, ends, strict=True)])
    total = torch.sparse_coo_tensor(
        items[None], rows.float(), (num_items, rows.shape[1]), check_invariants=True
    ).coalesce()
    return total.indices()[0], total.values()


def check(total: RowGradient, items_U: Tensor, rows_UD: Tensor) -> None:
    """Compares a sum with its items and rows; what stands behind them is zero."""
    assert total.num_touched is not None
    assert (total.num_touched.dtype, total.num_touched.shape) == (torch.int32, (1,))
    end = int(total.num_touched)
    assert torch.equal(total.items_U[:end], items_U)
    assert total.rows_UD.dtype == torch.float32
    assert torch.equal(total.rows_UD[:end], rows_UD)
    assert not total.rows_UD[end:].any()
    assert len(total.items_U) == len(total.rows_UD)


@pytest.mark.usefixtures("backend")
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    num_items=st.sampled_from([1, 31, 32, 33, 100]),
    lists=st.lists(st.lists(st.integers(0, 99), max_size=40), min_size=1, max_size=4),
    room=st.integers(0, 5),
    width=st.sampled_from([1, 5, 32]),
    deterministic=st.booleans(),
)
def test_a_sum_is_that_of_coalesced_tensors(
    num_items: int,
    lists: list[list[int]],
    room: int,
    width: int,
    deterministic: bool,
    device: torch.device,
) -> None:
    parts = [lookups([item % num_items for item in items], width, device) for items in lists]
    # The sum of some is a part of another sum.
    parts.append(with_room(sum_rows(parts[:2], num_items, deterministic=deterministic), room))
    total = sum_rows(parts, num_items, deterministic=deterministic)
    check(total, *coalesced(parts, num_items))
    assert len(total.items_U) <= min(num_items, sum(len(part.items_U) for part in parts))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_touched(deterministic: bool, device: torch.device) -> None:
    part = lookups([], 8, device)
    for parts in ([part], [part, part]):
        total = sum_rows(parts, 50, deterministic=deterministic)
        check(total, part.items_U, part.rows_UD)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("num_items", [64, 70])
@pytest.mark.parametrize("width", [3, 300])
def test_all_items_touched(num_items: int, width: int, device: torch.device) -> None:
    order = torch.randperm(num_items, generator=torch.Generator().manual_seed(1)).tolist()
    parts = [lookups(order, width, device), lookups(order[: num_items // 2], width, device)]
    total = sum_rows(parts, num_items)
    check(total, *coalesced(parts, num_items))
    assert total.items_U.tolist() == list(range(num_items))


@pytest.mark.usefixtures("backend")
def test_a_part_that_is_a_sum_is_not_copied(device: torch.device) -> None:
    total = sum_rows([lookups([3, 1, 3], 4, device)], 10)
    assert sum_rows([total], 10) is total


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("deterministic", [False, True])
def test_layouts_and_types_of_a_part(deterministic: bool, device: torch.device) -> None:
    items_T = torch.tensor([[4, 9], [1, 9], [4, 9]], device=device)[:, 0]
    rows_TD = random(1, 6, 3).bfloat16().to(device).T
    total = sum_rows([RowGradient(items_T, rows_TD)], 7, deterministic=deterministic)
    rows_TD = rows_TD.float()
    check(
        total,
        torch.tensor([1, 4], device=device),
        torch.stack([rows_TD[1], rows_TD[0] + rows_TD[2]]),
    )


def dense(gradient: RowGradient | None, num_items: int) -> Tensor:
    assert gradient is not None
    assert gradient.num_touched is not None
    items_U, rows_UD, end = gradient[0], gradient[1], int(gradient.num_touched)
    return rows_UD.new_zeros(num_items, rows_UD.shape[1]).index_copy(
        0, items_U[:end], rows_UD[:end]
    )


def step(
    inputs: Tensor, outputs: Tensor, sinks: list[RowSink], seed: int, group_size: int = 4
) -> None:
    """Backward through lookups and a loss; without sinks by autograd."""
    generator = torch.Generator().manual_seed(seed)
    ids_T, targets_N = (
        torch.randint(len(table), (6,), generator=generator).to(table.device)
        for table in (inputs, outputs)
    )
    states_ND = look_up(inputs, ids_T, sinks[0]) if sinks else F.embedding(ids_T, inputs).float()
    loss = sampled_cross_entropy(
        states_ND * 1.5,
        outputs,
        targets_N,
        Uniform(3, seed),
        group_size=group_size,
        table_gradient=sinks[-1] if sinks else "dense",
    )
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("num_steps", "group_size"), [(1, 1), (2, 4), (1, 100)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_of_a_tied_table_it_is_the_dense_gradient(
    deterministic: bool, num_steps: int, group_size: int, device: torch.device
) -> None:
    table_VD = torch.nn.Parameter(random(0, 60, 8).to(device))
    sink = RowSink(60)
    torch.use_deterministic_algorithms(deterministic)
    try:
        for seed in range(num_steps):
            step(table_VD, table_VD, [sink], seed, group_size)
        assert table_VD.grad is None
        gradient = sink.take()
    finally:
        torch.use_deterministic_algorithms(False)
    for seed in range(num_steps):
        step(table_VD, table_VD, [], seed, group_size)
    torch.testing.assert_close(dense(gradient, 60), table_VD.grad)
    assert sink.take() is None


@pytest.mark.usefixtures("backend")
def test_separate_tables_have_separate_gradients(device: torch.device) -> None:
    tables = [torch.nn.Parameter(random(seed, 60, 8).to(device)) for seed in range(2)]
    sinks = [RowSink(60), RowSink(60)]
    step(tables[0], tables[1], sinks, 5)
    gradients = [sink.take() for sink in sinks]
    step(tables[0], tables[1], [], 5)
    for gradient, table_VD in zip(gradients, tables, strict=True):
        torch.testing.assert_close(dense(gradient, 60), table_VD.grad)


@pytest.mark.usefixtures("backend")
def test_of_a_half_table_it_is_float32(device: torch.device) -> None:
    half_VD = torch.nn.Parameter(random(0, 60, 8).bfloat16().to(device))
    full_VD = torch.nn.Parameter(half_VD.detach().float())
    sinks = [RowSink(60), RowSink(60)]
    # One table is compared with states of the other's lookups, which are float32 too.
    for table_VD, sink in zip((half_VD, full_VD), sinks, strict=True):
        ids_T = torch.arange(10, device=device) % 7
        vectors_TD = look_up(table_VD, ids_T, sink)
        assert vectors_TD.dtype == torch.float32
        (vectors_TD * random(3, 10, 8).to(device)).sum().backward()  # type: ignore[no-untyped-call]
    half, full = (dense(sink.take(), 60) for sink in sinks)
    assert torch.equal(half, full)
    assert not torch.equal(full, full.bfloat16().float())


@pytest.mark.usefixtures("backend")
def test_states_need_no_gradient_and_neither_does_a_table(device: torch.device) -> None:
    for needs_gradient in (True, False):
        table_VD = random(0, 60, 8).to(device).requires_grad_(needs_gradient)
        sink = RowSink(60)
        states_ND = random(1, 10, 8).to(device).requires_grad_(not needs_gradient)
        targets_N = torch.arange(10, device=device)
        loss = sampled_cross_entropy(
            states_ND, table_VD, targets_N, Uniform(3, 1), table_gradient=sink
        )
        loss.backward()  # type: ignore[no-untyped-call]
        assert table_VD.grad is None
        assert (sink.take() is not None) == needs_gradient
        assert (states_ND.grad is not None) != needs_gradient


def test_without_gradients_a_sink_stays_empty() -> None:
    table_VD, sink = torch.nn.Parameter(random(0, 60, 8)), RowSink(60)
    with torch.no_grad():
        ids_T = torch.tensor([[3, 4], [5, 3]])
        assert torch.equal(look_up(table_VD, ids_T, sink), table_VD[ids_T])
    assert sink.take() is None


def test_lookups_keep_the_shape_of_the_ids() -> None:
    table_VD, sink = torch.nn.Parameter(random(0, 60, 8)), RowSink(60)
    ids_BL = torch.tensor([[3, 4, 4], [5, 3, 3]])
    look_up(table_VD, ids_BL, sink).sum().backward()  # type: ignore[no-untyped-call]
    expected_VD = torch.zeros(60, 8)
    expected_VD[3:6] = torch.tensor([3.0, 2, 1])[:, None]
    assert torch.equal(dense(sink.take(), 60), expected_VD)


def test_another_form_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="table_gradient must be 'dense', 'touched' or a RowSink"):
        sampled_cross_entropy(
            random(0, 2, 4),
            random(1, 9, 4),
            torch.tensor([1, 2]),
            Uniform(3, 1),
            table_gradient="rows",
        )


OPTIMIZERS: tuple[Callable[[Any], RowWiseAdagrad | RowWiseAdam], ...] = (
    lambda params: RowWiseAdagrad(params, lr=0.1, seed=5),
    lambda params: RowWiseAdam(params, lr=0.01, exp_avg_dtype=torch.bfloat16, seed=5),
)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_row_gradients_is_that_on_sparse_ones(
    optimizer_of: Callable[[Any], RowWiseAdagrad | RowWiseAdam],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    tables = [torch.nn.Parameter(random(0, 60, 8).to(dtype).to(device)) for _ in range(3)]
    ours, theirs = optimizer_of(tables[:2]), optimizer_of(tables[2:])
    for items in ([5, 2, 5], [9, 2], [2, 7, 1, 1]):
        part = lookups(items, 8, device)
        total = with_room(sum_rows([part], 60), 2)
        ours.step(gradients=[None, total])
        tables[2].grad = torch.sparse_coo_tensor(
            part.items_U[None], part.rows_UD, (60, 8), check_invariants=True
        ).to(dtype)
        theirs.step()
    assert torch.equal(tables[1], tables[2])
    # Without a gradient there is no step.
    assert tables[0] not in ours.state
    assert ours.state[tables[1]]["step"] == 3


def test_there_is_a_gradient_for_every_table() -> None:
    tables = [torch.nn.Parameter(torch.ones(5, 2)) for _ in range(2)]
    with pytest.raises(ValueError, match="shorter"):
        RowWiseAdam(tables).step(gradients=[None])


def several_parts(device: torch.device, width: int = 128) -> list[RowGradient]:
    """Sums whose last bits depend on their order: 50,000 lookups of 300 items, and as many."""
    generator = torch.Generator().manual_seed(0)
    return [
        RowGradient(
            torch.randint(300, (50_000,), generator=generator).to(device),
            torch.randn(50_000, width, generator=generator).to(device),
        )
        for _ in range(2)
    ]


class TestOnACard:
    pytestmark = gpu

    def test_a_fixed_order_makes_equal_bits(self, device: torch.device) -> None:
        parts = several_parts(device)
        first = sum_rows(parts, 1_000_000, deterministic=True)
        for _ in range(5):
            again = sum_rows(parts, 1_000_000, deterministic=True)
            assert torch.equal(again.rows_UD, first.rows_UD)
        free = sum_rows(parts, 1_000_000, deterministic=False)
        torch.testing.assert_close(free.rows_UD, first.rows_UD, rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_the_host_waits_for_nothing(self, deterministic: bool, device: torch.device) -> None:
        table_VD = torch.nn.Parameter(random(0, 5000, 32).to(device))
        optimizer, sink = RowWiseAdam([table_VD]), RowSink(5000)
        ids_T = torch.arange(100, device=device)

        def train() -> None:
            for _ in range(2):
                states_ND = look_up(table_VD, ids_T, sink)
                sampled_cross_entropy(
                    states_ND, table_VD, ids_T, Uniform(9, 1), group_size=10, table_gradient=sink
                ).backward()  # type: ignore[no-untyped-call]
            optimizer.step(gradients=[sink.take()])

        torch.use_deterministic_algorithms(deterministic)
        try:
            train()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.use_deterministic_algorithms(False)

    def test_a_captured_sum_follows_its_parts(self, device: torch.device) -> None:
        part, _ = several_parts(device, width=8)
        other = lookups([5, 6, 5], 8, device)
        sum_rows([part, other], 5000)  # Compiles.
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            total = sum_rows([part, other], 5000)
        for shift in (0, 1000, 4000):
            part.items_U.remainder_(300).add_(shift)
            part.rows_UD.copy_(part.rows_UD.round())
            graph.replay()
            check(total, *coalesced([part, other], 5000))

    def test_nothing_is_as_large_as_the_table(self, device: torch.device) -> None:
        table_VD = torch.nn.Parameter(torch.zeros(4_000_000, 64, device=device))
        sink = RowSink(len(table_VD))
        ids_T = torch.arange(1000, device=device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        states_ND = look_up(table_VD, ids_T, sink)
        sampled_cross_entropy(
            states_ND, table_VD, ids_T, Uniform(99, 1), group_size=100, table_gradient=sink
        ).backward()  # type: ignore[no-untyped-call]
        assert sink.take() is not None
        assert torch.cuda.max_memory_allocated() - before < table_VD.numel() * 4 // 50
