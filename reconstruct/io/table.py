"""One table for particle metadata, whichever program wrote them.

Convention owned here: what leaves this module is in Angstrom and radians with 0-based frames and
classes; ``columns`` keeps the incoming STAR text untouched so that it can be written back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from reconstruct.io.errors import InputFileError
from reconstruct.io.mrc import read_header
from reconstruct.types import FloatArray, IntArray, Optics

__all__ = [
    "AberrationPolicy",
    "Columns",
    "Layout",
    "ParticleTable",
    "StackPolicy",
    "Stacks",
    "find_stacks",
    "refuse_aberrations",
    "table_from_arrays",
]

Columns = Mapping[str, Sequence[str]]
Layout = Literal["relion-3.1", "relion-3.0", "cryosparc", "arrays"]
StackPolicy = Literal["require", "defer"]
AberrationPolicy = Literal["refuse", "neglect"]

ANCESTORS_TRIED = 4  # a RELION project root lies two folders above a job's STAR file
PIXEL_SIZE_TOLERANCE = 1e-3  # relative; finer differences are rounding of the producer


@dataclass(frozen=True)
class ParticleTable:
    """Particle metadata, one row per particle, with the stacks they point at."""

    path: Path
    layout: Layout
    image_names: list[str]
    micrograph_names: list[str]
    stacks: tuple[Path, ...]
    stack_index: IntArray  # (n,) index into ``stacks``
    frame: IntArray  # (n,) 0-based
    defocus_u_angstrom: FloatArray  # (n,) positive is underfocus
    defocus_v_angstrom: FloatArray  # (n,)
    defocus_angle_rad: FloatArray  # (n,)
    phase_shift_rad: FloatArray  # (n,)
    optics_group: IntArray  # (n,) index into ``optics``
    optics: tuple[Optics, ...]
    pixel_size_angstrom: float
    box: int | None  # None only where neither metadata nor a stack could tell
    columns: Columns = field(default_factory=dict)  # STAR text without the leading underscore
    optics_columns: Columns = field(default_factory=dict)
    rotations: FloatArray | None = None  # (n, 3, 3) prior A
    shifts_angstrom: FloatArray | None = None  # (n, 2) prior x, y
    half: IntArray | None = None  # (n,) 1 or 2
    class_index: IntArray | None = None  # (n,) 0-based
    uid: npt.NDArray[np.uint64] | None = None  # (n,) cryoSPARC identity
    contrast_sign: int | None = None  # declared by the producer: -1 is dark protein
    notes: tuple[str, ...] = ()  # what a person should be told once, in words

    def __len__(self) -> int:
        return len(self.image_names)


@dataclass(frozen=True)
class Stacks:
    """Where the stacks of a table are."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    box: int | None


def find_stacks(
    path: Path,
    names: Sequence[str],
    *,
    data_root: Path | str | None,
    policy: StackPolicy,
    box: int | None,
) -> Stacks:
    """Find stack files and check the box of the first.

    Parameters
    ----------
    path
        The metadata file.
    names
        Distinct stack paths as written in it.
    data_root
        The only folder to start from, if given. Otherwise: the folder of the metadata file (Warp),
        the folders above it (a RELION or cryoSPARC project root), the working folder.
    policy
        ``defer`` accepts stacks that are not there (yet).
    box
        Image size that the metadata state, if they do.

    Raises
    ------
    InputFileError
        A stack is nowhere (all roots tried are named), or its box differs.
    """
    roots = _roots(path, data_root)
    found: list[Path | None] = []
    working: list[Path] = []
    for name in names:
        root = next((r for r in [*working, *roots] if (r / name).is_file()), None)
        if root is not None and root not in working:
            working.append(root)
        found.append(None if root is None else root / name)
    missing = [name for name, place in zip(names, found, strict=True) if place is None]
    if missing and policy == "require":
        tried = ", ".join(str(root) for root in roots)
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputFileError(
            path,
            f"stack {missing[0]}{others} was found under none of: {tried}",
            remedy="Give the folder that the paths start from with --data-root",
            reason="missing_stack",
        )
    notes = []
    if working and not all(os.path.isabs(name) for name in names):
        notes.append(f"stack paths start from {' and '.join(str(root) for root in working)}")
    if missing:
        notes.append(f"{len(missing)} of {len(names)} stacks are not there yet")
    paths = tuple(place or roots[0] / name for name, place in zip(names, found, strict=True))
    first = next((place for place in found if place is not None), None)
    return Stacks(paths=paths, notes=tuple(notes), box=_checked_box(path, first, box))


def refuse_aberrations(path: Path, found: Sequence[str], policy: AberrationPolicy) -> list[str]:
    """Refuse, or note that they are neglected, aberrations that the CTF model does not have.

    Parameters
    ----------
    path
        The metadata file.
    found
        Names of the fields that hold something other than "no aberration".
    policy
        ``neglect`` goes on and says so; at 12 A and coarser the phase error is a few degrees.
    """
    if not found:
        return []
    if policy == "neglect":
        return [f"neglected, as asked: aberrations in {', '.join(found)}"]
    raise InputFileError(
        path,
        f"{', '.join(found)}: beam tilt, higher-order aberrations and anisotropic magnification "
        "are not modelled",
        remedy="Use particles from before CTF refinement, or accept the small error at ab-initio "
        "resolution by asking that aberrations be neglected",
        reason="aberrations",
    )


def table_from_arrays(
    image_names: Sequence[str],
    *,
    micrograph_names: Sequence[str],
    defocus_u_angstrom: FloatArray,
    defocus_v_angstrom: FloatArray,
    defocus_angle_rad: FloatArray,
    phase_shift_rad: FloatArray,
    optics_group: IntArray,
    optics: tuple[Optics, ...],
    pixel_size_angstrom: float,
    box: int,
) -> ParticleTable:
    """Make a table for particles that came without a metadata file, so that it can be written.

    Stack and frame are taken from the image names where these read ``<index>@<stack>``.
    """
    n = len(image_names)
    stacks: dict[str, int] = {}
    stack_index = np.zeros(n, dtype=np.int32)
    frame = np.zeros(n, dtype=np.int32)
    for row, name in enumerate(image_names):
        index, at, stack = name.partition("@")
        stack_index[row] = stacks.setdefault(stack if at else name, len(stacks))
        frame[row] = max(int(index) - 1, 0) if at and index.isdecimal() else 0
    return ParticleTable(
        path=Path(),
        layout="arrays",
        image_names=list(image_names),
        micrograph_names=list(micrograph_names),
        stacks=tuple(Path(stack) for stack in stacks),
        stack_index=stack_index,
        frame=frame,
        defocus_u_angstrom=defocus_u_angstrom,
        defocus_v_angstrom=defocus_v_angstrom,
        defocus_angle_rad=defocus_angle_rad,
        phase_shift_rad=phase_shift_rad,
        optics_group=optics_group,
        optics=optics,
        pixel_size_angstrom=pixel_size_angstrom,
        box=box,
    )


def one_pixel_size(path: Path, pixel_sizes_angstrom: FloatArray) -> float:
    """Return the one pixel size of all particles, or refuse."""
    low, high = float(np.min(pixel_sizes_angstrom)), float(np.max(pixel_sizes_angstrom))
    if not low > 0 or not np.isfinite(high):
        raise InputFileError(
            path,
            f"the pixel size {low:g} A is not a positive number",
            remedy="Mend the pixel size in the file",
            reason="pixel_size",
        )
    if high - low > PIXEL_SIZE_TOLERANCE * high:
        raise InputFileError(
            path,
            f"mixed pixel sizes, from {low:g} to {high:g} A",
            remedy="Rescale the particles to one pixel size, or split the file",
            reason="mixed_pixel_size",
        )
    return float(pixel_sizes_angstrom[0])


def one_box(path: Path, boxes: IntArray) -> int:
    """Return the one box of all particles, or refuse."""
    distinct = np.unique(boxes)
    if len(distinct) != 1 or distinct[0] < 2:
        raise InputFileError(
            path,
            f"image sizes {', '.join(map(str, distinct.tolist()))} px: one square size is needed",
            remedy="Extract all particles with the same box",
            reason="box",
        )
    return int(distinct[0])


def _roots(path: Path, data_root: Path | str | None) -> list[Path]:
    """Return the folders that relative stack paths may start from, likeliest first."""
    if data_root is not None:
        return [Path(os.path.abspath(data_root))]
    home = Path(os.path.abspath(path)).parent
    ancestors = [p for p in list(home.parents)[:ANCESTORS_TRIED] if p != p.parent]
    candidates = [home, *ancestors, Path.cwd()]
    return list(dict.fromkeys(candidates))


def _checked_box(path: Path, stack: Path | None, box: int | None) -> int | None:
    """Compare the stated box with the first stack at hand; return the box."""
    if stack is None:
        return box
    rows, columns = read_header(stack).shape[1:]
    if rows != columns or (box is not None and rows != box):
        raise InputFileError(
            path,
            f"the images in {stack} are {columns} x {rows} px"
            + (f", not {box} x {box} as stated" if box is not None else ", which is not square"),
            remedy="Check that the metadata belong to these stacks",
            reason="box",
        )
    return rows
