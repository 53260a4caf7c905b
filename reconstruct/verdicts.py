"""Verdicts on a class, in numbers and words: a flattened disc, preferred orientation.

Promise: a verdict is a value or None; None means that there is nothing to say, not that all is
well. Thresholds are constants with the measurement behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from reconstruct.coverage import fourier_coverage, orientation_coverage

__all__ = [
    "Verdict",
    "flattened_disc",
    "inertia",
    "preferred_orientation",
    "view_concentration",
    "view_directions",
]

Float64 = npt.NDArray[np.float64]

LEAST_PARTICLES = 200  # below, a histogram of views says more about chance than about views
COSINE_BINS = 10
# Six GroEL runs at SNR 0.05 with D7 imposed from the first batch or C1 throughout: the discs (57-62
# A) had concentration 0.27-0.39, thickness 0.83-0.92, equality 1.00; converged maps concentration
# up to 0.24 (C1 poses favour some of the equal ones), but thickness 0.98, equality 0.85-0.87.
CONCENTRATED = 0.2
FLAT = 0.93  # shortest inertia length over the middle one
EQUAL = 0.92  # middle over longest: two equal long lengths
# Orientation coverage: even views give 0.99, von Mises-Fisher views of concentration 2 0.9, 3
# 0.75-0.84, 5 0.50-0.55, 8 0.35, side views within 10 degrees of the equator 0.17. Fourier
# coverage is then 0.99, 0.93, 0.81-0.89, 0.34-0.49, 0.1 and 0.8.
UNEVEN_VIEWS = 0.7
UNEVEN_FOURIER = 0.7


@dataclass(frozen=True)
class Verdict:
    """Something found out about a class."""

    kind: str  # "flattened_disc", "preferred_orientation"
    message: str  # one sentence in words, with the numbers and what to do
    values: Mapping[str, float] = field(default_factory=dict)


def view_directions(
    rotations: npt.NDArray[np.floating], operators: Float64 | None = None
) -> Float64:
    """Directions (n * m, 3) in the volume's frame from which particles were seen.

    With an imposed symmetry each particle counts once per operator, since its pose is only one of
    m equal ones.
    """
    views = np.asarray(rotations, dtype=np.float64)[:, 2, :]
    if operators is None:
        return views
    copies: Float64 = np.einsum("ni,mij->nmj", views, operators).reshape(-1, 3)
    return copies


def inertia(volume: npt.NDArray[np.floating]) -> tuple[Float64, Float64]:
    """Root-mean-square extents of the density, ascending (3,), and their axes (3, 3) as rows.

    Counted is density above a quarter of the 99.9 % quantile. An empty map has no extents: zeros.
    """
    n = volume.shape[0]
    level = 0.25 * float(np.quantile(volume, 0.999))
    z, y, x = np.nonzero(volume > max(level, 0.0))
    if len(x) < 4:
        return np.zeros(3), np.eye(3)
    points = np.stack([x, y, z], axis=-1) - n // 2
    mass = volume[z, y, x].astype(np.float64)
    points = points - np.average(points, axis=0, weights=mass)
    moments = (points * mass[:, None]).T @ points / mass.sum()
    squares, vectors = np.linalg.eigh(moments)
    return np.sqrt(np.maximum(squares, 0.0)), vectors.T


def view_concentration(views: Float64, axis: Float64) -> float:
    """Kullback-Leibler divergence in nats of |cos(view, axis)| to an even spread; bias removed."""
    if not len(views):
        return 0.0
    cosines = np.abs(views @ axis)
    counts, _ = np.histogram(cosines, bins=COSINE_BINS, range=(0.0, 1.0 + 1e-9))
    share = counts[counts > 0] / len(views)
    divergence = float((share * np.log(share * COSINE_BINS)).sum())
    return max(0.0, divergence - (len(share) - 1) / (2 * len(views)))


def flattened_disc(volume: npt.NDArray[np.floating], views: Float64) -> Verdict | None:
    """Say that the map looks like the flattened disc of a failed start, or nothing.

    Both must hold: the views crowd about the map's short axis or about its equator, and the map
    has two equal long extents and a short one. A flat molecule seen from everywhere passes, and
    so does a round one seen from one side.

    Parameters
    ----------
    volume
        (n, n, n) bright map inside a window.
    views
        (m, 3) directions, from ``view_directions``.
    """
    if len(views) < LEAST_PARTICLES:
        return None
    extents, axes = inertia(volume)
    if extents[2] <= 0:
        return None
    concentration = view_concentration(views, axes[0])
    flatness = float(extents[0] / extents[1])
    equality = float(extents[1] / extents[2])
    if concentration <= CONCENTRATED or flatness > FLAT or equality < EQUAL:
        return None
    return Verdict(
        kind="flattened_disc",
        message=(
            f"The map is a disc, {flatness:.2f} as thick as wide, and the views crowd about its "
            f"axis ({concentration:.2f} nats from even): the start has probably failed; "
            f"start again with other seeds or in C1"
        ),
        values={
            "view_concentration_nats": concentration,
            "thickness_over_width": flatness,
            "width_over_length": equality,
        },
    )


def preferred_orientation(histogram: npt.NDArray[np.floating]) -> Verdict | None:
    """Say that the particles prefer an orientation, and whether that harms the map; or nothing.

    Views from all around one axis are uneven too, but their planes meet every direction.

    Parameters
    ----------
    histogram
        (tilts, rots) counts; with imposed symmetry every particle once per operator.
    """
    if histogram.sum() < LEAST_PARTICLES:
        return None
    views = orientation_coverage(histogram)
    filled = fourier_coverage(histogram)
    if views >= UNEVEN_VIEWS:
        return None
    harm = (
        "the map is smeared along the direction most looked from; tilt the stage"
        if filled < UNEVEN_FOURIER
        else "enough to measure every direction"
    )
    return Verdict(
        kind="preferred_orientation",
        message=(
            f"The particles prefer an orientation: their views fill {100 * views:.0f} % of the "
            f"sphere and {100 * filled:.0f} % of Fourier space, {harm}"
        ),
        values={"orientation_coverage": views, "fourier_coverage": filled},
    )
