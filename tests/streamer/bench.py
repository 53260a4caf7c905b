"""A workbench for session tests: a bus, particles on it, and runs that may crash on purpose."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from schemas.codec import decode, encode
from schemas.control import ControlRequest
from schemas.envelope import Record, new_envelope, to_headers
from schemas.particles import OpticsGroup, ParticleBatch, ParticleGeometry, inline_batch
from schemas.topics import Topics
from streamer.config import Settings, load_settings
from streamer.observe import Observer
from streamer.parts import StopRequest
from streamer.service import Finished, ensure_topics, run_session
from streamer.transports import open_transport
from streamer.transports.base import Transport
from tests.streamer.fake_engine import FakeEngine

BOX = 16
OPTICS = (
    OpticsGroup(name="g", voltage_kv=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1),
)
_numbers = itertools.count()


class Crash(BaseException):
    """Stands for kill -9: nothing in the program may catch it."""


def crash_at(point: str, nth: int) -> Callable[[str], None]:
    """Give a hook that dies when ``point`` is reached for the nth time."""
    seen = Counter[str]()

    def hook(name: str) -> None:
        seen[name] += 1
        if name == point and seen[name] == nth:
            raise Crash(f"{point} {nth}")

    return hook


def batch_bytes(
    number: int,
    *,
    particles: int = 30,
    session: str = "s",
    record_id: str | None = None,
    box: int = BOX,
    change: Callable[[np.ndarray, dict[str, np.ndarray]], None] | None = None,
    names: list[str] | None = None,
) -> bytes:
    """Make batch ``number`` of a session: always the same particles for the same number."""
    rng = np.random.default_rng(number)
    images = rng.standard_normal((particles, box, box))
    rows = {
        "defocus_u_angstrom": np.full(particles, 15_000.0),
        "defocus_v_angstrom": np.full(particles, 14_000.0),
    }
    if change is not None:
        change(images, rows)
    envelope = new_envelope(
        ParticleBatch, session, producer="test", record_id=record_id or f"batch-{number}"
    )
    batch, arrays = inline_batch(
        envelope,
        images,
        geometry=ParticleGeometry(box=box, pixel_size_angstrom=3.0),
        optics_groups=OPTICS,
        image_names=names or [f"{i + 1:06d}@stack{number}.mrcs" for i in range(particles)],
        rows=rows,
    )
    return encode(batch, arrays)


@dataclass
class Bench:
    """One session on one bus."""

    folder: Path
    bus: str
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings: Settings = load_settings(
            None,
            {
                "bus": self.bus,
                "session": "s",
                "out": self.folder / "out",
                "engine.minibatch_initial": 40,
                "engine.n_classes": 2,
                "checkpoint.every_particles": 70,
                "snapshots.first_particles": 80,
                "snapshots.every_particles": 150,
                "snapshots.every_steps": 1000,
                "snapshots.pictures": False,
                "batch.max_wait_s": 0.01,
                "batch.max_records": 3,
                **self.overrides,
            },
        )
        self.transport: Transport = open_transport(self.settings.bus)
        self.topics = Topics(self.settings.topics_prefix)
        ensure_topics(self.transport, self.topics)
        self.producer = self.transport.producer()

    def send(self, value: bytes, *, topic: str | None = None, key: bytes | None = b"s") -> None:
        self.producer.send(topic or self.topics.particles, value, key=key)
        self.producer.flush()

    def send_batches(self, *numbers: int, **more: Any) -> None:
        for number in numbers:
            self.send(batch_bytes(number, **more))

    def control(self, action: Any) -> str:
        envelope = new_envelope(ControlRequest, "s", producer="test")
        self.producer.send(
            self.topics.control,
            encode(ControlRequest(envelope=envelope, action=action)),
            key=b"s",
            headers=to_headers(envelope),
        )
        self.producer.flush()
        return envelope.record_id

    def run(
        self,
        hook: Callable[[str], None] = lambda _: None,
        *,
        observer: Observer | None = None,
        stop: StopRequest | None = None,
    ) -> Finished:
        return run_session(
            self.settings,
            factory=FakeEngine,
            observer=observer or Observer(),
            stop=stop or StopRequest(),
            transport=self.transport,
            hook=hook,
        )

    def run_until_idle(self, hook: Callable[[str], None] = lambda _: None) -> Finished:
        """Run until everything in the log has been looked at."""
        stop = StopRequest()

        class Idle(Observer):
            def activity(self, name: str) -> None:
                stop.requested = stop.requested or name == "waiting"

        return self.run(hook, observer=Idle(), stop=stop)

    def read(self, topic: str) -> list[Record]:
        """Give every committed record of a topic."""
        return [decode(record.value).record for record in self.read_raw(topic)]

    def read_raw(self, topic: str) -> list[Any]:
        with self.transport.consumer([topic]) as consumer:
            consumer.seek_to_beginning()
            records = []
            end = consumer.end_offset(topic)
            while consumer.position(topic) < end:
                records += consumer.poll(500, 1.0)
            return records

    def close(self) -> None:
        self.producer.close()
        self.transport.close()


def fingerprint(finished: Finished) -> tuple[str, bytes, int, int]:
    engine = finished.state.engine
    assert isinstance(engine, FakeEngine)
    return engine.fingerprint()
