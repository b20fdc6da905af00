"""Configuration of the models; free of torch, so that a command line starts at once."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from models.transformer import Transformer


class ModelConfig(BaseModel):
    """Which model, and its shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["sasrec", "bert4rec"] = Field(
        "sasrec", description="sasrec predicts the next item; bert4rec items that are masked"
    )
    mask_share: float = Field(
        0.2, gt=0, le=1, description="share of the items that bert4rec masks in training"
    )
    max_length: int = Field(50, ge=1, description="most recent items of a sequence that are used")
    width: int = Field(64, ge=1, description="width of the item vectors and states")
    num_blocks: int = Field(2, ge=1, description="transformer blocks")
    num_heads: int = Field(1, ge=1, description="attention heads; divides the width")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout rate")
    norm: Literal["pre", "post"] = Field(
        "pre", description="layer norm before each layer of a block, or behind its sum"
    )
    positions: Literal["learned", "rotary"] = Field(
        "learned", description="a vector per position, or rotated queries and keys"
    )
    feed_forward: Literal["gelu", "swiglu"] = Field(
        "gelu", description="feed-forward layer: four times the width with GELU, or gated"
    )
    table_scale: float = Field(
        1.0, gt=0, description="standard deviation of fresh item vectors, times the width's root"
    )
    output_table: Literal["tied", "separate"] = Field(
        "tied", description="states are compared with the input table, or with one of their own"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.positions == "rotary" and self.width // self.num_heads % 2:
            raise ValueError(
                f"rotary positions need heads of even width, not {self.width // self.num_heads}"
            )
        return self

    def build(
        self,
        num_items: int,
        *,
        table_dtype: Literal["float32", "bfloat16"] = "float32",
        by_rows: bool = False,
    ) -> "Transformer":
        """The model with fresh weights from torch's default generator.

        Args:
            num_items: V.
            table_dtype: Type of the item tables.
            by_rows: The gradients of the tables are those of touched rows; see `ItemTable`.
        """
        import torch

        from models.bert4rec import BERT4Rec
        from models.sasrec import SASRec

        architecture = BERT4Rec if self.architecture == "bert4rec" else SASRec
        return architecture(self, num_items, getattr(torch, table_dtype), by_rows=by_rows)
