"""Radial noise spectra per optics group, estimated where there is no particle.

The spectrum is that of the images outside the particle window, so signal does not enter it;
it is kept as the variance of each of the real and imaginary parts of a windowed image's
coefficients, one value per shell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend, cpu_backend
from reconstruct.fourier import HalfPlane, image_spectra
from reconstruct.types import EngineSettings, NoiseKind, NoiseSource

__all__ = [
    "NoiseModel",
    "NoiseSpectra",
    "noise_model_of",
    "normalise",
    "outside_power",
    "smooth_spectrum",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

NOISE_PARTICLES = 2000  # a group's spectrum is the mean over this many of its first particles
RESIDUAL_WINDOW = 5000.0  # particles whose residuals are remembered


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


@dataclass(frozen=True)
class NoiseModel:
    """How the spectra of the optics groups follow from what is measured."""

    kind: NoiseKind = "coloured"
    source: NoiseSource = "outside"
    prior_weight: float = 50.0  # images' worth of the mean of all groups that each begins with
    initial_weight: float = 5000.0  # images' worth of the outside estimate, beside residuals


def noise_model_of(settings: EngineSettings) -> NoiseModel:
    """What a user set."""
    return NoiseModel(
        settings.noise_model,
        settings.noise_source,
        settings.noise_prior_weight,
        settings.noise_initial_weight,
    )


class NoiseSpectra:
    """Mean noise power of each optics group over its first particles.

    A particle is measured when it arrives and counts from the moment it is trained on, so that the
    spectra of an update do not depend on how far ahead of it particles have arrived.

    Parameters
    ----------
    shells
        Shells from 0 on.
    coefficients
        (shells,) coefficients of a half plane in each shell, for the white model.
    """

    def __init__(
        self,
        shells: int,
        model: NoiseModel | None = None,
        *,
        coefficients: npt.NDArray[np.integer] | None = None,
    ) -> None:
        self.model = model or NoiseModel()
        self._coefficients = np.arange(shells) if coefficients is None else coefficients
        self._sum = np.zeros((0, shells))  # (groups, shells)
        self._count = np.zeros(0)  # (groups,)
        self._arrived = np.zeros(0)  # (groups,) measured, whether counted or not
        self._waiting = np.zeros((0, shells))  # measured, not yet counted
        self._residual = np.zeros((0, shells))  # (groups, shells) sums of residual power
        self._residuals = np.zeros((0, shells))  # (groups, shells) particles in them
        self._known: Float64 | None = None  # variances, until something changes them

    def add_group(self) -> None:
        """Make room for one more optics group."""
        self._known = None
        row = np.zeros((1, self._sum.shape[1]))
        for name in ("_sum", "_residual", "_residuals"):
            setattr(self, name, np.vstack([getattr(self, name), row]))
        self._count = np.append(self._count, 0.0)
        self._arrived = np.append(self._arrived, 0.0)

    def measure(
        self,
        images: Any,
        groups: npt.NDArray[np.integer],
        window: Float32,
        plane: HalfPlane,
        backend: Backend | None = None,
    ) -> None:
        """Measure the next particles that arrived, as far as their groups want them."""
        wanted = []
        for row, group in enumerate(groups):
            if self._arrived[group] < NOISE_PARTICLES:
                self._arrived[group] += 1
                wanted.append(row)
        if wanted:
            rows = (backend or cpu_backend()).asarray(np.array(wanted))
            power = outside_power(images[rows], window, plane, backend)
            self._waiting = np.concatenate([self._waiting, power])

    def count(self, groups: npt.NDArray[np.integer]) -> None:
        """Count the next particles, of optics groups ``groups``, in order of arrival."""
        if not len(self._waiting):
            return
        self._known = None
        used = 0
        for group in groups:
            if self._count[group] < NOISE_PARTICLES and used < len(self._waiting):
                self._sum[group] += self._waiting[used]
                self._count[group] += 1
                used += 1
        self._waiting = self._waiting[used:]

    def add_residuals(self, power: Float64, groups: npt.NDArray[np.integer]) -> None:
        """Count what is left of particles (n, shells <= all) when the map is taken away."""
        self._known = None
        keep = np.exp(-len(groups) / RESIDUAL_WINDOW)
        self._residual *= keep
        self._residuals *= keep
        reach = power.shape[1]
        for group, one in zip(groups, power, strict=True):
            self._residual[group, :reach] += one
            self._residuals[group, :reach] += 1

    def variance(self) -> Float64:
        """Component variance per optics group and shell; a group not met yet gets the mean."""
        if self._known is None:
            self._known = self._estimated()
        return self._known

    def _estimated(self) -> Float64:
        total = self._sum.sum(axis=0) / max(self._count.sum(), 1.0)
        seen = self._count[:, None] > 0
        # by the groups that were trained on: those that wait must not change an update's bits
        prior = self.model.prior_weight if np.count_nonzero(seen) > 1 else 0.0
        known = (self._sum + prior * total) / np.maximum(self._count + prior, 1)[:, None]
        mean = np.where(seen, known, total)
        if self.model.source == "residuals":
            weight = self.model.initial_weight
            mean = (weight * mean + self._residual) / (weight + self._residuals)
        if self.model.kind == "white":
            return np.stack([self._flat(row) for row in mean])
        return np.stack([smooth_spectrum(row) for row in mean])

    def _flat(self, power: Float64) -> Float64:
        level = np.average(power[1:], weights=self._coefficients[1:])
        return np.full(len(power), max(float(level), 1e-12))

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that changes."""
        return {name: getattr(self, f"_{field}").copy() for name, field in _DUMPED.items()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that ``dump`` returned."""
        self._known = None
        for name, field in _DUMPED.items():
            setattr(self, f"_{field}", np.array(arrays[name], np.float64))


_DUMPED = {
    "noise_sum": "sum",
    "noise_count": "count",
    "noise_arrived": "arrived",
    "noise_rows": "waiting",
    "noise_residual": "residual",
    "noise_residuals": "residuals",
}
