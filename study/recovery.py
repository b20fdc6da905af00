"""Trials that the machine failed: who lost them, and how they are tried again.

A trial that ends in FAIL is queued again as another one, with its parameters, seed, checkpoint and
MLflow run. Whoever holds the lock by which trials are claimed does that for all, from what the
storage holds: a process that dies on the way leaves it to the next.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from study.ledger import Ledger
from study.records import REPEATS, SPENT, StudyRecord, TrialRecord, read

_KEPT = ("seed", SPENT, REPEATS)


def recover(
    ledger: Ledger,
    record: StudyRecord,
    is_lost: Callable[[str], bool],
    max_retries: int,
    checkpoints: Path,
) -> bool:
    """Fails the trials of lost workers, and queues again what failed; holds the claiming lock.

    Args:
        ledger: The study.
        record: It as it stands.
        is_lost: Whether a worker, named as in `study.workers`, is lost; "" is whoever died in
            claiming a trial.
        max_retries: How often a trial is tried again.
        checkpoints: Folder of the states of trainings; those of trials that are given up are
            removed.

    Returns:
        Whether the study has changed.
    """
    lost = [
        trial for trial in record.trials if trial.outcome == "running" and is_lost(trial.worker)
    ]
    for trial in lost:
        with contextlib.suppress(UpdateFinishedTrialError):
            ledger.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    if changed := bool(lost):
        record = read(ledger)
    for trial in record.open_failures:
        retries = trial.retries + (not trial.handed_back)
        if retries <= max_retries:
            try_again(ledger, trial, retries)
            changed = True
        else:
            checkpoint_of(trial.first_try, checkpoints).unlink(missing_ok=True)
    return changed


def try_again(ledger: Ledger, failed: TrialRecord, retries: int) -> None:
    """Queues a failed trial; retries: how often it has been tried again, this time included.

    Optuna's own callback would carry the constraints over, which can be set only once.
    """
    stored = ledger.study.get_trials(deepcopy=False)[failed.number]
    kept = {name: stored.user_attrs[name] for name in _KEPT if name in stored.user_attrs}
    ledger.study.enqueue_trial(
        stored.params,
        user_attrs={
            **kept,
            "retries": retries,
            "retry_of": failed.number,
            "first_try": failed.first_try,
        },
    )


def checkpoint_of(first_try: int, folder: Path) -> Path:
    """File of the state of a trial's training, which all its tries share."""
    return folder / f"trial-{first_try}.pt"
