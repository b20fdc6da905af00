"""One trial on several devices: a process for each, which trains on its parts of every batch.

torchrun starts the processes. Rank 0 has the study; it says what to train, and the others follow.
Gradients and counts go through NCCL, or gloo on a CPU. What the processes have to know of each
other, a few numbers, goes through gloo, which waits on the host: it is said again whenever the
host would enqueue something that waits for all of them, but not by the replays of a CUDA graph,
which allocate nothing.

Shapes: U touched items, D width.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kernels import RowGradient
from kernels.gpu import is_simulated
from kernels.row_gradient import Arriving
from objectives.trial import DivergedTrial, InfeasibleTrial, MachineFault

_LONGEST_WAIT = timedelta(days=1)
"""For rank 0, which may wait for a database or the next trial. A process that has died is noticed
at once."""
_LONGEST_WAIT_OF_FAILED = timedelta(minutes=5)
"""For the others, who may evaluate meanwhile; who does not come then waits on its device."""
_LARGE_BYTES = 8 << 20
"""Larger gradients are summed by themselves, without a copy."""

# torch 2.13 has given it another name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class EndedTrial(Exception):
    """Rank 0 has ended the trial."""


class _Ending(IntEnum):
    """How a trial ends early; where ranks differ, the last of these counts."""

    NONE = 0
    DIVERGED = 1
    INFEASIBLE = 2
    STOPPED = 3
    FAILED = 4


class _Word(NamedTuple):
    """What a rank says to all; the largest has the ending that counts, and the largest peak.

    Attributes:
        ending: Whether the trial has ended there.
        number: What the others want to know; of an ending, the peak memory.
        epoch: In which the training diverged.
    """

    ending: int
    number: int
    epoch: int = 0


class _EndedElsewhereError(Exception):
    def __init__(self, word: _Word) -> None:
        super().__init__(word)
        self.word = word


class Group:
    """The processes of a trial.

    Attributes:
        rank: Number of this one.
        size: How many they are.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, words: dist.ProcessGroup | None = None
    ) -> None:
        """By default, the only process; else use `join`."""
        self.rank = rank
        self.size = size
        self._words = words

    @staticmethod
    def join(device: torch.device) -> "Group":
        """Joins the group that torchrun's environment describes.

        Args:
            device: That of this process: a card of its own, all of one kind, or the CPU.
        """
        if device.type == "cuda":
            # Multicast over NVLink is not to be had on every machine. Registering the buffers of
            # captured steps does not go with memory that grows in place, see `objectives.memory`.
            for name in ("NCCL_NVLS_ENABLE", "NCCL_GRAPH_REGISTER"):
                os.environ.setdefault(name, "0")
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
        words = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        return Group(dist.get_rank(), dist.get_world_size(), words)

    def leave(self) -> None:
        """Ends what `join` began, on every rank."""
        if self._words is not None:
            # NCCL cannot end while a captured step that uses it is left.
            gc.collect()
            dist.destroy_process_group()

    def tell(self, what: object) -> None:
        """On rank 0: hands something to the others, which `hear` it."""
        if self.size > 1:
            dist.broadcast_object_list([what], src=0, group=self._words)

    def hear(self) -> Any:
        """On the others: what rank 0 tells next."""
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0, group=self._words)
        return heard[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ends the block on one rank, by an exception, ends it on all.

        InfeasibleTrial and DivergedTrial are raised on all ranks, with the largest peak. What
        else ends rank 0 is EndedTrial on the others; what else ends one of these is MachineFault
        on the rest.

        Raises:
            RuntimeError: The other ranks do not answer: the group cannot be used again. This
                process is to end; torchrun ends the others.
        """
        try:
            yield
        except _EndedElsewhereError as ended:
            raise _outcome(ended.word) from None
        except (KeyboardInterrupt, SystemExit):
            # The process ends, and the others with it.
            raise
        except BaseException as error:
            if self.size == 1:
                raise
            own = _word_of(error, self.rank)
            word = max(self._exchange(own, _LONGEST_WAIT_OF_FAILED))
            if own.ending == word.ending and own.ending >= _Ending.STOPPED:
                raise
            raise _outcome(word) from None

    def agree(self, number: int = 0) -> list[int]:
        """The numbers of all ranks, where all are well; they wait for each other.

        Within `together`, a rank that has failed says so here.
        """
        if self.size == 1 or is_simulated():
            return [number] * self.size
        words = self._exchange(_Word(_Ending.NONE, number), _LONGEST_WAIT)
        if any(word.ending for word in words):
            raise _EndedElsewhereError(max(words))
        return [word.number for word in words]

    def _exchange(self, word: _Word, longest_wait: timedelta) -> list[_Word]:
        """What all say, by rank."""
        own = torch.tensor(word)
        words = [torch.empty_like(own) for _ in range(self.size)]
        work = dist.all_gather(words, own, group=self._words, async_op=True)
        assert work is not None
        work.wait(longest_wait)
        return [_Word(*word.tolist()) for word in words]

    def reduce(self, tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        """Sums a tensor over the ranks, in place."""
        if self.size > 1:
            self.agree()
            _all_reduce(tensor, operation)

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Sums gradients over the ranks, in place: small ones in one piece."""
        if self.size == 1:
            return
        small = [gradient for gradient in gradients if gradient.nbytes < _LARGE_BYTES]
        flat = torch.cat([gradient.flatten() for gradient in small])
        self.agree()
        for gradient in gradients:
            if gradient.nbytes >= _LARGE_BYTES:
                _all_reduce(gradient)
        _all_reduce(flat)
        pieces = torch.split(flat, [gradient.numel() for gradient in small])
        for gradient, piece in zip(small, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    @property
    def exchange(self) -> Callable[[RowGradient], Arriving] | None:
        """What a `RowSink` sends rows of a table's gradient with, and gets those of all ranks.

        They come by rank, so that their sums are equal bit by bit everywhere. The rows are sent up
        to the bound of their number. In captured steps it is the same on all ranks, for the parts
        of a batch have one shape there.
        """
        return None if self.size == 1 else self._exchange_rows

    def _exchange_rows(self, part: RowGradient) -> Arriving:
        items_U, rows_UD, num_touched = part
        assert num_touched is not None
        if rows_UD.is_cuda:
            # Half of what travels, and what matrix products there are computed from.
            rows_UD = rows_UD.bfloat16()
        missing = max(self.agree(len(items_U))) - len(items_U)
        if missing:
            items_U, rows_UD = F.pad(items_U, (0, missing)), F.pad(rows_UD, (0, 0, 0, missing))
        sent = items_U, rows_UD, num_touched
        gathered = [each.new_empty(self.size * len(each), *each.shape[1:]) for each in sent]
        # There is room for all that comes.
        self.agree()
        arriving = [(each, _send(each, room)) for each, room in zip(sent, gathered, strict=True)]

        def arrive() -> Sequence[RowGradient]:
            for _, wait in arriving:
                wait()
            by_rank = (each.chunk(self.size) for each in gathered)
            return [RowGradient(*part) for part in zip(*by_rank, strict=True)]

        return arrive


def _all_reduce(tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
    if not is_simulated():
        dist.all_reduce(tensor, operation)


def _send(tensor: Tensor, gathered: Tensor) -> Callable[[], object]:
    """Begins to gather the tensors of all ranks; what is given waits for them."""
    if is_simulated():
        return lambda: None
    wait: Callable[[], object] = _all_gather(gathered, tensor, async_op=True).wait
    return wait


ALONE = Group()
"""The only process of a trial."""


def _word_of(error: BaseException, rank: int) -> _Word:
    match error:
        case DivergedTrial():
            return _Word(_Ending.DIVERGED, error.peak_bytes, error.epoch)
        case InfeasibleTrial():
            return _Word(_Ending.INFEASIBLE, error.peak_bytes)
        case MachineFault():
            return _Word(_Ending.FAILED, 0)
    return _Word(_Ending.FAILED if rank else _Ending.STOPPED, 0)


def _outcome(word: _Word) -> Exception:
    match word.ending:
        case _Ending.DIVERGED:
            return DivergedTrial(word.number, word.epoch)
        case _Ending.INFEASIBLE:
            return InfeasibleTrial(word.number, "out-of-memory")
        case _Ending.STOPPED:
            return EndedTrial()
    return MachineFault("another device of the trial failed; its process says why")
