"""SIGTERM and SIGINT: the first asks the loop to stop, the second ends the process at once.

A thread of its own reads the signals from a socket, because Python runs handlers only in the main
thread and only between its instructions: there a second signal could wait for a whole step.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from streamer.parts import StopRequest

__all__ = ["FORCED_EXIT", "stop_on_signals"]

FORCED_EXIT = 75  # EX_TEMPFAIL: the last checkpoint is whole, start again
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_S = 0.2  # the same signal so soon is one: ``timeout`` sends it to the group as well


@contextmanager
def stop_on_signals(stop: StopRequest, *, budget_s: float) -> Iterator[None]:
    """Turn the first signal into a stop request; force the process out at the second.

    Parameters
    ----------
    budget_s
        The process is forced out too when it has not come to a clean end so long after the first.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(
        target=_watch, args=(reader, stop, budget_s), name="signals", daemon=True
    )
    watcher.start()
    before_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _noted) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        writer.close()
        watcher.join()
        reader.close()


def _noted(number: int, frame: FrameType | None) -> None:
    """Do nothing: the watcher has it already."""


def _watch(reader: socket.socket, stop: StopRequest, budget_s: float) -> None:
    deadline_s: float | None = None
    last, last_s = 0, 0.0
    while True:
        if deadline_s is not None:
            reader.settimeout(max(deadline_s - time.monotonic(), 0.001))
        try:
            numbers = reader.recv(64)
        except TimeoutError:
            _force(f"no clean end within {budget_s:.0f} s")
            return
        if not numbers:
            return
        for number in numbers:
            if number not in _SIGNALS:
                continue
            now_s = time.monotonic()
            if number == last and now_s - last_s < _SAME_S:
                continue
            last, last_s = number, now_s
            if deadline_s is not None:
                _force(f"second signal ({signal.Signals(number).name})")
            stop.requested = True
            deadline_s = time.monotonic() + budget_s
            _tell("stopping after the step under way; a second signal ends it at once")


def _force(why: str) -> None:
    _tell(f"stopped at once: {why}; the last checkpoint is whole")
    os._exit(FORCED_EXIT)


def _tell(words: str) -> None:
    """Write past Python's buffers, whose locks the main thread may hold, if anybody still reads."""
    with suppress(OSError):
        os.write(2, f"{words}\n".encode())
