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
from reconstruct.simulate import Simulated, image_name
from schemas.envelope import new_envelope
from schemas.particles import OpticsGroup, ParticleBatch, ParticleGeometry, inline_batch
from streamer.adapt import PayloadKind, batches_from_table
from streamer.outbox import producer_name

__all__ = [
    "Batch",
    "batches_from_micrographs",
    "batches_from_simulated",
    "references_from_simulated",
]

Batch = tuple[ParticleBatch, Mapping[str, npt.NDArray[Any]]]


def batches_from_micrographs(
    table: ParticleTable,
    *,
    session_id: str,
    payload: PayloadKind = "inline",
    reference_root: Path | None = None,
) -> Iterator[Batch]:
    """Give a table's particles, one batch per micrograph, in the order of their first rows."""
    members: dict[str, list[int]] = {}
    for row, micrograph in enumerate(table.micrograph_names):
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
