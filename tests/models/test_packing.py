import pytest
import torch

from models.packing import Packing

CPU = torch.device("cpu")


def test_tokens_know_their_sequence_and_their_place_in_it() -> None:
    packing = Packing.of([2, 0, 3, 1], CPU)
    assert len(packing) == 4
    assert packing.num_tokens == 6
    assert packing.longest == 3
    assert packing.offsets_B1.tolist() == [0, 2, 2, 5, 6]
    assert packing.offsets_B1.dtype == torch.int32
    assert packing.sequence_T.tolist() == [0, 0, 2, 2, 2, 3]
    assert packing.position_T.tolist() == [0, 1, 0, 1, 2, 0]


def test_the_last_token_of_each_sequence() -> None:
    assert Packing.of([2, 3, 1], CPU).last_B.tolist() == [1, 4, 5]


def test_padding_is_zeros_behind_the_end_and_comes_off_again() -> None:
    packing = Packing.of([2, 0, 3], CPU)
    values_T2 = torch.arange(1.0, 11.0).view(5, 2).requires_grad_()
    padded_BL2 = packing.pad(values_T2)
    assert padded_BL2[..., 0].tolist() == [[1, 3, 0], [0, 0, 0], [5, 7, 9]]
    assert torch.equal(packing.unpad(padded_BL2), values_T2)
    (grad,) = torch.autograd.grad((padded_BL2 * 3).sum(), values_T2)
    assert torch.equal(grad, torch.full_like(values_T2, 3))


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_there_may_be_no_token(lengths: list[int]) -> None:
    packing = Packing.of(lengths, CPU)
    assert packing.num_tokens == packing.longest == 0
    assert packing.unpad(packing.pad(torch.zeros(0, 4))).shape == (0, 4)
