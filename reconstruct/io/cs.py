"""Read the particles of cryoSPARC .cs files, joining main and passthrough files on ``uid``.

Convention owned here: ``alignments3D/pose`` is the axis-angle vector of ``A.T``, shifts are in
pixels of ``alignments3D/psize_A`` with RELION's sign, ``split`` 0 and 1 are halves 1 and 2.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.euler import matrix_from_pose_vector
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

COMPRESSED_MAGIC = b"\x95CSDAT"
NUMPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1 << 20  # hundreds of fields with long names; numpy's own limit is 10,000
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
    fields = _load(source)
    notes = _join_passthrough(source, fields, [Path(other) for other in passthrough])
    missing = [name for name in NEEDED if name not in fields]
    if missing:
        raise InputFileError(
            source,
            f"the field {missing[0]} is missing, and no passthrough file has it",
            remedy="Name the job's passthrough file as well, or export the particle group",
            reason="missing_column",
        )
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


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the fields of one file."""
    try:
        with open(path, "rb") as stream:
            magic = stream.read(len(COMPRESSED_MAGIC))
            if magic == COMPRESSED_MAGIC:
                records = _load_compressed(path)
            elif magic == NUMPY_MAGIC:
                stream.seek(0)
                records = np.lib.format.read_array(
                    stream, allow_pickle=False, max_header_size=MAX_HEADER_BYTES
                )
            else:
                raise InputFileError(
                    path,
                    "this is no .cs file" if magic else "the file is empty",
                    remedy="Give the particles .cs of a job or an export",
                    reason="malformed" if magic else "empty",
                )
    except OSError as error:
        raise InputFileError(
            path,
            f"cannot be read ({error.strerror or error})",
            remedy="Check the path and its permissions",
            reason="missing_file",
        ) from error
    except ValueError as error:
        raise InputFileError(
            path,
            f"not a complete .cs file ({error})",
            remedy="Wait until it is written, or copy it again",
            reason="malformed",
        ) from error
    names = records.dtype.names or ()
    if "uid" not in names:
        raise InputFileError(
            path,
            "the field uid is missing",
            remedy="Give the particles .cs of a job or an export",
            reason="missing_column",
        )
    if len(records) == 0:
        raise InputFileError(
            path,
            "holds no particles",
            remedy="Choose the output of a job that has some",
            reason="empty",
        )
    return {name: records[name] for name in names}


def _load_compressed(path: Path) -> npt.NDArray[Any]:
    """Read the newer stream format with cryoSPARC's own package, if that is installed."""
    if importlib.util.find_spec("cryosparc") is None:
        raise InputFileError(
            path,
            "this is cryoSPARC's newer compressed format (CSDAT)",
            remedy="Install cryosparc-tools, or export the particle group, which writes the "
            "plain format",
            reason="unsupported",
        )
    dataset = importlib.import_module("cryosparc.dataset").Dataset.load(str(path))
    return np.asarray(dataset.to_records(fixed=True))


def _join_passthrough(
    path: Path, fields: dict[str, npt.NDArray[Any]], others: Sequence[Path]
) -> list[str]:
    """Add the fields that the main file lacks, joined on uid; say what was found unasked."""
    notes: list[str] = []
    asked = bool(others)
    if not asked:
        if all(name in fields for name in NEEDED):
            return notes
        others = sorted(p for p in path.parent.glob("*passthrough*.cs") if p != path)
    for other in others:
        extra = _load(other)
        uids = np.asarray(extra["uid"])
        order = np.argsort(uids, kind="stable")
        place = order[np.searchsorted(uids[order], fields["uid"]).clip(max=len(uids) - 1)]
        absent = int(np.count_nonzero(uids[place] != fields["uid"]))
        if absent and asked:
            raise InputFileError(
                other,
                f"lacks {absent} of the {len(place)} particles of {path}",
                remedy="Give the passthrough file of the same job",
                reason="malformed",
            )
        if absent:
            continue
        for name, values in extra.items():
            fields.setdefault(name, values[place])
        if not asked:
            notes.append(f"joined {other.name} on uid")
    return notes


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
