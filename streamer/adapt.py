"""Turn particle tables into particle batches, and batches into what the engine takes.

Convention owned here: pixels are passed on as stored, nothing is normalised; dark particles are
inverted exactly once, where they become ``ParticleImages``. A batch's record id follows from its
image names, so attaching to the same file again repeats the same records.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from reconstruct.io.mrc import read_stack
from reconstruct.io.table import ParticleTable
from reconstruct.types import FloatArray, IntArray, Optics, ParticleImages
from schemas.envelope import Envelope, new_envelope
from schemas.particles import (
    OpticsGroup,
    ParticleBatch,
    ParticleGeometry,
    StackReference,
    inline_batch,
    particle_ids,
    reference_batch,
)

__all__ = [
    "batches_from_table",
    "images_from_table",
    "particle_images",
    "particles_from_table",
    "row_ids",
    "rows_by_micrograph",
]

Array = npt.NDArray[Any]
PayloadKind = Literal["inline", "reference"]

FLOAT16_RANGE_SIGMAS = 100.0  # float16 rounds at 2**-11: at 100 sigma that is 5 % of sigma
FLOAT16_LARGEST = 65504.0
FLOAT16_SMALLEST_SIGMA = 1e-2  # smaller values drift into the subnormal range


def row_ids(table: ParticleTable) -> npt.NDArray[np.uint64]:
    """Return the 64-bit identity of each row."""
    return particle_ids(table.image_names)


def images_from_table(table: ParticleTable, rows: IntArray) -> npt.NDArray[np.float32]:
    """Read the pixels of rows, each stack once and in its own order.

    Returns
    -------
    (n, box, box) in the order of ``rows``, as stored.

    Raises
    ------
    InputFileError
        A stack is missing, broken or too short.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    images: npt.NDArray[np.float32] | None = None
    stack_index, frame = table.stack_index[wanted], table.frame[wanted]
    for stack in np.unique(stack_index).tolist():
        here = np.flatnonzero(stack_index == stack)
        here = here[np.argsort(frame[here], kind="stable")]
        pixels = read_stack(table.stacks[stack], frame[here])
        if images is None:
            images = np.empty((len(wanted), *pixels.shape[1:]), dtype=np.float32)
        images[here] = pixels
    if images is None:
        box = table.box or 0
        return np.zeros((0, box, box), dtype=np.float32)
    return images


def particles_from_table(table: ParticleTable, rows: IntArray, *, sign: int = 1) -> ParticleImages:
    """Read rows as the engine takes them; ``sign`` -1 inverts dark particles."""
    images = images_from_table(table, rows)
    return ParticleImages(
        images=-images if sign < 0 else images,
        particle_ids=particle_ids([table.image_names[row] for row in np.asarray(rows).tolist()]),
        defocus_u_angstrom=table.defocus_u_angstrom[rows],
        defocus_v_angstrom=table.defocus_v_angstrom[rows],
        defocus_angle_rad=table.defocus_angle_rad[rows],
        phase_shift_rad=table.phase_shift_rad[rows],
        optics_group=table.optics_group[rows],
        optics=table.optics,
    )


def particle_images(
    record: ParticleBatch, arrays: Mapping[str, Array], *, images: Array, rows: IntArray
) -> ParticleImages:
    """Give the chosen rows of a batch as the engine takes them.

    Parameters
    ----------
    record, arrays
        The decoded batch.
    images
        (n, box, box) pixels of all rows: its own or those that its references point at.
    rows
        The rows that were found fit.
    """
    chosen = images[rows]
    return ParticleImages(
        images=-chosen if record.contrast == "dark" else chosen,
        particle_ids=arrays["particle_id"][rows],
        defocus_u_angstrom=arrays["defocus_u_angstrom"][rows],
        defocus_v_angstrom=arrays["defocus_v_angstrom"][rows],
        defocus_angle_rad=arrays["defocus_angle_rad"][rows],
        phase_shift_rad=arrays["phase_shift_rad"][rows],
        optics_group=arrays["optics_group"][rows],
        optics=tuple(
            Optics(group.voltage_kv, group.spherical_aberration_mm, group.amplitude_contrast)
            for group in record.optics_groups
        ),
    )


def rows_by_micrograph(
    table: ParticleTable, rows: IntArray, *, batch_size: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Cut rows into batches of whole micrographs, splitting only those above ``batch_size``.

    Micrographs come in the order of their first row, as the microscope recorded them.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    groups: dict[str, list[int]] = {}
    for row in np.asarray(rows).tolist():
        groups.setdefault(table.micrograph_names[row], []).append(row)
    pending: list[int] = []
    for group in groups.values():
        if pending and len(pending) + len(group) > batch_size:
            yield np.asarray(pending, dtype=np.int64)
            pending = []
        pending += group
        while len(pending) > batch_size:
            yield np.asarray(pending[:batch_size], dtype=np.int64)
            pending = pending[batch_size:]
    if pending:
        yield np.asarray(pending, dtype=np.int64)


def batches_from_table(
    table: ParticleTable,
    batch_size: int,
    *,
    session_id: str,
    producer: str,
    payload: PayloadKind,
    rows: IntArray | None = None,
    contrast: Literal["bright", "dark"] = "bright",
    reference_root: Path | str | None = None,
    created_at_ns: int | None = None,
) -> Iterator[tuple[ParticleBatch, dict[str, Array]]]:
    """Yield particle batches, micrograph by micrograph.

    Parameters
    ----------
    table
        The particles.
    batch_size
        Most particles in a batch.
    session_id, producer, created_at_ns
        For the envelopes.
    payload
        ``inline`` reads and sends pixels; ``reference`` sends paths below the consumer's roots.
    rows
        Which rows, by default all; a live session sends the new ones.
    contrast
        Declared to the consumer, which inverts dark particles.
    reference_root
        Stack paths inside this folder are sent relative to it; others are absolute.

    Raises
    ------
    InputFileError
        A stack is missing, broken or too short.
    ValueError
        The box is unknown because no stack is there yet.
    """
    if table.box is None:
        raise ValueError(f"{table.path}: the box is unknown until a stack is there")
    geometry = ParticleGeometry(box=table.box, pixel_size_angstrom=table.pixel_size_angstrom)
    groups = [
        OpticsGroup(
            name=f"opticsGroup{k}",
            voltage_kv=optics.voltage_kv,
            spherical_aberration_mm=optics.spherical_aberration_mm,
            amplitude_contrast=optics.amplitude_contrast,
        )
        for k, optics in enumerate(table.optics, start=1)
    ]
    wanted = np.arange(len(table)) if rows is None else rows
    for chosen in rows_by_micrograph(table, wanted, batch_size=batch_size):
        names = [table.image_names[row] for row in chosen.tolist()]
        columns = {
            "defocus_u_angstrom": table.defocus_u_angstrom[chosen],
            "defocus_v_angstrom": table.defocus_v_angstrom[chosen],
            "defocus_angle_rad": table.defocus_angle_rad[chosen],
            "phase_shift_rad": table.phase_shift_rad[chosen],
            "optics_group": table.optics_group[chosen],
        }
        envelope = _envelope(names, session_id, producer=producer, created_at_ns=created_at_ns)
        micrographs = [table.micrograph_names[row] for row in chosen.tolist()]
        if payload == "inline":
            images = images_from_table(table, chosen)
            yield inline_batch(
                envelope,
                images,
                geometry=geometry,
                optics_groups=groups,
                image_names=names,
                rows=columns,
                micrograph_names=micrographs,
                contrast=contrast,
                pixel_type=_pixel_type(images),
            )
        else:
            used, stack = np.unique(table.stack_index[chosen], return_inverse=True)
            yield reference_batch(
                envelope,
                [_reference(table.stacks[k], reference_root) for k in used.tolist()],
                geometry=geometry,
                optics_groups=groups,
                image_names=names,
                rows={**columns, "stack": stack.reshape(-1), "frame": table.frame[chosen]},
                micrograph_names=micrographs,
                contrast=contrast,
            )


def _envelope(
    names: Sequence[str], session_id: str, *, producer: str, created_at_ns: int | None
) -> Envelope:
    """Make an envelope whose record id follows from the image names."""
    digest = hashlib.blake2b("\n".join(names).encode("utf-8"), digest_size=16).hexdigest()
    return new_envelope(
        ParticleBatch,
        session_id,
        producer=producer,
        record_id=digest,
        created_at_ns=created_at_ns,
    )


def _reference(stack: Path, root: Path | str | None) -> StackReference:
    """Point at a stack, relative to the root where it lies inside."""
    path = Path(os.path.abspath(stack))
    if root is not None and path.is_relative_to(os.path.abspath(root)):
        path = path.relative_to(os.path.abspath(root))
    return StackReference(path=path.as_posix(), size_bytes=stack.stat().st_size)


def _pixel_type(images: FloatArray) -> Literal["float16", "float32"]:
    """Choose float16 where its rounding stays far below the noise."""
    spread = float(np.std(images, dtype=np.float64))
    largest = float(np.max(np.abs(images)))
    small_enough = largest <= min(FLOAT16_RANGE_SIGMAS * spread, FLOAT16_LARGEST)
    return "float16" if spread >= FLOAT16_SMALLEST_SIGMA and small_enough else "float32"
