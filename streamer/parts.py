"""What one session's loop works with, put together by the service and handed over whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from schemas.topics import Topics
from streamer.checkpoint import CheckpointStore
from streamer.config import Settings
from streamer.crashes import CrashNotes
from streamer.lease import Lease
from streamer.observe import Observer
from streamer.outbox import Outbox
from streamer.publish import Publisher
from streamer.state import EngineFactory
from streamer.transports.base import Consumer

__all__ = ["Parts", "StopRequest"]


@dataclass
class StopRequest:
    """Set by a signal; the loop looks at it between two steps."""

    requested: bool = False


@dataclass(frozen=True)
class Parts:
    """What the loop works with; made by `streamer.service`."""

    settings: Settings
    topics: Topics
    factory: EngineFactory
    particles: Consumer
    control: Consumer
    outbox: Outbox
    publisher: Publisher
    store: CheckpointStore
    crashes: CrashNotes
    lease: Lease
    observer: Observer
    roots: tuple[Path, ...]
    stop: StopRequest = field(default_factory=StopRequest)
    hook: Callable[[str], None] = lambda _: None  # tests crash the loop at its boundaries
    clock_s: Callable[[], float] = time.monotonic
