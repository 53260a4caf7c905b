"""The wire codec: a JSON header and raw little-endian arrays at 64-byte aligned offsets.

Layout: 16-byte prefix (magic ``ABIL``, codec version u2, flags u2 = 0, header bytes u4, total
bytes u4), the JSON header ``{"record": {...}, "arrays": [{name, dtype, shape, offset, nbytes}]}``,
zero padding, then the arrays. Offsets count from the start of the record. Every promise the bytes
make is checked before anything is allocated for it; decoded arrays are read-only views of the
bytes that came in.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final

import numpy as np
from pydantic import Field, ValidationError
from pydantic_core import from_json, to_json

from schemas.arrays import DTYPES, Array, ArrayMismatchError
from schemas.assignments import AssignmentBatch
from schemas.base import TOLERATE_UNKNOWN, WireModel
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
    "REASONS",
    "RECORD_TYPES",
    "ArrayEntry",
    "CodecError",
    "Decoded",
    "Limits",
    "decode",
    "encode",
    "encoded_size",
]

MAGIC: Final = b"ABIL"
CODEC_VERSION: Final = 1
ALIGNMENT_BYTES: Final = 64
_PREFIX: Final = struct.Struct("<4sHHII")
_MAX_DEPTH: Final = 12  # our deepest record needs 5; the parser itself stops at about 200
_MAX_TOTAL: Final = 2**32 - 1  # what the prefix can say

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
    header_bytes: int = 16 * 2**20


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class Decoded:
    """A record and its arrays: read-only views of the bytes it was decoded from."""

    record: Record
    arrays: Mapping[str, Array]


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


class _Header(WireModel):
    """The JSON header, with the record still unread."""

    record: dict[str, Any]
    arrays: Annotated[tuple[ArrayEntry, ...], Field(max_length=64)]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _wire_code(name: str, array: Array) -> str:
    """Give the code of an array's element type."""
    code = f"{array.dtype.kind}{array.dtype.itemsize}"
    if code not in DTYPES:
        raise CodecError("bad_dtype", f"{name} is {array.dtype}, which does not travel")
    return code


def _layout(record: Record, arrays: Mapping[str, Array]) -> tuple[bytes, list[int], int]:
    """Give the JSON header, the offset of each array and the total size.

    Offsets stand inside the header whose length they depend on: room is reserved by laying the
    arrays out after a header with the widest offsets, then padding the final text to that length.
    """
    record.check_arrays(arrays)
    sizes = [array.size * array.dtype.itemsize for array in arrays.values()]

    def header(offsets: list[int]) -> bytes:
        table = [
            {
                "name": name,
                "dtype": _wire_code(name, array),
                "shape": list(array.shape),
                "offset": offset,
                "nbytes": size,
            }
            for (name, array), offset, size in zip(arrays.items(), offsets, sizes, strict=True)
        ]
        return to_json({"arrays": table}, inf_nan_mode="constants")[:-1]

    body = b',"record":' + to_json(record, inf_nan_mode="constants") + b"}"
    room = len(header([_MAX_TOTAL] * len(sizes))) + len(body)
    end = _PREFIX.size + room
    offsets = []
    for size in sizes:
        offsets.append(_aligned(end))
        end = offsets[-1] + size
    if end > _MAX_TOTAL:
        raise CodecError("too_large", f"a record of {end} bytes is beyond what the format can say")
    return (header(offsets) + body).ljust(room), offsets, end


def encode(record: Record, arrays: Mapping[str, Array] | None = None) -> bytes:
    """Turn a record and its arrays into bytes.

    Raises
    ------
    schemas.arrays.ArrayMismatchError
        The arrays do not fit the record.
    CodecError
        An element type that does not travel, or a record beyond 4 GiB.
    """
    arrays = {} if arrays is None else arrays
    header, offsets, total = _layout(record, arrays)
    parts: list[bytes | memoryview] = [
        _PREFIX.pack(MAGIC, CODEC_VERSION, 0, len(header), total),
        header,
    ]
    end = _PREFIX.size + len(header)
    for (name, array), offset in zip(arrays.items(), offsets, strict=True):
        wire = np.ascontiguousarray(array, dtype=DTYPES[_wire_code(name, array)])
        parts.append(bytes(offset - end))
        parts.append(wire.reshape(-1).view(np.uint8).data)
        end = offset + wire.nbytes
    return b"".join(parts)  # the only copy


def encoded_size(record: Record, arrays: Mapping[str, Array] | None = None) -> int:
    """Give the size that `encode` would produce, without copying an array."""
    return _layout(record, {} if arrays is None else arrays)[2]


def decode(data: bytes | memoryview, *, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """Turn bytes into a record and views of its arrays.

    Parameters
    ----------
    data
        One whole record; kept alive by the arrays.
    limits
        Largest record and header to look at.

    Raises
    ------
    CodecError
        For any defect, before anything is allocated for what the bytes claim.
    """
    data = memoryview(data).cast("B")
    total = data.nbytes
    header_end = _check_prefix(data, total=total, limits=limits)
    content = _read_json(bytes(data[_PREFIX.size : header_end]))
    kind, minor = _record_kind(content)
    context = TOLERATE_UNKNOWN if minor > kind.MINOR else None
    try:
        header = _Header.model_validate(content, context=context)
    except ValidationError as error:
        raise CodecError("bad_array_table", _in_words(error)) from error
    _check_table(header.arrays, start=header_end, total=total)
    try:
        record = kind.model_validate(header.record, context=context)
    except ValidationError as error:
        raise CodecError("invalid_record", _in_words(error)) from error
    arrays = {entry.name: _view(data, entry) for entry in header.arrays}
    try:
        record.check_arrays(arrays)
    except ArrayMismatchError as error:
        raise CodecError(error.reason, error.detail) from error
    return Decoded(record=record, arrays=MappingProxyType(arrays))


def _check_prefix(data: memoryview, *, total: int, limits: Limits) -> int:
    """Check the fixed prefix; give the end of the JSON header."""
    if total > limits.total_bytes:
        raise CodecError("too_large", f"{total} bytes, the limit is {limits.total_bytes}")
    if total < _PREFIX.size:
        raise CodecError("truncated", f"{total} bytes are too few for a record")
    magic, version, flags, header_bytes, said_total = _PREFIX.unpack_from(data)
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
    header_end = _PREFIX.size + int(header_bytes)
    if header_end > total:
        raise CodecError("truncated", f"the header ends at {header_end} of {total} bytes")
    return header_end


def _read_json(text: bytes) -> dict[str, Any]:
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


def _record_kind(content: Mapping[str, Any]) -> tuple[type[Record], int]:
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


def _check_table(entries: tuple[ArrayEntry, ...], *, start: int, total: int) -> None:
    """Check every claim of the array table against the size of the record."""
    if len({entry.name for entry in entries}) != len(entries):
        raise CodecError("bad_array_table", "two arrays have the same name")
    for entry in entries:
        if entry.dtype not in DTYPES:
            raise CodecError("bad_dtype", f"{entry.name} has element type {entry.dtype!r}")
        # Python integers: a product of lengths cannot overflow. An axis of length 0 must not
        # hide other lengths whose product numpy refuses.
        if math.prod(length or 1 for length in entry.shape) > _MAX_TOTAL:
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


def _view(data: memoryview, entry: ArrayEntry) -> Array:
    """Give a read-only view of one array; its place has been checked."""
    dtype = DTYPES[entry.dtype]
    if entry.nbytes == 0:  # its offset may be the end of the data, which frombuffer refuses
        array = np.empty(entry.shape, dtype=dtype)
    else:
        count = entry.nbytes // dtype.itemsize
        array = np.frombuffer(data, dtype=dtype, count=count, offset=entry.offset)
        array = array.reshape(entry.shape)
    array.flags.writeable = False
    return array


def _in_words(error: ValidationError) -> str:
    """Say the first few defects of a model, without echoing the input."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    said = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in problems[:3]]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return ("; ".join(said) + more)[:1000]
