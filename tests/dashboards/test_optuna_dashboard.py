"""optuna-dashboard on our storage, which it may know nothing of."""

import sys
from pathlib import Path

import pytest

from dashboards.optuna_dashboard import save_figures
from dashboards.queries import build_view
from study.ledger import Ledger, connect, default_storage
from study.records import StudyRecord


def build_ledger(folder: Path, record: StudyRecord) -> Ledger:
    (folder / "toy").mkdir()
    return Ledger.create(connect(default_storage(folder, "toy")), "toy", record.identity)


def figures_in(ledger: Ledger) -> dict[str, str]:
    """As optuna-dashboard reads them."""
    from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

    attributes = ledger.study._storage.get_study_system_attrs(ledger.study._study_id)
    figures: dict[str, str] = get_plotly_graph_objects(attributes)
    return figures


def test_the_front_and_the_history_are_saved_once(tmp_path: Path, mixed: StudyRecord) -> None:
    pytest.importorskip("optuna_dashboard")
    ledger = build_ledger(tmp_path, mixed)
    for _ in range(2):
        assert save_figures(ledger.study, build_view(mixed, "x"))
    figures = figures_in(ledger)
    assert sorted(figures) == ["paretocut-front", "paretocut-history"]
    front = figures["paretocut-front"]
    assert "budget 1.00 GiB" in front
    assert "trial %{customdata}" in front
    assert "learning_rate" not in front, "no hover texts"
    assert ledger.study.trials == []


def test_without_it_or_a_complete_trial_nothing_is_saved(
    tmp_path: Path, mixed: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = build_ledger(tmp_path, mixed)
    none = StudyRecord("toy", mixed.identity, mixed.trials[3:], {}, None)
    assert not save_figures(ledger.study, build_view(none, "x"))
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert not save_figures(ledger.study, build_view(mixed, "x"))
