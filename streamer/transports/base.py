"""The transport contract: what a bus must promise so that the same loop runs on each of them.

This file owns the semantics. A topic partition is an ordered log with growing offsets (gaps are
allowed). A consumer is assigned every partition of its topics and must be given a position for
each before the first poll; nothing is committed or reset behind its back, and ``commit`` only
informs monitoring. Readers with isolation ``read_committed`` never see an open or aborted
transaction. Opening a producer with a transactional id settles whatever its predecessor left open
and fences it. Sizes count value, key and headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self

from streamer.transports.errors import (
    BusUnreachableError,
    OffsetOutOfRangeError,
    ProducerFencedError,
    RecordTooLargeError,
    TransactionError,
    TransportError,
    UnknownTopicError,
)

__all__ = [
    "DEFAULT_MAX_RECORD_BYTES",
    "BusUnreachableError",
    "Consumer",
    "Headers",
    "Isolation",
    "KafkaSecurity",
    "Lag",
    "OffsetOutOfRangeError",
    "Producer",
    "ProducerFencedError",
    "Record",
    "RecordTooLargeError",
    "TopicPartition",
    "TopicSpec",
    "TransactionError",
    "Transport",
    "TransportError",
    "UnknownTopicError",
    "lag",
    "record_size_bytes",
]

Headers = Sequence[tuple[str, bytes]]
Isolation = Literal["read_committed", "read_uncommitted"]

#: 1 MiB, the limit of a stock broker, less 1 KiB for the broker's own framing.
DEFAULT_MAX_RECORD_BYTES = 2**20 - 2**10


@dataclass(frozen=True)
class TopicPartition:
    """One ordered log."""

    topic: str
    partition: int = 0


@dataclass(frozen=True)
class Record:
    """One record as it was read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ns: int  # UTC, set by the producer; Kafka keeps milliseconds

    @property
    def topic_partition(self) -> TopicPartition:
        """The log this record came from."""
        return TopicPartition(self.topic, self.partition)

    @property
    def size_bytes(self) -> int:
        """Bytes of value, key and headers."""
        return record_size_bytes(self.value, self.key, self.headers)


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it should be made; ``None`` leaves the choice to the bus."""

    name: str
    partitions: int = 1
    retention_bytes: int | None = None  # per partition
    retention_s: float | None = None
    max_record_bytes: int | None = None


@dataclass(frozen=True)
class KafkaSecurity:
    """TLS and SASL options, handed to kafka-python as they are."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    key_password: str | None = field(default=None, repr=False)
    check_hostname: bool = True
    sasl_mechanism: str | None = None  # PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Lag:
    """How far a reader is behind."""

    records: int
    seconds: float


def lag(position: int, end_offset: int, *, last_timestamp_ns: int | None, now_ns: int) -> Lag:
    """Lag from the next offset to read, the end of the log and the time of the last record read.

    Seconds is the age of the last record read while anything is left to read, else 0; a clock in
    the future counts as 0. On Kafka the records include transaction markers, one per transaction.
    """
    records = max(0, end_offset - position)
    if records == 0 or last_timestamp_ns is None:
        return Lag(records, 0.0)
    return Lag(records, max(0, now_ns - last_timestamp_ns) * 1e-9)


def record_size_bytes(value: bytes, key: bytes | None, headers: Headers) -> int:
    """Bytes that count against the limit of a record."""
    return (
        len(value)
        + (len(key) if key is not None else 0)
        + sum(len(name.encode()) + len(content) for name, content in headers)
    )


class _Closes(Protocol):
    def close(self) -> None:
        """Release connections; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Producer(_Closes, Protocol):
    """Appends records to topics; not shared between threads."""

    def send(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ns: int | None = None,
    ) -> None:
        """Queue one record; errors of the bus may surface here or in ``flush``.

        Without ``partition`` the key decides (the same key, the same partition).

        Raises
        ------
        RecordTooLargeError
            Value, key and headers exceed the limit; nothing was queued.
        TransactionError
            The producer has a transactional id and no transaction is open.
        """

    def flush(self) -> None:
        """Return when every queued record is in the log, else raise TransportError."""

    def transaction(self) -> AbstractContextManager[None]:
        """All sends of the block become visible together on leaving it; an exception aborts them.

        Raises
        ------
        ProducerFencedError
            A newer producer holds the transactional id; nothing of the block became visible.
        TransactionError
            The commit did not succeed. Open a new producer: it settles what was left open.
        """


class Consumer(_Closes, Protocol):
    """Reads every partition of its topics from given positions; not shared between threads."""

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        """What this consumer is assigned, in order of topic and number."""

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Read from ``offset`` next; the range is checked by the next poll."""

    def seek_to_beginning(self) -> None:
        """Read every partition from its low watermark."""

    def seek_to_end(self) -> None:
        """Read only what comes from now on."""

    def position(self, topic: str, partition: int = 0) -> int:
        """Offset that will be read next."""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Up to ``max_records`` records, in order per partition; [] when none came in time.

        Raises
        ------
        OffsetOutOfRangeError
            A position is below the low watermark or above the end.
        TransportError
            A partition has no position yet.
        """

    def pause(self, topics: Iterable[str]) -> None:
        """Return nothing of these topics until ``resume``; positions stay."""

    def resume(self, topics: Iterable[str]) -> None:
        """Undo ``pause``."""

    def low_watermark(self, topic: str, partition: int = 0) -> int:
        """Smallest offset still in the log."""

    def end_offset(self, topic: str, partition: int = 0) -> int:
        """Offset after the last record that this isolation may see."""

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Tell monitoring how far ``group`` is; never read back by the loop."""

    def committed(self, topic: str, partition: int = 0) -> int | None:
        """What ``commit`` last said for this group; for monitoring and tests."""


class Transport(_Closes, Protocol):
    """One bus; closing it closes the producers and consumers that it made."""

    @property
    def max_record_bytes(self) -> int:
        """Largest value + key + headers that ``send`` accepts."""

    def check(self) -> None:
        """Raise BusUnreachableError, in bounded time, unless the bus answers."""

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Make the topics that are missing; those that exist are left as they are."""

    def producer(self, transactional_id: str | None = None) -> Producer:
        """Return a producer; with an id, older producers of that id are fenced from now on."""

    def consumer(
        self,
        topics: Sequence[str],
        *,
        isolation: Isolation = "read_committed",
        group: str | None = None,
    ) -> Consumer:
        """Return a consumer of every partition of ``topics``; ``group`` only names its commits."""

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        """Remove everything below ``before_offset``: the new low watermark.

        Raises
        ------
        TransportError
            ``before_offset`` is above the end.
        """
