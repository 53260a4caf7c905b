"""Where the service's wall time goes, by stage, without a change to the service.

Convention: a stage's time is its own, without that of stages it calls; each thread is timed apart.
Until the stream's last particle and after it (replay, last maps) are told apart.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from reconstruct.types import StepReport
from streamer import loop, press, publish, receive
from streamer.observe import Observer
from streamer.state import SessionState

__all__ = ["STAGES", "Stopwatch"]

STAGES: tuple[tuple[Any, str, str], ...] = (
    (loop.Loop, "_poll", "wait for records"),
    (receive.Receiver, "look_at", "judge"),
    (loop.Loop, "_save", "save"),
    (loop.Loop, "_publish", "publish"),
    (publish.Publisher, "make", "snapshot: findings and records"),
    (publish.Publisher, "_files", "snapshot: files and pictures"),
    (receive.Receiver, "_read", "decode"),
    (press.Press, "settle", "wait for a snapshot, announce it"),
    (loop.Loop, "_tell_lag", "lag"),
    (loop.Desk, "answer", "control requests"),
    (loop.Loop, "run", "replay and the rest"),
)
"""Class, method, and what it is called in the table."""


class Stopwatch:
    """Times `STAGES`, and an engine's ``add`` and ``step``."""

    def __init__(self, engine: type[Any]) -> None:
        self._stages = (*STAGES, (engine, "add", "add"), (engine, "step", "step"))
        self._here = threading.local()
        self._lock = threading.Lock()
        self._after = False  # the stream's last particle is learned
        self._spent: dict[tuple[bool, str, str], list[float]] = defaultdict(lambda: [0.0, 0, 0.0])

    @contextmanager
    def running(self) -> Iterator[Stopwatch]:
        """Time from here on."""
        with ExitStack() as stack:
            for owner, method, stage in self._stages:
                timed = self._timed(getattr(owner, method), stage)
                stack.enter_context(mock.patch.object(owner, method, timed))
            yield self

    def _timed(self, work: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            inner: list[float] = getattr(self._here, "inner", [])
            self._here.inner = [*inner, 0.0]
            start = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                spent = time.perf_counter() - start
                *before, children = self._here.inner
                if before:
                    before[-1] += spent
                self._here.inner = before
                thread = threading.current_thread()
                name = "loop" if thread is threading.main_thread() else thread.name
                with self._lock:
                    entry = self._spent[self._after, name, stage]
                    entry[0] += spent - children
                    entry[1] += 1
                    entry[2] = max(entry[2], spent - children)

        return timed

    def observer(self) -> Observer:
        """Give what tells the stream from what follows it."""
        stopwatch = self

        class Ends(Observer):
            def activity(self, name: str) -> None:
                stopwatch._after = stopwatch._after or name == "finishing"

            def stepped(self, report: StepReport, state: SessionState) -> None:
                """Nothing: only activities matter."""

        return Ends()

    def lines(self) -> list[str]:
        """Give the table."""
        lines = [f"{'thread and stage':<45} {'s':>8} {'calls':>8} {'longest, s':>11}"]
        for after in (False, True):
            lines.append("after the stream (replay, last maps):" if after else "while streaming:")
            mine = {key: value for key, value in self._spent.items() if key[0] is after}
            for (_, thread, stage), (spent, calls, most) in sorted(
                mine.items(), key=lambda item: (item[0][1] != "loop", item[0][1], -item[1][0])
            ):
                lines.append(
                    f"  {thread + ': ' + stage:<43} {spent:>8.2f} {calls:>8} {most:>11.3f}"
                )
        return lines
