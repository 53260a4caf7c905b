"""What only the embedded bus does: retention, and the care for its file."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from streamer.transports import open_transport
from streamer.transports.base import (
    BusUnreachableError,
    TopicSpec,
    TransportError,
    UnknownTopicError,
)

MINUTE_NS = 60_000_000_000


def test_retention_by_bytes_keeps_the_newest_records() -> None:
    with open_transport("memory://bytes") as transport:
        transport.ensure_topics([TopicSpec("t", retention_bytes=1000)])
        producer, consumer = transport.producer(), transport.consumer(["t"])
        for _ in range(25):
            producer.send("t", bytes(100))
        assert (consumer.low_watermark("t"), consumer.end_offset("t")) == (15, 25)
        producer.send("t", bytes(5000))
        assert (consumer.low_watermark("t"), consumer.end_offset("t")) == (25, 26)


def test_retention_by_age_removes_the_old_and_keeps_the_newest() -> None:
    now_ns = time.time_ns()
    with open_transport("memory://age") as transport:
        transport.ensure_topics([TopicSpec("t", retention_s=60)])
        producer, consumer = transport.producer(), transport.consumer(["t"])
        producer.send("t", b"", timestamp_ns=now_ns - 5 * MINUTE_NS)
        assert consumer.low_watermark("t") == 0
        producer.send("t", b"", timestamp_ns=now_ns - 4 * MINUTE_NS)
        producer.send("t", b"", timestamp_ns=now_ns + 9 * MINUTE_NS)
        assert (consumer.low_watermark("t"), consumer.end_offset("t")) == (2, 3)


def test_retention_by_bytes_holds_after_records_are_deleted() -> None:
    with open_transport("memory://both") as transport:
        transport.ensure_topics([TopicSpec("t", retention_bytes=1000)])
        producer, consumer = transport.producer(), transport.consumer(["t"])
        for _ in range(10):
            producer.send("t", bytes(100))
        transport.delete_records("t", 0, 8)
        for _ in range(8):
            producer.send("t", bytes(100))
        assert consumer.low_watermark("t") == 8
        producer.send("t", bytes(100))
        assert consumer.low_watermark("t") == 9


def test_a_file_outlives_its_transport_and_a_memory_bus_does_not(tmp_path: Path) -> None:
    for url, kept in ((f"sqlite:///{tmp_path}/bus.db", True), ("memory://gone", False)):
        with open_transport(url) as transport:
            transport.ensure_topics([TopicSpec("t")])
            transport.producer().send("t", b"record")
        with open_transport(url) as transport:
            if not kept:
                with pytest.raises(UnknownTopicError):
                    transport.consumer(["t"])
                continue
            consumer = transport.consumer(["t"])
            consumer.seek_to_beginning()
            assert [record.value for record in consumer.poll(9, 1.0)] == [b"record"]


def test_two_transports_of_one_name_share_a_memory_bus() -> None:
    with open_transport("memory://shared") as first, open_transport("memory://shared") as second:
        first.ensure_topics([TopicSpec("t")])
        consumer = second.consumer(["t"])
        consumer.seek_to_beginning()
        first.producer().send("t", b"across")
        assert [record.value for record in consumer.poll(9, 1.0)] == [b"across"]


def test_closing_twice_is_harmless() -> None:
    with open_transport("memory://twice") as kept:
        transport = open_transport("memory://twice")
        producer = transport.producer()
        producer.close()
        transport.close()
        transport.close()
        kept.check()


@pytest.mark.parametrize("url", ["", "memory://", "sqlite://", "sqlite:///", "file:///x", "host:1"])
def test_an_address_that_is_not_understood_is_answered_with_the_ways_to_write_one(url: str) -> None:
    with pytest.raises(TransportError, match="kafka://host:port"):
        open_transport(url)


def test_a_missing_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BusUnreachableError, match=r"nowhere/bus\.db .*make its folder"):
        open_transport(f"sqlite:///{tmp_path}/nowhere/bus.db")


def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(TransportError, match="another program's file"):
        open_transport(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes " * 1000)
    with pytest.raises(TransportError, match="choose another bus file"):
        open_transport(f"sqlite:///{path}")


def test_a_bus_of_a_later_layout_is_refused(tmp_path: Path) -> None:
    open_transport(f"sqlite:///{tmp_path}/bus.db").close()
    connection = sqlite3.connect(tmp_path / "bus.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(TransportError, match="layout 99"):
        open_transport(f"sqlite:///{tmp_path}/bus.db")
