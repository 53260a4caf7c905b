"""Control: requests to a running session and the replies to them.

A request is answered once, by a reply that names the request's record id. Requests are safe to
repeat: pausing a paused session is done already.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from schemas.base import Count, Identifier, Message, Phase, WireModel
from schemas.envelope import Record

__all__ = ["ControlAction", "ControlReply", "ControlRequest", "SessionState", "SessionStatus"]

ControlAction = Literal["pause", "resume", "snapshot", "end", "status"]
SessionState = Literal["waiting", "running", "paused", "finishing", "ended"]


class ControlRequest(Record):
    """Ask a session to do something."""

    SCHEMA_ID: ClassVar[str] = "CTRL"

    action: ControlAction
    """pause, resume, snapshot (publish now), end (finish and publish the last maps), status."""
    note: Message = ""
    """Why, in words, for the log."""


class SessionStatus(WireModel):
    """Where a session stands; received = trained + quarantined + duplicate + in flight."""

    state: SessionState
    """What the loop is doing."""
    phase: Phase
    """Phase of the schedule."""
    step: Count
    """Updates made so far."""
    particles_received: Count
    """Particles in all accepted records."""
    particles_trained: Count
    """Distinct particles trained."""
    particles_quarantined: Count
    """Particles refused, each with a reason."""
    particles_duplicate: Count
    """Particles that had been there before."""
    particles_in_flight: Count
    """Particles accepted and not trained, those that the settings leave out included."""
    records_dead_lettered: Count = 0
    """Records refused whole."""
    last_snapshot_id: Identifier | None = None
    """Newest published snapshot."""


class ControlReply(Record):
    """The answer to a request."""

    SCHEMA_ID: ClassVar[str] = "CRPL"

    request_id: Identifier
    """The request's record id."""
    action: ControlAction
    """What was asked."""
    outcome: Literal["done", "accepted", "refused"]
    """done; accepted: under way, an event will tell; refused: detail says why."""
    detail: Message = ""
    """The outcome in words."""
    status: SessionStatus | None = None
    """The session after the request, when the replier knows it."""
