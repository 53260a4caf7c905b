"""Write simulated particles as a microscope's pipeline would: stacks and a RELION 3.1 STAR file.

Layout of the folder: ``Particles/micrograph_000001.mrcs`` ..., ``particles.star`` without poses,
and ``truth.star``: the same rows plus the true poses and ``rlnClassNumber`` (species counted from
1, 0 for junk), so that no reader takes the truth by accident. A stack is complete before a STAR
file names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import mrcfile
import numpy as np

from reconstruct.euler import euler_from_matrix
from reconstruct.io.atomic import replace_atomically
from reconstruct.simulate import Simulated, image_name

__all__ = ["PARTICLES_STAR", "TRUTH_STAR", "write_live", "write_set"]

PARTICLES_STAR = "particles.star"
TRUTH_STAR = "truth.star"

_OPTICS_COLUMNS = (
    "rlnOpticsGroup",
    "rlnOpticsGroupName",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnImageDimensionality",
)
_COLUMNS = (
    "rlnImageName",
    "rlnMicrographName",
    "rlnCoordinateX",
    "rlnCoordinateY",
    "rlnOpticsGroup",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
)
_TRUTH_COLUMNS = (
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnClassNumber",
)
_GRID = 10  # particles per row of a made-up micrograph, for the coordinates


def write_set(folder: Path | str, chunks: Iterable[Simulated]) -> Path:
    """Write every chunk, then the STAR files; return the path of ``particles.star``."""
    rows: list[str] = []
    truth: list[str] = []
    last: Simulated | None = None
    for chunk in chunks:
        _write_chunk(Path(folder), chunk, rows, truth)
        last = chunk
    if last is None:
        raise ValueError("there are no particles to write")
    return _write_stars(Path(folder), last, rows, truth)


def write_live(folder: Path | str, chunks: Iterable[Simulated]) -> Iterator[Path]:
    """Write one chunk per iteration and rewrite the STAR files whole, as live pipelines do.

    Yields the path of ``particles.star`` once its new rows can be read.
    """
    rows: list[str] = []
    truth: list[str] = []
    for chunk in chunks:
        _write_chunk(Path(folder), chunk, rows, truth)
        yield _write_stars(Path(folder), chunk, rows, truth)


def _write_chunk(folder: Path, chunk: Simulated, rows: list[str], truth: list[str]) -> None:
    pixel = chunk.geometry.pixel_size_angstrom
    for micrograph in np.unique(chunk.micrograph):
        members = np.flatnonzero(chunk.micrograph == micrograph)
        name = image_name(int(micrograph), 0).split("@")[1]
        with (
            replace_atomically(folder / name) as temporary,
            mrcfile.new(temporary, overwrite=True) as stack,
        ):
            stack.set_data(chunk.images[members])
            stack.set_image_stack()
            stack.voxel_size = pixel
    euler = np.rad2deg(euler_from_matrix(chunk.rotations))
    for i in range(len(chunk)):
        row = _particle_row(chunk, i)
        rows.append(row)
        x, y = chunk.shifts_angstrom[i]
        pose = " ".join(f"{value:.6f}" for value in (*euler[i], x, y))
        truth.append(f"{row} {pose} {int(chunk.species[i]) + 1}")


def _particle_row(chunk: Simulated, i: int) -> str:
    micrograph, frame = int(chunk.micrograph[i]), int(chunk.frame[i])
    edge = chunk.geometry.box * 2
    x, y = (frame % _GRID + 0.5) * edge, (frame // _GRID + 0.5) * edge
    return (
        f"{image_name(micrograph, frame)} Micrographs/micrograph_{micrograph + 1:06d}.mrc "
        f"{x:.1f} {y:.1f} {int(chunk.optics_group[i]) + 1} "
        f"{chunk.defocus_u_angstrom[i]:.3f} {chunk.defocus_v_angstrom[i]:.3f} "
        f"{np.rad2deg(chunk.defocus_angle_rad[i]):.5f} "
        f"{np.rad2deg(chunk.phase_shift_rad[i]):.5f}"
    )


def _write_stars(folder: Path, like: Simulated, rows: list[str], truth: list[str]) -> Path:
    geometry = like.geometry
    optics = [
        f"{number} opticsGroup{number} {group.voltage_kv:g} {group.spherical_aberration_mm:g} "
        f"{group.amplitude_contrast:g} {geometry.pixel_size_angstrom:.6f} {geometry.box} 2"
        for number, group in enumerate(like.optics, start=1)
    ]
    head = _loop("optics", _OPTICS_COLUMNS, optics)
    for name, columns, lines in (
        (PARTICLES_STAR, _COLUMNS, rows),
        (TRUTH_STAR, _COLUMNS + _TRUTH_COLUMNS, truth),
    ):
        with replace_atomically(folder / name) as temporary:
            text = f"# version 30001\n\n{head}\n# version 30001\n\n"
            temporary.write_text(text + _loop("particles", columns, lines), encoding="utf-8")
    return folder / PARTICLES_STAR


def _loop(table: str, columns: tuple[str, ...], lines: list[str]) -> str:
    names = "".join(f"_{column} #{number}\n" for number, column in enumerate(columns, start=1))
    return f"data_{table}\n\nloop_\n{names}" + "\n".join(lines) + "\n\n"
