"""Radial noise spectra per optics group, estimated where there is no particle.

The spectrum is that of the images outside the particle window, so signal does not enter it;
it is kept as the variance of each of the real and imaginary parts of a windowed image's
coefficients, one value per shell.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reconstruct import kernels_cpu
from reconstruct.fourier import HalfPlane, image_spectra

__all__ = ["normalise", "outside_power", "smooth_spectrum"]

Float32 = npt.NDArray[np.float32]


def normalise(images: npt.NDArray[np.floating], window: Float32) -> Float32:
    """Background mean 0 and standard deviation 1, measured where ``window`` is 0 (n, box, box)."""
    values = np.ascontiguousarray(images, dtype=np.float32)
    out = np.empty_like(values)
    kernels_cpu.normalise_images(values, (window == 0).ravel(), out)
    return out


def outside_power(images: Float32, window: Float32, plane: HalfPlane) -> npt.NDArray[np.float64]:
    """Noise power per image and shell (n, max_radius + 1) from the part outside the window.

    Scaled to the window's energy, as the variance of the real and of the imaginary part.
    """
    outside = 1.0 - window
    spectra = image_spectra(images * outside, plane)
    energy = float((window**2).sum() / (outside**2).sum())
    return plane.per_shell_mean(np.square(np.abs(spectra))) * (0.5 * energy)


def smooth_spectrum(power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average each shell with its neighbours: the outside part blurs by about as much."""
    variance = power.copy()
    variance[0] = variance[1]
    padded = np.concatenate([variance[:1], variance, variance[-1:]])
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return np.maximum(smooth, 1e-12)
