"""Transforms between a centred half cube and the middle of its map that skip lines known to be 0.

A map that is windowed fills an eighth of the box that its Fourier samples stand for, or less, and
the samples fill a part of the transform. Axis by axis, only lines that hold something, or are
asked for, are transformed: half the work of a whole transform, and an eighth of the memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft

__all__ = ["to_half_cube", "to_map"]

Complex64 = npt.NDArray[np.complex64]
Float32 = npt.NDArray[np.float32]


def to_map(half: Complex64, size: int, edge: int) -> Float32:
    """Middle (edge, edge, edge) of the map of a centred half cube (g, g, r + 1).

    ``size`` >= g samples span the whole map, normed as ``irfftn``; the origin is at ``edge // 2``.
    """
    r, c = half.shape[2] - 1, edge // 2
    z = np.zeros((size, 2 * r + 1, r + 1), np.complex64)
    z[: r + 1], z[size - r :] = half[r:], half[:r]
    z = scipy.fft.ifft(z, axis=0, overwrite_x=True)
    y = np.zeros((edge, size, r + 1), np.complex64)
    for rows, part in ((slice(c, None), z[: edge - c]), (slice(0, c), z[size - c :])):
        y[rows, : r + 1], y[rows, size - r :] = part[:, r:], part[:, :r]
    y = scipy.fft.ifft(y, axis=1, overwrite_x=True)
    near = np.concatenate([y[:, size - c :], y[:, : edge - c]], axis=1)
    x = scipy.fft.irfft(near, n=size, axis=2)
    return np.concatenate([x[:, :, size - c :], x[:, :, : edge - c]], axis=2)


def to_half_cube(middle: Float32, size: int, r: int) -> Complex64:
    """Centred half cube (2r + 1, 2r + 1, r + 1) of a map that is 0 outside ``middle``.

    ``middle`` (edge, edge, edge) has its origin at ``edge // 2``; ``size`` >= 2r + 1 samples span
    the whole map, normed as ``rfftn``.
    """
    edge = middle.shape[0]
    c = edge // 2
    x = np.zeros((edge, edge, size), np.float32)
    x[:, :, : edge - c], x[:, :, size - c :] = middle[:, :, c:], middle[:, :, :c]
    spectra = scipy.fft.rfft(x, axis=2)[:, :, : r + 1]
    y = np.zeros((edge, size, r + 1), np.complex64)
    y[:, : edge - c], y[:, size - c :] = spectra[:, c:], spectra[:, :c]
    y = scipy.fft.fft(y, axis=1, overwrite_x=True)
    z = np.zeros((size, 2 * r + 1, r + 1), np.complex64)
    for rows, part in ((slice(0, edge - c), y[c:]), (slice(size - c, None), y[:c])):
        z[rows, r:], z[rows, :r] = part[:, : r + 1], part[:, size - r :]
    z = scipy.fft.fft(z, axis=0, overwrite_x=True)
    return np.concatenate([z[size - r :], z[: r + 1]], axis=0)
