"""A subscriber's maps: the session's own files where this machine sees them, else the record's.

Promises: a file is copied only when it lies inside the output folder, ends in ``.mrc``, is no
larger than the announced box allows and has the announced digest. An announced folder is only a
hint, and one that is not here is no problem as long as the record carries the maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.io.mrc import write_volume
from schemas.volumes import ClassManifest, VolumeSnapshot

__all__ = ["write_maps"]

Array = npt.NDArray[Any]

_HEADER_BYTES = 1 << 16  # more than MRC's 1024, for extended headers


def write_maps(
    folder: Path,
    snapshot: VolumeSnapshot,
    arrays: Mapping[str, Array],
    source: Path | None,
) -> tuple[int, list[str]]:
    """Write a snapshot's maps; return how many, and what was wrong in words.

    Half-maps are only ever copied: records carry none.

    Parameters
    ----------
    source
        The session's output folder when the user gave it: then nothing else will do.
    """
    named = snapshot.output_folder
    announced = Path(named) if named is not None and Path(named).is_absolute() else None
    origin = source if source is not None else announced
    written = 0
    problems: list[str] = []
    for entry in snapshot.classes:
        copied, wrong = (0, []) if origin is None else _copy(folder, entry, origin)
        written += copied
        missing = not (folder / _name(entry)).exists()
        if source is None and missing and "volumes" in arrays:
            write_volume(
                folder / _name(entry),
                arrays["volumes"][entry.class_index].astype(np.float32),
                pixel_size_angstrom=entry.pixel_size_angstrom,
                labels=("abinitio-live", snapshot.snapshot_id),
            )
            written += 1
        elif source is not None or (announced is not None and announced.is_dir()):
            problems += wrong
    if written == 0 and not problems:
        where = "" if announced is None else f" and {announced} is not on this machine"
        problems.append(f"the record carries no maps{where}: give the output folder with --source")
    return written, problems


def _name(entry: ClassManifest) -> str:
    return f"class_{entry.class_index + 1:03d}.mrc"


def _copy(folder: Path, entry: ClassManifest, origin: Path) -> tuple[int, list[str]]:
    """Copy one class's files that can be believed."""
    names = (_name(entry), _name(entry)[:-4] + "_half1.mrc", _name(entry)[:-4] + "_half2.mrc")
    wanted = (
        (entry.path, entry.sha256),
        (entry.half1_path, entry.half1_sha256),
        (entry.half2_path, entry.half2_sha256),
    )
    most_bytes = 4 * entry.box**3 + _HEADER_BYTES
    copied = 0
    problems: list[str] = []
    for name, (path, sha256) in zip(names, wanted, strict=True):
        data = _believed(origin, path, sha256=sha256, most_bytes=most_bytes)
        if isinstance(data, str):
            problems.append(data)
        else:
            (folder / name).write_bytes(data)
            copied += 1
    return copied, problems


def _believed(origin: Path, path: str, *, sha256: str, most_bytes: int) -> bytes | str:
    """Give a file's bytes, or in words why not."""
    if not path.endswith(".mrc"):
        return f"{path} is no .mrc file"
    try:
        root = origin.resolve()
        file = (root / path).resolve()
        if not file.is_relative_to(root) or not file.is_file():
            return f"{path} is not in {origin}"
        if file.stat().st_size > most_bytes:
            return f"{path} is larger than a map of the announced box"
        with file.open("rb") as opened:
            data = opened.read(most_bytes + 1)
    except OSError as error:
        return f"{path} cannot be read in {origin}: {error.strerror or error}"
    if hashlib.sha256(data).hexdigest() != sha256:
        return f"{path} has another digest than announced"
    return data
