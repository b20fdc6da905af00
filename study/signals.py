"""What a process is asked by signals: to stop after the running trial, or at once."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from study import cli

_LEAVE_SECONDS = 5.0
"""So long a trial that is to be handed back has for the epoch that it is in."""
_AGAIN_SECONDS = 0.1


class Stop:
    """Whether the process has been asked to stop.

    The first Ctrl-C lets the running trial end. SIGTERM, which comes before a machine is taken
    away, and the second Ctrl-C hand the trial back: SIGTERM after its epoch, if that ends soon.

    Attributes:
        code: 0 is no, else the exit code.
        leaving: Whether the running trial is to be handed back.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.code = 0
        self.leaving = False
        self._say = say

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals within the block."""
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGINT: self._interrupt,
            signal.SIGTERM: self._terminate,
            signal.SIGALRM: self._leave,
        }
        previous = {number: signal.signal(number, handlers[number]) for number in handlers}
        hook = sys.unraisablehook

        def swallowed(what: "sys.UnraisableHookArgs") -> None:
            # Callbacks, as imports have them, swallow what is raised in them: it comes again.
            if self.leaving and isinstance(what.exc_value, KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            else:
                hook(what)

        sys.unraisablehook = swallowed
        try:
            yield
        finally:
            sys.unraisablehook = hook
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def drain(self) -> None:
        """Lets the running trial end."""
        if not self.code:
            self.code = cli.INTERRUPTED
            self._say("stopping once the running trial has ended; again to stop at once")

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self.code:
            self._leave()
        self.drain()

    def _terminate(self, _number: int, _frame: FrameType | None) -> None:
        if self.leaving:
            self._leave()
        self.code, self.leaving = cli.TERMINATED, True
        signal.setitimer(signal.ITIMER_REAL, _LEAVE_SECONDS)

    def _leave(self, *_: object) -> None:
        self.leaving = True
        raise KeyboardInterrupt
