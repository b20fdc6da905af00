"""The worker of `benchmarks.training` that trains ours: epochs, a profile, an evaluation.

Shapes: M interactions, S sequences.
"""

import importlib
import pkgutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from triton.runtime import KernelInterface

import kernels
from benchmarks import _gpu_profile
from benchmarks._training_setup import Arrays, Setup, peak_bytes, spread, synchronize, work
from objectives.config import TrialConfig
from objectives.data.prepared import Sequences, Targets
from objectives.data.sequences import DeviceSequences, DeviceTargets
from objectives.evaluation import evaluate
from objectives.loss_config import CCEMinus
from objectives.losses import build_loss
from objectives.training import Trainer

_SKIPPED_STEPS, _PROFILED_STEPS = 10, 40
_STEPS_OF_A_WINDOW = 5
"""As for the peers."""
_NOT_OF_THE_LOSS = ("layer_norm", "ranking", "row_gradient", "row_updates")


def measure(system: str, setup: Setup, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """Trains epochs until the time is up, then profiles, then evaluates."""
    config = TrialConfig.from_flat(setup.settings).resolved(setup.items)
    device = torch.device(setup.device)
    torch.manual_seed(setup.seed)
    with device:
        model = config.build_model(setup.items)
    trainer = Trainer(
        model,
        build_loss(config.loss, setup.seed, model.outputs.sink),
        DeviceSequences(Sequences(arrays.items, arrays.offsets), device),
        config.training,
        setup.seed,
    )
    result = _epochs(trainer, setup)
    assert isinstance(config.loss, CCEMinus)
    result |= {
        "loss": f"cce- R={config.loss.group_size}",
        "precision": "bf16" if setup.device == "cuda" else "float32",
        "workers": 0,
        "peak_bytes": peak_bytes(setup),
    }
    if setup.device == "cuda":
        result |= _profile(trainer)
    return result | _evaluation(trainer, setup, arrays)


def _epochs(trainer: Trainer, setup: Setup) -> dict[str, Any]:
    """Windows of steps, of whole epochs, without the first, which compiles."""
    trainer.train_epoch()
    deadline = time.perf_counter() + setup.time_limit
    windows: list[float] = []
    num_epochs, seconds, loss = 0, 0.0, 0.0
    while not num_epochs or time.perf_counter() + seconds / num_epochs < deadline:
        begin = time.perf_counter()
        windows += _windows(trainer, setup)
        seconds += time.perf_counter() - begin
        num_epochs += 1
    loss = trainer.train_epoch()
    begin = time.perf_counter()
    tokens = sum(part.shape.num_tokens for parts in trainer.batches.epoch() for part in parts)
    planning = time.perf_counter() - begin
    steps = setup.steps_per_epoch
    return {
        "timed_steps": steps * num_epochs,
        "mean_step_ms": 1e3 * seconds / (steps * num_epochs),
        "final_loss": loss,
        "tokens_per_step": tokens / steps,
        "data_share": planning / (seconds / num_epochs),
        **spread("step_ms", windows),
    }


def _windows(trainer: Trainer, setup: Setup) -> list[float]:
    """Milliseconds of a step in windows of an epoch, each ended by a synchronisation."""
    trainer.model.train()
    found, count = [], 0
    synchronize(setup)
    begin = time.perf_counter()
    for parts in trainer.batches.epoch():
        trainer.train_step(parts)
        count += 1
        if count == _STEPS_OF_A_WINDOW:
            synchronize(setup)
            found.append((time.perf_counter() - begin) * 1e3 / count)
            begin, count = time.perf_counter(), 0
    synchronize(setup)
    if count:
        found.append((time.perf_counter() - begin) * 1e3 / count)
    return found


def _profile(trainer: Trainer) -> dict[str, float]:
    """Steps of an epoch under the profiler, behind some that bring the device up to speed."""
    trainer.model.train()
    steps = islice(trainer.batches.epoch(), _SKIPPED_STEPS + _PROFILED_STEPS)
    for parts in islice(steps, _SKIPPED_STEPS):
        trainer.train_step(parts)
    profiler = _gpu_profile.start()
    for parts in steps:
        trainer.train_step(parts)
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
    sequences = Sequences(arrays.items, arrays.offsets)
    targets = DeviceTargets(Targets(sequences, arrays.targets), torch.device(setup.device))
    mean_length = arrays.num_tokens(setup.max_length) / setup.users
    seconds = 0.0
    for _ in range(2):
        synchronize(setup)
        begin = time.perf_counter()
        evaluate(
            trainer.encoder(),
            trainer.model.outputs.weight.detach(),
            targets,
            # As in a trial.
            batch_tokens=int(setup.batch_size * mean_length * setup.blocks),
            max_length=setup.max_length,
            lists=True,
        )
        synchronize(setup)
        seconds = time.perf_counter() - begin
    return {"evaluation_seconds": seconds}


if __name__ == "__main__":
    work(measure)
