"""Compiled CPU loops of the symmetry code: rotated averages and rotated correlations of a cube.

Every kernel adds in a fixed order and releases the GIL; cubes are Friedel-complete and centred,
positions are grid steps from the centre, matrices act on (x, y, z).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import uintp

__all__ = ["BAR", "mean_over", "rotated_correlations"]

BAR = 8  # edge of the bars of voxels along x that are averaged at a time
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": _FASTMATH,
    "error_model": "numpy",
}


@numba.njit(inline="always", **_OPTIONS)
def _corners(px, py, pz, edge, channels):  # type: ignore[no-untyped-def]
    """Flat offset of the lower corner of a position, the fractions, and the steps in y and z.

    Positions are never negative, so truncation is floor and unsigned indices spare a check.
    """
    ix, iy, iz = np.int32(px), np.int32(py), np.int32(pz)
    row = uintp(channels * edge)
    sheet = row * uintp(edge)
    first = uintp(iz) * sheet + uintp(iy) * row + uintp(ix) * uintp(channels)
    return first, px - np.float32(ix), py - np.float32(iy), pz - np.float32(iz), row, sheet


@numba.njit(**_OPTIONS)
def mean_over(flat, g, matrices, out):  # type: ignore[no-untyped-def]
    """Mean over matrices M of a flat cube (g, g, g, 4) at M @ k, for the half cube ``out`` (.., 4).

    Only voxels inside the sphere of the half edge are written, ``matrices`` is (m, 9).
    """
    reach = (g - 1) // 2
    m = matrices.shape[0]
    share = np.float32(1) / np.float32(m)
    one = np.float32(1)
    centre = np.float32(reach)
    top = np.float32(g - 1) - np.float32(1e-3)  # the far corner must exist
    zero = np.float32(0)
    bars = (g + BAR - 1) // BAR
    for block in range(bars * bars):
        # bar by bar, operator by operator: what a turned bar reads stays in the cache
        z0, y0 = (block // bars) * BAR, (block % bars) * BAR
        for i in range(m):
            a = matrices[i]
            for line in range(BAR * BAR):
                z, y = z0 + line // BAR, y0 + line % BAR
                room = reach * reach - (z - reach) ** 2 - (y - reach) ** 2
                if room < 0 or z >= g or y >= g:
                    continue
                kz, ky = np.float32(z - reach), np.float32(y - reach)
                qx = a[1] * ky + a[2] * kz + centre
                qy = a[4] * ky + a[5] * kz + centre
                qz = a[7] * ky + a[8] * kz + centre
                row_out = out[z, y]
                for x in range(int(np.sqrt(room)) + 1):
                    kx = np.float32(x)
                    px = min(max(a[0] * kx + qx, zero), top)
                    py = min(max(a[3] * kx + qy, zero), top)
                    pz = min(max(a[6] * kx + qz, zero), top)
                    p, fx, fy, fz, row, sheet = _corners(px, py, pz, g, 4)
                    for c in range(4):
                        q = p + row * uintp(c & 1) + sheet * uintp(c >> 1)
                        w = share * (fy if c & 1 else one - fy) * (fz if c >> 1 else one - fz)
                        w1 = w * fx
                        w0 = w - w1
                        row_out[x, 0] += w0 * flat[q] + w1 * flat[q + uintp(4)]
                        row_out[x, 1] += w0 * flat[q + uintp(1)] + w1 * flat[q + uintp(5)]
                        row_out[x, 2] += w0 * flat[q + uintp(2)] + w1 * flat[q + uintp(6)]
                        row_out[x, 3] += w0 * flat[q + uintp(3)] + w1 * flat[q + uintp(7)]


@numba.njit(**_OPTIONS)
def rotated_correlations(flat, g, matrices, points, shell, values, power, out):  # type: ignore[no-untyped-def]
    """Correlate ``values`` at ``points`` with a cube at M @ points per shell; mean over shells.

    ``flat`` a cube (g, g, g, 2) float32, ``matrices`` (m, 9), ``points`` (n, 3) grid steps,
    ``shell`` (n,) 0.., ``values`` (n, 2), ``power`` (shells,) of the values, ``out`` (m,).
    """
    centre = np.float32((g - 1) // 2)
    one = np.float32(1)
    shells = power.shape[0]
    cross = np.empty(shells, np.float32)
    own = np.empty(shells, np.float32)
    for i in range(matrices.shape[0]):
        a = matrices[i]
        for s in range(shells):
            cross[s] = np.float32(0)
            own[s] = np.float32(1e-30)
        for j in range(points.shape[0]):
            kx, ky, kz = points[j, 0], points[j, 1], points[j, 2]
            px = a[0] * kx + a[1] * ky + a[2] * kz + centre
            py = a[3] * kx + a[4] * ky + a[5] * kz + centre
            pz = a[6] * kx + a[7] * ky + a[8] * kz + centre
            p, fx, fy, fz, row, sheet = _corners(px, py, pz, g, 2)
            re = im = np.float32(0)
            for c in range(4):
                q = p + row * uintp(c & 1) + sheet * uintp(c >> 1)
                w = (fy if c & 1 else one - fy) * (fz if c >> 1 else one - fz)
                w1 = w * fx
                w0 = w - w1
                re += w0 * flat[q] + w1 * flat[q + uintp(2)]
                im += w0 * flat[q + uintp(1)] + w1 * flat[q + uintp(3)]
            s = shell[j]
            cross[s] += re * values[j, 0] + im * values[j, 1]
            own[s] += re * re + im * im
        total = np.float32(0)
        for s in range(shells):
            total += cross[s] / np.sqrt(own[s] * power[s] + np.float32(1e-30))
        out[i] = total / np.float32(shells)
