from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dashboards.advice import next_steps
from dashboards.queries import StudyView, build_view
from dashboards.words import answers, markdown, what_mattered, what_memory_buys
from study.records import StudyRecord, TrialRecord

MIB, GIB = 2**20, 2**30

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


def view_of(record: StudyRecord) -> StudyView:
    return build_view(record, "sqlite:////tmp/mlflow.db")


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        ([(0.10, 256), (0.12, 768)], "512.0 MiB, the best is trial 0 with 0.1000, 17% less: so"),
        ([(0.12, 768)], "Within half of the budget, 512.0 MiB, no trial trained to its end."),
        ([(0.12, 768)], "What twice the budget would buy, 2.00 GiB, was not tried."),
        (
            [(0.12, 512)],
            "Half of the budget is enough for trial 0. No trial trained to its end with",
        ),
        # Of equal ones the cheaper is the best.
        (
            [(0.12, 600), (0.12, 400)],
            "enough for trial 1. The one trial that trained to its end with",
        ),
        (
            [(0.12, 40), (0.1, 900), (0.1, 41)],
            "None of the 2 trials that trained to their end with more",
        ),
        ([(0.1199, 40), (0.12, 900)], "with 0.1199, less than 1% less"),
    ],
)
def test_what_memory_buys(
    trials: list[tuple[float, int]], words: str, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    made = [
        make_trial(number, quality=quality, peak_memory=memory * MIB)
        for number, (quality, memory) in enumerate(trials)
    ]
    assert words in what_memory_buys(view_of(make_study(*made)))


def test_a_difference_within_the_spread_is_called_so(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    trials = [
        make_trial(0, quality=0.110, peak_memory=100 * MIB),
        make_trial(1, quality=0.115, peak_memory=900 * MIB),
        make_trial(2, quality=0.117, peak_memory=900 * MIB, repeat_of=1),
    ]
    assert "standard deviation" not in what_memory_buys(view_of(make_study(*trials)))
    trials[0] = replace(trials[0], quality=0.1155)
    said = what_memory_buys(view_of(make_study(*trials)))
    assert "bought, no more than a standard deviation of repeated trainings." in said


def ten(make_trial: MakeTrial, **best: Any) -> list[TrialRecord]:
    """Ten trials, the last of which is better by far, or what it is said to be."""
    trials = [make_trial(number) for number in range(9)]
    return [*trials, make_trial(9, **({"quality": 0.2, "peak_memory": 90 * MIB} | best))]


@pytest.mark.parametrize(
    ("name", "space", "value", "end"),
    [
        ("learning_rate", [1e-4, 1e-2], 9e-3, "at the upper end of its range (0.0001 to 0.01)"),
        ("learning_rate", [1e-4, 1e-2], 1.1e-4, "at the lower end of its range (0.0001 to 0.01)"),
        ("learning_rate", [1e-4, 1e-2], 1e-3, None),
        ("dropout", [0.0, 0.5], 0.5, "at the upper end of its range (0 to 0.5)"),
        ("dropout", [0.0, 0.5], 0.0, None),
        ("negatives", [1, 4096], 1, None),
        ("negatives", [1, 4096], 4096, "at the upper end of its range (1 to 4096)"),
        ("max_length", [32, 64, 128], 128, "the largest of its choices"),
        ("max_length", [32, 64, 128], 32, "the smallest of its choices"),
        ("max_length", [32, 64, 128], 64, None),
        ("width", [64, 128], 128, "the largest of its choices"),
        ("loss", ["cce-", "cce"], "cce", None),
    ],
)
def test_the_best_at_an_end_of_a_range_asks_for_a_wider_one(
    name: str,
    space: list[Any],
    value: Any,
    end: str | None,
    make_trial: MakeTrial,
    make_study: MakeStudy,
) -> None:
    trials = ten(make_trial, params={name: value})
    identity: dict[str, Any] = {"open": [name], "space": {name: space}}
    steps = next_steps(view_of(make_study(*trials, **identity)))
    assert any(f"The best trial, 9, has {name} " in step for step in steps) == (end is not None)
    assert end is None or any(end in step for step in steps)
    # Nine are too few, and a table has no more than its rows.
    for study in (
        make_study(*trials[1:], **identity),
        make_study(*trials, **identity, memory_source="recorded"),
    ):
        assert not any("The best trial, 9" in step for step in next_steps(view_of(study)))


def test_whether_to_go_on_follows_from_what_more_trials_may_add(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    grows = next_steps(view_of(make_study(*ten(make_trial))))
    assert "to the hypervolume: go on (--n-trials 20)." in " ".join(grows)
    alone = next_steps(view_of(make_study(*ten(make_trial), objectives=["quality"])))
    assert "to the best quality: go on" in " ".join(alone)
    still = [make_trial(number) for number in range(10)]
    assert "can end here" in " ".join(next_steps(view_of(make_study(*still))))
    few = " ".join(next_steps(view_of(make_study(*still[:3]))))
    assert "3 trials ended, too few to say what more would add: go on (--n-trials 10)." in few
    runs = [*still, make_trial(10, "running", peak_memory=None)]
    assert "Trials are running" in " ".join(next_steps(view_of(make_study(*runs))))


def test_what_was_trained_once_is_to_be_confirmed(
    mixed: StudyRecord, timed: StudyRecord, make_trial: MakeTrial
) -> None:
    assert "Of the 2 trials on the front 2 were trained once" in next_steps(view_of(mixed))[-1]
    assert "Of the 3 trials on the front 3 were" in next_steps(view_of(timed))[-1]
    again = (*mixed.trials, make_trial(9, repeat_of=0), make_trial(10, repeat_of=1))
    steps = next_steps(view_of(replace(mixed, trials=again[:-1])))
    assert "Of the 2 trials on the front 1 was" in steps[-1]
    assert "--confirm" not in " ".join(next_steps(view_of(replace(mixed, trials=again))))
    alone = replace(mixed, identity={**mixed.identity, "objectives": ["quality"]})
    assert next_steps(view_of(alone))[-1].startswith("The best trial was trained once")
    table = replace(mixed, identity={**mixed.identity, "memory_source": "recorded"})
    assert "--confirm" not in " ".join(next_steps(view_of(table)))


def test_without_a_best_one_it_is_said_how_to_get_one(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    over = [make_trial(0, "infeasible", peak_memory=2 * GIB)]
    over.append(make_trial(1, "infeasible", peak_memory=3 * GIB // 2, at_least=True))
    (step,) = next_steps(view_of(make_study(*over)))
    assert "the one of least memory, trial 1, needs at least 1.50 GiB." in step
    rate = {"learning_rate": 3e-3}
    (step,) = next_steps(view_of(make_study(*over, make_trial(2, "diverged", params=rate))))
    assert step.startswith("1 trial diverged, with learning rates from 0.003")
    assert what_memory_buys(view_of(make_study(*over))) == ""


def test_the_description_of_a_run_is_markdown(
    mixed: StudyRecord, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    text = markdown(view_of(mixed), "python -m study.run --n-trials 9")
    assert text.startswith("Trial 1 is the best within 1.00 GiB: ")
    assert "**What to try next.** " in text
    assert "seeds: `--confirm 3` trains them" in text
    link = f"[1](#/runs/{'b' * 32})"
    assert f"| {link} | 512.0 MiB | 0.1200 | 16 | 0.001 |" in text
    assert 'search for `tags.front = "true"`' in text
    assert text.endswith("Go on with `python -m study.run --n-trials 9`")
    evil = make_trial(0, params={"batch_size": "<img src=x>"})
    assert "<img" not in markdown(view_of(make_study(evil)), "x")
    many = [
        make_trial(number, quality=number / 1000, peak_memory=(number + 1) * MIB)
        for number in range(1000)
    ]
    assert len(markdown(view_of(make_study(*many)), "x")) < 5000
    assert markdown(view_of(make_study()), "x") == "No trial has ended yet.\n\nGo on with `x`"


def test_what_mattered(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trials = [
        make_trial(
            number,
            quality=(number % 4) / 10,
            peak_memory=(number // 4 + 1) * MIB,
            params={"a": number % 4, "b": number // 4},
        )
        for number in range(16)
    ]
    space: dict[str, Any] = {"open": ["a", "b"], "space": {"a": [0, 3], "b": [0, 3]}}
    view = view_of(make_study(*trials, **space))
    assert what_mattered(view) == (
        "By the 16 trials that trained to their end, for quality a mattered most (100% of all "
        "importance); for peak memory b mattered most (100% of all importance)."
    )
    assert what_mattered(view_of(make_study(*trials[:9], **space))) == ""


def test_nothing_is_said_where_nothing_has_ended(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    assert answers(view_of(make_study())) == {}
    assert answers(view_of(make_study(make_trial(0, "running", peak_memory=None)))) == {}
