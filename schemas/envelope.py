"""The envelope that every record carries, and its twin as Kafka headers.

The headers follow the CloudEvents Kafka binding (binary mode), so that a viewer can tell what a
record is without parsing the body. The body is the authority: readers check headers only for
routing and display.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from schemas.arrays import Array, ArraySpec, check_arrays
from schemas.base import Identifier, Name, TimestampNs, WireModel

__all__ = [
    "CONTENT_TYPE",
    "HEADER_NAMES",
    "Envelope",
    "Record",
    "from_headers",
    "new_envelope",
    "to_headers",
]

CONTENT_TYPE: Final = "application/vnd.abinitio-live"

HEADER_NAMES: Final = (
    "ce_specversion",
    "ce_id",
    "ce_source",
    "ce_type",
    "ce_subject",
    "ce_time",
    "content-type",
)
"""Names of the Kafka headers, in the order in which `to_headers` gives them."""

_TYPE: Final = re.compile(r"abinitio-live\.([A-Z]{4})\.(\d{1,5})\.(\d{1,5})")
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})Z")
_NS_PER_S: Final = 1_000_000_000

Version = Annotated[int, Field(strict=True, ge=0, le=65_535)]


class Envelope(WireModel):
    """Who says what, for which session, when."""

    schema_id: Annotated[str, Field(pattern=r"^[A-Z]{4}$")]
    """Four letters that name the kind of record."""
    major: Version
    """Version that a reader must know."""
    minor: Version
    """Version whose additions a reader may ignore."""
    session_id: Identifier
    """The acquisition the record belongs to; also the key on the topic."""
    record_id: Identifier
    """Unique within the session; the same id again is a duplicate and is ignored."""
    producer: Name
    """Program and host that made the record."""
    created_at_ns: TimestampNs
    """When it was made: UTC, nanoseconds since 1970. Never used to order or expire anything."""

    def with_record_id(self, record_id: str) -> Envelope:
        """Give this envelope another record id."""
        return Envelope.model_validate(self.model_dump() | {"record_id": record_id})


class Record(WireModel):
    """Base of every record: an envelope, the fields of the kind, and arrays beside them."""

    SCHEMA_ID: ClassVar[str]
    MAJOR: ClassVar[int] = 1
    MINOR: ClassVar[int] = 0
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {}

    envelope: Envelope
    """Identity of the record."""

    @model_validator(mode="after")
    def _envelope_fits(self) -> Self:
        """Refuse an envelope of another kind of record."""
        found = (self.envelope.schema_id, self.envelope.major)
        if found != (self.SCHEMA_ID, self.MAJOR):
            raise ValueError(
                f"the envelope says {found[0]} version {found[1]}, "
                f"this record is {self.SCHEMA_ID} version {self.MAJOR}"
            )
        return self

    def array_specs(self) -> Mapping[str, ArraySpec]:
        """Arrays that this very record may carry."""
        return self.ARRAYS

    def dimensions(self) -> Mapping[str, int]:
        """Symbols of the array shapes that the header fixes."""
        return {}

    def check_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Check that the arrays fit the header.

        Raises
        ------
        schemas.arrays.ArrayMismatchError
            A missing, unexpected or ill-shaped array, in words.
        """
        check_arrays(
            self.array_specs(),
            arrays,
            dimensions=self.dimensions(),
            allow_unknown=self.envelope.minor > self.MINOR,
        )


def new_envelope(
    record_type: type[Record],
    session_id: str,
    *,
    producer: str,
    record_id: str | None = None,
    created_at_ns: int | None = None,
) -> Envelope:
    """Make the envelope of a new record.

    Parameters
    ----------
    record_type
        The record it is for; gives schema id and version.
    session_id
        The acquisition.
    producer
        Program and host.
    record_id
        Identity; by default a random one. Give a deterministic one wherever a repeat must be
        recognised as the same record.
    created_at_ns
        UTC nanoseconds; by default the system clock.
    """
    return Envelope(
        schema_id=record_type.SCHEMA_ID,
        major=record_type.MAJOR,
        minor=record_type.MINOR,
        session_id=session_id,
        record_id=uuid.uuid4().hex if record_id is None else record_id,
        producer=producer,
        created_at_ns=time.time_ns() if created_at_ns is None else created_at_ns,
    )


def to_headers(envelope: Envelope) -> list[tuple[str, bytes]]:
    """Give the envelope as Kafka headers (CloudEvents names)."""
    seconds, nanoseconds = divmod(envelope.created_at_ns, _NS_PER_S)
    moment = datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")
    values = (
        "1.0",
        envelope.record_id,
        envelope.producer,
        f"abinitio-live.{envelope.schema_id}.{envelope.major}.{envelope.minor}",
        envelope.session_id,
        f"{moment}.{nanoseconds:09d}Z",
        CONTENT_TYPE,
    )
    return [(name, value.encode("utf-8")) for name, value in zip(HEADER_NAMES, values, strict=True)]


def from_headers(headers: Iterable[tuple[str, bytes | None]]) -> Envelope | None:
    """Read the envelope from Kafka headers; None when they are absent or not ours.

    Headers are a courtesy for viewers, so anything unreadable is simply not an envelope.
    """
    try:
        text = {name: value.decode("utf-8") for name, value in headers if value is not None}
    except UnicodeDecodeError:
        return None
    kind = _TYPE.fullmatch(text.get("ce_type", ""))
    moment = _TIME.fullmatch(text.get("ce_time", ""))
    if kind is None or moment is None:
        return None
    try:
        seconds = int(datetime.fromisoformat(f"{moment[1]}+00:00").timestamp())
        return Envelope(
            schema_id=kind[1],
            major=int(kind[2]),
            minor=int(kind[3]),
            session_id=text.get("ce_subject", ""),
            record_id=text.get("ce_id", ""),
            producer=text.get("ce_source", ""),
            created_at_ns=seconds * _NS_PER_S + int(moment[2]),
        )
    except ValueError:  # pydantic's ValidationError is one too
        return None
