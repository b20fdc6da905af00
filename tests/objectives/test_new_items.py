"""Vectors of items that a model has not met."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.packing import Packing
from objectives.config import TrialConfig
from objectives.data import Sequences
from objectives.new_items import with_new_items
from objectives.saved_model import SavedModel

CPU = torch.device("cpu")
KNOWN, ALL = 200, 203
TRAIN = Sequences(
    np.array([1, 2, 200, 3, 200, 5, 6, 7, 8, 9, 4, 201], np.int32),
    np.array([0, 3, 5, 12], np.int64),
)
"""Item 200 follows 1, 2 and 3; 201 follows the last four before it; 202 none."""


def saved_model(**settings: str) -> SavedModel:
    torch.manual_seed(0)
    config = TrialConfig.from_flat({"width": 8, "num_blocks": 1, "max_length": 4, **settings})
    weights = config.build_model(KNOWN).state_dict()
    weights["items.weight"] += 3
    return SavedModel(config, weights, pa.array(range(KNOWN)), np.ones(KNOWN, np.int64), 64, {})


def assert_average(rows_ND: torch.Tensor, table_VD: torch.Tensor) -> None:
    assert ((rows_ND - table_VD.mean(0)).abs() < 0.5 * table_VD.std(0)).all()
    assert not torch.equal(rows_ND[0], rows_ND[1])


@pytest.mark.parametrize("output", ["tied", "separate"])
def test_a_new_item_is_where_the_histories_before_it_end(output: str) -> None:
    saved = saved_model(output_table=output)
    before = {name: value.clone() for name, value in saved.weights.items()}
    weights = with_new_items(saved, TRAIN, ALL, CPU, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in saved.weights.items())
    assert all(torch.equal(value, weights[name][: len(value)]) for name, value in before.items())
    model = saved.build(CPU)
    packing = Packing.of([2, 1, 4], CPU)
    states_BD = model(torch.tensor([1, 2, 3, 7, 8, 9, 4]), packing)[packing.last_B]
    table_VD = weights["items.weight" if output == "tied" else "_outputs.weight"]
    length = table_VD[:KNOWN].norm(dim=1).mean()
    for row_D, mean_D in ((table_VD[200], states_BD[:2].mean(0)), (table_VD[201], states_BD[2])):
        assert torch.allclose(row_D, mean_D / mean_D.norm() * length, atol=1e-4)
    if output == "separate":
        assert_average(weights["items.weight"][KNOWN:], before["items.weight"])


def test_rows_of_a_model_that_masks_are_average() -> None:
    saved = saved_model(architecture="bert4rec")
    weights = with_new_items(saved, TRAIN, ALL, CPU, seed=0)
    assert_average(weights["items.weight"][KNOWN:], saved.weights["items.weight"])
    again = with_new_items(saved, TRAIN, ALL, CPU, seed=0)
    assert torch.equal(again["items.weight"], weights["items.weight"])
