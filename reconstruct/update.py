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

from reconstruct.backend import Backend
from reconstruct.fourier import full_from_half, shell_index, sinc_squared, soft_mask

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
    shells, _ = shell_table(crop.shape[2] - 1, grid.scale)
    weight = crop[..., 2]
    mean = shell_means(weight, grid.scale)
    fraction = np.clip(signal_fraction[: radius + 1], 1e-3, 0.999)
    ridge = np.full(len(mean), np.inf)
    noise_over_signal = (1 - fraction) / fraction
    ridge[: radius + 1] = mean[: radius + 1] * noise_over_signal + 1e-6 * mean.max() + 1e-20
    denominator = weight + ridge.astype(np.float32)[shells]
    half: Complex64 = ((crop[..., 0] + 1j * crop[..., 1]) / denominator).astype(
        np.complex64, copy=False
    )
    return half


def transform_size(reach: int) -> int:
    """Smallest fast even edge of a transform that holds ``reach``."""
    size = int(scipy.fft.next_fast_len(2 * reach + 2, real=True))
    return size + size % 2 if size % 2 == 0 else transform_size(reach + 1)


@lru_cache(maxsize=32)
def _window(size: int, grid: MapGrid, gridding_power: int) -> Float32:
    """Real-space window at ``size`` samples across the padded box, gridding corrected."""
    spacing = grid.padded / size
    decay = sinc_squared(size, grid.padded, spacing=spacing).astype(np.float64) ** gridding_power
    mask = soft_mask(size, grid.mask_radius_pixels, grid.mask_edge_pixels, spacing=spacing)
    cube = decay[:, None, None] * decay[None, :, None] * decay[None, None, :]
    window = np.where(mask > 0, mask / np.maximum(cube, 1e-3), 0.0).astype(np.float32)
    return np.ascontiguousarray(np.fft.ifftshift(window))


def _to_real(half: Complex64, size: int) -> Float32:
    """Inverse transform of a centred half cube at ``size`` samples; origin at voxel 0."""
    reach = half.shape[2] - 1
    spectrum = np.zeros((size, size, size // 2 + 1), np.complex64)
    a, b = reach + 1, reach
    spectrum[:a, :a, :a] = half[b:, b:, :]
    spectrum[:a, -b:, :a] = half[b:, :b, :]
    spectrum[-b:, :a, :a] = half[:b, b:, :]
    spectrum[-b:, -b:, :a] = half[:b, :b, :]
    real: Float32 = scipy.fft.irfftn(spectrum, s=(size, size, size), overwrite_x=True)
    return real


def _to_half(real: Float32, reach: int) -> Complex64:
    """Centred half cube of a real map whose origin is at voxel 0."""
    spectrum = scipy.fft.rfftn(real)
    g = 2 * reach + 1
    half = np.empty((g, g, reach + 1), np.complex64)
    a, b = reach + 1, reach
    half[b:, b:, :] = spectrum[:a, :a, :a]
    half[b:, :b, :] = spectrum[:a, -b:, :a]
    half[:b, b:, :] = spectrum[-b:, :a, :a]
    half[:b, :b, :] = spectrum[-b:, -b:, :a]
    return half


def _windowed(
    half: Complex64, grid: MapGrid, gridding_power: int, negative: Literal["keep", "cut"] = "keep"
) -> Complex64:
    reach = half.shape[2] - 1
    size = transform_size(reach)
    real = _to_real(half, size)
    real *= _window(size, grid, gridding_power)
    if negative == "cut":
        np.maximum(real, 0, out=real)
    return _to_half(real, reach)


def reference_cube(
    half: Complex64, grid: MapGrid, *, negative: Literal["keep", "cut"] = "keep"
) -> Float32:
    """Window a map and prepare it for slicing: (g, g, g, 2) float32.

    Corrected for gridding twice: for the insertion that made it and the slices to come.
    ``negative`` density may be cut away.
    """
    full = full_from_half(_windowed(half, grid, 2, negative))
    return full.view(np.float32).reshape(*full.shape, 2)


def half_map_fsc(
    first: Complex64, second: Complex64, grid: MapGrid, radius: int
) -> npt.NDArray[np.float64]:
    """FSC of two half maps within the window, (radius + 1,), shells in box units."""
    a, b = _windowed(first, grid, 1), _windowed(second, grid, 1)
    shells, counts = shell_table(a.shape[2] - 1, grid.scale)
    weights = np.full(a.shape, 2.0)
    weights[:, :, 0] = 1.0
    cross, power_a, power_b = (
        np.bincount(shells.ravel(), (weights * product).ravel(), len(counts))
        for product in ((a * np.conj(b)).real, abs(a) ** 2, abs(b) ** 2)
    )
    power = power_a * power_b
    fsc: npt.NDArray[np.float64] = np.divide(
        cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0
    )
    fsc[0] = 1.0
    return fsc[: radius + 1]


def join_low_frequencies(own: Complex64, both: Complex64, grid: MapGrid, radius: int) -> Complex64:
    """``own`` with the shells up to ``radius`` taken from ``both``: keeps half maps in register."""
    shells, _ = shell_table(own.shape[2] - 1, grid.scale)
    joined: Complex64 = np.where(shells <= radius, both, own)
    return joined


def box_volume(half: Complex64, grid: MapGrid, *, windowed: bool) -> Float32:
    """Real-space map (box, box, box) with its origin at the centre voxel."""
    n, padded = grid.box, grid.padded
    reach = min(half.shape[2] - 1, padded // 2 - 1)
    b = half.shape[2] - 1
    span = slice(b - reach, b + reach + 1)
    real = np.fft.fftshift(_to_real(half[span, span, : reach + 1], padded))
    start = padded // 2 - n // 2
    box = real[start : start + n, start : start + n, start : start + n]
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
