import pytest
import torch
from torch import Tensor, nn

from models import ModelConfig
from models.blocks import LayerNorm, Linear, drop
from models.packing import Packing

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("norm", "types"),
    [
        ("pre", {"attention_norm": BF16, "feed_forward_norm": BF16, "0": FP32, "norm": BF16}),
        ("post", {"attention_norm": FP32, "feed_forward_norm": FP32, "0": FP32, "norm": FP32}),
    ],
)
def test_under_autocast_norms_have_the_type_of_what_follows_and_the_stream_is_float32(
    norm: str, types: dict[str, torch.dtype]
) -> None:
    settings = {"width": 8, "num_heads": 2, "num_blocks": 1, "norm": norm}
    model = ModelConfig.model_validate(settings).build(5)
    seen = {}
    for name, module in model.named_modules():

        def note(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
            seen[name.split(".")[-1]] = output.dtype

        module.register_forward_hook(note)
    with torch.autocast("cpu", dtype=BF16):
        model(torch.arange(3), Packing.of([3], torch.device("cpu")))
    assert {name: seen[name] for name in types} == types
    assert seen["qkv"] == BF16


def test_a_norm_has_the_weights_of_torchs() -> None:
    theirs = nn.LayerNorm(8)
    nn.init.normal_(theirs.weight)
    ours = LayerNorm(8)
    ours.load_state_dict(theirs.state_dict())
    states_TD = torch.randn(5, 8)
    assert torch.equal(ours(states_TD), theirs(states_TD))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_linear_layer_learns_as_torchs(autocast: bool) -> None:
    theirs, ours = nn.Linear(8, 6), Linear(8, 6)
    ours.load_state_dict(theirs.state_dict())
    states_TD, weight_TE = torch.randn(50, 8), torch.randn(50, 6)
    gradients = []
    for layer in (theirs, ours):
        inputs = states_TD.clone().requires_grad_()
        with torch.autocast("cpu", dtype=BF16, enabled=autocast):
            output = layer(inputs)
        (output * weight_TE).sum().backward()
        assert layer.bias.grad is not None
        assert layer.bias.grad.dtype == FP32
        gradients.append((output.detach(), inputs.grad, layer.weight.grad, layer.bias.grad))
    for ours_, theirs_ in zip(*gradients, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-5, atol=0.05 if autocast else 1e-5)


def test_dropout_keeps_the_mean_and_a_mask_of_bytes() -> None:
    states_TD = torch.ones(2000, 10, requires_grad=True)
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dropped = drop(states_TD, 0.25, training=True)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert saved == [torch.bool]
    assert drop(states_TD, 0.25, training=False) is states_TD
    assert drop(states_TD, 0.0, training=True) is states_TD
