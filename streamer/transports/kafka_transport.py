"""The Kafka bus: topics, and the producers and consumers of one cluster.

This file owns how topics are made and asked about; a broker that is away is asked again until
``REQUEST_S`` is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from streamer.transports.base import (
    Consumer,
    Isolation,
    KafkaSecurity,
    Producer,
    TopicPartition,
    TopicSpec,
    Transport,
)
from streamer.transports.errors import TransportError, UnknownTopicError
from streamer.transports.kafka import (
    REQUEST_S,
    admin_client,
    connection_options,
    in_words,
    kafka_errors,
    kafka_partition,
    topic_options,
)
from streamer.transports.kafka_consumer import open_consumer
from streamer.transports.kafka_producer import open_producer

__all__ = ["open_kafka"]

Answer = TypeVar("Answer")


def open_kafka(
    servers: str,
    *,
    security: KafkaSecurity,
    max_record_bytes: int,
    connect_timeout_s: float,
) -> KafkaTransport:
    """Connect to ``host:port,host2:port``.

    Raises
    ------
    BusUnreachableError
        No broker answered within ``connect_timeout_s``.
    """
    options = connection_options(servers, security=security, connect_timeout_s=connect_timeout_s)
    return KafkaTransport(servers, options, max_record_bytes)


class KafkaTransport(Transport):
    """One Kafka cluster; see ``base.Transport``."""

    def __init__(self, servers: str, options: dict[str, Any], max_record_bytes: int) -> None:
        self._servers = servers
        self._options = options
        self._max_record_bytes = max_record_bytes
        self._children: list[Producer | Consumer] = []
        with in_words(servers):
            self._admin = admin_client(options)

    @property
    def max_record_bytes(self) -> int:
        return self._max_record_bytes

    def check(self) -> None:
        # A new client, because only connecting is sure to end within its time.
        with in_words(self._servers):
            admin_client(self._options).close()

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """Repeat while the broker is away: the admin client gives up at once."""
        deadline_s = time.monotonic() + REQUEST_S
        while True:
            try:
                return question()
            except kafka_errors.RetriableError as error:
                if time.monotonic() > deadline_s:
                    raise kafka_errors.KafkaTimeoutError(error) from error
            time.sleep(0.1)

    def partitions_of(self, topic: str) -> tuple[int, ...]:
        """Numbers of a topic's partitions, or raise UnknownTopicError."""
        with in_words(self._servers):
            return self._ask(lambda: self._partitions_now(topic))

    def _partitions_now(self, topic: str) -> tuple[int, ...]:
        (found,) = self._admin.describe_topics([topic])
        kind = kafka_errors.for_code(found["error_code"])
        if kind is kafka_errors.UnknownTopicOrPartitionError:
            raise UnknownTopicError(topic)
        if kind is not kafka_errors.NoError:
            raise kind(topic)
        return tuple(sorted(each["partition_index"] for each in found["partitions"]))

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        with in_words(self._servers):
            known = set(self._ask(self._admin.list_topics))
            missing = {spec.name: topic_options(spec) for spec in specs if spec.name not in known}
            if not missing:
                return
            made = self._admin.create_topics(missing, raise_errors=False)
            for topic in made["topics"]:
                kind = kafka_errors.for_code(topic["error_code"])
                if kind not in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
                    raise TransportError(
                        f"topic {topic['name']!r} could not be made ({kind.__name__}: "
                        f"{topic.get('error_message')}): make it by hand, or grant the right"
                    )
            self._admin.wait_for_topics(list(missing))

    def producer(self, transactional_id: str | None = None) -> Producer:
        child = open_producer(
            self._servers,
            self._options,
            transactional_id,
            max_record_bytes=self._max_record_bytes,
            partitions_of=self.partitions_of,
        )
        self._children.append(child)
        return child

    def consumer(
        self,
        topics: Sequence[str],
        *,
        isolation: Isolation = "read_committed",
        group: str | None = None,
    ) -> Consumer:
        child = open_consumer(
            self._servers,
            self._options,
            [
                TopicPartition(topic, number)
                for topic in sorted(set(topics))
                for number in self.partitions_of(topic)
            ],
            isolation=isolation,
            group=group,
            max_record_bytes=self._max_record_bytes,
        )
        self._children.append(child)
        return child

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        with in_words(self._servers):
            where = {kafka_partition(TopicPartition(topic, partition)): before_offset}
            self._ask(lambda: self._admin.delete_records(where))

    def close(self) -> None:
        with ExitStack() as stack:  # closes the rest when one fails
            stack.callback(self._admin.close)
            for child in self._children:
                stack.callback(child.close)
            self._children.clear()
