"""`dead-letter`: look at what was refused, and send it again once its cause is mended.

A replay keeps the particles' identities and gets a record id of its own, so rows that were trained
the first time count as duplicates and only the refused ones are judged again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from schemas.codec import CodecError, decode, encode
from schemas.dead_letter import DeadLetter
from schemas.envelope import to_headers
from schemas.particles import ParticleBatch
from schemas.topics import Topics
from streamer.errors import ConfigurationError
from streamer.transports.base import Transport

__all__ = ["Letter", "letters", "replay"]

_READ_AT_ONCE = 200
_POLL_WAIT_S = 1.0


@dataclass(frozen=True)
class Letter:
    """A dead letter and where it stands in its own topic."""

    number: int  # offset; what `show` and `replay` take
    record: DeadLetter
    payload: bytes


def letters(transport: Transport, topics: Topics, *, session_id: str | None) -> Iterator[Letter]:
    """Give the dead letters that the bus still holds, oldest first.

    Parameters
    ----------
    session_id
        Only those of this session; None for all.
    """
    topic = topics.dead_letter
    with transport.consumer([topic]) as consumer:
        consumer.seek_to_beginning()
        end = consumer.end_offset(topic)
        while consumer.position(topic) < end:
            for raw in consumer.poll(_READ_AT_ONCE, _POLL_WAIT_S):
                try:
                    decoded = decode(raw.value)
                except CodecError:
                    continue  # not a letter of ours
                record = decoded.record
                wanted = session_id is None or record.envelope.session_id == session_id
                if wanted and isinstance(record, DeadLetter):
                    yield Letter(raw.offset, record, bytes(decoded.arrays["payload"]))


def replay(transport: Transport, topics: Topics, letter: Letter) -> str:
    """Send a letter's record to where it came from; return the record id it got.

    Raises
    ------
    ConfigurationError
        The letter does not hold the whole record.
    """
    record = letter.record
    if record.payload_truncated:
        raise ConfigurationError(
            f"letter {letter.number} holds {len(letter.payload)} of {record.payload_bytes} bytes",
            "Send the particles again from their source",
        )
    if record.source_topic not in (topics.particles, topics.control):
        raise ConfigurationError(
            f"letter {letter.number} came from {record.source_topic}, which is not of this prefix",
            "Give the prefix of that installation",
        )
    value, new_id, headers = letter.payload, "", []
    try:
        decoded = decode(value)
    except CodecError:
        pass  # sent as it was: the reader may know by now how to read it
    else:
        if isinstance(decoded.record, ParticleBatch):
            envelope = decoded.record.envelope
            new_id = f"{envelope.record_id[:150]}-replay-{letter.number}"
            envelope = envelope.model_copy(update={"record_id": new_id})
            again = decoded.record.model_copy(update={"envelope": envelope})
            value, headers = encode(again, decoded.arrays), to_headers(envelope)
    with transport.producer() as producer:
        key = None if record.source_key is None else record.source_key.encode()
        producer.send(record.source_topic, value, key=key, headers=headers)
        producer.flush()
    return new_id
