"""One worker process for each GPU of this host, or several on its CPU, started and watched.

The supervisor itself uses no GPU and imports no torch. A worker that dies is started again, and
its trial goes on from its checkpoint; one that says that it cannot go on is not.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from objectives.errors import UserError
from study import cli
from study.spec import StudySpec
from study.worker_process import ORDERS, START_AGAIN, WORK

_MAX_DEATHS_IN_A_ROW = 8
"""A worker that died so often without a trial that ended in between is not started again."""

_LONGEST_PAUSE = 30.0
"""Seconds at most before a worker that keeps dying is started again."""


@dataclass
class Slot:
    """A place for one worker.

    Attributes:
        name: For people.
        environment: What its process has beyond this one's.
        num_gpus: How many train a trial together.
        process: The one that runs.
        code: The exit code that it has said.
        deaths: How often it died since a trial ended.
        starts_at: When it is to be started; None while it runs and once it has ended.
        is_over: Whether it has ended and is not started again.
    """

    name: str
    environment: Mapping[str, str]
    num_gpus: int = 1
    process: subprocess.Popen[str] | None = None
    code: int | None = None
    deaths: int = 0
    starts_at: float | None = None
    is_over: bool = False


@dataclass(frozen=True)
class Joined:
    """What the first worker says once it works on the study."""

    study: str
    total: int
    notes: Sequence[str] = ()


@dataclass
class Supervisor:
    """Workers of one study on this host.

    Attributes:
        slots: Their places.
        flags: Of `study.run`, for the workers.
        config: Its file.
        timeout: Seconds after which no further trial is started.
        code: 0, or the exit code of what stopped it.
        failures: Workers that have ended by themselves before the study had its total.
    """

    slots: list[Slot]
    flags: Mapping[str, Any]
    config: str | None
    timeout: float | None
    code: int = 0
    failures: int = 0
    _began: float = field(default_factory=time.monotonic)
    _is_open: bool = False
    _news: "queue.SimpleQueue[tuple[Slot, dict[str, Any] | None]]" = field(
        default_factory=queue.SimpleQueue
    )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Passes Ctrl-C and SIGTERM on to the workers within the block."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for slot in self.slots:
                if slot.process is not None and slot.process.poll() is None:
                    slot.process.kill()

    def start(self) -> Joined | None:
        """Starts the first worker, which opens the study; None if it could not: see `code`.

        It says itself why. The others are started, too, and wait with all imported.
        """
        first = self.slots[0]
        for slot in self.slots:
            if slot is first or slot.num_gpus == 1:
                slot.starts_at = 0.0
        while not first.is_over:
            self._start_what_is_due()
            slot, said = self._next() or (first, {})
            if said is None:
                self._ended(slot)
            elif "study" in said:
                self._is_open = True
                return Joined(**said)
        self.code = self.code or first.code or cli.ERROR
        return None

    def watch(self, on_trial: Callable[[], None]) -> None:
        """Starts the other workers, and returns when all have ended.

        Args:
            on_trial: Called whenever a trial has ended.
        """
        self._say("go")
        for slot in self.slots[1:]:
            if slot.process is None:
                slot.starts_at = 0.0
        while not all(slot.is_over for slot in self.slots):
            self._start_what_is_due()
            slot, said = self._next() or (self.slots[0], {})
            if said is None:
                self._ended(slot)
            elif "ended" in said:
                slot.deaths = 0
                on_trial()

    def _start_what_is_due(self) -> None:
        for slot in self.slots:
            if slot.starts_at is not None and self.code:
                slot.starts_at, slot.is_over = None, True
            elif slot.starts_at is not None and time.monotonic() >= slot.starts_at:
                self._start(slot)

    def _start(self, slot: Slot) -> None:
        flags = {**self.flags, "gpus": None, "workers": None}
        if self.timeout is not None:
            left = self.timeout - (time.monotonic() - self._began)
            flags["timeout"] = f"{max(left, 0.0):.3f}s"
        asked = {
            "flags": flags,
            "config": self.config,
            "name": slot.name,
            "is_open": self._is_open,
            "waits": not self._is_open and slot is not self.slots[0],
        }
        launcher = []
        if slot.num_gpus > 1:
            launcher = ["torch.distributed.run", "--standalone"]
            launcher += [f"--nproc-per-node={slot.num_gpus}", "-m"]
        slot.starts_at = slot.code = None
        slot.process = process = subprocess.Popen(
            [sys.executable, "-m", *launcher, "study.worker_process"],
            env={**os.environ, **slot.environment, WORK: json.dumps(asked, default=str)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A terminal's signals are ours to pass on.
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(slot, process), daemon=True).start()

    def _listen(self, slot: Slot, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "code" in said:
                slot.code = said["code"]
            else:
                self._news.put((slot, said))
        process.wait()
        self._news.put((slot, None))

    def _next(self) -> "tuple[Slot, dict[str, Any] | None] | None":
        """What a worker has said, None where its process has ended; or nothing for a while."""
        try:
            return self._news.get(timeout=0.2)
        except queue.Empty:
            return None

    def _ended(self, slot: Slot) -> None:
        """Decides what becomes of a worker whose process has ended."""
        code = slot.code
        if code == cli.OK or self.code:
            slot.is_over = True
        elif code in (cli.INTERRUPTED, cli.TERMINATED):
            # Asked to by study.stop, or by a signal of its own.
            slot.is_over = True
            self.code = code
        elif code in (None, START_AGAIN):
            slot.deaths += 1
            self._bury(slot)
        else:
            slot.is_over = True
            self.failures += 1

    def _bury(self, slot: Slot) -> None:
        how = "cannot use its device any more"
        if slot.code is None:
            how = f"died ({_cause(_wait(slot))})"
        if slot.deaths >= _MAX_DEATHS_IN_A_ROW:
            cli.say(
                f"{slot.name}: its process {how}, {slot.deaths} times without a trial that ended; "
                "it is not started again"
            )
            slot.is_over = True
            self.failures += 1
            return
        cli.say(f"{slot.name}: its process {how}; a new one goes on")
        pause = 0.0 if slot.deaths == 1 else min(2.0**slot.deaths, _LONGEST_PAUSE)
        slot.starts_at = time.monotonic() + pause

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.code = cli.INTERRUPTED if number == signal.SIGINT else cli.TERMINATED
        self._say(next(order for order, means in ORDERS.items() if means == number))

    def _say(self, order: str) -> None:
        for slot in self.slots:
            if slot.process is not None and slot.process.stdin is not None:
                # One that has ended hears nothing.
                with suppress(OSError):
                    slot.process.stdin.write(f"{order}\n")
                    slot.process.stdin.flush()


def _wait(slot: Slot) -> int:
    assert slot.process is not None
    return slot.process.wait()


def _cause(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def places(spec: StudySpec) -> list[Slot]:
    """The places for workers that a study asks for on this host.

    Raises:
        UserError: There is no such GPU, or more than one way to say it.
    """
    if spec.gpus is None:
        assert spec.workers is not None
        count = spec.workers
        return [
            Slot(f"worker {number}", {"CUDA_VISIBLE_DEVICES": "", **_threads(count)})
            for number in range(count)
        ]
    if spec.workers is not None:
        raise UserError(
            f"--workers {spec.workers}: --gpus {spec.gpus} has one each; leave one out"
        )
    if spec.device != "auto":
        raise UserError(f"--device {spec.device}: --gpus {spec.gpus} says it; leave one out")
    visible = _visible_gpus()
    if spec.gpus == "all":
        chosen = list(range(len(visible)))
    else:
        chosen = list(dict.fromkeys(map(int, spec.gpus.split(","))))
    missing = [number for number in chosen if number >= len(visible)]
    if missing or not chosen:
        found = f"the driver shows {len(visible)} GPUs" if visible else "the driver shows no GPU"
        raise UserError(
            f"--gpus {spec.gpus}: {found} here; name others, or use --workers N for the CPU"
        )
    share = spec.gpus_per_trial
    if len(chosen) % share:
        raise UserError(
            f"--gpus-per-trial {share}: --gpus {spec.gpus} are {len(chosen)}, which do not make "
            f"groups of {share}; name others"
        )
    order = {} if "CUDA_DEVICE_ORDER" in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    groups = [chosen[first : first + share] for first in range(0, len(chosen), share)]
    return [
        Slot(
            f"gpu {'+'.join(map(str, group))}",
            {
                "CUDA_VISIBLE_DEVICES": ",".join(visible[number] for number in group),
                **order,
                **_threads(len(chosen)),
            },
            len(group),
        )
        for group in groups
    ]


def _threads(count: int) -> dict[str, str]:
    """The cores are shared out, unless the user has done so."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}


def _visible_gpus() -> list[str]:
    """The GPUs that a process here may use, as `CUDA_VISIBLE_DEVICES` names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
