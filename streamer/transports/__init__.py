"""Buses that carry records: Kafka for facilities, one SQLite file or memory for a workstation.

The address decides which: ``kafka://host:port,host2:port``, ``sqlite:///path/to/bus.db``,
``memory://name``.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from streamer.transports.base import (
    DEFAULT_MAX_RECORD_BYTES,
    KafkaSecurity,
    Transport,
    TransportError,
)

__all__ = ["open_transport", "sqlite_path"]


def open_transport(
    url: str,
    *,
    security: KafkaSecurity | None = None,
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES,
    connect_timeout_s: float = 10.0,
) -> Transport:
    """Open the bus at ``url``.

    ``sqlite:///x`` is relative to the working folder, ``sqlite:////x`` is not.

    Raises
    ------
    TransportError
        The address is not understood, or the bus does not answer within ``connect_timeout_s``.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not rest:
        raise _bad_address(url)
    if scheme == "kafka":
        # kafka-python is imported only by those who use it: the embedded bus starts 0.3 s sooner.
        from streamer.transports.kafka_transport import open_kafka

        return open_kafka(
            rest.rstrip("/"),
            security=security or KafkaSecurity(),
            max_record_bytes=max_record_bytes,
            connect_timeout_s=connect_timeout_s,
        )
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from streamer.transports.embedded import open_sqlite

        return open_sqlite(_path(rest), max_record_bytes=max_record_bytes)
    if scheme == "memory":
        from streamer.transports.embedded import open_memory

        return open_memory(rest, max_record_bytes=max_record_bytes)
    raise _bad_address(url)


def sqlite_path(url: str) -> Path | None:
    """Give the file of a SQLite bus, whether it is there or not; None for other buses."""
    scheme, _, rest = url.partition("://")
    return _path(rest) if scheme == "sqlite" else None


def _path(rest: str) -> Path:
    return Path(unquote(rest[1:]))


def _bad_address(url: str) -> TransportError:
    return TransportError(
        f"the bus address {url!r} is not understood: use kafka://host:port, "
        "sqlite:///path/to/bus.db or memory://name"
    )
