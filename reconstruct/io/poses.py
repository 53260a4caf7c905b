"""Bring what the engine found to the rows of a particle table.

Convention owned here: particles are matched by their 64-bit identity, never by row order; a
particle without a class was not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.types import Assignments, FloatArray, IntArray

__all__ = ["RowPoses", "match_rows"]


@dataclass(frozen=True)
class RowPoses:
    """Poses in the order of a table; only used particles have rows here."""

    rows: IntArray  # (m,) rows of the table, ascending
    unused_rows: IntArray  # (n - m,) rows of the table, ascending
    class_index: IntArray  # (m,) 0-based
    rotations: FloatArray  # (m, 3, 3) A
    shifts_angstrom: FloatArray  # (m, 2) x, y
    max_probability: FloatArray  # (m,)
    log_likelihood: FloatArray  # (m,)
    half: IntArray  # (m,) 1 or 2


def match_rows(row_ids: npt.NDArray[np.uint64], assignments: Assignments) -> RowPoses:
    """Find each row's assignment.

    Parameters
    ----------
    row_ids
        (n,) identity of each row of the table.
    assignments
        What the engine knows, in order of arrival.
    """
    known = np.asarray(assignments.particle_ids)
    if len(known) == 0:
        rows = np.zeros(0, dtype=np.int64)
        return _taken(rows, np.arange(len(row_ids)), rows, assignments)
    order = np.argsort(known, kind="stable")
    place = order[np.searchsorted(known[order], row_ids).clip(max=len(known) - 1)]
    used = (known[place] == row_ids) & (np.asarray(assignments.class_index)[place] >= 0)
    return _taken(np.flatnonzero(used), np.flatnonzero(~used), place[used], assignments)


def _taken(
    rows: IntArray, unused_rows: IntArray, place: IntArray, assignments: Assignments
) -> RowPoses:
    """Take the assignments at ``place``."""
    return RowPoses(
        rows=rows,
        unused_rows=unused_rows,
        class_index=assignments.class_index[place],
        rotations=assignments.rotations[place],
        shifts_angstrom=assignments.shifts_angstrom[place],
        max_probability=assignments.max_probability[place],
        log_likelihood=assignments.log_likelihood[place],
        half=assignments.half[place],
    )
