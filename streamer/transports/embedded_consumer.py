"""The consumer of the embedded bus.

This file owns the positions and the waiting: a poll that finds nothing asks again after short,
capped waits, since SQLite tells no other process of a write.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence

from streamer.transports.base import Consumer, Record, TopicPartition
from streamer.transports.embedded_log import find, read_rows
from streamer.transports.errors import TransportError, UnknownTopicError
from streamer.transports.sqlite_file import Database, Handle

__all__ = ["open_consumer"]

_WAIT_FIRST_S = 0.001
_WAIT_LONGEST_S = 0.02  # the delay that a reader adds at most; one small query per wait


def open_consumer(database: Database, topics: Sequence[str], group: str | None) -> Consumer:
    """Return a consumer of ``topics``, which owns its share of ``database``."""
    return EmbeddedConsumer(database, topics, group)


class EmbeddedConsumer(Handle, Consumer):
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
