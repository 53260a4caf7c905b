"""Densities to simulate from: maps put on a wanted grid, and atoms turned into a map.

Convention: the origin is voxel ``box // 2`` of every axis, of the input and of the result.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft

from reconstruct.types import FloatArray, Geometry

__all__ = ["density_from_atoms", "fit_volume", "low_pass"]

_OVERSAMPLING = 2  # grid on which atoms are spread, against the wanted one


def fit_volume(
    volume: FloatArray, *, pixel_size_angstrom: float, geometry: Geometry
) -> npt.NDArray[np.float32]:
    """Put a cubic map on the grid of ``geometry`` by band-limited (Fourier) interpolation.

    Any box and any pixel size: frequencies above the coarser Nyquist limit are removed, what lies
    outside the map's own box is 0, and what does not fit the wanted box is cut off.

    Parameters
    ----------
    volume
        (N, N, N) density.
    pixel_size_angstrom
        Edge of its voxels.
    geometry
        The wanted box and pixel size.
    """
    size = volume.shape[0]
    if volume.shape != (size, size, size):
        raise ValueError(f"a map must be cubic, not {volume.shape}")
    pixel, wanted = pixel_size_angstrom, geometry.pixel_size_angstrom
    source = (np.arange(size) - size // 2) * pixel
    target = (np.arange(geometry.box) - geometry.box // 2) * wanted
    frequency = np.fft.fftfreq(size, pixel)
    kept = np.abs(frequency) <= 0.5 / max(pixel, wanted) * (1 + 1e-9)
    offset = target[:, None, None] - source[None, :, None]
    weights = np.cos(2 * np.pi * frequency[kept] * offset).sum(axis=2) / size  # (box, N)
    # The map is periodic to the transform; outside its own box there is nothing.
    outside = (target < source[0] - pixel / 2) | (target > source[-1] + pixel / 2)
    weights[outside] = 0.0
    fitted = np.einsum("ck,ijk->ijc", weights, volume.astype(np.float64), optimize=True)
    fitted = np.einsum("bj,ijc->ibc", weights, fitted, optimize=True)
    fitted = np.einsum("ai,ibc->abc", weights, fitted, optimize=True)
    result: npt.NDArray[np.float32] = fitted.astype(np.float32)
    return result


def low_pass(
    volume: FloatArray, *, geometry: Geometry, resolution_angstrom: float
) -> npt.NDArray[np.float32]:
    """Multiply a map's transform by the Gaussian that is 1/e at ``1 / resolution_angstrom``."""
    transform = scipy.fft.rfftn(volume.astype(np.float64), workers=1)
    k2 = _squared_frequency(geometry.box, geometry.pixel_size_angstrom)
    transform *= np.exp(-k2 * resolution_angstrom**2)
    back = scipy.fft.irfftn(transform, s=volume.shape, workers=1)
    result: npt.NDArray[np.float32] = back.astype(np.float32)
    return result


def density_from_atoms(
    positions_angstrom: FloatArray,
    weights: FloatArray,
    *,
    geometry: Geometry,
    resolution_angstrom: float,
) -> npt.NDArray[np.float32]:
    """Sum one Gaussian per atom, its transform 1/e at ``1 / resolution_angstrom``.

    Atoms are spread trilinearly on a grid twice as fine, blurred in Fourier space, where the
    spreading is divided out, and cut to the wanted frequencies. Atoms outside the box are left out.

    Parameters
    ----------
    positions_angstrom
        (a, 3) x, y, z; the origin becomes voxel ``box // 2``.
    weights
        (a,) scattering strength of each atom, for instance its electron count.
    geometry
        The wanted grid.
    resolution_angstrom
        Blur of the map.
    """
    fine = geometry.box * _OVERSAMPLING
    pixel = geometry.pixel_size_angstrom / _OVERSAMPLING
    grid = np.zeros((fine, fine, fine), dtype=np.float64)
    scaled = np.ascontiguousarray(positions_angstrom, dtype=np.float64) / pixel + fine // 2
    _spread(grid, scaled, np.ascontiguousarray(weights, dtype=np.float64))
    transform = scipy.fft.rfftn(scipy.fft.ifftshift(grid), workers=1)
    transform *= np.exp(-_squared_frequency(fine, pixel) * resolution_angstrom**2)
    full = np.sinc(np.fft.fftfreq(fine)) ** 2
    half = np.sinc(np.fft.rfftfreq(fine)) ** 2
    transform /= full[:, None, None] * full[None, :, None] * half[None, None, :]
    box = geometry.box
    index = np.fft.fftfreq(box, 1.0 / box).astype(np.int64)
    columns = np.arange(box // 2 + 1)
    cut = transform[np.ix_(index, index, columns)]
    volume = scipy.fft.fftshift(scipy.fft.irfftn(cut, s=(box, box, box), workers=1))
    result: npt.NDArray[np.float32] = volume.astype(np.float32)
    return result


def _squared_frequency(box: int, pixel_size_angstrom: float) -> npt.NDArray[np.float64]:
    full = np.fft.fftfreq(box, pixel_size_angstrom) ** 2
    half = np.fft.rfftfreq(box, pixel_size_angstrom) ** 2
    squared: npt.NDArray[np.float64] = (
        full[:, None, None] + full[None, :, None] + half[None, None, :]
    )
    return squared


@numba.njit(nogil=True, cache=True)
def _spread(grid, positions, weights):  # type: ignore[no-untyped-def]
    size = grid.shape[0]
    for i in range(positions.shape[0]):
        x, y, z = positions[i, 0], positions[i, 1], positions[i, 2]
        ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
        if min(ix, iy, iz) < 0 or max(ix, iy, iz) + 1 >= size:
            continue
        fx, fy, fz = x - ix, y - iy, z - iz
        for c in range(2):
            wz = fz if c else 1.0 - fz
            for b in range(2):
                wy = fy if b else 1.0 - fy
                for a in range(2):
                    wx = fx if a else 1.0 - fx
                    grid[iz + c, iy + b, ix + a] += weights[i] * wz * wy * wx
