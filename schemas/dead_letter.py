"""Dead letters: what was refused, where it came from, why, and the bytes to look at or replay.

``scope`` record: the whole record was refused; particles: the record was used without the rows
listed, which are in quarantine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from schemas.arrays import Array, ArraySpec
from schemas.base import MAX_ROWS, Count, Identifier, Label, Message, Name, Sha256, WireModel
from schemas.envelope import Envelope, Record

__all__ = ["DeadLetter", "QuarantinedParticle", "dead_letter"]

_MAX_DETAIL: Final = 4096


class QuarantinedParticle(WireModel):
    """One particle that was refused."""

    row: Count
    """Row in the record it came in."""
    image_name: Name
    """Name of the particle in its source."""
    reason: Label
    """Short slug, the metric's label."""
    detail: Message
    """Why, in words."""


class DeadLetter(Record):
    """A record, or some of its particles, that could not be used."""

    SCHEMA_ID: ClassVar[str] = "DEAD"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = MappingProxyType(
        {"payload": ArraySpec(("u1",), ("bytes",), "the refused record's bytes, or their start")}
    )

    scope: Literal["record", "particles"]
    """What was refused."""
    reason: Label
    """Short slug, the metric's label."""
    detail: Message
    """Why, in words."""
    source_topic: Name
    """Topic it came from."""
    source_partition: Count
    """Partition it came from."""
    source_offset: Count
    """Offset it had there."""
    source_key: Annotated[str, Field(max_length=4096)] | None = None
    """Its key, as far as it is text."""
    source_record_id: Identifier | None = None
    """Its record id, if it could be read."""
    payload_bytes: Count
    """Size of the refused record."""
    payload_sha256: Sha256
    """Digest of the whole refused record."""
    payload_truncated: bool = False
    """Only the start of the payload is kept: it cannot be replayed from here."""
    particles: Annotated[tuple[QuarantinedParticle, ...], Field(max_length=MAX_ROWS)] = ()
    """Rows refused, when the scope is particles."""


def dead_letter(
    envelope: Envelope,
    payload: bytes,
    *,
    reason: str,
    detail: str,
    source_topic: str,
    source_partition: int,
    source_offset: int,
    source_key: bytes | None = None,
    source_record_id: str | None = None,
    particles: Sequence[QuarantinedParticle] = (),
    max_payload_bytes: int,
) -> tuple[DeadLetter, dict[str, Array]]:
    """Make a dead letter; the payload is cut at ``max_payload_bytes`` and says so.

    Text from a refused record is not trusted: it is cut and made printable, never refused again.
    """
    key = None if source_key is None else source_key.decode("utf-8", "replace")[:_MAX_DETAIL]
    kept = payload[:max_payload_bytes]
    record = DeadLetter(
        envelope=envelope,
        scope="particles" if particles else "record",
        reason=reason,
        detail=detail.encode("utf-8", "replace").decode("utf-8")[:_MAX_DETAIL],
        source_topic=source_topic,
        source_partition=source_partition,
        source_offset=source_offset,
        source_key=key,
        source_record_id=source_record_id,
        payload_bytes=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        payload_truncated=len(kept) < len(payload),
        particles=tuple(particles),
    )
    return record, {"payload": np.frombuffer(kept, dtype=np.uint8)}
