"""A saved model for others: the encoder as a program, the item vectors as a table."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor, nn

from models.bert4rec import MASK
from models.packing import Packing
from models.transformer import Transformer
from objectives.errors import UserError
from objectives.saved_model import SavedModel


class _Padded(Packing):
    """Sequences that all take the same room: what is packed is what is padded."""

    def __init__(self, lengths_B: Tensor, longest: int) -> None:
        self._lengths_B = lengths_B
        self.longest = longest
        self.position_T = torch.arange(longest).repeat(lengths_B.shape[0])

    def pad(self, values_T: Tensor) -> Tensor:
        return values_T.view(-1, self.longest, *values_T.shape[1:])

    def unpad(self, values_BL: Tensor) -> Tensor:
        return values_BL.flatten(0, 1)

    @property
    def is_token_BL(self) -> Tensor:  # noqa: N802
        return torch.arange(self.longest) < self._lengths_B[:, None]


class PaddedEncoder(nn.Module):
    """The states behind histories of a fixed room.

    Shapes: B histories, L the model's `max_length`, or one less where a mask is put behind them.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Encodes.

        Args:
            ids_BL: The most recent items, oldest first, int64; behind the end of a history any.
            lengths_B: How many of them are the history, at least one.

        Returns:
            states_BD, float32; the score of an item is the inner product with its vector.
        """
        if not self.model.causal:
            ids_BL = nn.functional.pad(ids_BL, (0, 1))
            is_mask_BL = torch.arange(ids_BL.shape[1]) == lengths_B[:, None]
            ids_BL = torch.where(is_mask_BL, MASK, ids_BL)
            lengths_B = lengths_B + 1
        packing = _Padded(lengths_B, ids_BL.shape[1])
        states_TD: Tensor = self.model(ids_BL.flatten(), packing)
        firsts_B = torch.arange(ids_BL.shape[0]) * ids_BL.shape[1]
        return states_TD[firsts_B + lengths_B - 1]


def export(model: Path, folder: Path) -> list[Path]:
    """Writes the encoder and the item vectors of a saved model.

    Args:
        model: The folder of the saved model.
        folder: Where `encoder.pt2` and `items.parquet` are written.

    Raises:
        UserError: The model cannot be read, or the files cannot be written.
    """
    saved = SavedModel.load(model)
    transformer = saved.build(torch.device("cpu"))
    program = export_encoder(transformer)
    table_VD = transformer.outputs.weight.detach().float().contiguous()
    vectors = pa.FixedSizeListArray.from_arrays(table_VD.flatten().numpy(), table_VD.shape[1])
    items = pa.table(
        {
            "id": np.arange(len(table_VD)),
            "item": saved.item_ids,
            "vector": vectors,
        }
    )
    paths = folder / "encoder.pt2", folder / "items.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, paths[0])
        pa.parquet.write_table(items, paths[1])
    except (OSError, RuntimeError) as error:
        raise UserError(f"--export {folder}: cannot be written ({error})") from error
    return list(paths)


def export_encoder(model: Transformer) -> torch.export.ExportedProgram:
    """The program of `PaddedEncoder`, for any number of histories."""
    length = model.config.max_length - (not model.causal)
    ids_BL = torch.zeros(2, length, dtype=torch.int64)
    lengths_B = torch.full((2,), length)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            PaddedEncoder(model),
            (ids_BL, lengths_B),
            dynamic_shapes=({0: batch}, {0: batch}),
        )
