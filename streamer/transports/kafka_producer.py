"""The producer of the Kafka bus: bounded, idempotent, transactional.

This file owns what is in flight and what becomes of a transaction. A refused record is named by the
send, flush or transaction that meets it; a transaction whose end is unknown is left to the next
producer of the same id, which settles it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from streamer.transports.base import Headers, Producer, record_size_bytes
from streamer.transports.errors import (
    BusUnreachableError,
    ProducerFencedError,
    RecordTooLargeError,
    TransactionError,
    UnknownTopicError,
)
from streamer.transports.kafka import (
    CLOSE_S,
    DELIVERY_S,
    IN_FLIGHT_BYTES,
    REQUEST_S,
    in_words,
    kafka_errors,
    producer_client,
    within,
)

__all__ = ["open_producer"]

_FENCED = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)
_log = logging.getLogger(__name__)


def open_producer(
    servers: str,
    options: dict[str, Any],
    transactional_id: str | None,
    *,
    max_record_bytes: int,
    partitions_of: Callable[[str], tuple[int, ...]],
) -> Producer:
    """Return a producer; with an id, what its predecessor left open is settled first."""
    with in_words(servers):
        client = producer_client(
            options, transactional_id=transactional_id, max_record_bytes=max_record_bytes
        )
        if transactional_id is not None:
            client.init_transactions()
    return KafkaProducer(client, servers, transactional_id, max_record_bytes, partitions_of)


class KafkaProducer(Producer):
    """Appends records; see ``base.Producer``."""

    def __init__(
        self,
        client: Any,
        servers: str,
        transactional_id: str | None,
        max_record_bytes: int,
        partitions_of: Callable[[str], tuple[int, ...]],
    ) -> None:
        self._producer = client
        self._servers = servers
        self._id = transactional_id
        self._max_record_bytes = max_record_bytes
        self._partitions_of = partitions_of
        self._known: dict[str, tuple[int, ...]] = {}
        self._in_flight: deque[tuple[Any, str, int]] = deque()  # future, topic, bytes
        self._in_flight_bytes = 0
        self._in_transaction = False
        self._unsettled = False

    @contextmanager
    def _in_words(self, topic: str = "", size_bytes: int = 0) -> Iterator[None]:
        with in_words(self._servers):
            try:
                yield
            except kafka_errors.KafkaError as error:
                # After the first failure the client only repeats its words inside other errors.
                words = f"{type(error).__name__} {error}"
                if self._id is not None and any(kind.__name__ in words for kind in _FENCED):
                    self._unsettled = True
                    raise ProducerFencedError(self._id) from error
                if isinstance(error, kafka_errors.MessageSizeTooLargeError):
                    raise RecordTooLargeError(topic, size_bytes, self._max_record_bytes) from error
                raise

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
        if self._id is not None and not self._in_transaction:
            raise TransactionError("send inside `with producer.transaction():`")
        size_bytes = record_size_bytes(value, key, headers)
        if size_bytes > self._max_record_bytes:
            raise RecordTooLargeError(topic, size_bytes, self._max_record_bytes)
        if topic not in self._known:
            self._known[topic] = self._partitions_of(topic)
        if partition is not None and partition not in self._known[topic]:
            raise UnknownTopicError(f"{topic}[{partition}]")
        while self._in_flight and (
            self._in_flight[0][0].is_done or self._in_flight_bytes + size_bytes > IN_FLIGHT_BYTES
        ):
            self._settle_oldest()
        with self._in_words(topic, size_bytes):
            future = self._producer.send(
                topic,
                value=value,
                key=key,
                headers=list(headers),
                partition=partition,
                timestamp_ms=None if timestamp_ns is None else timestamp_ns // 1_000_000,
            )
        self._in_flight.append((future, topic, size_bytes))
        self._in_flight_bytes += size_bytes

    def _settle_oldest(self) -> None:
        future, topic, size_bytes = self._in_flight.popleft()
        self._in_flight_bytes -= size_bytes
        with self._in_words(topic, size_bytes):
            future.get(timeout=DELIVERY_S)

    def flush(self) -> None:
        with self._in_words():
            self._producer.flush(timeout=DELIVERY_S)
        while self._in_flight:
            self._settle_oldest()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._id is None:
            raise TransactionError("make this producer with a transactional id to use transactions")
        if self._in_transaction:
            raise TransactionError("a transaction is open already: leave it first")
        if self._unsettled:
            raise TransactionError("an earlier transaction is unsettled: open a new producer")
        with self._in_words():
            self._producer.begin_transaction()
        self._in_transaction = True
        try:
            yield
            self.flush()  # so that a refused record is named; commit would hide which it was
            self._commit()
        except BaseException:
            self._abort()
            raise
        finally:
            self._in_transaction = False
            self._in_flight.clear()
            self._in_flight_bytes = 0

    def _commit(self) -> None:
        try:
            with self._in_words():
                within(DELIVERY_S, self._producer.commit_transaction)
        except BusUnreachableError as error:
            self._unsettled = True
            raise TransactionError(
                "Kafka did not say whether the transaction was committed: start again, a new "
                "producer settles it"
            ) from error

    def _abort(self) -> None:
        """Undo the open transaction; what cannot be undone now is settled by the next producer."""
        if self._unsettled:
            return
        try:
            within(REQUEST_S, self._producer.abort_transaction)
        except kafka_errors.KafkaError as error:
            self._unsettled = True
            _log.warning("transaction %s was not aborted: %s", self._id, error)

    def close(self) -> None:
        with self._in_words():
            self._producer.close(timeout=CLOSE_S)
