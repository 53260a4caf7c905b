"""Bringing a map's centre of mass to the centre of the box while it is being found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.symmetry import shift_statistics, storable_statistics
from reconstruct.symmetry_naming import centre_of_mass_pixels
from reconstruct.update import symmetric_plane

__all__ = ["centred"]

Float32 = npt.NDArray[np.float32]

LEAST_PIXELS = 0.5  # a centre nearer than this stays where it is


def centred(
    statistics: Float32, volumes: Sequence[Float32], *, padded: int, backend: Backend
) -> Float32:
    """Statistics (2, K, g, g, reach + 2, 3) of the maps ``volumes`` moved to their centres of mass.

    Poses found before do not fit them: only for a map whose particles are searched anew each time.
    """
    moves = [-centre_of_mass_pixels(volume) for volume in volumes]
    if all(float(np.abs(move).max()) < LEAST_PIXELS for move in moves):
        return statistics
    # A few MB to the host and back, a dozen times while the map is being found.
    moved = backend.asnumpy(statistics).copy()
    reach = (moved.shape[2] - 1) // 2
    for k, move in enumerate(moves):
        for h in (0, 1):
            crop = symmetric_plane(moved[h, k], reach)
            moved[h, k] = storable_statistics(shift_statistics(crop, move, padded=padded))
    return backend.asarray(moved)  # type: ignore[no-any-return]
