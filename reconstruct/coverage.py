"""How evenly particles look at a molecule: one number for the views, one for Fourier space.

Convention owned here: a view histogram is (tilts, rots) counts over tilt 0..pi and rot -pi..pi;
both numbers are relative to an even spread over the sphere, so 1 is what an even spread gives.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from reconstruct.types import FloatArray

__all__ = ["cell_directions", "fourier_coverage", "orientation_coverage", "solid_angles"]

_COARSE_CELLS = 2  # 2 x 2 cells of 10 degrees: fewer empty cells, so less bias at few particles
_PLANE_HALF_WIDTH = np.sin(np.deg2rad(6.0))  # a view's plane, as thick as a cell is wide


def orientation_coverage(histogram: FloatArray) -> float:
    """Share of the sphere that the views effectively fill, 0 to 1.

    It is exp(-KL) of the views to an even spread, after joining each view with its opposite (they
    hold the same information) and pooling cells to 20 degrees; the bias that few particles cause is
    subtracted (Miller, 1955). A single view gives about 0.01, a belt 20 degrees wide about 0.2,
    an even spread 1. No views at all give 0.

    Parameters
    ----------
    histogram
        (tilts, rots) counts; tilts even, rots a multiple of 4.
    """
    tilts, rots = histogram.shape
    opposite = np.roll(histogram[::-1], rots // 2, axis=1)
    folded = (histogram + opposite).astype(np.float64)
    step = _COARSE_CELLS
    pooled = folded.reshape(tilts // step, step, rots // step, step).sum(axis=(1, 3))
    total = pooled.sum()
    if total <= 0:
        return 0.0
    even = solid_angles(tilts // step, rots // step)
    share = pooled / total
    seen = share > 0
    divergence = float((share[seen] * np.log(share[seen] / even[seen])).sum())
    n_particles = total / 2
    bias = (np.count_nonzero(seen) / 2 - 1) / (2 * n_particles)
    return float(np.clip(np.exp(-(divergence - max(bias, 0.0))), 0.0, 1.0))


def fourier_coverage(histogram: FloatArray) -> float:
    """How evenly the views fill Fourier space, 0 to 1: what a map really needs.

    Each view measures the plane across it. The number is the harmonic mean over all directions of
    how often they were measured, relative to an even spread (the sampling compensation factor of
    Baldwin and Lyumkis, 2020). A belt of side views still gives about 0.8, since its planes meet
    every direction; top views alone leave most directions out and give nearly 0. No views give 0.

    Parameters
    ----------
    histogram
        (tilts, rots) counts.
    """
    total = float(histogram.sum())
    if total <= 0:
        return 0.0
    planes, expected, areas = _planes(*histogram.shape)
    sampling = (planes @ (histogram.ravel().astype(np.float64) / total)) / expected
    floor = 1e-6  # a direction never measured makes the mean 0, without dividing by 0
    return float(np.clip(1.0 / (areas / np.maximum(sampling, floor)).sum(), 0.0, 1.0))


def solid_angles(tilts: int, rots: int) -> FloatArray:
    """Share of the sphere that each cell covers, (tilts, rots), summing to 1."""
    edges = np.cos(np.linspace(0.0, np.pi, tilts + 1))
    bands = (edges[:-1] - edges[1:]) / 2
    return np.repeat(bands[:, None] / rots, rots, axis=1)


def cell_directions(tilts: int, rots: int) -> FloatArray:
    """Unit vectors of the cells' centres, (tilts * rots, 3)."""
    tilt = (np.arange(tilts) + 0.5) * np.pi / tilts
    rot = (np.arange(rots) + 0.5) * 2 * np.pi / rots - np.pi
    x = np.outer(np.sin(tilt), np.cos(rot)).ravel()
    y = np.outer(np.sin(tilt), np.sin(rot)).ravel()
    z = np.outer(np.cos(tilt), np.ones(rots)).ravel()
    return np.stack([x, y, z], axis=1)


@lru_cache(maxsize=4)
def _planes(tilts: int, rots: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """How much each view (column) measures each direction (row), for an even spread, and areas."""
    directions = cell_directions(tilts, rots)
    areas = solid_angles(tilts, rots).ravel()
    planes = np.exp(-0.5 * ((directions @ directions.T) / _PLANE_HALF_WIDTH) ** 2)
    return planes, planes @ areas, areas
