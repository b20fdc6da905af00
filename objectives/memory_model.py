"""Predicts the peak memory of a trial on a GPU, without one.

Shapes: T tokens, V items, D width.

The allocations of a training step and an evaluation are traced (`objectives.memory_trace`) once
for every structure of a trial; batch size, length, negatives, catalogue and the number of blocks
are then put into the trace. Added are the data, and what libraries hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from kernels.gpu import Gpu
from kernels.launch import config_of, for_group
from models.blocks import is_flash_width
from objectives.config import TrialConfig
from objectives.data import PreparedData
from objectives.data.batch_sizes import Lengths, Shape
from objectives.data.sequences import stays_on_host
from objectives.evaluation import batch_tokens
from objectives.loss_config import CCE, GBCE, LossConfig, SharedNegatives
from objectives.memory_trace import Sizes, Timeline, trace
from objectives.parallel import Group

ALIGNMENT = 512
"""Bytes; the caching allocator gives out multiples of it."""
_WORKSPACES = {"fast": 2 * (2 * (4 << 20) + 8 * (16 << 10)), "deterministic": 2 * 8 * (4 << 20)}
"""Bytes that cuBLAS holds for the thread of forward passes and for that of backward passes:
`:4096:2:16:8` or `:4096:8` each, as `objectives.sequential` sets it."""
_LIST_BYTES, _MOST_LIST_BYTES = 20, 80 << 20
"""Bytes that lists of the best items take for a history and a group, and at most."""
_LIST_GROUPS = 4096
"""Items, or groups of items, that the best of a history are chosen from at a time, at most."""

_MOST_CLAIMS = 0x7FFF_FFFF
_MARKED_SPLITS = 13


@dataclass(frozen=True)
class DataShape:
    """What the memory of a trial depends on, of its data.

    Attributes:
        num_items: V.
        lengths: Of the training sequences.
        histories: Of the histories that evaluations are made of; training's where there are none.
        train_bytes: Bytes of the training sequences.
        target_bytes: Bytes of the larger of the two other splits.
    """

    num_items: int
    lengths: Lengths
    histories: Lengths
    train_bytes: int
    target_bytes: int

    @staticmethod
    def of(data: PreparedData) -> "DataShape":
        """That of a prepared data set."""
        splits = data.validation, data.test
        histories = np.concatenate([split.inputs.lengths for split in splits])
        return DataShape(
            data.num_items,
            Lengths(data.train.lengths),
            Lengths(histories if len(histories) else data.train.lengths),
            data.train.items.nbytes + data.train.offsets.nbytes,
            max(split.inputs.items.nbytes + split.items.nbytes for split in splits),
        )

    @staticmethod
    def of_length(num_items: int, num_users: int, mean_length: int) -> "DataShape":
        """Every user has that many items."""
        lengths = Lengths(np.full(num_users, mean_length, dtype=np.int64))
        data_bytes = num_users * (4 * mean_length + 8)
        return DataShape(num_items, lengths, lengths, data_bytes, data_bytes)


@dataclass(frozen=True)
class MemoryEstimate:
    """A predicted peak.

    Attributes:
        parts: Bytes of parameters, activations, gradients and so on when all together have most.
    """

    parts: Mapping[str, int]

    @cached_property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


class MemoryModel:
    """Predicts the peaks of trials on one data set and one kind of card."""

    def __init__(self, data: DataShape, gpu: Gpu, num_processes: int = 1) -> None:
        """Knows nothing yet; num_processes: those that share a trial. The peaks are of one."""
        self.data = data
        self.gpu = gpu
        self.num_processes = num_processes
        self._timelines: dict[tuple[str, bool | Sizes], Timeline] = {}

    def predict(self, config: TrialConfig, budget: int) -> MemoryEstimate:
        """The peak of a trial; a structure that is new is traced first, in about a second.

        Args:
            config: The trial.
            budget: Bytes that it may allocate: data that is large beside them stays on the host.
        """
        config = config.resolved(self.data.num_items)
        sizes = self._sizes(config)
        if self.num_processes > 1 or not serves_all_sizes(config):
            return self.traced(config, budget)
        names = sizes.named(config, self.gpu)
        few = names["G"] * names["K"] <= min(4 * names["V"], _MOST_CLAIMS)
        claims = config.training.by_rows or few
        # The second of three blocks stands for any number of them, or none.
        num_blocks = config.model.num_blocks
        model = config.model.model_copy(update={"num_blocks": 3 if num_blocks > 1 else 1})
        traced = config.model_copy(update={"model": model})
        key = _structure(traced), claims
        if key not in self._timelines:
            marked, gpu = _marked(config, claims, self.gpu)
            events = trace(traced, marked, gpu)
            self._timelines[key] = Timeline(events, marked.named(config, gpu))
        parts = self._timelines[key].at(names, ALIGNMENT, num_blocks - 2)
        return self._estimate(config, parts, sizes, budget)

    def traced(self, config: TrialConfig, budget: int) -> MemoryEstimate:
        """The same by a trace of this very configuration."""
        config = config.resolved(self.data.num_items)
        sizes = self._sizes(config)
        key = _structure(config), sizes
        if key not in self._timelines:
            group = Group(size=self.num_processes)
            self._timelines[key] = Timeline(trace(config, sizes, self.gpu, group), {})
        return self._estimate(config, self._timelines[key].at({}, ALIGNMENT), sizes, budget)

    def _estimate(
        self, config: TrialConfig, parts: Mapping[str, int], sizes: Sizes, budget: int
    ) -> MemoryEstimate:
        held = dict(parts)
        data = [
            size
            for size in (self.data.train_bytes, self.data.target_bytes)
            if not stays_on_host(size, budget)
        ]
        held["data"] = held.get("data", 0) + sum(data)
        held["libraries"] = _WORKSPACES[config.training.arithmetic]
        kept = {
            name: held.get(name, 0) for name in ("parameters", "optimizer", "data", "libraries")
        }
        _, histories, _ = sizes.evaluated
        lists = histories * min(sizes.num_items, _LIST_GROUPS) * _LIST_BYTES
        with_lists = {**kept, "evaluation": min(lists, _MOST_LIST_BYTES)}
        return max(MemoryEstimate(held), MemoryEstimate(with_lists), key=lambda each: each.peak)

    def _sizes(self, config: TrialConfig) -> Sizes:
        model, training, data = config.model, config.training, self.data
        parts = training.accumulation * self.num_processes
        is_masked = model.architecture == "bert4rec"
        shape = data.lengths.largest_shape(
            batch_size=training.batch_size,
            parts=parts,
            max_length=model.max_length,
            mask_share=model.mask_share if is_masked else None,
        )
        tokens = batch_tokens(
            training.model_copy(update={"accumulation": parts}),
            model,
            data.lengths.mean(0, model.max_length),
            len(data.lengths),
            data.num_items,
        )
        mean = data.histories.mean(0, model.max_length)
        share = min(1.0, tokens / (mean * len(data.histories)))
        histories = max(1, int(share * len(data.histories)))
        seen = int(histories * data.histories.mean(0, 1 << 40))
        return Sizes(
            data.num_items,
            config.loss.negatives if isinstance(config.loss, SharedNegatives) else 0,
            shape,
            (max(1, int(histories * mean)), histories, max(1, seen)),
        )


def serves_all_sizes(config: TrialConfig) -> bool:
    """Whether one trace of a structure serves all its sizes.

    It does not where what is run, or the products of sizes in it, depend on the sizes.
    """
    is_flash = is_flash_width(config.model.width // config.model.num_heads)
    return is_flash and _has_few_sizes(config)


def _has_few_sizes(config: TrialConfig) -> bool:
    """Whether `Sizes.named` has all the sizes that the loss runs by.

    SCE, RECE and candidates that come from the batch derive theirs from the number of rows.
    """
    loss = config.loss
    if isinstance(loss, SharedNegatives):
        return loss.group_size > 1 and config.training.arithmetic == "fast"
    return isinstance(loss, CCE)


def _structure(config: TrialConfig) -> str:
    """What a trace holds for: the configuration without the sizes that it is given."""
    training = config.training.model_copy(
        update={
            "batch_size": 1,
            "learning_rate": 1.0,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0.0,
            "max_epochs": 1,
            "patience": 1,
            "clip_norm": float(config.training.clip_norm > 0),
        }
    )
    model = config.model.model_copy(update={"max_length": 1, "table_scale": 1.0})
    model = model.model_copy(update={"dropout": 0.5 * (config.model.dropout > 0)})
    loss: LossConfig = config.loss
    if isinstance(loss, SharedNegatives):
        loss = loss.model_copy(update={"negatives": 1})
    if isinstance(loss, GBCE):
        loss = loss.model_copy(update={"calibration": 0.5})
    parts = {"training": training, "model": model, "loss": loss}
    return config.model_copy(update=parts).model_dump_json()


def _marked(config: TrialConfig, claims: bool, gpu: Gpu) -> tuple[Sizes, Gpu]:
    """Sizes that dimensions are known by; claims: see `kernels.triton_plan.Plan`."""
    num_items, num_tokens = 2_000_000_011, 1_000_003
    num_rows = 700_001 if config.model.architecture == "bert4rec" else num_tokens
    # More draws than items can be claimed; or so few that those of all parts are fewer than items.
    loss = config.loss
    group_size = loss.group_size if isinstance(loss, SharedNegatives) else num_rows
    num_groups = -(-num_rows // group_size)
    draws = _MOST_CLAIMS // (4 * config.training.accumulation) if claims else 2 * _MOST_CLAIMS
    negatives = draws // num_groups + 7
    shape = Shape(1_013, num_tokens, num_rows, 50_021, 24)
    sizes = Sizes(num_items, negatives, shape, (1_500_007, 310_019, 1_800_017))
    # So many cards' worth of programs that the rows are cut into this many parts.
    width, table_dtype = config.model.width, getattr(torch, config.training.table_dtype)
    kernel = "forward" if isinstance(loss, SharedNegatives) else "catalogue"
    launch = config_of(gpu, torch.bfloat16, table_dtype, width, kernel)
    rows = for_group(launch.forward, group_size).block_r
    programs = num_groups * -(-group_size // rows)
    programs *= -(-width // launch.block_d)
    return sizes, gpu._replace(num_sms=-(-_MARKED_SPLITS * programs // 2))
