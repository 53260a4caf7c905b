"""What settings and geometry mean in pixels and shells: the sampling that one session keeps.

Whatever a user asked for that cannot be honoured is refused here, with a remedy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.fourier import HalfPlane, make_half_plane, soft_mask
from reconstruct.schedule import Schedule
from reconstruct.types import EngineSettings, Geometry
from reconstruct.update import MapGrid

__all__ = ["MOST_SHELLS", "Layout", "make_layout"]

OVERSAMPLING = 2.0
JOIN_ANGSTROM = 40.0  # split half-sets share their reference down to this resolution
FEWEST_SHELLS = 6
MOST_SHELLS = 320  # beyond, samples of a cube could not be numbered by 32-bit integers
WINDOW_EDGE_PIXELS = 4.0


@dataclass(frozen=True)
class Layout:
    """Sampling of images and maps, and the schedule on it."""

    max_radius: int  # shells
    max_shift_pixels: float
    plane: HalfPlane
    grid: MapGrid
    window: npt.NDArray[np.float32]  # (box, box) of images; noise is measured where it is 0
    schedule: Schedule


def make_layout(settings: EngineSettings, geometry: Geometry) -> Layout:
    """Lay out the Fourier space of a session.

    Raises
    ------
    ValueError
        The box or the resolutions cannot be honoured.
    """
    box, edge = geometry.box, geometry.box_angstrom
    max_radius = min(int(edge / settings.finest_angstrom), box // 2 - 3, MOST_SHELLS)
    if max_radius < FEWEST_SHELLS:
        raise ValueError(
            f"max_resolution_angstrom {settings.finest_angstrom:g} leaves {max_radius} "
            f"shells in a box of {edge:.0f} A: ask for at most {edge / FEWEST_SHELLS:.0f} A"
        )
    wanted = settings.mask_diameter_angstrom
    if wanted is not None and wanted > edge:
        raise ValueError(
            f"mask_diameter_angstrom {wanted:g} is wider than the box of {edge:.0f} A: ask for "
            f"at most that, or for none, which is {0.85 * edge:.0f} A here"
        )
    diameter = 0.85 * edge if wanted is None else wanted
    radius_pixels = min(0.5 * diameter / geometry.pixel_size_angstrom, box / 2 - 3)
    shift = settings.max_shift_angstrom
    start = settings.initial_resolution_angstrom
    return Layout(
        max_radius=max_radius,
        max_shift_pixels=box / 16 if shift is None else shift / geometry.pixel_size_angstrom,
        plane=make_half_plane(box, max_radius),
        grid=MapGrid(box, OVERSAMPLING, radius_pixels),
        window=soft_mask(box, min(radius_pixels, box / 2 - 5), WINDOW_EDGE_PIXELS, axes=2),
        schedule=Schedule(
            start_radius=5 if start is None else max(3, round(edge / start)),
            grow_every=settings.presentations_per_shell,
            cold_presented=settings.initial_presentations,
            join_radius=max(3, round(edge / JOIN_ANGSTROM)),
        ),
    )
