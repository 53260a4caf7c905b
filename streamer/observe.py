"""What a session tells those who watch it: metrics, the terminal, tests.

An observer never changes the session; each method has a do-nothing default, so that an observer
names only what it cares for.
"""

from __future__ import annotations

from collections.abc import Sequence

from reconstruct.types import EngineEvent, Snapshot, StepReport
from schemas.control import SessionState as Activity
from streamer.checkpoint import Saved
from streamer.intake import Refused, Taken
from streamer.state import SessionState
from streamer.transports.base import Lag, Record, TopicPartition

__all__ = ["Observer", "Observers"]


class Observer:
    """Base of observers."""

    def started(self, state: SessionState, notes: Sequence[str]) -> None:
        """The session begins or goes on; ``notes`` say what loading had to pass over."""

    def activity(self, name: Activity) -> None:
        """The loop does something else now."""

    def taken(self, record: Record, taken: Taken, state: SessionState) -> None:
        """A record was read."""

    def refused(self, record: Record, refused: Refused) -> None:
        """A record was refused."""

    def stepped(self, report: StepReport, state: SessionState) -> None:
        """The model changed."""

    def checkpointed(self, saved: Saved, state: SessionState) -> None:
        """The state is on disk."""

    def checkpoint_failed(self, problem: str) -> None:
        """The state could not be written."""

    def published(
        self, name: str, snapshot: Snapshot, state: SessionState, delays_s: Sequence[float]
    ) -> None:
        """A snapshot is out; ``delays_s`` are the ages of the records that are new in it."""

    def found(self, event: EngineEvent) -> None:
        """Something was found out about the particles or the maps."""

    def lag(self, where: TopicPartition, lag: Lag) -> None:
        """How far behind the log the session is."""

    def close(self) -> None:
        """The session is over for this process."""


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self._members = tuple(members)

    def started(self, state: SessionState, notes: Sequence[str]) -> None:
        """Pass on."""
        for member in self._members:
            member.started(state, notes)

    def activity(self, name: Activity) -> None:
        """Pass on."""
        for member in self._members:
            member.activity(name)

    def taken(self, record: Record, taken: Taken, state: SessionState) -> None:
        """Pass on."""
        for member in self._members:
            member.taken(record, taken, state)

    def refused(self, record: Record, refused: Refused) -> None:
        """Pass on."""
        for member in self._members:
            member.refused(record, refused)

    def stepped(self, report: StepReport, state: SessionState) -> None:
        """Pass on."""
        for member in self._members:
            member.stepped(report, state)

    def checkpointed(self, saved: Saved, state: SessionState) -> None:
        """Pass on."""
        for member in self._members:
            member.checkpointed(saved, state)

    def checkpoint_failed(self, problem: str) -> None:
        """Pass on."""
        for member in self._members:
            member.checkpoint_failed(problem)

    def published(
        self, name: str, snapshot: Snapshot, state: SessionState, delays_s: Sequence[float]
    ) -> None:
        """Pass on."""
        for member in self._members:
            member.published(name, snapshot, state, delays_s)

    def found(self, event: EngineEvent) -> None:
        """Pass on."""
        for member in self._members:
            member.found(event)

    def lag(self, where: TopicPartition, lag: Lag) -> None:
        """Pass on."""
        for member in self._members:
            member.lag(where, lag)

    def close(self) -> None:
        """Pass on."""
        for member in self._members:
            member.close()
