"""Radial noise spectra per optics group, estimated where there is no particle.

The spectrum is that of the images outside the particle window, so signal does not enter it;
it is kept as the variance of each of the real and imaginary parts of a windowed image's
coefficients, one value per shell.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reconstruct.fourier import HalfPlane, image_spectra

__all__ = ["circular_window", "normalise", "outside_spectrum"]

Float32 = npt.NDArray[np.float32]


def circular_window(box: int, radius_pixels: float, edge_pixels: float) -> Float32:
    """Soft circular window (box, box): 1 inside ``radius_pixels``, cosine fall over the edge."""
    axis = np.arange(box) - box // 2
    distance = np.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    fall = np.clip((distance - radius_pixels) / edge_pixels, 0.0, 1.0)
    return (0.5 + 0.5 * np.cos(np.pi * fall)).astype(np.float32)


def normalise(images: npt.NDArray[np.floating], window: Float32) -> Float32:
    """Background mean 0 and standard deviation 1, measured where ``window`` is 0 (n, box, box)."""
    values = images.astype(np.float32)
    outside = window == 0
    background = values[:, outside]
    mean = background.mean(axis=1, dtype=np.float64)
    deviation = background.std(axis=1, dtype=np.float64)
    deviation = np.where(deviation > 0, deviation, 1.0)
    values -= mean[:, None, None].astype(np.float32)
    values /= deviation[:, None, None].astype(np.float32)
    return values


def outside_spectrum(images: Float32, window: Float32, plane: HalfPlane) -> npt.NDArray[np.float64]:
    """Mean noise variance per shell (max_radius + 1,) of windowed images; [0] repeats [1].

    The part outside the window is transformed and scaled to the window's energy; three shells are
    averaged, since the outside part blurs the spectrum by about as much.
    """
    outside = 1.0 - window
    spectra = image_spectra(images * outside, plane)
    energy = float((window**2).sum() / (outside**2).sum())
    power = np.square(np.abs(spectra)).mean(axis=0, dtype=np.float64)
    variance = plane.per_shell_mean(power) * (0.5 * energy)
    variance[0] = variance[1]
    padded = np.concatenate([variance[:1], variance, variance[-1:]])
    smooth: npt.NDArray[np.float64] = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return np.maximum(smooth, 1e-12)
