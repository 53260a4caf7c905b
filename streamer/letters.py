"""Dead letters for what the intake refused: a whole record, or some rows of one.

Ids follow from where the record stood in the log, so refusing it again after a crash is recognised.
The first letter carries the record's bytes; rows beyond what fits go into further letters.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.dead_letter import DeadLetter, QuarantinedParticle, dead_letter
from streamer.outbox import Outbox, Outgoing
from streamer.quarantine import Problem
from streamer.transports.base import Record

__all__ = ["particle_letters", "record_letter"]

_ROOM_BYTES = 28 << 10  # header of the letter, its first rows, key and framing
_FIRST_ROWS = 40
_MORE_ROWS = 1000
_NAME_CHARACTERS = 200
_DETAIL_CHARACTERS = 200


def record_letter(
    outbox: Outbox,
    topic: str,
    source: Record,
    *,
    reason: str,
    detail: str,
    record_id: str | None,
    max_bytes: int,
) -> Outgoing:
    """Make the letter for a record that was refused whole."""
    record, arrays = dead_letter(
        outbox.envelope(DeadLetter, _letter_id(source)),
        source.value,
        reason=reason,
        detail=detail,
        source_topic=source.topic,
        source_partition=source.partition,
        source_offset=source.offset,
        source_key=source.key,
        source_record_id=record_id,
        max_payload_bytes=_payload_bytes(outbox, max_bytes),
    )
    return Outgoing(topic, record, arrays)


def particle_letters(
    outbox: Outbox,
    topic: str,
    source: Record,
    *,
    problems: Sequence[Problem],
    image_names: Sequence[str],
    record_id: str,
    max_bytes: int,
) -> list[Outgoing]:
    """Make the letters for the rows of a record that were quarantined."""
    rows = [
        QuarantinedParticle(
            row=problem.row,
            image_name=image_names[problem.row][:_NAME_CHARACTERS],
            reason=problem.reason,
            detail=problem.detail[:_DETAIL_CHARACTERS],
        )
        for problem in problems
    ]
    starts = [0, *range(_FIRST_ROWS, len(rows), _MORE_ROWS)]
    letters = []
    for number, start in enumerate(starts):
        part = rows[start : starts[number + 1] if number + 1 < len(starts) else len(rows)]
        record, arrays = dead_letter(
            outbox.envelope(DeadLetter, _letter_id(source) + (f".{number}" if number else "")),
            source.value,
            reason=part[0].reason,
            detail=f"{len(problems)} of {len(image_names)} particles quarantined: {part[0].detail}",
            source_topic=source.topic,
            source_partition=source.partition,
            source_offset=source.offset,
            source_key=source.key,
            source_record_id=record_id,
            particles=part,
            max_payload_bytes=_payload_bytes(outbox, max_bytes) if number == 0 else 0,
        )
        letters.append(Outgoing(topic, record, arrays))
    return letters


def _letter_id(source: Record) -> str:
    return f"dead-{source.topic[-100:].lstrip('.-_')}-{source.partition}-{source.offset}"


def _payload_bytes(outbox: Outbox, max_bytes: int) -> int:
    return max(0, min(max_bytes, outbox.max_record_bytes - _ROOM_BYTES))
