"""Requests to a running session: what each does to the state, and how to ask from outside.

A request changes the state first, the checkpoint holds the change, then the reply goes out; a
request whose reply was lost may be repeated, since doing it twice is doing it once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from schemas.codec import CodecError, decode, encode
from schemas.control import (
    ControlAction,
    ControlReply,
    ControlRequest,
    SessionState,
    SessionStatus,
)
from schemas.envelope import new_envelope, to_headers
from schemas.topics import Topics
from streamer.errors import ConfigurationError
from streamer.outbox import producer_name
from streamer.state import SessionState as State
from streamer.transports.base import TopicPartition, Transport

__all__ = ["activity_after", "apply", "ask", "reply_id", "session_status"]

_POLL_WAIT_S = 0.2

Outcome = Literal["done", "accepted", "refused"]


def apply(
    request: ControlRequest, state: State, *, ends: Callable[[], Mapping[TopicPartition, int]]
) -> tuple[Outcome, str]:
    """Do what a request asks; return the outcome and words for it.

    Parameters
    ----------
    ends
        Gives where the particles topic ends now: what is in the log when the session is asked to
        end is still trained.
    """
    match request.action:
        case "status":
            return "done", ""
        case "pause":
            state.paused = True
            return "done", "Paused; particles wait in the log."
        case "resume":
            state.paused = False
            return "done", "Running."
        case "snapshot":
            if state.engine is None or state.step == 0:
                return "refused", "There are no maps yet: no particles have been trained."
            state.snapshot_due = "request"
            return "accepted", f"The maps of step {state.step} are being published."
        case "end":
            if state.end_at is None:
                state.end_at = dict(ends())
            state.paused = False
            return "accepted", "Training what is in the log, then publishing the last maps."


def activity_after(state: State, shown: SessionState | None) -> SessionState:
    """Say what a session is doing now that a request has been obeyed.

    Parameters
    ----------
    shown
        What it did before; the loop shows the new activity only when it goes on.
    """
    if shown in ("finishing", "ended"):
        return shown
    if state.paused:
        return "paused"
    if shown in (None, "paused"):
        return "running" if state.engine is not None and state.engine.ready else "waiting"
    return shown


def session_status(state: State, activity: SessionState) -> SessionStatus:
    """Say where a session stands."""
    books = state.balance()
    return SessionStatus(
        state=activity,
        phase=state.phase,
        step=state.step,
        particles_received=books.received,
        particles_trained=books.trained,
        particles_quarantined=books.quarantined,
        particles_duplicate=books.duplicate,
        particles_in_flight=books.in_flight,
        records_dead_lettered=state.ledger.dead_lettered.total(),
        last_snapshot_id=state.last_snapshot_id,
    )


def reply_id(request_id: str) -> str:
    """Give the id of the reply to a request."""
    if len(request_id) > 150:
        request_id = hashlib.sha256(request_id.encode()).hexdigest()
    return f"{request_id}-reply"


def ask(
    transport: Transport,
    topics: Topics,
    *,
    session_id: str,
    action: str,
    timeout_s: float,
    note: str = "",
) -> ControlReply | None:
    """Send a request and wait for the reply; None when none came in time.

    Raises
    ------
    ConfigurationError
        There is no such action.
    """
    if action not in get_args(ControlAction):
        raise ConfigurationError(
            f"there is no control action {action!r}", f"Use one of {get_args(ControlAction)}"
        )
    envelope = new_envelope(ControlRequest, session_id, producer=producer_name("control"))
    request = ControlRequest.model_validate(
        {"envelope": envelope.model_dump(), "action": action, "note": note}
    )
    with transport.consumer([topics.control_replies]) as replies, transport.producer() as producer:
        replies.seek_to_end()
        producer.send(
            topics.control, encode(request), key=session_id.encode(), headers=to_headers(envelope)
        )
        producer.flush()
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for record in replies.poll(100, _POLL_WAIT_S):
                try:
                    reply = decode(record.value).record
                except CodecError:
                    continue  # not ours to judge: somebody else's bytes on this topic
                if isinstance(reply, ControlReply) and reply.request_id == envelope.record_id:
                    return reply
    return None
