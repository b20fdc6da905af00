import pytest
import torch
from torch import Tensor, nn

from models import ModelConfig
from models.blocks import LayerNorm
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
