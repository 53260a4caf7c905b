"""Fetch the pixels that reference batches point at, only from below configured roots.

Promise: a path is followed through ``..`` and symlinks first and then must lie inside a root; a
stack that changed since the batch was made, or is too short, costs only the rows that use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.io.atomic import sha256_file
from reconstruct.io.errors import InputFileError
from reconstruct.io.mrc import read_header, read_stack
from reconstruct.types import ParticleImages
from schemas.particles import ParticleBatch, ReferencePayload, StackReference
from streamer.adapt import particle_images
from streamer.quarantine import Problem

__all__ = ["FetchedImages", "Rejection", "fetch_images", "particles_from_batch", "resolve_stack"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rejection:
    """Input that is not used, with a slug for counters and the reason in words."""

    reason: str
    detail: str


@dataclass(frozen=True)
class FetchedImages:
    """Pixels of every row of a batch, and the rows for which there are none."""

    images: Array  # (n, box, box); zeros in the rows with a problem
    problems: Mapping[int, Problem]


def fetch_images(
    record: ParticleBatch, arrays: Mapping[str, Array], *, allowed_roots: Sequence[Path | str]
) -> FetchedImages:
    """Return the pixels of a batch, inline or from its stacks.

    Parameters
    ----------
    record, arrays
        The decoded batch.
    allowed_roots
        Folders that stacks may lie in.
    """
    payload = record.payload
    if not isinstance(payload, ReferencePayload):
        return FetchedImages(arrays["images"], {})
    box = record.geometry.box
    images = np.zeros((record.count, box, box), dtype=np.float32)
    problems: dict[int, Problem] = {}
    stack, frame = arrays["stack"], arrays["frame"]

    def refuse(rows: Array, rejection: Rejection) -> None:
        for row in rows.tolist():
            problems[row] = Problem(row, rejection.reason, rejection.detail)

    strangers = np.flatnonzero((stack < 0) | (stack >= len(payload.stacks)))
    refuse(strangers, Rejection("unknown_stack", "an index beyond the record's list of stacks"))
    for k, reference in enumerate(payload.stacks):
        rows = np.flatnonzero(stack == k)
        if len(rows) == 0:
            continue
        place = resolve_stack(reference, allowed_roots)
        if isinstance(place, Rejection):
            refuse(rows, place)
            continue
        try:
            frames, height, width = read_header(place).shape
            if (height, width) != (box, box):
                words = f"{place} has images of {width} x {height} px, not {box} x {box}"
                refuse(rows, Rejection("wrong_box", words))
                continue
            inside = (frame[rows] >= 0) & (frame[rows] < frames)
            beyond = Rejection("frame_beyond_stack", f"{place} has {frames} images")
            refuse(rows[~inside], beyond)
            images[rows[inside]] = read_stack(place, frame[rows[inside]])
        except InputFileError as error:
            refuse(rows, Rejection(f"stack_{error.reason}", f"{error.path}: {error.detail}"))
        except OSError as error:
            refuse(rows, Rejection("stack_unreadable", f"{place}: {error.strerror or error}"))
    return FetchedImages(images, problems)


def particles_from_batch(
    record: ParticleBatch, arrays: Mapping[str, Array], *, allowed_roots: Sequence[Path | str]
) -> ParticleImages | Rejection:
    """Return a batch as the engine takes it, or its first problem: for callers without quarantine.

    The service itself judges row by row, with ``fetch_images``.
    """
    fetched = fetch_images(record, arrays, allowed_roots=allowed_roots)
    if fetched.problems:
        first = fetched.problems[min(fetched.problems)]
        return Rejection(first.reason, f"row {first.row}: {first.detail}")
    return particle_images(record, arrays, images=fetched.images, rows=np.arange(record.count))


def resolve_stack(
    reference: StackReference, allowed_roots: Sequence[Path | str]
) -> Path | Rejection:
    """Find a stack below the roots and check that it is the file that was meant.

    Returns
    -------
    The real path, or why not: ``path_outside_roots``, ``missing_stack``, ``stack_changed``.
    """
    inside: list[Path] = []
    for root in allowed_roots:
        home = Path(root).resolve()
        try:
            place = (home / reference.path).resolve()
        except (OSError, RuntimeError) as error:  # a loop of links
            return Rejection("missing_stack", f"{reference.path}: {error}")
        if place.is_relative_to(home):
            inside.append(place)
    if not inside:
        return Rejection("path_outside_roots", _outside_words(reference.path, allowed_roots))
    place = next((path for path in inside if path.is_file()), inside[0])
    try:
        if not place.is_file():
            return Rejection("missing_stack", f"{place} does not exist or is no file")
        found = place.stat()
        if found.st_size != reference.size_bytes:
            return Rejection(
                "stack_changed",
                f"{place} has {found.st_size} bytes, not {reference.size_bytes} as announced",
            )
        if reference.sha256 is not None and reference.sha256 != _digest(
            place, found.st_size, found.st_mtime_ns
        ):
            return Rejection("stack_changed", f"{place} has another digest than announced")
    except OSError as error:
        return Rejection("missing_stack", f"{place}: {error.strerror or error}")
    return place


def _outside_words(path: str, allowed_roots: Sequence[Path | str]) -> str:
    """Say what to do, first: letters cut what is long."""
    roots = ", ".join(str(root) for root in allowed_roots)
    absolute = Path(path).is_absolute()
    if roots and not absolute:  # no other root changes where a relative path leads
        return f"{path} leads out of the roots ({roots})"
    try:
        folder = str(Path(path).resolve().parent) if absolute else "DIR"
    except (OSError, RuntimeError):  # a loop of links
        folder = str(Path(path).parent)
    where = "" if absolute else ", the folder that its paths start from"
    return (
        f"start serve with --root {folder}{where}, if you trust it, then dead-letter replay: "
        f"{path} leads out of the roots ({roots or 'none is configured'})"
    )


@lru_cache(maxsize=4096)
def _digest(path: Path, size_bytes: int, modified_at_ns: int) -> str:
    """Return a file's digest, read once for each state of the file."""
    return sha256_file(path)
