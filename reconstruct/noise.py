"""Radial noise spectra per optics group, estimated where there is no particle.

The spectrum is that of the images outside the particle window, so signal does not enter it;
it is kept as the variance of each of the real and imaginary parts of a windowed image's
coefficients, one value per shell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend, cpu_backend
from reconstruct.fourier import HalfPlane, image_spectra

__all__ = ["NoiseSpectra", "normalise", "outside_power", "smooth_spectrum"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

NOISE_PARTICLES = 2000  # the noise spectra are the mean over this many first particles


def normalise(images: Any, window: Float32, backend: Backend | None = None) -> Any:
    """Background mean 0 and standard deviation 1, measured where ``window`` is 0 (n, box, box).

    The result is on the backend; images may be on the host.
    """
    backend = backend or cpu_backend()
    values = backend.asarray(images).astype(np.float32, copy=False)
    out = backend.xp.empty_like(values)
    backend.kernels.normalise_images(values, backend.asarray((window == 0).ravel()), out)
    return out


def outside_power(
    images: Any, window: Float32, plane: HalfPlane, backend: Backend | None = None
) -> Float64:
    """Noise power per image and shell (n, max_radius + 1) from the part outside the window.

    Scaled to the window's energy, as the variance of the real and of the imaginary part. Images are
    on the backend.
    """
    backend = backend or cpu_backend()
    outside = 1.0 - window
    outer = images * backend.asarray(outside)
    spectra = backend.asnumpy(image_spectra(outer, plane, xp=backend.xp, fft=backend.fft))
    energy = float((window**2).sum() / (outside**2).sum())
    return plane.per_shell_mean(np.square(np.abs(spectra))) * (0.5 * energy)


def smooth_spectrum(power: Float64) -> Float64:
    """Average each shell with its neighbours: the outside part blurs by about as much."""
    variance = power.copy()
    variance[0] = variance[1]
    padded = np.concatenate([variance[:1], variance, variance[-1:]])
    smooth: Float64 = np.maximum((padded[:-2] + padded[1:-1] + padded[2:]) / 3, 1e-12)
    return smooth


class NoiseSpectra:
    """Mean noise power of each optics group over a session's first particles.

    A particle is measured when it arrives and counts from the moment it is trained on, so that the
    spectra of an update do not depend on how far ahead of it particles have arrived.
    """

    def __init__(self, shells: int) -> None:
        self._sum = np.zeros((0, shells))  # (groups, shells)
        self._count = np.zeros(0)  # (groups,)
        self._waiting = np.zeros((0, shells))  # measured, not yet counted

    def add_group(self) -> None:
        """Make room for one more optics group."""
        self._sum = np.vstack([self._sum, np.zeros((1, self._sum.shape[1]))])
        self._count = np.append(self._count, 0.0)

    def measure(
        self, images: Any, window: Float32, plane: HalfPlane, backend: Backend | None = None
    ) -> None:
        """Measure the next particles that arrived, as far as they are wanted."""
        wanted = NOISE_PARTICLES - int(self._count.sum()) - len(self._waiting)
        if wanted > 0:
            power = outside_power(images[:wanted], window, plane, backend)
            self._waiting = np.concatenate([self._waiting, power])

    def count(self, groups: npt.NDArray[np.integer]) -> None:
        """Count the next particles, of optics groups ``groups``, in order of arrival."""
        power, self._waiting = self._waiting[: len(groups)], self._waiting[len(groups) :]
        for group, one in zip(groups, power, strict=False):
            self._sum[group] += one
            self._count[group] += 1

    def variance(self) -> Float64:
        """Component variance per optics group and shell; a group not met yet gets the mean."""
        total = self._sum.sum(axis=0) / max(self._count.sum(), 1.0)
        seen = self._count[:, None] > 0
        mean = np.where(seen, self._sum / np.maximum(self._count, 1)[:, None], total)
        return np.stack([smooth_spectrum(row) for row in mean])

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that changes."""
        return {
            "noise_sum": self._sum.copy(),
            "noise_count": self._count.copy(),
            "noise_rows": self._waiting.copy(),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that ``dump`` returned."""
        self._sum = np.array(arrays["noise_sum"], np.float64)
        self._count = np.array(arrays["noise_count"], np.float64)
        self._waiting = np.array(arrays["noise_rows"], np.float64)
