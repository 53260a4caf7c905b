"""Read the particles of cryoSPARC .cs files, joining main and passthrough files on ``uid``.

Convention owned here: ``alignments3D/pose`` is the axis-angle vector of ``A.T``, shifts are in
pixels of ``alignments3D/psize_A`` with RELION's sign, ``split`` 0 and 1 are halves 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.euler import matrix_from_pose_vector
from reconstruct.io.cs_fields import join_passthrough, load_fields
from reconstruct.io.errors import InputFileError
from reconstruct.io.table import (
    AberrationPolicy,
    ParticleTable,
    StackPolicy,
    find_stacks,
    one_box,
    one_pixel_size,
    refuse_aberrations,
)
from reconstruct.types import FloatArray, IntArray, Optics

__all__ = ["read_cs"]

Fields = Mapping[str, npt.NDArray[Any]]

NEEDED = (
    "blob/path",
    "blob/idx",
    "blob/shape",
    "blob/psize_A",
    "ctf/accel_kv",
    "ctf/cs_mm",
    "ctf/amp_contrast",
    "ctf/df1_A",
    "ctf/df2_A",
    "ctf/df_angle_rad",
)
# no aberration is 0 in each of these (the last holds the deviation from the unit matrix)
ABERRATIONS = ("ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")
SAME_OPTICS_DECIMALS = 6


def read_cs(
    path: Path | str,
    data_root: Path | str | None = None,
    *,
    passthrough: Sequence[Path | str] = (),
    stacks: StackPolicy = "require",
    aberrations: AberrationPolicy = "refuse",
) -> ParticleTable:
    """Read a particles .cs file.

    Parameters
    ----------
    path
        The main file.
    data_root
        The project folder that paths start from; by default several likely ones are tried.
    passthrough
        Files with the fields that the main one lacks. Without any, passthrough files of the same
        folder that hold all its particles are used, and noted.
    stacks, aberrations
        As in ``read_star``.

    Raises
    ------
    InputFileError
        Something is missing, broken or out of scope; the message names it and the remedy.
    """
    source = Path(path)
    fields = load_fields(source)
    notes = join_passthrough(source, fields, [Path(other) for other in passthrough], needed=NEEDED)
    missing = [name for name in NEEDED if name not in fields]
    if missing:
        raise InputFileError(
            source,
            f"the field {missing[0]} is missing, and no passthrough file has it",
            remedy="Name the job's passthrough file as well, or export the particle group",
            reason="missing_column",
        )
    _check_types(source, fields)
    return _table(source, fields, notes, data_root, stacks, aberrations)


def _table(
    path: Path,
    fields: Fields,
    notes: list[str],
    data_root: Path | str | None,
    stacks: StackPolicy,
    aberrations: AberrationPolicy,
) -> ParticleTable:
    """Bring complete fields to a table."""
    n = len(fields["uid"])
    shapes = np.asarray(fields["blob/shape"], dtype=np.int64).reshape(n, -1)
    if shapes.shape[1] != 2:
        raise InputFileError(
            path,
            "the images have three dimensions: these are subtomograms",
            remedy="Give it single-particle images",
            reason="subtomograms",
        )
    found = [name for name in ABERRATIONS if name in fields and np.any(fields[name])]
    notes += refuse_aberrations(path, found, aberrations)
    pixel_size = one_pixel_size(path, np.asarray(fields["blob/psize_A"], dtype=np.float64))
    paths, stack_index = _stack_paths(path, fields["blob/path"])
    box = one_box(path, shapes.reshape(-1))
    placed = find_stacks(path, paths, data_root=data_root, policy=stacks, box=box)
    frame = np.asarray(fields["blob/idx"]).astype(np.int32)
    constants, group = np.unique(
        np.stack(
            [
                np.asarray(fields[name], dtype=np.float64).round(SAME_OPTICS_DECIMALS)
                for name in ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
            ],
            axis=1,
        ),
        axis=0,
        return_inverse=True,
    )
    rotations, shifts, class_index, half = _priors(fields, pixel_size)
    image_names = [
        f"{number:06d}@{paths[k]}"
        for number, k in zip((frame + 1).tolist(), stack_index.tolist(), strict=True)
    ]
    phase = fields.get("ctf/phase_shift_rad")
    return ParticleTable(
        path=path,
        layout="cryosparc",
        image_names=image_names,
        micrograph_names=_micrographs(fields, paths, stack_index),
        stacks=placed.paths,
        stack_index=stack_index,
        frame=frame,
        defocus_u_angstrom=_f4(fields["ctf/df1_A"]),
        defocus_v_angstrom=_f4(fields["ctf/df2_A"]),
        defocus_angle_rad=_f4(fields["ctf/df_angle_rad"]),
        phase_shift_rad=np.zeros(n, dtype=np.float32) if phase is None else _f4(phase),
        optics_group=group.reshape(-1).astype(np.int32),
        optics=tuple(Optics(*map(float, row)) for row in constants),
        pixel_size_angstrom=pixel_size,
        box=placed.box,
        rotations=rotations,
        shifts_angstrom=shifts,
        half=half,
        class_index=class_index,
        uid=np.asarray(fields["uid"], dtype=np.uint64),
        contrast_sign=_contrast_sign(path, fields),
        notes=(*notes, *placed.notes),
    )


def _check_types(path: Path, fields: Fields) -> None:
    """Refuse fields that are not one number (or pair, for shapes) per particle."""
    for name in NEEDED:
        values = fields[name]
        dimensions = 2 if name == "blob/shape" else 1
        kinds = "SUO" if name == "blob/path" else "iuf"
        if values.dtype.kind not in kinds or values.ndim != dimensions:
            raise InputFileError(
                path,
                f"the field {name} has the type {values.dtype} {values.shape[1:]}",
                remedy="Export the particle group again",
                reason="malformed",
            )


def _stack_paths(path: Path, values: npt.NDArray[Any]) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Return distinct stack paths, without the ``>`` of exports, and each particle's stack."""
    distinct, stack_index = np.unique(values, return_inverse=True)
    try:
        paths = [
            (value.decode("utf-8") if isinstance(value, bytes) else str(value)).removeprefix(">")
            for value in distinct.tolist()
        ]
    except UnicodeDecodeError as error:
        raise InputFileError(
            path,
            "blob/path is not text (UTF-8)",
            remedy="Rename the stacks",
            reason="malformed",
        ) from error
    return paths, stack_index.reshape(-1).astype(np.int32)


def _priors(
    fields: Fields, pixel_size_angstrom: float
) -> tuple[FloatArray | None, FloatArray | None, IntArray | None, IntArray | None]:
    """Return rotations, shifts in Angstrom, classes and halves, of the likeliest class."""
    prefix = next(
        (p for p in ("alignments3D", "alignments3D_multi") if f"{p}/pose" in fields), None
    )
    if prefix is None:
        return None, None, None, None
    n = len(fields["uid"])
    best = np.zeros(n, dtype=np.int64)
    posterior = fields.get(f"{prefix}/class_posterior")
    if posterior is not None and posterior.ndim == 2:
        best = np.argmax(posterior, axis=1)

    def chosen(name: str, *, trailing: int) -> npt.NDArray[Any] | None:
        values = fields.get(f"{prefix}/{name}")
        if values is not None and values.ndim == trailing + 2:
            values = values[np.arange(n), best]
        return values

    pose, shift = chosen("pose", trailing=1), chosen("shift", trailing=1)
    classes, split = chosen("class", trailing=0), chosen("split", trailing=0)
    pixel = chosen("psize_A", trailing=0)
    unit = np.full(n, pixel_size_angstrom) if pixel is None else np.asarray(pixel, np.float64)
    return (
        None if pose is None else matrix_from_pose_vector(pose),
        None if shift is None else np.asarray(shift, dtype=np.float64) * unit[:, None],
        None if classes is None else classes.astype(np.int32),
        None if split is None else split.astype(np.int32) + 1,
    )


def _micrographs(fields: Fields, paths: Sequence[str], stack_index: IntArray) -> list[str]:
    """Return micrograph names; the stack stands in where the file has none."""
    values = fields.get("location/micrograph_path")
    if values is None or not np.any(values.astype(bool)):
        return [paths[k] for k in stack_index.tolist()]
    return [
        (v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)).removeprefix(">")
        for v in values.tolist()
    ]


def _contrast_sign(path: Path, fields: Fields) -> int | None:
    """Return the sign that makes protein bright, as declared at import."""
    if "blob/sign" not in fields:
        return None
    signs = np.unique(np.sign(fields["blob/sign"]))
    if len(signs) != 1 or signs[0] == 0:
        raise InputFileError(
            path,
            "blob/sign differs between particles: some are bright, some dark",
            remedy="Split the particles by blob/sign",
            reason="mixed_contrast",
        )
    return int(signs[0])


def _f4(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return one number per particle in single precision."""
    return np.asarray(values, dtype=np.float32).reshape(-1)
