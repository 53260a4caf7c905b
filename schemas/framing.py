"""The frame around a record: prefix, JSON header and array table, checked claim by claim.

Every promise the bytes make is checked here before anything is allocated for it. Lengths are
Python integers throughout, so no product can overflow.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import Field
from pydantic_core import from_json

from schemas.arrays import DTYPES
from schemas.assignments import AssignmentBatch
from schemas.base import WireModel
from schemas.control import ControlReply, ControlRequest
from schemas.dead_letter import DeadLetter
from schemas.envelope import Record
from schemas.events import SessionEvent
from schemas.particles import ParticleBatch
from schemas.volumes import VolumeSnapshot

__all__ = [
    "ALIGNMENT_BYTES",
    "CODEC_VERSION",
    "DEFAULT_LIMITS",
    "MAGIC",
    "MAX_TOTAL_BYTES",
    "PREFIX",
    "REASONS",
    "RECORD_TYPES",
    "ArrayEntry",
    "CodecError",
    "Limits",
    "check_prefix",
    "check_table",
    "find_record_type",
    "read_json",
]

MAGIC: Final = b"ABIL"
CODEC_VERSION: Final = 1
ALIGNMENT_BYTES: Final = 64
PREFIX: Final = struct.Struct("<4sHHII")
_MAX_DEPTH: Final = 12  # our deepest record needs 5; the parser itself stops at about 200
MAX_TOTAL_BYTES: Final = 2**32 - 1  # what the prefix can say

RECORD_TYPES: Final[Mapping[str, type[Record]]] = MappingProxyType(
    {
        kind.SCHEMA_ID: kind
        for kind in (
            ParticleBatch,
            VolumeSnapshot,
            AssignmentBatch,
            SessionEvent,
            ControlRequest,
            ControlReply,
            DeadLetter,
        )
    }
)
"""Every record this version can read, by schema id."""

REASONS: Final = (
    "array_mismatch",
    "array_missing",
    "array_unexpected",
    "bad_array_table",
    "bad_dtype",
    "bad_header",
    "bad_magic",
    "header_too_deep",
    "header_too_large",
    "invalid_record",
    "misaligned",
    "out_of_bounds",
    "overlapping",
    "size_mismatch",
    "too_large",
    "trailing_bytes",
    "truncated",
    "unknown_codec_version",
    "unknown_schema",
)
"""Every ``CodecError.reason``, for metrics that must know their labels beforehand."""


class CodecError(ValueError):
    """Bytes that are not a record; ``reason`` is one of `REASONS`, ``detail`` says it in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Limits:
    """How much a reader is willing to look at."""

    total_bytes: int = 256 * 2**20
    header_bytes: int = 8 * 2**20


DEFAULT_LIMITS: Final = Limits()


class ArrayEntry(WireModel):
    """One row of the header's array table."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]
    """Name of the array."""
    dtype: Annotated[str, Field(max_length=8)]
    """Element type, little endian: one of `schemas.arrays.DTYPES`."""
    shape: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=0, lt=2**31)], ...], Field(max_length=8)
    ]
    """Lengths of the axes, C order."""
    offset: Annotated[int, Field(strict=True, ge=0, lt=2**32)]
    """First byte, counted from the start of the record; a multiple of 64."""
    nbytes: Annotated[int, Field(strict=True, ge=0, lt=2**32)]
    """Size: product of the shape times the element size."""


def check_prefix(data: memoryview, *, total: int, limits: Limits) -> int:
    """Check the fixed prefix; give the end of the JSON header."""
    if total > limits.total_bytes:
        raise CodecError("too_large", f"{total} bytes, the limit is {limits.total_bytes}")
    if total < PREFIX.size:
        raise CodecError("truncated", f"{total} bytes are too few for a record")
    magic, version, flags, header_bytes, said_total = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CodecError("bad_magic", f"starts with {magic!r}, not {MAGIC!r}")
    if version != CODEC_VERSION or flags != 0:
        raise CodecError(
            "unknown_codec_version",
            f"codec version {version} flags {flags}, this reader knows {CODEC_VERSION} flags 0",
        )
    if header_bytes > limits.header_bytes:
        raise CodecError(
            "header_too_large",
            f"header of {header_bytes} bytes, the limit is {limits.header_bytes}",
        )
    if said_total > total:
        raise CodecError("truncated", f"{total} bytes of {said_total}")
    if said_total < total:
        raise CodecError("trailing_bytes", f"{total} bytes where {said_total} were announced")
    header_end = PREFIX.size + int(header_bytes)
    if header_end > total:
        raise CodecError("truncated", f"the header ends at {header_end} of {total} bytes")
    return header_end


def read_json(text: bytes) -> dict[str, Any]:
    """Parse the header and bound its depth."""
    try:
        content = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        reason = "header_too_deep" if "recursion" in str(error) else "bad_header"
        raise CodecError(reason, f"the header is not JSON: {error}") from error
    level: list[Any] = [content]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in _containers(node)]
        if not level:
            break
    else:
        raise CodecError("header_too_deep", f"the header nests deeper than {_MAX_DEPTH} levels")
    if not isinstance(content, dict):
        raise CodecError("bad_header", "the header is not a JSON object")
    return content


def _containers(node: Any) -> list[Any]:
    """Give the lists and objects directly inside a JSON value."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


def find_record_type(content: Mapping[str, Any]) -> tuple[type[Record], int]:
    """Find the record type from the unread envelope; give it with the minor version."""
    record = content.get("record")
    envelope = record.get("envelope") if isinstance(record, dict) else None
    if not isinstance(envelope, dict):
        raise CodecError("bad_header", "the header has no record with an envelope")
    schema_id, major, minor = (envelope.get(key) for key in ("schema_id", "major", "minor"))
    kind = RECORD_TYPES.get(schema_id) if isinstance(schema_id, str) else None
    if kind is None or type(major) is not int or major != kind.MAJOR:
        raise CodecError(
            "unknown_schema", f"schema {schema_id!r:.40} version {major!r:.20} is not known here"
        )
    if type(minor) is not int:
        raise CodecError("invalid_record", "envelope.minor is not an integer")
    return kind, minor


def check_table(entries: tuple[ArrayEntry, ...], *, start: int, total: int) -> None:
    """Check every claim of the array table against the size of the record."""
    if len({entry.name for entry in entries}) != len(entries):
        raise CodecError("bad_array_table", "two arrays have the same name")
    for entry in entries:
        if entry.dtype not in DTYPES:
            raise CodecError("bad_dtype", f"{entry.name} has element type {entry.dtype!r}")
        # Python integers: a product of lengths cannot overflow. An axis of length 0 must not
        # hide other lengths whose product numpy refuses.
        if math.prod(length or 1 for length in entry.shape) > MAX_TOTAL_BYTES:
            raise CodecError("size_mismatch", f"{entry.name}: shape {entry.shape} is absurd")
        if math.prod(entry.shape) * DTYPES[entry.dtype].itemsize != entry.nbytes:
            raise CodecError(
                "size_mismatch",
                f"{entry.name}: shape {entry.shape} of {entry.dtype} is not {entry.nbytes} bytes",
            )
        if entry.offset % ALIGNMENT_BYTES:
            raise CodecError("misaligned", f"{entry.name} starts at {entry.offset}")
        if entry.offset < start or entry.offset + entry.nbytes > total:
            raise CodecError(
                "out_of_bounds",
                f"{entry.name} is at {entry.offset} to {entry.offset + entry.nbytes}, "
                f"outside {start} to {total}",
            )
    end = start
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset < end:
            raise CodecError("overlapping", f"{entry.name} starts inside the array before it")
        end = entry.offset + entry.nbytes
    if end < total:
        raise CodecError("trailing_bytes", f"{total - end} bytes after the last array")
