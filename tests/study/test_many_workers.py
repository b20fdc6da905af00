"""Many workers on one PostgreSQL, which all may be killed."""

import gc
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.testing.pytest_storages import StorageTestCase

from study.front import pareto_front
from study.ledger import Ledger, connect
from study.records import StudyRecord, read
from study.workers import live_workers
from tests.postgres import Postgres
from tests.study.conftest import IDENTITY
from tests.study.crew import Crew


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
class TestContract(StorageTestCase):
    """Optuna's own tests of a storage; that of pickling leaves an engine open."""

    @pytest.fixture
    def storage(self, postgres: Postgres) -> Iterator[RDBStorage]:
        storage = connect(postgres.url("contract"))
        yield storage
        names = {*sa.inspect(storage.engine).get_table_names()} - {
            "alembic_version",
            "version_info",
        }
        with storage.engine.begin() as connection:
            connection.execute(sa.text(f"truncate {', '.join(names)} restart identity cascade"))
        storage.engine.dispose()
        del storage
        gc.collect()


_databases = itertools.count()


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.url(f"many{next(_databases)}")


@pytest.fixture
def shared(url: str) -> Iterator[Ledger]:
    ledger = Ledger.create(connect(url), "s", IDENTITY)
    yield ledger
    ledger.engine.dispose()


@pytest.fixture
def crew(url: str, shared: Ledger, tmp_path: Path) -> Iterator[Callable[[int], Crew]]:
    crews: list[Crew] = []

    def build(n_trials: int) -> Crew:
        crews.append(Crew(url, "s", n_trials, tmp_path))
        return crews[-1]

    yield build
    for each in crews:
        each.kill()


def check_whole(record: StudyRecord, total: int) -> None:
    """The total is exact, numbers have no gap, no trial was tried again twice or lost."""
    assert [trial.number for trial in record.trials] == list(range(len(record.trials)))
    assert Counter(trial.outcome for trial in record.trials if trial.outcome != "failed") == {
        "complete": total
    }
    retried = [trial.retry_of for trial in record.trials if trial.retry_of is not None]
    assert len(retried) == len(set(retried))
    launched = {t.number for t in record.trials if t.outcome == "failed" and t.launched}
    assert launched == set(retried)
    configurations = [tuple(trial.params.values()) for trial in record.complete]
    assert len(set(configurations)) == len(configurations)


def test_eight_processes_make_the_total_and_no_more(
    shared: Ledger, crew: Callable[[int], Crew]
) -> None:
    eight = crew(200)
    eight.start(8)
    assert eight.join() == [0] * 8
    record = read(shared)
    check_whole(record, 200)
    assert len(record.trials) == 200
    assert len({trial.worker for trial in record.trials}) == 8


def test_thirty_workers_at_once_race_for_the_last_trial(
    shared: Ledger, crew: Callable[[int], Crew]
) -> None:
    thirty = crew(10)
    thirty.start(30)
    assert thirty.join() == [0] * 30
    check_whole(read(shared), 10)


def test_clocks_that_differ_do_no_harm(shared: Ledger, crew: Callable[[int], Crew]) -> None:
    three = crew(30)
    for hours in (-1.0, 0.0, 1.0):
        three.start(hours_ahead=hours)
    assert three.join() == [0] * 3
    record = read(shared)
    check_whole(record, 30)
    assert len(record.trials) == 30, "nobody was taken for lost"
    starts = [trial.started.hour for trial in record.trials if trial.started]
    assert len(set(starts)) >= 2, "clocks did differ"


def test_workers_that_are_killed_lose_no_trial(
    shared: Ledger, crew: Callable[[int], Crew]
) -> None:
    four = crew(150)
    four.start(4)
    draw = random.Random(0)
    kills = 0
    while len(read(shared).complete) < 150:
        time.sleep(0.2)
        alive = [process for process in four.processes if process.is_alive()]
        if kills < 40 and alive:
            draw.choice(alive).kill()
            kills += 1
            four.start()
        elif not alive:
            break
    codes = four.join()
    assert codes.count(-9) + codes.count(0) == len(codes)
    assert codes.count(-9) >= 20
    record = read(shared)
    check_whole(record, 150)
    # What each trial is worth follows from its configuration, faults or not.
    points = [(1 / t.params["batch_size"], t.params["batch_size"] * 1000) for t in record.complete]
    front = {record.complete[index].number for index in pareto_front(points)}
    assert {trial.number for trial in record.front()} == front


@pytest.mark.parametrize("crash", [False, True])
def test_a_database_that_goes_away_and_comes_back_costs_nothing(
    own_postgres: Postgres, tmp_path: Path, crash: bool
) -> None:
    url = own_postgres.url("away")
    ledger = Ledger.create(connect(url), "s", IDENTITY)
    crew = Crew(url, "s", 60, tmp_path)
    try:
        crew.start(3)
        while len(live_workers(ledger)) < 3:
            time.sleep(0.05)
        for _ in range(2):
            seen = len(read(ledger).complete)
            while len(read(ledger).complete) < min(seen + 3, 60):
                time.sleep(0.05)
            (own_postgres.kill if crash else own_postgres.stop)()
            time.sleep(0.5)
            own_postgres.start()
        assert crew.join() == [0] * 3
        check_whole(read(ledger), 60)
    finally:
        crew.kill()
        ledger.engine.dispose()
