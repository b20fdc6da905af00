"""Lists of items for histories of raw ids, as an evaluation ranks them.

Shapes: B histories of a batch, S histories, V items, D width, C candidates, k places of a list,
P seen pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kernels import top_k
from objectives.data import Sequences, Targets
from objectives.data.sequences import DeviceTargets
from objectives.errors import UserError
from objectives.evaluation import encode
from objectives.int8_table import Int8Table
from objectives.saved_model import SavedModel

Id = int | str

_LONGEST = 1000
"""Of a list."""


@dataclass
class Lists:
    """What is recommended, an entry for each history.

    Attributes:
        items: Raw ids, best first.
        scores: Inner products of state and item; where `popular`, how often the items occur in
            the training data.
        unknown: Items of the history that the catalogue does not have; they are ignored.
        popular: Whether no item was known, so that the list is of the most popular ones.
    """

    items: list[list[Id]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    popular: list[bool] = field(default_factory=list)


def raw_ids(item_ids: pa.Array) -> list[Id]:
    """The source's ids as people write them: integers, or text."""
    if not pa.types.is_large_binary(item_ids.type):
        ids: list[Id] = item_ids.to_pylist()
        return ids
    # An id in another encoding than UTF-8 is the text that shows its bytes.
    return [each.decode("utf-8", "backslashreplace") for each in item_ids.to_pylist()]


class Recommender:
    """A trained model that answers histories.

    Attributes:
        ids: The raw id of every item.
    """

    def __init__(self, saved: SavedModel, device: torch.device, *, int8: bool = False) -> None:
        """Prepares to answer.

        Args:
            saved: The model.
            device: Where it computes.
            int8: Whether the lists are of the best items by a table of bytes; see `Int8Table`.
        """
        self._model = saved.build(device)
        self._batch_tokens = saved.batch_tokens
        self._device = device
        self.ids = raw_ids(saved.item_ids)
        self._codes = {raw: code for code, raw in enumerate(self.ids)}
        self._table_VD = self._model.outputs.weight.detach()
        self._counts_V1 = torch.tensor(saved.counts_V)[:, None].float().to(device)
        self._int8 = Int8Table(self._table_VD) if int8 else None

    def recommend(
        self,
        histories: Sequence[Iterable[Id]],
        k: int = 10,
        *,
        remove_seen: bool = True,
        candidates: Iterable[Id] | None = None,
    ) -> Lists:
        """The best items behind each history.

        Ties are broken by the lower item code, as in an evaluation.

        Args:
            histories: Raw ids, oldest first.
            k: Items of a list at most, 1 to 1,000.
            remove_seen: Whether items of the history are left out.
            candidates: Raw ids that lists are made of (default: all); unknown ones are ignored.

        Raises:
            UserError: An argument does not fit; the message says which.
        """
        if not 1 <= k <= _LONGEST:
            raise UserError(f"k must be 1 to {_LONGEST:,}, not {k}")
        allowed_C = self._allowed(candidates)
        coded, lists = [], Lists()
        for row, history in enumerate(histories):
            known, count = self._encode(history, f"history {row}")
            coded.append(known)
            lists.unknown.append(count - len(known))
            lists.popular.append(not known)
        answered = [codes for codes in coded if codes]
        ids, scores = self._rank(answered, k, remove_seen, allowed_C)
        popular = self._most_popular(k, allowed_C)
        found = iter(zip(ids, scores, strict=True))
        for codes in coded:
            items, values = next(found) if codes else popular
            lists.items.append([self.ids[item] for item in items if item >= 0])
            lists.scores.append(values[: len(lists.items[-1])])
        return lists

    def _encode(self, history: Iterable[Id], name: str) -> tuple[list[int], int]:
        """The codes of the items that are known, and how many items there are."""
        if isinstance(history, str) or not isinstance(history, Iterable):
            raise UserError(f"{name} is no list of item ids")
        try:
            codes = [self._codes.get(raw) for raw in history]
        except TypeError:
            raise UserError(f"{name} holds something that is no item id") from None
        return [code for code in codes if code is not None], len(codes)

    def _allowed(self, candidates: Iterable[Id] | None) -> Tensor | None:
        """The codes of the candidates, in order, so that ties are broken as among all."""
        if candidates is None:
            return None
        codes, _ = self._encode(candidates, "candidates")
        if not codes:
            raise UserError("candidates holds no item of the catalogue")
        return torch.tensor(sorted(set(codes)), device=self._device)

    def _rank(
        self, histories: list[list[int]], k: int, remove_seen: bool, allowed_C: Tensor | None
    ) -> tuple[list[list[int]], list[list[float]]]:
        ids: list[list[int]] = []
        scores: list[list[float]] = []
        if not histories:
            return ids, scores
        items = np.concatenate(histories, dtype=np.int32)
        offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
        no_targets = np.zeros(len(histories), np.int32)
        targets = DeviceTargets(Targets(Sequences(items, offsets), no_targets), self._device)
        batches = targets.batches(
            self._batch_tokens, self._model.config.max_length, masked=not self._model.causal
        )
        for batch in batches:
            states_BD = encode(self._model, batch)
            seen = batch.seen if remove_seen else None
            ids_Bk = self._top_k(states_BD, k, seen, allowed_C)
            rows_BkD = self._table_VD[ids_Bk.clamp(min=0)].float()
            scores += torch.einsum("bd,bkd->bk", states_BD.float(), rows_BkD).tolist()
            ids += ids_Bk.tolist()
        return ids, scores

    def _top_k(
        self,
        states_BD: Tensor,
        k: int,
        seen: tuple[Tensor, Tensor] | None,
        allowed_C: Tensor | None,
    ) -> Tensor:
        if allowed_C is None:
            if self._int8 is not None:
                return self._int8.top_k(states_BD, k, seen)
            return top_k(states_BD, self._table_VD, k, seen)
        if seen is not None:
            rows_P, ids_P = seen
            places_P = torch.searchsorted(allowed_C, ids_P).clamp(max=len(allowed_C) - 1)
            is_allowed_P = allowed_C[places_P] == ids_P
            seen = rows_P[is_allowed_P], places_P[is_allowed_P]
        places_Bk = top_k(states_BD, self._table_VD[allowed_C], k, seen)
        return allowed_C[places_Bk.clamp(min=0)].where(places_Bk >= 0, -1)

    def _most_popular(self, k: int, allowed_C: Tensor | None) -> tuple[list[int], list[float]]:
        counts_C1 = self._counts_V1 if allowed_C is None else self._counts_V1[allowed_C]
        places_k = top_k(counts_C1.new_ones(1, 1), counts_C1, k)[0]
        places_k = places_k[places_k >= 0]
        ids_k = places_k if allowed_C is None else allowed_C[places_k]
        return ids_k.tolist(), counts_C1[places_k, 0].tolist()
