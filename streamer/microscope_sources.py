"""Where a fake microscope's particles come from: the simulator, or tables of real ones.

Convention: one batch per micrograph, in the order of acquisition; record ids follow from the image
names, so the same particles are the same records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.io.simulated import write_live
from reconstruct.io.star import read_star
from reconstruct.io.table import ParticleTable
from reconstruct.simulate import Simulated, SimulationSettings, Species, image_name, simulate
from reconstruct.structures import ParticleKind, demo_particle
from reconstruct.types import Geometry
from schemas.envelope import new_envelope
from schemas.particles import OpticsGroup, ParticleBatch, ParticleGeometry, inline_batch
from streamer.adapt import PayloadKind, batches_from_table
from streamer.outbox import producer_name

__all__ = [
    "Batch",
    "batches_from_micrographs",
    "batches_from_simulated",
    "demo_chunks",
    "references_from_simulated",
]

DEMO_GEOMETRY = Geometry(box=64, pixel_size_angstrom=5.0)
DEMO_SHARES: tuple[tuple[ParticleKind, float], ...] = (
    ("whole", 0.5),
    ("large_subunit", 0.3),
    ("rotated", 0.2),
)

Batch = tuple[ParticleBatch, Mapping[str, npt.NDArray[Any]]]


def demo_chunks(
    n_particles: int,
    *,
    n_species: int = 1,
    junk_fraction: float = 0.0,
    snr: float = 0.1,
    seed: int = 0,
    geometry: Geometry = DEMO_GEOMETRY,
) -> Iterator[Simulated]:
    """Simulate the particle that is built in code: the whole, then its large subunit, then turned.

    Raises
    ------
    ValueError
        More species than there are, or a setting that ``simulate`` refuses.
    """
    if not 1 <= n_species <= len(DEMO_SHARES):
        raise ValueError(f"n_species must be 1 to {len(DEMO_SHARES)}, not {n_species}")
    species = [
        Species(demo_particle(geometry, kind=kind), fraction=share)
        for kind, share in DEMO_SHARES[:n_species]
    ]
    settings = SimulationSettings(
        n_particles=n_particles,
        snr=snr,
        max_shift_angstrom=3.0 * geometry.pixel_size_angstrom,
        junk_fraction=junk_fraction,
        seed=seed,
    )
    return simulate(species, geometry, settings=settings)


def batches_from_micrographs(
    table: ParticleTable,
    *,
    session_id: str,
    payload: PayloadKind = "inline",
    reference_root: Path | None = None,
    limit: int | None = None,
) -> Iterator[Batch]:
    """Give a table's particles, one batch per micrograph, in the order of their first rows.

    Parameters
    ----------
    limit
        Give only the first so many rows of the table.
    """
    members: dict[str, list[int]] = {}
    for row, micrograph in enumerate(table.micrograph_names[:limit]):
        members.setdefault(micrograph, []).append(row)
    for rows in members.values():
        yield from batches_from_table(
            table,
            len(rows),
            session_id=session_id,
            producer=producer_name("microscope"),
            payload=payload,
            rows=np.asarray(rows, dtype=np.int64),
            reference_root=reference_root,
        )


def batches_from_simulated(chunks: Iterable[Simulated], *, session_id: str) -> Iterator[Batch]:
    """Give simulated particles as inline batches, one per chunk, that is, per micrograph."""
    for chunk in chunks:
        names = [
            image_name(micrograph, frame)
            for micrograph, frame in zip(
                chunk.micrograph.tolist(), chunk.frame.tolist(), strict=True
            )
        ]
        digest = hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
        yield inline_batch(
            new_envelope(
                ParticleBatch, session_id, producer=producer_name("microscope"), record_id=digest
            ),
            chunk.images,
            geometry=ParticleGeometry(
                box=chunk.geometry.box,
                pixel_size_angstrom=chunk.geometry.pixel_size_angstrom,
            ),
            optics_groups=[
                OpticsGroup(
                    name=f"opticsGroup{number}",
                    voltage_kv=optics.voltage_kv,
                    spherical_aberration_mm=optics.spherical_aberration_mm,
                    amplitude_contrast=optics.amplitude_contrast,
                )
                for number, optics in enumerate(chunk.optics, start=1)
            ],
            image_names=names,
            rows={
                "defocus_u_angstrom": chunk.defocus_u_angstrom,
                "defocus_v_angstrom": chunk.defocus_v_angstrom,
                "defocus_angle_rad": chunk.defocus_angle_rad,
                "phase_shift_rad": chunk.phase_shift_rad,
                "optics_group": chunk.optics_group,
            },
            micrograph_names=[
                f"Micrographs/micrograph_{micrograph + 1:06d}.mrc"
                for micrograph in chunk.micrograph.tolist()
            ],
        )


def references_from_simulated(
    folder: Path, chunks: Iterable[Simulated], *, session_id: str
) -> Iterator[Batch]:
    """Write each chunk's stack and STAR file below ``folder``, then give batches that point there.

    Paths are relative to ``folder``, which has to be one of the consumer's roots.
    """
    sent = 0
    for star in write_live(folder, chunks):
        table = read_star(star)
        rows = np.arange(sent, len(table))
        sent = len(table)
        yield from batches_from_table(
            table,
            len(rows),
            session_id=session_id,
            producer=producer_name("microscope"),
            payload="reference",
            rows=rows,
            reference_root=folder,
        )
