"""From what the loop tells to what Prometheus sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import psutil

from reconstruct.types import EngineEvent, Snapshot, StepReport
from schemas.control import SessionState as Activity
from streamer.checkpoint import Saved
from streamer.contrast import contrast_of_sums
from streamer.intake import Refused, Taken
from streamer.metrics import Metrics
from streamer.observe import Observer
from streamer.state import SessionState
from streamer.status import Health
from streamer.transports.base import Lag, Record, TopicPartition

__all__ = ["MetricsObserver"]


class MetricsObserver(Observer):
    """Keeps a session's metrics and its health up to date."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._ready = False
        self._problem = ""
        self._stored_bytes = 0

    def health(self) -> Health:
        """Say how the session is, for the status server."""
        reasons = [] if self._ready else ["the session is still being loaded"]
        if self._problem:
            reasons.append(f"the last checkpoint failed: {self._problem}")
        return Health(live=True, ready=self._ready, reasons=tuple(reasons))

    def started(self, state: SessionState, notes: Sequence[str]) -> None:
        """Show where the session stands."""
        self._ready = True
        if state.contrast_told and contrast_of_sums(state.contrast).sign < 0:
            self._metrics.contrast_inverted()
        self._metrics.books(state.balance())

    def activity(self, name: Activity) -> None:
        """Show what the loop is doing."""
        self._metrics.state(name)

    def taken(self, record: Record, taken: Taken, state: SessionState) -> None:
        """Count a record's particles."""
        self._metrics.received(taken.received, "particles")
        if taken.duplicates:
            self._metrics.duplicates(taken.duplicates)
        for reason, count in Counter(problem.reason for problem in taken.problems).items():
            self._metrics.quarantined(reason, count)

    def refused(self, record: Record, refused: Refused) -> None:
        """Count a dead letter."""
        self._metrics.dead_lettered(refused.reason)

    def stepped(self, report: StepReport, state: SessionState) -> None:
        """Show an update."""
        self._metrics.step(report)
        self._metrics.books(state.balance())

    def checkpointed(self, saved: Saved, state: SessionState) -> None:
        """Note a checkpoint and the memory in use."""
        self._problem = ""
        self._metrics.checkpoint()
        self._metrics.books(state.balance())
        memory = psutil.virtual_memory()
        self._metrics.device_memory(memory.used, memory.total)
        self._stored_bytes = sum(
            path.stat().st_size for path in saved.path.parent.glob("rows-*.seg")
        )
        self._metrics.store(self._stored_bytes)

    def checkpoint_failed(self, problem: str) -> None:
        """Count it; the session goes on."""
        self._problem = problem
        self._metrics.checkpoint_failed()

    def published(
        self, name: str, snapshot: Snapshot, state: SessionState, delays_s: Sequence[float]
    ) -> None:
        """Show the maps' numbers."""
        self._metrics.snapshot(snapshot)
        for delay_s in delays_s:
            self._metrics.map_delay(delay_s)

    def found(self, event: EngineEvent) -> None:
        """Count it."""
        self._metrics.event(event.kind)

    def lag(self, where: TopicPartition, lag: Lag) -> None:
        """Show the lag."""
        self._metrics.lag(lag.records, lag.seconds, partition=where.partition)
