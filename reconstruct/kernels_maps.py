"""Compiled CPU loops over the voxels of maps in Fourier form: the Wiener quotient, FSC, values.

Every kernel releases the GIL and adds in a fixed order; ``kernels_numpy`` has a plain twin of each.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

__all__ = ["compare_shells", "sample_cube", "wiener_quotient"]

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


@numba.njit(**_OPTIONS)
def wiener_quotient(crop, shells, counts, noise_over_signal, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (g, g, h) with N / (D + ridge), 0 beyond the shells of ``noise_over_signal``.

    ``crop`` (g, g, h, 3) holds N and D, ``shells`` (g, g, h) the shell of each voxel and
    ``counts`` how many voxels a shell has. The ridge is the shell's mean of D times its
    ``noise_over_signal``, and a trace of the largest mean that keeps it from 0.
    """
    g, _, h, _ = crop.shape
    means = np.zeros(len(counts))
    for z in range(g):
        for y in range(g):
            for x in range(h):
                means[shells[z, y, x]] += crop[z, y, x, 2]
    means /= counts
    trace = 1e-6 * means.max() + 1e-20
    known = len(noise_over_signal)
    ridge = np.empty(known, np.float32)
    for s in range(known):
        ridge[s] = means[s] * noise_over_signal[s] + trace
    for z in range(g):
        for y in range(g):
            for x in range(h):
                s = shells[z, y, x]
                if s < known:
                    inverse = np.float32(1) / (crop[z, y, x, 2] + ridge[s])
                    out[z, y, x] = complex(crop[z, y, x, 0] * inverse, crop[z, y, x, 1] * inverse)
                else:
                    out[z, y, x] = 0


@numba.njit(**_OPTIONS)
def compare_shells(first, second, shells, sums):  # type: ignore[no-untyped-def]
    """Add, per shell, Re<a, b>, |a|^2 and |b|^2 of two half cubes (g, g, h) to ``sums`` (3, s).

    Voxels off the plane x = 0 stand for their Friedel mates too.
    """
    g, _, h = first.shape
    for z in range(g):
        for y in range(g):
            for x in range(h):
                s, times = shells[z, y, x], 1.0 if x == 0 else 2.0
                a, b = first[z, y, x], second[z, y, x]
                sums[0, s] += times * (a.real * b.real + a.imag * b.imag)
                sums[1, s] += times * (a.real * a.real + a.imag * a.imag)
                sums[2, s] += times * (b.real * b.real + b.imag * b.imag)


@numba.njit(**_OPTIONS)
def sample_cube(cube, points, out):  # type: ignore[no-untyped-def]
    """Trilinear values (m,) of a full centred cube (g, g, g) at ``points`` (m, 3), grid steps."""
    centre = (cube.shape[0] - 1) // 2
    for j in range(points.shape[0]):
        x, y, z = points[j, 0] + centre, points[j, 1] + centre, points[j, 2] + centre
        ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
        fx, fy, fz = x - ix, y - iy, z - iz
        total = 0j
        for dz in range(2):
            for dy in range(2):
                row = cube[iz + dz, iy + dy]
                weight = (fz if dz else 1 - fz) * (fy if dy else 1 - fy)
                total += weight * ((1 - fx) * row[ix] + fx * row[ix + 1])
        out[j] = total
