"""`python -m study.worker_process`: one worker of a study, started by `study.supervisor`.

What it is to do comes as a line of JSON on its standard input, where no list of processes shows a
password; when the input ends, so has the supervisor, and the running trial is handed back. On its
standard output it says, a line each, that it works on the study and that a trial has ended.
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
    from study.subject import Subject
    from study.work import Work

START_AGAIN = 75
"""Exit code of a process that can do no more, though another one can."""

ENDED = "ended"
"""Said when a trial has ended."""


def main() -> int:
    """Works on a study; returns the exit code of `study.run`, or `START_AGAIN`.

    It says itself why it ends with an error.
    """
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_supervisor, daemon=True).start()
    try:
        config = asked["config"]
        spec = load_spec(asked["flags"], None if config is None else Path(config))

        from study.subject import build_subject

        subject = build_subject(spec)
        return _run(_open(spec, subject, wait=asked["is_open"]), subject, asked["name"])
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


def _leave_with_the_supervisor() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


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
            _tell(ENDED)

    _tell(json.dumps({"study": work.name, "total": work.total, "notes": subject.notes}))
    console = Console(stderr=True, soft_wrap=True)
    with Progress(work.total, console, live=False, speaker=name) as progress:
        failure = work.run(progress)
        if failure and not work.start_again:
            progress.say(f"{failure}; this worker ends")
    if failure:
        return START_AGAIN if work.start_again else cli.ERROR
    return work.code


def _tell(line: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
