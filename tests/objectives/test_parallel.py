"""Two processes against one: `ranks` starts them once, and every test looks at what they found."""

import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kernels import RowGradient, RowSink
from objectives import checkpoint
from objectives.config import TrialConfig
from objectives.data import PreparedData, Sequences, Targets
from objectives.data.sequences import DeviceSequences, DeviceTargets
from objectives.evaluation import evaluate
from objectives.losses import build_loss
from objectives.memory import MemoryMeter
from objectives.parallel import ALONE, EndedTrial, Group
from objectives.sequential import SequentialObjective, _Progress
from objectives.training import Trainer
from objectives.trial import DivergedTrial, InfeasibleTrial, MachineFault, TrialResult

SIZE = 2
NUM_ITEMS = 300
TRAININGS: dict[str, dict[str, object]] = {
    "cce": {"loss": "cce"},
    "cce in parts": {"loss": "cce", "accumulation": 2},
    "cce-": {},
    "cce- clipped": {"clip_norm": 0.1},
    "cce- popularity": {"candidates": "popularity"},
    "cce- in batch": {"candidates": "in-batch"},
    "bce+": {"loss": "bce+"},
    "gbce": {"loss": "gbce"},
    "rows": {"table_updates": "adam"},
    "rows, clipped": {"table_updates": "adagrad", "clip_norm": 0.1},
    "rows of two tables": {"table_updates": "adam", "output_table": "separate"},
    "rows in bfloat16": {"table_updates": "adam", "table_dtype": "bfloat16"},
    "rows in parts": {"table_updates": "adam", "accumulation": 2, "architecture": "bert4rec"},
}
Found = dict[str, Any]


def walks(first: int, last: int) -> Sequences:
    """Some places of 60 users' walks of many lengths through the catalogue."""
    starts = np.arange(60) * 7
    lists = [(start + np.arange(first, last - start % 5)) % NUM_ITEMS for start in starts]
    items = np.concatenate(lists).astype(np.int32)
    return Sequences(items, np.cumsum([0, *map(len, lists)], dtype=np.int64))


def walked() -> PreparedData:
    train = walks(0, 12)
    last = train.items[train.offsets[1:] - 1]
    validation, test = (
        Targets(train, ((last + ahead) % NUM_ITEMS).astype(np.int32)) for ahead in (1, 2)
    )
    return PreparedData(
        "walks", "0", NUM_ITEMS, pa.array(range(NUM_ITEMS)), train, validation, test, ()
    )


def config(**settings: object) -> TrialConfig:
    small = {"width": 8, "num_blocks": 1, "num_heads": 1, "max_length": 9, "dropout": 0.0}
    fast = {"batch_size": 20, "learning_rate": 0.01, "negatives": 8, "group_size": 4}
    return TrialConfig.from_flat(small | fast | settings)


def settled(permuted: Callable[..., Tensor] = torch.randperm) -> Any:
    """Within the block rows come reversed: their order is drawn without a generator of its own."""

    def randperm(length: int, *, generator: torch.Generator | None = None, **where: Any) -> Tensor:
        if generator is None:
            return torch.arange(length - 1, -1, -1, **where)
        return permuted(length, generator=generator)

    return mock.patch.object(torch, "randperm", randperm)


def make_trainer(device: torch.device, group: Group, **settings: object) -> Trainer:
    data, chosen = walked(), config(**settings)
    torch.manual_seed(0)
    model = chosen.build_model(NUM_ITEMS).to(device)
    counts_V = torch.from_numpy(np.bincount(data.train.items, minlength=NUM_ITEMS)).to(device)
    loss = build_loss(chosen.loss, 0, model.outputs.sink, counts_V)
    return Trainer(model, loss, DeviceSequences(data.train, device), chosen.training, 0, group)


def gradients_and_weights(trainer: Trainer) -> tuple[list[Tensor], list[Tensor]]:
    """What the first step goes along, rows as dense gradients; and the weights after three."""
    gradients: list[Tensor] = []
    seen: set[int] = set()

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: dict[str, Any]) -> None:
        if id(optimizer) in seen:
            return
        seen.add(id(optimizer))
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        given = kwargs.get("gradients") or [each.grad for each in parameters]
        for parameter, gradient in zip(parameters, given, strict=True):
            if isinstance(gradient, RowGradient):
                gradient = dense(gradient, len(parameter))
            if gradient is not None:
                gradients.append(gradient.detach().cpu().clone())

    hook = register_optimizer_step_pre_hook(note)
    with settled():
        for parts in islice(trainer.batches.epoch(), 3):
            trainer.train_step(parts)
    hook.remove()
    weights = [weight.cpu() for weight in trainer.model.state_dict().values()]
    return gradients, weights


def dense(gradient: RowGradient, num_items: int) -> Tensor:
    items_U, rows_UD, num_touched = gradient
    assert num_touched is not None
    number = int(num_touched)
    whole_VD = rows_UD.new_zeros(num_items, rows_UD.shape[1])
    return whole_VD.index_add_(0, items_U[:number], rows_UD[:number])


def scores(device: torch.device, group: Group) -> dict[str, float]:
    trainer = make_trainer(device, group)
    return evaluate(
        trainer.encoder(),
        trainer.model.outputs.weight.detach(),
        DeviceTargets(walked().test, device),
        batch_tokens=50,
        max_length=9,
        lists=True,
        group=group,
    )


@dataclass
class Context:
    report: Callable[[int, Mapping[str, float]], None] = lambda epoch, metrics: None
    checkpoint: Path | None = None
    memory_budget: int = 1 << 30
    seed: int = 0
    leaving: bool = False


class Pruned(Exception):
    pass


def prune(epoch: int, metrics: Mapping[str, float]) -> None:
    if epoch == 2:
        raise Pruned


def outcome_of(run: Callable[[], object]) -> Any:
    """What it gives, or its exception in a form that can be sent."""
    try:
        return run()
    except Exception as error:
        return SimpleNamespace(kind=type(error), text=str(error), **vars(error))


def trials(objective: SequentialObjective, pids: list[int], folder: Path) -> Found:
    """What becomes of trials, one after the other in one group."""
    histories: dict[str, list[float]] = {}

    def noting(name: str) -> Context:
        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            histories.setdefault(name, []).append(metrics["train/loss"])
            # To be ignored.
            os.kill(pids[1], signal.SIGTERM)

        return Context(report)

    def run(context: Context, **settings: object) -> object:
        same = {"arithmetic": "deterministic", "max_epochs": 3, "dropout": 0.2}
        return outcome_of(lambda: objective(config(**same | settings), context))

    large = {"width": 256, "batch_size": 60}
    small = 16 << 20 if objective.device.type == "cuda" else 2 << 20
    path = folder / "checkpoint.pt"
    stopped = Context(prune, path)
    found = {
        "whole": run(noting("whole")),
        "pruned": run(stopped),
        "resumed": run(Context(noting("resumed").report, path)),
        "infeasible": run(Context(memory_budget=small), **large),
        "diverged": run(Context(), learning_rate=1e30),
        "few sequences": run(Context(), batch_size=1),
        "again": run(noting("again")),
    }
    alone = SequentialObjective(walked(), objective.device)
    peaks = [each.probe(config(), 1 << 30) for each in (objective, alone)]
    share = alone.probe(config(batch_size=10), 1 << 30)
    return {**found, "histories": histories, "peaks": [*peaks, share]}


def touched(device: torch.device, group: Group) -> Iterator[Tensor]:
    """The sum of both ranks' rows, by each backend: 3 of 5 and 2 of 5, and more of item 9."""
    items, number = [([3, 9, 20, -1, -1], 3), ([7, 9, -1, -1, -1], 2)][group.rank]
    rows_UD = 0.1 + torch.arange(5.0, device=device)[:, None].expand(5, 4) + group.rank
    rows_UD[number:] = 0
    ends = torch.tensor([number], dtype=torch.int32, device=device)
    for backend in ("eager", "triton"):
        sink = RowSink(NUM_ITEMS)
        sink.exchange = group.exchange
        with mock.patch.dict(os.environ, {"PARETOCUT_KERNELS": backend}):
            sink.add(RowGradient(torch.tensor(items, device=device), rows_UD, ends))
            # Item 9 once more, twice.
            sink.add(RowGradient(torch.tensor([9, 9], device=device), rows_UD[:2]))
            total = sink.take()
        assert total is not None
        yield dense(total, NUM_ITEMS).cpu()


def endings(group: Group) -> Iterator[object]:
    """What a block ends with, that rank 1 or both leave by an error."""

    def leave(*errors: Exception | None) -> object:
        with group.together():
            error = errors[group.rank]
            if error is not None:
                raise error
            return group.agree()

    for errors in (
        (None, InfeasibleTrial(70, "out-of-memory")),
        (InfeasibleTrial(80, "out-of-memory"), InfeasibleTrial(90, "out-of-memory")),
        (None, DivergedTrial(60, 4)),
        (None, MachineFault("full")),
        (None, RuntimeError("broken")),
        (RuntimeError("broken"), None),
        (None, None),
    ):
        yield outcome_of(partial(leave, *errors))


def work(rank: int, kind: str, port: int, folder: Path) -> None:
    """One process of the group."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(SIZE), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    group = Group.join(device)
    found: Found = {"endings": list(endings(group)), "scores": scores(device, group)}
    found["trainings"] = {
        name: gradients_and_weights(make_trainer(device, group, **settings))
        for name, settings in TRAININGS.items()
    }
    found["touched"] = list(touched(device, group))
    checkpoint._SHARE = 1e9
    objective = SequentialObjective(walked(), device, group=group)
    meter = cast(MemoryMeter, SimpleNamespace(peak=100 + rank))
    found["peak"] = objective._peak(_Progress(), meter)
    pids = group.agree(os.getpid())
    if rank == 0:
        found |= trials(objective, pids, folder)
        objective.end()
    else:
        objective.follow()
    (folder / str(rank)).write_bytes(pickle.dumps(found))


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < SIZE, reason="too few devices"),
            ],
        ),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ranks(kind: str, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each process has found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as environment:
        # Both are read where they are first needed, which an import may be.
        environment.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        environment.setenv("TRITON_INTERPRET", str(int(kind == "cpu")))
        mp.spawn(work, (kind, port, folder), nprocs=SIZE)  # type: ignore[attr-defined,no-untyped-call]
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(SIZE)]


def assert_close(found: list[Tensor], expected: list[Tensor], kind: str) -> None:
    # On a card products are bfloat16.
    rtol, atol = (1e-4, 1e-7) if kind == "cpu" else (0.05, 1e-3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one_with_twice_the_parts(
    name: str, kind: str, ranks: list[Found]
) -> None:
    settings = TRAININGS[name]
    parts = {"accumulation": SIZE * cast(int, settings.get("accumulation", 1))}
    alone = make_trainer(torch.device(kind), ALONE, **settings | parts)
    gradients, _ = gradients_and_weights(alone)
    for rank in ranks:
        assert_close(rank["trainings"][name][0], gradients, kind)


@pytest.mark.parametrize("name", TRAININGS)
def test_replicas_stay_equal_bit_by_bit(name: str, ranks: list[Found]) -> None:
    (_, one), (_, other) = (rank["trainings"][name] for rank in ranks)
    assert all(map(torch.equal, one, other))


def test_touched_rows_are_summed_by_item(kind: str, ranks: list[Found]) -> None:
    # On cards they travel as bfloat16.
    rtol, atol = (2**-8, 0.0) if kind == "cuda" else (None, None)
    expected_VD = torch.zeros(NUM_ITEMS, 4)
    for item, value in ((3, 0.1), (7, 1.1), (9, 1.1 + 2.1 + 1.2 + 3.2), (20, 2.1)):
        expected_VD[item] = value
    for rank in ranks:
        for sum_VD in rank["touched"]:
            torch.testing.assert_close(sum_VD, expected_VD, rtol=rtol, atol=atol)
            assert torch.equal(sum_VD, ranks[0]["touched"][0])


def test_the_whole_batch_has_the_loss_of_one_process(kind: str, ranks: list[Found]) -> None:
    found, _ = ranks[0]["trainings"]["cce"]
    gradients, _ = gradients_and_weights(make_trainer(torch.device(kind), ALONE, loss="cce"))
    assert_close(found, gradients, kind)


def test_an_evaluation_that_is_shared_out_finds_the_same(kind: str, ranks: list[Found]) -> None:
    expected = scores(torch.device(kind), ALONE)
    assert 0 < expected["ndcg_at_100"] < 1
    for rank in ranks:
        assert rank["scores"] == pytest.approx(expected, rel=1e-12)


def test_what_ends_one_process_ends_all(ranks: list[Found]) -> None:
    both, largest, diverged, fault, broken, left, well = zip(
        *(rank["endings"] for rank in ranks), strict=True
    )
    for rank in range(SIZE):
        assert both[rank].kind is InfeasibleTrial
        assert (both[rank].peak_bytes, both[rank].source) == (70, "out-of-memory")
        assert largest[rank].kind is InfeasibleTrial
        assert largest[rank].peak_bytes == 90
        assert diverged[rank].kind is DivergedTrial
        assert (diverged[rank].peak_bytes, diverged[rank].epoch) == (60, 4)
        assert fault[rank].kind is MachineFault
    assert broken[0].kind is MachineFault
    assert broken[1].text == left[0].text == "broken"
    assert left[1].kind is EndedTrial
    assert well == ([0, 0], [0, 0])


def test_the_peak_is_that_of_the_process_that_took_most(ranks: list[Found]) -> None:
    assert [rank["peak"] for rank in ranks] == [101, 101]


def test_a_trial_of_two_processes_is_whole(kind: str, ranks: list[Found]) -> None:
    result, histories = ranks[0]["whole"], ranks[0]["histories"]
    assert isinstance(result, TrialResult)
    assert len(result.metrics) == 2 * 5 * 5
    assert result.epochs == len(histories["whole"]) == 3
    assert histories["whole"][-1] < histories["whole"][0]
    assert result.memory_source == ("cuda" if kind == "cuda" else "tracked")
    assert bool(result.memory_parts) == (kind == "cuda"), "where peaks are predicted"


def test_a_trial_ends_in_all_processes_and_leaves_them_for_the_next(
    kind: str, ranks: list[Found]
) -> None:
    found = ranks[0]
    assert found["pruned"].kind is Pruned
    assert found["infeasible"].kind is InfeasibleTrial
    expected = {"cpu": "out-of-memory", "cuda": "predicted"}[kind]
    assert found["infeasible"].source == expected
    assert found["diverged"].kind is DivergedTrial
    assert found["diverged"].epoch == 1
    assert found["again"].metrics == found["whole"].metrics
    assert found["histories"]["again"] == found["histories"]["whole"]


def test_a_trial_goes_on_from_a_checkpoint_as_if_nothing_had_happened(ranks: list[Found]) -> None:
    assert ranks[0]["histories"]["resumed"] == ranks[0]["histories"]["whole"]
    assert ranks[0]["resumed"].metrics == ranks[0]["whole"].metrics


def test_a_batch_of_fewer_sequences_than_parts_is_refused(ranks: list[Found]) -> None:
    assert ranks[0]["few sequences"].text == (
        "batches of 1 sequences (--space.batch_size 1) do not make 2 parts (--space.accumulation "
        "1 on 2 devices): raise the batch size"
    )


def test_a_probe_is_on_the_share_of_one_process(ranks: list[Found]) -> None:
    probed, whole, share = ranks[0]["peaks"]
    assert probed == pytest.approx(share, rel=0.01)
    assert probed < whole
