"""How a process that is asked to stop leaves its trial."""

import signal
import sys
import time

import pytest

from study.signals import Stop


class Slow:
    """Takes long to be freed; what is raised meanwhile is swallowed."""

    def __del__(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(5)


def test_an_interrupt_that_a_callback_swallows_comes_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop, hook = Stop(print), sys.unraisablehook

    def train() -> None:
        with stop.listening():
            Slow()
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert stop.leaving
    assert sys.unraisablehook is hook
    assert capsys.readouterr().err == ""
