"""What a bus can fail at.

Every message is one line for a person and ends with the remedy.
"""

from __future__ import annotations

__all__ = [
    "BusUnreachableError",
    "OffsetOutOfRangeError",
    "ProducerFencedError",
    "RecordTooLargeError",
    "TransactionError",
    "TransportError",
    "UnknownTopicError",
]


class TransportError(Exception):
    """Something the bus could not do; the message is one line that ends with the remedy."""


class BusUnreachableError(TransportError):
    """Nothing answered in the stated time, or it refused the credentials."""


class ProducerFencedError(TransportError):
    """A newer producer took over this transactional id; this process must stop."""

    def __init__(self, transactional_id: str) -> None:
        super().__init__(
            f"another process took over {transactional_id!r}: this one stops so that nothing is "
            "done twice; keep one consumer per session"
        )
        self.transactional_id = transactional_id


class RecordTooLargeError(TransportError):
    """A record above the limit; it was not sent."""

    def __init__(self, topic: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"a record of {size_bytes} bytes for {topic} is above the limit of {limit_bytes} "
            "bytes: send fewer particles per record, or raise the limit here and "
            "max.message.bytes of the topic"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class OffsetOutOfRangeError(TransportError):
    """The position asked for is not in the log: below the low watermark, or above the end."""

    def __init__(
        self, topic: str, partition: int, *, offset: int, low_watermark: int, end_offset: int
    ) -> None:
        if offset < low_watermark:
            why = (
                f"is below the low watermark {low_watermark}: retention removed "
                f"{low_watermark - offset} offsets that were not read; lengthen the retention of "
                "the topic and start anew, or skip the gap knowingly"
            )
        else:
            why = (
                f"is above the end {end_offset}: the topic was deleted and made again, or this is "
                "another bus; check the address, or start a new session"
            )
        super().__init__(f"offset {offset} of {topic}[{partition}] {why}")
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.low_watermark = low_watermark
        self.end_offset = end_offset

    @property
    def below_low_watermark(self) -> bool:
        """True when retention overtook the reader, False when the position is beyond the end."""
        return self.offset < self.low_watermark


class UnknownTopicError(TransportError):
    """A topic that nobody made."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"topic {topic!r} does not exist on this bus: check the prefix and the address, "
            "or make it with ensure_topics"
        )
        self.topic = topic


class TransactionError(TransportError):
    """A transaction that did not commit, or a producer used against the rules of transactions."""
