"""Write poses and classes as a RELION 3.1 STAR file that keeps every incoming column.

Promise: incoming values are written back as they came, except the columns this program answers
for; the file appears whole, by atomic rename.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from reconstruct.euler import euler_from_matrix
from reconstruct.io.atomic import replace_atomically
from reconstruct.io.poses import RowPoses, match_rows
from reconstruct.io.star_text import quoted
from reconstruct.io.table import ParticleTable
from reconstruct.types import Assignments, IntArray

__all__ = ["write_star"]

ROWS_PER_WRITE = 20_000  # bounds the text held in memory


def write_star(
    path: Path | str,
    table: ParticleTable,
    assignments: Assignments,
    *,
    row_ids: npt.NDArray[np.uint64],
    unused_path: Path | str | None = None,
) -> int:
    """Write the used particles with their poses; return how many there are.

    Parameters
    ----------
    path
        Where to.
    table
        The particles as they came.
    assignments
        What the engine knows; matched by identity.
    row_ids
        (n,) identity of each row of ``table``.
    unused_path
        Where to write the particles without a class, as they came.
    """
    poses = match_rows(row_ids, assignments)
    incoming = _particle_columns(table)
    answers = _pose_columns(table, poses)
    columns = {
        **{tag: _taken(values, poses.rows) for tag, values in incoming.items()},
        **answers,
    }
    _write(path, table, columns)
    if unused_path is not None:
        _write(
            unused_path,
            table,
            {tag: _taken(values, poses.unused_rows) for tag, values in incoming.items()},
        )
    return len(poses.rows)


def _write(path: Path | str, table: ParticleTable, columns: Mapping[str, Sequence[str]]) -> None:
    """Write both tables of a RELION 3.1 file."""
    with (
        replace_atomically(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as out,
    ):
        _write_loop(out, "optics", _optics_columns(table))
        _write_loop(out, "particles", columns)


def _write_loop(out: TextIO, name: str, columns: Mapping[str, Sequence[str]]) -> None:
    """Write one table."""
    out.write(f"\n# version 30001\n\ndata_{name}\n\nloop_\n")
    out.writelines(f"_{tag} #{k}\n" for k, tag in enumerate(columns, start=1))
    out.writelines(_row_text(list(columns.values())))
    out.write("\n")


def _row_text(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as text, many at a time."""
    for start in range(0, len(columns[0]), ROWS_PER_WRITE):
        part = [values[start : start + ROWS_PER_WRITE] for values in columns]
        yield "\n".join(map(" ".join, zip(*part, strict=True))) + "\n"


def _particle_columns(table: ParticleTable) -> dict[str, Sequence[str]]:
    """Return the incoming columns, or those that any RELION job needs."""
    columns: dict[str, Sequence[str]] = dict(table.columns)
    if not columns:
        columns = {
            "rlnImageName": [quoted(name) for name in table.image_names],
            "rlnMicrographName": [quoted(name) for name in table.micrograph_names],
            "rlnDefocusU": _text("%.2f", table.defocus_u_angstrom),
            "rlnDefocusV": _text("%.2f", table.defocus_v_angstrom),
            "rlnDefocusAngle": _text("%.4f", np.degrees(table.defocus_angle_rad)),
            "rlnPhaseShift": _text("%.4f", np.degrees(table.phase_shift_rad)),
        }
    if "rlnOpticsGroup" not in columns or not table.optics_columns:
        columns["rlnOpticsGroup"] = _text("%d", np.asarray(table.optics_group) + 1)
    return columns


def _pose_columns(table: ParticleTable, poses: RowPoses) -> dict[str, Sequence[str]]:
    """Return the columns that this program answers for."""
    euler_degrees = np.degrees(euler_from_matrix(poses.rotations.reshape(-1, 3, 3)))
    shifts = np.asarray(poses.shifts_angstrom, dtype=np.float64).reshape(-1, 2)
    columns: dict[str, Sequence[str]] = {
        "rlnAngleRot": _text("%.5f", euler_degrees[:, 0]),
        "rlnAngleTilt": _text("%.5f", euler_degrees[:, 1]),
        "rlnAnglePsi": _text("%.5f", euler_degrees[:, 2]),
        "rlnOriginXAngst": _text("%.5f", shifts[:, 0]),
        "rlnOriginYAngst": _text("%.5f", shifts[:, 1]),
        "rlnClassNumber": _text("%d", np.asarray(poses.class_index) + 1),
        "rlnMaxValueProbDistribution": _text("%.6f", poses.max_probability),
        "rlnRandomSubset": _text("%d", poses.half),
        "rlnLogLikeliContribution": _text("%.6g", poses.log_likelihood),
    }
    for axis, tag in enumerate(("rlnOriginX", "rlnOriginY")):
        if tag in table.columns:  # the pixel shifts of RELION 3.0 must not contradict the new ones
            columns[tag] = _text("%.5f", shifts[:, axis] / table.pixel_size_angstrom)
    return columns


def _optics_columns(table: ParticleTable) -> dict[str, Sequence[str]]:
    """Return the incoming optics table with what RELION demands added, or a new one."""
    incoming = dict(table.optics_columns)
    count = len(next(iter(incoming.values()))) if incoming else len(table.optics)
    made: dict[str, Sequence[str]] = {
        "rlnOpticsGroup": [str(k + 1) for k in range(count)],
        "rlnOpticsGroupName": [f"opticsGroup{k + 1}" for k in range(count)],
        "rlnVoltage": [f"{o.voltage_kv:.6f}" for o in table.optics],
        "rlnSphericalAberration": [f"{o.spherical_aberration_mm:.6f}" for o in table.optics],
        "rlnAmplitudeContrast": [f"{o.amplitude_contrast:.6f}" for o in table.optics],
        "rlnImagePixelSize": [f"{table.pixel_size_angstrom:.6f}"] * count,
        "rlnImageDimensionality": ["2"] * count,
    }
    if table.box is not None:
        made["rlnImageSize"] = [str(table.box)] * count
    return {**made, **incoming}


def _taken(values: Sequence[str], rows: IntArray) -> Sequence[str]:
    """Take rows of a column of text."""
    if len(rows) == len(values):
        return values
    return [values[row] for row in rows.tolist()]


def _text(form: str, values: npt.ArrayLike) -> list[str]:
    """Write numbers as text."""
    return [form % value for value in np.asarray(values).tolist()]
