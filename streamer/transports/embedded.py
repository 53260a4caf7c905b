"""The embedded bus: ordered logs with offsets, retention and transactions in one SQLite file or in
memory.

This file owns transactions: one is buffered by its producer and written by one SQLite transaction
that first compares the producer's epoch, so a killed producer leaves nothing and a fenced one is
refused. ``embedded_log.py`` owns what the rows mean, ``sqlite_file.py`` how the file is opened and
shared.
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from streamer.transports.base import (
    Consumer,
    Headers,
    Isolation,
    Producer,
    Record,
    TopicPartition,
    TopicSpec,
    Transport,
    record_size_bytes,
)
from streamer.transports.embedded_log import append, drop, find, read_rows
from streamer.transports.errors import (
    OffsetOutOfRangeError,
    ProducerFencedError,
    RecordTooLargeError,
    TransactionError,
    TransportError,
    UnknownTopicError,
)
from streamer.transports.sqlite_file import Database, memory_database, open_file

__all__ = ["open_memory", "open_sqlite"]

_WAIT_FIRST_S = 0.001
_WAIT_LONGEST_S = 0.02  # the delay that a reader adds at most; one small query per wait


def open_sqlite(path: Path, *, max_record_bytes: int) -> EmbeddedTransport:
    """Open, or make, the bus in the file at ``path``, which several processes may share."""
    return EmbeddedTransport(lambda: open_file(path), max_record_bytes)


def open_memory(name: str, *, max_record_bytes: int) -> EmbeddedTransport:
    """Open the bus ``name`` of this process; it is gone when the last user closes it."""
    return EmbeddedTransport(lambda: memory_database(name), max_record_bytes)


class _Handle:
    """Something with a share of a database to give back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            self._database.close()


class EmbeddedTransport(_Handle, Transport):
    """One embedded bus; see ``base.Transport``."""

    def __init__(self, connect: Callable[[], Database], max_record_bytes: int) -> None:
        super().__init__(connect())
        self._connect = connect
        self._max_record_bytes = max_record_bytes
        self._children: list[_Handle] = []

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
    ) -> EmbeddedConsumer:
        # Nothing open is ever in the file, so both isolations read the same.
        child = EmbeddedConsumer(self._connect(), topics, group)
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


class EmbeddedProducer(_Handle, Producer):
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


class EmbeddedConsumer(_Handle, Consumer):
    """Reads logs; see ``base.Consumer``."""

    def __init__(self, database: Database, topics: Sequence[str], group: str | None) -> None:
        super().__init__(database)
        self._group = group
        self._paused: set[str] = set()
        self._turn = itertools.count()
        self._positions: dict[TopicPartition, int | None] = {}
        try:
            for topic in sorted(set(topics)):
                self._positions |= dict.fromkeys(self._logs_of(topic))
        except TransportError:
            self.close()
            raise

    def _logs_of(self, topic: str) -> list[TopicPartition]:
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT number FROM partitions WHERE topic = ? ORDER BY number", (topic,)
            ).fetchall()
        if not found:
            raise UnknownTopicError(topic)
        return [TopicPartition(topic, number) for (number,) in found]

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        return tuple(self._positions)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        if TopicPartition(topic, partition) not in self._positions:
            raise UnknownTopicError(f"{topic}[{partition}]")
        self._positions[TopicPartition(topic, partition)] = offset

    def seek_to_beginning(self) -> None:
        for log in self._positions:
            self._positions[log] = self.low_watermark(log.topic, log.partition)

    def seek_to_end(self) -> None:
        for log in self._positions:
            self._positions[log] = self.end_offset(log.topic, log.partition)

    def position(self, topic: str, partition: int = 0) -> int:
        position = self._positions.get(TopicPartition(topic, partition))
        if position is None:
            raise TransportError(f"{topic}[{partition}] has no position: seek before polling")
        return position

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        deadline_s = time.monotonic() + timeout_s
        wait_s = _WAIT_FIRST_S
        while True:
            records = self._read(max_records)
            left_s = deadline_s - time.monotonic()
            if records or left_s <= 0:
                return records
            time.sleep(min(wait_s, left_s))
            wait_s = min(2 * wait_s, _WAIT_LONGEST_S)

    def _read(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        logs = list(self._positions)
        first = next(self._turn) % len(logs) if logs else 0  # so that no topic starves the others
        with self._database.reading() as connection:
            for log in logs[first:] + logs[:first]:
                position = self.position(log.topic, log.partition)
                if log.topic not in self._paused and len(records) < max_records:
                    records += read_rows(connection, log, position, max_records - len(records))
        for record in records:
            self._positions[record.topic_partition] = record.offset + 1
        return records

    def pause(self, topics: Iterable[str]) -> None:
        self._paused.update(topics)

    def resume(self, topics: Iterable[str]) -> None:
        self._paused.difference_update(topics)

    def low_watermark(self, topic: str, partition: int = 0) -> int:
        with self._database.reading() as connection:
            return find(connection, topic, partition).low

    def end_offset(self, topic: str, partition: int = 0) -> int:
        with self._database.reading() as connection:
            return find(connection, topic, partition).next

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        if self._group is None:
            raise TransportError("commit needs a group: name it when making the consumer")
        rows = [
            (self._group, log.topic, log.partition, offset) for log, offset in positions.items()
        ]
        with self._database.writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?)", rows)

    def committed(self, topic: str, partition: int = 0) -> int | None:
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT position FROM commits WHERE group_name = ? AND topic = ? AND number = ?",
                (self._group, topic, partition),
            ).fetchone()
        return None if row is None else int(row[0])
