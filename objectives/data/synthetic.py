"""A log that is made up, of any size, whose next items can be learnt.

Shapes: U users of a batch, M interactions of it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from objectives.data.cache import cache_batches, cache_folder
from objectives.errors import UserError

PREFIX = "synthetic"
_VERSION = 1
_ROWS = 1 << 20
_FOLLOWS, _SUCCESSORS = 0.8, 4
_SPREAD, _LONGEST = 1.0, 20
_YEAR, _BEGIN = 365 * 86_400, 1_704_067_200


class Synthetic(BaseModel):
    """A log to make up: `synthetic:users=1e6,items=1e7,exponent=1.0,length=50,seed=0`.

    An item is one of four that follow the user's last one, with probability 0.8, else any. Both
    are drawn by popularity, which falls with the rank to the power of the exponent. Lengths are
    log-normal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int = Field(10_000, ge=1, le=10**9)
    items: int = Field(1_000, ge=2, le=10**8)
    exponent: float = Field(1.0, ge=0, le=4)
    length: float = Field(50, ge=1, le=10**5)
    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("users", "items", "seed", mode="before")
    @classmethod
    def _may_be_written_as_a_float(cls, value: Any) -> Any:
        return int(float(value)) if isinstance(value, str) and "e" in value else value

    @classmethod
    def parse(cls, text: str) -> "Synthetic":
        """From the words of a user.

        Raises:
            UserError: A setting is unknown or out of range.
        """
        words = text.removeprefix(PREFIX).removeprefix(":")
        settings = dict(word.partition("=")[::2] for word in words.split(",") if word)
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                reason = f"there is no such setting; there are {', '.join(cls.model_fields)}"
            else:
                reason = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
            raise UserError(f"--data {PREFIX}: {name}={settings.get(name)}: {reason}") from None

    @property
    def name(self) -> str:
        """For people."""
        return f"{PREFIX}-{self.users}-users-{self.items}-items"

    def fetch(self) -> list[Path]:
        """The files of the log in the cache, made on first use."""
        text = f"{_VERSION} {self.model_dump_json()}"
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        target = cache_folder() / "raw" / f"{PREFIX}-{key}"
        if not target.is_dir():
            cache_batches(target, self.batches())
        return sorted(target.glob("*.parquet"))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The log, sorted by user and time."""
        per_batch = max(1, int(_ROWS / self.length))
        for first in range(0, self.users, per_batch):
            yield self._batch(first, min(per_batch, self.users - first))

    def _batch(self, first: int, num_users: int) -> pa.RecordBatch:
        generator = np.random.default_rng([self.seed, first])
        # Of a log-normal distribution with the mean that was asked for.
        drawn_U = generator.lognormal(np.log(self.length) - _SPREAD**2 / 2, _SPREAD, num_users)
        lengths_U = np.clip(drawn_U.round(), 1, _LONGEST * self.length).astype(np.int64)
        lengths_U[::-1].sort()
        offsets_U = np.cumsum(lengths_U) - lengths_U
        items_M = np.empty(lengths_U.sum(), dtype=np.int64)
        last_U = self._popular(generator.random(num_users))
        items_M[offsets_U] = last_U
        for step in range(1, int(lengths_U[0])):
            # The longest come first.
            active = int(np.searchsorted(-lengths_U, -step))
            last_U = self._next(last_U[:active], generator)
            items_M[offsets_U[:active] + step] = last_U
        begins_U = generator.integers(0, _YEAR, num_users)
        gaps_M = generator.exponential(_YEAR / (4 * self.length), len(items_M))
        gaps_M[offsets_U] = 0
        passed_M = np.cumsum(gaps_M)
        passed_M -= np.repeat(passed_M[offsets_U], lengths_U)
        times_M = _BEGIN + np.repeat(begins_U, lengths_U) + passed_M.astype(np.int64)
        users_M = np.repeat(np.arange(first, first + num_users), lengths_U)
        return pa.record_batch([users_M, items_M, times_M], ["user", "item", "time"])

    def _popular(self, shares: NDArray[np.float64]) -> NDArray[np.int64]:
        """Items, the most popular one 0, at shares of their cumulated popularity."""
        if self.exponent == 1:
            ranks = np.power(float(self.items), shares)
        else:
            rest = 1 - self.exponent
            ranks = (1 + shares * (float(self.items) ** rest - 1)) ** (1 / rest)
        return np.minimum(ranks.astype(np.int64) - 1, self.items - 1).clip(0)

    def _next(
        self, items_U: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        slots_U = generator.integers(0, _SUCCESSORS, len(items_U))
        follow_U = generator.random(len(items_U)) < _FOLLOWS
        shares_U = np.where(
            follow_U,
            _hashed(items_U * _SUCCESSORS + slots_U, self.seed),
            generator.random(len(items_U)),
        )
        return self._popular(shares_U)


def _hashed(values: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) of each value: SplitMix64."""
    mixed = values.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / (1 << 53)
