"""Put a session together from its settings and run it to its end.

What is wrong with the settings, the folders or the bus is found here, before the first particle,
and said in one line.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from schemas.topics import Topics
from streamer.checkpoint import Checkpoint, CheckpointStore
from streamer.config import Settings, training_changes, training_digest
from streamer.crashes import CrashNotes
from streamer.errors import CheckpointError, ConfigurationError
from streamer.lease import Lease
from streamer.ledger import RecentRecords
from streamer.loop import Loop, Outcome
from streamer.observe import Observer
from streamer.outbox import Outbox
from streamer.parts import Parts, StopRequest
from streamer.publish import Publisher
from streamer.state import EngineFactory, SessionState, from_checkpoint
from streamer.transports import open_transport, sqlite_path
from streamer.transports.base import KafkaSecurity, TopicSpec, Transport
from streamer.transports.errors import BusUnreachableError

__all__ = [
    "Finished",
    "ensure_topics",
    "open_bus",
    "open_existing_bus",
    "run_session",
    "writable_folder",
]


@dataclass(frozen=True)
class Finished:
    """How a session ended for this process."""

    outcome: Outcome
    state: SessionState
    stopped: str = ""  # in words, if it was stopped before its end


def open_bus(settings: Settings) -> Transport:
    """Open the configured bus.

    Raises
    ------
    TransportError
        It does not answer, or the address is not understood.
    """
    kafka = settings.kafka

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    security = KafkaSecurity(
        protocol=kafka.security_protocol,
        ca_file=text(kafka.ca_file),
        certificate_file=text(kafka.certificate_file),
        key_file=text(kafka.key_file),
        sasl_mechanism=kafka.sasl_mechanism,
        username=kafka.sasl_username,
        password=None if kafka.sasl_password is None else kafka.sasl_password.get_secret_value(),
    )
    return open_transport(settings.bus, security=security)


def open_existing_bus(settings: Settings) -> Transport:
    """Open the configured bus for those who have no use for a new, empty one.

    Raises
    ------
    TransportError
        There is none, it does not answer, or the address is not understood.
    """
    path = sqlite_path(settings.bus)
    if path is not None and not path.exists():
        raise BusUnreachableError(f"no such bus {settings.bus}: start serve first, or mend --bus")
    return open_bus(settings)


def ensure_topics(transport: Transport, topics: Topics) -> None:
    """Make the topics that are missing, each with one partition: one session, one order."""
    transport.ensure_topics(
        [TopicSpec(name, max_record_bytes=transport.max_record_bytes) for name in topics.all]
    )


def writable_folder(folder: Path) -> Path:
    """Make a folder if needed and prove that files can be written into it.

    Raises
    ------
    ConfigurationError
        They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError(
                f"{folder} is a file, not a folder", "Give another with --out"
            ) from error
        raise ConfigurationError(
            f"cannot write into {folder}: {error.strerror or error}",
            "Give another folder with --out, or change its permissions",
        ) from error
    return folder


def run_session(
    settings: Settings,
    *,
    factory: EngineFactory,
    observer: Observer,
    stop: StopRequest,
    transport: Transport | None = None,
    hook: Callable[[str], None] = lambda _: None,
) -> Finished:
    """Run one session until it ends or a stop is requested.

    Parameters
    ----------
    factory
        Makes the engine.
    transport
        An open bus; by default the configured one.

    Raises
    ------
    ServiceError, TransportError
        The session cannot start or cannot go on.
    """
    with ExitStack() as stack:
        if transport is None:
            transport = stack.enter_context(open_bus(settings))
        topics = Topics(settings.topics_prefix)
        ensure_topics(transport, topics)
        out = writable_folder(settings.out)  # the bus answers: something will be written
        outbox = Outbox(transport, topics, settings.session)  # fences the older process
        stack.callback(outbox.close)
        folder = writable_folder(settings.state_folder)
        lease = stack.enter_context(Lease(folder, wait_s=settings.limits.stop_budget_s))
        store = CheckpointStore(folder, keep=settings.checkpoint.keep)
        checkpoint = store.load()
        state = _state(checkpoint, settings, factory)
        publisher = Publisher(
            outbox,
            topics,
            session_id=settings.session,
            out=out,
            digest=training_digest(settings),
            inline_volumes=settings.snapshots.inline_volumes,
            pictures=settings.snapshots.pictures,
            symmetry=settings.engine.symmetry,
            hook=hook,
            tell=observer.found,
        )
        group = f"{topics.prefix}.{settings.session}"
        parts = Parts(
            settings=settings,
            topics=topics,
            factory=factory,
            particles=stack.enter_context(transport.consumer([topics.particles], group=group)),
            control=stack.enter_context(transport.consumer([topics.control])),
            outbox=outbox,
            publisher=publisher,
            store=store,
            crashes=CrashNotes(folder / "crashes.json"),
            lease=lease,
            observer=observer,
            roots=settings.roots,
            stop=stop,
            hook=hook,
        )
        observer.started(state, () if checkpoint is None else checkpoint.notes)
        outcome = Loop(parts, state).run(fresh=checkpoint is None)
    return Finished(outcome, state)


def _state(
    checkpoint: Checkpoint | None, settings: Settings, factory: EngineFactory
) -> SessionState:
    """Give the session as it was left, or a new one."""
    limit = settings.limits.recent_records
    if checkpoint is None:
        return SessionState(recent=RecentRecords(limit))
    found = checkpoint.meta["session"]
    if found != settings.session:
        raise CheckpointError(
            f"{settings.state_folder} holds session {found!r}, not {settings.session!r}",
            "Give this session its own --out, or name the session that is there",
        )
    digest = checkpoint.meta["training_digest"]
    if digest != training_digest(settings):
        for device in ("cpu", "cuda"):
            if digest == training_digest(settings.model_copy(update={"device": device})):
                raise CheckpointError(
                    f"session {found!r} was begun with --device {device}, whose results differ in "
                    f"their last bits from those of {settings.device}",
                    f"Go on with --device {device}, or begin a new session with another --session "
                    "and --out",
                )
        known = checkpoint.meta.get("training")  # not of checkpoints of earlier states
        changes = "" if known is None else ": " + "; ".join(training_changes(settings, known))
        raise CheckpointError(
            f"session {found!r} was begun with other engine settings{changes}",
            "Restore them to go on, or begin a new session with another --session and --out",
        )
    return from_checkpoint(checkpoint, factory, settings.engine, recent_limit=limit)
