"""Small simulated sets with known truth, made once per process; every test reads, none writes."""

from __future__ import annotations

import functools

import numpy as np

from reconstruct.fourier import HalfPlane, image_spectra, make_half_plane
from reconstruct.search import WeightedBatch, weigh
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.structures import demo_particle
from reconstruct.types import Geometry, ParticleImages

__all__ = ["GEOMETRY", "demo_map", "plane", "rows", "simulated", "true_ctf", "weighted"]

GEOMETRY = Geometry(box=32, pixel_size_angstrom=10.0)


@functools.cache
def demo_map(kind: str = "whole") -> np.ndarray:
    return demo_particle(GEOMETRY, kind=kind)  # type: ignore[arg-type]


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


def rows(particles: ParticleImages, span: slice) -> ParticleImages:
    """The particles of ``span``."""
    values = {n: getattr(particles, n)[span] for n in vars(particles) if n != "optics"}
    return ParticleImages(**values, optics=particles.optics)


def plane(radius: int = 11) -> HalfPlane:
    return make_half_plane(GEOMETRY.box, radius)


def true_ctf(particles: Simulated, layout: HalfPlane) -> np.ndarray:
    """CTF (n, m) of the particles on a half plane, by the plain functions."""
    from reconstruct.ctf import ctf_values

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
