"""Read what the particles of a STAR file share: optics, pixel size, box; refuse what is unknown.

Convention owned here: since RELION 3.1 these stand in ``data_optics``, joined on
``rlnOpticsGroup``; before, in every particle row, where rows with equal constants form a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reconstruct.io.errors import InputFileError
from reconstruct.io.star_text import numbers, unquoted, whole_numbers
from reconstruct.io.table import (
    AberrationPolicy,
    Columns,
    one_box,
    one_pixel_size,
    refuse_aberrations,
)
from reconstruct.types import IntArray, Optics

__all__ = ["FileOptics", "read_optics"]

Float64Array = npt.NDArray[np.float64]

OPTICS_TAGS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
MAGNIFICATION_TAGS = {
    "rlnMagMat00": 1.0,
    "rlnMagMat01": 0.0,
    "rlnMagMat10": 0.0,
    "rlnMagMat11": 1.0,
    "rlnMagMatrix_00": 1.0,
    "rlnMagMatrix_01": 0.0,
    "rlnMagMatrix_10": 0.0,
    "rlnMagMatrix_11": 1.0,
}
BEAM_TILT_TAGS = ("rlnBeamTiltX", "rlnBeamTiltY")
ZERNIKE_TAGS = ("rlnOddZernike", "rlnEvenZernike")
MODIFIED_CTF_TAGS = {
    "rlnCtfDataAreCtfPremultiplied": "multiplied by the CTF",
    "rlnCtfDataArePhaseFlipped": "phase-flipped",
}
SAME_OPTICS_DECIMALS = 6


@dataclass(frozen=True)
class FileOptics:
    """The optics of a file and which particle has which."""

    optics: tuple[Optics, ...]
    group: IntArray  # (n,) index into ``optics``
    pixel_size_angstrom: float
    box: int | None  # None where the file does not say
    notes: tuple[str, ...]


def read_optics(
    path: Path,
    particles: Columns,
    optics_block: Columns,
    aberrations: AberrationPolicy,
) -> FileOptics:
    """Return the optics of either layout.

    Parameters
    ----------
    path
        The file, for messages.
    particles
        Columns of the particle table.
    optics_block
        Columns of ``data_optics``; empty up to RELION 3.0.
    aberrations
        Whether to refuse or to neglect what the CTF model does not have.

    Raises
    ------
    InputFileError
        A column is missing, the sampling is mixed, or the images are out of scope.
    """
    if optics_block:
        group, notes = _optics_rows(path, particles, optics_block)
        used = np.unique(group)
        tables = [(optics_block, used), (particles, np.arange(len(particles["rlnImageName"])))]
    else:
        group, notes = None, []
        used = np.arange(len(particles["rlnImageName"]))
        tables = [(particles, used)]
    for columns, rows in tables:
        _refuse_scope(path, columns, rows)
    found = [tag for columns, rows in tables for tag in _aberration_tags(path, columns, rows)]
    notes += refuse_aberrations(path, found, aberrations)
    if "rlnCtfBfactor" in particles and np.any(numbers(path, particles, "rlnCtfBfactor")):
        notes.append("rlnCtfBfactor is not applied")

    source = optics_block or particles
    constants = np.stack([numbers(path, source, tag) for tag in OPTICS_TAGS], axis=1)
    pixel_size = one_pixel_size(path, _pixel_sizes(path, source)[used])
    box = None
    if "rlnImageSize" in source:
        box = one_box(path, whole_numbers(path, source, "rlnImageSize")[used])
    if group is None:
        constants, group = np.unique(
            constants.round(SAME_OPTICS_DECIMALS), axis=0, return_inverse=True
        )
    return FileOptics(
        optics=tuple(Optics(*map(float, row)) for row in constants),
        group=group.reshape(-1).astype(np.int32),
        pixel_size_angstrom=pixel_size,
        box=box,
        notes=tuple(notes),
    )


def _optics_rows(
    path: Path, particles: Columns, optics_block: Columns
) -> tuple[IntArray, list[str]]:
    """Return each particle's row in the optics table."""
    rows = len(next(iter(optics_block.values())))
    n = len(particles["rlnImageName"])
    if "rlnOpticsGroup" not in particles and rows == 1:
        return np.zeros(n, dtype=np.int32), [
            "the particles name no optics group; the only one is used"
        ]
    wanted = whole_numbers(path, particles, "rlnOpticsGroup")
    known = whole_numbers(path, optics_block, "rlnOpticsGroup")
    order = np.argsort(known)
    if len(np.unique(known)) != len(known):
        raise InputFileError(
            path,
            "an optics group is listed twice",
            remedy="Number the rows of data_optics differently",
            reason="malformed",
        )
    place = np.searchsorted(known[order], wanted).clip(max=len(known) - 1)
    strangers = wanted[known[order][place] != wanted]
    if len(strangers):
        raise InputFileError(
            path,
            f"optics group {int(strangers[0])} is not in data_optics",
            remedy="Add it, or remove its particles",
            reason="malformed",
        )
    return order[place].astype(np.int32), []


def _refuse_scope(path: Path, columns: Columns, rows: IntArray) -> None:
    """Refuse volumes and images whose CTF somebody already changed."""
    if "rlnImageDimensionality" in columns and np.any(
        numbers(path, columns, "rlnImageDimensionality")[rows] != 2
    ):
        raise InputFileError(
            path,
            "rlnImageDimensionality is 3: these are subtomograms",
            remedy="Give it single-particle images",
            reason="subtomograms",
        )
    for tag, words in MODIFIED_CTF_TAGS.items():
        if tag in columns and np.any(numbers(path, columns, tag)[rows] != 0):
            raise InputFileError(
                path,
                f"the images are {words} ({tag} is 1)",
                remedy="Extract them again without that option",
                reason="modified_ctf",
            )


def _aberration_tags(path: Path, columns: Columns, rows: IntArray) -> list[str]:
    """Return the columns that hold an aberration in one of the rows."""
    neutral = {**dict.fromkeys(BEAM_TILT_TAGS, 0.0), **MAGNIFICATION_TAGS}
    found = [
        tag
        for tag, value in neutral.items()
        if tag in columns and np.any(numbers(path, columns, tag)[rows] != value)
    ]
    for tag in ZERNIKE_TAGS:
        if tag in columns and any(_has_nonzero(columns[tag][row]) for row in rows):
            found.append(tag)
    return found


def _has_nonzero(vector: str) -> bool:
    """Whether a ``[a,b,c]`` value holds anything but zeros; text that is no number counts."""
    for part in unquoted(vector).strip("[]").split(","):
        try:
            if part.strip() and float(part) != 0:
                return True
        except ValueError:
            return True
    return False


def _pixel_sizes(path: Path, source: Columns) -> Float64Array:
    """Return Angstrom per pixel of the particle images, one per row."""
    if "rlnImagePixelSize" in source:
        return numbers(path, source, "rlnImagePixelSize")
    detector_um = numbers(path, source, "rlnDetectorPixelSize")
    magnification = numbers(path, source, "rlnMagnification")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1e4 * detector_um / magnification)
