"""From one record of the particles topic to particles fit to train, with a verdict on every row.

Nothing here raises for what a record contains: the whole record is `Refused`, `Skipped` (another
session's), or `Taken` with its rows sorted into fit, duplicate and quarantined. `read` does what
needs nothing of the session and may run ahead of it, in another thread; `judge` does the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from reconstruct.types import Geometry, ParticleImages
from schemas.codec import CodecError, Limits, decode
from schemas.particles import OpticsGroup, ParticleBatch, particle_ids
from streamer.adapt import particle_images
from streamer.ledger import RecentRecords
from streamer.quarantine import Problem, find_problems, sort_rows
from streamer.references import fetch_images
from streamer.roster import COLUMNS, Roster, encoded
from streamer.transports.base import Record

__all__ = ["Read", "Refused", "Skipped", "Taken", "judge", "read", "take"]

Array = npt.NDArray[Any]

PIXEL_SIZE_TOLERANCE = 1e-3  # relative; finer differences are rounding of the producer


@dataclass(frozen=True)
class Refused:
    """A record that cannot be used at all."""

    reason: str
    detail: str
    record_id: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A record of another session."""

    session_id: str


@dataclass(frozen=True)
class Taken:
    """A record that was read; its rows are trained, duplicates or problems."""

    record_id: str
    received: int
    duplicates: int
    problems: tuple[Problem, ...]
    image_names: tuple[str, ...]  # of all rows
    particles: ParticleImages | None  # the fit rows; None when there are none
    geometry: Geometry
    optics_groups: tuple[OpticsGroup, ...]
    roster_rows: Mapping[str, Array]  # of the fit rows; optics_group indexes ``optics_groups``
    created_at_ns: int
    acquired_at_ns: int | None


@dataclass(frozen=True)
class Read:
    """A record that could be read; what it means depends on the session, see `judge`."""

    batch: ParticleBatch
    arrays: Mapping[str, Array]
    images: Array
    problems: Mapping[int, Problem]  # of its content, by row
    unless_known: Taken  # the verdict if the session has seen none of these particles

    @property
    def size_bytes(self) -> int:
        """Memory that it holds, about."""
        particles = self.unless_known.particles
        return self.images.nbytes + (0 if particles is None else particles.images.nbytes)


def take(
    record: Record,
    *,
    session_id: str,
    geometry: Geometry | None,
    roster: Roster,
    recent: RecentRecords,
    allowed_roots: Sequence[Path],
    limits: Limits,
) -> Taken | Refused | Skipped:
    """Look at one record: `read`, then `judge`."""
    found = read(record, session_id=session_id, allowed_roots=allowed_roots, limits=limits)
    if not isinstance(found, Read):
        return found
    return judge(found, geometry=geometry, roster=roster, recent=recent)


def read(
    record: Record, *, session_id: str, allowed_roots: Sequence[Path], limits: Limits
) -> Read | Refused | Skipped:
    """Do all of the work on a record that needs nothing of the session's state.

    Parameters
    ----------
    allowed_roots
        Folders that stacks may lie in.
    """
    if record.key is not None and record.key != session_id.encode():
        return Skipped(record.key.decode("utf-8", "replace"))
    try:
        decoded = decode(record.value, limits=limits)
    except CodecError as error:
        return Refused(error.reason, error.detail)
    envelope = decoded.record.envelope
    if not isinstance(decoded.record, ParticleBatch):
        return Refused(
            "not_particles",
            f"a {envelope.schema_id} record does not belong on this topic",
            envelope.record_id,
        )
    if envelope.session_id != session_id:
        return Skipped(envelope.session_id)
    batch = decoded.record
    pixels = fetch_images(batch, decoded.arrays, allowed_roots=allowed_roots)
    problems = find_problems(
        decoded.arrays,
        pixels.images,
        expected_ids=particle_ids(batch.image_names),
        n_optics_groups=len(batch.optics_groups),
        already=pixels.problems,
    )
    return Read(
        batch,
        decoded.arrays,
        pixels.images,
        problems,
        _taken(batch, decoded.arrays, pixels.images, problems=problems, known_ids=frozenset()),
    )


def judge(
    found: Read, *, geometry: Geometry | None, roster: Roster, recent: RecentRecords
) -> Taken | Refused:
    """Judge a record that was read, as the session stands.

    Parameters
    ----------
    geometry
        The session's sampling; None until the first batch has set it.
    roster
        Particles accepted so far.
    recent
        Records taken so far.
    """
    batch = found.batch
    if batch.envelope.record_id in recent:
        return _repeated(batch, found.unless_known.geometry)
    problem = None if geometry is None else _misfit(found.unless_known.geometry, geometry)
    if problem is not None:
        return Refused(*problem, batch.envelope.record_id)
    if roster.ids.isdisjoint(found.arrays["particle_id"].tolist()):
        return found.unless_known
    return _taken(batch, found.arrays, found.images, problems=found.problems, known_ids=roster.ids)


def _misfit(found: Geometry, expected: Geometry) -> tuple[str, str] | None:
    if found.box != expected.box:
        return "wrong_box", f"box {found.box}, this session has {expected.box}"
    difference = abs(found.pixel_size_angstrom / expected.pixel_size_angstrom - 1)
    if difference > PIXEL_SIZE_TOLERANCE:
        return (
            "wrong_pixel_size",
            f"{found.pixel_size_angstrom} A/px, this session has {expected.pixel_size_angstrom}",
        )
    return None


def _repeated(batch: ParticleBatch, geometry: Geometry) -> Taken:
    """Give a record that was taken before: nothing in it is new."""
    return Taken(
        record_id=batch.envelope.record_id,
        received=batch.count,
        duplicates=batch.count,
        problems=(),
        image_names=batch.image_names,
        particles=None,
        geometry=geometry,
        optics_groups=batch.optics_groups,
        roster_rows={},
        created_at_ns=batch.envelope.created_at_ns,
        acquired_at_ns=batch.acquired_at_ns,
    )


def _taken(
    batch: ParticleBatch,
    arrays: Mapping[str, Array],
    images: Array,
    *,
    problems: Mapping[int, Problem],
    known_ids: Collection[int],
) -> Taken:
    verdicts = sort_rows(arrays["particle_id"], problems, known_ids=known_ids)
    fit = verdicts.fit
    micrographs = batch.micrograph_names or ("",) * batch.count
    roster_rows = {name: arrays[name][fit] for name in COLUMNS if name in arrays} | {
        "image_name": encoded([batch.image_names[row] for row in fit.tolist()]),
        "micrograph_name": encoded([micrographs[row] for row in fit.tolist()]),
    }
    particles = particle_images(batch, arrays, images=images, rows=fit) if len(fit) else None
    return Taken(
        record_id=batch.envelope.record_id,
        received=batch.count,
        duplicates=len(verdicts.duplicates),
        problems=verdicts.problems,
        image_names=batch.image_names,
        particles=particles,
        geometry=Geometry(batch.geometry.box, batch.geometry.pixel_size_angstrom),
        optics_groups=batch.optics_groups,
        roster_rows=roster_rows,
        created_at_ns=batch.envelope.created_at_ns,
        acquired_at_ns=batch.acquired_at_ns,
    )
