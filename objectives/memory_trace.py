"""What a training allocates, traced on fake tensors: no GPU is needed, and nothing computes.

Shapes: T tokens, N rows of the loss, B sequences, P these and fillers, K negatives, G groups, U
touched items, V items.

The code of a training step and of an evaluation runs, as on a GPU, on tensors that have shapes and
no numbers (`kernels.gpu.simulated_gpu`), so a trace is true for any model and any loss. Sizes that
vary from trial to trial are large primes in it: a dimension says by its value which of them it is,
and one trace holds for all their values.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import target_ranks
from kernels.gpu import Gpu, simulated_gpu
from kernels.launch import config_of, forward_splits
from models.packing import Packing
from objectives.config import TrialConfig
from objectives.data import Sequences
from objectives.data.batch_sizes import Shape
from objectives.data.sequences import DeviceSequences, TargetBatch
from objectives.losses import build_loss
from objectives.training import Trainer

GRADIENTS = "gradients"

_CPU = torch.device("cpu")
_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.index_add.default
"""What backward passes do in place, but where Python sees the tensors, as it does here."""
_FLASH_ROWS = 128
"""Rows that flash attention's backward pass adds to every sequence of its sums, whose heads it
widens to multiples of 32, or to 256."""


class Event(NamedTuple):
    """An allocation, or its end.

    Attributes:
        part: What it is for.
        shape: Bytes of an element, then the dimensions.
        sign: 1, or -1 for its end.
    """

    part: str
    shape: tuple[int, ...]
    sign: int


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when the storages that operators return are allocated, and when they are freed.

    Our own operators are made of others, which are noted in their place.

    Attributes:
        events: What happened so far.
        part: What the next allocations are for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.part = ""
        self._live: dict[int, tuple[Event, weakref.KeyedRef[int, torch.UntypedStorage]]] = {}

    def doing(self, part: str, call: Callable[..., Any], then: str) -> Callable[..., Any]:
        """A function whose allocations are for a part; what follows is for another."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self.part = part
            try:
                return call(*args, **kwargs)
            finally:
                self.part = then

        return called

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "paretocut":
            with self:
                keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
                return func.redispatch(keys, *args, **kwargs)
        output = func(*args, **kwargs)
        if func in _IN_PLACE and self.part == GRADIENTS:
            self._take_over(args[0], output)
        for value in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(value, Tensor):
                self._note(value)
        if func.name() == "torch_attn::_varlen_attn_backward":
            self._note_flash(query=args[1], offsets=args[6])
        return output

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        shape = (tensor.element_size(), *tensor.shape)
        if storage.nbytes() != int(np.prod(shape, dtype=np.int64)):
            shape = (1, storage.nbytes())
        event = Event(self.part, shape, 1)
        self._live[key] = event, weakref.KeyedRef(storage, self._free, key)
        self.events.append(event)

    def _take_over(self, held: Tensor, total: Tensor) -> None:
        """The total lies where the first summand was."""
        key = held.untyped_storage()._cdata
        if key in self._live and held.shape == total.shape and held.dtype == total.dtype:
            event, _ = self._live.pop(key)
            storage = total.untyped_storage()
            reference = weakref.KeyedRef(storage, self._free, storage._cdata)
            self._live[storage._cdata] = event, reference

    def _free(self, reference: weakref.KeyedRef[int, torch.UntypedStorage]) -> None:
        event, _ = self._live.pop(reference.key)
        self.events.append(event._replace(sign=-1))

    def _note_flash(self, query: Tensor, offsets: Tensor) -> None:
        """What the backward pass of flash attention adds in: float32, beside its outputs."""
        num_tokens, num_heads, width = query.shape
        summed = -(-width // 32) * 32 if width <= 192 else 256
        sums = [
            shape
            for columns in (summed, 1)
            for shape in (
                (4, num_tokens, num_heads, columns),
                (4 * _FLASH_ROWS, len(offsets) - 1, num_heads, columns),
            )
        ]
        events = [Event(self.part, shape, 1) for shape in sums]
        self.events += [*events, *(event._replace(sign=-1) for event in events)]


class Sizes(NamedTuple):
    """The sizes that a trace depends on.

    Attributes:
        num_items: V.
        negatives: K.
        shape: Of the parts of a training batch.
        evaluated: Tokens, histories and seen items of an evaluation batch.
    """

    num_items: int
    negatives: int
    shape: Shape
    evaluated: tuple[int, int, int]

    def named(self, config: TrialConfig, gpu: Gpu) -> dict[str, int]:
        """All dimensions that vary with them and with the card, by name."""
        loss, training, shape = config.loss, config.training, self.shape
        # It needs Triton, which a trace has.
        from kernels.triton_layer_norm import backward_programs

        group_size = max(1, min(loss.group_size, shape.num_rows))
        num_groups = -(-shape.num_rows // group_size)
        num_candidates, kernel = self.negatives, "forward"
        if loss.loss == "cce":
            group_size, num_groups = shape.num_rows, 1
            num_candidates, kernel = self.num_items, "catalogue"
        table_dtype = getattr(torch, training.table_dtype)
        launch = config_of(gpu, torch.bfloat16, table_dtype, config.model.width, kernel)
        blocks = -(-config.model.width // launch.block_d)
        splits = forward_splits(launch, group_size, num_groups, num_candidates, blocks)
        touched = min(self.num_items, num_groups * self.negatives + shape.num_rows)
        parts = training.accumulation
        num_sequences = shape.num_sequences + shape.num_fillers
        tokens, histories, seen = self.evaluated
        return {
            "V": self.num_items,
            "W": -(-self.num_items // 32),
            "K": self.negatives,
            "L": shape.longest,
            "T": shape.num_tokens,
            "N": shape.num_rows,
            "B": shape.num_sequences,
            "P": num_sequences,
            "G": num_groups,
            "S": splits if splits > 1 else 0,
            "layer norm": backward_programs(gpu, shape.num_tokens, config.model.width),
            "U": touched,
            "U of all parts": min(self.num_items, parts * touched),
            "U and T of all parts": min(self.num_items, parts * (touched + shape.num_tokens)),
            "T of all parts": min(self.num_items, parts * shape.num_tokens),
            "P + 1": num_sequences + 1,
            "numbers": self.num_numbers(config),
            "T of evaluation": tokens,
            "B of evaluation": histories,
            "B + 1 of evaluation": histories + 1,
            "P of evaluation": seen,
        }

    def num_numbers(self, config: TrialConfig) -> int:
        """What the host sends of a part."""
        shape = self.shape
        masked = shape.num_rows if config.model.architecture == "bert4rec" else 0
        return 3 + 2 * shape.num_sequences + shape.num_fillers + masked


def trace(config: TrialConfig, sizes: Sizes, gpu: Gpu) -> list[Event]:
    """Two training steps and a batch of an evaluation: what they allocate and free, in order.

    Args:
        config: The trial, `resolved`; of its sizes, those that `sizes` has do not count.
        sizes: See there.
        gpu: The card that is simulated.

    Raises:
        ImportError: There is no Triton.
    """
    shape, (num_tokens, num_histories, num_seen) = sizes.shape, sizes.evaluated
    model_config = config.model.model_copy(update={"max_length": shape.longest})
    loss = config.loss.model_copy(update={"negatives": sizes.negatives})
    config = config.model_copy(update={"model": model_config, "loss": loss})
    two_items = Sequences(np.zeros(2, np.int32), np.array([0, 2]))
    recorder = Recorder()
    with simulated_gpu(gpu), FakeTensorMode(allow_non_fake_inputs=True), recorder:
        recorder.part = "parameters"
        model = config.build_model(sizes.num_items)
        recorder.part = "data"
        table_loss = build_loss(config.loss, 0, model.outputs.sink)
        trainer = Trainer(
            model,
            recorder.doing("loss", table_loss, then=GRADIENTS),
            DeviceSequences(two_items, _CPU),
            config.training,
            seed=0,
        )
        trainer.batches.assemble = recorder.doing(  # type: ignore[method-assign]
            "activations", trainer.batches.assemble, then="activations"
        )
        step = trainer.optimization.step
        trainer.optimization.step = recorder.doing(  # type: ignore[method-assign]
            "optimizer", step, then="activations"
        )
        model.train()
        recorder.part = "activations"
        for _ in range(2):
            numbers = torch.empty(
                config.training.accumulation, sizes.num_numbers(config), dtype=torch.int64
            )
            trainer._step_on_device(numbers, shape)
        del numbers
        recorder.part = "evaluation"
        places = torch.empty(num_histories + 1, dtype=torch.int64)
        seen = torch.empty(num_seen, dtype=torch.int64), torch.empty(num_seen, dtype=torch.int64)
        batch = TargetBatch(
            torch.empty(num_tokens, dtype=torch.int64),
            Packing(places, num_tokens, shape.longest),
            torch.empty(num_histories, dtype=torch.int64),
            seen,
        )
        states_BD = trainer.encoder()(batch)
        target_ranks(states_BD, model.outputs.weight.detach(), batch.targets_B, seen)
    return recorder.events


class Timeline:
    """The allocations of a trace, for any sizes."""

    def __init__(self, events: list[Event], names: Mapping[str, int]) -> None:
        """Reads the dimensions; names: their values in the trace, by name."""
        name_of: dict[int, str] = {}
        for name, value in names.items():
            name_of.setdefault(value, name)
        splits = names.get("S", 0)

        def named(part: str, size: int) -> str | None:
            name = name_of.get(size)
            # It is a small number, which other dimensions may be too.
            return None if size == splits and part != "loss" else name

        shapes = list(dict.fromkeys((event.part, event.shape) for event in events))
        self._shapes: list[tuple[int, list[str]]] = []
        for part, shape in shapes:
            found = [(size, named(part, size)) for size in shape]
            constant = math.prod(size for size, name in found if name is None)
            self._shapes.append((constant, [name for _, name in found if name is not None]))
        place_of = {shape: place for place, shape in enumerate(shapes)}
        self._places = np.array([place_of[event.part, event.shape] for event in events])
        self._signs = np.array([event.sign for event in events])
        self._parts = list(dict.fromkeys(event.part for event in events))
        self._part_of = np.array([self._parts.index(event.part) for event in events])

    def at(self, names: Mapping[str, int], alignment: int) -> dict[str, int]:
        """What every part has allocated, in bytes, when all together have most.

        Args:
            names: The dimensions.
            alignment: Bytes; allocations are multiples of it.
        """
        sizes = np.array(
            [
                -(-constant * math.prod(names[name] for name in variables) // alignment)
                for constant, variables in self._shapes
            ]
        )
        changes = sizes[self._places] * self._signs * alignment
        last = int(changes.cumsum().argmax()) + 1
        totals = np.bincount(self._part_of[:last], changes[:last], len(self._parts))
        return {part: int(total) for part, total in zip(self._parts, totals, strict=True)}
