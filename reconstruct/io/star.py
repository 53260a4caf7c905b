"""Read the particles of RELION STAR files, from RELION 2 to 5 and the programs that imitate it.

Convention owned here: degrees, pixels and 1-based numbers of the file become radians, Angstrom
and 0-based numbers in ``ParticleTable``; what the CTF model cannot honour is refused in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reconstruct.euler import matrix_from_euler
from reconstruct.io.errors import InputFileError
from reconstruct.io.star_optics import read_optics
from reconstruct.io.star_text import numbers, parse_star, unquoted, whole_numbers
from reconstruct.io.table import (
    AberrationPolicy,
    Columns,
    ParticleTable,
    StackPolicy,
    find_stacks,
)
from reconstruct.types import IntArray

__all__ = ["read_star", "table_from_star_text"]

Float64Array = npt.NDArray[np.float64]

MAX_INDEX_DIGITS = 9  # fits 32 bits; no stack has a milliard images
SUBTOMOGRAM_TAGS = ("rlnCoordinateZ", "rlnTomoName", "rlnTomoParticleId", "rlnTomoParticleName")


def read_star(
    path: Path | str,
    data_root: Path | str | None = None,
    *,
    stacks: StackPolicy = "require",
    aberrations: AberrationPolicy = "refuse",
) -> ParticleTable:
    """Read a particles STAR file.

    Parameters
    ----------
    path
        The file.
    data_root
        The folder that stack paths start from; by default several likely ones are tried.
    stacks
        ``defer`` accepts stacks that are not there (yet).
    aberrations
        ``neglect`` accepts beam tilt, higher-order aberrations and magnification matrices and
        notes that they are neglected.

    Raises
    ------
    InputFileError
        Something is missing, broken or out of scope; the message names it and the remedy.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise InputFileError(
            source,
            f"cannot be read ({error.strerror})",
            remedy="Check the path and its permissions",
            reason="missing_file",
        ) from error
    return table_from_star_text(
        source, data, data_root=data_root, stacks=stacks, aberrations=aberrations
    )


def table_from_star_text(
    path: Path,
    data: bytes,
    *,
    data_root: Path | str | None = None,
    stacks: StackPolicy = "require",
    aberrations: AberrationPolicy = "refuse",
) -> ParticleTable:
    """Read particles from the content of a STAR file; see ``read_star``."""
    blocks = parse_star(path, data)
    particles = _particle_block(path, blocks)
    optics_block = blocks.get("optics", {})
    names = [unquoted(value) for value in particles["rlnImageName"]]
    if not names:
        raise InputFileError(
            path,
            "holds no particles",
            remedy="Wait for the first particles, or choose another file",
            reason="empty",
        )
    optics = read_optics(path, particles, optics_block, aberrations)
    index, stack_names, stack_index = _split_image_names(path, names)
    frame, frame_notes = _zero_based(index, stack_names, stack_index)
    placed = find_stacks(path, stack_names, data_root=data_root, policy=stacks, box=optics.box)

    def optional(tag: str) -> Float64Array | None:
        return numbers(path, particles, tag) if tag in particles else None

    phase_shift = optional("rlnPhaseShift")
    half = (
        whole_numbers(path, particles, "rlnRandomSubset")
        if "rlnRandomSubset" in particles
        else None
    )
    class_number = (
        whole_numbers(path, particles, "rlnClassNumber") if "rlnClassNumber" in particles else None
    )
    micrographs = particles.get("rlnMicrographName")
    return ParticleTable(
        path=path,
        layout="relion-3.1" if optics_block else "relion-3.0",
        image_names=names,
        micrograph_names=[unquoted(value) for value in micrographs]
        if micrographs is not None
        else [stack_names[k] for k in stack_index],
        stacks=placed.paths,
        stack_index=stack_index,
        frame=frame,
        defocus_u_angstrom=numbers(path, particles, "rlnDefocusU").astype(np.float32),
        defocus_v_angstrom=numbers(path, particles, "rlnDefocusV").astype(np.float32),
        defocus_angle_rad=np.radians(numbers(path, particles, "rlnDefocusAngle")).astype(
            np.float32
        ),
        phase_shift_rad=(
            np.zeros(len(names)) if phase_shift is None else np.radians(phase_shift)
        ).astype(np.float32),
        optics_group=optics.group,
        optics=optics.optics,
        pixel_size_angstrom=optics.pixel_size_angstrom,
        box=placed.box,
        columns=particles,
        optics_columns=optics_block,
        rotations=_prior_rotations(path, particles),
        shifts_angstrom=_prior_shifts(path, particles, optics.pixel_size_angstrom),
        half=half,
        class_index=None if class_number is None else class_number - 1,
        notes=(*optics.notes, *frame_notes, *placed.notes),
    )


def _particle_block(path: Path, blocks: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """Return the block that holds the particles: by its columns, since block names vary."""
    tables = {name: block for name, block in blocks.items() if block and name != "optics"}
    for block in tables.values():
        if any(tag in block for tag in SUBTOMOGRAM_TAGS):
            raise InputFileError(
                path,
                "these are subtomograms, which this program does not reconstruct",
                remedy="Give it single-particle images",
                reason="subtomograms",
            )
    for block in tables.values():
        if "rlnImageName" in block:
            return block
    described = ", ".join(f"data_{name}" for name in blocks) or "no tables"
    raise InputFileError(
        path,
        f"no table has the column rlnImageName (found: {described})",
        remedy="Give the particles STAR of an extraction, 2D or 3D job",
        reason="missing_column",
    )


def _split_image_names(
    path: Path, names: Sequence[str]
) -> tuple[IntArray, list[str], npt.NDArray[np.int32]]:
    """Return indices as written, the distinct stacks, and which stack each image is in."""
    index = np.empty(len(names), dtype=np.int64)
    stack_index = np.empty(len(names), dtype=np.int32)
    stacks: dict[str, int] = {}
    for row, name in enumerate(names):
        number, at, stack = name.partition("@")
        if not at or not stack or not number.isdecimal() or len(number) > MAX_INDEX_DIGITS:
            raise InputFileError(
                path,
                f"rlnImageName, row {row + 1}: {name!r} is not <index>@<stack>",
                remedy="Give images that lie in stacks (.mrcs)",
                reason="malformed",
            )
        index[row] = int(number)
        stack_index[row] = stacks.setdefault(stack, len(stacks))
    return index, list(stacks), stack_index


def _zero_based(
    index: IntArray, stack_names: Sequence[str], stack_index: IntArray
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Return 0-based frames; a stack in which an index 0 occurs is counted from 0 already."""
    from_zero = np.zeros(len(stack_names), dtype=np.int64)
    from_zero[stack_index[index == 0]] = 1
    frame = (index - 1 + from_zero[stack_index]).astype(np.int32)
    if not from_zero.any():
        return frame, []
    first = stack_names[int(np.argmax(from_zero))]
    return frame, [
        f"{int(from_zero.sum())} of {len(stack_names)} stacks are counted from 0 "
        f"(RELION counts from 1), {first} for one"
    ]


def _prior_rotations(path: Path, particles: Columns) -> Float64Array | None:
    """Return the poses in the file, if it has complete ones."""
    tags = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    if not all(tag in particles for tag in tags):
        return None
    degrees = np.stack([numbers(path, particles, tag) for tag in tags], axis=1)
    return matrix_from_euler(np.radians(degrees))


def _prior_shifts(
    path: Path, particles: Columns, pixel_size_angstrom: float
) -> Float64Array | None:
    """Return the shifts in the file: Angstrom since RELION 3.1, pixels before."""
    for tags, unit in (
        (("rlnOriginXAngst", "rlnOriginYAngst"), 1.0),
        (("rlnOriginX", "rlnOriginY"), pixel_size_angstrom),
    ):
        if all(tag in particles for tag in tags):
            return np.stack([numbers(path, particles, tag) * unit for tag in tags], axis=1)
    return None
