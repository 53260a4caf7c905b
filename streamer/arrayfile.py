"""Arrays and a JSON header in one file that is either whole and verified or not there.

Layout, little endian: magic, header length (u64), JSON header, arrays at offsets aligned to 64,
sha256 of everything before it. Written under a temporary name, synced, renamed, folder synced.
Chosen over npz because the digest covers every byte and reading needs no zip and no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ArrayFileError", "read_arrays", "sync_folder", "write_arrays"]

_MAGIC = b"ABINAR01"
_ALIGN_BYTES = 64
_DIGEST_BYTES = 32
_KINDS = frozenset("biufcS")

Array = npt.NDArray[Any]


class ArrayFileError(Exception):
    """A file that is damaged, cut short or not one of ours."""


def write_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """Write a file so that a crash leaves the old one or the new one, and return its sha256.

    Raises
    ------
    OSError
        The disk is full or the folder cannot be written; the old file is untouched.
    ValueError
        An array holds objects.
    """
    prepared = {name: _plain(name, array) for name, array in arrays.items()}
    entries = []
    at = 0
    for name, array in prepared.items():
        at = _aligned(at)
        entries.append({"name": name, "dtype": array.dtype.str, "shape": array.shape, "offset": at})
        at += array.nbytes
    text = json.dumps({"header": dict(header), "arrays": entries}, sort_keys=True).encode()
    start = _aligned(len(_MAGIC) + 8 + len(text))
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:

            def put(data: bytes | memoryview) -> None:
                digest.update(data)
                file.write(data)

            put((_MAGIC + struct.pack("<Q", len(text)) + text).ljust(start, b"\0"))
            at = 0
            for entry, array in zip(entries, prepared.values(), strict=True):
                put(b"\0" * (entry["offset"] - at))  # type: ignore[operator]
                put(array.reshape(-1).view(np.uint8).data)
                at = entry["offset"] + array.nbytes  # type: ignore[operator]
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return digest.hexdigest()


def read_arrays(
    path: Path, *, sha256: str | None = None
) -> tuple[dict[str, Any], dict[str, Array], str]:
    """Read a file back and verify every byte; the arrays are writable views of one buffer.

    Returns
    -------
    header, arrays, sha256

    Raises
    ------
    ArrayFileError
        Anything about the file is not as it was written, or not the digest asked for.
    """
    try:
        size_bytes = path.stat().st_size
        buffer = np.fromfile(path, np.uint8, count=size_bytes)
    except OSError as error:
        raise ArrayFileError(f"{path.name}: {error.strerror or error}") from error
    if size_bytes < len(_MAGIC) + 8 + _DIGEST_BYTES or buffer[:8].tobytes() != _MAGIC:
        raise ArrayFileError(f"{path.name}: cut short or not an array file")
    body, stored = buffer[:-_DIGEST_BYTES], buffer[-_DIGEST_BYTES:].tobytes().hex()
    found = hashlib.sha256(body.data).hexdigest()
    if found != stored or (sha256 is not None and found != sha256):
        raise ArrayFileError(f"{path.name}: its digest does not match, so it is damaged")
    (length,) = struct.unpack("<Q", body[8:16].tobytes())
    content = json.loads(body[16 : 16 + length].tobytes())
    start = _aligned(16 + length)
    arrays: dict[str, Array] = {}
    for entry in content["arrays"]:
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        at = start + entry["offset"]
        part = body[at : at + count * dtype.itemsize]
        arrays[entry["name"]] = part.view(dtype).reshape(entry["shape"])
    return content["header"], arrays, found


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(name: str, array: Array) -> Array:
    if array.dtype.kind not in _KINDS:
        raise ValueError(f"array {name} has dtype {array.dtype}, which no file of ours holds")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(array.shape)


def _aligned(at: int) -> int:
    return -(-at // _ALIGN_BYTES) * _ALIGN_BYTES
