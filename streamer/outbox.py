"""What a session says, each thing once: transactions with record ids that follow from its state.

Ids are derived, never random. After a restart the outbox reads back what was announced since the
checkpoint, and saying it again is then a no-op: a crash between saying and noting costs nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from schemas.codec import encode
from schemas.envelope import Envelope, Record, from_headers, new_envelope, to_headers
from schemas.topics import Topics
from streamer.errors import ServiceError, TwinError
from streamer.transports.base import Consumer, TopicPartition, Transport
from streamer.transports.errors import ProducerFencedError

__all__ = ["Outbox", "Outgoing", "producer_name"]

Array = npt.NDArray[Any]

_READ_AT_ONCE = 500
_READ_WAIT_S = 0.5
_EMPTY_READS = 20  # 10 s without a record short of the end: the bus is not well


@dataclass(frozen=True)
class Outgoing:
    """One record to send."""

    topic: str
    record: Record
    arrays: Mapping[str, Array] = field(default_factory=dict)


def producer_name(role: str = "abinitio-live") -> str:
    """Name the program and host, for envelopes."""
    return f"{role}@{platform.node() or 'localhost'}"


class Outbox:
    """The session's transactional producer.

    Opening one fences the session's older process.

    Parameters
    ----------
    transport
        The bus.
    topics
        Names.
    session_id
        Key of every record and base of the transactional id.
    """

    def __init__(self, transport: Transport, topics: Topics, session_id: str) -> None:
        self._session_id = session_id
        self._topics = (
            topics.volumes,
            topics.assignments,
            topics.events,
            topics.control_replies,
            topics.dead_letter,
        )
        self._producer = transport.producer(f"{topics.prefix}.{session_id}")
        self._reader: Consumer = transport.consumer(self._topics)
        self._announced: set[str] = set()
        self._name = producer_name()
        self.max_record_bytes = transport.max_record_bytes

    def envelope(self, kind: type[Record], record_id: str) -> Envelope:
        """Make the envelope of a record with a derived id."""
        return new_envelope(kind, self._session_id, producer=self._name, record_id=record_id)

    def said(self, record_id: str) -> bool:
        """Tell whether a record of this id is out."""
        return record_id in self._announced

    def recall(self, since: Mapping[TopicPartition, int]) -> None:
        """Read back what this session announced after the positions of its checkpoint."""
        ends = self.ends()
        for where in self._reader.partitions:
            low = self._reader.low_watermark(where.topic, where.partition)
            self._reader.seek(where.topic, where.partition, max(low, since.get(where, low)))
        empty_reads = 0
        while any(self._reader.position(w.topic, w.partition) < end for w, end in ends.items()):
            records = self._reader.poll(_READ_AT_ONCE, _READ_WAIT_S)
            empty_reads = 0 if records else empty_reads + 1
            if empty_reads > _EMPTY_READS:
                raise ServiceError(
                    "what this session announced before could not be read back from the bus",
                    "Check the broker, then start again",
                )
            for record in records:
                envelope = from_headers(record.headers)
                if envelope is not None and envelope.session_id == self._session_id:
                    self._announced.add(envelope.record_id)

    def ends(self) -> dict[TopicPartition, int]:
        """Give where the output topics end now; the next checkpoint keeps this."""
        return {
            where: self._reader.end_offset(where.topic, where.partition)
            for where in self._reader.partitions
        }

    def say(self, records: Sequence[Outgoing]) -> bool:
        """Send records together, leaving out those that are out already.

        Returns
        -------
        Whether anything was sent.

        Raises
        ------
        TwinError
            A newer process has taken over this session.
        """
        new = [each for each in records if not self.said(each.record.envelope.record_id)]
        if not new:
            return False
        try:
            with self._producer.transaction():
                for outgoing in new:
                    envelope = outgoing.record.envelope
                    self._producer.send(
                        outgoing.topic,
                        encode(outgoing.record, outgoing.arrays),
                        key=self._session_id.encode(),
                        headers=to_headers(envelope),
                        timestamp_ns=envelope.created_at_ns,
                    )
        except ProducerFencedError as error:
            raise TwinError(
                "a newer process has taken over this session, so this one stops",
                "Keep one process per session",
            ) from error
        self._announced.update(outgoing.record.envelope.record_id for outgoing in new)
        return True

    def close(self) -> None:
        """Release the connections."""
        self._producer.close()
        self._reader.close()
