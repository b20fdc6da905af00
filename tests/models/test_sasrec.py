from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import full_cross_entropy
from models import ModelConfig
from models.blocks import rotate, rotations
from models.packing import Packing
from models.transformer import Transformer

NUM_ITEMS = 30
CPU = torch.device("cpu")
SWITCHES: list[dict[str, Any]] = [
    {},
    {"norm": "post"},
    {"positions": "rotary"},
    {"feed_forward": "swiglu"},
    {"output_table": "separate"},
]
every_switch = pytest.mark.parametrize("switch", SWITCHES)


def model(seed: int = 0, **settings: float | str) -> Transformer:
    torch.manual_seed(seed)
    defaults = {"max_length": 12, "width": 8, "num_blocks": 2, "num_heads": 2, "dropout": 0.0}
    return ModelConfig.model_validate(defaults | settings).build(NUM_ITEMS)


def sequences(batch: int = 3, length: int = 10, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, NUM_ITEMS, (batch, length), generator=generator)


def states(sasrec: Transformer, ids_BL: Tensor) -> Tensor:
    """Of sequences of one length."""
    packing = Packing.of([ids_BL.shape[1]] * len(ids_BL), CPU)
    states_BLD: Tensor = sasrec(ids_BL.flatten(), packing).unflatten(0, ids_BL.shape)
    return states_BLD


@every_switch
def test_there_is_one_state_for_each_token(switch: dict[str, Any]) -> None:
    states_TD = model(**switch)(sequences(1, 10)[0], Packing.of([7, 3], CPU))
    assert states_TD.shape == (10, 8)
    assert torch.isfinite(states_TD).all()


@every_switch
@pytest.mark.parametrize("end", [1, 5, 9])
def test_what_follows_a_token_changes_no_state_before_it(end: int, switch: dict[str, Any]) -> None:
    sasrec, ids_BL = model(**switch), sequences()
    changed_BL = ids_BL.clone()
    changed_BL[:, end:] = (changed_BL[:, end:] + 1) % NUM_ITEMS
    before, after = states(sasrec, ids_BL), states(sasrec, changed_BL)
    assert torch.equal(before[:, :end], after[:, :end])
    assert not torch.equal(before[:, end:], after[:, end:])


@every_switch
def test_a_state_depends_on_every_item_before_it_and_on_their_order(
    switch: dict[str, Any],
) -> None:
    sasrec, ids_BL = model(**switch), torch.arange(6)[None]
    last = states(sasrec, ids_BL)[0, -1]
    for position in range(6):
        changed_BL = ids_BL.clone()
        changed_BL[0, position] = NUM_ITEMS - 1
        assert not torch.allclose(states(sasrec, changed_BL)[0, -1], last)
    assert not torch.allclose(states(sasrec, ids_BL[:, [1, 0, 2, 3, 4, 5]])[0, -1], last)


@every_switch
def test_sequences_do_not_see_each_other(switch: dict[str, Any]) -> None:
    sasrec, (ids_T,) = model(**switch), sequences(1, 18)
    lengths = [5, 1, 0, 12]
    alone = [sasrec(part_T, Packing.of([len(part_T)], CPU)) for part_T in ids_T.split(lengths)]
    packed_TD = sasrec(ids_T, Packing.of(lengths, CPU))
    torch.testing.assert_close(packed_TD, torch.cat(alone), atol=1e-6, rtol=1e-5)


def test_rotary_positions_count_distances_only() -> None:
    torch.manual_seed(0)
    qkv_T3HC = torch.randn(2, 3, 1, 8)
    # The same query and key at other places: 4 apart, and in the end 3 apart.
    scores, values = [], []
    for places in ([4, 0], [7, 3], [504, 500], [3, 0]):
        turned = rotate(qkv_T3HC, rotations(torch.tensor(places), 8))
        scores.append(turned[0, 0, 0] @ turned[1, 1, 0])
        values.append(turned[:, 2])
    torch.testing.assert_close(scores[1], scores[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[2], scores[0], atol=1e-3, rtol=1e-3)
    assert not torch.isclose(scores[3], scores[0], atol=1e-2)
    assert all(torch.equal(value, qkv_T3HC[:, 2]) for value in values)


def table_gradient(*, through_input: bool, through_output: bool) -> Tensor:
    sasrec = model()
    states_ND = states(sasrec, torch.tensor([[1, 2]]))[0]
    table_VD = sasrec.items.weight
    full_cross_entropy(
        states_ND if through_input else states_ND.detach(),
        table_VD if through_output else table_VD.detach(),
        torch.tensor([2, 3]),
    ).backward()  # type: ignore[no-untyped-call]
    assert table_VD.grad is not None
    return table_VD.grad


def test_the_table_is_tied_and_learns_from_both_ends() -> None:
    as_input = table_gradient(through_input=True, through_output=False)
    as_output = table_gradient(through_input=False, through_output=True)
    assert as_input.any(1).nonzero().flatten().tolist() == [1, 2]
    assert as_output.any(1).all()
    both = table_gradient(through_input=True, through_output=True)
    torch.testing.assert_close(both, as_input + as_output)


def test_a_separate_table_learns_from_its_own_end_only() -> None:
    sasrec = model(output_table="separate")
    states_ND = states(sasrec, torch.tensor([[1, 2]]))[0]
    table_VD = sasrec.outputs.weight
    full_cross_entropy(states_ND, table_VD, torch.tensor([2, 3])).backward()  # type: ignore[no-untyped-call]
    assert table_VD.grad is not None
    assert table_VD.grad.any(1).all()
    assert sasrec.items.weight.grad is not None
    assert sasrec.items.weight.grad.any(1).nonzero().flatten().tolist() == [1, 2]


@every_switch
def test_gradients_reach_every_parameter(switch: dict[str, Any]) -> None:
    sasrec = model(**switch)
    logits_BLV = states(sasrec, sequences(2, 12)) @ sasrec.outputs.weight.T
    torch.autograd.backward(logits_BLV.square().sum())
    for name, parameter in sasrec.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("max_length", [1, 5])
def test_sequences_are_at_most_max_length_long(max_length: int) -> None:
    sasrec = model(max_length=max_length)
    assert states(sasrec, sequences(2, max_length)).shape == (2, max_length, 8)
    with pytest.raises(ValueError, match=f"exceed max_length {max_length}"):
        states(sasrec, sequences(2, max_length + 1))


@every_switch
def test_post_norm_states_and_pre_norm_states_are_normalised(switch: dict[str, Any]) -> None:
    states_BLD = states(model(**switch), sequences())
    torch.testing.assert_close(states_BLD.mean(-1), torch.zeros(3, 10), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "num_blocks", "max_length"), [(8, 1, 5), (24, 3, 50)])
def test_the_number_of_parameters(width: int, num_blocks: int, max_length: int) -> None:
    sasrec = model(width=width, num_blocks=num_blocks, max_length=max_length)
    attention = width * 3 * width + 3 * width + width * width + width
    feed_forward = width * 4 * width + 4 * width + 4 * width * width + width
    norms = 2 * 2 * width
    expected = (
        NUM_ITEMS * width
        + max_length * width
        + num_blocks * (attention + feed_forward + norms)
        + 2 * width
    )
    assert sum(parameter.numel() for parameter in sasrec.parameters()) == expected


def test_weights_and_dropout_follow_torchs_seed() -> None:
    first, again, other = (states(model(seed, dropout=0.5), sequences()) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_dropout_acts_in_training_only() -> None:
    sasrec, ids_BL = model(dropout=0.5), sequences()
    assert not torch.equal(states(sasrec, ids_BL), states(sasrec, ids_BL))
    sasrec.eval()
    assert torch.equal(states(sasrec, ids_BL), states(sasrec, ids_BL))


def test_looked_up_items_and_first_logits_have_unit_variance() -> None:
    torch.manual_seed(0)
    sasrec = ModelConfig(width=64, num_heads=1, dropout=0).build(5000)
    assert float(sasrec.items(torch.arange(5000)).detach().std()) == pytest.approx(1, abs=0.02)
    states_D = states(sasrec, torch.arange(50)[None])[0, -1].detach()
    assert float((sasrec.items.weight.detach() @ states_D).std()) == pytest.approx(1, abs=0.1)
