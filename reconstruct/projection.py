"""Accurate projections of a density by the central-slice theorem, for simulation.

Convention: ``images[i](x, y)`` is the sum over z of ``volume(A_i.T @ (x, y, z))`` with the origin
at index ``box // 2`` of every axis. Interpolation in Fourier space uses a Kaiser-Bessel kernel four
samples wide on a transform padded two times, and the kernel's own transform is divided out in real
space first; trilinear interpolation was rejected because it is only right on average (a slice
through grid points would carry the full correction as an error). Frequencies at or beyond the
Nyquist sphere are zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.special

from reconstruct.types import FloatArray

__all__ = [
    "ImagePlane",
    "Projector",
    "image_plane",
    "images_from_transforms",
    "make_projector",
    "project",
]

_PADDING = 2
_WIDTH = 4
# Beatty's choice of the shape for this width and padding (Beatty, Nishimura & Pauly 2005, eq. 5).
_SHAPE = math.pi * math.sqrt((_WIDTH / _PADDING) ** 2 * (_PADDING - 0.5) ** 2 - 0.8)
_TABLE_ROWS = 4096  # the weight's error from rounding the offset is below 2e-4


@dataclass(frozen=True)
class ImagePlane:
    """Frequencies of the half plane of a ``box`` image that lie inside the Nyquist circle."""

    box: int
    rows: npt.NDArray[np.int32]  # (m,) row in the layout of rfft2
    columns: npt.NDArray[np.int32]  # (m,) column in the layout of rfft2
    x: npt.NDArray[np.float32]  # (m,) frequency in shells (cycles per box)
    y: npt.NDArray[np.float32]  # (m,)


@dataclass(frozen=True)
class Projector:
    """A volume made ready for slicing."""

    box: int
    transform: npt.NDArray[np.complex64]  # (p, p, p) padded, centred, with a wrapped margin


def image_plane(box: int) -> ImagePlane:
    """List the frequencies that projections of ``box`` pixels carry."""
    y = np.fft.fftfreq(box, 1.0 / box)
    x = np.arange(box // 2 + 1, dtype=np.float64)
    radius2 = y[:, None] ** 2 + x[None, :] ** 2
    rows, columns = np.nonzero(radius2 < (box / 2) ** 2)
    return ImagePlane(
        box=box,
        rows=rows.astype(np.int32),
        columns=columns.astype(np.int32),
        x=x[columns].astype(np.float32),
        y=y[rows].astype(np.float32),
    )


def make_projector(volume: FloatArray) -> Projector:
    """Correct for the kernel, pad and transform a cubic ``(box, box, box)`` volume."""
    box = volume.shape[0]
    if volume.shape != (box, box, box):
        raise ValueError(f"a volume to project must be cubic, not {volume.shape}")
    padded_box = _PADDING * box
    correction = _kernel_transform((np.arange(box) - box // 2) / padded_box)
    flat = volume.astype(np.float64)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = box
        flat = flat / correction.reshape(shape)
    padded = np.zeros((padded_box,) * 3, dtype=np.float32)
    start = padded_box // 2 - box // 2
    inside = slice(start, start + box)
    padded[inside, inside, inside] = flat
    spectrum = scipy.fft.fftshift(scipy.fft.fftn(scipy.fft.ifftshift(padded), workers=1))
    wrapped = np.pad(spectrum, _WIDTH, mode="wrap").astype(np.complex64)
    return Projector(box=box, transform=wrapped)


def project(
    projector: Projector,
    rotations: FloatArray,
    plane: ImagePlane,
) -> npt.NDArray[np.complex64]:
    """Sample the central slices of ``(n, 3, 3)`` rotations: ``(n, m)``, phases about the centre."""
    out = np.empty((len(rotations), len(plane.x)), dtype=np.complex64)
    _slice(
        projector.transform,
        np.ascontiguousarray(rotations, dtype=np.float64),
        plane.x,
        plane.y,
        _WEIGHTS,
        float(_PADDING),
        out,
    )
    return out


def images_from_transforms(
    transforms: npt.NDArray[np.complex64], plane: ImagePlane
) -> npt.NDArray[np.float32]:
    """Turn ``(n, m)`` half-plane values into ``(n, box, box)`` images centred at ``box // 2``."""
    box = plane.box
    spectrum = np.zeros((len(transforms), box, box // 2 + 1), dtype=np.complex64)
    spectrum[:, plane.rows, plane.columns] = transforms
    images = scipy.fft.irfft2(spectrum, s=(box, box), workers=1)
    centred: npt.NDArray[np.float32] = scipy.fft.fftshift(images, axes=(1, 2)).astype(np.float32)
    return centred


def _kernel(distance: FloatArray) -> npt.NDArray[np.float64]:
    inside = np.maximum(0.0, 1.0 - (2.0 * np.asarray(distance, np.float64) / _WIDTH) ** 2)
    values: npt.NDArray[np.float64] = scipy.special.i0(_SHAPE * np.sqrt(inside)) / _WIDTH
    return values


def _kernel_transform(position: FloatArray) -> npt.NDArray[np.float64]:
    # |position| <= 1/4 keeps the root's argument positive, where the transform is a sinh.
    root = np.sqrt(_SHAPE**2 - (math.pi * _WIDTH * np.asarray(position, np.float64)) ** 2)
    values: npt.NDArray[np.float64] = np.sinh(root) / root
    return values


def _weight_table() -> npt.NDArray[np.float32]:
    offset = (np.arange(_TABLE_ROWS + 1) / _TABLE_ROWS)[:, None]  # past the sample to the left
    sample = np.arange(_WIDTH)[None, :] - (_WIDTH // 2 - 1)
    return _kernel(np.abs(sample - offset)).astype(np.float32)


_WEIGHTS = _weight_table()  # (rows, width)


@numba.njit(nogil=True, cache=True, fastmath=False)
def _slice(transform, rotations, x, y, weights, padding, out):  # type: ignore[no-untyped-def]
    rows = weights.shape[0] - 1
    width = weights.shape[1]
    margin = width
    centre = (transform.shape[0] - 2 * margin) // 2 + margin
    for i in range(rotations.shape[0]):
        a = rotations[i]
        for j in range(x.shape[0]):
            u = x[j] * padding
            v = y[j] * padding
            px = a[0, 0] * u + a[1, 0] * v + centre
            py = a[0, 1] * u + a[1, 1] * v + centre
            pz = a[0, 2] * u + a[1, 2] * v + centre
            fx = math.floor(px)
            fy = math.floor(py)
            fz = math.floor(pz)
            wx = weights[int((px - fx) * rows + 0.5)]
            wy = weights[int((py - fy) * rows + 0.5)]
            wz = weights[int((pz - fz) * rows + 0.5)]
            left = width // 2 - 1
            total = np.complex64(0)
            for c in range(width):
                plane_sum = np.complex64(0)
                for b in range(width):
                    row = transform[fz - left + c, fy - left + b]
                    start = fx - left
                    line = np.complex64(0)
                    for d in range(width):
                        line += row[start + d] * wx[d]
                    plane_sum += line * wy[b]
                total += plane_sum * wz[c]
            out[i, j] = total
