"""Steps that are captured, on a card: `pytest -m gpu` on a machine that has one."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.blocks import _attend_padded, attend
from models.packing import Packing
from objectives.config import TrialConfig
from objectives.data import Sequences
from objectives.data.batch_sizes import Shape
from objectives.data.sequences import DeviceSequences
from objectives.losses import build_loss
from objectives.training import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # Prototype features of torch say so.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]
CUDA = torch.device("cuda", 0)
NUM_ITEMS = 500


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def sequences() -> Sequences:
    random = np.random.default_rng(0)
    lengths = random.lognormal(2.5, 1, 700).clip(2, 90).astype(int)
    first = random.integers(0, NUM_ITEMS, len(lengths))
    walks = [
        (start + np.arange(length)) % NUM_ITEMS
        for start, length in zip(first, lengths, strict=True)
    ]
    return Sequences(
        np.concatenate(walks).astype(np.int32), np.concatenate([[0], lengths.cumsum()])
    )


def make_trainer(
    *, seed: int = 0, draws: int = 0, on_host: bool = False, **settings: Any
) -> Trainer:
    """A trainer whose weights and order come from the seed, and negatives from `draws`."""
    small = {"width": 32, "num_heads": 2, "max_length": 40, "batch_size": 64, "negatives": 50}
    config = TrialConfig.from_flat(small | {"table_updates": "dense"} | settings)
    torch.manual_seed(seed)
    with CUDA:
        model = config.build_model(NUM_ITEMS)
    data = DeviceSequences(sequences(), CUDA, on_host=on_host)
    counts_V = torch.from_numpy(np.bincount(sequences().items, minlength=NUM_ITEMS)).to(CUDA)
    loss = build_loss(config.loss, draws, model.outputs.sink, counts_V)
    return Trainer(model, loss, data, config.training, seed)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"loss": "cce"},
    {"loss": "bce"},
    {"loss": "gbce"},
    {"loss": "sce", "bucket_items": 50},
    {"loss": "sce", "bucket_items": 50, "table_updates": "adam"},
    {"loss": "rece", "rounds": 2},
    {"candidates": "popularity"},
    {"candidates": "mixed"},
    {"candidates": "in-batch", "table_updates": "adam"},
    {"group_size": 1},
    {"architecture": "bert4rec"},
    {"table_updates": "adam", "table_dtype": "bfloat16"},
    {"table_updates": "adagrad", "output_table": "separate"},
    {"accumulation": 3, "clip_norm": 1.0, "schedule": "cosine", "warmup": 0.1},
    {"accumulation": 3, "table_updates": "adam"},
    {"positions": "rotary", "feed_forward": "swiglu", "norm": "post"},
    {"activations": "recomputed"},
]


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_seed_makes_a_run_bit_by_bit(settings: dict[str, Any]) -> None:
    losses, states = [], []
    for _ in range(2):
        trainer = make_trainer(**settings)
        losses.append([trainer.train_epoch() for _ in range(3)])
        states.append(trainer.model.state_dict())
    assert losses[0] == losses[1]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert losses[0][2] < losses[0][0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sums_in_any_order_differ_by_noise(settings: dict[str, Any]) -> None:
    first, second = (
        [trainer.train_epoch() for _ in range(3)]
        for trainer in (make_trainer(**settings) for _ in range(2))
    )
    assert first == pytest.approx(second, rel=0.02)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_goes_on_from_its_state_bit_by_bit(settings: dict[str, Any]) -> None:
    whole = make_trainer(**settings)
    expected = [whole.train_epoch() for _ in range(4)]
    first = make_trainer(**settings)
    losses = [first.train_epoch() for _ in range(2)]
    state = copy.deepcopy(first.state_dict())
    second = make_trainer(seed=1, **settings)
    second.load_state_dict(state)
    losses += [second.train_epoch() for _ in range(2)]
    assert losses == expected


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("settings", [{}, {"architecture": "bert4rec"}])
def test_captured_steps_are_those_that_run_as_they_are(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = make_trainer(**settings)
    expected = [captured.train_epoch() for _ in range(2)]
    plain = make_trainer(**settings)

    def run(step: Callable[[Tensor, Shape], Tensor], numbers: Tensor, shape: Shape) -> Tensor:
        return step(numbers.to(CUDA), shape)

    monkeypatch.setattr(plain, "_captured", run)
    assert [plain.train_epoch() for _ in range(2)] == expected


@pytest.mark.usefixtures("deterministic")
def test_it_does_not_matter_where_the_data_is() -> None:
    on_device, on_host = (
        [trainer.train_epoch() for _ in range(2)]
        for trainer in (make_trainer(on_host=on_host) for on_host in (False, True))
    )
    assert on_device == on_host


def test_parts_make_the_step_of_the_whole() -> None:
    losses = []
    for accumulation in (1, 4):
        trainer = make_trainer(loss="cce", dropout=0.0, accumulation=accumulation)
        losses.append([trainer.train_epoch() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_host_waits_for_nothing(settings: dict[str, Any], on_host: bool) -> None:
    trainer = make_trainer(on_host=on_host, **settings)
    trainer.train_epoch()
    plans = list(trainer.batches.epoch())
    for plan in plans:
        trainer.train_step(plan)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for plan in plans:
            trainer.train_step(plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 3 * len(plans)


def test_memory_comes_back_without_the_garbage_collector() -> None:
    def train() -> tuple[int, int]:
        trainer = make_trainer()
        trainer.train_epoch()
        del trainer
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    train()
    first = train()
    for _ in range(20):
        last = train()
    assert last == first


def test_a_step_that_finds_no_memory_while_it_is_captured_says_so() -> None:
    trainer = make_trainer()
    step, calls = trainer._step_on_device, []

    def fail(numbers: Tensor, shape: Shape) -> Tensor:
        calls.append(shape)
        result = step(numbers, shape)
        if len(calls) == 2:
            torch.empty(1 << 60, dtype=torch.uint8, device=CUDA)
        return result

    trainer._step_on_device = fail  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train_epoch()
    del trainer
    assert make_trainer().train_epoch() > 0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_attention_is_that_over_padded_sequences(dtype: torch.dtype, causal: bool) -> None:
    generator = torch.Generator(CUDA).manual_seed(0)
    packing = Packing.of([3, 0, 130, 1, 64], CUDA)
    qkv_T3HC = torch.randn(
        packing.num_tokens, 3, 2, 32, dtype=torch.float64, device=CUDA, generator=generator
    )
    gradient_THC = torch.randn(
        packing.num_tokens, 2, 32, dtype=torch.float64, device=CUDA, generator=generator
    )
    found = []
    for attention, kind in ((attend, dtype), (_attend_padded, dtype), (_attend_padded, None)):
        given = qkv_T3HC.to(kind or torch.float64).requires_grad_()
        output = attention(given, packing, causal=causal)
        (grad_T3HC,) = torch.autograd.grad(output, given, gradient_THC.to(output.dtype))
        found.append((output.double(), grad_T3HC.double()))
    for ours, theirs, truth in zip(*found, strict=True):
        # As exact as the twin in the same type.
        bound = (theirs - truth).abs().max() * 2 + 1e-3
        assert (ours - truth).abs().max() <= bound
