import itertools
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from objectives import card
from objectives.config import ColumnsConfig, DataConfig, TrialConfig
from objectives.data import prepare
from objectives.errors import UserError
from objectives.sequential import SequentialObjective
from objectives.trial import InfeasibleTrial
from study.budget import check_floor, constraint, format_bytes, resolve_budget, total_memory
from study.space import build_space
from study.spec import Share, parse_budget

CPU = torch.device("cpu")


def test_the_constraint_is_relative_to_the_budget() -> None:
    assert constraint(3 * 2**30, 2 * 2**30) == 0.5
    assert constraint(2 * 2**30, 2 * 2**30) == 0
    assert constraint(2**30, 2 * 2**30) == -0.5


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0.0 KiB"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (6 * 2**30, "6.00 GiB")],
)
def test_bytes_for_people(count: int, shown: str) -> None:
    assert format_bytes(count) == shown


def test_default_and_largest_budget_without_a_gpu() -> None:
    total = psutil.virtual_memory().total
    assert resolve_budget(None, CPU) == total // 2
    assert resolve_budget(2**20, CPU) == 2**20
    with pytest.raises(UserError, match="the machine has"):
        resolve_budget(total + 1, CPU)


def test_a_share_is_that_of_the_machine_without_a_gpu() -> None:
    total = psutil.virtual_memory().total
    assert resolve_budget(Share(1.0), CPU) == total
    assert resolve_budget(Share(0.25), CPU) == total // 4


def test_a_card_is_named_where_it_has_less_than_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = SimpleNamespace(total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Tiny")
    cuda = torch.device("cuda", 0)
    assert resolve_budget(None, cuda) == int(0.9 * 8 * 2**30)
    assert resolve_budget(Share(0.5), cuda) == 4 * 2**30
    with pytest.raises(UserError) as caught:
        resolve_budget(parse_budget("24GiB"), cuda)
    for words in ("24.00 GiB", "NVIDIA Tiny", "8.00 GiB"):
        assert words in str(caught.value)


def test_a_budget_below_the_smallest_configuration_says_what_that_needs(tiny_csv: Path) -> None:
    data = prepare(DataConfig(data=str(tiny_csv), columns=ColumnsConfig()))
    objective = SequentialObjective(data, CPU)
    space = build_space({"width": [8, 16]}, data.num_items, len(data.train))
    (smallest,) = space.smallest()
    needed = objective.probe(smallest, 1 << 40)
    check_floor(objective, space, needed)
    with pytest.raises(UserError) as caught:
        check_floor(objective, space, needed - 1)
    assert format_bytes(needed) in str(caught.value)
    assert "width 8" in str(caught.value)


def test_the_floor_of_several_losses_is_that_of_the_smallest(tiny_csv: Path) -> None:
    data = prepare(DataConfig(data=str(tiny_csv), columns=ColumnsConfig()))
    objective = SequentialObjective(data, CPU)
    asked = {"loss": ["cce-", "sce", "rece"], "bucket_items": [8, 16], "width": 8}
    space = build_space(asked, data.num_items, len(data.train))
    needed = {smallest: objective.probe(smallest, 1 << 40) for smallest in space.smallest()}
    assert len(needed) == 3
    least = min(needed.values())
    check_floor(objective, space, least)
    with pytest.raises(UserError) as caught:
        check_floor(objective, space, least - 1)
    (loss, *_) = [config.loss.loss for config, peak in needed.items() if peak == least]
    assert f"(loss {loss}" in str(caught.value)


def test_every_structure_is_predicted_before_a_study_begins(
    tiny_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(DataConfig(data=str(tiny_csv), columns=ColumnsConfig()))
    seen = []

    def check(_: object, config: TrialConfig, budget: int) -> bool:
        seen.append((config.model.width, config.model.num_heads, config.loss.loss))
        if config.model.width == 64:
            raise InfeasibleTrial(budget + 1, "predicted")
        return False

    monkeypatch.setattr(SequentialObjective, "check", check)
    monkeypatch.setattr(SequentialObjective, "probe", lambda *_, **__: 1)
    asked = {"width": [32, 64], "num_heads": [1, 2], "loss": ["cce", "bce"], "batch_size": [4, 8]}
    space = build_space(asked, data.num_items, len(data.train))
    check_floor(SequentialObjective(data, CPU), space, 2**20)
    assert set(seen) == set(itertools.product((32, 64), (1, 2), ("cce", "bce")))
    assert len(seen) == 8 + 2  # The smallest again.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_floor_is_measured_beside_another_process(
    holder: subprocess.Popen[str], tiny_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "WAIT_SECONDS", 0.0)
    cuda = torch.device("cuda", 0)
    data = prepare(DataConfig(data=str(tiny_csv), columns=ColumnsConfig()))
    space = build_space({}, data.num_items, len(data.train))
    check_floor(SequentialObjective(data, cuda), space, total_memory(cuda))
    assert holder.poll() is None


def test_a_table_beyond_the_budget_is_not_even_probed(
    tiny_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(DataConfig(data=str(tiny_csv), columns=ColumnsConfig()))
    objective = SequentialObjective(data, CPU)
    monkeypatch.setattr(SequentialObjective, "probe", None)
    space = build_space({"width": 4096}, data.num_items, len(data.train))
    with pytest.raises(UserError) as caught:
        check_floor(objective, space, 2**20)
    assert format_bytes(16 * 4096 * data.num_items) in str(caught.value)
