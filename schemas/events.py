"""Events: things worth telling a person, one sentence each, with numbers beside them."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field

from schemas.base import ClassIndex, Count, Identifier, Label, Message, Phase, Values
from schemas.envelope import Record

__all__ = ["SessionEvent"]


class SessionEvent(Record):
    """Something happened in a session."""

    SCHEMA_ID: ClassVar[str] = "EVNT"

    kind: Label
    """What kind of thing, such as phase, class_born, contrast_inverted, snapshot, session_end."""
    severity: Literal["info", "warning", "error"] = "info"
    """How much it matters."""
    message: Message
    """One sentence in words."""
    step: Count | None = None
    """Updates made so far, if that matters."""
    phase: Phase | None = None
    """Phase of the schedule, if that matters."""
    class_index: ClassIndex | None = None
    """0-based class it is about."""
    snapshot_id: Identifier | None = None
    """Snapshot it is about."""
    values: Values = Field(default_factory=lambda: MappingProxyType({}))
    """Named numbers that go with the message."""
