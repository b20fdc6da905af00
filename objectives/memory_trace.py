"""What a training allocates, traced on fake tensors: no GPU is needed, and nothing computes.

Shapes: T tokens, N rows of the loss, B sequences, P these and fillers, K negatives, G groups, U
touched items, V items.

The code of a training step and of an evaluation runs, as on a GPU, on tensors that have shapes and
no numbers (`kernels.gpu.simulated_gpu`), so a trace is true for any model and any loss. Sizes that
vary from trial to trial are large primes in it: a dimension says by its value which of them it is,
and one trace holds for all their values. So it does for all numbers of blocks: what happens in the
second of three happens again in every further one.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import RowGradient, target_ranks
from kernels.gpu import Gpu, simulated_gpu
from kernels.launch import config_of, forward_splits
from models.packing import Packing
from objectives.config import TrialConfig
from objectives.data import Sequences
from objectives.data.batch_sizes import Shape
from objectives.data.sequences import DeviceSequences, TargetBatch
from objectives.loss_config import LossConfig, SharedNegatives
from objectives.losses import build_loss
from objectives.parallel import ALONE, Group
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
        repeats: Whether every block between the first and the last has it.
    """

    part: str
    shape: tuple[int, ...]
    sign: int
    repeats: bool = False


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when the storages that operators return are allocated, and when they are freed.

    Our own operators are made of others, which are noted in their place.

    Attributes:
        events: What happened so far.
        part: What the next allocations are for.
        repeats: Whether what happens next does so in every block between the first and the last.
    """

    def __init__(self, *token_numbers: int) -> None:
        """Begins; token_numbers: T of the batches."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._token_numbers = token_numbers
        self.events: list[Event] = []
        self.part = ""
        self.repeats = False
        self._live: dict[int, tuple[int, weakref.KeyedRef[int, torch.UntypedStorage]]] = {}

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
        like = args[0] if self.part == "optimizer" and args else None
        for value in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(value, Tensor):
                self._note(value, self.knows_repeating(like) or self.repeats)
        if func.name() == "torch_attn::_varlen_attn_backward":
            self._note_flash(query=args[1], offsets=args[6])
        return output

    def knows_repeating(self, tensor: object) -> bool:
        """Whether it is a tensor that every block between the first and the last has."""
        if not isinstance(tensor, Tensor):
            return False
        known = self._live.get(tensor.untyped_storage()._cdata)
        return known is not None and self.events[known[0]].repeats

    def mark_repeating(self, tensor: Tensor) -> None:
        """Every block between the first and the last has one like this."""
        place, _ = self._live[tensor.untyped_storage()._cdata]
        self.events[place] = self.events[place]._replace(repeats=True)

    def _note(self, tensor: Tensor, repeats: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        shape = (tensor.element_size(), *tensor.shape)
        if storage.nbytes() != int(np.prod(shape, dtype=np.int64)):
            shape = (1, storage.nbytes())
        self._live[key] = len(self.events), weakref.KeyedRef(storage, self._free, key)
        self.events.append(Event(self.part, shape, 1, repeats))

    def _take_over(self, held: Tensor, total: Tensor) -> None:
        """The total lies where the first summand was."""
        key = held.untyped_storage()._cdata
        if key in self._live and held.shape == total.shape and held.dtype == total.dtype:
            place, _ = self._live.pop(key)
            storage = total.untyped_storage()
            reference = weakref.KeyedRef(storage, self._free, storage._cdata)
            self._live[storage._cdata] = place, reference

    def _free(self, reference: weakref.KeyedRef[int, torch.UntypedStorage]) -> None:
        place, _ = self._live.pop(reference.key)
        event = self.events[place]
        # States are handed from block to block, all else is of one.
        is_handed = any(number in event.shape for number in self._token_numbers)
        repeats = self.repeats if is_handed else event.repeats
        self.events.append(event._replace(sign=-1, repeats=repeats))

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
        events = [Event(self.part, shape, 1, self.repeats) for shape in sums]
        self.events += [*events, *(event._replace(sign=-1) for event in events)]


class Sizes(NamedTuple):
    """The sizes that a trace depends on.

    Attributes:
        num_items: V.
        negatives: K, of losses that groups of rows share negatives in; 0 of others.
        shape: Of the parts of a training batch.
        evaluated: Tokens, histories and seen items of an evaluation batch.
    """

    num_items: int
    negatives: int
    shape: Shape
    evaluated: tuple[int, int, int]

    def named(self, config: TrialConfig, gpu: Gpu) -> dict[str, int]:
        """All dimensions that vary with them and with the card, by name.

        Those of SCE, RECE and candidates that come from the batch are not among them.
        """
        loss, training, shape = config.loss, config.training, self.shape
        # It needs Triton, which a trace has.
        from kernels.triton_layer_norm import backward_programs

        group_size, num_candidates, kernel = shape.num_rows, self.num_items, "catalogue"
        if isinstance(loss, SharedNegatives):
            group_size = max(1, min(loss.group_size, shape.num_rows))
            num_candidates, kernel = self.negatives, "forward"
        num_groups = -(-shape.num_rows // group_size)
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


def trace(config: TrialConfig, sizes: Sizes, gpu: Gpu, group: Group = ALONE) -> list[Event]:
    """A training step and a batch of an evaluation: what they allocate and free, in order.

    It is a later step: the optimizer's state is there. Of three blocks the second one's events
    are marked.

    Args:
        config: The trial, `resolved`; of its sizes, those that `sizes` has do not count.
        sizes: See there.
        gpu: The card that is simulated.
        group: The processes of which one is traced.

    Raises:
        ImportError: There is no Triton.
    """
    shape, (num_tokens, num_histories, num_seen) = sizes.shape, sizes.evaluated
    model_config = config.model.model_copy(update={"max_length": shape.longest})
    loss: LossConfig = config.loss
    if isinstance(loss, SharedNegatives):
        loss = loss.model_copy(update={"negatives": sizes.negatives})
    config = config.model_copy(update={"model": model_config, "loss": loss})
    two_items = Sequences(np.zeros(2, np.int32), np.array([0, 2]))
    recorder = Recorder(shape.num_tokens, num_tokens)
    with simulated_gpu(gpu), FakeTensorMode(allow_non_fake_inputs=True), recorder:
        recorder.part = "parameters"
        model = config.build_model(sizes.num_items)
        recorder.part = "data"
        counts_V = torch.empty(sizes.num_items, dtype=torch.int64) if loss.needs_counts else None
        table_loss = build_loss(loss, 0, model.outputs.sink, counts_V)
        del counts_V
        trainer = Trainer(
            model,
            recorder.doing("loss", table_loss, then=GRADIENTS),
            DeviceSequences(two_items, _CPU),
            config.training,
            seed=0,
            group=group,
        )
        trainer.batches.assemble = recorder.doing(  # type: ignore[method-assign]
            "activations", trainer.batches.assemble, then="activations"
        )
        step = trainer.optimization.step
        trainer.optimization.step = recorder.doing(  # type: ignore[method-assign]
            "optimizer", step, then="activations"
        )
        model.train()
        if len(model.blocks) == 3:
            _mark_middle(recorder, model.blocks)
        _make_states(recorder, trainer)
        recorder.part = "activations"
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


def _mark_middle(recorder: Recorder, blocks: nn.ModuleList) -> None:
    """What happens from the second block on, until the third, repeats; backward the same."""

    def repeats(is_middle: bool) -> Callable[..., None]:
        def switch(_: object) -> None:
            recorder.repeats = is_middle

        return switch

    def begin(is_middle: bool) -> Callable[..., None]:
        def switch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            recorder.repeats = is_middle
            if inputs[0].requires_grad:
                inputs[0].register_hook(repeats(not is_middle))

        return switch

    _, middle, last = blocks
    middle.register_forward_pre_hook(begin(True))
    last.register_forward_pre_hook(begin(False))
    for parameter in middle.parameters():
        recorder.mark_repeating(parameter)


def _make_states(recorder: Recorder, trainer: Trainer) -> None:
    """The optimizer's states, by a step along gradients that nothing has computed."""
    recorder.part = GRADIENTS
    tables = {id(table.weight): table for table in trainer.model.tables}
    for parameter in trainer.model.parameters():
        table = tables.get(id(parameter))
        if table is not None and table.sink is not None:
            row = torch.empty(1, parameter.shape[1])
            table.sink.add(RowGradient(torch.empty(1, dtype=torch.int64), row))
        else:
            recorder.repeats = recorder.knows_repeating(parameter)
            parameter.grad = torch.empty_like(parameter)
    recorder.repeats = False
    trainer.optimization.step()


class Timeline:
    """The allocations of a trace, for any sizes and any number of blocks."""

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
        repeats = np.array([event.repeats for event in events])
        changes = np.flatnonzero(np.diff(repeats)) + 1
        runs = np.split(np.arange(len(events)), changes)
        self._runs = [(run, bool(repeats[run[0]])) for run in runs]
        self._orders: dict[int, NDArray[np.int64]] = {}

    def _order(self, times: int) -> NDArray[np.int64]:
        """The events, those that repeat so many times."""
        if times not in self._orders:
            runs = [np.tile(run, times) if repeats else run for run, repeats in self._runs]
            self._orders[times] = np.concatenate(runs)
        return self._orders[times]

    def at(self, names: Mapping[str, int], alignment: int, times: int = 1) -> dict[str, int]:
        """What every part has allocated, in bytes, when all together have most.

        Args:
            names: The dimensions.
            alignment: Bytes; allocations are multiples of it.
            times: How often the second of three blocks is there.
        """
        sizes = np.array(
            [
                -(-constant * math.prod(names[name] for name in variables) // alignment)
                for constant, variables in self._shapes
            ]
        )
        order = self._order(times)
        changes = (sizes[self._places] * self._signs * alignment)[order]
        last = int(changes.cumsum().argmax()) + 1
        totals = np.bincount(self._part_of[order[:last]], changes[:last], len(self._parts))
        return {part: int(total) for part, total in zip(self._parts, totals, strict=True)}
