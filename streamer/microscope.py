"""A fake microscope: plays simulated particles, or real ones from files, as a live session.

Promise: micrographs go out in order, each as one batch (or several, to keep every record within the
bus's limit), never before they are due; what was sent is in the log before it is reported. Record
ids follow from the image names, so playing the same particles again repeats the same records.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from reconstruct.io.table import ParticleTable
from schemas.codec import encode
from schemas.control import ControlRequest
from schemas.envelope import Record, new_envelope, to_headers
from schemas.particles import ParticleBatch
from schemas.split import split_batch
from schemas.topics import Topics
from streamer.adapt import PayloadKind
from streamer.microscope_sources import Batch, batches_from_micrographs
from streamer.outbox import producer_name
from streamer.transports.base import Producer, TopicSpec, Transport

__all__ = [
    "Burst",
    "Clock",
    "Pace",
    "Sent",
    "play",
]

_ROOM_BYTES = 2**15  # below the bus's limit, for key, headers and a dead letter around the record


@dataclass(frozen=True)
class Burst:
    """A stretch that comes faster: a backlog that is let go, or a change of magnification."""

    after_particles: int
    particles: int
    factor: float = 10.0


@dataclass(frozen=True)
class Pace:
    """How fast particles come; without a rate they come as fast as the bus takes them."""

    particles_per_second: float | None = None
    burst: Burst | None = None

    def __post_init__(self) -> None:
        """Refuse a pace that never ends."""
        if self.particles_per_second is not None and self.particles_per_second <= 0:
            raise ValueError(
                f"particles_per_second must be above 0, not {self.particles_per_second}"
            )
        if self.burst is not None and self.burst.factor <= 0:
            raise ValueError(f"a burst's factor must be above 0, not {self.burst.factor}")

    def due_s(self, particles: int) -> float:
        """Seconds after the start at which this many particles have been recorded."""
        if self.particles_per_second is None:
            return 0.0
        faster = 0.0
        if self.burst is not None:
            hurried = min(max(particles - self.burst.after_particles, 0), self.burst.particles)
            faster = hurried * (1.0 - 1.0 / self.burst.factor)
        return (particles - faster) / self.particles_per_second


@dataclass(frozen=True)
class Clock:
    """What the microscope needs of time; tests give it one that they turn by hand."""

    monotonic_s: Callable[[], float] = time.monotonic
    now_ns: Callable[[], int] = time.time_ns
    # Waits so many seconds; returns early, with True, when the session should stop.
    wait: Callable[[float], bool] = field(default_factory=lambda: threading.Event().wait)


@dataclass(frozen=True)
class Sent:
    """What just went out."""

    kind: Literal["particles", "end"]
    records: int  # of this micrograph
    particles: int  # of this micrograph
    total_particles: int
    elapsed_s: float
    late_s: float  # behind the pace; what the bus and the simulation cost


def play(
    transport: Transport,
    source: Iterable[Batch] | ParticleTable,
    *,
    session_id: str,
    pace: Pace | None = None,
    topics: Topics | None = None,
    payload: PayloadKind = "inline",
    reference_root: Path | None = None,
    end_session: bool = False,
    clock: Clock | None = None,
) -> Iterator[Sent]:
    """Send particles micrograph by micrograph; nothing happens until it is iterated.

    Parameters
    ----------
    transport
        The bus; missing topics are made.
    source
        Batches, as ``streamer.microscope_sources`` makes them, or a table read from a STAR or
        .cs file.
    session_id
        The acquisition that the particles belong to.
    pace
        How fast; by default as fast as possible.
    topics
        Names, by default those with the standard prefix.
    payload, reference_root
        For a table only: pixels inline, or paths (relative to the root where they lie inside).
    end_session
        Ask the session to finish once everything is out.
    clock
        Time and waiting; its ``wait`` returning True stops the session early.

    Yields
    ------
    One report per micrograph, when its records are in the log, and one for the end request.
    """
    pace = pace or Pace()
    topics = topics or Topics()
    clock = clock or Clock()
    name = producer_name("microscope")
    batches: Iterable[Batch]
    if isinstance(source, ParticleTable):
        batches = batches_from_micrographs(
            source, session_id=session_id, payload=payload, reference_root=reference_root
        )
    else:
        batches = source
    transport.ensure_topics([TopicSpec(topics.particles), TopicSpec(topics.control)])
    start_s = clock.monotonic_s()
    total = 0
    with transport.producer() as producer:
        for record, arrays in batches:
            total += record.count
            due_s = pace.due_s(total)
            early_s = due_s - (clock.monotonic_s() - start_s)
            if early_s > 0 and clock.wait(early_s):
                return
            stamped = _stamp(record, session_id, name, clock.now_ns())
            records = _send_batch(transport, producer, topics.particles, stamped, arrays)
            elapsed_s = clock.monotonic_s() - start_s
            late_s = max(0.0, elapsed_s - due_s) if pace.particles_per_second else 0.0
            yield Sent("particles", records, record.count, total, elapsed_s, late_s)
        if end_session:
            envelope = new_envelope(
                ControlRequest, session_id, producer=name, created_at_ns=clock.now_ns()
            )
            note = "The microscope has recorded its last particle."
            request = ControlRequest(envelope=envelope, action="end", note=note)
            _send(producer, topics.control, request, {})
            producer.flush()
            yield Sent("end", 1, 0, total, clock.monotonic_s() - start_s, 0.0)


def _stamp(record: ParticleBatch, session_id: str, producer: str, now_ns: int) -> ParticleBatch:
    """Say that the batch was recorded now, for this session."""
    envelope = new_envelope(
        ParticleBatch,
        session_id,
        producer=producer,
        record_id=record.envelope.record_id,
        created_at_ns=now_ns,
    )
    return record.model_copy(update={"envelope": envelope, "acquired_at_ns": now_ns})


def _send_batch(
    transport: Transport,
    producer: Producer,
    topic: str,
    record: ParticleBatch,
    arrays: Mapping[str, npt.NDArray[Any]],
) -> int:
    """Send a batch in as many records as the bus's limit asks for; return how many."""
    limit = transport.max_record_bytes
    parts = split_batch(record, arrays, max(limit - _ROOM_BYTES, limit // 2))
    for part, rows in parts:
        _send(producer, topic, part, rows)
    producer.flush()
    return len(parts)


def _send(
    producer: Producer, topic: str, record: Record, arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    envelope = record.envelope
    producer.send(
        topic,
        encode(record, arrays),
        key=envelope.session_id.encode(),
        headers=to_headers(envelope),
        timestamp_ns=envelope.created_at_ns,
    )
