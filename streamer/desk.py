"""Where control requests are answered, between two steps of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from schemas.codec import CodecError, decode
from schemas.control import ControlReply, ControlRequest
from schemas.control import SessionState as Activity
from streamer.control import activity_after, apply, reply_id, session_status
from streamer.intake import Refused
from streamer.outbox import Outgoing
from streamer.parts import Parts
from streamer.receive import Receiver
from streamer.state import SessionState
from streamer.transports.base import TopicPartition

__all__ = ["Desk"]

_PERSIST = frozenset({"pause", "resume", "end"})


class Desk:
    """Answers requests for one session.

    Parameters
    ----------
    save
        Writes the state; only the loop knows how.
    ends
        Asks where the particles' log ends.
    """

    def __init__(
        self,
        parts: Parts,
        state: SessionState,
        *,
        receiver: Receiver,
        save: Callable[[], None],
        ends: Callable[[], Mapping[TopicPartition, int]],
    ) -> None:
        self._parts = parts
        self._state = state
        self._receiver = receiver
        self._save = save
        self._ends = ends
        self.activity: Activity | None = None

    def answer(self, *, wait_s: float = 0.0) -> None:
        """Do what control requests ask, save what they changed, then reply."""
        parts, state = self._parts, self._state
        for record in parts.control.poll(100, wait_s):
            state.positions[record.topic_partition] = record.offset + 1
            try:
                request = decode(record.value).record
            except CodecError as error:
                self._receiver.refuse(record, Refused(error.reason, error.detail))
                continue
            if request.envelope.session_id != parts.settings.session:
                continue
            if not isinstance(request, ControlRequest):
                self._receiver.refuse(
                    record,
                    Refused(
                        "not_control",
                        f"a {request.envelope.schema_id} record does not belong on this topic",
                        request.envelope.record_id,
                    ),
                )
                continue
            outcome, detail = apply(request, state, ends=self._ends)
            if request.action in _PERSIST:
                self._save()
            reply = ControlReply(
                envelope=parts.outbox.envelope(ControlReply, reply_id(request.envelope.record_id)),
                request_id=request.envelope.record_id,
                action=request.action,
                outcome=outcome,
                detail=detail,
                status=session_status(state, activity_after(state, self.activity)),
            )
            parts.outbox.say([Outgoing(parts.topics.control_replies, reply)])
