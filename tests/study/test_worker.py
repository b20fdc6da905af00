"""The worker against objectives that end in every way a trial can."""

import errno
import itertools
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from objectives.config import TrialConfig
from objectives.trial import (
    QUALITY,
    DeviceLost,
    DivergedTrial,
    InfeasibleTrial,
    MachineFault,
    TrialContext,
    TrialResult,
)
from study.ledger import Ledger, connect
from study.pruning import Pruner
from study.records import RESULT, read
from study.recovery import recover
from study.sampling import build_sampler
from study.space import Space, build_space
from study.worker import MachineFailedError, NothingFitsError, Worker
from study.workers import LOST_SECONDS, Presence

BUDGET = 1 << 30
BuildWorker = Callable[..., Worker]


def succeed(config: TrialConfig, context: TrialContext) -> TrialResult:
    context.report(1, {QUALITY: 0.1, "memory/peak_bytes": 1000.0})
    return TrialResult(
        quality=1 / config.training.batch_size,
        peak_memory=config.training.batch_size * 1000,
        seconds=0.5,
        metrics={"test/ndcg_at_10": 0.05},
        epochs=1,
        best_epoch=1,
        memory_parts={"parameters": 600, "activations": 300},
    )


def raising(error: BaseException) -> Callable[[TrialConfig, TrialContext], TrialResult]:
    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        context.report(1, {QUALITY: 0.1, "memory/peak_bytes": 1000.0})
        raise error

    return objective


def frozen(ledger: Ledger, number: int = 0) -> optuna.trial.FrozenTrial:
    return ledger.study.trials[number]


def test_a_complete_trial(ledger: Ledger, build_worker: BuildWorker) -> None:
    build_worker(succeed).run(1)
    trial = frozen(ledger)
    batch_size = trial.params["batch_size"]
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [1 / batch_size, batch_size * 1000]
    assert trial.constraints == {"memory": batch_size * 1000 / BUDGET - 1}
    (record,) = read(ledger).trials
    assert record.outcome == "complete"
    assert record.metrics["test/ndcg_at_10"] == 0.05
    assert record.config["batch_size"] == batch_size
    assert record.config["table_updates"] == "dense", "what auto stood for"
    assert record.tags == {"device": "cpu", "seed": "0"}
    assert record.seconds == 0.5
    assert record.memory_parts == {"parameters": 600, "activations": 300}
    (epoch,) = ledger.epochs(0)
    assert epoch.metrics[QUALITY] == 0.1


@pytest.mark.parametrize(
    ("sampler", "objectives", "values"),
    [
        ("tpe", ["quality"], (0.1,)),
        ("random", ["quality", "time"], (0.1, 0.5)),
        ("tpe", ["quality", "memory", "time"], (0.1, 1000, 0.5)),
    ],
)
def test_a_trial_tells_what_the_study_searches_for(
    ledger: Ledger,
    build_worker: BuildWorker,
    space: Space,
    tmp_path: Path,
    sampler: str,
    objectives: list[str],
    values: tuple[float, ...],
) -> None:
    storage = connect(f"sqlite:///{tmp_path / 'other.db'}")
    made = Ledger.create(storage, "other", {**ledger.identity, "objectives": objectives})
    assert made.study.directions == [
        StudyDirection.MAXIMIZE,
        *[StudyDirection.MINIMIZE] * (len(values) - 1),
    ]
    made.study.sampler = build_sampler(sampler, 0, 0, space)
    number = itertools.count()

    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        if next(number) % 3:
            raise InfeasibleTrial(2 * BUDGET, "out-of-memory")
        return TrialResult(quality=0.1, peak_memory=1000, seconds=0.5)

    build_worker(objective, made).run(14)  # of which TPE draws ten at random
    record = read(made)
    assert len(record.complete) == 5
    for trial in record.complete:
        assert tuple(made.study.trials[trial.number].values) == record.point(trial) == values
    assert record.front() == record.complete[:1]


@pytest.mark.parametrize(
    ("error", "outcome", "peak", "at_least"),
    [
        (InfeasibleTrial(2 * BUDGET, "out-of-memory"), "infeasible", 2 * BUDGET, True),
        (InfeasibleTrial(3 * BUDGET, "probed"), "infeasible", 3 * BUDGET, False),
        (DivergedTrial(BUDGET // 2, 4), "diverged", BUDGET // 2, False),
        (optuna.TrialPruned("dominated"), "pruned", 1000, False),
    ],
)
def test_what_the_configuration_did_is_learned_from(
    ledger: Ledger,
    build_worker: BuildWorker,
    error: Exception,
    outcome: str,
    peak: int,
    at_least: bool,
) -> None:
    build_worker(raising(error)).run(1)
    trial = frozen(ledger)
    assert trial.state == TrialState.PRUNED
    assert trial.values is None
    assert trial.constraints == {"memory": peak / BUDGET - 1}
    (record,) = read(ledger).trials
    assert (record.outcome, record.peak_memory, record.at_least) == (outcome, peak, at_least)
    assert record.reason
    assert record.quality is None
    assert record.config["table_updates"] == "dense"


def test_what_the_gate_refuses_is_told_and_does_not_count(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    launched = []

    def gate(config: TrialConfig, budget: int) -> bool:
        assert budget == BUDGET
        if len(ledger.study.trials) in (1, 3):
            raise InfeasibleTrial(4 * BUDGET, "predicted")
        return False

    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        launched.append(config)
        return succeed(config, context)

    worker = build_worker(objective)
    worker.gate = gate
    worker.run(2)
    record = read(ledger)
    assert len(record.finished) == len(record.complete) == len(launched) == 2
    assert [trial.number for trial in record.refused] == [0, 2]
    for number in (0, 2):
        trial = frozen(ledger, number)
        assert trial.state == TrialState.PRUNED
        assert trial.constraints == {"memory": 3}
        assert not record.trials[number].launched
    assert all(trial.launched for trial in record.finished)


def test_a_trial_that_falls_behind_is_stopped_but_not_after_its_last_epoch(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    rising = [0.1 * epoch for epoch in range(1, 9)]
    # The third is ahead until the last epoch, when it is level at best.
    curves = (rising, [0.01] * 8, [*rising[:7], 0.7])

    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        shown = curves[len(ledger.study.trials) - 1]
        for epoch, quality in enumerate(shown, 1):
            metrics = {QUALITY: quality, "memory/peak_bytes": 1000.0}
            context.report(epoch, metrics)
        return TrialResult(quality=shown[-1], peak_memory=1000, seconds=1, epochs=8)

    worker = build_worker(objective)
    worker.space = build_space({"max_epochs": 8}, 1000, 500)
    worker.pruner = Pruner(ledger)
    worker.run(3)
    record = read(ledger)
    assert [trial.outcome for trial in record.trials] == ["complete", "pruned", "complete"]
    stopped = record.trials[1]
    assert stopped.epochs == len(ledger.epochs(1)) < 8
    assert "where trial 0 had" in stopped.reason
    assert stopped.peak_memory == 1000
    shown = 0.1 * stopped.epochs
    expected = frozen(ledger, 1).user_attrs[RESULT]["expected"]
    assert expected == pytest.approx(0.8 * 0.01 / shown)


def test_every_trial_spends_the_budget(ledger: Ledger, build_worker: BuildWorker) -> None:
    tried = []

    def gate(config: TrialConfig, budget: int) -> bool:
        # 50 and more are near the budget, 60 and more exceed it.
        if config.training.batch_size >= 60:
            raise InfeasibleTrial(2 * budget, "predicted")
        return config.training.batch_size >= 50

    def flaky(config: TrialConfig, context: TrialContext) -> TrialResult:
        tried.append(config.training.batch_size)
        if len(tried) == 1:
            raise MachineFault("something else holds the card's memory")
        return succeed(config, context)

    worker = build_worker(flaky)
    worker.space = build_space({}, 1000, 100, "batch_size")
    worker.gate = gate
    worker.run(2)
    # The second is the first again.
    assert tried == [49, 49, 49]
    record = read(ledger)
    assert not record.refused
    for trial in record.complete:
        assert trial.params["batch_size"] == trial.config["batch_size"] == 49
        assert "batch_size" not in frozen(ledger, trial.number).params


def test_a_search_over_losses_chooses_and_spends_what_each_has(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    def gate(config: TrialConfig, budget: int) -> bool:
        return int(config.flat().get("negatives", 0)) > 100

    tried = []

    def flaky(config: TrialConfig, context: TrialContext) -> TrialResult:
        tried.append(config)
        if len(tried) == 2:
            raise MachineFault("something else holds the card's memory")
        return succeed(config, context)

    worker = build_worker(flaky)
    worker.space = build_space({"loss": ["sce", "bce+", "rece"]}, 1000, 100, "negatives")
    worker.gate = gate
    worker.run(25)
    assert tried[1] == tried[2], "the second is tried again"
    own = {
        "sce": {"bucket_items"},
        "bce+": {"negatives"},
        "rece": set(),
    }
    losses = set()
    for trial in read(ledger).complete:
        loss = trial.config["loss"]
        losses.add(loss)
        assert set(trial.params) == {"loss", "batch_size", "learning_rate"} | own[loss]
        assert trial.config.get("negatives") == (100 if loss == "bce+" else None)
    assert losses == set(own)
    # What only some trials have is modelled too, not drawn by itself.
    sampler = ledger.study.sampler
    space = sampler.infer_relative_search_space(ledger.study, frozen(ledger))
    assert set(space) == {"loss", "batch_size", "learning_rate", "bucket_items"}


def test_a_space_in_which_nothing_fits_is_given_up(
    ledger: Ledger, build_worker: BuildWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.worker._MAX_REFUSALS_IN_A_ROW", 3)
    worker = build_worker(succeed)
    worker.gate = _refuse
    with pytest.raises(NothingFitsError, match=r"last 3 .* the smallest with 2\.00 GiB: raise it"):
        worker.run(1)
    assert len(read(ledger).refused) == 3


def _refuse(config: TrialConfig, budget: int) -> bool:
    raise InfeasibleTrial(2 * budget, "predicted")


def test_what_the_machine_did_is_tried_again(ledger: Ledger, build_worker: BuildWorker) -> None:
    calls = []

    def flaky(config: TrialConfig, context: TrialContext) -> TrialResult:
        calls.append((config, context.seed))
        if len(calls) == 2:
            raise MachineFault("something else holds the card's memory")
        return succeed(config, context)

    build_worker(flaky).run(3)
    states = [trial.state for trial in ledger.study.trials]
    assert states == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
    ]
    assert calls[2] == calls[1], "same configuration, same seed"
    failed, retried = read(ledger).trials[1:3]
    assert failed.outcome == "failed"
    assert "something else holds" in failed.reason
    assert retried.retry_of == 1
    assert frozen(ledger, 1).constraints == {}
    assert len(read(ledger).finished) == 3


def test_a_trial_goes_on_from_its_checkpoint_and_leaves_none(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    found: list[tuple[str, bool]] = []

    def flaky(config: TrialConfig, context: TrialContext) -> TrialResult:
        assert context.checkpoint is not None
        found.append((context.checkpoint.name, context.checkpoint.exists()))
        context.checkpoint.parent.mkdir(exist_ok=True)
        context.checkpoint.touch()
        if len(found) in (2, 3):
            raise MachineFault("something else holds the card's memory")
        return succeed(config, context)

    worker = build_worker(flaky)
    worker.run(3)
    trials = [f"trial-{number}.pt" for number in (0, 1, 1, 1, 4)]
    assert found == list(zip(trials, [False, False, True, True, False], strict=True))
    assert list(worker.folder.iterdir()) == []


def test_a_checkpoint_of_a_study_that_is_gone_is_none(build_worker: BuildWorker) -> None:
    found: list[bool] = []

    def look(config: TrialConfig, context: TrialContext) -> TrialResult:
        assert context.checkpoint is not None
        found.append(context.checkpoint.exists())
        return succeed(config, context)

    worker = build_worker(look)
    worker.folder.mkdir()
    (worker.folder / "trial-0.pt").touch()
    worker.run(1)
    assert found == [False]


def test_a_trial_that_is_given_up_leaves_no_checkpoint(build_worker: BuildWorker) -> None:
    def broken(config: TrialConfig, context: TrialContext) -> TrialResult:
        assert context.checkpoint is not None
        context.checkpoint.parent.mkdir(exist_ok=True)
        context.checkpoint.touch()
        raise MachineFault("boom")

    worker = build_worker(broken)
    with pytest.raises(MachineFailedError):
        worker.run(1)
    assert list(worker.folder.iterdir()) == []


def test_a_machine_that_keeps_failing_ends_the_run(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    with pytest.raises(MachineFailedError, match="boom"):
        build_worker(raising(RuntimeError("boom"))).run(10)
    assert [trial.state for trial in ledger.study.trials] == [TrialState.FAIL] * 3
    assert [trial.retry_of for trial in read(ledger).trials] == [None, 0, 1]


def test_the_total_counts_earlier_runs(ledger: Ledger, build_worker: BuildWorker) -> None:
    for total in (2, 2, 5, 4):
        build_worker(succeed).run(total)
    assert len(ledger.study.trials) == 5


def test_infeasible_trials_count_and_the_run_ends(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    build_worker(raising(InfeasibleTrial(2 * BUDGET, "out-of-memory"))).run(4)
    assert len(read(ledger).finished) == 4
    assert read(ledger).best() is None


def test_the_timeout_starts_no_further_trial(ledger: Ledger, build_worker: BuildWorker) -> None:
    build_worker(succeed).run(5, timeout=0.0)
    assert ledger.study.trials == []


def signalling(number: int, times: int) -> Callable[[TrialConfig, TrialContext], TrialResult]:
    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        for _ in range(times):
            os.kill(os.getpid(), number)
        return succeed(config, context)

    return objective


def test_the_first_interrupt_lets_the_trial_end(ledger: Ledger, build_worker: BuildWorker) -> None:
    worker = build_worker(signalling(signal.SIGINT, 1))
    before = signal.getsignal(signal.SIGINT)
    with worker._stop.listening():
        worker.run(5)
    assert worker._stop.code == 130
    assert [trial.state for trial in ledger.study.trials] == [TrialState.COMPLETE]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_interrupt_ends_it_at_once_and_it_is_tried_again(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    worker = build_worker(signalling(signal.SIGINT, 2))
    with pytest.raises(KeyboardInterrupt), worker._stop.listening():
        worker.run(5)
    assert [trial.state for trial in ledger.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    build_worker(succeed).run(1)
    failed, retried = ledger.study.trials
    assert retried.state == TrialState.COMPLETE
    assert retried.params == failed.params


def test_sigterm_hands_the_trial_back_after_its_epoch(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    wrote = []

    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        os.kill(os.getpid(), signal.SIGTERM)
        wrote.append(context.leaving)
        return succeed(config, context)

    worker = build_worker(objective)
    worker.max_retries = 0
    with pytest.raises(KeyboardInterrupt), worker._stop.listening():
        worker.run(5)
    assert worker._stop.code == 143
    assert wrote == [True], "its state is worth writing"
    handed_back, waiting = ledger.study.trials
    assert (handed_back.state, waiting.state) == (TrialState.FAIL, TrialState.WAITING)
    assert read(ledger).trials[0].reason == "handed back"
    assert waiting.user_attrs["retries"] == 0, "it is no fault of the machine"
    assert [epoch.number for epoch in ledger.epochs()] == [0]


def test_sigterm_does_not_wait_for_a_long_epoch(
    ledger: Ledger, build_worker: BuildWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.signals._LEAVE_SECONDS", 0.01)

    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return succeed(config, context)

    worker = build_worker(objective)
    with pytest.raises(KeyboardInterrupt), worker._stop.listening():
        worker.run(5)
    assert [trial.state for trial in ledger.study.trials] == [TrialState.FAIL, TrialState.WAITING]


def lose(ledger: Ledger, space: Space, **attributes: Any) -> optuna.Trial:
    """A trial as a killed process leaves it."""
    trial = ledger.study.ask()
    trial.set_user_attr("seed", 7)
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    space.suggest(trial)
    return trial


def test_a_trial_of_a_dead_process_is_tried_again(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    worker = build_worker(succeed)
    host = os.uname().nodename
    lost = lose(ledger, worker.space, worker=f"{host}:{2**22 + 1}:0.00")
    lost.set_constraint("memory", 5.0)
    worker.run(1)
    failed, retried = ledger.study.trials
    assert (failed.state, retried.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert retried.params == failed.params
    assert retried.user_attrs["seed"] == 7
    assert retried.constraints["memory"] < 0, "constraints must not be carried over"


def test_a_lost_trial_is_given_up_after_so_many_retries(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    worker = build_worker(succeed)
    worker.max_retries = 1
    worker.folder.mkdir()
    for name in ("trial-0.pt", "trial-1.pt"):
        (worker.folder / name).touch()
    dead = f"{os.uname().nodename}:{2**22 + 1}:0.00"
    lose(ledger, worker.space, worker=dead, retries=1)
    lose(ledger, worker.space, worker=dead)
    with ledger.claiming():
        recover(ledger, read(ledger), worker._presence.is_lost, 1, worker.folder)
    states = [trial.state for trial in ledger.study.trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.WAITING]
    assert read(ledger).trials[2].retry_of == 1
    assert [path.name for path in worker.folder.iterdir()] == ["trial-1.pt"]


def test_who_dies_in_claiming_a_trial_leaves_none(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    ledger.study.ask()
    build_worker(succeed).run(2)
    assert [trial.outcome for trial in read(ledger).trials] == ["failed", "complete", "complete"]


def test_who_dies_between_failing_a_trial_and_queueing_it_loses_nothing(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    worker = build_worker(succeed)
    lost = lose(ledger, worker.space)
    ledger.study.tell(lost, state=TrialState.FAIL)
    worker.run(2)
    assert [trial.retry_of for trial in read(ledger).trials] == [None, 0, None]
    assert len(read(ledger).complete) == 2


def test_a_worker_of_another_host_is_lost_once_it_is_silent_for_long(
    ledger: Ledger, build_worker: BuildWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("study.workers.time.monotonic", lambda: now)
    monkeypatch.setattr("study.workers.this_process", lambda: "elsewhere:1:0.00")
    other = Presence(ledger, "cpu", lambda order: None)
    monkeypatch.undo()
    monkeypatch.setattr("study.workers.time.monotonic", lambda: now)
    worker = build_worker(succeed)
    mine = worker._presence
    assert (other.ordinal, mine.ordinal) == (0, 1)
    mine.beat()
    for _ in range(2 * int(LOST_SECONDS)):
        now += 5
        other.beat()
        mine.beat()
        assert not mine.is_lost("elsewhere:1:0.00")
    # The database was away for long: nobody could be seen.
    now += 10 * LOST_SECONDS
    mine.beat()
    assert not mine.is_lost("elsewhere:1:0.00")
    for _ in range(int(LOST_SECONDS / 5)):
        now += 5
        mine.beat()
    assert mine.is_lost("elsewhere:1:0.00")
    other.beat()
    mine.beat()
    assert not mine.is_lost("elsewhere:1:0.00"), "it was there all the time"
    other.__exit__()
    mine.beat()
    assert mine.is_lost("elsewhere:1:0.00"), "it has ended"


def test_what_another_worker_has_now_is_left_to_it(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    calls = []

    def paused(config: TrialConfig, context: TrialContext) -> TrialResult:
        calls.append(config)
        if len(calls) == 1:
            # As others do, once they take this worker for lost.
            with ledger.claiming():
                recover(ledger, read(ledger), lambda worker: True, 2, Path("nowhere"))
        return succeed(config, context)

    build_worker(paused).run(1)
    lost, retried = read(ledger).trials
    assert (lost.outcome, lost.reason) == ("failed", "its worker was lost")
    assert retried.outcome == "complete"
    assert retried.retry_of == 0
    assert [epoch.number for epoch in ledger.epochs()] == [1]


def test_a_trial_that_others_run_counts_and_is_waited_for(
    ledger: Ledger, build_worker: BuildWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = build_worker(succeed)
    monkeypatch.setattr("study.worker._POLL_SECONDS", 0.0)
    others = lose(ledger, worker.space, worker="elsewhere:1:0.00")
    waits = iter([False, False, True])
    monkeypatch.setattr(worker._presence, "is_lost", lambda name: next(waits))
    worker.run(1)
    assert [trial.state for trial in ledger.study.trials] == [
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]
    assert ledger.study.trials[1].params == others.params


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        DeviceLost("cuda:0: an illegal memory access was encountered"),
    ],
)
def test_what_the_process_cannot_go_on_with_ends_the_run_at_once(
    ledger: Ledger, build_worker: BuildWorker, error: Exception
) -> None:
    with pytest.raises(MachineFailedError, match=str(error.args[-1])) as caught:
        build_worker(raising(error)).run(3)
    assert caught.value.__cause__ is error
    assert [trial.state for trial in ledger.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    build_worker(succeed).run(1)
    assert read(ledger).trials[1].retry_of == 0


def test_the_sampler_steers_away_from_what_does_not_fit(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    def limited(config: TrialConfig, context: TrialContext) -> TrialResult:
        if config.training.batch_size > 30:
            raise InfeasibleTrial(BUDGET * config.training.batch_size // 30, "out-of-memory")
        return succeed(config, context)

    build_worker(limited).run(40)
    sizes = [trial.params["batch_size"] for trial in ledger.study.trials]
    # Of 8 .. 500, logarithmic, 32 % are within 30.
    assert sum(size <= 30 for size in sizes[20:]) >= 12
    assert not any(math.isnan(value) for value in ledger.study.trials[-1].constraints.values())
