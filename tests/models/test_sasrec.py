import pytest
import torch
from torch import Tensor

from kernels import full_cross_entropy
from models import SASRecConfig
from models.sasrec import SASRec

NUM_ITEMS = 30


def model(seed: int = 0, **settings: float) -> SASRec:
    torch.manual_seed(seed)
    defaults = {"max_length": 12, "width": 8, "num_blocks": 2, "num_heads": 2, "dropout": 0.0}
    return SASRecConfig.model_validate(defaults | settings).build(NUM_ITEMS)


def sequences(batch: int = 3, length: int = 10, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, NUM_ITEMS, (batch, length), generator=generator)


def test_there_is_one_state_for_each_position() -> None:
    states_BLD = model()(sequences(3, 10))
    assert states_BLD.shape == (3, 10, 8)
    assert torch.isfinite(states_BLD).all()


@pytest.mark.parametrize("end", [1, 5, 9])
def test_what_follows_a_position_changes_no_state_before_it(end: int) -> None:
    sasrec, ids_BL = model(), sequences()
    changed_BL = ids_BL.clone()
    changed_BL[:, end:] = (changed_BL[:, end:] + 1) % NUM_ITEMS
    before, after = sasrec(ids_BL), sasrec(changed_BL)
    assert torch.equal(before[:, :end], after[:, :end])
    assert not torch.equal(before[:, end:], after[:, end:])


def test_padding_behind_the_end_changes_nothing() -> None:
    sasrec, ids_BL = model(), sequences(1, 6)
    padded_BL = torch.cat([ids_BL, sequences(1, 4, seed=9)], dim=1)
    torch.testing.assert_close(sasrec(padded_BL)[:, :6], sasrec(ids_BL), atol=1e-6, rtol=1e-5)


def test_a_state_depends_on_every_item_before_it_and_on_their_order() -> None:
    sasrec, ids_BL = model(), torch.arange(6)[None]
    last = sasrec(ids_BL)[0, -1]
    for position in range(6):
        changed_BL = ids_BL.clone()
        changed_BL[0, position] = NUM_ITEMS - 1
        assert not torch.allclose(sasrec(changed_BL)[0, -1], last)
    assert not torch.allclose(sasrec(ids_BL[:, [1, 0, 2, 3, 4, 5]])[0, -1], last)


def test_sequences_do_not_see_each_other() -> None:
    sasrec, ids_BL = model(), sequences()
    alone = torch.cat([sasrec(ids_L[None]) for ids_L in ids_BL])
    torch.testing.assert_close(sasrec(ids_BL), alone, atol=1e-6, rtol=1e-5)


def table_gradient(*, through_input: bool, through_output: bool) -> Tensor:
    sasrec = model()
    states_ND = sasrec(torch.tensor([[1, 2]]))[0]
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


def test_gradients_reach_every_parameter() -> None:
    sasrec = model()
    sasrec(sequences(2, 12)).square().sum().backward()
    for name, parameter in sasrec.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("max_length", [1, 5])
def test_sequences_are_at_most_max_length_long(max_length: int) -> None:
    sasrec = model(max_length=max_length)
    assert sasrec(sequences(2, max_length)).shape == (2, max_length, 8)
    with pytest.raises((RuntimeError, ValueError)):
        sasrec(sequences(2, max_length + 1))


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
    states = [model(seed, dropout=0.5)(sequences()) for seed in (4, 4, 5)]
    assert torch.equal(states[0], states[1])
    assert not torch.allclose(states[0], states[2])


def test_dropout_acts_in_training_only() -> None:
    sasrec, ids_BL = model(dropout=0.5), sequences()
    assert not torch.equal(sasrec(ids_BL), sasrec(ids_BL))
    sasrec.eval()
    assert torch.equal(sasrec(ids_BL), sasrec(ids_BL))


def test_looked_up_items_and_first_logits_have_unit_variance() -> None:
    torch.manual_seed(0)
    sasrec = SASRecConfig(width=64, num_heads=1, dropout=0).build(5000)
    assert float(sasrec.items(torch.arange(5000)).detach().std()) == pytest.approx(1, abs=0.02)
    states_D = sasrec(torch.arange(50)[None])[0, -1].detach()
    assert float((sasrec.items.weight.detach() @ states_D).std()) == pytest.approx(1, abs=0.1)
