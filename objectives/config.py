"""Configuration of a trial and its data; free of torch, so that a command line starts at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from models.config import ModelConfig
from objectives.loss_config import CHOICES, LOSSES, CCEMinus, LossConfig, loss_class, loss_name

if TYPE_CHECKING:
    from models.transformer import Transformer

LARGE_TABLE = 1 << 26
"""Elements of an item table from which on `auto` moves touched rows only.

A dense step of AdamW moves 28 bytes an element (table, gradient and two moments are read, all but
the gradient written), and table, gradient and moments take 16. Here that is 1.9 GB a step and
1 GiB, a million items of width 64, whereas a batch of 32,768 tokens touches some 200,000 rows at
most (K = 511 for 128 tokens). A smaller table is updated whole, as in the published models.
"""


class ColumnsConfig(BaseModel):
    """Names of the columns in an interaction file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str | None = Field(
        None, description="column of the user ids (default: user, user_id, …)"
    )
    item: str | None = Field(
        None, description="column of the item ids (default: item, item_id, …)"
    )
    time: str | None = Field(
        None,
        description="column of the times (default: time, timestamp, …); 'none': rows are in order",
    )


class DataConfig(BaseModel):
    """Which interactions, filtered and split how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field(
        "ml-100k",
        min_length=1,
        description="a named set (ml-100k, complete-journey), or a CSV, TSV or Parquet file, or a "
        "folder of such files",
    )
    columns: ColumnsConfig = ColumnsConfig()
    split: Literal["leave-one-out", "temporal", "none"] = Field(
        "leave-one-out",
        description="leave-one-out: each user's last item is the test target, the one before the "
        "validation target; temporal: cut at the 90 %% quantile of time, as in the CCE- paper; "
        "none: all is trained on (not for a search)",
    )
    validation_users: int | None = Field(
        None,
        ge=1,
        description="leave-one-out: so many users, drawn at random, are validated, and the item "
        "before the last of all others is trained on (default: all users)",
    )
    min_item_users: int = Field(5, ge=1, description="keep items of at least this many users …")
    min_user_items: int = Field(3, ge=1, description="… then users of at least this many items")

    @model_validator(mode="after")
    def _validates_the_users_of_its_split(self) -> Self:
        if self.validation_users is not None and self.split != "leave-one-out":
            raise ValueError(
                f"validation_users is for the leave-one-out split, not for {self.split}"
            )
        return self


class TrainingConfig(BaseModel):
    """Optimizer and schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(128, ge=1, description="sequences per optimizer step")
    accumulation: int = Field(
        1, ge=1, description="parts a batch is computed in, one after the other, to save memory"
    )
    learning_rate: float = Field(1e-3, gt=0, description="highest AdamW learning rate")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="the rate stays, or falls to zero along a cosine"
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of all steps in which the rate rises from zero"
    )
    clip_norm: float = Field(
        0.0, ge=0, description="longer gradients are scaled down to this norm; 0: none is"
    )
    table_updates: Literal["auto", "dense", "adam", "adagrad"] = Field(
        "auto",
        description="dense: AdamW moves the whole item table in every step; adam, adagrad: only "
        "the rows that the step touches move (not with cce and rece, which touch all), which have "
        "one second moment each and no first one; auto: adam for tables of 2^26 elements or more, "
        "and for those in bfloat16, else dense",
    )
    table_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type of the item table; bfloat16 is rounded at random and needs updates by "
        "rows",
    )
    activations: Literal["kept", "recomputed"] = Field(
        "kept",
        description="the inside of a layer is kept for the backward pass, or computed again, "
        "which takes less memory and more time",
    )
    arithmetic: Literal["fast", "deterministic"] = Field(
        "fast",
        description="sums on a GPU are added in any order, or in a fixed one: slower, and equal "
        "bit by bit on one kind of card",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW decay of the blocks' matrices")
    max_epochs: int = Field(15, ge=1, description="passes over the training sequences at most")
    patience: int = Field(
        3, ge=1, description="epochs without a better validation NDCG@10 before stopping"
    )

    @property
    def by_rows(self) -> bool:
        """Whether a step moves the touched rows of the item tables only."""
        return self.table_updates in ("adam", "adagrad")


class TrialConfig(BaseModel):
    """Everything a trial may vary. Each part belongs to its component; names are never reused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = ModelConfig()
    loss: LossConfig = CCEMinus()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _rows_are_touched(self) -> Self:
        training, loss = self.training, self.loss
        if training.by_rows and loss.touches_every_row:
            raise ValueError(
                f"table_updates {training.table_updates} needs a loss that leaves most rows of "
                f"the table alone: {loss.loss} touches every one"
            )
        whole = loss.touches_every_row or training.table_updates == "dense"
        if training.table_dtype == "bfloat16" and whole:
            raise ValueError(
                "table_dtype bfloat16 needs a loss that leaves most rows of the table alone (not "
                "cce or rece), and table_updates adam or adagrad, which round at random: AdamW "
                "would round small steps away"
            )
        return self

    def resolved(self, num_items: int) -> Self:
        """The configuration with the updates that `auto` stands for in a catalogue."""
        training = self.training
        if training.table_updates != "auto":
            return self
        is_large = num_items * self.model.width >= LARGE_TABLE
        by_rows = training.table_dtype == "bfloat16" or (
            is_large and not self.loss.touches_every_row
        )
        updates = {"table_updates": "adam" if by_rows else "dense"}
        return self.model_copy(update={"training": training.model_copy(update=updates)})

    def build_model(self, num_items: int) -> "Transformer":
        """The model with fresh weights, its tables as their updates need them."""
        training = self.resolved(num_items).training
        return self.model.build(
            num_items, table_dtype=training.table_dtype, by_rows=training.by_rows
        )

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """The configuration with these settings, by their own names, and defaults for the rest.

        Settings that its loss does not have are left out: those of other losses of a search.
        """
        chosen = {**CHOICES, **values}
        return cls.model_validate(
            {
                part: {name: chosen[name] for name in fields if name in chosen}
                for part, fields in _fields_of_parts(values).items()
            }
        )

    def flat(self) -> dict[str, Any]:
        """Every setting that the trial has, by its own name."""
        return {name: value for part in self.model_dump().values() for name, value in part.items()}


def _fields_of_parts(values: Mapping[str, Any]) -> dict[str, dict[str, FieldInfo]]:
    return {
        "model": ModelConfig.model_fields,
        "loss": loss_class(values).model_fields,
        "training": TrainingConfig.model_fields,
    }


def settings_of(values: Mapping[str, Any]) -> set[str]:
    """The settings of a trial with this loss and these candidates, or the default ones."""
    return set().union(*_fields_of_parts(values).values())


@dataclass(frozen=True)
class Setting:
    """A setting of a trial, as commands offer it.

    Attributes:
        words: Its values, where they are a few words.
        default: Its value where none is given; all values have its type.
        description: For people.
        losses: Names of the losses that have it; empty: every trial has it.
    """

    words: tuple[str, ...]
    default: int | float | str
    description: str
    losses: tuple[str, ...] = ()


def _setting(fields: list[tuple[str, FieldInfo]]) -> Setting:
    """What the fields of one name are together; each comes with the loss that it is of, or ""."""
    _, first = fields[0]
    words = dict.fromkeys(word for _, field in fields for word in get_args(field.annotation))
    return Setting(
        words=tuple(words),
        default=first.default,
        description="; ".join(dict.fromkeys(field.description or "" for _, field in fields)),
        losses=tuple(dict.fromkeys(loss for loss, _ in fields if loss)),
    )


def _settings() -> dict[str, Setting]:
    parts: list[tuple[str, type[BaseModel]]] = [("", ModelConfig), ("", TrainingConfig)]
    parts[1:1] = [(loss_name(loss), loss) for loss in LOSSES]
    fields: dict[str, list[tuple[str, FieldInfo]]] = {}
    for loss, part in parts:
        for name, field in part.model_fields.items():
            # That a trial has a loss is true of all.
            fields.setdefault(name, []).append(("" if name == "loss" else loss, field))
    return {name: _setting(found) for name, found in fields.items()}


SETTINGS = _settings()
"""Every setting of a trial by its name."""
