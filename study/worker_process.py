"""`python -m study.worker_process`: one worker of a study, started by `study.supervisor`.

What it is to do comes in its environment, where no list of processes shows a password. On its
standard input come orders, a line each; when the input ends, so has the supervisor, and the
running trial is handed back. On its standard output it says, a line of JSON each, that it works on
the study, that a trial has ended, and with which exit code it ends: without that it has died.

Where several cards train a trial, torchrun starts such a process for each; rank 0 is the worker.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.errors import UserError
from study import cli
from study.spec import StudySpec, load_spec

if TYPE_CHECKING:
    from objectives.sequential import SequentialObjective
    from study.subject import Subject
    from study.work import Work

WORK = "PARETOCUT_WORK"
"""Variable with what the process is to do, as JSON."""

ORDERS = {"drain": signal.SIGINT, "now": signal.SIGTERM}
"""What may come on the standard input, and the signal that it stands for; beside "go"."""

_GO = threading.Event()

START_AGAIN = 75
"""Exit code of a process that can do no more, though another one can."""


def main() -> int:
    """Works on a study, and says how that ended; it says itself why it ends with an error."""
    asked = json.loads(os.environ.pop(WORK))
    rank, size = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE"))
    if rank == 0:
        threading.Thread(target=_obey, daemon=True).start()
        code = _code(asked)
        _tell({"code": code})
        # torchrun takes any other for a fault of the machine.
        return cli.OK if size else code
    _, subject = _subject(asked)
    objective: SequentialObjective = subject.objective  # type: ignore[assignment]
    objective.follow()
    return cli.OK


def _obey() -> None:
    for line in sys.stdin:
        if (order := line.strip()) in ORDERS:
            os.kill(os.getpid(), ORDERS[order])
        _GO.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _subject(asked: dict[str, Any]) -> "tuple[StudySpec, Subject]":
    config = asked["config"]
    spec = load_spec(asked["flags"], None if config is None else Path(config))

    from study.subject import build_subject

    return spec, build_subject(spec)


def _code(asked: dict[str, Any]) -> int:
    try:
        spec, subject = (asked["waits"] and _ready(asked)) or _subject(asked)
        work = _open(spec, subject, wait=asked["is_open"])
        code = _run(work, subject, asked["name"])
        is_well = code not in (cli.ERROR, START_AGAIN)
        # In the middle of a trial the others listen for something else; they end with this one.
        if spec.gpus_per_trial > 1 and is_well and not work.handed_back:
            subject.objective.end()  # type: ignore[attr-defined]
        return code
    except UserError as error:
        cli.say(f"python -m study.run: {error}")
        return cli.USAGE
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    except Exception as error:
        if asked["flags"].get("debug"):
            raise
        cli.say(f"{asked['name']}: {cli.sentence(error)}; this worker ends")
        return cli.ERROR


def _ready(asked: dict[str, Any]) -> "tuple[StudySpec, Subject] | None":
    """Does what takes seconds while the first worker opens the study, which says what is wrong."""
    import study.work  # noqa: F401

    ready = None
    with contextlib.suppress(UserError):
        spec, subject = _subject(asked)
        if subject.objective.predicts:
            subject.check_floor(subject.budget(spec.memory_budget))
        ready = spec, subject
    _GO.wait()
    return ready


def _open(spec: StudySpec, subject: "Subject", *, wait: bool) -> "Work":
    """The study; wait: it was there before, so that a database that is away comes back."""
    from study.ledger import StorageAway
    from study.patience import OUTAGE_SECONDS
    from study.work import Work

    deadline = time.monotonic() + (OUTAGE_SECONDS if wait else 0)
    while True:
        try:
            return Work(spec, subject)
        except StorageAway:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1)


def _run(work: "Work", subject: "Subject", name: str) -> int:
    from rich.console import Console

    from study.progress import StudyProgress
    from study.records import StudyRecord, TrialRecord

    class Progress(StudyProgress):
        def ended(self, record: StudyRecord, trial: TrialRecord) -> None:
            super().ended(record, trial)
            _tell({"ended": trial.number})

    _tell({"study": work.name, "total": work.total, "notes": subject.notes})
    console = Console(stderr=True, soft_wrap=True)
    with Progress(work.total, console, live=False, speaker=name) as progress:
        failure = work.run(progress)
        if failure and not work.start_again:
            progress.say(f"{failure}; this worker ends")
    if failure:
        return START_AGAIN if work.start_again else cli.ERROR
    return work.code


def _tell(what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
