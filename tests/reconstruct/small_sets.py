"""Small simulated sets with known truth, made once per process; every test reads, none writes."""

from __future__ import annotations

import functools

import numpy as np

from reconstruct import kernels_cpu
from reconstruct.ctf import ctf_values
from reconstruct.fourier import HalfPlane, fourier_cube, image_spectra, make_half_plane
from reconstruct.search import WeightedBatch, weigh
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.structures import demo_particle
from reconstruct.types import Geometry

__all__ = [
    "GEOMETRY",
    "cube_of",
    "demo_map",
    "plane",
    "shift_phases",
    "simulated",
    "slices_of",
    "true_ctf",
    "weighted",
]

GEOMETRY = Geometry(box=32, pixel_size_angstrom=10.0)


@functools.cache
def demo_map(kind: str = "whole") -> np.ndarray:
    if kind == "ring":
        return ring_map()
    return demo_particle(GEOMETRY, kind=kind)  # type: ignore[arg-type]


def ring_map() -> np.ndarray:
    """A ring as bright as the demo's particle, and nothing like it."""
    axis = np.arange(GEOMETRY.box) - GEOMETRY.box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    ring = np.exp(-((np.hypot(x, y) - 7.0) ** 2 + z**2) / 4.0).astype(np.float32)
    return ring * (demo_map().std() / ring.std())


@functools.cache
def simulated(
    n_particles: int,
    *,
    snr: float = 0.3,
    kinds: tuple[str, ...] = ("whole",),
    max_shift_angstrom: float = 15.0,
    seed: int = 0,
) -> Simulated:
    settings = SimulationSettings(
        n_particles=n_particles, snr=snr, max_shift_angstrom=max_shift_angstrom, seed=seed
    )
    return simulate_set([Species(demo_map(kind)) for kind in kinds], GEOMETRY, settings=settings)


def plane(radius: int = 11) -> HalfPlane:
    return make_half_plane(GEOMETRY.box, radius)


def true_ctf(particles: Simulated, layout: HalfPlane) -> np.ndarray:
    """CTF (n, m) of the particles on a half plane, by the plain functions."""
    edge = GEOMETRY.box_angstrom
    return ctf_values(
        layout.kx / edge,
        layout.ky / edge,
        defocus_u_angstrom=particles.defocus_u_angstrom,
        defocus_v_angstrom=particles.defocus_v_angstrom,
        defocus_angle_rad=particles.defocus_angle_rad,
        phase_shift_rad=particles.phase_shift_rad,
        optics=particles.optics[0],
    )


def weighted(particles: Simulated, layout: HalfPlane) -> WeightedBatch:
    """Particles ready to be scored, with noise of variance 1."""
    spectra = image_spectra(particles.images, layout)
    half = np.full((1, len(layout.kx)), 0.5, np.float32)
    return weigh(spectra, true_ctf(particles, layout), half)


def slices_of(cube: np.ndarray, rotations: np.ndarray, layout: HalfPlane) -> np.ndarray:
    """Slices (n, m) complex of a cube (g, g, g, 2) that oversamples twice."""
    out = np.empty((len(rotations), 2, len(layout.kx)), np.float32)
    turns = rotations.reshape(-1, 9).astype(np.float32)
    kernels_cpu.extract_slices(cube, turns, layout.kx, layout.ky, np.float32(2), out)
    return out[:, 0] + 1j * out[:, 1]


def shift_phases(shifts_pixels: np.ndarray, layout: HalfPlane) -> np.ndarray:
    """Factors (n, m) that translate images by +shift."""
    turns = shifts_pixels @ np.stack([layout.kx, layout.ky])
    return np.exp(-2j * np.pi / layout.box * turns)


@functools.cache
def cube_of(kind: str, *, snr: float, kinds: tuple[str, ...] = ("whole",)) -> np.ndarray:
    """Cube (g, g, g, 2) of a species at the scale of a set's images, known from a clean set."""
    layout = plane()
    clean = simulated(40, snr=np.inf, kinds=kinds)
    first = np.flatnonzero(clean.species == 0)
    expected = image_spectra(clean.images[first], layout)
    cubes = {name: fourier_cube(demo_map(name), 13) for name in {kind, kinds[0]}}
    flat = {name: cube.view(np.float32).reshape(*cube.shape, 2) for name, cube in cubes.items()}
    shifts = clean.shifts_angstrom[first] / GEOMETRY.pixel_size_angstrom
    found = slices_of(flat[kinds[0]], clean.rotations[first], layout)
    found *= true_ctf(clean, layout)[first] * shift_phases(-shifts, layout)
    gain = np.vdot(found, expected).real / np.linalg.norm(found) ** 2
    # the clean set has signal variance 1
    return (flat[kind] * gain * np.sqrt(snr)).astype(np.float32)
