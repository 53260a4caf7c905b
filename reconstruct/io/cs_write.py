"""Write poses and classes as a cryoSPARC .cs file with ``uid`` and the alignment fields only.

Convention owned here: one class gives ``alignments3D/*``; several give ``alignments3D_multi/*``,
where every field has one entry per class and the classes that lost have posterior 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from reconstruct.euler import pose_vector_from_matrix
from reconstruct.io.atomic import replace_atomically
from reconstruct.io.poses import match_rows
from reconstruct.io.table import ParticleTable
from reconstruct.types import Assignments

__all__ = ["write_cs"]

# every field that cryoSPARC expects in the group; those without a value of ours stay 0
FIELDS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("split", "<u4", ()),
    ("shift", "<f4", (2,)),
    ("pose", "<f4", (3,)),
    ("psize_A", "<f4", ()),
    ("error", "<f4", ()),
    ("error_min", "<f4", ()),
    ("resid_pow", "<f4", ()),
    ("slice_pow", "<f4", ()),
    ("image_pow", "<f4", ()),
    ("cross_cor", "<f4", ()),
    ("alpha", "<f4", ()),
    ("alpha_min", "<f4", ()),
    ("weight", "<f4", ()),
    ("pose_ess", "<f4", ()),
    ("shift_ess", "<f4", ()),
    ("class_posterior", "<f4", ()),
    ("class", "<u4", ()),
    ("class_ess", "<f4", ()),
)


def write_cs(
    path: Path | str,
    table: ParticleTable,
    assignments: Assignments,
    *,
    row_ids: npt.NDArray[np.uint64],
    n_classes: int,
) -> int:
    """Write the used particles; return how many there are.

    Parameters
    ----------
    path
        Where to.
    table
        The particles as they came from a .cs file.
    assignments
        What the engine knows; matched by identity.
    row_ids
        (n,) identity of each row of ``table``.
    n_classes
        1 writes ``alignments3D``, more write ``alignments3D_multi``.

    Raises
    ------
    ValueError
        The table did not come from a .cs file, so its particles have no uid.
    """
    if table.uid is None:
        raise ValueError(f"{table.path} has no uid: only .cs input can be written as .cs")
    poses = match_rows(row_ids, assignments)
    several = n_classes > 1
    prefix = "alignments3D_multi" if several else "alignments3D"
    per_class = (n_classes,) if several else ()
    records = np.zeros(
        len(poses.rows),
        dtype=[("uid", "<u8")]
        + [(f"{prefix}/{name}", form, (*per_class, *shape)) for name, form, shape in FIELDS],
    )
    winner = np.asarray(poses.class_index)
    shared = {
        "split": np.asarray(poses.half) - 1,
        "shift": np.asarray(poses.shifts_angstrom) / table.pixel_size_angstrom,
        "pose": pose_vector_from_matrix(poses.rotations),
        "psize_A": np.full(len(winner), table.pixel_size_angstrom),
        "alpha": np.ones(len(winner)),
        "class_ess": np.ones(len(winner)),
    }
    records["uid"] = table.uid[poses.rows]
    for name, values in shared.items():
        records[f"{prefix}/{name}"] = values[:, None] if several else values
    if several:
        records[f"{prefix}/class"] = np.arange(n_classes)
        records[f"{prefix}/class_posterior"] = winner[:, None] == np.arange(n_classes)
    else:
        records[f"{prefix}/class"] = winner
        records[f"{prefix}/class_posterior"] = 1.0
    with replace_atomically(path) as temporary, open(temporary, "wb") as out:
        np.save(out, records, allow_pickle=False)
    return len(records)
