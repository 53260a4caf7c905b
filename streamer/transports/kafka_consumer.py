"""The consumer of the Kafka bus: reads the logs it is given from the positions it is given.

This file owns the positions: none is taken from the broker's commits, none is reset. While the
broker is away ``poll`` returns nothing; it goes on when the broker is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from streamer.transports.base import Consumer, Isolation, Record, TopicPartition
from streamer.transports.errors import OffsetOutOfRangeError, TransportError, UnknownTopicError
from streamer.transports.kafka import (
    CLOSE_S,
    REQUEST_S,
    consumer_client,
    in_words,
    kafka_errors,
    kafka_offset,
    kafka_partition,
)

__all__ = ["open_consumer"]


def open_consumer(
    servers: str,
    options: dict[str, Any],
    logs: Sequence[TopicPartition],
    *,
    isolation: Isolation,
    group: str | None,
    max_record_bytes: int,
) -> Consumer:
    """Return a consumer of ``logs``; each needs a position before the first poll."""
    with in_words(servers):
        client = consumer_client(
            options, isolation=isolation, group=group, max_record_bytes=max_record_bytes
        )
        client.assign([kafka_partition(log) for log in logs])
    return KafkaConsumer(client, servers, logs, group)


class KafkaConsumer(Consumer):
    """Reads logs; see ``base.Consumer``."""

    def __init__(
        self, client: Any, servers: str, logs: Sequence[TopicPartition], group: str | None
    ) -> None:
        self._consumer = client
        self._servers = servers
        self._group = group
        self._positions: dict[TopicPartition, int | None] = dict.fromkeys(logs)

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        return tuple(self._positions)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        log = TopicPartition(topic, partition)
        if log not in self._positions:
            raise UnknownTopicError(f"{topic}[{partition}]")
        self._consumer.seek(kafka_partition(log), offset)
        self._positions[log] = offset

    def seek_to_beginning(self) -> None:
        for log in self._positions:
            self.seek(log.topic, log.partition, self.low_watermark(log.topic, log.partition))

    def seek_to_end(self) -> None:
        for log in self._positions:
            self.seek(log.topic, log.partition, self.end_offset(log.topic, log.partition))

    def position(self, topic: str, partition: int = 0) -> int:
        log = TopicPartition(topic, partition)
        position = self._positions.get(log)
        if position is None:
            raise TransportError(f"{topic}[{partition}] has no position: seek before polling")
        with in_words(self._servers):
            # The client also steps over transaction markers, which we never see.
            now = self._consumer.position(kafka_partition(log), timeout_ms=1000)
        return position if now is None else int(now)

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        for log, position in self._positions.items():
            if position is None:
                raise TransportError(f"{log.topic}[{log.partition}] has no position: seek first")
        with in_words(self._servers):
            found = self._poll(max_records, timeout_s)
        for records in found.values():
            last = records[-1]
            self._positions[TopicPartition(last.topic, last.partition)] = last.offset + 1
        return [_record(record) for records in found.values() for record in records]

    def _poll(self, max_records: int, timeout_s: float) -> Any:
        try:
            return self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        except kafka_errors.OffsetOutOfRangeError as error:
            ((log, offset),) = error.args[0].items()
            raise OffsetOutOfRangeError(
                log.topic,
                log.partition,
                offset=offset,
                low_watermark=self.low_watermark(log.topic, log.partition),
                end_offset=self.end_offset(log.topic, log.partition),
            ) from error

    def pause(self, topics: Iterable[str]) -> None:
        self._consumer.pause(*self._of(topics))

    def resume(self, topics: Iterable[str]) -> None:
        self._consumer.resume(*self._of(topics))

    def _of(self, topics: Iterable[str]) -> list[Any]:
        names = set(topics)
        return [kafka_partition(log) for log in self._positions if log.topic in names]

    def low_watermark(self, topic: str, partition: int = 0) -> int:
        return self._offset(self._consumer.beginning_offsets, topic, partition)

    def end_offset(self, topic: str, partition: int = 0) -> int:
        return self._offset(self._consumer.end_offsets, topic, partition)

    def _offset(self, question: Callable[..., Any], topic: str, partition: int) -> int:
        log = kafka_partition(TopicPartition(topic, partition))
        with in_words(self._servers):
            return int(question([log], timeout_ms=int(REQUEST_S * 1000))[log])

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        if self._group is None:
            raise TransportError("commit needs a group: name it when making the consumer")
        offsets = {kafka_partition(log): kafka_offset(offset) for log, offset in positions.items()}
        with in_words(self._servers):
            self._consumer.commit(offsets, timeout_ms=int(CLOSE_S * 1000))

    def committed(self, topic: str, partition: int = 0) -> int | None:
        log = kafka_partition(TopicPartition(topic, partition))
        with in_words(self._servers):
            offset = self._consumer.committed(log, timeout_ms=int(REQUEST_S * 1000))
        return None if offset is None else int(offset)

    def close(self) -> None:
        with in_words(self._servers):
            self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_S * 1000))


def _record(record: Any) -> Record:
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=record.value or b"",
        headers=tuple((name, content or b"") for name, content in record.headers),
        timestamp_ns=record.timestamp * 1_000_000,
    )
