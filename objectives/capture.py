"""Steps as CUDA graphs: a step then costs the host a few calls, whatever the model is made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from objectives.data.batch_sizes import Shape
from objectives.parallel import ALONE, Group

Step = Callable[[Tensor, Shape], Tensor]
"""step(numbers, shape): what a training does with a batch, on the device alone; waits for nothing.

It depends on the numbers, on tensors that it changes in place, and on torch's own generator of the
device.
"""


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """One for all trainings of the process: libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class GraphMemory:
    """The memory and the stream of graphs that are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _stream_of(device)
        self.pool: Any = torch.cuda.MemPool()

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """The block's work comes behind that of the present stream, and before what follows."""
        outer = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            yield
        outer.wait_stream(self.stream)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """What the block allocates lies in the graphs' memory: the next replay overwrites it."""
        with self.in_order(), torch.cuda.use_mem_pool(self.pool, self.device):
            yield


class CapturedStep:
    """A step that is captured once for each shape of a batch and of its numbers.

    The first one runs as it is: what it allocates and keeps (states of optimizers, workspaces) is
    then there when graphs are captured, and must not lie in their memory.
    """

    def __init__(self, memory: GraphMemory, group: Group = ALONE) -> None:
        """Captures nothing yet; group: the processes that take the step together."""
        self._memory = memory
        self._group = group
        self._graphs: dict[tuple[Shape, torch.Size], _Graph] = {}

    def __call__(self, step: Step, numbers: Tensor, shape: Shape) -> Tensor:
        """Takes the step; the next one overwrites its result.

        Args:
            step: The same in every call. It is not kept: a training that its steps know would live
                until the garbage collector found it, with all its memory.
            numbers: On the host.
            shape: Of the batch.
        """
        key = shape, numbers.shape
        with self._memory.in_order():
            graph = self._graphs.get(key)
            if graph is not None:
                return graph(numbers)
            is_first = not self._graphs
            if is_first:
                result = step(numbers.to(self._memory.device), shape)
                # What the step has freed would lie idle beside the memory of the graphs. Captured
                # at once, for the first batch is as large as any: smaller ones fit in its memory.
                torch.cuda.empty_cache()
            graph = self._graphs[key] = _Graph(step, numbers, shape, self._memory)
            # A replay waits for those of all, which are there.
            self._group.agree()
            return result if is_first else graph(numbers)


class _Graph:
    def __init__(self, step: Step, numbers: Tensor, shape: Shape, memory: GraphMemory) -> None:
        self._numbers = numbers.to(memory.device)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, to their own ends.
        self._graph.capture_begin(memory.pool.id, capture_error_mode="thread_local")
        try:
            self._result = step(self._numbers, shape)
        except BaseException:
            # A capture that has failed fails to end, too; the reason is what failed.
            with suppress(RuntimeError):
                self._graph.capture_end()
            raise
        self._graph.capture_end()

    def __call__(self, numbers: Tensor) -> Tensor:
        self._numbers.copy_(numbers, non_blocking=True)
        self._graph.replay()
        return self._result
