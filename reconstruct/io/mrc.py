"""Read particle stacks and maps, write maps, in MRC2014.

Promise: arrays are (frame or z, y, x); a truncated or foreign file is refused in words; the same
volume and labels give the same bytes, because no time of day is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mrcfile
import numpy as np
import numpy.typing as npt
from mrcfile.mrcfile import MrcFile

from reconstruct.io.atomic import replace_atomically
from reconstruct.io.errors import InputFileError
from reconstruct.types import FloatArray, IntArray

__all__ = [
    "StackHeader",
    "Volume",
    "read_header",
    "read_stack",
    "read_volume",
    "write_volume",
]

HEADER_BYTES = 1024
MAX_LABELS = 10
LABEL_BYTES = 80
# mode 0 is signed since MRC2014; IMOD marks its older unsigned files with a stamp and a flag
MODE_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
IMOD_STAMP = 1146047817
IMOD_SIGNED_FLAG = 1
PIXEL_SIZE_TOLERANCE = 1e-3  # relative; headers keep the cell edge in float32


@dataclass(frozen=True)
class StackHeader:
    """What the first kilobyte of an MRC file says."""

    path: Path
    shape: tuple[int, int, int]  # sections, rows, columns as stored
    dtype: np.dtype[np.generic]
    data_offset_bytes: int
    axis_order: tuple[int, int, int]  # 1 x, 2 y, 3 z of columns, rows, sections
    pixel_size_angstrom: tuple[float, float, float] | None  # x, y, z; None where not set

    @property
    def frames(self) -> int:
        """Images in the stack."""
        return self.shape[0]


@dataclass(frozen=True)
class Volume:
    """A map and its sampling."""

    data: FloatArray  # (z, y, x) float32
    pixel_size_angstrom: float


def read_header(path: Path | str) -> StackHeader:
    """Read and check the header of an MRC file.

    Raises
    ------
    InputFileError
        The file is missing, is no MRC file, has a mode that holds no images, or is shorter than
        its header promises.
    """
    source = Path(path)
    size_bytes = _size_bytes(source)
    try:
        with warnings.catch_warnings():
            # Blank magic words are common in the wild; the checks below decide, not the warning.
            warnings.simplefilter("ignore", RuntimeWarning)
            with MrcFile(source, mode="r", permissive=True, header_only=True) as opened:
                header = opened.header
                if header is None:
                    raise ValueError("no header")
                mode, extended = int(header.mode), int(header.nsymbt)
                shape = (int(header.nz), int(header.ny), int(header.nx))
                axes = (int(header.mapc), int(header.mapr), int(header.maps))
                cell = tuple(float(header.cella[axis]) for axis in "xyz")
                sampling = (int(header.mx), int(header.my), int(header.mz))
                order = header.mode.dtype.byteorder
                unsigned = _is_unsigned_imod(header)
    except (ValueError, EOFError) as error:
        raise InputFileError(
            source,
            f"not an MRC file ({error})",
            remedy="Check that the stack was written completely and is not compressed",
            reason="malformed",
        ) from error
    if mode not in MODE_DTYPES:
        raise InputFileError(
            source,
            f"MRC mode {mode} is not one of {', '.join(map(str, MODE_DTYPES))}",
            remedy="Convert the file to mode 2 (32-bit) or 12 (16-bit float)",
            reason="unsupported",
        )
    if min(shape) < 1 or extended < 0:
        raise InputFileError(
            source,
            f"the header claims {shape[2]} x {shape[1]} x {shape[0]} samples",
            remedy="Check that this is an MRC file and was written completely",
            reason="malformed",
        )
    dtype = np.dtype("u1" if mode == 0 and unsigned else MODE_DTYPES[mode]).newbyteorder(order)
    offset = HEADER_BYTES + extended
    expected_bytes = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size_bytes < expected_bytes:
        raise InputFileError(
            source,
            f"truncated: the header promises {shape[0]} sections ({expected_bytes} bytes), "
            f"the file has {size_bytes} bytes",
            remedy="Wait until it is written completely, or copy it again",
            reason="truncated",
        )
    pixel = None
    if min(cell) > 0 and min(sampling) > 0:
        pixel = (cell[0] / sampling[0], cell[1] / sampling[1], cell[2] / sampling[2])
    order_known = sorted(axes) == [1, 2, 3]
    return StackHeader(
        path=source,
        shape=shape,
        dtype=dtype,
        data_offset_bytes=offset,
        axis_order=axes if order_known else (1, 2, 3),
        pixel_size_angstrom=pixel,
    )


def read_stack(path: Path | str, frames: IntArray | Sequence[int]) -> npt.NDArray[np.float32]:
    """Read images of a stack, in the order asked for.

    Parameters
    ----------
    path
        The stack.
    frames
        (n,) 0-based images.

    Returns
    -------
    (n, y, x) float32 as stored: nothing is normalised or inverted.

    Raises
    ------
    InputFileError
        See ``read_header``; or a frame lies beyond the stack.
    """
    header = read_header(path)
    wanted = np.asarray(frames, dtype=np.int64)
    outside = wanted[(wanted < 0) | (wanted >= header.frames)]
    if len(outside):
        raise InputFileError(
            path,
            f"image {int(outside[0]) + 1} is asked for, the stack has {header.frames}",
            remedy="Check that the metadata belong to this stack",
            reason="frame_beyond_stack",
        )
    return np.asarray(_mapped(header)[wanted], dtype=np.float32)


def read_volume(path: Path | str, pixel_size_angstrom: float | None = None) -> Volume:
    """Read a map into (z, y, x) order, whatever axis order the file has.

    Parameters
    ----------
    path
        The map.
    pixel_size_angstrom
        Overrides the header, which some programs leave empty.

    Raises
    ------
    InputFileError
        See ``read_header``; or the sampling is unknown or differs between the axes.
    """
    header = read_header(path)
    if pixel_size_angstrom is None:
        pixel_size_angstrom = _isotropic_pixel_size(header)
    stored = (header.axis_order[2], header.axis_order[1], header.axis_order[0])
    order = [stored.index(axis) for axis in (3, 2, 1)]
    data = np.ascontiguousarray(np.transpose(_mapped(header), order), dtype=np.float32)
    return Volume(data=data, pixel_size_angstrom=float(pixel_size_angstrom))


def write_volume(
    path: Path | str,
    volume: FloatArray,
    *,
    pixel_size_angstrom: float,
    labels: Sequence[str] = (),
) -> None:
    """Write a cubic map by atomic rename: mode 2, space group 1, origin and start 0.

    Parameters
    ----------
    path
        Where to; missing folders are made.
    volume
        (n, n, n) in z, y, x order.
    pixel_size_angstrom
        Sampling, the same along every axis.
    labels
        Up to 10 lines of up to 80 ASCII characters; longer ones are cut.

    Raises
    ------
    ValueError
        The volume is not cubic, or there are more than 10 labels.
    """
    data = np.ascontiguousarray(volume, dtype=np.float32)
    if data.ndim != 3 or len(set(data.shape)) != 1:
        raise ValueError(f"a map must be cubic, not {data.shape}")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"an MRC header has room for {MAX_LABELS} labels, not {len(labels)}")
    with replace_atomically(path) as temporary, mrcfile.new(temporary, overwrite=True) as out:
        out.set_data(data)
        out.set_volume()
        out.voxel_size = float(pixel_size_angstrom)
        header = out.header
        header.origin = (0.0, 0.0, 0.0)
        header.nxstart = header.nystart = header.nzstart = 0
        header.label[:] = b""
        for row, label in enumerate(labels):
            header.label[row] = label.encode("ascii", "replace")[:LABEL_BYTES]
        header.nlabl = len(labels)


def _mapped(header: StackHeader) -> npt.NDArray[np.generic]:
    """Map the samples of a checked file into memory."""
    return np.memmap(
        header.path,
        dtype=header.dtype,
        mode="r",
        offset=header.data_offset_bytes,
        shape=header.shape,
    )


def _size_bytes(path: Path) -> int:
    """Return the size of a regular file, or say that it is missing."""
    try:
        if path.is_file():
            return path.stat().st_size
        detail = "is a folder" if path.is_dir() else "does not exist"
    except OSError as error:
        detail = f"cannot be read ({error.strerror})"
    raise InputFileError(
        path, detail, remedy="Check the path and its permissions", reason="missing_file"
    )


def _isotropic_pixel_size(header: StackHeader) -> float:
    """Return the sampling if it is known and the same along every axis."""
    pixel = header.pixel_size_angstrom
    if pixel is None:
        raise InputFileError(
            header.path,
            "the header has no pixel size",
            remedy="State the pixel size in Angstrom",
            reason="pixel_size",
        )
    if max(pixel) - min(pixel) > PIXEL_SIZE_TOLERANCE * max(pixel):
        raise InputFileError(
            header.path,
            f"the pixel size differs between the axes ({pixel[0]:g}, {pixel[1]:g}, {pixel[2]:g})",
            remedy="State one pixel size in Angstrom, or resample the map",
            reason="pixel_size",
        )
    return pixel[0]


def _is_unsigned_imod(header: np.recarray[tuple[int, ...], np.dtype[np.void]]) -> bool:
    """Whether IMOD wrote mode-0 bytes as unsigned."""
    extra = header.extra2.tobytes()
    order: Literal["big", "little"] = "big" if header.mode.dtype.byteorder == ">" else "little"
    stamp = int.from_bytes(extra[40:44], order)
    flags = int.from_bytes(extra[44:48], order)
    return stamp == IMOD_STAMP and not flags & IMOD_SIGNED_FLAG
