"""The training losses and their parameters; free of torch, so that a command line starts at once.

Every loss has the name of its paper and a class of its parameters. CCE- has a class for each set
of parameters that a source of candidates leaves: where they are the targets of the batch, there is
no number of negatives to choose.

Shapes: N rows of a batch, V items.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field

Negatives = Annotated[
    int,
    Field(ge=1, description="sampled items per group of rows; with mixed candidates, per batch"),
]
GroupSize = Annotated[int, Field(ge=1, description="rows that share their negatives")]
Correction = Annotated[
    Literal["logq", "corrected-logq", "none"],
    Field(
        description="logq: candidates count by how likely they are to be drawn; corrected-logq: "
        "the same gradient, of the loss of arXiv 2507.09331; none"
    ),
]


class _Loss(BaseModel):
    """What is asked of every loss.

    Attributes:
        touches_every_row: A step has a gradient for every row of the item table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    touches_every_row: ClassVar[bool] = False

    @property
    def needs_counts(self) -> bool:
        """Whether it depends on how often items occur in the training data."""
        return getattr(self, "candidates", "uniform") != "uniform"


class CCEMinus(_Loss):
    """Sampled softmax with negatives that groups of rows share (arXiv 2509.09682)."""

    loss: Literal["cce-"] = Field("cce-", description="cce-: sampled softmax")
    candidates: Literal["uniform", "popularity", "log-uniform"] = Field(
        "uniform",
        description="uniform: negatives are drawn evenly; popularity: as often as items occur in "
        "the training data; log-uniform: by their rank in that",
    )
    negatives: Negatives = 256
    group_size: GroupSize = 128
    correction: Correction = "logq"


class CCEMinusMixed(_Loss):
    """Sampled softmax over the batch's targets and uniform draws (Yang et al., WWW 2020)."""

    loss: Literal["cce-"] = Field("cce-", description="cce-: sampled softmax")
    candidates: Literal["mixed"] = Field(
        "mixed",
        description="mixed: the targets of the batch, and uniform negatives that it shares",
    )
    negatives: Negatives = 256
    correction: Correction = "logq"


class CCEMinusInBatch(_Loss):
    """Sampled softmax over the batch's targets (Yi et al., RecSys 2019)."""

    loss: Literal["cce-"] = Field("cce-", description="cce-: sampled softmax")
    candidates: Literal["in-batch"] = Field(
        "in-batch", description="in-batch: the targets of the batch"
    )
    correction: Correction = "logq"


class CCE(_Loss):
    """Softmax over the whole catalogue (arXiv 2411.09009)."""

    touches_every_row: ClassVar[bool] = True

    loss: Literal["cce"] = Field("cce", description="cce: softmax over the whole catalogue")


class BCE(_Loss):
    """Binary cross-entropy with one negative of its own for every row (SASRec)."""

    loss: Literal["bce"] = Field(
        "bce", description="bce: binary cross-entropy, a negative for every row"
    )


class BCEPlus(_Loss):
    """Binary cross-entropy with several negatives, whose terms are summed (arXiv 2509.09682)."""

    loss: Literal["bce+"] = Field(
        "bce+", description="bce+: binary cross-entropy, summed over several negatives"
    )
    negatives: Negatives = 256
    group_size: GroupSize = 128


class GBCE(_Loss):
    """BCE+ with a weight of the target for what sampling overstates (arXiv 2308.07192)."""

    loss: Literal["gbce"] = Field("gbce", description="gbce: bce+ with a calibrated target")
    negatives: Negatives = 256
    group_size: GroupSize = 128
    calibration: float = Field(
        0.75, ge=0, le=1, description="t: at 0 a target counts whole, at 1 by the sampling rate"
    )


class Buckets(NamedTuple):
    """How SCE cuts a batch and a catalogue.

    Attributes:
        number: Buckets.
        rows: Rows of each.
        items: Items of each.
    """

    number: int
    rows: int
    items: int


class SCE(_Loss):
    """Softmax of the rows over the items of the same buckets (arXiv 2409.18721)."""

    loss: Literal["sce"] = Field(
        "sce", description="sce: softmax over the items that share a bucket with a row"
    )
    bucket_items: int = Field(256, ge=1, description="items of a bucket")
    bucket_scale: float = Field(
        2.0,
        gt=0,
        description="buckets, and rows of a bucket, times the root of the batch's rows: a row is "
        "in as many buckets as this squared, on average",
    )
    bucket_ratio: float = Field(1.0, gt=0, description="rows of a bucket for every bucket")
    centres: Literal["mixed", "random"] = Field(
        "mixed", description="centres of the buckets: random mixtures of the rows, or random"
    )

    def buckets(self, num_rows: int, num_items: int) -> Buckets:
        """For N rows and V items: alpha sqrt(N / beta) buckets of alpha sqrt(N beta) rows."""
        number = int(self.bucket_scale * math.sqrt(num_rows / self.bucket_ratio))
        rows = int(self.bucket_scale * math.sqrt(num_rows * self.bucket_ratio))
        return Buckets(
            max(1, number), max(1, min(num_rows, rows)), min(num_items, self.bucket_items)
        )


class RECE(_Loss):
    """Softmax over the items whose hashes are near a row's, in rounds (arXiv 2408.02354)."""

    touches_every_row: ClassVar[bool] = True

    loss: Literal["rece"] = Field(
        "rece", description="rece: softmax over the items whose hashes are near a row's"
    )
    rounds: int = Field(1, ge=1, description="hashes, whose items are united")
    neighbours: int = Field(
        1, ge=0, description="chunks of items to each side of a row's own that it is compared with"
    )
    buckets_per_chunk: int = Field(1, ge=1, description="hash values for every chunk")

    def num_buckets(self, num_rows: int, num_items: int) -> int:
        """The number of hash values that takes the least memory for N rows and V items.

        A chunk has one bucket at least, and there are no more chunks than items.
        """
        met, smaller = 1 + 2 * self.neighbours, min(num_rows, num_items)
        best = int(math.sqrt(4 * self.buckets_per_chunk * met * smaller))
        return min(max(self.buckets_per_chunk, best), self.buckets_per_chunk * num_items)


LossConfig = Annotated[
    Annotated[CCEMinus | CCEMinusMixed | CCEMinusInBatch, Field(discriminator="candidates")]
    | CCE
    | BCE
    | BCEPlus
    | GBCE
    | SCE
    | RECE,
    Field(discriminator="loss"),
]
"""The training loss."""
SharedNegatives = CCEMinus | BCEPlus | GBCE
"""Losses whose rows share drawn negatives in groups."""

LOSSES: tuple[type[_Loss], ...] = (
    CCEMinus,
    CCEMinusMixed,
    CCEMinusInBatch,
    CCE,
    BCE,
    BCEPlus,
    GBCE,
    SCE,
    RECE,
)
CHOICES = {"loss": "cce-", "candidates": "uniform"}
"""The settings that say which other ones there are, with their defaults."""


def loss_name(loss: type[_Loss]) -> str:
    """Its name, as users write it."""
    return str(loss.model_fields["loss"].default)


def loss_class(values: Mapping[str, Any]) -> type[_Loss]:
    """The class of the loss that flat values name; an unknown one is taken for the default."""
    chosen = {name: values.get(name, default) for name, default in CHOICES.items()}
    for loss in LOSSES:
        if all(chosen[name] in words for name, words in choices_of(loss).items()):
            return loss
    return CCEMinus


def choices_of(loss: type[_Loss]) -> dict[str, tuple[str, ...]]:
    """The values of `CHOICES` that mean this class, of those that it has."""
    fields = loss.model_fields
    return {name: get_args(fields[name].annotation) for name in CHOICES if name in fields}
