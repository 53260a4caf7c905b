"""Who the particles are: one immutable row per accepted particle, in the engine's order.

The engine knows pixels; the roster knows names and optics, for assignments and STAR files, and the
set of identities by which a repeated particle is recognised. Row i is row i of the engine's store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["COLUMNS", "Roster", "encoded"]

Array = npt.NDArray[Any]

COLUMNS = (
    "particle_id",
    "image_name",  # UTF-8
    "micrograph_name",  # UTF-8, empty when not known
    "defocus_u_angstrom",
    "defocus_v_angstrom",
    "defocus_angle_rad",
    "phase_shift_rad",
    "optics_group",  # index into the session's optics groups
)


class Roster:
    """Rows of accepted particles; grows only at the end."""

    def __init__(self, rows: Mapping[str, Array] | None = None) -> None:
        self._parts: list[Mapping[str, Array]] = []
        self._length = 0
        self.ids: set[int] = set()
        if rows:
            self.extend(rows)

    def __len__(self) -> int:
        return self._length

    def extend(self, rows: Mapping[str, Array]) -> None:
        """Append rows; every column must be there."""
        part = {name: rows[name] for name in COLUMNS}
        self._parts.append(part)
        self._length += len(part["particle_id"])
        self.ids.update(part["particle_id"].tolist())

    def rows_from(self, start: int) -> dict[str, Array]:
        """Give the rows from ``start`` on, one array per column."""
        if len(self._parts) > 1:
            self._parts = [
                {name: np.concatenate([part[name] for part in self._parts]) for name in COLUMNS}
            ]
        if not self._parts:
            return {}
        return {name: self._parts[0][name][start:] for name in COLUMNS}

    def names(self, column: str) -> list[str]:
        """Give a column of names as text."""
        rows = self.rows_from(0)
        return [name.decode("utf-8") for name in rows[column].tolist()] if rows else []


def encoded(names: Sequence[str]) -> Array:
    """Give names as a column of bytes."""
    return np.array([name.encode("utf-8") for name in names], dtype=np.bytes_)
