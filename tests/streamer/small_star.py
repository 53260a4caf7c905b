"""A small set of simulated particles, for tests that do not look at maps."""

from __future__ import annotations

from collections.abc import Iterator

from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate
from reconstruct.structures import demo_particle
from reconstruct.types import Geometry

__all__ = ["small_chunks"]


def small_chunks(particles: int, *, per_micrograph: int) -> Iterator[Simulated]:
    geometry = Geometry(16, 12.0)
    settings = SimulationSettings(n_particles=particles, particles_per_micrograph=per_micrograph)
    return simulate([Species(demo_particle(geometry))], geometry, settings=settings)
