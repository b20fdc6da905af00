import pytest
import torch

from models import ModelConfig
from models.item_table import ItemTable

HALF = torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("by_rows", [False, True])
def test_vectors_are_scaled_rows_in_float32(dtype: torch.dtype, by_rows: bool) -> None:
    table = ItemTable(50, 16, dtype, by_rows=by_rows)
    assert table.weight.dtype == dtype
    ids_BL = torch.tensor([[4, 9], [9, 0]])
    vectors = table(ids_BL)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, table.weight.detach().float()[ids_BL] * 4)


def test_the_gradient_goes_into_the_sink_or_stays_whole() -> None:
    whole, by_rows = ItemTable(50, 16), ItemTable(50, 16, by_rows=True)
    for table in (whole, by_rows):
        table(torch.tensor([4, 9, 4])).sum().backward()
    assert whole.sink is None
    assert whole.weight.grad is not None
    assert by_rows.weight.grad is None
    assert by_rows.sink is not None
    gradient = by_rows.sink.take()
    assert gradient is not None
    assert gradient.items_U.tolist() == [4, 9]
    assert torch.equal(gradient.rows_UD, whole.weight.grad[[4, 9]])


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_entries_have_the_variance_of_the_width(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    table = ItemTable(2000, 100, dtype)
    assert float(table.weight.detach().float().std()) == pytest.approx(0.1, rel=0.01)
    table = ItemTable(2000, 100, dtype, scale=0.3)
    assert float(table.weight.detach().float().std()) == pytest.approx(0.03, rel=0.01)


@pytest.mark.parametrize("architecture", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("output_table", ["tied", "separate"])
def test_a_model_has_tables_of_the_form_asked_for(architecture: str, output_table: str) -> None:
    config = ModelConfig.model_validate(
        {"architecture": architecture} | {"output_table": output_table}
    )
    model = config.build(50, table_dtype="bfloat16", by_rows=True)
    assert len({id(table.sink) for table in model.tables}) == len(model.tables)
    for name, parameter in model.named_parameters():
        is_table = any(parameter is table.weight for table in model.tables)
        assert parameter.dtype == (HALF if is_table else torch.float32), name
    assert all(table.sink is not None for table in model.tables)
    assert all(table.sink is None for table in config.build(50).tables)
