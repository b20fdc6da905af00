"""What finished studies say of a new one."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest

import study.run
from objectives.config import TrialConfig
from objectives.errors import UserError
from objectives.recorded import RecordedObjective
from study import cli
from study.front_sampler import FrontSampler
from study.records import find, read
from study.space import build_space
from study.spec import load_spec
from study.warm_start import Run, Source, find_sources, runs_of_table

BUDGET = 1 << 30
SIZES = [16, 32, 64, 128, 256, 512, 1024]
SPACE = build_space(
    {"loss": "cce-", "negatives": SIZES, "batch_size": SIZES, "learning_rate": 1e-3},
    10_000,
    50_000,
)


def peak(config: TrialConfig) -> int:
    settings = config.flat()
    return 2**20 + 2**9 * int(settings["batch_size"]) * int(settings["negatives"])


def best_at(negatives: int, batch_size: int) -> Callable[[TrialConfig], float]:
    """A quality that falls with the distance from there."""

    def quality(config: TrialConfig) -> float:
        settings = config.flat()
        away = abs(math.log2(settings["negatives"] / negatives))
        return 1 - 0.08 * away - 0.08 * abs(math.log2(settings["batch_size"] / batch_size))

    return quality


def source_of(quality: Callable[[TrialConfig], float]) -> Source:
    runs: list[Run] = []
    for negatives in SIZES:
        for batch_size in SIZES:
            trial = optuna.trial.FixedTrial({"negatives": negatives, "batch_size": batch_size})
            config = SPACE.suggest(trial)
            runs.append((config.flat(), 0.3 * quality(config)))
    return Source("before", runs)


def area_after(
    trials: int, quality: Callable[[TrialConfig], float], *sources: Source, seed: int = 0
) -> float:
    """Under the front, of the whole area, of a search of so many trials."""
    sampler = FrontSampler(SPACE, peak, BUDGET, seed, sources=sources)
    searched = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(trials):
        trial = searched.ask()
        config = SPACE.suggest(trial)
        searched.tell(trial, (quality(config), peak(config)))
    everything = [
        (quality(config), float(peak(config)))
        for negatives in SIZES
        for batch_size in SIZES
        for config in [
            SPACE.suggest(
                optuna.trial.FixedTrial({"negatives": negatives, "batch_size": batch_size})
            )
        ]
    ]
    found = [(trial.values[0], trial.values[1]) for trial in searched.trials]
    return area(found) / area(everything)


def area(points: list[tuple[float, float]]) -> float:
    total, best = 0.0, 0.0
    for value, memory in sorted(points, key=lambda point: (point[1], -point[0])):
        if value > best:
            total += (value - best) * (math.log2(BUDGET) - math.log2(memory))
            best = value
    return total


def test_a_source_expects_what_it_has_seen() -> None:
    runs: list[Run] = [
        ({"batch_size": size, "loss": loss, "dropout": 0.1}, size / 1000 + 0.2 * (loss == "cce-"))
        for size in (10, 100, 300)
        for loss in ("cce-", "bce")
    ]
    expected = Source("s", runs).expected(
        [
            {"batch_size": 10, "loss": "cce-", "width": 64},
            {"batch_size": 300, "loss": "cce-"},
            {"batch_size": 300, "loss": "bce"},
            {"batch_size": 300, "loss": "never seen"},
            {"loss": "cce-"},
        ]
    )
    qualities = np.array([quality for _, quality in runs])
    standard = (np.array([0.21, 0.5, 0.3]) - qualities.mean()) / qualities.std()
    assert expected[:3] == pytest.approx(standard, abs=0.2)
    assert expected[2] < expected[3] < expected[1]
    assert expected[0] < expected[4] < expected[1], "what it does not have is in the middle"


def test_what_diverged_in_a_source_counts_as_its_worst() -> None:
    runs: list[Run] = [({"learning_rate": 10.0**-k}, 0.1 * k) for k in (2, 3, 4, 5)]
    (high, low) = Source("s", [*runs, ({"learning_rate": 0.1}, None)]).expected(
        [{"learning_rate": 0.1}, {"learning_rate": 1e-5}]
    )
    assert high < -0.8
    assert low > 0.8


def test_the_full_softmax_has_more_negatives_than_any_in_a_source() -> None:
    runs: list[Run] = [({"negatives": k, "loss": "cce-"}, 0.01 * math.log2(k)) for k in SIZES]
    most, full = Source("s", runs).expected([{"negatives": 1024, "loss": "cce-"}, {"loss": "cce"}])
    assert full > most


def test_the_first_trial_is_what_a_source_expects_most_of() -> None:
    quality = best_at(1024, 64)
    sampler = FrontSampler(SPACE, peak, BUDGET, 0, sources=[source_of(quality)])
    searched = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    asked = [searched.ask() for _ in range(3)]
    for trial in asked:
        SPACE.suggest(trial)
    assert len({tuple(trial.params.values()) for trial in asked}) == 3, "three workers at once"
    # Memory counts, too: the best one need not be the first.
    qualities = [quality(SPACE.suggest(optuna.trial.FixedTrial(t.params))) for t in asked]
    assert max(qualities) == 1
    assert qualities[0] > 0.7


def test_a_like_source_finds_the_front_sooner_and_an_unlike_one_is_overcome() -> None:
    quality = best_at(512, 64)
    cold = area_after(5, quality)
    assert area_after(5, quality, source_of(best_at(1024, 64))) > cold
    unlike = source_of(best_at(16, 1024))
    assert area_after(14, quality, unlike) > 0.95
    assert area_after(5, quality, unlike, source_of(best_at(1024, 64))) > cold


@pytest.mark.parametrize(
    "qualities", [(0.1, 0.2, 0.3), (0.1, 0.1, 0.1, 0.1), (0.1, 0.2, 0.3, None)]
)
def test_a_source_of_too_little_is_refused(qualities: tuple[float | None, ...]) -> None:
    with pytest.raises(UserError, match=r"--warm-start s: .* trainings have a quality"):
        Source("s", [({"batch_size": size}, each) for size, each in enumerate(qualities, 8)])


TABLE = """\
dataset,batch_size,negatives,ndcg_at_10,peak_memory_gib,epoch_seconds,epochs
{rows}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [
        f"{data},{size},{negatives},{0.1 + size / 1000},{size * 0.01},1,{epochs}"
        for data in ("music", "beer")
        for size in (8, 16, 32, 64)
        for negatives, epochs in ((64, 1), ("inf", 0 if size == 64 else 1))
    ]
    (tmp_path / "runs.csv").write_text(TABLE.format(rows="\n".join(rows)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return study.run.main(["--recorded", "runs.csv:music", "--pruning", "none", *arguments])


def test_runs_of_a_table_have_their_loss_and_no_quality_if_they_diverged(folder: Path) -> None:
    runs = runs_of_table(RecordedObjective(folder / "runs.csv", "beer"))
    settings, quality = runs[0]
    assert settings == {"batch_size": 8.0, "negatives": 64.0}
    assert quality == pytest.approx(0.108)
    assert ({"batch_size": 64.0, "loss": "cce"}, None) in runs


@pytest.mark.usefixtures("folder", "made_store")
def test_a_study_starts_from_a_study_and_from_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--study", "first", "--n-trials", "6") == cli.OK
    # By these the largest batch that trains is the best, and is the first to be tried.
    assert run("--n-trials", "2", "--warm-start", "first", "runs.csv:beer") == cli.OK
    said = capsys.readouterr().err
    assert "starting from first, 6 trainings" in said
    assert "starting from runs.csv:beer, 8 trainings" in said
    first = read(find("music", None, Path("runs"))).trials[0]
    cold = read(find("first", None, Path("runs"))).trials[0]
    assert first.params != cold.params


@pytest.mark.usefixtures("folder", "made_store")
def test_a_storage_that_begins_has_nothing_but_tables_to_start_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = ["--storage", "sqlite:///new.db", "--n-trials", "1"]
    assert run(*new, "--warm-start", "first") == cli.USAGE
    assert "first: not a recorded table, nor another study in new.db" in capsys.readouterr().err
    assert not Path("new.db").exists()
    assert run(*new, "--warm-start", "runs.csv:beer") == cli.OK


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--warm-start", "nothing"], "nothing: not a recorded table, nor another study in runs/"),
        (["--warm-start", "music"], "which has: none"),
        (["--warm-start", "runs.csv"], "choose from music, beer"),
        (["--warm-start", "ml-1m", "--sampler", "tpe"], "--sampler tpe learns from its own"),
        (
            ["--warm-start", "ml-1m", "--objectives", "quality", "memory", "time"],
            "ml-1m: only the sampler front can, and it weighs quality against one of",
        ),
    ],
)
def test_what_cannot_be_started_from_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(*arguments, "--n-trials", "1") == cli.USAGE
    said = capsys.readouterr().err
    assert words in said
    assert not Path("runs/music").exists()


def test_names_of_sources_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOCUT_WARM_START", "ml-1m beauty ml-1m")
    spec = load_spec({"data": "x"})
    assert spec.warm_start == ("ml-1m", "beauty")
    assert [source.num_runs for source in find_sources(spec, "x")] == [144, 144]
