"""From statistics to maps: the Wiener quotient, the real-space window, half-map FSC.

The statistics N and D are plain sums on a centred half cube that oversamples Fourier space by
``oversampling`` (edge of the padded box over edge of the box). A map in Fourier form is a cube of
the same layout, in units in which its central slices are image spectra. All transforms run at the
smallest size that holds the radius in use, so early updates cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.fft

from reconstruct import kernels_maps
from reconstruct.backend import Backend
from reconstruct.fourier import full_from_half, shell_index, sinc_squared, soft_mask
from reconstruct.pruned_fft import to_half_cube, to_map

__all__ = [
    "MapGrid",
    "at_reach",
    "box_volume",
    "finish_box",
    "half_map_fsc",
    "join_low_frequencies",
    "quotient",
    "reference_cube",
    "shell_means",
    "shell_table",
    "symmetric_plane",
    "transform_size",
]

Float32 = npt.NDArray[np.float32]
Complex64 = npt.NDArray[np.complex64]


@dataclass(frozen=True)
class MapGrid:
    """The sampling that maps and statistics of one session share."""

    box: int
    oversampling: float
    mask_radius_pixels: float
    mask_edge_pixels: float = 4.0

    @property
    def padded(self) -> int:
        """Edge of the padded box in pixels, even."""
        return 2 * round(self.box * self.oversampling / 2)

    @property
    def scale(self) -> float:
        """Fourier grid steps per shell."""
        return self.padded / self.box

    def reach(self, radius: int) -> int:
        """Half edge of the half cube that holds ``radius`` shells and their interpolation."""
        return int(np.ceil((radius + 0.5) * self.scale)) + 1


@lru_cache(maxsize=64)
def shell_table(reach: int, scale: float) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Shell in box units of each voxel of a half cube, and the voxels' count per shell."""
    shells = shell_index(reach, scale=scale)
    return shells, np.maximum(np.bincount(shells.ravel()), 1).astype(np.float64)


def shell_means(values: npt.NDArray[np.floating], scale: float) -> npt.NDArray[np.float64]:
    """Mean over each shell of a half cube (g, g, reach + 1)."""
    shells, counts = shell_table(values.shape[2] - 1, scale)
    means: npt.NDArray[np.float64] = np.bincount(shells.ravel(), values.ravel()) / counts
    return means


def symmetric_plane(statistics: Float32, reach: int) -> Float32:
    """Crop statistics (g, g, h, 3) to ``reach`` and complete the plane x = 0.

    A sample next to that plane also reaches it through its Friedel mate, which the insertion
    leaves out.
    """
    centre = (statistics.shape[0] - 1) // 2
    span = slice(centre - reach, centre + reach + 1)
    crop = statistics[span, span, : reach + 1].copy()
    crop[:, :, 0, :] += crop[::-1, ::-1, 0, :] * np.array([1.0, -1.0, 1.0], np.float32)
    return crop


def at_reach(statistics: Float32, reach: int, backend: Backend) -> Float32:
    """Copy statistics (..., g, g, held + 2, m) to another half edge: cut, or filled with zeros.

    The column beyond ``reach`` is left empty by a cut: insertion needs it, nothing reads it.
    """
    held = (statistics.shape[-3] - 1) // 2
    common = min(held, reach)
    inner, outer = (slice(r - common, r + common + 1) for r in (held, reach))
    columns = common + 2 if reach > held else common + 1
    g = 2 * reach + 1
    shape = (*statistics.shape[:-4], g, g, reach + 2, statistics.shape[-1])
    fitted = backend.xp.zeros(shape, np.float32)
    fitted[..., outer, outer, :columns, :] = statistics[..., inner, inner, :columns, :]
    return fitted  # type: ignore[no-any-return]


def quotient(
    crop: Float32,
    grid: MapGrid,
    radius: int,
    signal_fraction: npt.NDArray[np.floating],
) -> Complex64:
    """Wiener quotient N / (D + 1 / tau^2) of cropped statistics, zero beyond ``radius``.

    Parameters
    ----------
    crop
        (g, g, reach + 1, 3), from ``symmetric_plane``.
    signal_fraction
        (>= radius + 1,) share of signal in each shell, FSC-like, in (0, 1]: 1 / tau^2 is the
        shell's mean of D times (1 - f) / f (Scheres, JSB 180 (2012) 519, eq. 8-9).
    """
    shells, counts = shell_table(crop.shape[2] - 1, grid.scale)
    fraction = np.clip(signal_fraction[: radius + 1], 1e-3, 0.999).astype(np.float64)
    half = np.empty(crop.shape[:3], np.complex64)
    kernels_maps.wiener_quotient(crop, shells, counts, (1 - fraction) / fraction, half)
    return half


def transform_size(reach: int) -> int:
    """Smallest fast even edge of a transform that holds ``reach``."""
    size = int(scipy.fft.next_fast_len(2 * reach + 2, real=True))
    return size + size % 2 if size % 2 == 0 else transform_size(reach + 1)


@lru_cache(maxsize=32)
def _window(size: int, grid: MapGrid, gridding_power: int) -> Float32:
    """Middle of a real-space window at ``size`` samples across the padded box; 0 outside it.

    Gridding corrected; its edge says how much of the map is needed.
    """
    spacing = grid.padded / size
    reached = np.ceil((grid.mask_radius_pixels + grid.mask_edge_pixels) / spacing)
    edge = min(size, 2 * int(reached))
    decay = sinc_squared(edge, grid.padded, spacing=spacing).astype(np.float64) ** gridding_power
    mask = soft_mask(edge, grid.mask_radius_pixels, grid.mask_edge_pixels, spacing=spacing)
    cube = decay[:, None, None] * decay[None, :, None] * decay[None, None, :]
    return np.where(mask > 0, mask / np.maximum(cube, 1e-3), 0.0).astype(np.float32)


def _windowed(
    half: Complex64, grid: MapGrid, gridding_power: int, negative: Literal["keep", "cut"] = "keep"
) -> Complex64:
    reach = half.shape[2] - 1
    size = transform_size(reach)
    window = _window(size, grid, gridding_power)
    middle = to_map(half, size, len(window))
    middle *= window
    if negative == "cut":
        np.maximum(middle, 0, out=middle)
    return to_half_cube(middle, size, reach)


def reference_cube(
    half: Complex64,
    grid: MapGrid,
    *,
    negative: Literal["keep", "cut"] = "keep",
    out: Complex64 | None = None,
) -> Float32:
    """Window a map and prepare it for slicing: (g, g, g, 2) float32.

    Corrected for gridding twice: for the insertion that made it and the slices to come.
    ``negative`` density may be cut away. ``out`` (g, g, g) is room for the cube.
    """
    full = full_from_half(_windowed(half, grid, 2, negative), out=out)
    return full.view(np.float32).reshape(*full.shape, 2)


def half_map_fsc(
    first: Complex64, second: Complex64, grid: MapGrid, radius: int
) -> npt.NDArray[np.float64]:
    """FSC of two half maps within the window, (radius + 1,), shells in box units."""
    a, b = _windowed(first, grid, 1), _windowed(second, grid, 1)
    shells, counts = shell_table(a.shape[2] - 1, grid.scale)
    cross, power_a, power_b = sums = np.zeros((3, len(counts)))
    kernels_maps.compare_shells(a, b, shells, sums)
    power = power_a * power_b
    fsc: npt.NDArray[np.float64] = np.divide(
        cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0
    )
    fsc[0] = 1.0
    return fsc[: radius + 1]


def join_low_frequencies(own: Complex64, both: Complex64, grid: MapGrid, radius: int) -> None:
    """Take the shells of ``own`` up to ``radius`` from ``both``: keeps half maps in register.

    ``both`` need not reach further than these shells.
    """
    centre, reach = own.shape[2] - 1, min(both.shape[2], own.shape[2]) - 1
    shells, _ = shell_table(reach, grid.scale)
    inner, outer = (slice(c - reach, c + reach + 1) for c in (centre, both.shape[2] - 1))
    low = own[inner, inner, : reach + 1]
    np.copyto(low, both[outer, outer, : reach + 1], where=shells <= radius)


def box_volume(half: Complex64, grid: MapGrid, *, windowed: bool) -> Float32:
    """Real-space map (box, box, box) with its origin at the centre voxel."""
    n, padded = grid.box, grid.padded
    reach = min(half.shape[2] - 1, padded // 2 - 1)
    b = half.shape[2] - 1
    span = slice(b - reach, b + reach + 1)
    box = to_map(half[span, span, : reach + 1], padded, n)
    return finish_box(box, grid, windowed=windowed)


def finish_box(box: Float32, grid: MapGrid, *, windowed: bool) -> Float32:
    """Norm a padded map's central box, correct it for gridding, and mask it if ``windowed``."""
    return np.ascontiguousarray(box * _box_window(grid, windowed), dtype=np.float32)


@lru_cache(maxsize=32)
def _box_window(grid: MapGrid, windowed: bool) -> Float32:
    n = grid.box
    decay = sinc_squared(n, grid.padded)
    window = n / (decay[:, None, None] * decay[None, :, None] * decay[None, None, :])
    if windowed:
        window = window * soft_mask(n, grid.mask_radius_pixels, grid.mask_edge_pixels)
    return window.astype(np.float32)
