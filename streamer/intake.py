"""From one record of the particles topic to particles fit to train, with a verdict on every row.

`take` never raises for what a record contains: the whole record is `Refused`, `Skipped` (another
session's), or `Taken` with its rows sorted into fit, duplicate and quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from reconstruct.types import Geometry, ParticleImages
from schemas.codec import CodecError, Limits, decode
from schemas.particles import OpticsGroup, ParticleBatch, particle_ids
from streamer.adapt import particle_images
from streamer.ledger import RecentRecords
from streamer.quarantine import Problem, RowVerdicts, judge_rows
from streamer.references import fetch_images
from streamer.roster import COLUMNS, Roster, encoded
from streamer.transports.base import Record

__all__ = ["Refused", "Skipped", "Taken", "take"]

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
    """Look at one record.

    Parameters
    ----------
    geometry
        The session's sampling; None until the first batch has set it.
    roster
        Particles accepted so far.
    recent
        Records taken so far.
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
    found = Geometry(batch.geometry.box, batch.geometry.pixel_size_angstrom)
    if envelope.record_id in recent:
        return _repeated(batch, found)
    problem = None if geometry is None else _misfit(found, geometry)
    if problem is not None:
        return Refused(*problem, envelope.record_id)
    pixels = fetch_images(batch, decoded.arrays, allowed_roots=allowed_roots)
    verdicts = judge_rows(
        decoded.arrays,
        pixels.images,
        expected_ids=particle_ids(batch.image_names),
        known_ids=roster.ids,
        n_optics_groups=len(batch.optics_groups),
        already=pixels.problems,
    )
    return _taken(batch, decoded.arrays, pixels.images, verdicts=verdicts, geometry=found)


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
    verdicts: RowVerdicts,
    geometry: Geometry,
) -> Taken:
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
        geometry=geometry,
        optics_groups=batch.optics_groups,
        roster_rows=roster_rows,
        created_at_ns=batch.envelope.created_at_ns,
        acquired_at_ns=batch.acquired_at_ns,
    )
