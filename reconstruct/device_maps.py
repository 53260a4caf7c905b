"""From statistics to references and FSC on a device, all classes and half-sets in one go.

Computes what ``update`` does map by map (quotient, window, gridding, FSC), in a dozen launches
whatever the number of classes; cuda/maps.cu has the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.fourier import sinc_squared
from reconstruct.symmetry import parse_group
from reconstruct.update import MapGrid, finish_box, shell_table, transform_size

__all__ = ["box_volumes", "compare_halves", "crops", "reference_cubes"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Shells:
    """Voxels of a half cube by shell, on a device."""

    order: Any  # (voxels,) int32, sorted by shell
    starts: Any  # (shells + 1,) int32
    counts: Any  # (shells,) float64


@lru_cache(maxsize=64)
def _shells(reach: int, scale: float, backend: Backend) -> _Shells:
    shells, counts = shell_table(reach, scale)
    flat = shells.ravel()
    order = np.argsort(flat.astype(np.int16), kind="stable")  # 16 bits are sorted by radix
    starts = np.searchsorted(flat[order], np.arange(len(counts) + 1))
    return _Shells(
        order=backend.asarray(order, np.int32),
        starts=backend.asarray(starts, np.int32),
        counts=backend.asarray(counts),
    )


@lru_cache(maxsize=64)
def _decay(size: int, padded: int, backend: Backend) -> Any:
    """Decay (size,) of one trilinear interpolation along an axis, the origin in the middle."""
    return backend.asarray(sinc_squared(size, padded, spacing=padded / size))


@lru_cache(maxsize=16)
def _operators(group: str, backend: Backend) -> Any:
    return backend.asarray(parse_group(group).operators.reshape(-1, 9), np.float32)


def crops(statistics: Any, reach: int, group: str, backend: Backend) -> Any:
    """Statistics (2, K, ...) cropped, completed and averaged: (2, K, g, g, reach + 1, 3)."""
    g = 2 * reach + 1
    shape = (*statistics.shape[:2], g, g, reach + 1, 3)
    found = backend.xp.empty(shape, np.float32)
    backend.kernels.crop_statistics(statistics, found)
    if group == "C1":
        return found
    averaged = backend.xp.empty(shape, np.float32)
    backend.kernels.average_crops(found, _operators(group, backend), averaged)
    return averaged


def _spectra(
    cropped: Any,
    grid: MapGrid,
    *,
    maps: int,
    radius: int,
    join: int,
    size: int,
    fractions: Float64,
    backend: Backend,
) -> Any:
    """Wiener quotients (maps, size, size, size / 2 + 1), of both half-sets up to shell ``join``.

    ``fractions`` (2, K, radius + 1) is the share of signal in one half-set and in both.
    """
    xp, kernels = backend.xp, backend.kernels
    _, classes, _, _, depth, _ = cropped.shape
    shells = _shells(depth - 1, grid.scale, backend)
    sums = xp.empty((2, classes, len(shells.counts)), np.float64)
    kernels.shell_weights(cropped, shells.order, shells.starts, sums)
    fractions = np.clip(fractions, 1e-3, 0.999)
    wanted = backend.constant((1 - fractions) / fractions, np.float32)
    ridges = xp.empty((maps, 2, radius + 1), np.float32)
    kernels.shell_ridges(sums, shells.counts, wanted, ridges)
    spectra = xp.empty((maps, size, size, size // 2 + 1), np.complex64)
    kernels.fill_spectra(cropped, radius, join, grid.scale, ridges, spectra)
    return spectra


def _windowed(
    spectra: Any, grid: MapGrid, *, radii: Float64, edge: float, power: int, backend: Backend
) -> Any:
    """Maps (m, size, size, size), windowed by class, their origin at voxel 0."""
    size = spectra.shape[1]
    maps = backend.transforms.inverse(spectra)
    backend.kernels.window_maps(
        maps,
        len(radii),
        grid.padded / size,
        backend.constant(radii, np.float32),
        edge,
        _decay(size, grid.padded, backend),
        power,
    )
    return maps


def reference_cubes(
    cropped: Any,
    grid: MapGrid,
    *,
    sets: int,
    radius: int,
    join: int,
    fsc: Sequence[Float64],
    radii: Float64,
    cut: npt.NDArray[np.bool_],
    backend: Backend,
) -> Any:
    """Cubes (sets K, g, g, g, 4) that particles are scored against: values, and the next along x.

    Parameters
    ----------
    cropped
        From ``crops``.
    sets
        1: every map is of both half-sets; 2: of each, from shell ``join`` on.
    fsc
        Per class, at least ``radius + 1`` shells.
    radii
        (K,) of the masks, pixels.
    cut
        (K,) whether negative density is cut away.
    """
    xp = backend.xp
    _, classes, g, _, depth, _ = cropped.shape
    clipped = np.clip(np.stack(fsc)[:, : radius + 1], 0.02, 0.999)
    spectra = _spectra(
        cropped,
        grid,
        maps=sets * classes,
        radius=radius,
        join=radius if sets == 1 else join,
        size=transform_size(depth - 1),
        fractions=np.stack([clipped, 2 * clipped / (1 + clipped)]),
        backend=backend,
    )
    maps = _windowed(
        spectra, grid, radii=radii, edge=grid.mask_edge_pixels, power=2, backend=backend
    )
    for number in np.flatnonzero(np.tile(cut, sets)):
        xp.maximum(maps[number], 0, out=maps[number])
    cubes = xp.empty((sets * classes, g, g, g, 4), np.float32)
    backend.kernels.gather_cubes(backend.transforms.forward(maps), cubes)
    return cubes


def compare_halves(
    cropped: Any,
    grid: MapGrid,
    *,
    radius: int,
    fraction: float,
    radii: Float64,
    backend: Backend,
) -> Float64:
    """Half-map FSC (K, radius + 1) within each class's mask."""
    _, classes, _, _, depth, _ = cropped.shape
    spectra = _spectra(
        cropped,
        grid,
        maps=2 * classes,
        radius=radius,
        join=-1,
        size=transform_size(depth - 1),
        fractions=np.full((2, classes, radius + 1), fraction),
        backend=backend,
    )
    maps = _windowed(
        spectra, grid, radii=radii, edge=grid.mask_edge_pixels, power=1, backend=backend
    )
    shells = _shells(depth - 1, grid.scale, backend)
    sums = backend.xp.empty((classes, 3, radius + 1), np.float64)
    backend.kernels.compare_shells(
        backend.transforms.forward(maps), depth - 1, shells.order, shells.starts, sums
    )
    cross, first, second = np.moveaxis(backend.asnumpy(sums), 1, 0)
    power = first * second
    fsc: Float64 = np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)
    fsc[:, 0] = 1.0
    return fsc


def box_volumes(
    cropped: Any, grid: MapGrid, *, radius: int, fsc: Sequence[Float64], backend: Backend
) -> npt.NDArray[np.float32]:
    """Maps (K, box, box, box) of both half-sets within the session's mask, on the host."""
    n, padded = grid.box, grid.padded
    centred = backend.asarray((np.arange(n) - n // 2) % padded)
    everywhere = np.array([2.0 * padded])
    boxes = []
    for k, curve in enumerate(fsc):  # one at a time: a padded map is large
        clipped = np.clip(curve[None, : radius + 1], 0.02, 0.999)
        spectra = _spectra(
            backend.xp.ascontiguousarray(cropped[:, k : k + 1]),
            grid,
            maps=1,
            radius=radius,
            join=radius,
            size=padded,
            fractions=np.stack([clipped, 2 * clipped / (1 + clipped)]),
            backend=backend,
        )
        box = _windowed(spectra, grid, radii=everywhere, edge=1.0, power=0, backend=backend)
        for axis in (1, 2, 3):
            box = backend.xp.take(box, centred, axis=axis)
        boxes.append(finish_box(backend.asnumpy(box[0]), grid, windowed=True))
    return np.stack(boxes)
