"""SIGTERM and Ctrl-C end a run in the same clean way, wherever they find it.

Python raises what a handler raises in whatever runs at that moment, and what is raised in a
`__del__` is thrown away: the signal would be lost. There it is put off by a moment.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType

PUT_OFF_S = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal that ends the run.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C raise `Stopped`."""
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if _is_lost(frame):
        again = Timer(PUT_OFF_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    raise Stopped(number)


def _is_lost(frame: FrameType | None) -> bool:
    """Whether an exception that is raised here would be thrown away."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
