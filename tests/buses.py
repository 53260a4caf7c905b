"""Buses for tests: one of each kind, with topics that no other test knows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamer.transports import open_transport
from streamer.transports.base import Consumer, Record, TopicSpec, Transport

__all__ = [
    "KAFKA",
    "PATIENCE_S",
    "Bus",
    "make_bus",
    "run_python",
    "send",
    "take",
    "url_of",
    "values",
]

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 20.0
KAFKA = pytest.param("kafka", marks=pytest.mark.kafka)


@dataclass(frozen=True)
class Bus:
    """One open bus with two topics that no other test knows."""

    url: str
    transport: Transport
    topic: str
    other: str

    def reader(self, *topics: str) -> Consumer:
        """A consumer of the topics (default: both) at their beginning."""
        consumer = self.transport.consumer(topics or (self.topic, self.other))
        consumer.seek_to_beginning()
        return consumer


def make_bus(url: str) -> Bus:
    transport = open_transport(url)
    name = uuid.uuid4().hex[:12]
    bus = Bus(url, transport, f"t{name}.a", f"t{name}.b")
    transport.ensure_topics([TopicSpec(bus.topic), TopicSpec(bus.other)])
    return bus


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if kind == "kafka":
        return f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    return f"sqlite:///{folder / 'bus.db'}" if kind == "sqlite" else f"memory://{uuid.uuid4()}"


def take(consumer: Consumer, count: int) -> list[Record]:
    """Poll until ``count`` records came; fail when they do not."""
    records: list[Record] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while len(records) < count and time.monotonic() < deadline_s:
        records += consumer.poll(count - len(records), 0.5)
    assert len(records) == count, f"{len(records)} of {count} records came"
    return records


def values(records: list[Record]) -> list[bytes]:
    return [record.value for record in records]


def send(bus: Bus, *contents: bytes, topic: str | None = None) -> None:
    with bus.transport.producer() as producer:
        for content in contents:
            producer.send(topic or bus.topic, content)
        producer.flush()


def run_python(source: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that may use the project."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
