"""Volume snapshots: a manifest of maps on disk with a preview that needs no file system.

The snapshot id is derived from the session and the step, so publishing twice is recognisable.
Projections and slices are scaled per image to 0..255 and serve the eye only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from schemas.arrays import ArraySpec
from schemas.base import (
    Box,
    ClassIndex,
    Count,
    FiniteFloat,
    Fraction,
    Identifier,
    Label,
    Name,
    Phase,
    PixelSizeAngstrom,
    PositiveFloat,
    Sha256,
    WireModel,
)
from schemas.envelope import Record

__all__ = ["ClassManifest", "VolumeSnapshot", "snapshot_id"]


class ClassManifest(WireModel):
    """One class's map and what is known about it."""

    class_index: ClassIndex
    """0-based class."""
    path: Name
    """MRC file of the map, relative to the output folder."""
    sha256: Sha256
    """Digest of the map's file."""
    half1_path: Name
    """MRC file of the first half-map."""
    half1_sha256: Sha256
    """Digest of the first half-map's file."""
    half2_path: Name
    """MRC file of the second half-map."""
    half2_sha256: Sha256
    """Digest of the second half-map's file."""
    box: Box
    """Edge of the cubic map in voxels."""
    pixel_size_angstrom: PixelSizeAngstrom
    """Voxel size."""
    particles: Count
    """Particles whose best class this is."""
    resolution_angstrom: PositiveFloat | None
    """Resolution, or null until it can be said honestly."""
    resolution_kind: Label
    """How it is measured, such as half_map_fsc_0.143."""
    occupancy: Fraction
    """Share of the posterior mass."""
    effective_particles: Annotated[FiniteFloat, Field(ge=0)]
    """Particles' worth of information inside the memory window."""


class VolumeSnapshot(Record):
    """Every class's map at one step."""

    SCHEMA_ID: ClassVar[str] = "VOLS"
    MINOR: ClassVar[int] = 1  # 1: output_folder
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = MappingProxyType(
        {
            "projections": ArraySpec(
                ("u1",), ("classes", 3, "p", "p"), "preview: projections along z, y, x"
            ),
            "slices": ArraySpec(
                ("u1",), ("classes", 3, "p", "p"), "preview: central slices across z, y, x"
            ),
            "volumes": ArraySpec(
                ("f2", "f4"), ("classes", "box", "box", "box"), "maps, (class, z, y, x)", False
            ),
            "fsc": ArraySpec(
                ("f4",), ("classes", "shells"), "half-map FSC by shell, [0] is 1", False
            ),
            "view_histogram": ArraySpec(
                ("f4",),
                ("classes", "tilt", "rot"),
                "counts over tilt 0..pi, rot -pi..pi; per operator of an imposed symmetry",
                False,
            ),
        }
    )

    snapshot_id: Identifier
    """Identity of the snapshot, from `snapshot_id`."""
    parent_snapshot_id: Identifier | None
    """The session's snapshot before this one, or null for the first."""
    step: Count
    """Updates made so far."""
    phase: Phase
    """Phase of the schedule."""
    is_final: bool = False
    """The session has ended: no later snapshot follows."""
    config_digest: Sha256
    """Digest of the settings of the run."""
    software_version: Name
    """Version of the program."""
    particles_seen: Count
    """Distinct particles trained so far."""
    particles_presented: Count
    """Presentations so far, replays included."""
    classes: Annotated[tuple[ClassManifest, ...], Field(min_length=1, max_length=1024)]
    """One entry per class, in order."""
    output_folder: Name | None = None
    """Absolute folder that the maps' paths start from, on the machine that made them. A reader
    who shares that disk finds the files there; it believes them only where the digests match."""

    @model_validator(mode="after")
    def _classes_in_order(self) -> Self:
        """Refuse classes out of order or of different boxes."""
        if [entry.class_index for entry in self.classes] != list(range(len(self.classes))):
            raise ValueError("classes must be listed in order, 0 first, without gaps")
        if len({entry.box for entry in self.classes}) != 1:
            raise ValueError("all classes of a snapshot must have the same box")
        return self

    def dimensions(self) -> Mapping[str, int]:
        """Classes and box, from the header."""
        return {"classes": len(self.classes), "box": self.classes[0].box}


def snapshot_id(session_id: str, step: int) -> str:
    """Give the identity of a session's snapshot at a step."""
    return f"{session_id}-step-{step:08d}"
