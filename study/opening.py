"""How a study begins: made anew, joined or continued, where it is asked for as it was started."""

from math import isclose
from pathlib import Path
from typing import Any

from objectives.config import SETTINGS
from objectives.errors import UserError
from objectives.loss_config import CHOICES
from study.front import objectives_of
from study.ledger import Ledger, connect, sqlite_file
from study.spec import StudySpec
from study.subject import Subject


def identity(spec: StudySpec, subject: Subject, budget: int) -> dict[str, Any]:
    """What makes a study the same study: one may be continued only if all of it agrees."""
    space = subject.space
    return {
        "space": space.as_dict(),
        "open": sorted({**space.open, **space.spent}),
        "spend_budget": spec.spend_budget,
        "memory_budget": budget,
        "memory_source": subject.memory_source,
        "objectives": list(spec.objectives),
        "seed": spec.seed,
        # None, so that studies of earlier versions agree.
        "gpus_per_trial": spec.gpus_per_trial if spec.gpus_per_trial > 1 else None,
        **subject.identity,
    }


def open_study(spec: StudySpec, storage_url: str, name: str, subject: Subject) -> Ledger:
    """The study of that name, checked to be the same, or a new one; nothing is written before.

    Raises:
        UserError: The study was started differently, needs more memory than there is here, or is
            not one of ours.
    """
    budget = subject.budget(spec.memory_budget)
    file = sqlite_file(storage_url)
    ledger = None
    if file is None or file.is_file():
        storage = connect(storage_url)
        ledger = Ledger.open(storage, name)
    if ledger is None:
        subject.check_floor(budget)
        baseline = subject.baseline()
        if file is not None:
            _make_folder(file.parent)
            storage = connect(storage_url)
        ledger = Ledger.create(storage, name, identity(spec, subject, budget))
        ledger.study.set_user_attr("baseline", baseline)
        ledger.study.set_user_attr("tags", subject.tags())
    _check_same(spec, subject, budget, ledger)
    _make_folder(spec.output_dir / name)
    return ledger


def _check_same(spec: StudySpec, subject: Subject, budget: int, ledger: Ledger) -> None:
    known = ledger.identity["memory_budget"]
    is_share = not isinstance(spec.memory_budget, int)
    # A share may differ a little after a reboot.
    if spec.memory_budget is None or (is_share and isclose(budget, known, rel_tol=1e-3)):
        budget = subject.budget(known)
    asked = identity(spec, subject, budget)
    stored = {
        **ledger.identity,
        "space": _of_this_version(ledger.identity["space"], asked["space"]),
        "objectives": objectives_of(ledger.identity),
    }
    _refuse_difference(ledger.study.study_name, stored, asked)


def _of_this_version(stored: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """A stored space of the losses that are asked for, with the settings that they have now.

    Those that an earlier version did not know were what their defaults are now; those that it
    kept although no loss has them never counted.
    """
    if any(stored.get(name, value) != asked.get(name, value) for name, value in CHOICES.items()):
        return stored
    return {name: stored.get(name, SETTINGS[name].default) for name in asked}


def _refuse_difference(name: str, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    differences = []
    for key, value in asked.items():
        if key == "request":  # the data's digest says whether it is the same
            continue
        old = stored.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            names = dict.fromkeys([*old, *value])
            pairs = [(f"{key}.{part}", old.get(part), value.get(part)) for part in names]
        else:
            pairs = [(key, old, value)]
        differences += [f"{part} was {a}, is {b}" for part, a, b in pairs if a != b]
    if differences:
        raise UserError(
            f"--study {name}: it was started differently ({'; '.join(differences)}); use the same "
            "flags to continue it, or another --study to start anew"
        )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output-dir {path}: the folder cannot be made ({error.strerror}); name another"
        ) from error
