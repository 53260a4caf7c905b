"""How evenly the particles look at the molecule: smooth view densities and one coverage number.

Convention owned here: a view histogram is (tilts, rots) counts over tilt 0..pi and rot -pi..pi, and
densities are relative to an even spread over the sphere, so 1 is what an even spread gives.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from reconstruct.types import FloatArray

__all__ = ["orientation_coverage", "view_density"]

_SMOOTHING_RAD = np.deg2rad(9.0)  # about one 10-degree cell
_COARSE_CELLS = 3  # 3 x 3 cells of 10 degrees: fewer empty cells, so less bias at few particles


def orientation_coverage(histogram: FloatArray) -> float:
    """Share of the sphere that the views effectively fill, 0 to 1.

    It is exp(-KL) of the views to an even spread, after joining each view with its opposite (they
    hold the same information) and pooling cells to 30 degrees; the bias that few particles cause is
    subtracted (Miller, 1955). A single view gives about 0.01, a belt 20 degrees wide about 0.2,
    an even spread 1. No views at all give 0.

    Parameters
    ----------
    histogram
        (tilts, rots) counts; both multiples of 3, rots even.
    """
    tilts, rots = histogram.shape
    opposite = np.roll(histogram[::-1], rots // 2, axis=1)
    folded = (histogram + opposite).astype(np.float64)
    step = _COARSE_CELLS
    pooled = folded.reshape(tilts // step, step, rots // step, step).sum(axis=(1, 3))
    total = pooled.sum()
    if total <= 0:
        return 0.0
    even = _solid_angles(tilts // step, rots // step)
    share = pooled / total
    seen = share > 0
    divergence = float((share[seen] * np.log(share[seen] / even[seen])).sum())
    n_particles = total / 2
    bias = (np.count_nonzero(seen) / 2 - 1) / (2 * n_particles)
    return float(np.clip(np.exp(-(divergence - max(bias, 0.0))), 0.0, 1.0))


def view_density(histogram: FloatArray) -> FloatArray:
    """Views per solid angle relative to an even spread, smoothed on the sphere by ~9 degrees.

    Smoothing counts and solid angles with the same kernel keeps the small cells at the poles from
    flickering. All zero when there are no views.

    Returns
    -------
        (tilts, rots), 1 where an even spread would be.
    """
    tilts, rots = histogram.shape
    total = float(histogram.sum())
    if total <= 0:
        return np.zeros((tilts, rots))
    kernel, expected = _kernel(tilts, rots)
    smooth = kernel @ (histogram.ravel().astype(np.float64) / total)
    density: FloatArray = (smooth / expected).reshape(tilts, rots)
    return density


def _solid_angles(tilts: int, rots: int) -> FloatArray:
    """Share of the sphere that each cell covers, (tilts, rots), summing to 1."""
    edges = np.cos(np.linspace(0.0, np.pi, tilts + 1))
    bands = (edges[:-1] - edges[1:]) / 2
    return np.repeat(bands[:, None] / rots, rots, axis=1)


@lru_cache(maxsize=4)
def _kernel(tilts: int, rots: int) -> tuple[FloatArray, FloatArray]:
    """Von Mises-Fisher smoothing between cells, and what it makes of an even spread."""
    tilt = (np.arange(tilts) + 0.5) * np.pi / tilts
    rot = (np.arange(rots) + 0.5) * 2 * np.pi / rots - np.pi
    x = np.outer(np.sin(tilt), np.cos(rot)).ravel()
    y = np.outer(np.sin(tilt), np.sin(rot)).ravel()
    z = np.outer(np.cos(tilt), np.ones(rots)).ravel()
    directions = np.stack([x, y, z], axis=1)
    cosines = np.clip(directions @ directions.T, -1.0, 1.0)
    kernel = np.exp((cosines - 1.0) / _SMOOTHING_RAD**2)
    return kernel, kernel @ _solid_angles(tilts, rots).ravel()
