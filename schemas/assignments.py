"""Assignments: class, pose and shift of each particle at one snapshot.

Rotations map the volume frame to the image frame (RELION ZYZ): Euler angles (rot, tilt, psi) in
radians or matrices. Translating the image by ``shift_angstrom`` (x, y) centres the particle.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.arrays import ArraySpec
from schemas.base import MAX_ROWS, Count, Identifier, Name
from schemas.envelope import Record

__all__ = ["AssignmentBatch"]

_EULER = ArraySpec(("f4", "f8"), ("n", 3), "(rot, tilt, psi) in radians, rotation_kind euler")
_MATRIX = ArraySpec(("f4", "f8"), ("n", 3, 3), "matrices A, rotation_kind matrix")


class AssignmentBatch(Record):
    """What is known about some particles, one row each."""

    SCHEMA_ID: ClassVar[str] = "ASGN"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = MappingProxyType(
        {
            "particle_id": ArraySpec(("u8",), ("n",), "identity of the particle"),
            "class_index": ArraySpec(("i4",), ("n",), "0-based class; -1: not used yet"),
            "rotation": ArraySpec(
                ("f4", "f8"), ("n", 3, "..."), "(n, 3) Euler radians or (n, 3, 3) matrices A"
            ),
            "shift_angstrom": ArraySpec(("f4",), ("n", 2), "(x, y) that centres the particle"),
            "max_probability": ArraySpec(("f4",), ("n",), "largest posterior weight of one pose"),
            "log_likelihood": ArraySpec(
                ("f4", "f8"), ("n",), "evidence against noise only, in nats"
            ),
            "half": ArraySpec(("u1", "i4"), ("n",), "half-set, 1 or 2"),
        }
    )

    snapshot_id: Identifier
    """The snapshot whose maps these poses belong to."""
    step: Count
    """Updates made so far."""
    rotation_kind: Literal["euler", "matrix"] = "matrix"
    """euler: (n, 3) rot, tilt, psi in radians; matrix: (n, 3, 3)."""
    first_row: Count = 0
    """Row of the first particle of this record in the snapshot's whole table."""
    total_rows: Count
    """Rows of the snapshot's whole table; a reader is complete when it has them all."""
    image_names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_ROWS)]
    """Name of each particle in its source."""

    @model_validator(mode="after")
    def _rows_inside_table(self) -> Self:
        """Refuse rows beyond the snapshot's table."""
        if self.first_row + self.count > self.total_rows:
            raise ValueError(
                f"rows {self.first_row} to {self.first_row + self.count} do not fit "
                f"a table of {self.total_rows}"
            )
        return self

    @property
    def count(self) -> int:
        """Number of particles."""
        return len(self.image_names)

    def array_specs(self) -> Mapping[str, ArraySpec]:
        """Arrays of this batch: the rotation's shape follows its kind."""
        rotation = _EULER if self.rotation_kind == "euler" else _MATRIX
        return dict(self.ARRAYS) | {"rotation": rotation}

    def dimensions(self) -> Mapping[str, int]:
        """Rows, from the header."""
        return {"n": self.count}

    def take_rows(self, start: int, stop: int, *, record_id: str) -> Self:
        """Give the header of the rows ``start`` to ``stop`` under a new record id."""
        return self.model_copy(
            update={
                "envelope": self.envelope.with_record_id(record_id),
                "first_row": self.first_row + start,
                "image_names": self.image_names[start:stop],
            }
        )
