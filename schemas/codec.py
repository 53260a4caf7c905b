"""The wire codec: a JSON header and raw little-endian arrays at 64-byte aligned offsets.

Layout: 16-byte prefix (magic ``ABIL``, codec version u2, flags u2 = 0, header bytes u4, total
bytes u4), the JSON header ``{"arrays": [{name, dtype, shape, offset, nbytes}], "record": {...}}``,
zero padding, then the arrays. Offsets count from the start of the record. Decoded arrays are
read-only views of the bytes that came in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError
from pydantic_core import to_json

from schemas.arrays import DTYPES, Array, ArrayMismatchError
from schemas.base import TOLERATE_UNKNOWN, WireModel
from schemas.envelope import Record
from schemas.framing import (
    ALIGNMENT_BYTES,
    CODEC_VERSION,
    DEFAULT_LIMITS,
    MAGIC,
    MAX_TOTAL_BYTES,
    PREFIX,
    REASONS,
    RECORD_TYPES,
    ArrayEntry,
    CodecError,
    Limits,
    check_prefix,
    check_table,
    find_record_type,
    read_json,
)

__all__ = [
    "DEFAULT_LIMITS",
    "REASONS",
    "RECORD_TYPES",
    "CodecError",
    "Decoded",
    "Limits",
    "decode",
    "encode",
    "encoded_size",
]


@dataclass(frozen=True)
class Decoded:
    """A record and its arrays: read-only views of the bytes it was decoded from."""

    record: Record
    arrays: Mapping[str, Array]


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
        return to_json({"arrays": table})[:-1]

    body = b',"record":' + to_json(record) + b"}"
    room = len(header([MAX_TOTAL_BYTES] * len(sizes))) + len(body)
    end = PREFIX.size + room
    offsets = []
    for size in sizes:
        offsets.append(_aligned(end))
        end = offsets[-1] + size
    if end > MAX_TOTAL_BYTES:
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
        PREFIX.pack(MAGIC, CODEC_VERSION, 0, len(header), total),
        header,
    ]
    end = PREFIX.size + len(header)
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
    header_end = check_prefix(data, total=total, limits=limits)
    content = read_json(bytes(data[PREFIX.size : header_end]))
    kind, minor = find_record_type(content)
    context = TOLERATE_UNKNOWN if minor > kind.MINOR else None
    try:
        header = _Header.model_validate(content, context=context)
    except ValidationError as error:
        raise CodecError("bad_array_table", _in_words(error)) from error
    check_table(header.arrays, start=header_end, total=total)
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
