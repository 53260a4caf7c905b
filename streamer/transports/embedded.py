"""The embedded bus: ordered logs with offsets, retention and transactions in one SQLite file or in
memory.

This file owns transactions: one is buffered by its producer and written by one SQLite transaction
that first compares the producer's epoch, so a killed producer leaves nothing and a fenced one is
refused. ``embedded_log.py`` owns what the rows mean, ``sqlite_file.py`` how the file is opened and
shared.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from streamer.transports.base import (
    Consumer,
    Headers,
    Isolation,
    Producer,
    Record,
    TopicSpec,
    Transport,
    record_size_bytes,
)
from streamer.transports.embedded_consumer import open_consumer
from streamer.transports.embedded_log import append, drop, find
from streamer.transports.errors import (
    OffsetOutOfRangeError,
    ProducerFencedError,
    RecordTooLargeError,
    TransactionError,
)
from streamer.transports.sqlite_file import Database, Handle, memory_database, open_file

__all__ = ["open_memory", "open_sqlite"]


def open_sqlite(path: Path, *, max_record_bytes: int) -> EmbeddedTransport:
    """Open, or make, the bus in the file at ``path``, which several processes may share."""
    return EmbeddedTransport(lambda: open_file(path), max_record_bytes)


def open_memory(name: str, *, max_record_bytes: int) -> EmbeddedTransport:
    """Open the bus ``name`` of this process; it is gone when the last user closes it."""
    return EmbeddedTransport(lambda: memory_database(name), max_record_bytes)


class EmbeddedTransport(Handle, Transport):
    """One embedded bus; see ``base.Transport``."""

    def __init__(self, connect: Callable[[], Database], max_record_bytes: int) -> None:
        super().__init__(connect())
        self._connect = connect
        self._max_record_bytes = max_record_bytes
        self._children: list[Producer | Consumer] = []

    @property
    def max_record_bytes(self) -> int:
        return self._max_record_bytes

    def check(self) -> None:
        with self._database.reading() as connection:
            connection.execute("SELECT count(*) FROM partitions").fetchone()

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        rows = [
            (
                spec.name,
                number,
                spec.retention_bytes,
                None if spec.retention_s is None else int(spec.retention_s * 1e9),
                spec.max_record_bytes,
            )
            for spec in specs
            for number in range(spec.partitions)
        ]
        with self._database.writing() as connection:
            known = {topic for (topic,) in connection.execute("SELECT topic FROM partitions")}
            connection.executemany(
                "INSERT INTO partitions (topic, number, retention_bytes, retention_ns,"
                " max_record_bytes) VALUES (?, ?, ?, ?, ?)",
                [row for row in rows if row[0] not in known],
            )

    def producer(self, transactional_id: str | None = None) -> EmbeddedProducer:
        child = EmbeddedProducer(self._connect(), transactional_id, self._max_record_bytes)
        self._children.append(child)
        return child

    def consumer(
        self,
        topics: Sequence[str],
        *,
        isolation: Isolation = "read_committed",
        group: str | None = None,
    ) -> Consumer:
        # Nothing open is ever in the file, so both isolations read the same.
        child = open_consumer(self._connect(), topics, group)
        self._children.append(child)
        return child

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        with self._database.writing() as connection:
            log = find(connection, topic, partition)
            if not 0 <= before_offset <= log.next:
                raise OffsetOutOfRangeError(
                    topic,
                    partition,
                    offset=before_offset,
                    low_watermark=log.low,
                    end_offset=log.next,
                )
            drop(connection, log, max(log.low, before_offset))

    def close(self) -> None:
        for child in self._children:
            child.close()
        self._children.clear()
        super().close()


class EmbeddedProducer(Handle, Producer):
    """Appends records; see ``base.Producer``. Outside transactions a send is on disk at once."""

    def __init__(
        self, database: Database, transactional_id: str | None, max_record_bytes: int
    ) -> None:
        super().__init__(database)
        self._id = transactional_id
        self._max_record_bytes = max_record_bytes
        self._pending: list[Record] | None = None
        self._epoch = 0
        if transactional_id is not None:
            with database.writing() as connection:
                (self._epoch,) = connection.execute(
                    "INSERT INTO producers VALUES (?, 1)"
                    " ON CONFLICT DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
                    (transactional_id,),
                ).fetchone()

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
        if self._id is not None and self._pending is None:
            raise TransactionError("send inside `with producer.transaction():`")
        with self._database.reading() as connection:
            if partition is None:
                (count,) = connection.execute(
                    "SELECT count(*) FROM partitions WHERE topic = ?", (topic,)
                ).fetchone()
                partition = zlib.crc32(key or b"") % max(count, 1)
            log = find(connection, topic, partition)
        size_bytes = record_size_bytes(value, key, headers)
        limit_bytes = min(self._max_record_bytes, log.max_record_bytes or self._max_record_bytes)
        if size_bytes > limit_bytes:
            raise RecordTooLargeError(topic, size_bytes, limit_bytes)
        when_ns = time.time_ns() if timestamp_ns is None else timestamp_ns
        record = Record(topic, partition, -1, key, value, tuple(headers), when_ns)
        if self._pending is not None:
            self._pending.append(record)
        else:
            self._write([record])

    def flush(self) -> None:
        """Do nothing: ``send`` has written."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._id is None:
            raise TransactionError("make this producer with a transactional id to use transactions")
        if self._pending is not None:
            raise TransactionError("a transaction is open already: leave it first")
        self._pending = []
        try:
            yield
            self._write(self._pending)
        finally:
            self._pending = None

    def _write(self, records: Sequence[Record]) -> None:
        with self._database.writing() as connection:
            if self._id is not None:
                (epoch,) = connection.execute(
                    "SELECT epoch FROM producers WHERE transactional_id = ?", (self._id,)
                ).fetchone()
                if epoch != self._epoch:
                    raise ProducerFencedError(self._id)
            append(connection, records, now_ns=time.time_ns())
