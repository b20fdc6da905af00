"""The worker of `benchmarks.training` that trains ours: epochs, a profile, an evaluation.

Shapes: M interactions, S sequences.
"""

import importlib
import pkgutil
import time
from pathlib import Path
from typing import Any

import torch
from triton.runtime import KernelInterface

import kernels
from benchmarks import _gpu_profile
from benchmarks._training_setup import Arrays, Setup, peak_bytes, spread, synchronize, work
from objectives import training
from objectives.config import TrialConfig
from objectives.data.prepare import Sequences, Targets
from objectives.data.sequences import DeviceSequences
from objectives.evaluation import evaluate
from objectives.losses import build_loss
from objectives.training import Trainer

_PROFILED_STEPS = 30
_EVALUATION_BATCHES = 2
"""Users of an evaluation batch over sequences of a training batch, as in a trial."""
_NOT_OF_THE_LOSS = ("attention", "ranking", "row_updates")


class _HostClock:
    """Calls a function, and adds up how long the host takes for it."""

    def __init__(self, module: Any, name: str) -> None:
        self._function = getattr(module, name)
        self.seconds = 0.0
        setattr(module, name, self)

    def __call__(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = self._function(*arguments)
        self.seconds += time.perf_counter() - begin
        return result


class _TokenCount:
    """Counts the tokens that a model computes."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.calls = self.tokens = 0
        model.register_forward_pre_hook(self._add)

    def _add(self, _: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self.calls += 1
        self.tokens += len(arguments[0])


def measure(system: str, setup: Setup, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """Trains whole epochs until the time is up, then profiles, then evaluates."""
    config = TrialConfig.from_flat(
        {
            "max_length": setup.max_length,
            "width": setup.width,
            "num_blocks": setup.blocks,
            "num_heads": setup.heads,
            "dropout": setup.dropout,
            "negatives": setup.negatives,
            "batch_size": setup.batch_size,
            "max_epochs": 1000,
        }
    )
    device = torch.device(setup.device)
    torch.manual_seed(setup.seed)
    trainer = Trainer(
        config.model.build(setup.items).to(device),
        build_loss(config.loss, setup.seed),
        DeviceSequences(Sequences(arrays.items, arrays.offsets), device),
        config.training,
        setup.seed,
    )
    result = _epochs(trainer, setup)
    result |= {
        "loss": f"cce- R={config.loss.group_size}",
        "precision": "bf16" if setup.device == "cuda" else "float32",
        "workers": 0,
        "peak_bytes": peak_bytes(setup),
    }
    if setup.device == "cuda":
        result |= _profile(trainer, setup, arrays)
    return result | _evaluation(trainer, setup, arrays)


def _epochs(trainer: Trainer, setup: Setup) -> dict[str, Any]:
    """The first epoch, which compiles, is left out; after it there is at least one more."""
    count = _TokenCount(trainer.model)
    clock = (
        _HostClock(training, "next_item_batch") if hasattr(training, "next_item_batch") else None
    )
    deadline = time.perf_counter() + setup.time_limit
    trainer.train_epoch()
    count.calls = count.tokens = 0
    if clock is not None:
        clock.seconds = 0.0
    seconds: list[float] = []
    loss = 0.0
    while not seconds or time.perf_counter() + seconds[-1] < deadline:
        synchronize(setup)
        begin = time.perf_counter()
        loss = trainer.train_epoch()
        synchronize(setup)
        seconds.append(time.perf_counter() - begin)
    steps = setup.steps_per_epoch
    result: dict[str, Any] = {
        "timed_steps": steps * len(seconds),
        "final_loss": loss,
        **spread("step_ms", [1e3 * epoch / steps for epoch in seconds]),
    }
    # Where the steps are replayed, the model is not called.
    if count.calls == steps * len(seconds):
        result["tokens_per_step"] = count.tokens / count.calls
    if clock is not None:
        result["data_share"] = clock.seconds / sum(seconds)
    return result


def _profile(trainer: Trainer, setup: Setup, arrays: Arrays) -> dict[str, float]:
    """An epoch of a few steps under the profiler, behind two that warm up."""
    users = min(setup.users, _PROFILED_STEPS * setup.batch_size)
    offsets = arrays.offsets[: users + 1]
    part = Sequences(arrays.items[: offsets[-1]], offsets)
    device = torch.device(setup.device)
    short = Trainer(
        trainer.model, trainer.loss, DeviceSequences(part, device), trainer.config, trainer.seed
    )
    short.train_epoch()
    short.train_epoch()
    torch.cuda.synchronize()
    profiler = _gpu_profile.start()
    short.train_epoch()
    torch.cuda.synchronize()
    return _gpu_profile.shares(profiler, _loss_kernels().__contains__)


def _loss_kernels() -> set[str]:
    """Names of our Triton kernels that belong to the loss."""
    names = set()
    for module in pkgutil.iter_modules(kernels.__path__, "kernels."):
        is_of_the_loss = not any(part in module.name for part in _NOT_OF_THE_LOSS)
        if module.name.startswith("kernels.triton_") and is_of_the_loss:
            values = vars(importlib.import_module(module.name)).items()
            names |= {name for name, value in values if isinstance(value, KernelInterface)}
    return names


def _evaluation(trainer: Trainer, setup: Setup, arrays: Arrays) -> dict[str, Any]:
    """All metrics of all users, the second time."""
    targets = Targets(Sequences(arrays.items, arrays.offsets), arrays.targets)
    batch = _EVALUATION_BATCHES * setup.batch_size
    seconds = 0.0
    for _ in range(2):
        synchronize(setup)
        begin = time.perf_counter()
        evaluate(
            trainer.encoder(),
            trainer.model.outputs.weight.detach(),
            targets,
            batch_size=batch,
            max_length=setup.max_length,
        )
        synchronize(setup)
        seconds = time.perf_counter() - begin
    return {"evaluation_seconds": seconds}


if __name__ == "__main__":
    work(measure)
