"""Particle batches: pixels in the record (inline) or in stacks on a shared disk (reference).

One row per particle in every array; lengths in Angstrom, angles in radians, positive defocus is
underfocus. Nothing here looks at pixel values: that is the consumer's check, particle by particle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from schemas.arrays import Array, ArraySpec
from schemas.base import (
    MAX_ROWS,
    Box,
    Count,
    FiniteFloat,
    Fraction,
    Name,
    PixelSizeAngstrom,
    Sha256,
    TimestampNs,
    WireModel,
)
from schemas.envelope import Envelope, Record

__all__ = [
    "InlinePayload",
    "OpticsGroup",
    "ParticleBatch",
    "ParticleGeometry",
    "ReferencePayload",
    "StackReference",
    "inline_batch",
    "particle_id",
    "particle_ids",
    "reference_batch",
]

_ROW_F4: Final = (("f4",), ("n",))
_COMMON: Final = {
    "particle_id": ArraySpec(("u8",), ("n",), "identity of the particle; decides its half-set"),
    "defocus_u_angstrom": ArraySpec(*_ROW_F4, "defocus along the major axis, positive underfocus"),
    "defocus_v_angstrom": ArraySpec(*_ROW_F4, "defocus along the minor axis, positive underfocus"),
    "defocus_angle_rad": ArraySpec(*_ROW_F4, "angle of the major axis from x"),
    "phase_shift_rad": ArraySpec(*_ROW_F4, "phase plate shift"),
    "optics_group": ArraySpec(("i4",), ("n",), "index into optics_groups"),
}
_INLINE: Final = {
    "images": ArraySpec(
        ("f2", "f4"), ("n", "box", "box"), "pixels, (particle, y, x); inline payload only", False
    ),
}
_REFERENCE: Final = {
    "stack": ArraySpec(("i4",), ("n",), "index into payload.stacks; reference only", False),
    "frame": ArraySpec(("i4",), ("n",), "0-based image in the stack; reference only", False),
}


class OpticsGroup(WireModel):
    """Microscope constants that several particles share."""

    name: Name
    """As in the source, such as opticsGroup1."""
    voltage_kv: Annotated[float, Field(strict=True, ge=10, le=3000, allow_inf_nan=False)]
    """Acceleration voltage in kV."""
    spherical_aberration_mm: Annotated[FiniteFloat, Field(ge=-50, le=50)]
    """Spherical aberration in mm."""
    amplitude_contrast: Fraction
    """Amplitude contrast, 0 to 1."""


class ParticleGeometry(WireModel):
    """The sampling that every particle of a session shares."""

    box: Box
    """Edge of the square particle image in pixels."""
    pixel_size_angstrom: PixelSizeAngstrom
    """Pixel size of the particle image."""


class StackReference(WireModel):
    """One image stack on the shared disk."""

    path: Name
    """Path below one of the consumer's configured roots; checked there against escapes."""
    size_bytes: Count
    """Size of the file when the batch was made; another size is a changed file."""
    sha256: Sha256 | None = None
    """Digest of the file, when the producer computed one."""


class InlinePayload(WireModel):
    """The pixels are in the array ``images``."""

    kind: Literal["inline"] = "inline"
    """Tells the payloads apart."""


class ReferencePayload(WireModel):
    """The pixels are in stacks; the arrays ``stack`` and ``frame`` say where."""

    kind: Literal["reference"] = "reference"
    """Tells the payloads apart."""
    stacks: Annotated[tuple[StackReference, ...], Field(min_length=1, max_length=MAX_ROWS)]
    """The stacks that the rows point into."""


class ParticleBatch(Record):
    """Particles of one session, one row each."""

    SCHEMA_ID: ClassVar[str] = "PART"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = MappingProxyType(_COMMON | _INLINE | _REFERENCE)

    geometry: ParticleGeometry
    """Box and pixel size; the session's first batch sets them."""
    optics_groups: Annotated[tuple[OpticsGroup, ...], Field(min_length=1, max_length=1024)]
    """Microscope constants; rows point here through ``optics_group``."""
    image_names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_ROWS)]
    """Name of each particle in its source; the particle id is derived from it."""
    micrograph_names: Annotated[tuple[Name, ...], Field(max_length=MAX_ROWS)] = ()
    """Micrograph of each particle, or empty."""
    contrast: Literal["bright", "dark"] = "bright"
    """bright: protein has higher values than solvent; dark: the consumer inverts."""
    acquired_at_ns: TimestampNs | None = None
    """When the newest of these particles was recorded, if known (UTC ns); for the delay metric."""
    payload: Annotated[InlinePayload | ReferencePayload, Field(discriminator="kind")]
    """Where the pixels are."""

    @model_validator(mode="after")
    def _one_name_per_row(self) -> Self:
        """Refuse micrograph names that do not go with the rows."""
        if self.micrograph_names and len(self.micrograph_names) != self.count:
            raise ValueError(
                f"{len(self.micrograph_names)} micrograph names for {self.count} particles"
            )
        return self

    @property
    def count(self) -> int:
        """Number of particles."""
        return len(self.image_names)

    def array_specs(self) -> Mapping[str, ArraySpec]:
        """Arrays of this batch, by kind of payload; all of them are required."""
        chosen = _INLINE if self.payload.kind == "inline" else _REFERENCE
        needed = {
            name: ArraySpec(spec.dtypes, spec.shape, spec.description)
            for name, spec in chosen.items()
        }
        return _COMMON | needed

    def dimensions(self) -> Mapping[str, int]:
        """Rows and box, from the header."""
        return {"n": self.count, "box": self.geometry.box}

    def take_rows(self, start: int, stop: int, *, record_id: str) -> Self:
        """Give the header of the rows ``start`` to ``stop`` under a new record id."""
        return self.model_copy(
            update={
                "envelope": self.envelope.with_record_id(record_id),
                "image_names": self.image_names[start:stop],
                "micrograph_names": self.micrograph_names[start:stop],
            }
        )


def particle_id(image_name: str) -> int:
    """Give the 64-bit identity of a particle: the first 8 bytes of BLAKE2b of its name."""
    return int.from_bytes(hashlib.blake2b(image_name.encode("utf-8")).digest()[:8], "little")


def particle_ids(image_names: Sequence[str]) -> Array:
    """Give the identities of several particles.

    Returns
    -------
    ids
        (n,) uint64.
    """
    return np.array([particle_id(name) for name in image_names], dtype=np.uint64)


def inline_batch(
    envelope: Envelope,
    images: Array,
    *,
    geometry: ParticleGeometry,
    optics_groups: Sequence[OpticsGroup],
    image_names: Sequence[str],
    rows: Mapping[str, Array],
    micrograph_names: Sequence[str] = (),
    contrast: Literal["bright", "dark"] = "bright",
    acquired_at_ns: int | None = None,
    pixel_type: Literal["float16", "float32"] = "float16",
) -> tuple[ParticleBatch, dict[str, Array]]:
    """Make a batch that carries its pixels.

    Parameters
    ----------
    envelope
        From ``new_envelope(ParticleBatch, ...)``.
    images
        (n, box, box) pixels.
    rows
        ``defocus_u_angstrom``, ``defocus_v_angstrom`` and, if not zero, ``defocus_angle_rad``,
        ``phase_shift_rad`` and ``optics_group``: (n,) each, converted to the wire's types.
    pixel_type
        float16 halves the record and costs nothing that noise would show.

    Raises
    ------
    ValueError
        Arrays that do not go together, or pixels too large for float16.
    """
    with np.errstate(over="ignore"):  # reported below, in words
        pixels = np.asarray(images).astype(pixel_type, copy=False)
    if pixel_type == "float16" and bool(np.any(np.isinf(pixels) & np.isfinite(images))):
        raise ValueError(
            "pixels above 65504 do not fit float16: normalise the images or send float32"
        )
    batch = ParticleBatch(
        envelope=envelope,
        geometry=geometry,
        optics_groups=tuple(optics_groups),
        image_names=tuple(image_names),
        micrograph_names=tuple(micrograph_names),
        contrast=contrast,
        acquired_at_ns=acquired_at_ns,
        payload=InlinePayload(),
    )
    arrays = {"images": pixels} | _row_arrays(batch.image_names, rows)
    batch.check_arrays(arrays)
    return batch, arrays


def reference_batch(
    envelope: Envelope,
    stacks: Sequence[StackReference],
    *,
    geometry: ParticleGeometry,
    optics_groups: Sequence[OpticsGroup],
    image_names: Sequence[str],
    rows: Mapping[str, Array],
    micrograph_names: Sequence[str] = (),
    contrast: Literal["bright", "dark"] = "bright",
    acquired_at_ns: int | None = None,
) -> tuple[ParticleBatch, dict[str, Array]]:
    """Make a batch whose pixels stay in stacks on the shared disk.

    Parameters
    ----------
    rows
        As for `inline_batch`, plus ``stack`` (index into ``stacks``) and ``frame`` (0-based).

    Raises
    ------
    ValueError
        Arrays that do not go together.
    """
    batch = ParticleBatch(
        envelope=envelope,
        geometry=geometry,
        optics_groups=tuple(optics_groups),
        image_names=tuple(image_names),
        micrograph_names=tuple(micrograph_names),
        contrast=contrast,
        acquired_at_ns=acquired_at_ns,
        payload=ReferencePayload(stacks=tuple(stacks)),
    )
    arrays = _row_arrays(batch.image_names, rows)
    batch.check_arrays(arrays)
    return batch, arrays


def _row_arrays(image_names: Sequence[str], rows: Mapping[str, Array]) -> dict[str, Array]:
    """Bring row columns to the wire's types; absent optional columns are zero."""
    optional = ("defocus_angle_rad", "phase_shift_rad", "optics_group")
    zeros = {name: np.zeros(len(image_names)) for name in optional}
    specs = _COMMON | _REFERENCE
    unknown = sorted(set(rows) - set(specs))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a column of a particle batch")
    columns = {"particle_id": particle_ids(image_names)} | zeros | dict(rows)
    return {
        name: np.asarray(column).astype(specs[name].dtypes[0], copy=False)
        for name, column in columns.items()
    }
