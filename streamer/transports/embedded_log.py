"""What the rows of the embedded bus mean: append, read, drop, expire.

This file owns the numbering. Row ``id`` of ``log`` is ``partition id * 2**40 + offset``, so the
primary key is the order of reading; offsets of a partition have no gaps. Every function runs
inside the caller's SQLite transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from streamer.transports.base import Record, TopicPartition
from streamer.transports.errors import OffsetOutOfRangeError, UnknownTopicError

__all__ = ["Log", "append", "drop", "expire", "find", "read_rows"]

_ROWS = 2**40  # offsets per partition: a record a microsecond for 12 days


@dataclass(frozen=True)
class Log:
    """One row of ``partitions``."""

    id: int
    low: int
    next: int
    size_bytes: int
    retention_bytes: int | None
    retention_ns: int | None
    max_record_bytes: int | None


def find(connection: sqlite3.Connection, topic: str, partition: int) -> Log:
    """Look a partition up, or raise UnknownTopicError."""
    row = connection.execute(
        "SELECT id, low, next, size_bytes, retention_bytes, retention_ns, max_record_bytes"
        " FROM partitions WHERE topic = ? AND number = ?",
        (topic, partition),
    ).fetchone()
    if row is None:
        raise UnknownTopicError(topic)
    return Log(*row)


def drop(connection: sqlite3.Connection, log: Log, low: int) -> None:
    """Remove the offsets below ``low``."""
    rows = (log.id * _ROWS + log.low, log.id * _ROWS + low)
    connection.execute(
        "UPDATE partitions SET low = ?, size_bytes = size_bytes -"
        " (SELECT coalesce(sum(size_bytes), 0) FROM log WHERE id >= ? AND id < ?) WHERE id = ?",
        (low, *rows, log.id),
    )
    connection.execute("DELETE FROM log WHERE id >= ? AND id < ?", rows)


def expire(connection: sqlite3.Connection, log: Log, now_ns: int) -> None:
    """Apply retention; the newest record always stays."""
    low, size_bytes = log.low, log.size_bytes
    rows = connection.execute(
        "SELECT timestamp_ns, size_bytes FROM log WHERE id >= ? AND id < ? ORDER BY id",
        (log.id * _ROWS + low, log.id * _ROWS + log.next - 1),
    )
    for timestamp_ns, row_bytes in rows:
        too_much = log.retention_bytes is not None and size_bytes > log.retention_bytes
        too_old = log.retention_ns is not None and timestamp_ns < now_ns - log.retention_ns
        if not (too_much or too_old):
            break
        low, size_bytes = low + 1, size_bytes - row_bytes
    rows.close()
    if low > log.low:
        drop(connection, log, low)


def append(connection: sqlite3.Connection, records: Sequence[Record], *, now_ns: int) -> None:
    """Give the records the next offsets, then apply retention."""
    for record in records:
        log = find(connection, record.topic, record.partition)
        connection.execute(
            "INSERT INTO log (id, timestamp_ns, size_bytes, key, headers, value)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                log.id * _ROWS + log.next,
                record.timestamp_ns,
                record.size_bytes,
                record.key,
                json.dumps([(name, text.decode("latin-1")) for name, text in record.headers]),
                record.value,
            ),
        )
        connection.execute(
            "UPDATE partitions SET next = next + 1, size_bytes = size_bytes + ? WHERE id = ?",
            (record.size_bytes, log.id),
        )
    for topic, partition in {(record.topic, record.partition) for record in records}:
        expire(connection, find(connection, topic, partition), now_ns)


def read_rows(
    connection: sqlite3.Connection, where: TopicPartition, position: int, max_records: int
) -> list[Record]:
    """Read up to ``max_records`` from ``position`` on."""
    log = find(connection, where.topic, where.partition)
    if not log.low <= position <= log.next:
        raise OffsetOutOfRangeError(
            where.topic,
            where.partition,
            offset=position,
            low_watermark=log.low,
            end_offset=log.next,
        )
    if position == log.next:
        return []
    first = log.id * _ROWS
    rows = connection.execute(
        "SELECT id, key, headers, timestamp_ns, value FROM log"
        " WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        (first + position, first + log.next, max_records),
    )
    return [
        Record(
            topic=where.topic,
            partition=where.partition,
            offset=row_id - first,
            key=key,
            value=value,
            headers=tuple((name, text.encode("latin-1")) for name, text in json.loads(headers)),
            timestamp_ns=timestamp_ns,
        )
        for row_id, key, headers, timestamp_ns, value in rows
    ]
