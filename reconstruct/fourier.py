"""The half plane sorted by radius, and the transforms between images, volumes and it.

A particle is a flat complex vector whose coefficients are ordered by radius, so that "use
frequencies up to radius L" is the prefix ``[:plane.count(L)]``. Radius is counted in shells of
1 / (box * pixel size); shell ``s`` holds the coefficients with ``round(|k|) == s``. The origin
of images and volumes is the pixel ``box // 2``; transforms are divided by the box edge, so that
white noise of variance 1 has variance 1/2 in each of the real and imaginary parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

__all__ = [
    "HalfPlane",
    "centre_distance",
    "centred_rfftn",
    "fourier_cube",
    "full_from_half",
    "image_spectra",
    "make_half_plane",
    "shell_index",
    "sinc_squared",
    "soft_mask",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Complex64 = npt.NDArray[np.complex64]


@dataclass(frozen=True)
class HalfPlane:
    """Coefficients of a real image's transform, each Friedel pair once, without DC."""

    box: int
    max_radius: int
    kx: Float32  # (n,) integer valued
    ky: Float32  # (n,)
    shell: npt.NDArray[np.int32]  # (n,) 1..max_radius, ascending

    def count(self, radius: int) -> int:
        """Number of coefficients in shells 1..radius: the length of the prefix."""
        return int(np.searchsorted(self.shell, radius, side="right"))

    @cached_property
    def integers(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """``kx`` and ``ky`` as integers, in the arrays' own library."""
        return self.kx.astype(np.int32), self.ky.astype(np.int32)

    @cached_property
    def gather(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Row and column of each coefficient in ``rfft2`` output."""
        rows = self.ky.astype(np.intp) % self.box
        return rows, self.kx.astype(np.intp)

    @cached_property
    def centring(self) -> Float32:
        """The sign that moves the origin from pixel (0, 0) to the centre pixel."""
        parity = (self.kx + self.ky).astype(np.int64) * (self.box // 2) * 2
        return np.cos(np.pi * parity / self.box).astype(np.float32)  # exact for even boxes

    def per_shell_mean(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Mean over each shell of ``values`` (..., n); shape (..., max_radius + 1), [0] is 0."""
        counts = np.bincount(self.shell, minlength=self.max_radius + 1)
        starts = np.searchsorted(self.shell, np.arange(1, self.max_radius + 1))
        sums = np.add.reduceat(values.astype(np.float64), starts, axis=-1)
        means = np.zeros((*values.shape[:-1], self.max_radius + 1))
        means[..., 1:] = sums / np.maximum(counts[1:], 1)
        return means


def make_half_plane(box: int, max_radius: int) -> HalfPlane:
    """Lay out the half plane of a ``box`` x ``box`` image up to ``max_radius`` shells.

    Raises
    ------
    ValueError
        The box is odd, or the radius does not lie inside the image's transform.
    """
    if box % 2:
        raise ValueError(f"the box must be even, not {box}: crop or pad the particles by one pixel")
    if not 1 <= max_radius < box // 2:
        raise ValueError(f"max_radius must be 1 to {box // 2 - 1} for box {box}, not {max_radius}")
    axis = np.arange(-max_radius - 1, max_radius + 2)
    ky, kx = np.meshgrid(axis, axis, indexing="ij")
    keep = (kx > 0) | ((kx == 0) & (ky > 0))
    kx, ky = kx[keep], ky[keep]
    squared = kx * kx + ky * ky
    shell = np.floor(np.sqrt(squared) + 0.5).astype(np.int32)
    inside = shell <= max_radius
    kx, ky, squared, shell = kx[inside], ky[inside], squared[inside], shell[inside]
    order = np.lexsort((ky, kx, squared))
    return HalfPlane(
        box=box,
        max_radius=max_radius,
        kx=kx[order].astype(np.float32),
        ky=ky[order].astype(np.float32),
        shell=shell[order],
    )


def image_spectra(images: Any, plane: HalfPlane, *, xp: Any = np, fft: Any = scipy.fft) -> Any:
    """Transform images (n, box, box) to half-plane spectra (n, plane.count) complex64.

    ``xp`` and ``fft`` are the images' own array module and its transforms.
    """
    transform = fft.rfft2(images.astype(np.float32, copy=False))
    rows, columns = (xp.asarray(index) for index in plane.gather)
    spectra = transform[:, rows, columns] * xp.asarray(plane.centring / plane.box)
    return spectra.astype(np.complex64, copy=False)


def shell_index(radius: int, *, scale: float = 1.0) -> npt.NDArray[np.int32]:
    """Shell number of each voxel of a centred half cube (2r+1, 2r+1, r+1).

    ``scale`` grid steps make one shell.
    """
    axis = np.arange(-radius, radius + 1, dtype=np.float64)
    half = np.arange(0, radius + 1, dtype=np.float64)
    squared = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half[None, None, :] ** 2
    return np.floor(np.sqrt(squared) / scale + 0.5).astype(np.int32)


def centre_distance(size: int, *, spacing: float = 1.0, axes: int = 3) -> Float64:
    """Distance from the centre sample, ``spacing`` pixels apart, on a grid of ``axes`` axes."""
    squared = np.square((np.arange(size) - size // 2) * spacing)
    distance: Float64 = np.sqrt(sum(np.ix_(*[squared] * axes), np.zeros(())))
    return distance


def sinc_squared(size: int, extent: float, *, spacing: float = 1.0) -> Float32:
    """Separable real-space decay of trilinear interpolation in Fourier space.

    ``size`` samples ``spacing`` pixels apart, centred; ``extent`` is the edge in pixels of the
    padded box, i.e. the inverse of the Fourier grid's step.
    """
    position = (np.arange(size) - size // 2) * spacing
    decay: Float32 = (np.sinc(position / extent) ** 2).astype(np.float32)
    return decay


def soft_mask(
    size: int, radius: float, edge: float, *, spacing: float = 1.0, axes: int = 3
) -> Float32:
    """Round window of ``size`` samples along each axis, ``spacing`` pixels apart.

    It is 1 inside ``radius`` pixels of the centre and falls as a cosine over ``edge`` pixels.
    """
    distance = centre_distance(size, spacing=spacing, axes=axes)
    fall = np.clip((distance - radius) / max(edge, 1e-6), 0.0, 1.0)
    mask: Float32 = (0.5 + 0.5 * np.cos(np.pi * fall)).astype(np.float32)
    return mask


def centred_rfftn(volume: npt.NDArray[np.floating]) -> Complex64:
    """``rfftn`` with the origin at the centre voxel, z and y axes ordered -n/2..n/2-1."""
    transform = scipy.fft.rfftn(np.fft.ifftshift(volume).astype(np.float32, copy=False))
    return np.fft.fftshift(transform, axes=(0, 1)).astype(np.complex64, copy=False)


def fourier_cube(
    volume: npt.NDArray[np.floating], radius: int, *, oversampling: float = 2.0
) -> Complex64:
    """Full centred Fourier cube of a real-space map, ready for trilinear slices.

    Parameters
    ----------
    volume
        (n, n, n), origin at ``n // 2``.
    radius
        Shells (of the unpadded box) that slices will reach.
    oversampling
        Padded edge over box edge; the padded edge is rounded to an even number.

    Returns
    -------
    (g, g, g) complex64 with ``g = 2 * ceil(radius * oversampling) + 3``; in units in which a
    central slice equals the spectrum of the projection as ``image_spectra`` makes it.
    """
    n = volume.shape[0]
    padded = 2 * round(n * oversampling / 2)
    reach = int(np.ceil(radius * oversampling)) + 1
    correction = sinc_squared(n, padded)
    corrected = volume / (
        correction[:, None, None] * correction[None, :, None] * correction[None, None, :]
    )
    before = padded // 2 - n // 2
    after = padded - n - before
    cube = centred_rfftn(np.pad(corrected, (before, after)))
    centre = padded // 2
    half = cube[
        centre - reach : centre + reach + 1, centre - reach : centre + reach + 1, : reach + 1
    ]
    return full_from_half(half / np.float32(n))


def full_from_half(half: Complex64, *, out: Complex64 | None = None, xp: Any = np) -> Complex64:
    """Fill a centred full cube (g, g, g) from its half (g, g, reach + 1) by Friedel symmetry."""
    g, reach = half.shape[0], half.shape[2] - 1
    full = xp.empty((g, g, g), dtype=np.complex64) if out is None else out
    full[:, :, reach:] = half
    full[:, :, :reach] = xp.conj(half[::-1, ::-1, reach:0:-1])
    return full
