"""What the transport contract promises, on every bus that claims to keep it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.transports import open_transport
from streamer.transports.base import (
    DEFAULT_MAX_RECORD_BYTES,
    OffsetOutOfRangeError,
    ProducerFencedError,
    RecordTooLargeError,
    TopicPartition,
    TopicSpec,
    TransactionError,
    TransportError,
    UnknownTopicError,
    lag,
)
from tests.buses import KAFKA, Bus, make_bus, send, take, url_of, values


@pytest.fixture(params=["memory", "sqlite", KAFKA])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    made = make_bus(url_of(request.param, request, tmp_path))
    yield made
    made.transport.close()


def test_records_come_in_the_order_they_were_sent(bus: Bus) -> None:
    sent = [b"%d" % number for number in range(50)]
    send(bus, *sent)
    records = take(bus.reader(bus.topic), 50)
    assert values(records) == sent
    assert [record.offset for record in records] == list(range(50))


def test_a_record_keeps_key_headers_and_time(bus: Bus) -> None:
    when_ns = time.time_ns() - 60_000_000_000
    with bus.transport.producer() as producer:
        producer.send(
            bus.topic,
            b"\x00value\xff",
            key=b"session",
            headers=[("ce_type", b"PART"), ("raw", b"\x80\xff\x00")],
            timestamp_ns=when_ns,
        )
        producer.send(bus.topic, b"")
    first, second = take(bus.reader(bus.topic), 2)
    assert (first.key, first.value) == (b"session", b"\x00value\xff")
    assert first.headers == (("ce_type", b"PART"), ("raw", b"\x80\xff\x00"))
    assert abs(first.timestamp_ns - when_ns) < 1_000_000
    assert (second.key, second.value, second.headers) == (None, b"", ())


def test_seek_decides_what_is_read_next(bus: Bus) -> None:
    send(bus, b"0", b"1", b"2", b"3")
    consumer = bus.transport.consumer([bus.topic])
    consumer.seek(bus.topic, 0, 2)
    assert values(take(consumer, 2)) == [b"2", b"3"]
    assert consumer.position(bus.topic) == 4
    consumer.seek(bus.topic, 0, 1)
    assert values(take(consumer, 1)) == [b"1"]
    assert consumer.position(bus.topic) == 2


def test_seek_to_end_reads_only_what_is_new(bus: Bus) -> None:
    send(bus, b"old")
    consumer = bus.transport.consumer([bus.topic])
    consumer.seek_to_end()
    send(bus, b"new")
    assert values(take(consumer, 1)) == [b"new"]


def test_polling_without_a_position_is_refused_even_after_a_commit(bus: Bus) -> None:
    send(bus, b"0", b"1")
    first = bus.transport.consumer([bus.topic], group=bus.topic)
    first.commit({TopicPartition(bus.topic): 1})
    second = bus.transport.consumer([bus.topic], group=bus.topic)
    assert second.committed(bus.topic) == 1
    with pytest.raises(TransportError, match="seek"):
        second.poll(1, 1.0)


def test_poll_honours_max_records_and_timeout(bus: Bus) -> None:
    send(bus, *[b"x"] * 10)
    consumer = bus.reader(bus.topic)
    assert len(take(consumer, 3)) == 3
    assert len(take(consumer, 7)) == 7
    started_s = time.monotonic()
    assert consumer.poll(10, 0.3) == []
    assert 0.25 < time.monotonic() - started_s < 3


def test_a_paused_topic_waits_and_the_other_flows(bus: Bus) -> None:
    send(bus, b"a1", b"a2")
    send(bus, b"b1", topic=bus.other)
    consumer = bus.reader()
    consumer.pause([bus.topic])
    assert values(take(consumer, 1)) == [b"b1"]
    assert consumer.poll(10, 0.2) == []
    consumer.resume([bus.topic])
    assert values(take(consumer, 2)) == [b"a1", b"a2"]


def test_a_flood_on_one_topic_does_not_starve_the_other(bus: Bus) -> None:
    send(bus, *[bytes(10**6)] * 30)
    send(bus, b"control", topic=bus.other)
    consumer = bus.reader()
    read = 0
    while consumer.position(bus.other) == 0:
        read += len(consumer.poll(4, 0.5))
        assert read < 30


def test_a_transaction_is_seen_only_when_committed_and_whole(bus: Bus) -> None:
    consumer = bus.reader()
    producer = bus.transport.producer("tx-" + bus.topic)
    with producer.transaction():
        producer.send(bus.topic, b"map")
        producer.send(bus.other, b"event")
        producer.flush()
        assert consumer.poll(10, 0.3) == []
    assert sorted(values(take(consumer, 2))) == [b"event", b"map"]


def test_an_aborted_transaction_is_never_seen(bus: Bus) -> None:
    producer = bus.transport.producer("tx-" + bus.topic)

    def abort() -> None:
        with producer.transaction():
            producer.send(bus.topic, b"aborted")
            producer.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        abort()
    with producer.transaction():
        producer.send(bus.topic, b"committed")
    consumer = bus.reader(bus.topic)
    assert values(take(consumer, 1)) == [b"committed"]
    assert consumer.poll(10, 0.2) == []


def test_a_newer_producer_fences_the_older_one(bus: Bus) -> None:
    older = bus.transport.producer("tx-" + bus.topic)
    with older.transaction():
        older.send(bus.topic, b"before")
    newer = bus.transport.producer("tx-" + bus.topic)
    with pytest.raises(ProducerFencedError, match="one consumer per session"), older.transaction():
        older.send(bus.topic, b"too late")
    with newer.transaction():
        newer.send(bus.topic, b"after")
    consumer = bus.reader(bus.topic)
    assert values(take(consumer, 2)) == [b"before", b"after"]
    assert consumer.poll(10, 0.2) == []


def test_a_twin_fences_in_the_middle_of_a_transaction(bus: Bus) -> None:
    older = bus.transport.producer("tx-" + bus.topic)

    def overtaken() -> None:
        with older.transaction():
            older.send(bus.topic, b"half")
            older.flush()
            with bus.transport.producer("tx-" + bus.topic) as newer, newer.transaction():
                newer.send(bus.topic, b"whole")

    with pytest.raises(ProducerFencedError):
        overtaken()
    assert values(take(bus.reader(bus.topic), 1)) == [b"whole"]


def test_transactions_are_not_mixed_with_plain_sends(bus: Bus) -> None:
    with pytest.raises(TransactionError), bus.transport.producer().transaction():
        pass
    producer = bus.transport.producer("tx-" + bus.topic)
    with pytest.raises(TransactionError, match="transaction"):
        producer.send(bus.topic, b"outside")


def test_deleted_records_raise_the_low_watermark(bus: Bus) -> None:
    send(bus, *[b"%d" % number for number in range(10)])
    bus.transport.delete_records(bus.topic, 0, 4)
    with pytest.raises(TransportError):
        bus.transport.delete_records(bus.topic, 0, 11)
    consumer = bus.transport.consumer([bus.topic])
    assert (consumer.low_watermark(bus.topic), consumer.end_offset(bus.topic)) == (4, 10)
    consumer.seek(bus.topic, 0, 1)
    with pytest.raises(OffsetOutOfRangeError, match="below the low watermark 4") as caught:
        take(consumer, 1)
    assert caught.value.below_low_watermark
    assert (caught.value.offset, caught.value.low_watermark) == (1, 4)
    consumer.seek_to_beginning()
    assert take(consumer, 1)[0].offset == 4


def test_a_position_beyond_the_end_is_refused(bus: Bus) -> None:
    send(bus, b"only")
    consumer = bus.transport.consumer([bus.topic])
    consumer.seek(bus.topic, 0, 99)
    with pytest.raises(OffsetOutOfRangeError, match="above the end 1") as caught:
        take(consumer, 1)
    assert not caught.value.below_low_watermark


def test_a_record_of_the_limit_passes_and_one_byte_more_is_refused(bus: Bus) -> None:
    assert bus.transport.max_record_bytes == DEFAULT_MAX_RECORD_BYTES
    with bus.transport.producer() as producer:
        with pytest.raises(RecordTooLargeError, match="fewer particles per record"):
            producer.send(bus.topic, bytes(DEFAULT_MAX_RECORD_BYTES), key=b"k")
        producer.send(bus.topic, bytes(DEFAULT_MAX_RECORD_BYTES - 1), key=b"k")
        producer.flush()
    (record,) = take(bus.reader(bus.topic), 1)
    assert record.size_bytes == DEFAULT_MAX_RECORD_BYTES


def test_a_topic_can_carry_larger_records(bus: Bus) -> None:
    topic = bus.topic + ".large"
    with open_transport(bus.url, max_record_bytes=3 * 2**20) as transport:
        transport.ensure_topics([TopicSpec(topic, max_record_bytes=3 * 2**20)])
        with transport.producer() as producer:
            producer.send(topic, bytes(3 * 2**20))
        consumer = transport.consumer([topic])
        consumer.seek_to_beginning()
        assert len(take(consumer, 1)[0].value) == 3 * 2**20
        with transport.producer() as producer, pytest.raises(RecordTooLargeError):
            producer.send(topic, bytes(3 * 2**20 + 1))


def test_a_record_above_the_limit_of_its_topic_is_named(bus: Bus) -> None:
    topic = bus.topic + ".small"
    bus.transport.ensure_topics([TopicSpec(topic, max_record_bytes=1000)])
    with pytest.raises(RecordTooLargeError):
        send(bus, bytes(20_000), topic=topic)
    transactional = bus.transport.producer("tx-" + topic)

    def refused() -> None:
        with transactional.transaction():
            transactional.send(bus.topic, b"goes with it")
            transactional.send(topic, bytes(20_000))

    with pytest.raises(RecordTooLargeError):
        refused()
    assert bus.reader(bus.topic).poll(1, 0.3) == []
    with transactional.transaction():
        transactional.send(bus.topic, b"still works")
    assert values(take(bus.reader(bus.topic), 1)) == [b"still works"]


def test_an_unknown_topic_is_named(bus: Bus) -> None:
    with pytest.raises(UnknownTopicError, match=r"no\.such"):
        bus.transport.consumer(["no.such"])
    with bus.transport.producer() as producer, pytest.raises(UnknownTopicError, match=r"no\.such"):
        producer.send("no.such", b"")


def test_ensuring_a_topic_again_keeps_what_it_holds(bus: Bus) -> None:
    send(bus, b"kept")
    bus.transport.ensure_topics([TopicSpec(bus.topic, partitions=4)])
    consumer = bus.reader(bus.topic)
    assert consumer.partitions == (TopicPartition(bus.topic, 0),)
    assert values(take(consumer, 1)) == [b"kept"]


def test_one_key_stays_in_one_partition(bus: Bus) -> None:
    topic = bus.topic + ".wide"
    bus.transport.ensure_topics([TopicSpec(topic, partitions=3)])
    with bus.transport.producer() as producer:
        for number in range(30):
            producer.send(topic, b"%d" % number, key=b"session-%d" % (number % 5))
        producer.send(topic, b"there", partition=2)
    records = take(bus.reader(topic), 31)
    homes = {key: set[int]() for key in {record.key for record in records}}
    for record in records:
        homes[record.key].add(record.partition)
    assert homes.pop(None) == {2}
    assert len(homes) == 5
    assert all(len(home) == 1 for home in homes.values())


def test_lag_reaches_zero_when_all_is_read(bus: Bus) -> None:
    with bus.transport.producer("tx-" + bus.topic) as producer:
        for content in (b"0", b"1"):
            with producer.transaction():
                producer.send(bus.topic, content, timestamp_ns=5_000_000_000)
    consumer = bus.reader(bus.topic)

    def behind(last_ns: int | None) -> tuple[int, float]:
        position, end = consumer.position(bus.topic), consumer.end_offset(bus.topic)
        found = lag(position, end, last_timestamp_ns=last_ns, now_ns=65_000_000_000)
        return found.records, found.seconds

    assert behind(None)[0] >= 2
    (first,) = take(consumer, 1)
    records, seconds = behind(first.timestamp_ns)
    assert records >= 1
    assert seconds == pytest.approx(60.0)
    take(consumer, 1)
    consumer.poll(1, 0.3)
    assert behind(first.timestamp_ns) == (0, 0.0)
