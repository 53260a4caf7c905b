"""Smooth densities of the particles' views, for drawing.

Convention: a view histogram is (tilts, rots) counts over tilt 0..pi and rot -pi..pi, as in
``reconstruct.coverage``, whose numbers are offered here too; densities are relative to an even
spread over the sphere, so 1 is what an even spread gives.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from reconstruct.coverage import (
    cell_directions,
    fourier_coverage,
    orientation_coverage,
    solid_angles,
)
from reconstruct.types import FloatArray

__all__ = ["fourier_coverage", "orientation_coverage", "view_density"]

_SMOOTHING_RAD = np.deg2rad(9.0)  # about one 10-degree cell


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


@lru_cache(maxsize=4)
def _kernel(tilts: int, rots: int) -> tuple[FloatArray, FloatArray]:
    """Von Mises-Fisher smoothing between cells, and what it makes of an even spread."""
    directions = cell_directions(tilts, rots)
    cosines = np.clip(directions @ directions.T, -1.0, 1.0)
    kernel = np.exp((cosines - 1.0) / _SMOOTHING_RAD**2)
    return kernel, kernel @ solid_angles(tilts, rots).ravel()
