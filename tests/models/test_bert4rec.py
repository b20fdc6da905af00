import pytest
import torch
from torch import Tensor

from models import ModelConfig
from models.bert4rec import MASK, BERT4Rec
from models.packing import Packing

NUM_ITEMS = 30
CPU = torch.device("cpu")


def model(**settings: float | str) -> BERT4Rec:
    torch.manual_seed(0)
    defaults = {"architecture": "bert4rec", "max_length": 12, "width": 8, "dropout": 0.0}
    built = ModelConfig.model_validate(defaults | settings).build(NUM_ITEMS)
    assert isinstance(built, BERT4Rec)
    return built


def states(bert: BERT4Rec, *sequences: list[int]) -> tuple[Tensor, ...]:
    packing = Packing.of([len(ids) for ids in sequences], CPU)
    states_TD: Tensor = bert(torch.tensor([item for ids in sequences for item in ids]), packing)
    return torch.split(states_TD, [len(ids) for ids in sequences])


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_state_depends_on_every_item_of_its_sequence(positions: str) -> None:
    bert, ids = model(positions=positions), [5, 6, MASK, 7, 8]
    (before,) = states(bert, ids)
    for place in range(5):
        changed = [*ids]
        changed[place] = 9
        (after,) = states(bert, changed)
        assert not torch.isclose(before, after).all(1).any()


def test_sequences_do_not_see_each_other() -> None:
    bert = model()
    sequences = [5, 6, MASK], [MASK], [7, 8, 9, MASK, 1, 2]
    alone = [states(bert, ids)[0] for ids in sequences]
    for ours, expected in zip(states(bert, *sequences), alone, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_a_sequence_may_be_empty() -> None:
    bert = model()
    packed_TD = bert(torch.tensor([5, MASK, 7]), Packing.of([2, 0, 1], CPU))
    expected = torch.cat(states(bert, [5, MASK], [7]))
    torch.testing.assert_close(packed_TD, expected, atol=1e-6, rtol=1e-5)


def test_the_mask_is_no_item() -> None:
    bert = model()
    assert len(bert.outputs.weight) == NUM_ITEMS
    (state_1D,) = states(bert, [MASK])
    state_1D.sum().backward()  # type: ignore[no-untyped-call]
    assert bert.mask_D.grad is not None
    assert bert.items.weight.grad is None or not bert.items.weight.grad.any()
    vectors_TD = bert.look_up(torch.tensor([3, MASK]))
    assert torch.equal(vectors_TD[0], bert.items(torch.tensor(3)))
    assert torch.equal(vectors_TD[1], bert.mask_D)


def test_a_mask_touches_no_row_of_the_table() -> None:
    bert = BERT4Rec(model().config, NUM_ITEMS, by_rows=True)
    bert.look_up(torch.tensor([3, MASK, 5])).sum().backward()  # type: ignore[no-untyped-call]
    assert bert.items.sink is not None
    gradient = bert.items.sink.take()
    assert gradient is not None
    assert gradient.items_U.tolist() == [3, 5]


def test_gradients_reach_every_parameter() -> None:
    bert = model()
    (states_TD,) = states(bert, [*range(11), MASK])
    torch.autograd.backward((states_TD @ bert.outputs.weight.T).square().sum())
    for name, parameter in bert.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
