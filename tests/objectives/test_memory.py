from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import full_cross_entropy
from objectives.config import TrialConfig
from objectives.memory import least_table_memory, measured_memory, memory_source
from objectives.trial import InfeasibleTrial

CPU = torch.device("cpu")
PLENTY = 1 << 40


def peak_of(block: Callable[[], object], budget: int = PLENTY) -> int:
    with measured_memory(CPU, budget) as memory:
        block()
    return memory.peak


def test_a_peak_on_the_cpu_is_tracked_and_says_so() -> None:
    assert memory_source(CPU) == "tracked"
    assert memory_source(torch.device("cuda", 0)) == "cuda"
    with measured_memory(CPU, PLENTY) as memory:
        assert memory.peak == 0
    assert (memory.source, memory.peak_reserved) == ("tracked", None)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 4), (torch.float64, 8), (torch.bool, 1)]
)
def test_allocations_are_counted_to_the_byte(dtype: torch.dtype, size: int) -> None:
    assert peak_of(lambda: torch.zeros(1000, dtype=dtype)) == 1000 * size


def test_what_lives_at_once_is_added() -> None:
    assert peak_of(lambda: [torch.zeros(1000), torch.ones(500)]) == 6000


def test_freed_memory_returns() -> None:
    def block() -> None:
        for _ in range(10):
            torch.zeros(1000)

    assert peak_of(block) == 4000


def test_the_peak_remains_when_memory_is_freed() -> None:
    with measured_memory(CPU, PLENTY) as memory:
        large = torch.zeros(1000)
        del large
        assert memory.peak == 4000
        kept = [torch.zeros(100) for _ in range(10)]
        assert memory.peak == 4000
        kept.append(torch.zeros(1))
        assert memory.peak == 4004


def test_views_and_in_place_results_are_not_counted_again() -> None:
    def block() -> Tensor:
        tensor = torch.zeros(10, 100)
        views = tensor.view(-1), tensor[3:], tensor.T, tensor.unbind()
        tensor.add_(1).mul_(2)
        torch.exp(tensor, out=tensor)
        return views[0]

    assert peak_of(block) == 4000


def test_a_view_keeps_the_whole_storage() -> None:
    def block() -> None:
        view = torch.zeros(1000)[:1]
        other = torch.zeros(100)
        del view, other

    assert peak_of(block) == 4400


def test_several_results_of_an_operator_are_all_counted() -> None:
    tensor = torch.arange(100.0)
    assert peak_of(lambda: torch.sort(tensor)) == 100 * (4 + 8)
    assert peak_of(lambda: torch._foreach_add([tensor, tensor], 1.0)) == 800


def test_memory_from_before_is_not_counted() -> None:
    tensor = torch.zeros(1000)
    assert peak_of(lambda: tensor + 1) == 4000


def test_a_second_measurement_starts_from_nothing() -> None:
    assert peak_of(lambda: torch.zeros(1000)) == 4000
    assert peak_of(lambda: torch.zeros(10)) == 40


def test_a_storage_that_grows_in_place_is_counted() -> None:
    assert peak_of(lambda: torch.empty(0).resize_(1000)) == 4000


def test_what_a_loss_allocates_inside_is_counted() -> None:
    states_ND, table_VD = torch.zeros(256, 8), torch.zeros(4096, 8)
    targets_N = torch.zeros(256, dtype=torch.int64)
    logits = 256 * 4096 * 4
    assert peak_of(lambda: full_cross_entropy(states_ND, table_VD, targets_N)) >= logits


def test_gradients_are_counted() -> None:
    weight = torch.ones(1000, requires_grad=True)

    def block() -> None:
        (weight * weight).sum().backward()  # type: ignore[no-untyped-call]

    # The product and the sum, then the seed, two products with the gradient, and their sum.
    assert peak_of(block) >= 3 * 4000


def test_the_budget_may_be_used_up() -> None:
    assert peak_of(lambda: torch.zeros(1000), budget=4000) == 4000


def test_beyond_the_budget_a_trial_is_infeasible() -> None:
    with pytest.raises(InfeasibleTrial) as caught:
        peak_of(lambda: [torch.zeros(600), torch.zeros(600)], budget=4000)
    assert caught.value.source == "out-of-memory"
    assert caught.value.peak_bytes == 4800


def test_the_budget_holds_in_the_backward_pass() -> None:
    weight = torch.ones(1000, requires_grad=True)
    reached = []

    def block() -> None:
        loss = (weight * 2).exp().sum()
        reached.append("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        reached.append("end")

    enough = peak_of(block)
    assert reached == ["backward", "end"]
    with pytest.raises(InfeasibleTrial) as caught:
        peak_of(block, enough - 1)
    assert reached == ["backward", "end", "backward"]
    assert caught.value.peak_bytes >= enough - 1


def test_running_out_of_memory_for_another_reason_is_at_least_the_budget() -> None:
    def block() -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(InfeasibleTrial) as caught:
        peak_of(block, budget=123)
    assert caught.value.peak_bytes == 123


def test_other_exceptions_pass_through_and_end_the_measurement() -> None:
    with pytest.raises(KeyError), measured_memory(CPU, 100):
        raise KeyError
    assert torch.zeros(1000).sum() == 0  # no longer held to the budget of 100 bytes


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 5 M items of width 128 are 640 M elements.
        ({"table_updates": "dense"}, 10_240_000_000),
        ({"table_updates": "adam"}, 2_600_000_000),
        ({}, 2_600_000_000),
        ({"table_dtype": "bfloat16"}, 1_320_000_000),
        ({"table_updates": "adagrad"}, 2_580_000_000),
        ({"table_updates": "adagrad", "table_dtype": "bfloat16"}, 1_300_000_000),
        ({"loss": "cce", "output_table": "separate"}, 20_480_000_000),
    ],
)
def test_what_large_tables_take_at_least(settings: dict[str, str], expected: int) -> None:
    config = TrialConfig.from_flat({"width": 128} | settings)
    assert least_table_memory(config, 5_000_000) == expected
