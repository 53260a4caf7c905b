"""What a simulated set is made of: species, settings, and the particles with the truth about them.

Convention: species are numbered from 0 and ``JUNK`` (-1) is none of them; a particle's name and id
follow from its micrograph and its place there, as they would in a STAR file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from reconstruct.types import FloatArray, Geometry, IntArray, Optics, ParticleImages

__all__ = [
    "JUNK",
    "JunkKind",
    "Simulated",
    "SimulationSettings",
    "Species",
    "Views",
    "concatenate",
    "image_name",
    "particle_ids",
]

JUNK = -1  # species number of junk
Views = Literal["uniform", "concentrated", "tilt_sorted"]
JunkKind = Literal["noise", "broken", "aggregate"]

_KRIOS = Optics(voltage_kv=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1)


@dataclass(frozen=True)
class Species:
    """One kind of particle."""

    volume: FloatArray  # (box, box, box) on the grid of the geometry
    fraction: float = 1.0  # relative share of the particles that are not junk
    appears_at: float = 0.0  # share of the set, in order, before which there are none of it


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate; the defaults are those of the standard sets."""

    n_particles: int
    snr: float = 0.1  # math.inf: no noise, signal variance 1
    optics: Optics = _KRIOS
    defocus_angstrom: tuple[float, float] = (10_000.0, 25_000.0)  # one value per micrograph
    defocus_spread_angstrom: float = 100.0  # deviation of a particle from its micrograph
    astigmatism_angstrom: float = 0.0  # largest difference between the two defoci
    phase_shift_rad: float = 0.0
    max_shift_angstrom: float = 15.0  # uniform in x and in y
    views: Views = "uniform"
    concentration: float = 8.0  # of "concentrated" views (von Mises-Fisher kappa)
    preferred_direction: tuple[float, float, float] = (0.0, 0.0, 1.0)  # in the volume's frame
    noise_colour: float = 0.0  # extra noise power at the lowest frequencies; 0 is white
    junk_fraction: float = 0.0
    junk_kinds: tuple[JunkKind, ...] = ("noise", "broken", "aggregate")
    particles_per_micrograph: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Simulated:
    """Particles and the truth about them; one row per particle."""

    images: npt.NDArray[np.float32]  # (n, box, box)
    particle_ids: npt.NDArray[np.uint64]  # (n,)
    rotations: FloatArray  # (n, 3, 3) A
    shifts_angstrom: FloatArray  # (n, 2) x, y; translating the image by it centres the particle
    species: IntArray  # (n,) index, or JUNK
    defocus_u_angstrom: FloatArray  # (n,)
    defocus_v_angstrom: FloatArray  # (n,)
    defocus_angle_rad: FloatArray  # (n,)
    phase_shift_rad: FloatArray  # (n,)
    optics_group: IntArray  # (n,)
    micrograph: IntArray  # (n,) 0-based
    frame: IntArray  # (n,) 0-based place in the micrograph's stack
    optics: tuple[Optics, ...]
    geometry: Geometry

    def __len__(self) -> int:
        return len(self.images)

    def particle_images(self) -> ParticleImages:
        """What the engine may know."""
        return ParticleImages(**{f.name: getattr(self, f.name) for f in fields(ParticleImages)})


def image_name(micrograph: int, frame: int) -> str:
    """Name of a particle: its 1-based place and its stack, as in a STAR file."""
    return f"{frame + 1:06d}@Particles/micrograph_{micrograph + 1:06d}.mrcs"


def concatenate(parts: Sequence[Simulated]) -> Simulated:
    """Join chunks of one set, in order."""
    first = parts[0]
    joined = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(Simulated)
        if f.name not in ("optics", "geometry")
    }
    return Simulated(**joined, optics=first.optics, geometry=first.geometry)


def particle_ids(micrograph: int, count: int) -> npt.NDArray[np.uint64]:
    """First 8 bytes of the BLAKE2b digest of each name, little endian, as on the wire."""
    digests = [
        hashlib.blake2b(image_name(micrograph, frame).encode()).digest()[:8]
        for frame in range(count)
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
