"""From statistics to references and FSC on the CPU, map by map; ``device_maps`` is its twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Literal

import numpy as np
import numpy.typing as npt

from reconstruct.update import (
    MapGrid,
    half_map_fsc,
    join_low_frequencies,
    quotient,
    reference_cube,
)

__all__ = ["compare_halves", "reference_cubes"]

Complex64 = npt.NDArray[np.complex64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def reference_cubes(
    spectrum: Callable[[int, tuple[int, ...], int], Complex64],
    grids: Sequence[MapGrid],
    *,
    sets: int,
    radius: int,
    join: int,
    workers: Executor | None,
    cut: npt.NDArray[np.bool_],
    resting: npt.NDArray[np.bool_],
) -> Float32:
    """Cubes (sets K, g, g, g, 2) that particles are scored against.

    Parameters
    ----------
    spectrum
        Gives the map of a class made of some half-sets up to a radius in shells.
    grids
        Sampling of each class, with its own mask.
    sets
        1: every map is of both half-sets; 2: of each, beyond shell ``join``.
    radius, join
        Shells that maps have, and up to which half-sets share them.
    cut
        (K,) whether negative density is cut away.
    resting
        (K,) classes without a map, whose cubes are 0.
    workers
        Threads that share the maps; None: one after the other.
    """

    of = ((0, 1), (0,), (1,))[sets - 1 : 2 * sets - 1]
    edge, classes = 2 * grids[0].reach(radius) + 1, len(grids)
    cubes = np.empty((sets * classes, edge, edge, edge), np.complex64)

    def make(place: int) -> None:
        halves, k = of[place // classes], place % classes
        if resting[k]:
            cubes[place] = 0
            return
        own = spectrum(k, halves, radius)
        if sets == 2:
            low = min(join, radius)
            join_low_frequencies(own, spectrum(k, (0, 1), low), grids[k], low)
        negative: Literal["cut", "keep"] = "cut" if cut[k] else "keep"
        reference_cube(own, grids[k], negative=negative, out=cubes[place])

    for _ in (workers.map if workers else map)(make, range(len(cubes))):
        pass
    return cubes.view(np.float32).reshape(*cubes.shape, 2)


def compare_halves(
    crops: Sequence[Float32],
    grid: MapGrid,
    *,
    radius: int,
    fraction: float,
) -> Float64:
    """Half-map FSC (radius + 1,) within a class's mask.

    Parameters
    ----------
    crops
        Statistics of the two half-sets up to ``radius``.
    fraction
        Share of signal that is assumed in every shell.
    """
    assumed = np.full(radius + 1, fraction)
    first, second = (quotient(crop, grid, radius, assumed) for crop in crops)
    return half_map_fsc(first, second, grid, radius)
