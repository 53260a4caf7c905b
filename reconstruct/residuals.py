"""What is left of particles when the map is taken away from them: a running measure of the noise.

The residual holds whatever the model does not explain, the map's own errors and neighbouring
particles included, where the estimate from outside the particle holds the noise alone. Shells
beyond the working radius have no map and no residual.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reconstruct import kernels_cpu
from reconstruct.ctf import electron_wavelength_angstrom
from reconstruct.fourier import HalfPlane
from reconstruct.learned import LearnResult
from reconstruct.learner import Learner
from reconstruct.store import ParticleStore
from reconstruct.types import Optics

__all__ = ["RESIDUALS_EVERY", "measure_residuals", "residual_power"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

RESIDUALS_EVERY = 5  # updates
MOST_PARTICLES = 100  # of an update that are measured


def residual_power(
    spectra: npt.NDArray[np.complex64],
    ctf: Float32,
    slices: npt.NDArray[np.complex64],
    shifts_pixels: npt.NDArray[np.floating],
    plane: HalfPlane,
) -> Float64:
    """Component variance per particle and shell (b, max_radius + 1) of X - C P, [0] as [1].

    Parameters
    ----------
    spectra, ctf, slices
        (b, n) on the first ``n`` coefficients of ``plane``: all of them.
    shifts_pixels
        (b, 2) translations that would centre the particles.
    """
    turns = shifts_pixels @ np.stack([plane.kx, plane.ky])
    moved = slices * np.exp(2j * np.pi / plane.box * turns)
    power = plane.per_shell_mean(np.square(np.abs(spectra - ctf * moved))) * 0.5
    power[:, 0] = power[:, 1]
    return power


def measure_residuals(
    learner: Learner,
    store: ParticleStore,
    rows: Rows,
    result: LearnResult,
    half: Rows,
    *,
    plane: HalfPlane,
    optics: list[Optics],
    box_angstrom: float,
) -> tuple[Float64, Rows]:
    """Residual power of some particles of an update at their best poses, and their groups."""
    assert learner.cubes is not None
    pick = np.arange(0, len(rows), -(-len(rows) // MOST_PARTICLES))  # of both half-sets
    rows, half = rows[pick], half[pick]
    n = plane.count(learner.radius)
    at = HalfPlane(plane.box, learner.radius, plane.kx[:n], plane.ky[:n], plane.shell[:n])
    best = result.poses.class_index[pick, 0]
    rotation = np.ascontiguousarray(result.poses.rotation[pick, 0], np.float32)
    slices = np.empty((len(rows), 2, n), np.float32)
    # Rare and small: on a device the cubes come to the host, a few MB every few updates.
    # (K or 2 K, g, g, g, 2); a device keeps each value's neighbour with it
    cubes = np.ascontiguousarray(learner.backend.asnumpy(learner.cubes)[..., :2])
    map_of = best + learner.n_classes * half * (len(cubes) > learner.n_classes)
    for number, cube in enumerate(cubes):
        members = np.flatnonzero(map_of == number)
        out = np.empty((len(members), 2, n), np.float32)
        kernels_cpu.extract_slices(
            cube, rotation[members], at.kx, at.ky, np.float32(learner.grid.scale), out
        )
        slices[members] = out
    group = np.asarray(store["optics_group"][rows], np.intp)
    ctf = np.empty((len(rows), n), np.float32)
    kernels_cpu.ctf_rows(
        at.kx,
        at.ky,
        1.0 / box_angstrom,
        np.asarray(store["ctf"][rows], np.float64),
        np.array([electron_wavelength_angstrom(optics[g].voltage_kv) for g in group]),
        np.array([optics[g].spherical_aberration_mm * 1e7 for g in group]),
        np.array([optics[g].amplitude_contrast for g in group]),
        ctf,
    )
    spectra = store.spectra(rows, n)
    shift = result.poses.shift[pick, 0]
    return residual_power(spectra, ctf, slices[:, 0] + 1j * slices[:, 1], shift, at), group
