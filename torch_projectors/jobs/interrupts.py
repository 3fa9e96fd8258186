"""Being asked to stop, by Ctrl-C or by the system, between two steps of a job."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .progress import say


class Interrupted(Exception):
    """The job was asked to stop; the message says what is kept."""


class Stop:
    """`requested` turns true at the first Ctrl-C or SIGTERM; a second Ctrl-C ends the process at once."""

    requested = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        say("stopping after this step; Ctrl-C again to stop at once")


@contextmanager
def deferred() -> Iterator[Stop]:
    """Signals that ask to stop only set a flag. In threads other than the main one they are left alone."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
